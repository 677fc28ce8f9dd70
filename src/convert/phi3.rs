//! Phi-3 and Phi-4 mini: q, k and v in one tensor, gate and up in another; LongRoPE for long contexts.

use super::config::Config;
use super::{Transformer, family};
use crate::checkpoint::CheckpointError;

pub(super) fn describe(config: &Config, length: usize) -> Result<Transformer, CheckpointError> {
    let mut transformer = family::common(config, "phi3", length)?;
    transformer.fused = true;
    family::slide_all(config, &mut transformer)?;
    Ok(transformer)
}
