//! Executors, which run a transformer: from tokens to logits, with keys and values in numbered slots.
//!
//! `cpu.rs` runs it in float32 on any machine, [`crate::cuda_executor`] with TensorRT's engines. `passes.rs` cuts prompts,
//! `launch.rs` checks what is asked and `host.rs` reads weights for both; `shapes.rs` says which engines there are.

mod cpu;
mod host;
mod launch;
mod passes;
mod shapes;
mod sight;

use crate::backend::{BackendError, BackendInfo};
use crate::checkpoint::CheckpointError;
use crate::diagnostic::{Diagnose, Diagnostic};
use crate::spec::KvLayout;
use crate::text::TextError;

pub use cpu::{CpuExecutor, Squares};
pub(crate) use host::{Embedding, not_finite};
pub(crate) use launch::{Exchange, Span, check, check_exchange, check_launch, spans};
pub(crate) use passes::{Size, Sizes};
pub use shapes::{head_name, layer_name};

/// Why a model could not be loaded or run.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", self.diagnostic())]
#[allow(missing_docs)]
pub enum LlmError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Of weights or texts: a [`TextError::Checkpoint`] becomes this.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A fault of a request, of a text file or of this program, or a passing shortage.
    #[error(transparent)]
    Text(TextError),
    NotFinite,
}

impl Diagnose for LlmError {
    fn diagnostic(&self) -> Diagnostic {
        match self {
            Self::Backend(error) => error.diagnostic(),
            Self::Checkpoint(error) => error.diagnostic(),
            Self::Text(error) => error.diagnostic(),
            Self::NotFinite => {
                Diagnostic::new("the model's logits for this prompt are not finite: its activations overflow")
                    .with_help("build the engine with `precision: bf16` or `fp32`")
            }
        }
    }
}

impl LlmError {
    /// The fault of what was asked.
    pub(crate) fn request(message: impl Into<String>) -> Self {
        Self::Text(TextError::Request(message.into()))
    }

    /// The fault of this program or of the model's files.
    pub(crate) fn internal(message: impl Into<Diagnostic>) -> Self {
        Self::Text(TextError::Internal(message.into()))
    }

    /// Whether device or weights failed, so that their content is undefined. Any other error concerns one request only.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Backend(_) | Self::Checkpoint(_))
    }
}

impl From<TextError> for LlmError {
    fn from(error: TextError) -> Self {
        match error {
            TextError::Checkpoint(error) => Self::Checkpoint(error),
            error => Self::Text(error),
        }
    }
}

/// A row of a launch: one token that continues a sequence.
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
    /// None: the token that follows is known, as within a prompt.
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
    /// All logits of a step that wanted any, `[vocabulary]`; the caller may change them.
    fn all(&mut self, step: usize) -> Result<&mut [f32], LlmError>;
}

/// Logits on the host: `[steps][vocabulary]`, empty for a step that wanted none.
#[derive(Debug, Clone, PartialEq)]
pub struct HostLogits(pub Vec<Vec<f32>>);

impl StepLogits for HostLogits {
    fn top(&self, _: usize) -> Option<&TopLogits> {
        None
    }

    fn all(&mut self, step: usize) -> Result<&mut [f32], LlmError> {
        let row = self.0.get_mut(step).filter(|row| !row.is_empty());
        row.map(Vec::as_mut_slice).ok_or_else(|| not_launched(step))
    }
}

/// The error for a step that was not launched, or whose logits nobody wanted then.
pub(crate) fn not_launched(step: usize) -> LlmError {
    LlmError::internal(format!("step {step} was launched for no logits"))
}

