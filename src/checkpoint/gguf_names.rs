//! GGUF's tensor names and metadata keys in the words of `transformers`: "blk.0.attn_q.weight" is
//! "model.layers.0.self_attn.q_proj.weight", "llama.block_count" is "num_hidden_layers".
//!
//! Names and keys are those of gguf-py (`constants.py`, `tensor_mapping.py`); what llama.cpp's converter changes in the
//! weights (rotary order of Llama, one added to Gemma's norms) is noted here for whoever reads them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::gguf::Gguf;
use super::mapped::Mapped;
use super::{CheckpointError, Entry};

/// Architectures whose meaning we know, by `general.architecture`.
const ARCHITECTURES: [&str; 6] = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"];

/// Why the file's architecture cannot be read, if so.
pub(super) fn unknown_architecture(gguf: &Gguf) -> Option<String> {
    let architecture = gguf.text("general.architecture").unwrap_or_default();
    (!ARCHITECTURES.contains(&architecture)).then(|| {
        format!("GGUF architecture `{architecture}` is not supported\n  hint: these are: {}", ARCHITECTURES.join(", "))
    })
}

pub(super) struct Translated {
    pub(super) tensors: BTreeMap<String, Entry>,
    pub(super) config: Value,
}

pub(super) fn translate(
    file: &Mapped,
    gguf: &Gguf,
    entries: Vec<(String, Entry)>,
) -> Result<Translated, CheckpointError> {
    let fail = |message: String| CheckpointError::new(file.path(), message);
    let architecture = gguf.text("general.architecture").unwrap_or_default().to_owned();
    if let Some(message) = unknown_architecture(gguf) {
        return Err(fail(message));
    }
    let mut config = config(gguf, &architecture);
    let mut tensors = BTreeMap::new();
    let heads =
        |key: &str| gguf.integer(&format!("{architecture}.{key}")).and_then(|heads| usize::try_from(heads).ok());
    let query_heads = heads("attention.head_count");
    let key_heads = heads("attention.head_count_kv").or(query_heads);
    for (name, mut entry) in entries {
        if let Some(key) = factor_key(&name) {
            let factors = floats(file, &entry).ok_or_else(|| fail(format!("tensor `{name}` is not float32")))?;
            config.insert(key.to_owned(), json!(factors));
            continue;
        }
        if architecture == "llama" {
            entry.interleaved_heads = match name.split('.').nth(2) {
                Some("attn_q") => query_heads,
                Some("attn_k") => key_heads,
                _ => None,
            };
            let rows = entry.shape.split_last().map_or(1, |(_, outer)| outer.iter().product::<usize>());
            if entry.interleaved_heads.is_some_and(|heads| heads == 0 || rows % (2 * heads) != 0) {
                return Err(fail(format!("tensor `{name}` of shape {:?} does not divide into heads", entry.shape)));
            }
        }
        if name == "token_embd.weight" {
            config.insert("vocab_size".to_owned(), json!(entry.shape.first().copied().unwrap_or(0)));
        }
        tensors.insert(tensor_name(&name, &architecture), entry);
    }
    config.insert("tie_word_embeddings".to_owned(), json!(!tensors.contains_key("lm_head.weight")));
    rope(gguf, &architecture, &mut config);
    Ok(Translated { tensors, config: Value::Object(config) })
}

/// Rotary factors kept as tensors.
fn factor_key(name: &str) -> Option<&'static str> {
    match name {
        "rope_freqs.weight" => Some("rope_factors"),
        "rope_factors_long.weight" => Some("long_factor"),
        "rope_factors_short.weight" => Some("short_factor"),
        _ => None,
    }
}

fn floats(file: &Mapped, entry: &Entry) -> Option<Vec<f32>> {
    let bytes = file.bytes().get(entry.offset..entry.offset.checked_add(entry.bytes)?)?;
    let plain = entry.encoding == Ok(super::Encoding::F32);
    plain.then(|| bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn tensor_name(name: &str, architecture: &str) -> String {
    let gemma = architecture.starts_with("gemma");
    let parts: Vec<&str> = name.split('.').collect();
    match parts[..] {
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
                other => other,
            };
            format!("model.layers.{layer}.{known}.{kind}")
        }
        _ => name.to_owned(),
    }
}

