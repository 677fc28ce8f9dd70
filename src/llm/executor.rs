//! What runs a transformer: tokens in, logits out, keys and values kept in numbered slots.

use crate::backend::{BackendError, BackendInfo};
use crate::checkpoint::CheckpointError;
use crate::convert::MASKED;
use crate::diagnostic::{Diagnose, Diagnostic};

/// Why a model could not be loaded or run.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", self.diagnostic())]
#[allow(missing_docs)]
pub enum LlmError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    TooLong {
        what: &'static str,
        have: usize,
        limit: usize,
        help: String,
    },
    Text {
        path: std::path::PathBuf,
        message: Diagnostic,
    },
    /// The fault of what was asked: put otherwise it may be answered.
    Request(String),
    /// A fault of this program or of the model's files, which no other request is to blame for either.
    Internal(Diagnostic),
    /// Nobody's fault: the same request may be answered a moment later.
    Busy(String),
    NotFinite,
}

impl Diagnose for LlmError {
    fn diagnostic(&self) -> Diagnostic {
        match self {
            Self::Backend(error) => error.diagnostic(),
            Self::Checkpoint(error) => error.diagnostic(),
            Self::TooLong { what, have, limit, help } => {
                Diagnostic::new(format!("{what} of {have} tokens is longer than the {limit} this engine was built for"))
                    .with_help(help)
            }
            Self::Text { path, message } => message.clone().at(path.display()),
            Self::Request(message) | Self::Busy(message) => Diagnostic::new(message),
            Self::Internal(message) => message.clone(),
            Self::NotFinite => {
                Diagnostic::new("the model's logits for this prompt are not finite: its activations overflow")
                    .with_help("build the engine with `precision: bf16` or `fp32`")
            }
        }
    }
}

impl LlmError {
    /// The device or the weights failed: what they hold may be anything. All else is one request's own affair.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Backend(_) | Self::Checkpoint(_))
    }
}

/// One token to continue a sequence with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Where the sequence's keys and values are.
    pub slot: usize,
    /// The token.
    pub token: u32,
    /// Tokens before it.
    pub position: usize,
    /// At which the next token will be drawn, so that a device can prepare [`TopLogits::sum_exp_at_temperature`]; 0 takes the
    /// likeliest.
    pub temperature: f32,
}

/// What is known of the logits of a next token.
#[derive(Debug, Clone, PartialEq)]
pub enum Logits {
    /// `[vocabulary]`
    All(Vec<f32>),
    /// The largest alone; [`Executor::logits`] has them all.
    Top(TopLogits),
}

/// Tokens that a sampler looks at first, whether it has all logits or the largest alone; a device finds as many.
pub(super) const TOP_LOGITS: usize = 64;

/// The largest logits of a row, and sums over all of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopLogits {
    /// Tokens and their logits, best first; of equals the first.
    pub tokens: Vec<(u32, f32)>,
    /// Sum over all tokens of exp(logit - largest logit).
    pub sum_exp: f64,
    /// Sum over all tokens of exp((logit - largest logit) / temperature).
    pub sum_exp_at_temperature: f64,
}

/// Which logits a prefill computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// Of none: more of the prompt follows.
    None,
    /// Of the last token alone.
    Last,
    /// Of every token.
    All,
}

/// Bytes an executor holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MemoryUse {
    /// Weights, on the device or widened on the host.
    pub weights: u64,
    /// Keys and values.
    pub cache: u64,
    /// Activations and engines.
    pub scratch: u64,
}

