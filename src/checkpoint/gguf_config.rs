//! Translates a GGUF's metadata to the fields of config.json: "llama.block_count" is "num_hidden_layers".
//!
//! Keys are those of gguf-py (`constants.py`); their meaning and defaults are llama.cpp's (`llama-model.cpp`).
//! `gguf_keys.rs` lists the keys that are read.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::gguf::{Gguf, MetadataValue};
use super::gguf_reader::Parsed;

/// Properties of the tensors that the configuration depends on.
#[derive(Default)]
pub(super) struct TensorFacts {
    /// Rows of the embedding.
    pub(super) vocabulary: Option<usize>,
    /// Whether there is an output matrix besides the embedding.
    pub(super) has_output: bool,
    /// Biases of the first layer, e.g. "attn_q".
    pub(super) biases: Vec<String>,
    /// Rotary factors stored as tensors, by tensor name.
    pub(super) factors: BTreeMap<&'static str, Vec<f32>>,
}

/// Field for the rotary dimensions of a head, which no config.json has.
pub const ROTARY_DIM: &str = "gguf.rotary_dim";
/// Field for the offset of norm weights, which no config.json has.
pub const NORM_OFFSET: &str = "gguf.norm_weight_offset";

/// Names of tensors with rotary factors.
pub(super) const FACTORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// The configuration, and a message for each value that was corrected.
pub(super) fn read(gguf: &Gguf, architecture: &str, facts: TensorFacts) -> Parsed<(Map<String, Value>, Vec<String>)> {
    let keys = Keys { gguf, architecture };
    let (mut config, mut notes) = (keys.plain()?, Vec::new());
    config.insert("tie_word_embeddings".to_owned(), json!(!facts.has_output));
    if let Some(rows) = facts.vocabulary {
        config.insert("vocab_size".to_owned(), json!(rows));
    }
    sizes(architecture, &mut config);
    biases(&facts.biases, architecture, &mut config);
    keys.windows(&mut config)?;
    keys.rope(facts.factors, &mut config)?;
    if architecture.starts_with("gemma") {
        keys.gemma(&mut config)?;
    }
    if architecture == "gemma3" {
        keys.as_ollama_runs_it(&mut config, &mut notes);
    }
    Ok((config, notes))
}

/// Sets llama.cpp's defaults for missing sizes, where a `transformers` family has another default. Gemma 3 files by
/// Ollama leave out what equals its defaults.
fn sizes(architecture: &str, config: &mut Map<String, Value>) {
    if architecture == "gemma3" {
        return;
    }
    if let (false, Some(head)) = (config.contains_key("head_dim"), Keys::head_dim(config)) {
        let divides = number(config, "hidden_size").zip(number(config, "num_attention_heads"));
        if divides.is_some_and(|(hidden, heads)| hidden.checked_rem(heads) == Some(0)) {
            config.insert("head_dim".to_owned(), json!(head));
        }
    }
    if let (false, Some(heads)) = (config.contains_key("num_key_value_heads"), number(config, "num_attention_heads")) {
        config.insert("num_key_value_heads".to_owned(), json!(heads));
    }
}

/// Adds biases to the configuration: llama.cpp uses whatever biases there are.
fn biases(found: &[String], architecture: &str, config: &mut Map<String, Value>) {
    let all = |names: &[&str]| names.iter().all(|name| found.iter().any(|have| have == name));
    let (inputs, output) = (all(&["attn_q", "attn_k", "attn_v"]), all(&["attn_output"]));
    // Qwen's weights in Llama's form have none here.
    let alone = architecture == "llama";
    config.insert("attention_bias".to_owned(), json!(inputs && (output || alone)));
    if alone {
        config.insert("attention_output_bias".to_owned(), json!(output));
    }
    config.insert("mlp_bias".to_owned(), json!(all(&["ffn_gate", "ffn_up", "ffn_down"])));
}

struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// An integer, or a list with the same integer for every layer.
    fn integer(&self, key: &str) -> Parsed<Option<i64>> {
        let name = self.name(key);
        match self.gguf.metadata.get(&name) {
            None => Ok(None),
            Some(MetadataValue::Integer(value)) => Ok(Some(*value)),
            Some(MetadataValue::Numbers(list)) => {
                let first = list.integer(0).filter(|first| (1..list.len()).all(|at| list.integer(at) == Some(*first)));
                first
                    .map(Some)
                    .ok_or_else(|| format!("key `{name}` differs from layer to layer, which is not supported"))
            }
            Some(_) => Err(format!("key `{name}` is no whole number")),
        }
    }

    fn float(&self, key: &str) -> Parsed<Option<f64>> {
        let name = self.name(key);
        match self.gguf.metadata.get(&name) {
            None => Ok(None),
            Some(MetadataValue::Float(value)) => Ok(Some(*value)),
            Some(MetadataValue::Integer(value)) => i32::try_from(*value)
                .map(|value| Some(f64::from(value)))
                .map_err(|_| format!("key `{name}` is {value}")),
            Some(_) => Err(format!("key `{name}` is no number")),
        }
    }

    /// The first of these keys with a value other than 0.
    fn float_of(&self, keys: &[&str]) -> Parsed<Option<f64>> {
        for key in keys {
            if let Some(value) = self.float(key)?.filter(|value| *value != 0.0) {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// Translates the keys that have a counterpart of the same meaning.
    fn plain(&self) -> Parsed<Map<String, Value>> {
        let mut config = Map::new();
        let model_type = if self.architecture == "gemma3" { "gemma3_text" } else { self.architecture };
        config.insert("model_type".to_owned(), json!(model_type));
        let integers = [
            ("num_hidden_layers", "block_count"),
            ("hidden_size", "embedding_length"),
            ("intermediate_size", "feed_forward_length"),
            ("num_attention_heads", "attention.head_count"),
            ("num_key_value_heads", "attention.head_count_kv"),
            ("head_dim", "attention.head_dim"),
            ("head_dim", "attention.key_length"),
            ("max_position_embeddings", "context_length"),
        ];
        for (ours, theirs) in integers {
            if let Some(value) = self.integer(theirs)? {
                config.insert(ours.to_owned(), json!(value));
            }
        }
        let floats: [(&str, &[&str]); 5] = [
            ("rms_norm_eps", &["attention.layer_norm_rms_epsilon"]),
            ("rope_theta", &["rope.freq_base", "rope.global.freq_base"]),
            ("rope_local_base_freq", &["rope.freq_base_swa", "rope.local.freq_base"]),
            ("attn_logit_softcapping", &["attn_logit_softcapping"]),
            ("final_logit_softcapping", &["final_logit_softcapping"]),
        ];
        for (ours, theirs) in floats {
            if let Some(value) = self.float_of(theirs)? {
                config.insert(ours.to_owned(), json!(value));
            }
        }
        let value_length = self.integer("attention.value_length")?.filter(|length| *length != 0);
        if let (Some(value), Some(key)) = (value_length, number(&config, "head_dim"))
            && value != key
        {
            return Err(format!("keys of {key} dimensions and values of {value} are not supported"));
        }
        Ok(config)
    }

    /// Size of a head, if it can be determined.
    fn head_dim(config: &Map<String, Value>) -> Option<i64> {
        let heads = number(config, "num_attention_heads").filter(|heads| *heads > 0);
        number(config, "head_dim").or_else(|| number(config, "hidden_size")?.checked_div(heads?))
    }

    /// Translates sliding windows, and which layers have one.
    fn windows(&self, config: &mut Map<String, Value>) -> Parsed<()> {
        // For these two `gguf_keys.rs` lets nothing but "none" pass.
        if matches!(self.architecture, "qwen2" | "qwen3") {
            return Ok(());
        }
        if let Some(window) = self.integer("attention.sliding_window")? {
            config.insert("sliding_window".to_owned(), json!(window));
            // Mistral 7B in its first version: llama.cpp has one name for both.
            if self.architecture == "llama" && window > 0 {
                config.insert("model_type".to_owned(), json!("mistral"));
            }
        }
        let name = self.name("attention.sliding_window_pattern");
        let layers = number(config, "num_hidden_layers").and_then(|layers| usize::try_from(layers).ok()).unwrap_or(0);
        let slides: Vec<bool> = match self.gguf.metadata.get(&name) {
            None => return Ok(()),
            // Every so many layers one sees everything.
            Some(MetadataValue::Integer(every)) => {
                let every = usize::try_from(*every).ok().filter(|every| *every > 0 && layers <= 1 << 12);
                let every = every.ok_or_else(|| format!("key `{name}` makes no sense"))?;
                (1..=layers).map(|layer| !layer.is_multiple_of(every)).collect()
            }
            Some(MetadataValue::Numbers(list)) if list.len() == layers => {
                (0..layers).map(|at| list.integer(at).is_some_and(|slides| slides != 0)).collect()
            }
            Some(_) => return Err(format!("key `{name}` does not have an entry for every layer")),
        };
        let kind = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
        config.insert("layer_types".to_owned(), json!(slides.iter().map(kind).collect::<Vec<_>>()));
        Ok(())
    }

    /// Translates rotary scaling from keys and factor tensors, and the number of rotated dimensions.
    fn rope(&self, mut factors: BTreeMap<&'static str, Vec<f32>>, config: &mut Map<String, Value>) -> Parsed<()> {
        let kind = self.gguf.text(&self.name("rope.scaling.type")).filter(|kind| !kind.is_empty());
        let factor = self.float_of(&["rope.scaling.factor", "rope.scale_linear"])?;
        let attention = self.float_of(&["rope.scaling.attn_factor"])?;
        let stretched = factor.filter(|factor| *factor != 1.0);
        let mut scaling = Map::new();
        let [freqs, long, short] = FACTORS.map(|name| factors.remove(name));
        // One way to scale is enough: llama.cpp would do both.
        let both = |tensor: &str| format!("tensor `{tensor}` beside rotary scaling by `rope.scaling` is not supported");
        match (freqs, long, short) {
            (Some(freqs), None, None) => {
                if matches!(kind, Some("yarn" | "longrope")) || (kind != Some("llama3") && stretched.is_some()) {
                    return Err(both(FACTORS[0]));
                }
                scaling.insert("rope_type".to_owned(), json!("factors"));
                scaling.insert("factors".to_owned(), json!(freqs));
            }
            (None, Some(long), Some(short)) => {
                if !matches!(kind, None | Some("none" | "longrope")) || stretched.is_some() {
                    return Err(both(FACTORS[1]));
                }
                scaling.insert("rope_type".to_owned(), json!("longrope"));
                scaling.insert("long_factor".to_owned(), json!(long));
                scaling.insert("short_factor".to_owned(), json!(short));
                if let Some(factor) = attention {
                    scaling.insert("attention_factor".to_owned(), json!(factor));
                }
            }
            (None, None, None) => self.scaling_by_keys((kind, factor), &mut scaling)?,
            _ => return Err(format!("of the tensors {} only some are there", FACTORS.join(", "))),
        }
        let is_long = scaling.contains_key("long_factor");
        if let Some(factor) = attention.filter(|factor| *factor != 1.0 && !is_long) {
            let key = self.name("rope.scaling.attn_factor");
            return Err(format!("key `{key}` is {factor}, which is supported beside long and short factors alone"));
        }
        if let Some(length) = self.integer("rope.scaling.original_context_length")?.filter(|length| *length != 0) {
            scaling.insert("original_max_position_embeddings".to_owned(), json!(length));
            config.insert("original_max_position_embeddings".to_owned(), json!(length));
        }
        if scaling.contains_key("rope_type") {
            config.insert("rope_scaling".to_owned(), Value::Object(scaling));
        }
        self.rotated(config)
    }

    fn scaling_by_keys(
        &self,
        (kind, factor): (Option<&str>, Option<f64>),
        scaling: &mut Map<String, Value>,
    ) -> Parsed<()> {
        let kind = match (kind, factor) {
            (Some("none"), _) => return Ok(()),
            // What llama.cpp takes a factor alone for.
            (None, Some(factor)) if factor != 1.0 => "linear",
            (None, _) => return Ok(()),
            (Some(kind), _) => kind,
        };
        if kind == "linear" && factor.is_none() {
            return Ok(());
        }
        scaling.insert("rope_type".to_owned(), json!(kind));
        if let Some(factor) = factor {
            scaling.insert("factor".to_owned(), json!(factor));
        }
        if kind == "yarn" {
            let betas = [
                ("beta_fast", ["rope.scaling.yarn_beta_fast", "rope.scaling.beta_fast"]),
                ("beta_slow", ["rope.scaling.yarn_beta_slow", "rope.scaling.beta_slow"]),
            ];
            for (ours, theirs) in betas {
                if let Some(beta) = self.float_of(&theirs)? {
                    scaling.insert(ours.to_owned(), json!(beta));
                }
            }
        }
        Ok(())
    }

    fn rotated(&self, config: &mut Map<String, Value>) -> Parsed<()> {
        let Some((rotary, head)) = self.integer("rope.dimension_count")?.zip(Self::head_dim(config)) else {
            return Ok(());
        };
        if rotary <= 0 || rotary >= head {
            return Ok(());
        }
        if self.architecture == "llama" {
            // Its pairs were made neighbours over the whole head, so these would be others than the first halves.
            let key = self.name("rope.dimension_count");
            return Err(format!("key `{key}` is {rotary} in heads of {head}: a part of them rotated is not supported"));
        }
        config.insert(ROTARY_DIM.to_owned(), json!(rotary));
        Ok(())
    }

    fn gemma(&self, config: &mut Map<String, Value>) -> Parsed<()> {
        // The converter stores 1 + weight.
        config.insert(NORM_OFFSET.to_owned(), json!(0.0));
        // Not written is the default of both programs; 0 is none.
        for cap in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if self.float(cap)? == Some(0.0) {
                config.insert(cap.to_owned(), Value::Null);
            }
        }
        let size = |field: &str| number(config, field);
        // Both 27B models scale by hidden/heads and not by head_dim; GGUF does not say so (llama.cpp, llama-model.cpp).
        let is_27b =
            matches!((self.architecture, size("num_hidden_layers")), ("gemma2", Some(46)) | ("gemma3", Some(62)));
        let scalar = match is_27b {
            true => size("hidden_size")
                .zip(size("num_attention_heads"))
                .and_then(|(hidden, heads)| hidden.checked_div(heads)),
            false => size("head_dim"),
        };
        config.insert("query_pre_attn_scalar".to_owned(), json!(scalar.unwrap_or(256)));
        Ok(())
    }

    /// Corrects Gemma 3 files by Ollama as Ollama does at run time: its converter leaves out the rotary scaling of the
    /// 4B, 12B and 27B models, and writes a logit cap into the 1B that it does not have. The number of layers
    /// identifies them (`model/models/gemma3/model_text.go`, later `llama/compat`).
    fn as_ollama_runs_it(&self, config: &mut Map<String, Value>, notes: &mut Vec<String>) {
        let scaled = ["type", "factor"]
            .iter()
            .any(|key| self.gguf.metadata.contains_key(&self.name(&format!("rope.scaling.{key}"))));
        match number(config, "num_hidden_layers") {
            Some(layers @ (34 | 48 | 62)) if !scaled => {
                config.insert("rope_scaling".to_owned(), json!({"rope_type": "linear", "factor": 8.0}));
                notes.push(format!(
                    "it says nothing of rotary scaling, as Ollama's converter leaves it out; Gemma 3 of {layers} layers has a \
                     factor of 8, and that is taken, as Ollama does"
                ));
            }
            Some(26) if config.get("final_logit_softcapping").is_some_and(Value::is_number) => {
                config.insert("final_logit_softcapping".to_owned(), Value::Null);
                notes.push(
                    "`final_logit_softcapping` is not applied: Ollama's converter writes it into Gemma 3 1B, which has none, \
                     and Ollama does not apply it either"
                        .to_owned(),
                );
            }
            _ => {}
        }
    }
}

fn number(config: &Map<String, Value>, field: &str) -> Option<i64> {
    config.get(field).and_then(Value::as_i64)
}
