//! [`ChatModel`]: conversations with a language model.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::chat_options::ChatOptions;
use super::error::{Error, ErrorKind};
use super::opening::{Opening, misfit, opening_methods};
use crate::backend::BackendInfo;
use crate::diagnostic::Diagnostic;
use crate::engine_dir::BackendChoice;
use crate::generation::compiler::GrammarCompiler;
use crate::generation::{Choice, Finish, Generator, Grammar, Piece, Request, RunningAnswer, Usage, schema};
use crate::text::{AnswerForm, AnswerReader, Chat, Delta, Message};

/// A language model's engines, for chat and completion.
///
/// ```no_run
/// # fn main() -> Result<(), watus_build::Error> {
/// use watus_build::{ChatModel, ChatOptions, Message};
///
/// let mut model = ChatModel::open("engines/bielik-1.5b")?;
/// println!("{}", model.ask("Jaka jest stolica Polski?")?);
///
/// // A conversation, whose answer is told as it comes. Breaking off cancels the answer.
/// let messages = [Message::system("You are a robot."), Message::user("Who are you?")];
/// for piece in model.chat(&messages)? {
///     print!("{}", piece?.text);
/// }
///
/// // JSON of a schema. A property that is not `required` may be left out.
/// let schema = serde_json::json!({
///     "type": "object", "required": ["action"], "additionalProperties": false,
///     "properties": { "action": { "enum": ["go", "stop"] } },
/// });
/// let options = ChatOptions::new().temperature(0.0).json_schema(schema);
/// let answer = model.chat_with(&[Message::user("A child runs across the street.")], &options)?.answer()?;
/// println!("{}", answer.text);
/// # Ok(())
/// # }
/// ```
///
/// What one answer has computed of a conversation is kept, so the next turn is read from where they begin to differ.
///
/// Chat templates come with models, and schemas perhaps from strangers. In a program that has not called
/// [`crate::enable_child_processes`] they run in this process, without limits of memory.
pub struct ChatModel {
    generator: Generator,
    compiler: GrammarCompiler,
    max_tokens: usize,
}

/// Options for opening a [`ChatModel`].
pub struct ChatModelBuilder {
    opening: Opening,
}

/// An answer as it comes: an iterator over its pieces. Dropped before the last, it cancels the answer. Should that fail, nobody is
/// told: [`ChatStream::cancel`] says it, and the next answer fails if the device is lost. A stream that is forgotten
/// ([`std::mem::forget`]) is cancelled when the next answer begins.
pub struct ChatStream<'a> {
    running: RunningAnswer<'a>,
    /// Parts thoughts from words; none of a text that is only continued.
    reader: Option<AnswerReader>,
}

/// A part of an answer: what one more token has made certain.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AnswerPiece {
    /// Words of the answer; may be empty.
    pub text: String,
    /// Thoughts, of a model that thinks before it answers; may be empty.
    pub reasoning: String,
    /// Both as the model has written them, with the marks around thoughts.
    pub raw: String,
    /// The token.
    pub choice: Choice,
    /// Why the answer ends, on its last piece.
    pub finish_reason: Option<Finish>,
}

/// A whole answer.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ChatAnswer {
    /// Its words.
    pub text: String,
    /// The thoughts before, of a model that thinks.
    pub reasoning: String,
    /// Why it ended.
    pub finish_reason: Option<Finish>,
    /// What it took.
    pub usage: Usage,
}

impl ChatModelBuilder {
    opening_methods!();

    /// Checks the files of the directory and loads the model, which takes seconds.
    pub fn open(self) -> Result<ChatModel, Error> {
        let engine = self.opening.engine()?;
        let Some(record) = engine.manifest.contents.llm() else { return Err(misfit(&engine)) };
        let runner = self.opening.runner(&engine)?;
        let generator = engine.generator(runner, &*self.opening.progress).map_err(Error::of)?;
        Ok(ChatModel::new(generator, record.max_output_len))
    }
}

