//! What is asked of a model, and what comes of it.

use std::time::Duration;

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
    pub failure: Option<String>,
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
