//! What the families share: the fields nearly all configurations have, under `transformers`' names and defaults.

use serde_json::Value;

use super::config::Config;
use super::rope::{Base, Rope, rope};
use super::{Activation, LayerKind, Transformer};
use crate::checkpoint::CheckpointError;

/// Larger than any model has them; beyond, tables that are made for each would take gigabytes before a tensor is missed.
const HEADS_LIMIT: usize = 1 << 12;
const HEAD_DIM_LIMIT: usize = 1 << 13;
const LAYERS_LIMIT: usize = 1 << 12;

/// Reads what most families have in common; a family then changes what it does differently.
pub(super) fn common(config: &Config, family: &'static str, length: usize) -> Result<Transformer, CheckpointError> {
    let (hidden_size, heads) = (config.size("hidden_size")?, config.size_to("num_attention_heads", HEADS_LIMIT)?);
    let head_dim = match config.optional_size_to("head_dim", HEAD_DIM_LIMIT)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(config.error("hidden_size does not divide into num_attention_heads, and head_dim is missing"));
        }
    };
    if head_dim > HEAD_DIM_LIMIT {
        return Err(config.error(format!("heads of {head_dim} dimensions; there may be {HEAD_DIM_LIMIT}")));
    }
    let layers = config.size_to("num_hidden_layers", LAYERS_LIMIT)?;
    let max_position = config.optional_size("max_position_embeddings")?.unwrap_or(2048);
    if !family.starts_with("gemma") {
        config.only("hidden_act", &["silu"])?;
    }
    let mut transformer = Transformer {
        family,
        vocab_size: config.size("vocab_size")?,
        hidden_size,
        intermediate_size: config.size("intermediate_size")?,
        heads,
        kv_heads: config.optional_size_to("num_key_value_heads", HEADS_LIMIT)?.unwrap_or(heads),
        head_dim,
        layers: vec![LayerKind { window: None, rope: 0 }; layers],
        ropes: Vec::new(),
        norm_eps: config.optional_not_negative("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        norm_offset: 0.0,
        activation: Activation::Silu,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_softcap: None,
        logit_softcap: None,
        embedding_scale: 1.0,
        qk_norm: false,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        post_norms: false,
        fused: false,
        kv_type: None,
        tied: config.flag("tie_word_embeddings"),
        max_position,
        prefix: "model.".to_owned(),
        output: "lm_head.weight".to_owned(),
    };
    transformer.ropes = vec![rotary(config, &transformer, length)?];
    if let Some(scaling) = config.within("rope_parameters").or(config.within("rope_scaling"))
        && scaling.text("rope_type").or(scaling.text("type")) == Some("dynamic")
    {
        // Dynamic scaling is for sequences beyond what the model was trained for.
        // A factor no model has stretches it no further than a size goes.
        let stretched = max_position as f64 * scaling.positive("factor")?;
        transformer.max_position = stretched.clamp(1.0, f64::from(1 << 28)) as usize;
    }
    Ok(transformer)
}

/// The one kind of rotary embedding of most families.
pub(super) fn rotary(config: &Config, transformer: &Transformer, length: usize) -> Result<Rope, CheckpointError> {
    // transformers 5 writes `rope_parameters` with the base inside, earlier ones `rope_scaling` beside `rope_theta`.
    let scaling = config.within("rope_parameters").or(config.within("rope_scaling"));
    rotary_of(config, scaling, transformer, length, 10_000.0)
}

/// As [`rotary`], from given parameters and with the family's own default base.
pub(super) fn rotary_of(
    config: &Config,
    scaling: Option<Config>,
    transformer: &Transformer,
    length: usize,
    theta: f64,
) -> Result<Rope, CheckpointError> {
    let number = |field: &str| match scaling.map(|s| s.optional_number(field)).transpose()?.flatten() {
        Some(value) => Ok(Some(value)),
        None => config.optional_number(field),
    };
    let theta: f64 = number("rope_theta")?.unwrap_or(theta);
    let fraction = number("partial_rotary_factor")?.unwrap_or(1.0);
    let dimension = config
        .optional_size("rotary_dim")?
        .unwrap_or((transformer.head_dim as f64 * fraction.clamp(0.0, 1.0)) as usize);
    if theta <= 1.0 || dimension < 2 || !dimension.is_multiple_of(2) || dimension > transformer.head_dim {
        return Err(config.error(format!("rope_theta {theta} with {dimension} rotary dimensions makes no sense")));
    }
    rope(config, scaling, &Base { theta, dimension, max_position: transformer.max_position, length })
}

/// Windows per layer from `layer_types`, or from `pattern` (a layer's number to "slides") where there are none.
pub(super) fn windows(
    config: &Config,
    transformer: &mut Transformer,
    pattern: impl Fn(usize) -> bool,
) -> Result<(), CheckpointError> {
    // llama.cpp's converter writes 0 for none.
    let none = config.get("sliding_window").and_then(Value::as_u64) == Some(0);
    let window = if none { None } else { config.optional_size("sliding_window")? };
    let types = config.get("layer_types").and_then(Value::as_array);
    if types.is_some_and(|types| types.len() != transformer.layers.len()) {
        return Err(config.error("layer_types does not have an entry for every layer"));
    }
    for (index, layer) in transformer.layers.iter_mut().enumerate() {
        let slides = match types.map(|types| types[index].as_str().unwrap_or_default()) {
            Some("sliding_attention") => true,
            Some("full_attention") => false,
            Some(other) => return Err(config.error(format!("layer type `{other}` is not supported"))),
            None => pattern(index),
        };
        layer.window = window.filter(|_| slides);
    }
    Ok(())
}
