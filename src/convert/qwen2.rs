//! Qwen2 and Qwen2.5: Llama with biases on q, k and v; some sizes have sliding windows in their upper layers.

use super::config::Config;
use super::{Transformer, family};
use crate::checkpoint::CheckpointError;

pub(super) fn describe(config: &Config, length: usize) -> Result<Transformer, CheckpointError> {
    let mut transformer = family::common(config, "qwen2", length)?;
    transformer.qkv_bias = true;
    // Some files say that it has them.
    config.pass("attention_bias");
    windows(config, &mut transformer)?;
    Ok(transformer)
}

/// Sets the sliding window of layers from `max_window_layers` on, if `use_sliding_window` is true; most files have an
/// unused window.
pub(super) fn windows(config: &Config, transformer: &mut Transformer) -> Result<(), CheckpointError> {
    let used = config.flag("use_sliding_window");
    let first = config.get("max_window_layers").and_then(serde_json::Value::as_u64).unwrap_or(28);
    let window = if used { family::window(config)? } else { None };
    config.pass("sliding_window");
    family::slide(config, transformer, window, |layer| layer as u64 >= first)
}
