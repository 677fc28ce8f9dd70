//! Converts a checkpoint's configuration to a [`Transformer`], and that to ONNX graphs.
//!
//! One file per family interprets its config.json; `layer.rs` emits the graphs of a decoder layer and of the head,
//! `whole.rs` the full model for inspection. How to add a family: CONTRIBUTING.md.

mod config;
mod family;
mod gemma2;
mod gemma3;
mod keys;
mod layer;
mod llama;
mod mistral;
mod own_code;
mod phi3;
mod qwen2;
mod qwen3;
mod rope;
mod unread;
pub mod vision;
mod weights;
mod whole;

use std::path::Path;

use serde_json::{Value, json};

use crate::checkpoint::{CheckpointError, Packings};
use crate::spec::KvCache;

pub use config::Config;
use config::Reads;
use layer::OPSET;

pub use layer::{LayerShape, LayerTypes, MASKED, head_graph, layer_graph, observed_layer_graph};
pub use rope::Rope;
pub use weights::{Part, Role, Weight};
pub use whole::{FullGraph, export_full_graph};

/// Activation of the gated unit (MLP).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Activation {
    Silu,
    /// The tanh approximation.
    Gelu,
}

/// Properties that differ between layers, which otherwise run the same graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerKind {
    /// Number of positions that a query sees, itself included; `None` for all.
    pub window: Option<usize>,
    /// Index into [`Transformer::ropes`].
    pub rope: usize,
}

/// Architecture of a decoder-only transformer: everything but the weights.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Transformer {
    pub family: &'static str,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// One entry per layer.
    pub layers: Vec<LayerKind>,
    pub ropes: Vec<Rope>,
    pub norm_eps: f32,
    /// Added to every norm's weight; 1 for Gemma.
    pub norm_offset: f32,
    pub activation: Activation,
    /// Factor of the attention scores.
    pub attention_scale: f32,
    /// Soft cap of the attention scores: cap · tanh(score / cap).
    pub attention_softcap: Option<f32>,
    /// Soft cap of the logits: cap · tanh(logit / cap).
    pub logit_softcap: Option<f32>,
    /// Factor of the embeddings; sqrt(hidden) for Gemma.
    pub embedding_scale: f32,
    /// Whether each head's query and key are normed by RMSNorm.
    pub qk_norm: bool,
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// Whether there are norms also after attention and MLP, before they are added (Gemma).
    pub post_norms: bool,
    /// Whether q, k and v are one tensor, and gate and up another (Phi-3).
    pub fused: bool,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
    pub max_position: usize,
    /// Prefix of "layers.0.…" in tensor names; see [`Transformer::locate`].
    pub prefix: String,
    /// Name of the output matrix, if it is not the embedding.
    pub output: String,
    /// Messages about the files for whoever builds the model.
    pub notes: Vec<String>,
}

