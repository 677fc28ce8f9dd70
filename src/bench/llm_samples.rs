//! What measurements of language models have in common: prompts, and the latency of samples.

use super::Latency;
use crate::backend::BackendError;
use crate::executor::LlmError;

/// `count` different tokens, as a text has.
pub(super) fn tokens(count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count).map(|at| u32::try_from((at * 7919 + 13) % vocabulary).unwrap_or(0)).collect()
}

/// Percentiles of samples in milliseconds.
pub(super) fn latency(samples: &[f64]) -> Result<Latency, LlmError> {
    let nothing = || LlmError::Backend(BackendError::Run("the backend took no samples".into()));
    Latency::of(samples).ok_or_else(nothing)
}
