//! Converts between text and tokens: tokenizer, chat template, and a model's sampling defaults.
//!
//! An engine directory keeps them in files with the hub's names; for a GGUF, `gguf.rs` writes these files from its
//! metadata, so that at run time there is one format.

mod answer;
mod chat;
pub mod child;
mod defaults;
mod ends;
mod error;
mod gguf;
mod jinja;
pub(crate) mod lark;
mod message;
mod plain;
mod prepare;
mod pretokenizers;
mod sampling;
mod special;
mod stream;
mod template;
pub mod tools;
mod vocabulary;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

pub use answer::{AnswerReader, Delta};
pub use chat::Prompt;
pub use defaults::{Defaults, Wishes};
pub use error::TextError;
pub use gguf::{check_vocabulary, refused_vocabularies, text_files};
pub use message::{Chat, Function, Message, ToolCall, tool};
pub use prepare::{AnswerForm, PreparedChat};
pub use pretokenizers::vocabulary_names;
pub use sampling::Sampling;
pub use stream::{StopFinder, TextStream};
pub use template::{ChatTemplate, Traits};
pub(crate) use vocabulary::SPECIAL;

use crate::checkpoint::read_json;
use crate::diagnostic::Diagnostic;
use crate::regular_file;

/// The text files of an engine directory.
pub const TEXT_FILES: [&str; 9] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    TOOL_USE_TEMPLATE,
];

/// Path of the template for conversations with functions, if a repository has a separate one.
pub const TOOL_USE_TEMPLATE: &str = "additional_chat_templates/tool_use.jinja";

/// Largest tokenizer.json in bytes; vocabularies of a quarter of a million tokens take 35 MB.
const TOKENIZER_LIMIT: u64 = 256 << 20;

/// Tokenizer, chat template and defaults of a model.
pub struct Text {
    tokenizer: tokenizers::Tokenizer,
    template: Option<ChatTemplate>,
    traits: Option<Traits>,
    plain: plain::Plain,
    words: OnceLock<Vec<Vec<u8>>>,
    /// Bytes of the longest token's text.
    longest: usize,
    /// Tokens that end an answer.
    pub stop_tokens: BTreeSet<u32>,
    /// The model's sampling defaults.
    pub defaults: Defaults,
    folder: PathBuf,
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Text({})", self.folder.display())
    }
}

/// Checks the text files in `folder` before a model is built with them: an error if they are unusable, a warning if the
/// model cannot hold a conversation with them.
pub fn judge(folder: &Path) -> Result<Option<String>, TextError> {
    let text = Text::open(folder)?;
    let prefix = prefix_space(folder)?;
    if text.traits.is_none() {
        let warning = Diagnostic::new("the model has no chat template: it will complete texts, and may not converse")
            .with_help("give the recipe a `chat_template: FILE.jinja` if it was trained on conversations");
        return Ok(Some(prefix.into_iter().chain([warning.to_string()]).collect::<Vec<_>>().join("; ")));
    }
    // What a template refuses everybody, and filters it names that nobody has.
    text.encode_chat(&[Message::new("user", "?")])?;
    Ok(prefix)
}

