//! Requests to a generator, and the events of their answers.

use std::time::Duration;

use super::grammar::Grammar;
use super::sampler::Choice;
use crate::executor::LlmError;
use crate::text::{Sampling, TextError};

/// A request for an answer.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// Sampling parameters.
    pub sampling: Sampling,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// Stop strings; the answer ends before the first of them.
    pub stop: Vec<String>,
    /// Grammar that the answer must match; the answer ends when it is complete.
    pub grammar: Option<Grammar>,
    /// What the answer is expected to be, mostly. A right expectation saves time, a wrong one changes nothing.
    pub prediction: Vec<u32>,
    /// Texts that the answer may quote and the prompt does not have, such as a schema.
    pub quotable: Vec<u32>,
    /// Whether special tokens are part of the answer's text.
    pub special: bool,
    /// Whether to continue after end tokens, for measurements.
    pub ignore_end: bool,
    /// The client as a number; clients are served in turn.
    pub client: u64,
    /// Scope whose cached prefixes it may use: that of requests with the same number. Sharing them reveals what others
    /// wrote, since the number of reused positions is reported, and reuse is faster. Prefixes that are kept over restarts
    /// are found by it again.
    pub scope: u64,
}

/// Limits of a model's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// Longest prompt in tokens.
    pub max_input: usize,
    /// Size of the vocabulary; larger token numbers have no embedding.
    pub vocabulary: usize,
}

impl Request {
    /// Checks the request. One that passes can only fail in an executor by the executor's own fault, so every request
    /// is checked before it is queued.
    pub fn check(&self, limits: &RequestLimits) -> Result<(), LlmError> {
        let refuse = |message: String| Err(LlmError::request(message));
        if self.prompt.is_empty() {
            return refuse("the prompt is empty".to_owned());
        }
        if self.prompt.len() > limits.max_input {
            let help = "shorten it, or raise max_input_len in the recipe and build again".to_owned();
            let (have, limit) = (self.prompt.len(), limits.max_input);
            return Err(TextError::TooLong { what: "a prompt", have, limit, help }.into());
        }
        let unknown = |token: &u32| usize::try_from(*token).is_ok_and(|token| token >= limits.vocabulary);
        if let Some(token) = self.prompt.iter().copied().find(unknown) {
            // Fine-tunes add tokens to the tokenizer and forget the embeddings ("[PAD]" of many a Llama 2).
            return refuse(format!(
                "the prompt holds token {token}, and the model knows {} tokens: its tokenizer has an added token the \
                 weights lack; leave that token's text out",
                limits.vocabulary
            ));
        }
        if let Some((token, _)) = self.sampling.logit_bias.iter().find(|(token, _)| unknown(token)) {
            return refuse(format!("logit_bias: token {token} is not one of the model's {}", limits.vocabulary));
        }
        if let Some(complaint) = self.sampling.complaint() {
            return refuse(complaint);
        }
        if self.max_tokens == 0 {
            return refuse("max_tokens is 0".to_owned());
        }
        Ok(())
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// By an end token, a stop string, or a complete grammar.
    Stop,
    /// By `max_tokens`, or because the sequence is full.
    Length,
}

/// An event of an answer: a sampled token, with the text that it makes certain.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Number of the request.
    pub request: u64,
    /// The text that is now certain; may be empty.
    pub text: String,
    /// The sampled token.
    pub choice: Choice,
    /// Token counts and times so far.
    pub usage: Usage,
    /// Set on the last event.
    pub finish: Option<Finish>,
    /// Why the answer failed, on the last event. Other answers are unaffected.
    pub failure: Option<LlmError>,
}

/// Token counts and times of an answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Number of prompt tokens.
    pub prompt: usize,
    /// Number of prompt tokens that were cached.
    pub reused: usize,
    /// Number of answer tokens, an end token included.
    pub answer: usize,
    /// Time from leaving the queue to the first token.
    pub first: Duration,
    /// Time from the first token to the last.
    pub rest: Duration,
    /// Tokens that took no step of their own.
    pub speculation: Speculation,
}

/// Numbers of tokens that were verified several at a time, or not asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Speculation {
    /// Tokens that were drafted and given to the model.
    pub drafted: usize,
    /// Of these, the tokens that the model says as well.
    pub accepted: usize,
    /// Tokens of the answer that its grammar left no choice about.
    pub forced: usize,
    /// Tokens of the request's prediction among `drafted`, and among `accepted`.
    pub predicted: (usize, usize),
}

impl std::ops::AddAssign for Speculation {
    fn add_assign(&mut self, other: Self) {
        self.drafted += other.drafted;
        self.accepted += other.accepted;
        self.forced += other.forced;
        self.predicted.0 += other.predicted.0;
        self.predicted.1 += other.predicted.1;
    }
}
