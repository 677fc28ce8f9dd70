//! The interface of executors, which run a transformer: from tokens to logits, with keys and values in numbered slots.

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

/// A decode step: one token that continues a sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Slot of the sequence.
    pub slot: usize,
    /// The token.
    pub token: u32,
    /// Number of tokens before it.
    pub position: usize,
    /// Temperature of the next token's sampling, so that a device can compute [`TopLogits::sum_exp_at_temperature`]; 0
    /// for greedy decoding.
    pub temperature: f32,
}

/// The logits of a next token.
#[derive(Debug, Clone, PartialEq)]
pub enum Logits {
    /// All logits, `[vocabulary]`.
    All(Vec<f32>),
    /// The largest logits; [`Executor::logits`] returns all.
    Top(TopLogits),
}

/// Number of candidates that a sampler considers first; devices compute as many.
pub(super) const TOP_LOGITS: usize = 64;

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
    /// Number of the `remaining` prompt tokens to pass to the next [`Executor::prefill`], after `position` tokens in
    /// the cache: those of one pass, or of a few short ones.
    fn pass(&self, position: usize, remaining: usize) -> usize;
    /// Appends `tokens` to the `position` tokens in `slot`. Returns logits `[0, 1 or tokens, vocabulary]`.
    fn prefill(&mut self, slot: usize, position: usize, tokens: &[u32], rows: Rows) -> Result<Vec<f32>, LlmError>;
    /// Starts a decode step of several sequences in different slots. Nothing else may be started before
    /// [`Executor::collect`]; a device computes meanwhile.
    fn launch(&mut self, steps: &[Step]) -> Result<(), LlmError>;
    /// Waits for the launched steps; returns the logits of each.
    fn collect(&mut self) -> Result<Vec<Logits>, LlmError>;
    /// All logits of a step that was collected as [`Logits::Top`], until something else is started. Not supported by
    /// executors that always return [`Logits::All`].
    fn logits(&mut self, step: usize) -> Result<Vec<f32>, LlmError> {
        Err(LlmError::Internal(format!("the logits of step {step} were handed out").into()))
    }
    /// Launches and collects decode steps; returns all logits, `[steps, vocabulary]`.
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
/// ([`super::request::Request::check`]): what fails here is nobody else's fault.
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

/// The causal attention mask of a chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    /// Number of query heads that share a key head; see `convert::layer_graph`.
    pub(super) group: usize,
    /// Number of new positions.
    pub(super) chunk: usize,
    /// Number of columns for cached positions.
    pub(super) cache: usize,
    /// Number of cached positions in use.
    pub(super) cached: usize,
    /// Length of the sliding window in positions, the query's own included; `None` for no window.
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
