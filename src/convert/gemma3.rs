//! Gemma 3, its text part: five sliding layers to one full, each kind with its own rotary base, norms over queries and
//! keys (Gemma Team 2025). A multimodal checkpoint's vision tower is left where it is.

use serde_json::{Map, Value, json};

use super::config::Config;
use super::{Transformer, family, gemma2};
use crate::checkpoint::CheckpointError;

/// Published configurations leave out what equals `transformers`' defaults.
fn with_defaults(fields: &Map<String, Value>) -> Value {
    let mut merged = json!({
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "rms_norm_eps": 1e-6,
        "vocab_size": 262_208, "max_position_embeddings": 131_072, "sliding_window": 4096,
    });
    if let Some(merged) = merged.as_object_mut() {
        merged.extend(fields.clone());
    }
    merged
}

pub(super) fn describe(outer: &Config, length: usize) -> Result<Transformer, CheckpointError> {
    let fields = outer.within("text_config").unwrap_or(*outer).fields();
    let merged = with_defaults(&fields);
    let config = outer.with(&merged);
    let mut transformer = family::common(&config, "gemma3", length)?;
    gemma2::gemma(&config, &mut transformer)?;
    transformer.qk_norm = true;
    let cap = |field: &str| config.optional_positive(field).map(|cap| cap.map(|cap| cap as f32));
    transformer.attention_softcap = cap("attn_logit_softcapping")?;
    transformer.logit_softcap = cap("final_logit_softcapping")?;
    let pattern = config.optional_size("sliding_window_pattern")?.unwrap_or(6);
    family::windows(&config, &mut transformer, |layer| (layer + 1) % pattern != 0)?;
    // Full layers first: scaled, base 1e6. Sliding ones: unscaled, base 1e4.
    let parameters = config.within("rope_parameters");
    let kind = |kind: &str| parameters.and_then(|parameters| parameters.within(kind));
    let full = match kind("full_attention") {
        Some(full) => family::rotary_of(&config, Some(full), &transformer, length, 1e6)?,
        None => family::rotary_of(&config, config.within("rope_scaling"), &transformer, length, 1e6)?,
    };
    let local = config.optional_positive("rope_local_base_freq")?.unwrap_or(1e4);
    let sliding = json!({ "rope_theta": local });
    let sliding = kind("sliding_attention").unwrap_or(config.with(&sliding));
    let sliding = family::rotary_of(&config, Some(sliding), &transformer, length, local)?;
    transformer.ropes = vec![full, sliding];
    for layer in &mut transformer.layers {
        layer.rope = usize::from(layer.window.is_some());
    }
    Ok(transformer)
}
