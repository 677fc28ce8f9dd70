//! `run` on a language model: streams the answer to one prompt, or holds a conversation on a terminal.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::sync::atomic::Ordering;

use anyhow::bail;

use super::{Environment, Exit, print_json, say};
use crate::diagnostic::Diagnostic;
use crate::llm::text::{Chat, Message, Wishes};
use crate::llm::{Finish, Generator, Request, Usage};
use crate::log::printable_text;

/// Options of text generation. Defaults come from the model's generation_config.json; without it decoding is greedy.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Language models")]
pub(super) struct GenerateArgs {
    /// Longest answer in tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
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

/// An answer in full.
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

/// Decoding speed: tokens per second after the first token.
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

/// Reads prompts from the terminal until the end of input. The KV cache keeps the conversation between them.
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
