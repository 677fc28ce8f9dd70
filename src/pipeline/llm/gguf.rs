//! Checks GGUF sources before a build: that there is exactly one model, in how many parts, and with a usable chat
//! template.

use anyhow::bail;

use crate::checkpoint::{Checkpoint, Gguf, PartName};
use crate::diagnostic::Diagnostic;
use crate::fetch::{Fetcher, Modelfile};
use crate::log::printable;
use crate::progress::Event;
use crate::recipe::Plan;

/// Most characters of a name in messages.
const SHOWN: usize = 120;

/// Checks that the GGUF files in a repository that `files:` matches are one file, or the parts of one.
pub(super) fn check_one(plan: &Plan, repository: &str, names: &[&str]) -> anyhow::Result<()> {
    match names.first() {
        Some(first) if !names.iter().all(|name| is_of(name, first)) => {
            let names = names.join(", ");
            let what = format!("{}: `files:` matches several models of {repository}: {names}", plan.name);
            bail!(Diagnostic::new(what).with_help("name one with `file:`"))
        }
        _ => Ok(()),
    }
}

/// Whether a file is the named one, or a part of the same GGUF.
pub(super) fn is_of(name: &str, named: &str) -> bool {
    let parts = PartName::of(name).zip(PartName::of(named));
    name == named || parts.is_some_and(|(part, named)| part.is_beside(&named))
}

/// The error for an Ollama model that has only Ollama's own template, with a file that would do.
fn no_template(gguf: Option<&Gguf>) -> Diagnostic {
    let origin = gguf.and_then(origin).unwrap_or_else(|| "the original model".to_owned());
    Diagnostic::new(
        "the Ollama model has its chat template in Ollama's own language (Go's) alone, which is not run, and none in its GGUF",
    )
    .with_help(format!(
        "give the recipe a `chat_template: FILE.jinja`: the chat_template.jinja of {origin} on its hub, or what \
         `chat_template` in its tokenizer_config.json says, saved as a file"
    ))
}

/// The repository that a GGUF was converted from, by its metadata (gguf-py's `constants.py`): its own name, and that of
/// the model it was tuned from, which may have no chat template.
fn origin(gguf: &Gguf) -> Option<String> {
    let text = |key: &str| {
        let text = gguf.text(key).map(str::trim).filter(|text| !text.is_empty())?;
        Some(printable(&text.chars().take(SHOWN).collect::<String>()).into_owned())
    };
    let with = |name: Option<String>, place: Option<String>| match (name, place) {
        (Some(name), Some(place)) => Some(format!("`{name}` ({place})")),
        (Some(name), None) => Some(format!("`{name}`")),
        (None, place) => place,
    };
    let own = with(text("general.name").or_else(|| text("general.basename")), text("general.source.repo_url"));
    let base = with(
        text("general.base_model.0.name"),
        text("general.base_model.0.repo_url").or_else(|| text("general.base_model.0.organization")),
    );
    match (own, base) {
        (Some(own), Some(base)) => Some(format!("{own}, made from {base},")),
        (own, base) => own.or(base),
    }
}

/// Checks that a chat template is available. Ollama's, in Go's language, is not supported.
pub(super) fn check_template(
    plan: &Plan,
    checkpoint: &Checkpoint,
    modelfile: Option<&Modelfile>,
    fetcher: &Fetcher,
) -> anyhow::Result<()> {
    let given = plan.model.llm().is_some_and(|llm| llm.chat_template.is_some());
    if given || !modelfile.is_some_and(|modelfile| modelfile.has_template) {
        return Ok(());
    }
    let gguf = checkpoint.gguf.as_ref();
    if gguf.is_none_or(|gguf| gguf.text("tokenizer.chat_template").is_none()) {
        bail!(no_template(gguf).at(&plan.name));
    }
    let text = format!(
        "{}: the Ollama model's own template, in Go's language, is not applied; its GGUF's chat template is, and whether the \
         two say the same is not known",
        plan.name
    );
    fetcher.progress.event(Event::Warning(&text));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::MetadataValue;

    #[test]
    fn a_missing_template_is_sought_at_the_original() {
        let said = |keys: &[(&str, &str)]| {
            let mut gguf = Gguf::default();
            let keys = keys.iter().map(|(key, text)| ((*key).to_owned(), MetadataValue::Text((*text).to_owned())));
            gguf.metadata.extend(keys);
            no_template(Some(&gguf)).to_string()
        };
        let (name, base) = ("general.name", "general.base_model.0.name");
        let place = ("general.base_model.0.repo_url", "https://huggingface.co/speakleash/Bielik-11B-v2");
        let cases: [(&[(&str, &str)], &str); 6] = [
            (&[], "of the original model on its hub"),
            (&[(name, "Llama 3.2 1B Instruct")], "of `Llama 3.2 1B Instruct` on its hub"),
            (&[("general.basename", "Qwen3")], "of `Qwen3` on its hub"),
            (
                &[(base, "Bielik 11B v2"), place],
                "of `Bielik 11B v2` (https://huggingface.co/speakleash/Bielik-11B-v2) on",
            ),
            (
                &[(name, "Bielik v2.3"), (base, "Bielik v2"), ("general.base_model.0.organization", "SpeakLeash")],
                "of `Bielik v2.3`, made from `Bielik v2` (SpeakLeash), on its hub",
            ),
            (&[(name, "a\nerror: b")], "of `a\\nerror: b` on its hub"),
        ];
        for (keys, expected) in cases {
            let message = said(keys);
            assert!(message.contains(expected), "{message} lacks {expected}");
            assert!(
                message.contains("Ollama's own language")
                    && message.contains("hint: give the recipe a `chat_template:")
            );
        }
    }
}
