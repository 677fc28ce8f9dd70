//! Llama 2 and 3, and models with the same architecture: SmolLM2, TinyLlama, Vicuna, Yi, DeepSeek's distillations.

use serde_json::Value;

use super::config::Config;
use super::{Transformer, family};
use crate::checkpoint::CheckpointError;

pub(super) fn describe(config: &Config, length: usize) -> Result<Transformer, CheckpointError> {
    let mut transformer = family::common(config, "llama", length)?;
    let bias = config.flag("attention_bias");
    // A GGUF's: Qwen's weights in Llama's form may have none here.
    let output = config.get("attention_output_bias").and_then(Value::as_bool).unwrap_or(bias);
    (transformer.qkv_bias, transformer.output_bias) = (bias, output);
    transformer.mlp_bias = config.flag("mlp_bias");
    Ok(transformer)
}
