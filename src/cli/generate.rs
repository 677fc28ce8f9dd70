//! `run` on a language model: streams the answer to one prompt, or holds a conversation on a terminal.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::sync::atomic::Ordering;

use anyhow::bail;

use super::{Environment, Exit, print_json, say};
use crate::api::{ChatModel, ChatOptions, ChatStream};
use crate::diagnostic::Diagnostic;
use crate::generation::{Choice, Finish, Usage};
use crate::log::printable_text;
use crate::text::{Message, Wishes};

/// Options of text generation. Defaults come from the model's generation_config.json; without it decoding is greedy.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Language models")]
pub(super) struct GenerateArgs {
    /// Longest answer in tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(super) max_tokens: usize,
    /// System prompt, placed before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Encode special tokens written in the prompt as special tokens instead of as text
    #[arg(long)]
    allow_special_tokens: bool,
    /// Continue the prompt as it is, without the chat template
    #[arg(long)]
    raw: bool,
    /// Sampling temperature; 0 is greedy decoding [default: the model's, else 0]
    #[arg(long, value_name = "X")]
    temperature: Option<f32>,
    /// Sample from the K most likely tokens [default: the model's, else all]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample from the smallest set of tokens whose probabilities add up to P (nucleus sampling) [default: the model's,
    /// else 1]
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Sample from tokens that are at least P times as likely as the most likely one [default: 0]
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Divide positive logits of tokens in the prompt or answer by X and multiply negative ones [default: the model's,
    /// else 1]
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f32>,
    /// Subtract X from the logit of every token that occurs in the answer [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Subtract X from a token's logit for each time it occurs in the answer [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Seed of the sampler, for reproducible answers [default: from the clock]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Stop before this text; repeatable
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// With --json: print each token's log-probability and N alternatives
    #[arg(long, value_name = "N", requires = "json")]
    logprobs: Option<usize>,
}

impl GenerateArgs {
    fn options(&self) -> ChatOptions {
        let options = ChatOptions::sampling(Wishes {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: Vec::new(),
            seed: self.seed,
            top_logprobs: self.logprobs,
        });
        let options = options.max_tokens(self.max_tokens).allow_special_tokens(self.allow_special_tokens);
        self.stop.iter().fold(options, |options, text| options.stop(text))
    }
}

pub(super) fn execute(
    mut model: ChatModel,
    prompt: &str,
    args: &GenerateArgs,
    json: bool,
    environment: &Environment,
) -> anyhow::Result<Exit> {
    let stdin = std::io::stdin();
    if prompt.is_empty() && stdin.is_terminal() {
        return converse(&mut model, args, environment);
    }
    let mut text = prompt.to_owned();
    if text.is_empty() {
        stdin.lock().take(16 << 20).read_to_string(&mut text)?;
    }
    if text.trim().is_empty() {
        bail!(Diagnostic::new("the prompt is empty").with_help("give it as words or on standard input"));
    }
    let mut messages: Vec<Message> = args.system.iter().map(Message::system).collect();
    messages.push(Message::user(text.clone()));
    let stream = match args.raw {
        true => model.complete(&text, &args.options())?,
        false => model.chat_with(&messages, &args.options())?,
    };
    let answer = answer(stream, !json, environment)?;
    if json {
        let info = model.info();
        let tokens: Vec<serde_json::Value> = answer.choices.iter().map(|choice| token(&model, choice)).collect();
        print_json(&serde_json::json!({
            "answer": answer.text,
            "finish_reason": if answer.finish == Some(Finish::Length) { "length" } else { "stop" },
            "tokens": tokens,
            "prompt_tokens": answer.usage.prompt,
            "completion_tokens": answer.usage.answer,
            "first_token_seconds": answer.usage.first.as_secs_f64(),
            "tokens_per_second": rate(&answer.usage),
            "backend": info.name,
            "device": info.device,
        }))?;
    } else {
        finish(&mut model, &answer.usage)?;
    }
    Ok(if environment.cancel.load(Ordering::Relaxed) { Exit::Cancelled } else { Exit::Success })
}

/// A token's number, or where log-probabilities were asked for all that is known of it.
fn token(model: &ChatModel, choice: &Choice) -> serde_json::Value {
    let named = |token: u32, logprob: f32| serde_json::json!({ "id": token, "piece": model.token_text(token), "logprob": logprob });
    match choice.logprob {
        Some(logprob) => {
            let mut entry = named(choice.token, logprob);
            entry["top"] = choice.top.iter().map(|(token, logprob)| named(*token, *logprob)).collect();
            entry
        }
        None => choice.token.into(),
    }
}

/// An answer in full, as the model wrote it.
struct Answer {
    text: String,
    choices: Vec<Choice>,
    finish: Option<Finish>,
    usage: Usage,
}

fn answer(mut stream: ChatStream<'_>, shown: bool, environment: &Environment) -> anyhow::Result<Answer> {
    let mut answer = Answer { text: String::new(), choices: Vec::new(), finish: None, usage: Usage::default() };
    while let Some(piece) = stream.next() {
        let piece = piece?;
        answer.text.push_str(&piece.raw);
        answer.finish = piece.finish_reason;
        answer.choices.push(piece.choice);
        if shown && !piece.raw.is_empty() {
            let mut out = std::io::stdout().lock();
            // A terminal must not obey what a model says.
            let text = if out.is_terminal() { printable_text(&piece.raw) } else { piece.raw.as_str().into() };
            out.write_all(text.as_bytes()).and_then(|()| out.flush())?;
        }
        if environment.cancel.load(Ordering::Relaxed) {
            stream.cancel()?;
            break;
        }
    }
    answer.usage = stream.usage();
    Ok(answer)
}

/// Decoding speed: tokens per second after the first token.
fn rate(usage: &Usage) -> f64 {
    let seconds = usage.rest.as_secs_f64();
    if seconds > 0.0 { (usage.answer.saturating_sub(1)) as f64 / seconds } else { 0.0 }
}

fn finish(model: &mut ChatModel, usage: &Usage) -> anyhow::Result<()> {
    writeln!(std::io::stdout())?;
    let info = model.info();
    say(format!(
        "[{} tokens at {:.1} tok/s; {} prompt tokens, first token after {:.2} s; {}, {}]",
        usage.answer,
        rate(usage),
        usage.prompt,
        usage.first.as_secs_f64(),
        info.name,
        info.device
    ));
    Ok(())
}

/// Reads prompts from the terminal until the end of input. The KV cache keeps the conversation between them.
fn converse(model: &mut ChatModel, args: &GenerateArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let mut messages: Vec<Message> = args.system.iter().map(Message::system).collect();
    say("(an empty line or Ctrl-D ends the conversation)");
    loop {
        let _ = write!(std::io::stderr(), "> ");
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(Exit::Success);
        }
        messages.push(Message::user(line.trim()));
        let answer = answer(model.chat_with(&messages, &args.options())?, true, environment)?;
        finish(model, &answer.usage)?;
        if environment.cancel.load(Ordering::Relaxed) {
            return Ok(Exit::Cancelled);
        }
        messages.push(Message::assistant(answer.text));
    }
}
