//! Lists the keys of GGUF metadata that are read, those without influence on the arithmetic, and those that would
//! change it: an unknown key is an error, unless its value says that the feature is absent.
//!
//! Names are those of gguf-py (`constants.py`) and of Ollama's converters (`convert/convert_*.go`).

use super::gguf::{Gguf, MetadataValue};
use crate::diagnostic::Diagnostic;

/// Supported architectures, values of `general.architecture`.
pub const ARCHITECTURES: [&str; 6] = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"];

/// Keys that `gguf_config.rs` reads for every architecture.
const READ: &[&str] = &[
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.head_dim",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.beta_fast",
    "rope.scaling.beta_slow",
];

const GEMMAS: &[&str] = &["gemma2", "gemma3"];
const SLIDING: &[&str] = &["llama", "gemma2", "gemma3", "phi3"];

/// Keys that are read for some architectures.
const READ_OF: &[(&str, &[&str])] = &[
    ("attention.sliding_window", SLIDING),
    ("attention.sliding_window_pattern", SLIDING),
    ("attn_logit_softcapping", GEMMAS),
    ("final_logit_softcapping", GEMMAS),
    ("rope.freq_base_swa", &["gemma3"]),
    ("rope.local.freq_base", &["gemma3"]),
    ("rope.global.freq_base", &["gemma3"]),
];