/// A warning if tokenizer_config.json and tokenizer.json disagree on a space before a text, and transformers (5.24)
/// follows the former because of the class that it names.
fn prefix_space(folder: &Path) -> Result<Option<String>, TextError> {
    let path = folder.join("tokenizer_config.json");
    let settings = if path.exists() { read_json(&path)? } else { Value::Null };
    let class = settings.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
    let Some(wanted) = settings.get("add_prefix_space").and_then(Value::as_bool) else { return Ok(None) };
    let tokenizer = read_json(&folder.join("tokenizer.json"))?;
    let parts =
        ["normalizer", "pre_tokenizer"].map(|part| tokenizer.get(part).map(Value::to_string).unwrap_or_default());
    let has = |text: &str| parts.iter().any(|part| part.contains(text));
    let differs = match class.trim_end_matches("Fast") {
        "LlamaTokenizer" if !wanted => {
            has(r#""prepend_scheme":"first""#) || has(r#""prepend_scheme":"always""#) || has(r#""type":"Prepend""#)
        }
        "GPT2Tokenizer" | "Qwen2Tokenizer" if wanted => has(r#""add_prefix_space":false"#),
        _ => false,
    };
    let words = || {
        format!(
            "tokenizer_config.json says `add_prefix_space: {wanted}` and tokenizer.json, which is followed, the opposite: the {class} of \
             transformers makes other tokens of a text's beginning"
        )
    };
    Ok(differs.then(words))
}

impl Text {
    /// Reads the files in `folder`.
    pub fn open(folder: &Path) -> Result<Self, TextError> {
        let path = folder.join("tokenizer.json");
        let fail = |message: Diagnostic| TextError::File { path: path.clone(), message };
        let bytes = regular_file::read(&path, TOKENIZER_LIMIT).map_err(|error| {
            let message = Diagnostic::new(error.to_string()).with_help(
                "the model needs a tokenizer.json; `tokenizers` converts a tokenizer.model: \
                 AutoTokenizer.from_pretrained(…).save_pretrained(…)",
            );
            TextError::File { path: path.clone(), message }
        })?;
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| fail(error.to_string().into()))?;
        // What a tool that trained or calibrated the model left in the file: it would cut prompts, or fill them up.
        tokenizer.with_truncation(None).map_err(|error| fail(error.to_string().into()))?;
        tokenizer.with_padding(None);
        let optional = |name: &str| -> Result<Value, TextError> {
            let path = folder.join(name);
            Ok(if path.exists() { read_json(&path)? } else { Value::Null })
        };
        let settings = optional("tokenizer_config.json")?;
        let generation = optional("generation_config.json")?;
        let config = optional("config.json")?;
        let mut stop_tokens = ends_by_number([&generation, &config, config.get("text_config").unwrap_or(&Value::Null)]);
        let map = optional("special_tokens_map.json")?;
        special::add_missing(&mut tokenizer, &settings, &map, &optional("added_tokens.json")?).map_err(&fail)?;
        let tokens = special::tokens(&settings, &map);
        stop_tokens.extend(tokens.get("eos_token").and_then(|eos| tokenizer.token_to_id(eos)));
        let found = ChatTemplate::find(folder, &settings, tokens)?;
        stop_tokens.extend(found.as_ref().and_then(|(template, _)| ends::of(template, &tokenizer)));
        let parts = found.as_ref().map(|(template, _)| template.parts());
        let source = parts.map(|parts| [parts.text.as_str(), parts.tool_use.as_deref().unwrap_or_default()].concat());
        let plain = plain::Plain::new(&tokenizer, source.as_deref().unwrap_or_default())?;
        let (template, traits) = found.unzip();
        let defaults = Defaults::of(&generation);
        // No text spells a special token: what ends an answer as one is a token that does.
        let is_special = |stop: &&String| tokenizer.get_added_vocabulary().is_special_token(stop);
        stop_tokens.extend(defaults.stops.iter().filter(is_special).filter_map(|stop| tokenizer.token_to_id(stop)));
        let (words, folder) = (OnceLock::new(), folder.to_owned());
        let longest = tokenizer.get_vocab(true).keys().map(String::len).max().unwrap_or(1).max(1);
        Ok(Self { tokenizer, template, traits, plain, words, longest, stop_tokens, defaults, folder })
    }

    /// Encodes a text without template, with the tokens that the model adds (usually a first one).
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.tokens(text, true)
    }

    /// Encodes a text without template; an error if it has more than `limit` tokens.
    pub fn encode_text_within(&self, text: &str, limit: usize) -> Result<Vec<u32>, TextError> {
        self.tokens_within(text, true, Some(limit))
    }

    /// Most bytes of a text with `limit` tokens, so that a longer one need not be tokenised. No token's own text is
    /// shorter than the text it stands for.
    pub fn most_bytes(&self, limit: usize) -> usize {
        limit.saturating_mul(self.longest)
    }

    /// Properties of the chat template; `None` without one.
    pub fn traits(&self) -> Option<Traits> {
        self.traits
    }

    /// Bytes of every token, by number; special ones begin with [`SPECIAL`], numbers without a token are empty.
    pub(crate) fn words(&self) -> &[Vec<u8>] {
        self.words.get_or_init(|| vocabulary::words(&self.tokenizer))
    }

    /// The bytes that a token stands for.
    pub fn bytes(&self, token: u32) -> &[u8] {
        let word = self.words().get(token as usize).map_or(&[][..], Vec::as_slice);
        word.strip_prefix(&[SPECIAL]).unwrap_or(word)
    }

    /// The special token with this spelling, which no text is tokenised to.
    pub fn special(&self, spelling: &str) -> Option<u32> {
        let token = self.tokenizer.token_to_id(spelling)?;
        self.words().get(token as usize)?.starts_with(&[SPECIAL]).then_some(token)
    }

    /// Decodes tokens to text.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String, TextError> {
        self.tokenizer.decode(tokens, skip_special).map_err(|error| TextError::Internal(error.to_string().into()))
    }

    /// A token's own text in the vocabulary.
    pub fn piece(&self, token: u32) -> Option<String> {
        self.tokenizer.id_to_token(token)
    }

    fn tokens(&self, text: &str, special: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.tokenizer.encode_fast(text, special);
        Ok(encoding.map_err(|error| TextError::Internal(error.to_string().into()))?.get_ids().to_vec())
    }

    /// Tokenises a text, unless it has more than `limit` tokens: megabytes that would be refused are not tokenised
    /// first.
    fn tokens_within(&self, text: &str, special: bool, limit: Option<usize>) -> Result<Vec<u32>, TextError> {
        let Some(limit) = limit else { return self.tokens(text, special) };
        if text.len() > self.most_bytes(limit) {
            return Err(too_long(text.len().div_ceil(self.longest), limit));
        }
        // Beginnings that double tell soon. A cut may add a few tokens.
        let mut size = limit.saturating_mul(8).max(4096);
        while size < text.len() {
            let have = self.tokens(&text[..text.floor_char_boundary(size)], special)?.len();
            if have > limit + CUT {
                return Err(too_long(have, limit));
            }
            size = size.saturating_mul(2);
        }
        self.tokens(text, special)
    }

    /// Tokenises consecutive parts of a text separately.
    fn joined(&self, parts: &[String], limit: Option<usize>) -> Result<Vec<u32>, TextError> {
        let mut tokens = Vec::new();
        let too_long = |have: usize| too_long(have, limit.unwrap_or(usize::MAX));
        let bytes: usize = parts.iter().map(String::len).sum();
        if limit.is_some_and(|limit| bytes > self.most_bytes(limit)) {
            return Err(too_long(bytes.div_ceil(self.longest)));
        }
        for (index, part) in parts.iter().enumerate() {
            let left = limit.map(|limit| (limit + CUT).saturating_sub(tokens.len()));
            let new = match index {
                0 => self.tokens_within(part, false, left),
                _ => self.continuation(part, left),
            };
            let have = tokens.len();
            tokens.extend(new.map_err(|error| match error {
                TextError::TooLong { have: more, .. } => too_long(have + more),
                error => error,
            })?);
        }
        Ok(tokens)
    }

    /// Encodes a part inside of a text; an error if it has more than `limit` tokens.
    pub fn encode_part(&self, part: &str, limit: Option<usize>) -> Result<Vec<u32>, TextError> {
        self.continuation(part, limit)
    }

    /// Tokenises a part inside of a text: SentencePiece's tokenizers prepend a space to every text, so it is preceded
    /// by a newline, which is a token of its own.
    fn continuation(&self, part: &str, limit: Option<usize>) -> Result<Vec<u32>, TextError> {
        let begins =
            |text: &str| self.tokens(text, false).map(|tokens| tokens.first().and_then(|one| self.piece(*one)));
        if part.is_empty() || !begins("x")?.is_some_and(|piece| piece.starts_with('\u{2581}')) {
            return self.tokens_within(part, false, limit);
        }
        let tokens = self.tokens_within(&format!("\n{part}"), false, limit.map(|limit| limit + 2))?;
        let newline = |token: &u32| self.piece(*token).is_some_and(|piece| piece == "<0x0A>" || piece == "\n");
        match tokens.iter().position(newline) {
            Some(at) => Ok(tokens[at + 1..].to_vec()),
            None => self.tokens_within(part, false, limit),
        }
    }
}