/// The error for keys and values that cannot be copied to or from the host.
pub(crate) fn not_exchanged(slot: usize, layer: usize, positions: usize) -> LlmError {
    let what = format!("{positions} positions of layer {layer} of slot {slot} cannot be exported or imported");
    TextError::Internal(what.into()).into()
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
    /// Number of the `remaining` prompt tokens to pass to the next [`Executor::prefill`], after `position` tokens in
    /// the cache: those of one pass, or of a few short ones.
    fn pass(&self, position: usize, remaining: usize) -> usize;
    /// Appends `tokens` to the `position` tokens in `slot`. Returns logits `[0, 1 or tokens, vocabulary]`.
    fn prefill(&mut self, slot: usize, position: usize, tokens: &[u32], rows: Rows) -> Result<Vec<f32>, LlmError>;
    /// Most steps of a [`Executor::launch`]; more than [`Executor::slots`] where several may be of one slot.
    fn rows(&self) -> usize {
        self.slots()
    }
    /// Time of a launch of so many rows, in a unit of the executor's own. Rows beside others are cheap where weights are
    /// read once for all; by default they are computed one after another.
    fn launch_cost(&self, rows: usize) -> f64 {
        rows as f64
    }
    /// Time to read `tokens` tokens after `position` by [`Executor::prefill`], in the unit of [`Executor::launch_cost`]. By
    /// default nothing, so that a prompt is never read as rows of a launch.
    fn prefill_cost(&self, _position: usize, _tokens: usize) -> f64 {
        0.0
    }
    /// Starts at most [`Executor::rows`] steps. Steps of one slot follow each other in the list and in position; each sees
    /// those before it. Positions may go back: what a slot holds from there on is forgotten. Nothing else may be started
    /// before [`Executor::collect`]; a device computes meanwhile.
    fn launch(&mut self, steps: &[Step]) -> Result<(), LlmError>;
    /// Waits for the launched steps; returns their logits.
    fn collect(&mut self) -> Result<Box<dyn StepLogits + '_>, LlmError>;
    /// Launches and collects steps; returns all logits of those that want any, `[steps, vocabulary]`.
    fn decode(&mut self, steps: &[Step]) -> Result<Vec<f32>, LlmError> {
        self.launch(steps)?;
        let mut logits = self.collect()?;
        let mut all = Vec::new();
        for (index, _) in steps.iter().enumerate().filter(|(_, step)| step.wanted != WantedLogits::None) {
            all.extend_from_slice(logits.all(index)?);
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
    /// How [`Executor::export`] writes keys and values; `None` if it does not.
    fn kv_layout(&self) -> Option<KvLayout> {
        None
    }
    /// Copies the keys and values of the first `positions` positions of a slot in a layer to the host. Nothing may be
    /// launched.
    fn export(&mut self, slot: usize, layer: usize, positions: usize) -> Result<Vec<u8>, LlmError> {
        Err(not_exchanged(slot, layer, positions))
    }
    /// Puts keys and values that were exported in place of a slot's first `positions` positions. The slot holds them when
    /// all layers have been imported. Nothing may be launched.
    fn import(&mut self, slot: usize, layer: usize, positions: usize, _bytes: &[u8]) -> Result<(), LlmError> {
        Err(not_exchanged(slot, layer, positions))
    }
    /// Memory in bytes.
    fn memory(&self) -> MemoryUse;
    /// Measured memory bandwidth in bytes per second, which bounds decoding.
    fn bandwidth(&mut self) -> Result<f64, LlmError>;
    /// Bytes of weights that a decode step reads, for any batch.
    fn bytes_per_step(&self) -> u64;
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_checkpoint_that_cannot_be_read_is_fatal_whoever_read_it() {
        let checkpoint = || CheckpointError::new(Path::new("m"), "x".to_owned());
        let cases = [
            (LlmError::from(checkpoint()), true),
            (TextError::Checkpoint(checkpoint()).into(), true),
            (BackendError::Run("x".into()).into(), true),
            (TextError::Busy("x".to_owned()).into(), false),
            (LlmError::request("x"), false),
            (LlmError::internal("x"), false),
            (LlmError::NotFinite, false),
        ];
        for (error, fatal) in cases {
            assert_eq!(error.is_fatal(), fatal, "{error:?}");
        }
    }

    #[test]
    fn an_error_of_texts_keeps_its_words_and_its_hint() {
        let internal = Diagnostic::new("y").with_help("z");
        let error = LlmError::internal(internal.clone());
        assert_eq!((error.diagnostic(), error.to_string()), (internal.clone(), internal.to_string()));
    }
}
