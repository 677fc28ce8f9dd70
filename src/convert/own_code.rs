//! Code in a repository (`auto_map` in config.json). `transformers` runs it with `trust_remote_code`; without, it uses
//! its built-in class for the `model_type`, if there is one (`dynamic_module_utils.py`, `resolve_trust_remote_code`).
//! It is never run here, which is reported, and refused if its class has another name than the built-in one.

use serde_json::Value;

use super::config::Config;
use crate::checkpoint::CheckpointError;
use crate::log::printable;

/// The built-in classes by `model_type` (`modeling_auto.py`, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES); Gemma 3's text model
/// has one of its own.
const CLASSES: &[(&str, &[&str])] = &[
    ("llama", &["LlamaForCausalLM"]),
    ("mistral", &["MistralForCausalLM"]),
    ("qwen2", &["Qwen2ForCausalLM"]),
    ("qwen3", &["Qwen3ForCausalLM"]),
    ("gemma2", &["Gemma2ForCausalLM"]),
    ("gemma3", &["Gemma3ForConditionalGeneration", "Gemma3ForCausalLM"]),
    ("gemma3_text", &["Gemma3ForCausalLM"]),
    ("phi3", &["Phi3ForCausalLM"]),
];

/// Key of the class that generates text.
const ANSWERS: &str = "AutoModelForCausalLM";
/// Most entries that a message names.
const NAMED: usize = 4;
/// Most characters of an entry in a message.
const SHOWN: usize = 120;

/// Fails if a class of another name would be used; otherwise returns a message, if there is such code.
pub(super) fn check(config: &Config, kind: &str) -> Result<Option<String>, CheckpointError> {
    let Some(map) = config.within("auto_map") else { return Ok(None) };
    let shown = |name: &str, value: &Value| {
        let place = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let place: String = place.chars().take(SHOWN).collect();
        format!("`{}: {}`", printable(name), printable(&place))
    };
    let builtin = CLASSES.iter().find(|(known, _)| *known == kind).map_or(&[][..], |(_, classes)| *classes);
    if let Some(value) = map.get(ANSWERS) {
        // "modeling_x.Class", or "owner/repository--modeling_x.Class".
        let class = value.as_str().and_then(|place| place.rsplit('.').next()).unwrap_or_default();
        if !builtin.contains(&class) {
            return Err(config
                .error(format!(
                    "`auto_map` has {}: the model is computed by the repository's own code, which is not \
                     run, and `{kind}` of transformers may be another model",
                    shown(ANSWERS, value)
                ))
                .with_help("take a release of the model that transformers reads without trust_remote_code"));
        }
    }
    let fields = map.fields();
    let entries: Vec<String> = fields.iter().take(NAMED).map(|(name, value)| shown(name, value)).collect();
    let note = format!(
        "config.json names code of the repository's own, which is not run: the model is computed as the `{kind}` of \
         transformers, as it is there without trust_remote_code ({})",
        entries.join(", ")
    );
    Ok((!entries.is_empty()).then_some(note))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_has_its_class() {
        let families: Vec<&str> = crate::convert::families().into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(families, CLASSES.iter().map(|(kind, _)| *kind).collect::<Vec<_>>());
    }
}
