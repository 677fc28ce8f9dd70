//! Qwen3 (dense): Qwen2 without biases, with a norm over each head's query and key.

use super::config::Config;
use super::{Transformer, family, qwen2};
use crate::checkpoint::CheckpointError;

pub(super) fn describe(config: &Config, length: usize) -> Result<Transformer, CheckpointError> {
    let mut transformer = family::common(config, "qwen3", length)?;
    transformer.qk_norm = true;
    let bias = config.flag("attention_bias");
    (transformer.qkv_bias, transformer.output_bias) = (bias, bias);
    qwen2::windows(config, &mut transformer)?;
    Ok(transformer)
}
