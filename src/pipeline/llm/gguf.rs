//! What is asked of a GGUF before it is built: which one, in how many parts, and with which template.

use anyhow::bail;

use crate::checkpoint::{Checkpoint, PartName};
use crate::fetch::{Fetcher, Modelfile};
use crate::progress::Event;
use crate::recipe::Plan;

/// Of the GGUF files that `files:` matches in a repository, there must be one, or the parts of one.
pub(super) fn check_one(plan: &Plan, repository: &str, names: &[&str]) -> anyhow::Result<()> {
    match names.first() {
        Some(first) if !names.iter().all(|name| is_of(name, first)) => bail!(
            "{}: `files:` matches several models of {repository}: {}\n  hint: name one with `file:`",
            plan.name,
            names.join(", ")
        ),
        _ => Ok(()),
    }
}

/// Whether a file is the one that was named, or a part of the same GGUF.
pub(super) fn is_of(name: &str, named: &str) -> bool {
    let parts = PartName::of(name).zip(PartName::of(named));
    name == named || parts.is_some_and(|(part, named)| part.is_beside(&named))
}

/// Ollama's template is in Go's language and is not read: another must be there.
pub(super) fn check_template(
    plan: &Plan,
    checkpoint: &Checkpoint,
    modelfile: Option<&Modelfile>,
    fetcher: &Fetcher,
) -> anyhow::Result<()> {
    let given = plan.llm.as_ref().is_some_and(|llm| llm.chat_template.is_some());
    if given || !modelfile.is_some_and(|modelfile| modelfile.has_template) {
        return Ok(());
    }
    if checkpoint.gguf.as_ref().is_none_or(|gguf| gguf.text("tokenizer.chat_template").is_none()) {
        bail!(
            "{}: the Ollama model has its chat template in Go's language alone, which is not read, and none in its GGUF\n  \
             hint: give the recipe a `chat_template: FILE.jinja`, such as the model's hub repository has",
            plan.name
        );
    }
    let text = format!(
        "{}: the Ollama model's own template, in Go's language, is not applied; its GGUF's chat template is, and whether the \
         two say the same is not known",
        plan.name
    );
    fetcher.progress.event(Event::Warning(&text));
    Ok(())
}
