//! `run` on a language model: a prompt's answer as it comes, or a conversation.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::sync::atomic::Ordering;

use anyhow::bail;

use super::{Environment, Exit, print_json, say};
use crate::diagnostic::Diagnostic;
use crate::generation::{Finish, Generator, Request, Usage};
use crate::log::printable_text;
use crate::text::{Chat, Message, Wishes};

/// How a language model answers. What is not given is as the model's makers say, or greedy if they do not.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Language models")]
pub(super) struct GenerateArgs {
    /// Tokens of an answer at most
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Take special tokens that the prompt spells for what they are, not for words
    #[arg(long)]
    allow_special_tokens: bool,
    /// Continue the prompt as it is, without the chat template
    #[arg(long)]
    raw: bool,
    /// 0 takes the likeliest token always
    #[arg(long)]
    temperature: Option<f32>,
    /// Draw from the K likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from the likeliest tokens that have this probability together
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Draw from tokens at least this fraction as likely as the likeliest
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Makes tokens of prompt and answer less likely
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f32>,
    /// Makes tokens of the answer less likely
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// The same, for every time they occurred
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Makes draws repeatable [default: by the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// With --json: each token's log-probability and this many alternatives
    #[arg(long, value_name = "N", requires = "json")]
    logprobs: Option<usize>,
}

impl GenerateArgs {
    fn wishes(&self) -> Wishes {
        Wishes {
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
        }
    }
}

pub(super) fn execute(
    mut generator: Generator,
    prompt: &str,
    args: &GenerateArgs,
    json: bool,
    environment: &Environment,
) -> anyhow::Result<Exit> {
    let stdin = std::io::stdin();
    if prompt.is_empty() && stdin.is_terminal() {
        return converse(&mut generator, args, environment);
    }
    let mut text = prompt.to_owned();
    if text.is_empty() {
        stdin.lock().take(16 << 20).read_to_string(&mut text)?;
    }
    if text.trim().is_empty() {
        bail!(Diagnostic::new("the prompt is empty").with_help("give it as words or on standard input"));
    }
    let mut messages: Vec<Message> = args.system.iter().map(|system| Message::new("system", system)).collect();
    messages.push(Message::new("user", text.clone()));
    let tokens = match args.raw {
        true => generator.text().encode_text(&text)?,
        false => encode(&generator, &messages, args)?,
    };
    let answer = answer(&mut generator, tokens, args, !json, environment)?;
    if json {
        let info = generator.executor().info();
        print_json(&serde_json::json!({
            "answer": answer.text,
            "finish_reason": if answer.finish == Some(Finish::Length) { "length" } else { "stop" },
            "tokens": answer.tokens,
            "prompt_tokens": answer.usage.prompt,
            "completion_tokens": answer.usage.answer,
            "first_token_seconds": answer.usage.first.as_secs_f64(),
            "tokens_per_second": rate(&answer.usage),
            "backend": info.name,
            "device": info.device,
        }))?;
    } else {
        finish(&mut generator, &answer.usage)?;
    }
    Ok(if environment.cancel.load(Ordering::Relaxed) { Exit::Cancelled } else { Exit::Success })
}

fn encode(generator: &Generator, messages: &[Message], args: &GenerateArgs) -> anyhow::Result<Vec<u32>> {
    let chat = Chat { messages: messages.to_vec(), special: args.allow_special_tokens, ..Chat::default() };
    Ok(generator.text().encode(&chat)?.tokens)
}

/// An answer that has been given.
struct Answer {
    text: String,
    tokens: Vec<serde_json::Value>,
    finish: Option<Finish>,
    usage: Usage,
}

fn answer(
    generator: &mut Generator,
    prompt: Vec<u32>,
    args: &GenerateArgs,
    stream: bool,
    environment: &Environment,
) -> anyhow::Result<Answer> {
    let text = std::sync::Arc::clone(generator.text());
    let sampling = text.defaults.sampling(args.wishes());
    let stop = text.defaults.stops(args.stop.clone());
    let request = Request { prompt, sampling, max_tokens: args.max_tokens, stop, ..Request::default() };
    let mut answer = Answer { text: String::new(), tokens: Vec::new(), finish: None, usage: Usage::default() };
    let mut failed = None;
    answer.usage = generator.answer(request, |piece| {
        answer.text.push_str(&piece.text);
        answer.finish = piece.finish;
        let choice = &piece.choice;
        let named = |token: u32, logprob: f32| {
            serde_json::json!({ "id": token, "piece": text.piece(token), "logprob": logprob })
        };
        answer.tokens.push(match choice.logprob {
            Some(logprob) => {
                let mut entry = named(choice.token, logprob);
                entry["top"] = choice.top.iter().map(|(token, logprob)| named(*token, *logprob)).collect();
                entry
            }
            None => choice.token.into(),
        });
        if stream && !piece.text.is_empty() {
            let mut out = std::io::stdout().lock();
            // A terminal must not obey what a model says.
            let text = if out.is_terminal() { printable_text(&piece.text) } else { piece.text.as_str().into() };
            if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                failed = Some(error);
                return false;
            }
        }
        !environment.cancel.load(Ordering::Relaxed)
    })?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(answer),
    }
}

/// Tokens a second after the first.
fn rate(usage: &Usage) -> f64 {
    let seconds = usage.rest.as_secs_f64();
    if seconds > 0.0 { (usage.answer.saturating_sub(1)) as f64 / seconds } else { 0.0 }
}

fn finish(generator: &mut Generator, usage: &Usage) -> anyhow::Result<()> {
    writeln!(std::io::stdout())?;
    let info = generator.executor().info();
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

/// Turns until the end of input; the cache keeps what was said.
fn converse(generator: &mut Generator, args: &GenerateArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let mut messages: Vec<Message> = args.system.iter().map(|system| Message::new("system", system)).collect();
    say("(an empty line or Ctrl-D ends the conversation)");
    loop {
        let _ = write!(std::io::stderr(), "> ");
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(Exit::Success);
        }
        messages.push(Message::new("user", line.trim()));
        let tokens = encode(generator, &messages, args)?;
        let answer = answer(generator, tokens, args, true, environment)?;
        finish(generator, &answer.usage)?;
        if environment.cancel.load(Ordering::Relaxed) {
            return Ok(Exit::Cancelled);
        }
        messages.push(Message::new("assistant", answer.text));
    }
}
