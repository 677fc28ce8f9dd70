//! Qwen3, dense: Qwen2 without biases, with a norm over each head's query and key.

use super::config::{Config, ConvertError};
use super::{Transformer, family, qwen2};

pub(super) fn describe(config: &Config, length: usize) -> Result<Transformer, ConvertError> {
    let mut transformer = family::common(config, "qwen3", length)?;
    transformer.qk_norm = true;
    let bias = config.flag("attention_bias");
    (transformer.qkv_bias, transformer.output_bias) = (bias, bias);
    qwen2::windows(config, &mut transformer)?;
    Ok(transformer)
}
