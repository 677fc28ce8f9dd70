//! Executors, which run a transformer: from tokens to logits, with keys and values in numbered slots.
//!
//! `cpu.rs` runs it in float32 on any machine, [`crate::cuda_executor`] with TensorRT's engines. `passes.rs` cuts prompts and
//! `host.rs` reads weights for both; `shapes.rs` says which engines there are.

mod cpu;
mod host;
mod passes;
mod shapes;

use crate::backend::{BackendError, BackendInfo};
use crate::checkpoint::CheckpointError;
use crate::convert::MASKED;
use crate::diagnostic::{Diagnose, Diagnostic};
use crate::text::TextError;

pub use cpu::{CpuExecutor, Squares};
pub(crate) use host::{Embedding, not_finite};
pub(crate) use passes::{Size, Sizes};
pub use shapes::{head_name, layer_name};

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
    /// A passing shortage: the same request may succeed a moment later.
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
    /// Whether device or weights failed, so that their content is undefined. Any other error concerns one request only.
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
            TextError::Internal(message) => Self::Internal(message),
            TextError::Busy(message) => Self::Busy(message),
        }
    }
}

/// A decode step: one token that continues a sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Slot of the sequence.
    pub slot: usize,
    /// The token.
    pub token: u32,
    /// Number of tokens before it.
    pub position: usize,
    /// Which of the next token's logits will be read.
    pub wanted: WantedLogits,
}

/// Which logits of a step will be read first, so that a device can prepare them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WantedLogits {
    /// None: the next token is known.
    None,
    /// All of them.
    All,
    /// The largest, and [`TopLogits::sum_exp_at_temperature`].
    Top {
        /// Temperature of the next token's sampling; 0 for greedy decoding.
        temperature: f32,
    },
}

/// Logits of collected steps, read on demand. Steps count from 0, in the order of the launch.
pub trait StepLogits {
    /// The largest logits of a step that wanted them; `None` if the executor has not computed them separately.
    fn top(&self, step: usize) -> Option<&TopLogits>;
    /// All logits of a step, `[vocabulary]`; the caller may change them.
    fn all(&mut self, step: usize) -> Result<&mut [f32], LlmError>;
}

/// Logits on the host: `[steps][vocabulary]`.
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

/// The error for a step that was not launched.
pub(crate) fn not_launched(step: usize) -> LlmError {
    LlmError::Internal(format!("step {step} was not launched").into())
}

/// Number of candidates that a sampler considers first; devices compute as many.
pub(crate) const TOP_LOGITS: usize = 64;

/// The largest logits of a row, and sums over the whole row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopLogits {
    /// Token numbers and logits in descending order; of equal logits the smaller token number first.
    pub tokens: Vec<(u32, f32)>,
    /// Sum over all tokens of exp(logit - largest logit).
    pub sum_exp: f64,
    /// Sum over all tokens of exp((logit - largest logit) / temperature).
    pub sum_exp_at_temperature: f64,
}

/// Rows of logits that a prefill computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// None: more of the prompt follows.
    None,
    /// The last token's.
    Last,
    /// Every token's.
    All,
}

/// Memory of an executor in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MemoryUse {
    /// Weights, on the device or as float32 on the host.
    pub weights: u64,
    /// Keys and values.
    pub cache: u64,
    /// Activations and engines.
    pub scratch: u64,
}

/// Runs a transformer. The caller keeps track of positions; an executor only checks its limits.
pub trait Executor: Send {
    /// Name and device.
    fn info(&self) -> BackendInfo;
    /// Optimisations that are unavailable and what that costs; logged once after loading.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
    /// Number of slots.
    fn slots(&self) -> usize;
    /// Longest sequence of a slot in positions.
    fn max_len(&self) -> usize;
    /// Size of the vocabulary, the length of a row of logits.
    fn vocab_size(&self) -> usize;
    /// Most steps of a launch; more than [`Executor::slots`] where several may be of one slot.
    fn rows(&self) -> usize {
        self.slots()
    }
    /// Number of the `remaining` prompt tokens to pass to the next [`Executor::prefill`], after `position` tokens in
    /// the cache: those of one pass, or of a few short ones.
    fn pass(&self, position: usize, remaining: usize) -> usize;
    /// Appends `tokens` to the `position` tokens in `slot`. Returns logits `[0, 1 or tokens, vocabulary]`.
    fn prefill(&mut self, slot: usize, position: usize, tokens: &[u32], rows: Rows) -> Result<Vec<f32>, LlmError>;
    /// Starts a decode step of several sequences in different slots. Where [`Executor::rows`] allows it, several steps
    /// may be of one slot, at consecutive positions and in their order: each sees those before it. Nothing else may be
    /// started before [`Executor::collect`]; a device computes meanwhile.
    fn launch(&mut self, steps: &[Step]) -> Result<(), LlmError>;
    /// Waits for the launched steps; returns their logits.
    fn collect(&mut self) -> Result<Box<dyn StepLogits + '_>, LlmError>;
    /// Launches and collects decode steps; returns all logits, `[steps, vocabulary]`.
    fn decode(&mut self, steps: &[Step]) -> Result<Vec<f32>, LlmError> {
        self.launch(steps)?;
        let mut logits = self.collect()?;
        let mut all = Vec::new();
        for step in 0..steps.len() {
            all.extend_from_slice(logits.all(step)?);
        }
        Ok(all)
    }
    /// Copies the first `positions` positions of slot `from` to slot `to`.
    fn copy(&mut self, from: usize, to: usize, positions: usize) -> Result<(), LlmError>;
    /// Marks a slot's sequence as ended, so that its memory may be freed.
    fn release(&mut self, slot: usize);
    /// Ends a sequence whose keys and values may contain NaN, which must not remain where later sequences only mask
    /// them.
    fn forget(&mut self, slot: usize) -> Result<(), LlmError> {
        self.release(slot);
        Ok(())
    }
    /// Memory in bytes.
    fn memory(&self) -> MemoryUse;
    /// Measured memory bandwidth in bytes per second, which bounds decoding.
    fn bandwidth(&mut self) -> Result<f64, LlmError>;
    /// Bytes of weights that a decode step reads, for any batch.
    fn bytes_per_step(&self) -> u64;
}

/// Checks slot, position and tokens against the executor's limits. Requests were checked before
/// ([`crate::generation::Request::check`]): what fails here is nobody else's fault.
pub(crate) fn check(executor: &dyn Executor, slot: usize, position: usize, tokens: &[u32]) -> Result<(), LlmError> {
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

/// The causal attention mask of a chunk.
#[derive(Debug, Clone, Copy)]
struct Sight {
    /// Number of query heads that share a key head; see `convert::layer_graph`.
    group: usize,
    /// Number of new positions.
    chunk: usize,
    /// Number of columns for cached positions.
    cache: usize,
    /// Number of cached positions in use.
    cached: usize,
    /// Length of the sliding window in positions, the query's own included; `None` for no window.
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
        let made: [fn() -> TextError; 6] = [
            || TextError::Checkpoint(CheckpointError::new(Path::new("m"), "x".to_owned())),
            || TextError::TooLong { what: "a prompt", have: 3, limit: 2, help: "shorten it".to_owned() },
            || TextError::File { path: PathBuf::from("t.json"), message: Diagnostic::new("y").with_help("z") },
            || TextError::Request("x".to_owned()),
            || TextError::Internal(Diagnostic::new("y").with_help("z")),
            || TextError::Busy("x".to_owned()),
        ];
        for (make, fatal) in made.into_iter().zip([true, false, false, false, false, false]) {
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
