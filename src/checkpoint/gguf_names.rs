//! Translates GGUF's tensor names to those of `transformers`: "blk.0.attn_q.weight" is
//! "model.layers.0.self_attn.q_proj.weight".
//!
//! Names are those of gguf-py (`constants.py`, `tensor_mapping.py`). Changes of llama.cpp's converter to the weights
//! (rotary order of Llama's q and k, biases included) are recorded for readers of the tensors. An unknown name is kept;
//! whether a layer reads it is checked once the model is known.

use std::collections::BTreeMap;

use serde_json::Value;

use super::gguf::Gguf;
use super::gguf_config::{self, FACTORS, TensorFacts};
use super::gguf_keys;
use super::mapped::Mapped;
use super::{CheckpointError, Entry};
use crate::diagnostic::Diagnostic;

pub(super) struct Translated {
    pub(super) tensors: BTreeMap<String, Entry>,
    /// The file's own tensor names, by the translated ones.
    pub(super) origins: BTreeMap<String, String>,
    pub(super) config: Value,
    /// Messages about values that were corrected.
    pub(super) notes: Vec<String>,
}

pub(super) fn translate(
    files: &[Mapped],
    gguf: &Gguf,
    entries: Vec<(String, Entry)>,
) -> Result<Translated, CheckpointError> {
    let path = files.first().map(Mapped::path).unwrap_or(std::path::Path::new(""));
    let fail = |message: String| CheckpointError::new(path, message);
    let architecture = gguf.text("general.architecture").unwrap_or_default();
    if let Some(message) = refusal(gguf, entries.iter().map(|(name, _)| name.as_str())) {
        return Err(CheckpointError::new(path, message));
    }
    let (mut tensors, mut origins, mut facts) = (BTreeMap::new(), BTreeMap::new(), TensorFacts::default());
    let mut pictures = false;
    for (name, mut entry) in entries {
        if is_of_pictures(architecture, &name) {
            pictures = true;
            continue;
        }
        let is_factor = FACTORS.into_iter().find(|factor| *factor == name && reads_factors(architecture, factor));
        if let Some(factor) = is_factor {
            let values = floats(files, &entry).ok_or_else(|| fail(format!("tensor `{name}` is not float32")))?;
            facts.factors.insert(factor, values);
            continue;
        }
        if architecture == "llama" {
            interleave(gguf, &name, &mut entry).map_err(fail)?;
        }
        match name.strip_prefix("blk.0.").and_then(|name| name.strip_suffix(".bias")) {
            Some(stem) => facts.biases.push(stem.to_owned()),
            None if name == "token_embd.weight" => facts.vocabulary = entry.shape.first().copied(),
            None => facts.has_output |= name == "output.weight",
        }
        let known = known_name(&name, architecture).unwrap_or_else(|| name.clone());
        if tensors.insert(known.clone(), entry).is_some() {
            return Err(fail(format!("tensor `{name}` is there twice")));
        }
        origins.insert(known, name);
    }
    let (config, mut notes) = gguf_config::read(gguf, architecture, facts).map_err(fail)?;
    if pictures {
        notes.push("its vision tower is not used: the model answers text alone".to_owned());
    }
    Ok(Translated { tensors, origins, config: Value::Object(config), notes })
}

/// Why a model with this metadata and these tensors is not supported; `None` if it is.
pub(super) fn refusal<'a>(gguf: &Gguf, mut names: impl Iterator<Item = &'a str>) -> Option<Diagnostic> {
    let is_expert = |name: &str| name.contains("_exps.") || name.contains("_shexp.") || name.contains("ffn_gate_inp");
    let mixture = || names.any(is_expert).then(gguf_keys::mixture);
    gguf_keys::refusal(gguf).or_else(mixture)
}

/// Whether a tensor belongs to the vision tower, which Ollama's converter keeps in the same file.
pub(super) fn is_of_pictures(architecture: &str, name: &str) -> bool {
    architecture == "gemma3" && (name.starts_with("v.") || name.starts_with("mm."))
}

/// Whether llama.cpp reads this tensor of rotary factors.
fn reads_factors(architecture: &str, factor: &str) -> bool {
    match architecture {
        "llama" => true,
        "phi3" => factor != FACTORS[0],
        _ => false,
    }
}

/// Records the number of heads whose rows of Llama's q and k, or elements of their biases, are stored in interleaved
/// rotary order.
fn interleave(gguf: &Gguf, name: &str, entry: &mut Entry) -> Result<(), String> {
    let heads =
        |key: &str| gguf.integer(&format!("llama.attention.{key}")).and_then(|heads| usize::try_from(heads).ok());
    entry.interleaved_heads = match name.split('.').nth(2) {
        Some("attn_q") => heads("head_count"),
        Some("attn_k") => heads("head_count_kv").or(heads("head_count")),
        _ => None,
    };
    let rows = match entry.shape[..] {
        [elements] => elements,
        _ => entry.shape.split_last().map_or(1, |(_, outer)| outer.iter().product::<usize>()),
    };
    let divides = |heads: usize| heads.checked_mul(2).is_some_and(|halves| halves > 0 && rows.is_multiple_of(halves));
    match entry.interleaved_heads {
        Some(heads) if !divides(heads) => {
            Err(format!("tensor `{name}` of shape {:?} does not divide into {heads} heads", entry.shape))
        }
        _ => Ok(()),
    }
}

fn floats(files: &[Mapped], entry: &Entry) -> Option<Vec<f32>> {
    let bytes = files.get(entry.file)?.bytes().get(entry.offset..entry.offset.checked_add(entry.bytes)?)?;
    let plain = entry.encoding == Ok(super::Encoding::F32);
    plain.then(|| bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// `transformers`' name of a tensor that these architectures can have.
fn known_name(name: &str, architecture: &str) -> Option<String> {
    let gemma = architecture.starts_with("gemma");
    let parts: Vec<&str> = name.split('.').collect();
    Some(match parts[..] {
        ["token_embd", "weight"] => "model.embed_tokens.weight".to_owned(),
        ["output_norm", "weight"] => "model.norm.weight".to_owned(),
        ["output", "weight"] => "lm_head.weight".to_owned(),
        ["blk", layer, tensor, kind] => {
            let known = match tensor {
                "attn_norm" => "input_layernorm",
                "attn_q" => "self_attn.q_proj",
                "attn_k" => "self_attn.k_proj",
                "attn_v" => "self_attn.v_proj",
                "attn_qkv" => "self_attn.qkv_proj",
                "attn_output" => "self_attn.o_proj",
                "attn_q_norm" => "self_attn.q_norm",
                "attn_k_norm" => "self_attn.k_norm",
                "post_attention_norm" => "post_attention_layernorm",
                "post_ffw_norm" => "post_feedforward_layernorm",
                "ffn_norm" if gemma => "pre_feedforward_layernorm",
                "ffn_norm" => "post_attention_layernorm",
                "ffn_gate" => "mlp.gate_proj",
                "ffn_up" if architecture == "phi3" => "mlp.gate_up_proj",
                "ffn_up" => "mlp.up_proj",
                "ffn_down" => "mlp.down_proj",
                _ => return None,
            };
            format!("model.layers.{layer}.{known}.{kind}")
        }
        _ => return None,
    })
}
