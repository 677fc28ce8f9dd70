//! Fields that nearly all families share, with `transformers`' names and defaults.

use serde_json::Value;

use super::config::Config;
use super::rope::{Base, Rope, kind_of, original_length, rope};
use super::{Activation, LayerKind, Transformer, keys};
use crate::checkpoint::{CheckpointError, ROTARY_DIM};

/// Most heads of a model. With more, tables per head would take gigabytes before a missing tensor is noticed.
const HEADS_LIMIT: usize = 1 << 12;
/// Largest head size in elements.
const HEAD_DIM_LIMIT: usize = 1 << 13;
/// Most layers of a model.
const LAYERS_LIMIT: usize = 1 << 12;

/// Reads the fields that most families share; each family then changes what differs.
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
        tied: config.flag("tie_word_embeddings"),
        max_position,
        prefix: "model.".to_owned(),
        output: "lm_head.weight".to_owned(),
        notes: Vec::new(),
    };
    // Gemma 3 has two kinds and its own places for them.
    if family != "gemma3" {
        let scaling = rotary_fields(config)?;
        transformer.ropes = vec![rotary_of(config, scaling, &transformer, length)?];
        transformer.max_position = stretched(config, scaling.as_ref(), max_position)?;
    }
    Ok(transformer)
}

/// The longest sequence of a model whose positions are scaled: the original length times the factor, since Qwen's model
/// cards say to add YaRN and keep `max_position_embeddings`. Dynamic scaling begins at the model's own length.
fn stretched(config: &Config, scaling: Option<&Config>, max_position: usize) -> Result<usize, CheckpointError> {
    let Some(scaling) = scaling else { return Ok(max_position) };
    let original = match kind_of(scaling) {
        "dynamic" => max_position,
        "yarn" => original_length(config, scaling)?.unwrap_or(max_position),
        _ => return Ok(max_position),
    };
    let Some(factor) = scaling.optional_positive("factor")? else { return Ok(max_position) };
    // A factor no model has stretches it no further than a size goes.
    let reached = (original as f64 * factor).clamp(1.0, f64::from(1 << 28)) as usize;
    Ok(if kind_of(scaling) == "dynamic" { reached } else { reached.max(max_position) })
}

/// The object with the rotary embedding's parameters. transformers 5 writes `rope_parameters` with the base inside,
/// earlier versions `rope_scaling` beside `rope_theta`; if both are present, `rope_scaling` replaces the other unless
/// it is empty (`convert_rope_params_to_dict`).
pub(super) fn rotary_fields<'a>(config: &Config<'a>) -> Result<Option<Config<'a>>, CheckpointError> {
    for field in ["rope_scaling", "rope_parameters"] {
        if let Some(value) = config.get(field).filter(|value| !value.is_object() && !value.is_null()) {
            return Err(config
                .error(format!("`{field}` is {value}, and should hold fields: `rope_type`, `factor`, …"))
                .with_help("write it as the model's card says"));
        }
    }
    let says = |field: &str| config.within(field).filter(|fields| !fields.fields().is_empty());
    let (Some(scaling), Some(parameters)) = (says("rope_scaling"), says("rope_parameters")) else {
        return Ok(says("rope_scaling").or(says("rope_parameters")));
    };
    for (field, value) in parameters.unread() {
        let kept = scaling.get(field).is_some() || config.get(field).is_some();
        let is_default = field == "rope_theta" && value.as_f64() == Some(10_000.0);
        if !(kept || is_default || value.is_null() || matches!(field, "rope_type" | "type")) {
            return Err(config
                .error(format!(
                    "`rope_scaling` replaces `rope_parameters`, so that `{field}: {value}` of the second \
                     would be lost"
                ))
                .with_help("write all of it into one of them"));
        }
    }
    Ok(Some(scaling))
}

/// Rotary frequencies from one object of parameters.
pub(super) fn rotary_of(
    config: &Config,
    scaling: Option<Config>,
    transformer: &Transformer,
    length: usize,
) -> Result<Rope, CheckpointError> {
    let number = |field: &str| -> Result<Option<f64>, CheckpointError> {
        let within = scaling.map(|scaling| scaling.optional_number(field)).transpose()?.flatten();
        Ok(within.or(config.optional_number(field)?))
    };
    let theta: f64 = number("rope_theta")?.unwrap_or(10_000.0);
    let fraction = number("partial_rotary_factor")?.unwrap_or(1.0);
    if transformer.family != "phi3" && fraction != 1.0 {
        // transformers reads it in Phi-3 alone, other programs in others too.
        return Err(config
            .error(format!(
                "`partial_rotary_factor: {fraction}` is not supported for `{}`: transformers ignores it \
                 there, and other programs do not",
                transformer.family
            ))
            .with_help("take a release of the model without it"));
    }
    let dimension =
        config.optional_size(ROTARY_DIM)?.unwrap_or((transformer.head_dim as f64 * fraction.clamp(0.0, 1.0)) as usize);
    if theta <= 1.0 || dimension < 2 || !dimension.is_multiple_of(2) || dimension > transformer.head_dim {
        return Err(config.error(format!("rope_theta {theta} with {dimension} rotary dimensions makes no sense")));
    }
    let rope = rope(config, scaling, &Base { theta, dimension, max_position: transformer.max_position, length })?;
    scaling.as_ref().map_or(Ok(()), keys::rotary)?;
    Ok(rope)
}

/// Length of the sliding window in positions, if there is one.
pub(super) fn window(config: &Config) -> Result<Option<usize>, CheckpointError> {
    // llama.cpp's converter writes 0 for none.
    let none = config.get("sliding_window").and_then(Value::as_u64) == Some(0);
    if none { Ok(None) } else { config.optional_size("sliding_window") }
}

/// Gives every layer the sliding window, if there is one: in these families `transformers` ignores `layer_types`.
pub(super) fn slide_all(config: &Config, transformer: &mut Transformer) -> Result<(), CheckpointError> {
    let window = window(config)?;
    slide(config, transformer, window, |_| true)?;
    if window.is_some() && transformer.layers.iter().any(|layer| layer.window.is_none()) {
        return Err(config
            .error("`layer_types` has layers that do not slide; with `sliding_window`, all of this family do")
            .with_help("leave one of them out of the configuration, as the model was trained"));
    }
    Ok(())
}

/// Gives windows to the layers that `layer_types` names, or without it to those for whose number `pattern` is true.
pub(super) fn slide(
    config: &Config,
    transformer: &mut Transformer,
    window: Option<usize>,
    pattern: impl Fn(usize) -> bool,
) -> Result<(), CheckpointError> {
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