fn too_long(have: usize, limit: usize) -> TextError {
    let help = "shorten it, or raise max_input_len in the recipe and build again".to_owned();
    TextError::TooLong { what: "a prompt", have, limit, help }
}

/// Most additional tokens of a text that is cut in two.
const CUT: usize = 64;

/// The end tokens that these files name by number.
fn ends_by_number(files: [&Value; 3]) -> BTreeSet<u32> {
    let named = files.into_iter().filter_map(|file| file.get("eos_token_id"));
    named.flat_map(|id| id.as_array().map_or(std::slice::from_ref(id), Vec::as_slice)).filter_map(token_id).collect()
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

#[cfg(test)]
mod prefix_tests {
    #[test]
    fn a_space_that_two_files_disagree_on_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let metaspace = r#"{"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"}}"#;
        let byte_level = r#"{"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}}"#;
        for (tokenizer, class, wanted, told) in [
            (metaspace, "LlamaTokenizerFast", "false", true),
            (metaspace, "LlamaTokenizerFast", "true", false),
            (metaspace, "PreTrainedTokenizerFast", "false", false),
            (byte_level, "Qwen2Tokenizer", "true", true),
            (byte_level, "Qwen2Tokenizer", "false", false),
            (byte_level, "GPT2TokenizerFast", "null", false),
        ] {
            write("tokenizer.json", tokenizer);
            let settings = format!(r#"{{"tokenizer_class": "{class}", "add_prefix_space": {wanted}}}"#);
            write("tokenizer_config.json", &settings);
            let words = super::prefix_space(folder.path()).unwrap();
            assert_eq!(words.is_some(), told, "{settings} {words:?}");
        }
    }
}
