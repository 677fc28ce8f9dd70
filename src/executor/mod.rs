//! What runs a transformer: tokens in, logits out, keys and values kept in numbered slots.
//!
//! `cpu.rs` does it in float32 on any machine, [`crate::cuda_executor`] with TensorRT's engines. `passes.rs` cuts prompts and
//! `host.rs` reads weights for both; `shapes.rs` says which engines there are.

mod cpu;
mod host;
mod passes;
mod shapes;

use crate::backend::{BackendError, BackendInfo};
use crate::checkpoint::CheckpointError;
use crate::convert::MASKED;
use crate::diagnostic::Diagnostic;
use crate::text::TextError;

pub use cpu::{CpuExecutor, Squares};
pub(crate) use host::{Embedding, not_finite};
pub(crate) use passes::{Size, Sizes};
pub use shapes::{head_name, layer_name};

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LlmError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{what} of {have} tokens is longer than the {limit} this engine was built for\n  hint: {help}")]
    TooLong { what: &'static str, have: usize, limit: usize, help: String },
    #[error("{}: {message}", path.display())]
    Text { path: std::path::PathBuf, message: Diagnostic },
    #[error("{0}")]
    Request(String),
    /// Nobody's fault: the same request may be answered a moment later.
    #[error("{0}")]
    Busy(String),
    #[error(
        "the model's logits for this prompt are not finite: its activations overflow\n  hint: build the engine with \
         `precision: bf16` or `fp32`"
    )]
    NotFinite,
}

impl LlmError {
    /// The device or the weights failed: what they hold may be anything. All else is one request's own affair.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Backend(_) | Self::Checkpoint(_))
    }
}

impl From<TextError> for LlmError {
    fn from(error: TextError) -> Self {
        match error {
            TextError::Checkpoint(error) => Self::Checkpoint(error),
            TextError::TooLong { what, have, limit, help } => Self::TooLong { what, have, limit, help },
            TextError::File { path, message } => Self::Text { path, message },
            TextError::Request(message) => Self::Request(message),
            TextError::Busy(message) => Self::Busy(message),
        }
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
    /// What will be asked of the next token's logits.
    pub wanted: WantedLogits,
}

/// What whoever begins a step will ask first of its logits, so that a device can prepare it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WantedLogits {
    /// All of them.
    All,
    /// The largest, and [`TopLogits::sum_exp_at_temperature`] for this temperature; 0 takes the likeliest.
    Top {
        /// At which the next token will be drawn.
        temperature: f32,
    },
}

/// The logits of the steps that were collected, read as far as somebody asks. Steps count from 0, as they were launched.
pub trait StepLogits {
    /// The largest of a step that wanted them; none where the executor has not found them apart.
    fn top(&self, step: usize) -> Option<&TopLogits>;
    /// All of a step, `[vocabulary]`; the caller may change them.
    fn all(&mut self, step: usize) -> Result<&mut [f32], LlmError>;
}

/// Logits that are on the host as they are computed: `[steps][vocabulary]`.
#[derive(Debug, Clone, PartialEq)]
pub struct HostLogits(pub Vec<Vec<f32>>);

impl StepLogits for HostLogits {
    fn top(&self, _: usize) -> Option<&TopLogits> {
        None
    }

    fn all(&mut self, step: usize) -> Result<&mut [f32], LlmError> {
        self.0.get_mut(step).map(Vec::as_mut_slice).ok_or_else(|| not_launched(step))
    }
}

/// A caller asks for a step that is none.
pub(crate) fn not_launched(step: usize) -> LlmError {
    LlmError::Request(format!("step {step} was not launched"))
}

/// Tokens that a sampler looks at first, whether it has all logits or the largest alone; a device finds as many.
pub(crate) const TOP_LOGITS: usize = 64;

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
    /// Waits for what was launched: each step's logits.
    fn collect(&mut self) -> Result<Box<dyn StepLogits + '_>, LlmError>;
    /// All of it at once. Logits: `[steps, vocabulary]`.
    fn decode(&mut self, steps: &[Step]) -> Result<Vec<f32>, LlmError> {
        self.launch(steps)?;
        let mut logits = self.collect()?;
        let mut all = Vec::new();
        for step in 0..steps.len() {
            all.extend_from_slice(logits.all(step)?);
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

/// Checks what every executor must.
pub(crate) fn check(executor: &dyn Executor, slot: usize, position: usize, tokens: &[u32]) -> Result<(), LlmError> {
    if slot >= executor.slots() {
        return Err(LlmError::Request(format!("slot {slot} of {}", executor.slots())));
    }
    if tokens.is_empty() {
        return Err(LlmError::Request("no tokens".to_owned()));
    }
    let end = position + tokens.len();
    if end > executor.max_len() {
        let help = "shorten it, or raise max_input_len or max_output_len in the recipe and build again".to_owned();
        return Err(LlmError::TooLong { what: "a sequence", have: end, limit: executor.max_len(), help });
    }
    match tokens.iter().find(|token| **token as usize >= executor.vocab_size()) {
        Some(token) => Err(LlmError::Request(format!("token {token} is not in the vocabulary"))),
        None => Ok(()),
    }
}

/// What a query may see.
#[derive(Debug, Clone, Copy)]
struct Sight {
    /// Rows of a group, see `convert::layer_graph`.
    group: usize,
    /// New positions.
    chunk: usize,
    /// Columns for cached positions.
    cache: usize,
    /// Cached positions that are filled.
    cached: usize,
    /// Positions a query sees, itself included.
    window: Option<usize>,
}

impl Sight {
    /// The additive mask `[group · chunk, cache + chunk]`.
    fn mask(&self) -> Vec<f32> {
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
    use std::path::{Path, PathBuf};

    use super::*;

    #[test]
    fn an_error_of_texts_says_the_same_as_a_models() {
        let made: [fn() -> TextError; 5] = [
            || TextError::Checkpoint(CheckpointError::new(Path::new("m"), "x".to_owned())),
            || TextError::TooLong { what: "a prompt", have: 3, limit: 2, help: "shorten it".to_owned() },
            || TextError::File { path: PathBuf::from("t.json"), message: Diagnostic::new("y").with_help("z") },
            || TextError::Request("x".to_owned()),
            || TextError::Busy("x".to_owned()),
        ];
        for (make, fatal) in made.into_iter().zip([true, false, false, false, false]) {
            let error = LlmError::from(make());
            assert_eq!((error.to_string(), error.is_fatal()), (make().to_string(), fatal));
        }
    }

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
