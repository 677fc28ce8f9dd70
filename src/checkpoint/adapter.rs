//! PEFT adapters: folders with an `adapter_config.json` instead of a model, and how to merge them into one.

use std::path::Path;

use serde_json::Value;

use super::{CheckpointError, read_json};
use crate::diagnostic::Diagnostic;

/// Adapter types that prepend vectors to the prompt, or to its cached keys and values; the names are PEFT's `PeftType`.
const BEFORE_PROMPTS: [&str; 6] =
    ["PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"];

/// Adapter types whose effect depends on the input, so that their layers have no `merge` (PEFT's `tuners/*/layer.py`).
const BY_INPUT: [&str; 5] = ["ADAPTION_PROMPT", "XLORA", "POLY", "LILY", "SHADOW"];

/// Most characters of a name in messages.
const SHOWN: usize = 120;

/// An adapter's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adapter {
    /// `peft_type`.
    kind: Option<String>,
    /// Name of the base model.
    base: Option<String>,
}

impl Adapter {
    /// Reads an `adapter_config.json`.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let settings = read_json(path)?;
        let text = |field: &str| settings.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        let shown = |field: &str| text(field).map(|text| text.chars().take(SHOWN).collect::<String>());
        Ok(Self { kind: shown("peft_type"), base: shown("base_model_name_or_path") })
    }

    /// Name of the base model, shortened for messages.
    pub(super) fn base(&self) -> Option<String> {
        self.base.as_ref().map(|base| format!("`{}`", base.escape_debug()))
    }

    /// Why the folder is no model, and how to make one of it.
    pub fn message(&self) -> Diagnostic {
        let kind = match self.kind.as_deref() {
            None => String::new(),
            Some("LORA") => " (LoRA)".to_owned(),
            Some(kind) => format!(" ({})", kind.escape_debug()),
        };
        let base = self.base().unwrap_or_else(|| "a model".to_owned());
        let is_of = |kinds: &[&str]| self.kind.as_deref().is_some_and(|kind| kinds.contains(&kind));
        let what = format!("an adapter{kind} for {base}, no model of its own");
        let otherwise = "train a LoRA on the same data, which can be merged";
        if is_of(&BEFORE_PROMPTS) {
            Diagnostic::new(format!(
                "{what}: it is vectors that go before every prompt, which no merge brings into the weights, and which are not \
                 read"
            ))
            .with_help(format!(
                "build {base} itself and tell it in words (a system prompt) what the adapter was trained for; or {otherwise}"
            ))
        } else if is_of(&BY_INPUT) {
            Diagnostic::new(format!(
                "{what}: what it adds depends on what is computed, so that no merge brings it into the weights"
            ))
            .with_help(format!("build {base} itself; or {otherwise}"))
        } else {
            Diagnostic::new(what).with_help(
                "merge it first: with peft, AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload().save_pretrained(…), \
                 and the base's tokenizer",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adapter types, and whether PEFT 0.21 can merge them: whether their layers have a `merge` that does not raise.
    #[test]
    fn a_merge_is_proposed_where_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter_config.json");
        let message = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Adapter::read(&path).unwrap().message().to_string()
        };
        let kinds = "LORA ADALORA IA3 LOHA LOKR OFT BOFT LN_TUNING VERA FOURIERFT HRA MISS RANDLORA TRAINABLE_TOKENS DORA_TO_COME";
        for kind in kinds.split(' ') {
            let said = message(&format!(r#"{{"peft_type": "{kind}", "base_model_name_or_path": "org/base"}}"#));
            let shown = if kind == "LORA" { "LoRA" } else { kind };
            assert!(said.starts_with(&format!("an adapter ({shown}) for `org/base`, no model")), "{said}");
            assert!(said.contains("hint: merge it first") && said.contains("merge_and_unload"), "{said}");
        }
        for kind in BEFORE_PROMPTS.into_iter().chain(BY_INPUT) {
            let said =
                message(&format!(r#"{{"peft_type": "{kind}", "base_model_name_or_path": "speakleash/Bielik-7B"}}"#));
            assert!(said.starts_with(&format!("an adapter ({kind}) for `speakleash/Bielik-7B`")), "{said}");
            assert!(said.contains("no merge brings it") || said.contains("vectors that go before"), "{said}");
            assert!(
                said.contains("hint: build `speakleash/Bielik-7B` itself") && !said.contains("merge_and_"),
                "{said}"
            );
        }
        // AdapterHub's files say nothing of PEFT, and what they say must not look like other lines.
        assert!(message(r#"{"config": {}}"#).starts_with("an adapter for a model, no model"));
        let said = message(r#"{"peft_type": "X\nerror: y", "base_model_name_or_path": null}"#);
        assert!(said.starts_with("an adapter (X\\nerror: y) for a model"), "{said}");
    }
}