/// The keys that have a counterpart of the same meaning.
fn config(gguf: &Gguf, architecture: &str) -> Map<String, Value> {
    let mut config = Map::new();
    let model_type = if architecture == "gemma3" { "gemma3_text" } else { architecture };
    config.insert("model_type".to_owned(), json!(model_type));
    let integers = [
        ("num_hidden_layers", "block_count"),
        ("hidden_size", "embedding_length"),
        ("intermediate_size", "feed_forward_length"),
        ("num_attention_heads", "attention.head_count"),
        ("num_key_value_heads", "attention.head_count_kv"),
        ("head_dim", "attention.key_length"),
        ("max_position_embeddings", "context_length"),
        ("sliding_window", "attention.sliding_window"),
    ];
    for (ours, theirs) in integers {
        if let Some(value) = gguf.integer(&format!("{architecture}.{theirs}")) {
            config.insert(ours.to_owned(), json!(value));
        }
    }
    let floats = [
        ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
        ("rope_theta", "rope.freq_base"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ];
    for (ours, theirs) in floats {
        if let Some(value) = gguf.float(&format!("{architecture}.{theirs}")) {
            config.insert(ours.to_owned(), json!(value));
        }
    }
    if architecture.starts_with("gemma") {
        // The converter stores 1 + weight.
        config.insert("norm_weight_offset".to_owned(), json!(0.0));
        let number = |key: &str| config.get(key).and_then(Value::as_i64).unwrap_or(0);
        let heads = number("num_attention_heads").max(1);
        // Both 27B models scale by hidden/heads and not by head_dim; GGUF does not say so (llama.cpp, llama-model.cpp).
        let is_27b = matches!((architecture, number("num_hidden_layers")), ("gemma2", 46) | ("gemma3", 62));
        let scalar = if is_27b { number("hidden_size") / heads } else { number("head_dim") };
        config.insert("query_pre_attn_scalar".to_owned(), json!(scalar));
    }
    config
}

/// Rotary scaling, from keys and factor tensors.
fn rope(gguf: &Gguf, architecture: &str, config: &mut Map<String, Value>) {
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    let mut scaling = Map::new();
    let (long, short) = (config.remove("long_factor"), config.remove("short_factor"));
    if let Some(factors) = config.remove("rope_factors") {
        scaling.insert("rope_type".to_owned(), json!("factors"));
        scaling.insert("factors".to_owned(), factors);
    } else if let (Some(long), Some(short)) = (long, short) {
        scaling.insert("rope_type".to_owned(), json!("longrope"));
        scaling.insert("long_factor".to_owned(), long);
        scaling.insert("short_factor".to_owned(), short);
        if let Some(factor) = gguf.float(&key("attn_factor")) {
            scaling.insert("attention_factor".to_owned(), json!(factor));
        }
    } else if let Some(kind @ ("linear" | "yarn")) = gguf.text(&key("type")) {
        scaling.insert("rope_type".to_owned(), json!(kind));
    }
    if let Some(factor) = gguf.float(&key("factor")) {
        scaling.insert("factor".to_owned(), json!(factor));
    }
    if let Some(length) = gguf.integer(&key("original_context_length")) {
        scaling.insert("original_max_position_embeddings".to_owned(), json!(length));
        config.insert("original_max_position_embeddings".to_owned(), json!(length));
    }
    if scaling.contains_key("rope_type") {
        config.insert("rope_scaling".to_owned(), Value::Object(scaling));
    }
    if let (Some(rotary), Some(head)) =
        (gguf.integer(&format!("{architecture}.rope.dimension_count")), config.get("head_dim").and_then(Value::as_i64))
        && rotary > 0
        && rotary < head
    {
        config.insert("rotary_dim".to_owned(), json!(rotary));
    }
}
