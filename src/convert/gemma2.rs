//! Gemma 2 (Gemma Team 2024): soft-capped scores and logits, sliding window in every second layer, norms on both sides
//! of each block, norm weights with an offset of 1, embeddings scaled by sqrt(hidden).

use super::config::Config;
use super::{Activation, Transformer, family};
use crate::checkpoint::{CheckpointError, NORM_OFFSET};

pub(super) fn describe(config: &Config, length: usize) -> Result<Transformer, CheckpointError> {
    let mut transformer = family::common(config, "gemma2", length)?;
    gemma(config, &mut transformer)?;
    let cap = |field: &str, default: f64| -> Result<Option<f32>, CheckpointError> {
        // Null is no cap.
        let default = (!config.is_null(field)).then_some(default);
        Ok(config.optional_positive(field)?.or(default).map(|cap| cap as f32))
    };
    transformer.attention_softcap = cap("attn_logit_softcapping", 50.0)?;
    transformer.logit_softcap = cap("final_logit_softcapping", 30.0)?;
    let window = family::window(config)?;
    family::slide(config, &mut transformer, window, |layer| layer % 2 == 0)?;
    Ok(transformer)
}

/// The settings that Gemma 2 and 3 share.
pub(super) fn gemma(config: &Config, transformer: &mut Transformer) -> Result<(), CheckpointError> {
    config.only("hidden_activation", &["gelu_pytorch_tanh"])?;
    // The name before; published files have both, and `transformers` reads the other.
    config.pass("hidden_act");
    transformer.activation = Activation::Gelu;
    transformer.norm_offset = config.optional_number(NORM_OFFSET)?.unwrap_or(1.0) as f32;
    let scalar = config.optional_positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    transformer.attention_scale = (1.0 / scalar.sqrt()) as f32;
    transformer.embedding_scale = (transformer.hidden_size as f32).sqrt();
    transformer.post_norms = true;
    transformer.tied = config.get("tie_word_embeddings").and_then(serde_json::Value::as_bool).unwrap_or(true);
    let bias = config.flag("attention_bias");
    (transformer.qkv_bias, transformer.output_bias) = (bias, bias);
    Ok(())
}
