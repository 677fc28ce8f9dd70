//! What is asked of a model, and what comes of it.

use std::time::Duration;

use super::executor::LlmError;
use super::grammar::Grammar;
use super::sampler::{Choice, Sampling};

/// What to answer.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The tokens to continue.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// At most so many.
    pub max_tokens: usize,
    /// The answer ends before the first of these.
    pub stop: Vec<String>,
    /// Only what this accepts may be said; the answer ends when it is complete.
    pub grammar: Option<Grammar>,
    /// Spell special tokens out instead of leaving them away.
    pub special: bool,
    /// Go on after the tokens that end an answer: for measurements.
    pub ignore_end: bool,
    /// Who asks, as a number: clients wait their turn.
    pub client: u64,
    /// Whose cached positions it may use: those of requests with the same number. What is cached tells what others have
    /// said: how many positions were reused is reported, and a reused beginning is quicker.
    pub scope: u64,
}

/// What a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// Longest prompt in tokens.
    pub max_input: usize,
    /// Tokens the model knows: numbers from this on have no row in its embeddings.
    pub vocabulary: usize,
}

impl Request {
    /// Says what is wrong with it. Nothing that passes can fail in an executor but by the executor's own fault, so every
    /// way to the queue asks this first.
    pub fn check(&self, limits: &RequestLimits) -> Result<(), LlmError> {
        let refuse = |message: String| Err(LlmError::Request(message));
        if self.prompt.is_empty() {
            return refuse("the prompt is empty".to_owned());
        }
        if self.prompt.len() > limits.max_input {
            let help = "shorten it, or raise max_input_len in the recipe and build again".to_owned();
            let (have, limit) = (self.prompt.len(), limits.max_input);
            return Err(LlmError::TooLong { what: "a prompt", have, limit, help });
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
    /// The model ended it, a stop string was met, or the grammar is complete.
    Stop,
    /// `max_tokens`, or no more room.
    Length,
}

/// Something of an answer.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Which request's.
    pub request: u64,
    /// Text that is now certain; may be empty.
    pub text: String,
    /// The token behind it.
    pub choice: Choice,
    /// What the answer has taken so far.
    pub usage: Usage,
    /// Set on the last piece.
    pub finish: Option<Finish>,
    /// Why there will be no more, if this answer failed. Others go on.
    pub failure: Option<LlmError>,
}

/// What an answer took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Of these, how many were in the cache already.
    pub reused: usize,
    /// Tokens of the answer, an end token included.
    pub answer: usize,
    /// From leaving the queue until the first token was chosen.
    pub first: Duration,
    /// From the first token to the last.
    pub rest: Duration,
}