impl ChatModel {
    /// Opens an engine directory as it was built: on the GPU where there is one, else on the CPU. On a Jetson
    /// without a usable GPU that is an error, unless [`BackendChoice::Cpu`] is asked for.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, Error> {
        Self::builder(folder).open()
    }

    /// Opens an engine directory with other settings.
    pub fn builder(folder: impl AsRef<Path>) -> ChatModelBuilder {
        ChatModelBuilder { opening: Opening::new(folder.as_ref()) }
    }

    /// Of a model that is loaded; `max_tokens` is how long an answer may be that says nothing of it.
    pub(crate) fn new(generator: Generator, max_tokens: usize) -> Self {
        let compiler = GrammarCompiler::new(Arc::clone(generator.text()));
        Self { generator, compiler, max_tokens }
    }

    /// Answers one question, without what was said before.
    pub fn ask(&mut self, question: &str) -> Result<String, Error> {
        Ok(self.chat(&[Message::user(question)])?.answer()?.text)
    }

    /// Answers the last of a conversation's turns.
    pub fn chat(&mut self, messages: &[Message]) -> Result<ChatStream<'_>, Error> {
        self.chat_with(messages, &ChatOptions::default())
    }

    /// Answers the last of a conversation's turns, as the options say.
    pub fn chat_with(&mut self, messages: &[Message], options: &ChatOptions) -> Result<ChatStream<'_>, Error> {
        if messages.is_empty() {
            let message = Diagnostic::new("the conversation is empty").with_help("give at least one turn of the user");
            return Err(Error::new(ErrorKind::Request, message));
        }
        let text = Arc::clone(self.generator.text());
        let schema = checked_schema(options)?;
        let mut chat = Chat {
            messages: messages.to_vec(),
            options: options.template.clone(),
            special: options.special_tokens,
            ..Chat::default()
        };
        let form = AnswerForm { schema, ..AnswerForm::default() };
        let prepared = text.prepare(&mut chat, &form).map_err(Error::of)?;
        let compile = |lark: String| self.compiler.compile(&lark, &AtomicBool::new(false)).map_err(Error::of);
        let grammar = prepared.grammar.map(compile).transpose()?;
        self.begin(prepared.tokens, grammar, options, Some(prepared.reader))
    }

    /// Continues a text as it is, without the model's chat template.
    pub fn complete(&mut self, text: &str, options: &ChatOptions) -> Result<ChatStream<'_>, Error> {
        if options.schema.is_some() {
            let message = Diagnostic::new("a text that is continued has no schema").with_help("use `chat_with`");
            return Err(Error::new(ErrorKind::Request, message));
        }
        let prompt = self.generator.text().encode_text(text).map_err(Error::of)?;
        self.begin(prompt, None, options, None)
    }

    fn begin(
        &mut self,
        prompt: Vec<u32>,
        grammar: Option<Grammar>,
        options: &ChatOptions,
        reader: Option<AnswerReader>,
    ) -> Result<ChatStream<'_>, Error> {
        let defaults = &self.generator.text().defaults;
        let sampling = defaults.sampling(options.wishes.clone());
        let stop = defaults.stops(options.stop.clone());
        let max_tokens = options.max_tokens.unwrap_or(self.max_tokens);
        let prediction = self.generator.text().encode_part(&options.prediction, None).map_err(Error::of)?;
        let request = Request { prompt, sampling, max_tokens, stop, grammar, prediction, ..Request::default() };
        Ok(ChatStream { running: self.generator.begin(request).map_err(Error::of)?, reader })
    }

    /// The text that a token spells, by its number.
    pub fn token_text(&self, token: u32) -> Option<String> {
        self.generator.text().piece(token)
    }

    /// The backend and the device.
    pub fn info(&mut self) -> BackendInfo {
        self.generator.executor().info()
    }
}

/// The schema that an answer is to have, if it can be enforced.
fn checked_schema(options: &ChatOptions) -> Result<Option<serde_json::Value>, Error> {
    let refused = |told: Diagnostic| Error::new(ErrorKind::Request, told);
    let Some(schema) = options.schema.clone().transpose().map_err(refused)? else { return Ok(None) };
    schema::check(&schema).map_err(|error| refused(error.to_string().into()))?;
    Ok(Some(schema))
}

impl ChatStream<'_> {
    /// Waits for the rest of the answer.
    pub fn answer(mut self) -> Result<ChatAnswer, Error> {
        let mut answer = ChatAnswer::default();
        for piece in &mut self {
            let AnswerPiece { text, reasoning, finish_reason, .. } = piece?;
            answer.text.push_str(&text);
            answer.reasoning.push_str(&reasoning);
            answer.finish_reason = finish_reason;
        }
        answer.usage = self.usage();
        Ok(answer)
    }

    /// What the answer has taken so far.
    pub fn usage(&self) -> Usage {
        self.running.usage()
    }

    /// Ends the answer, as dropping does, and says if that failed.
    pub fn cancel(&mut self) -> Result<(), Error> {
        self.running.cancel().map_err(Error::of)
    }

    /// Words and thoughts of a piece.
    fn read(&mut self, piece: Piece) -> AnswerPiece {
        let Piece { text: raw, choice, finish: finish_reason, .. } = piece;
        let Some(reader) = &mut self.reader else {
            return AnswerPiece { text: raw.clone(), reasoning: String::new(), raw, choice, finish_reason };
        };
        let mut deltas = reader.push(&raw);
        if finish_reason.is_some() {
            deltas.extend(reader.finish());
        }
        let (mut text, mut reasoning) = (String::new(), String::new());
        for delta in deltas {
            match delta {
                Delta::Content(words) => text.push_str(&words),
                Delta::Reasoning(thoughts) => reasoning.push_str(&thoughts),
                // No functions are offered.
                Delta::Call { .. } | Delta::Arguments { .. } => {}
            }
        }
        AnswerPiece { text, reasoning, raw, choice, finish_reason }
    }
}

impl Iterator for ChatStream<'_> {
    type Item = Result<AnswerPiece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.running.next()?;
        Some(piece.map(|piece| self.read(piece)).map_err(Error::of))
    }
}
