//! Llama 2 and 3 and what kept their form: SmolLM2, TinyLlama, Vicuna, Yi, DeepSeek's distillations.

use super::config::{Config, ConvertError};
use super::{Transformer, family};

pub(super) fn describe(config: &Config, length: usize) -> Result<Transformer, ConvertError> {
    let mut transformer = family::common(config, "llama", length)?;
    let bias = config.flag("attention_bias");
    (transformer.qkv_bias, transformer.output_bias) = (bias, bias);
    transformer.mlp_bias = config.flag("mlp_bias");
    Ok(transformer)
}