/// Runs the layers. The caller keeps count of positions: an executor forgets nothing and checks only its limits.
pub trait Executor: Send {
    /// Who computes.
    fn info(&self) -> BackendInfo;
    /// What it has to do without, and what that costs; said once in the log when it is made.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
    /// Sequences it can hold.
    fn slots(&self) -> usize;
    /// Positions of each.
    fn max_len(&self) -> usize;
    /// Size of a row of logits.
    fn vocab_size(&self) -> usize;
    /// How many of `remaining` prompt tokens to take next, after `position` that are held: those of one pass, or of some
    /// short ones.
    fn pass(&self, position: usize, remaining: usize) -> usize;
    /// Appends `tokens` to the `position` tokens `slot` holds. Logits: `[0, 1 or tokens, vocabulary]`.
    fn prefill(&mut self, slot: usize, position: usize, tokens: &[u32], rows: Rows) -> Result<Vec<f32>, LlmError>;
    /// Begins to continue several sequences, each in a slot of its own, by one token. Until [`Executor::collect`] nothing
    /// else may be begun; a device computes meanwhile.
    fn launch(&mut self, steps: &[Step]) -> Result<(), LlmError>;
    /// Waits for what was launched: what is known of each step's logits.
    fn collect(&mut self) -> Result<Vec<Logits>, LlmError>;
    /// All logits of a step that was collected as [`Logits::Top`], until something else is begun. Executors that always give
    /// [`Logits::All`] have none left.
    fn logits(&mut self, step: usize) -> Result<Vec<f32>, LlmError> {
        Err(LlmError::Internal(format!("the logits of step {step} were handed out").into()))
    }
    /// All of it at once. Logits: `[steps, vocabulary]`.
    fn decode(&mut self, steps: &[Step]) -> Result<Vec<f32>, LlmError> {
        self.launch(steps)?;
        let mut all = Vec::new();
        for (step, logits) in self.collect()?.into_iter().enumerate() {
            match logits {
                Logits::All(logits) => all.extend(logits),
                Logits::Top(_) => all.extend(self.logits(step)?),
            }
        }
        Ok(all)
    }
    /// Makes the first `positions` of slot `to` those of `from`.
    fn copy(&mut self, from: usize, to: usize, positions: usize) -> Result<(), LlmError>;
    /// Says that a slot's sequence has ended; its room may be given back.
    fn release(&mut self, slot: usize);
    /// The same of a sequence whose keys and values may not be numbers: nothing of them may stay where later ones are only
    /// masked from it.
    fn forget(&mut self, slot: usize) -> Result<(), LlmError> {
        self.release(slot);
        Ok(())
    }
    /// What it holds.
    fn memory(&self) -> MemoryUse;
    /// Bytes per second that reading weights can reach here; the limit of decoding.
    fn bandwidth(&mut self) -> Result<f64, LlmError>;
    /// Bytes of weights a decode step reads, whatever the batch.
    fn bytes_per_step(&self) -> u64;
}

/// Checks what every executor must. Requests were checked before ([`super::request::Request::check`]): what fails here is nobody
/// else's fault.
pub(super) fn check(executor: &dyn Executor, slot: usize, position: usize, tokens: &[u32]) -> Result<(), LlmError> {
    if slot >= executor.slots() {
        return Err(LlmError::Internal(format!("slot {slot} of {}", executor.slots()).into()));
    }
    if tokens.is_empty() {
        return Err(LlmError::Internal("no tokens".into()));
    }
    let end = position + tokens.len();
    if end > executor.max_len() {
        let help = "shorten it, or raise max_input_len or max_output_len in the recipe and build again".to_owned();
        return Err(LlmError::TooLong { what: "a sequence", have: end, limit: executor.max_len(), help });
    }
    match tokens.iter().find(|token| **token as usize >= executor.vocab_size()) {
        Some(token) => Err(LlmError::Internal(format!("token {token} is not in the vocabulary").into())),
        None => Ok(()),
    }
}

/// What a query may see.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    /// Rows of a group, see `convert::layer_graph`.
    pub(super) group: usize,
    /// New positions.
    pub(super) chunk: usize,
    /// Columns for cached positions.
    pub(super) cache: usize,
    /// Cached positions that are filled.
    pub(super) cached: usize,
    /// Positions a query sees, itself included.
    pub(super) window: Option<usize>,
}

impl Sight {
    /// The additive mask `[group · chunk, cache + chunk]`.
    pub(super) fn mask(&self) -> Vec<f32> {
        let width = self.cache + self.chunk;
        let mut mask = vec![MASKED; self.chunk * width];
        for (query, row) in mask.chunks_exact_mut(width).enumerate() {
            // First visible position, counted from the first cached one.
            let first = self.window.map_or(0, |window| (self.cached + query + 1).saturating_sub(window));
            row[first.min(self.cached)..self.cached].fill(0.0);
            row[self.cache + first.saturating_sub(self.cached)..=self.cache + query].fill(0.0);
        }
        mask.repeat(self.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_show_the_past_and_the_window() {
        let sight = Sight { group: 2, chunk: 2, cache: 4, cached: 3, window: None };
        let seen = |sight: Sight| -> Vec<String> {
            let width = sight.cache + sight.chunk;
            let mark = |v: &f32| if *v == 0.0 { '1' } else { '.' };
            sight.mask().chunks(width).map(|row| row.iter().map(mark).collect()).collect()
        };
        assert_eq!(seen(sight), ["111.1.", "111.11", "111.1.", "111.11"]);
        // A window of 3 shows positions 1 to 3 to query 3, and 2 to 4 to query 4.
        assert_eq!(seen(Sight { window: Some(3), group: 1, ..sight }), [".11.1.", "..1.11"]);
        assert_eq!(seen(Sight { window: Some(1), group: 1, ..sight }), ["....1.", ".....1"]);
        assert_eq!(seen(Sight { window: None, group: 1, cached: 0, cache: 0, ..sight }), ["1.", "11"]);
    }
}