/// Keys whose information is also in the tensors, or concerns training only, or a kind of norm that these architectures
/// do not have.
const HARMLESS: &[&str] =
    &["vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "attention.layer_norm_epsilon"];

/// Keys of factors: 1 has no effect, as 0 has none.
const FACTORS: &[&str] = &["logit_scale", "residual_scale", "embedding_scale", "attention.output_scale"];

/// Keys that apply to YaRN only, and the values at which they have no effect.
const YARN: &[(&str, &[f64])] = &[
    ("rope.scaling.yarn_ext_factor", &[1.0, -1.0]),
    ("rope.scaling.extrapolation_factor", &[1.0, -1.0]),
    ("rope.scaling.yarn_attn_factor", &[1.0]),
    ("rope.scaling.yarn_log_multiplier", &[0.0]),
];

/// The error for mixtures of experts.
pub(super) fn mixture() -> Diagnostic {
    Diagnostic::new("mixture of experts is not supported").with_help("take a dense model of the family")
}

/// Why a file with this metadata is not supported; `None` if it is.
pub(super) fn refusal(gguf: &Gguf) -> Option<Diagnostic> {
    match gguf.text("general.type") {
        Some("adapter") => {
            let what = Diagnostic::new("it is a LoRA adapter, which changes a model and is none");
            return Some(what.with_help("merge it into its base (PEFT: `merge_and_unload`), and convert that"));
        }
        Some(kind @ ("mmproj" | "imatrix" | "vocab")) => {
            let what = format!("it is a `{kind}` file, which goes with a model and is none");
            return Some(Diagnostic::new(what).with_help("name the model's"));
        }
        _ => {}
    }
    let architecture = gguf.text("general.architecture").unwrap_or_default();
    // Mixtures have architectures of their own, too.
    if gguf.integer(&format!("{architecture}.expert_count")).is_some_and(|count| count > 0) {
        return Some(mixture());
    }
    if !ARCHITECTURES.contains(&architecture) {
        let what = Diagnostic::new(format!("GGUF architecture `{architecture}` is not supported"));
        return Some(what.with_help(format!("these are: {}", ARCHITECTURES.join(", "))));
    }
    let is_yarn = gguf.text(&format!("{architecture}.rope.scaling.type")) == Some("yarn");
    let own = |key: &str| key.strip_prefix(architecture)?.strip_prefix('.').map(str::to_owned);
    let unread: Vec<(String, &MetadataValue)> = gguf
        .metadata
        .iter()
        .filter_map(|(key, value)| Some((own(key)?, value)))
        .filter(|(key, value)| !is_known(architecture, key) && !says_nothing(key, value, is_yarn))
        .collect();
    if unread.iter().any(|(key, _)| key.starts_with("expert")) {
        return Some(mixture());
    }
    let (key, value) = unread.first()?;
    let why = "it changes what the model computes, and nobody here reads it";
    let what = Diagnostic::new(format!("key `{architecture}.{key}` is {}: {why}", shown(value)));
    Some(what.with_help("the model is of a kind that is not supported"))
}

fn is_known(architecture: &str, key: &str) -> bool {
    // Ollama's converter puts Gemma 3's vision tower into the same file.
    let pictures = architecture == "gemma3" && (key.starts_with("vision.") || key.starts_with("mm"));
    let read_here = READ_OF.iter().any(|(name, of)| *name == key && of.contains(&architecture));
    pictures || read_here || READ.contains(&key) || HARMLESS.contains(&key)
}

/// Whether a value means that the feature is absent.
fn says_nothing(key: &str, value: &MetadataValue, is_yarn: bool) -> bool {
    if let Some((_, neutral)) = YARN.iter().find(|(name, _)| *name == key) {
        return !is_yarn || matches!(value, MetadataValue::Float(number) if neutral.contains(number));
    }
    match value {
        MetadataValue::Bool(flag) => *flag == (key == "attention.causal"),
        MetadataValue::Integer(number) => *number == 0,
        MetadataValue::Float(number) => *number == 0.0 || (*number == 1.0 && FACTORS.contains(&key)),
        MetadataValue::Text(text) => text.is_empty() || text == "none",
        MetadataValue::Numbers(numbers) => {
            (0..numbers.len()).all(|at| numbers.integer(at) == Some(0) || numbers.float(at) == Some(0.0))
        }
        MetadataValue::Texts(texts) => texts.is_empty(),
    }
}

/// A value, for messages.
fn shown(value: &MetadataValue) -> String {
    match value {
        MetadataValue::Integer(number) => number.to_string(),
        MetadataValue::Float(number) => number.to_string(),
        MetadataValue::Bool(flag) => flag.to_string(),
        MetadataValue::Text(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
        MetadataValue::Numbers(_) | MetadataValue::Texts(_) => "a list".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(key: &str, value: MetadataValue) -> Option<String> {
        let mut gguf = Gguf::default();
        let architecture = key.split('.').next().unwrap();
        gguf.metadata.insert("general.architecture".to_owned(), MetadataValue::Text(architecture.to_owned()));
        gguf.metadata.insert(key.to_owned(), value);
        refusal(&gguf).map(|why| why.to_string())
    }

    #[test]
    fn a_key_that_nobody_reads_is_named_unless_it_says_nothing() {
        use MetadataValue::{Bool, Float, Integer, Text};
        let refused = [
            ("llama.logit_scale", Float(0.0625)),
            ("llama.residual_scale", Float(0.22)),
            ("llama.attention.scale", Float(1.0)),
            ("llama.attention.clamp_kqv", Float(8.0)),
            ("llama.attn_logit_softcapping", Float(50.0)),
            ("llama.use_parallel_residual", Bool(true)),
            ("llama.what_comes_next", Text("x".to_owned())),
            ("qwen2.attention.causal", Bool(false)),
            ("qwen2.attention.sliding_window", Integer(4096)),
            ("qwen3.pooling_type", Integer(3)),
        ];
        for (key, value) in refused {
            let message = with(key, value).unwrap_or_else(|| panic!("{key} passes"));
            assert!(message.contains(&format!("key `{key}` is ")), "{message}");
        }
        let passing = [
            ("llama.logit_scale", Float(1.0)),
            ("llama.residual_scale", Float(0.0)),
            ("llama.expert_count", Integer(0)),
            ("llama.pooling_type", Integer(0)),
            ("llama.attention.causal", Bool(true)),
            ("llama.use_parallel_residual", Bool(false)),
            ("llama.rope.scaling.yarn_ext_factor", Float(0.5)),
            ("gemma3.vision.block_count", Integer(27)),
            ("gemma3.mm.tokens_per_image", Integer(256)),
            ("gemma2.final_logit_softcapping", Float(30.0)),
        ];
        for (key, value) in passing {
            assert_eq!(with(key, value), None, "{key}");
        }
        assert!(with("llama.expert_count", Integer(8)).unwrap().starts_with("mixture of experts is not supported"));
        for key in ["qwen3moe.expert_count", "deepseek2.expert_count", "gpt-oss.expert_count"] {
            assert!(with(key, Integer(32)).unwrap().starts_with("mixture of experts is not supported"), "{key}");
        }
        assert!(with("mamba.block_count", Integer(8)).unwrap().contains("`mamba` is not supported"));
    }
}
