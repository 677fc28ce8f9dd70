//! Gemma 3's text model (Gemma Team 2025): five sliding layers per full one, each kind with its own rotary base, norms
//! over queries and keys. The vision tower of a multimodal checkpoint is not converted.

use serde_json::{Map, Value, json};

use super::config::Config;
use super::{Transformer, family, gemma2, keys};
use crate::checkpoint::CheckpointError;

pub(super) fn describe(config: &Config, length: usize) -> Result<Transformer, CheckpointError> {
    let mut transformer = family::common(config, "gemma3", length)?;
    gemma2::gemma(config, &mut transformer)?;
    transformer.qk_norm = true;
    // transformers and llama.cpp keep a cap of the scores and never apply it to Gemma 3.
    config.pass("attn_logit_softcapping");
    transformer.logit_softcap = config.optional_positive("final_logit_softcapping")?.map(|cap| cap as f32);
    let pattern = config.optional_size("sliding_window_pattern")?.unwrap_or(6);
    let window = family::window(config)?;
    family::slide(config, &mut transformer, window, |layer| (layer + 1) % pattern != 0)?;
    // Full layers first: scaled, base 1e6. Sliding ones: unscaled, base 1e4.
    let full = parameters(config, "full_attention", ("rope_theta", 1e6), config.within("rope_scaling"))?;
    let sliding = parameters(config, "sliding_attention", ("rope_local_base_freq", 1e4), None)?;
    let rotary = |fields: &Value| family::rotary_of(config, Some(config.with(fields)), &transformer, length);
    transformer.ropes = vec![rotary(&full)?, rotary(&sliding)?];
    if let Some(parameters) = config.within("rope_parameters") {
        keys::rotary(&parameters)?;
    }
    for layer in &mut transformer.layers {
        layer.rope = usize::from(layer.window.is_some());
    }
    Ok(transformer)
}

/// The rotary parameters of one kind of layer: its own, overridden by `more`, and the base beside them
/// (`configuration_gemma3.py`, `convert_rope_params_to_dict`).
fn parameters(
    config: &Config,
    kind: &str,
    (base, default): (&str, f64),
    more: Option<Config>,
) -> Result<Value, CheckpointError> {
    let mut fields = Map::new();
    fields.insert("rope_theta".to_owned(), json!(config.optional_positive(base)?.unwrap_or(default)));
    let own = config.within("rope_parameters").and_then(|parameters| parameters.within(kind));
    for from in own.into_iter().chain(more) {
        fields.extend(from.fields());
    }
    Ok(Value::Object(fields))
}