type Describe = fn(&Config<'_>, usize) -> Result<Transformer, CheckpointError>;

/// The families: `model_type`, models of that type, and the function that reads their configuration.
const FAMILIES: &[(&str, &str, Describe)] = &[
    ("llama", "Llama 2, 3, 3.1 and 3.2, SmolLM2, Bielik v3", llama::describe),
    ("mistral", "Mistral 7B, Bielik v0.1 and v2", mistral::describe),
    ("qwen2", "Qwen2 and Qwen2.5", qwen2::describe),
    ("qwen3", "Qwen3, the dense ones", qwen3::describe),
    ("gemma2", "Gemma 2", gemma2::describe),
    ("gemma3", "Gemma 3 from 4B on, without its sight", gemma3::describe),
    ("gemma3_text", "Gemma 3 270M and 1B", gemma3::describe),
    ("phi3", "Phi-3, Phi-3.5, Phi-4 and Phi-4 mini", phi3::describe),
];

/// The supported families: `model_type`, and models of that type.
pub fn families() -> Vec<(&'static str, &'static str)> {
    FAMILIES.iter().map(|(kind, models, _)| (*kind, *models)).collect()
}

/// `transformers`' defaults (`configuration_*.py`), as far as they differ from those that all families share.
fn defaults(kind: &str) -> Value {
    match kind {
        "mistral" => json!({ "num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072 }),
        "qwen2" => json!({ "sliding_window": 4096, "max_position_embeddings": 32_768 }),
        "qwen3" => json!({ "sliding_window": 4096, "max_position_embeddings": 32_768, "head_dim": 128 }),
        "gemma2" => json!({
            "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096, "max_position_embeddings": 8192,
            "tie_word_embeddings": true,
        }),
        "gemma3" | "gemma3_text" => json!({
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208,
            "max_position_embeddings": 131_072, "sliding_window": 4096, "tie_word_embeddings": true,
        }),
        "phi3" => json!({
            "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        }),
        _ => json!({}),
    }
}

/// Reads a configuration. `length` is the longest sequence in tokens that the model will be used for.
pub fn describe(path: &Path, config: &Value, length: usize) -> Result<Transformer, CheckpointError> {
    let outer = Config::new(path, config);
    let names = || FAMILIES.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ");
    let kind =
        outer.text("model_type").ok_or_else(|| outer.error("`model_type` is missing: no model of `transformers`?"))?;
    let text = outer.within("text_config");
    if let Some(mixture) = [Some(outer), text].into_iter().flatten().find_map(|config| keys::mixture(&config, kind)) {
        return Err(mixture);
    }
    let Some((.., describe)) = FAMILIES.iter().find(|(name, ..)| *name == kind) else {
        return Err(outer
            .error(format!("model_type `{kind}` is not supported"))
            .with_help(format!("these are: {}", names())));
    };
    let mut notes = quantization(&outer, text.as_ref())?;
    let mut merged = defaults(kind);
    if let Some(fields) = merged.as_object_mut() {
        fields.extend(text.unwrap_or(outer).fields());
        // Beside a picture's side it is the whole model's to say.
        if let Some(tied) = text.and_then(|_| outer.get("tie_word_embeddings")) {
            fields.insert("tie_word_embeddings".to_owned(), tied.clone());
        }
    }
    let reads = Reads::default();
    let config = Config::recorded(path, &merged, &reads);
    if config.flag("use_bidirectional_attention") || outer.flag("use_bidirectional_attention") {
        return Err(config.error(
            "`use_bidirectional_attention`: every token of this model sees those after it, so it makes embeddings, not \
             answers, and is not supported",
        ));
    }
    let mut transformer = describe(&config, length)?;
    transformer.check(&config)?;
    notes.extend(keys::check(&config, transformer.family)?);
    notes.extend(own_code::check(&outer, kind)?);
    transformer.notes.extend(notes);
    Ok(transformer)
}

/// Checks the configuration's quantisation; returns messages for the user.
fn quantization(config: &Config, text: Option<&Config>) -> Result<Vec<String>, CheckpointError> {
    let field = "quantization_config";
    let Some(quantization) = config.within(field) else {
        return match text.and_then(|text| text.within(field)) {
            Some(_) => Err(config.error("`quantization_config` within `text_config` is not supported")),
            None => Ok(Vec::new()),
        };
    };
    Packings::read(&quantization.fields().into()).map_err(|what| {
        config.error(format!("{what}: not supported")).with_help(
            "GPTQ, AWQ (GEMM) and compressed-tensors (pack-quantized) of 4 or 8 bits are, and \
             repositories in float16 or bfloat16, and GGUF",
        )
    })?;
    let cache = quantization.get("kv_cache_scheme").is_some();
    Ok(cache.then(|| unread::CACHE_SCALES.to_owned()).into_iter().collect())
}

impl Transformer {
    /// Number of query heads that share a key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Number of rotated dimensions of a head: the same in all layers, since one graph serves them all.
    pub fn rotary_dim(&self) -> usize {
        self.ropes.first().map_or(0, Rope::dimension)
    }

    /// Bytes of key and value of one position in all layers.
    pub fn kv_bytes(&self, types: LayerTypes) -> usize {
        let row = match types.kv_cache {
            KvCache::Auto => self.head_dim * types.dtype.size(),
            // With a scale in float32.
            KvCache::Int8 => self.head_dim + 4,
        };
        2 * self.layers.len() * self.kv_heads * row
    }

    /// Number of parameters, the embedding counted once if tied.
    pub fn parameters(&self) -> usize {
        // What no machine holds must not come out small: `check` asks before anyone believes the sizes.
        let weights = self.layer_weights(0);
        let sizes = weights.iter().map(|weight| weight.rows.saturating_mul(weight.columns));
        let layer = sizes.fold(0, usize::saturating_add);
        let outer = self.vocab_size.saturating_mul(self.hidden_size).saturating_mul(if self.tied { 1 } else { 2 });
        layer.saturating_mul(self.layers.len()).saturating_add(outer).saturating_add(self.hidden_size)
    }

    fn check(&self, config: &Config<'_>) -> Result<(), CheckpointError> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(
                config.error(format!("{} query heads cannot share {} key heads evenly", self.heads, self.kv_heads))
            );
        }
        for rope in &self.ropes {
            if rope.dimension() > self.head_dim || rope.frequencies.is_empty() {
                let message = format!("{} rotary dimensions in heads of {}", rope.dimension(), self.head_dim);
                return Err(config.error(message));
            }
            let is_usable = |number: &f32| number.is_finite() && *number > 0.0;
            if !rope.frequencies.iter().chain([&rope.factor]).all(is_usable) {
                return Err(config.error("the rotary base and its scaling lead to numbers that are 0 or infinite"));
            }
        }
        if let Some(other) = self.ropes.iter().find(|rope| rope.dimension() != self.rotary_dim()) {
            let (one, other) = (self.rotary_dim(), other.dimension());
            return Err(config
                .error(format!("some layers rotate {one} dimensions of a head, others {other}, which is not supported"))
                .with_help("a release of the model whose `rope_parameters` rotate alike in all layers can be built"));
        }
        if self.parameters() >= 1 << 40 {
            return Err(config.error("the sizes describe a model of more than 10^12 parameters"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Graphs are made once for all layers, so no description may have layers that rotate differently many dimensions.
    #[test]
    fn layers_that_rotate_differently_are_refused() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llm/gemma3/config.json");
        let json = crate::checkpoint::read_json(&path).unwrap();
        let mut gemma = describe(&path, &json, 64).unwrap();
        assert_eq!((gemma.ropes.len(), gemma.rotary_dim()), (2, 16));
        let config = Config::new(&path, &json);
        assert!(gemma.check(&config).is_ok());
        gemma.ropes[1].frequencies.truncate(4);
        let error = gemma.check(&config).unwrap_err().to_string();
        assert!(error.contains("some layers rotate 16 dimensions of a head, others 8"), "{error}");
        assert!(error.contains("gemma3/config.json") && error.contains("hint: "), "{error}");
    }
}
