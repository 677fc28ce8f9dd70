//! Refuses early: before gigabytes are downloaded if the small files suffice, and before anything is hashed or built.
//! Checked in this order: kind of model, quantisation, arithmetic, weight files, vocabulary, chat template, lengths.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::{OpenedSource, files, gguf, is_text, limits};
use crate::checkpoint::{Adapter, CheckpointError, gguf_models, gguf_set_aside, read_json, weight_files};
use crate::convert::{self, Transformer};
use crate::diagnostic::Diagnostic;
use crate::fetch::{FetchError, Fetched, Fetcher, Lock, exactly, matching};
use crate::progress::Event;
use crate::recipe::{LlmPlan, Plan, SourcePlan};
use crate::text::{TEXT_FILES, TextError, check_vocabulary, judge};

/// A repository, as far as its file names and small files are known.
struct Repository<'a> {
    plan: &'a Plan,
    fetcher: &'a Fetcher,
    repository: &'a str,
    revision: &'a str,
}

impl Repository<'_> {
    /// A source with only the files of these names.
    fn source(&self, names: &[&str]) -> SourcePlan {
        SourcePlan::Hub {
            repository: self.repository.to_owned(),
            revision: self.revision.to_owned(),
            files: names.iter().map(|name| exactly(name)).collect(),
            file: None,
        }
    }

    fn fetch(&self, names: &[&str], lock: &mut Lock) -> Result<Fetched, FetchError> {
        self.fetcher.fetch(&self.source(names), lock)
    }
}

/// The folder part of a name, with its slash.
fn folder_of(name: &str) -> &str {
    name.rfind('/').map_or("", |at| &name[..=at])
}

/// Checks before the download whether the model can be built. Returns the source to fetch, with one of several copies
/// of the weights.
pub(super) fn look_ahead(plan: &Plan, fetcher: &Fetcher, lock: &mut Lock) -> anyhow::Result<SourcePlan> {
    let SourcePlan::Hub { repository, revision, file: None, files } = &plan.source else {
        return Ok(plan.source.clone());
    };
    let all = fetcher.names(repository, revision, lock)?;
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let wanted = matching(&all, files)?;
    // A GGUF is judged by its first bytes, and that nothing matches is said when it is fetched.
    let is_gguf = |name: &&str| name.ends_with(".gguf");
    let ggufs: Vec<&str> = wanted.iter().copied().filter(is_gguf).collect();
    let models = gguf_models(&ggufs);
    gguf::check_one(plan, repository, &models)?;
    let hub = Repository { plan, fetcher, repository, revision };
    let aside = |name: &&str| is_gguf(name) && !models.contains(name);
    if let Some(note) = gguf_set_aside(wanted.iter().copied().filter(aside)) {
        fetcher.progress.event(Event::Warning(&format!("{}: {note}", plan.name)));
        return Ok(hub.source(&wanted.iter().copied().filter(|name| !aside(name)).collect::<Vec<_>>()));
    }
    if !ggufs.is_empty() || (wanted.is_empty() && !all.iter().any(is_gguf)) {
        return Ok(plan.source.clone());
    }
    let weights = weight_files(&wanted);
    let first = weights.as_ref().ok().and_then(|weights| weights.first().copied());
    let folder = first.map_or("", folder_of);
    let config = format!("{folder}config.json");
    if wanted.contains(&config.as_str()) {
        let fetched = hub.fetch(&[&config], lock)?;
        configuration(plan, &paths_of(fetched))?;
    }
    let weights = match weights {
        Ok(weights) => weights,
        Err(message) => return Err(hub.no_weights(&all, message, lock)),
    };
    if !wanted.contains(&config.as_str()) {
        let what = format!("{}: {repository} has no {config}", plan.name);
        bail!(Diagnostic::new(what).with_help("it says what the tensors mean; name it in `files:` too"));
    }
    hub.text(&all, &wanted, folder, lock)?;
    let kept = |name: &&str| !name.ends_with(".safetensors") || weights.contains(name);
    Ok(hub.source(&wanted.iter().copied().filter(kept).collect::<Vec<_>>()))
}

impl Repository<'_> {
    /// The error for a repository without usable weights; for an adapter it names the base model.
    fn no_weights(&self, all: &[&str], message: Diagnostic, lock: &mut Lock) -> anyhow::Error {
        let what = format!("{}: {}@{}", self.plan.name, self.repository, self.revision);
        if all.contains(&"adapter_config.json") {
            let fetched = self.fetch(&["adapter_config.json"], lock).ok();
            let adapter = fetched.and_then(|fetched| Adapter::read(&fetched.files.first()?.path).ok());
            let why = adapter.unwrap_or_default().message();
            return why.map_message(|adapter| format!("{what} is {adapter}")).into();
        }
        // What is not asked for may be what it has.
        let message = weight_files(all).err().unwrap_or(message);
        FetchError::NoModel { name: what, message }.into()
    }

    /// Checks vocabulary and chat template.
    fn text(&self, all: &[&str], wanted: &[&str], folder: &str, lock: &mut Lock) -> anyhow::Result<()> {
        let within = |names: &[&str]| -> Vec<String> {
            names.iter().filter_map(|name| name.strip_prefix(folder)).map(str::to_owned).collect()
        };
        if let Some(message) = no_vocabulary(&within(wanted), &within(all)) {
            bail!(message.at(format!("{}: {}@{}", self.plan.name, self.repository, self.revision)));
        }
        let is_text = |name: &&str| name.strip_prefix(folder).is_some_and(|name| TEXT_FILES.contains(&name));
        let names: Vec<&str> = wanted.iter().copied().filter(is_text).collect();
        text(self.plan, &paths_of(self.fetch(&names, lock)?), None).map(drop)
    }
}

fn paths_of(fetched: Fetched) -> Vec<PathBuf> {
    fetched.files.into_iter().map(|file| file.path).collect()
}

/// Checks kind of model, quantisation, arithmetic and lengths, if there is a config.json.
pub(super) fn configuration(plan: &Plan, paths: &[PathBuf]) -> anyhow::Result<()> {
    if paths.iter().any(|path| path.extension().is_some_and(|extension| extension == "gguf")) {
        return Ok(());
    }
    let limits = limits(plan)?;
    let named = paths.iter().filter(|path| path.file_name().is_some_and(|name| name == "config.json"));
    // One in a folder within is another model's.
    let Some(path) = named.min_by_key(|path| path.components().count()) else { return Ok(()) };
    let model = convert::describe(path, &read_json(path)?, limits.max_input_len + limits.max_output_len)?;
    length_of(plan, &model)
}

/// Checks that the model supports the longest sequence of the plan.
pub(super) fn length_of(plan: &Plan, model: &Transformer) -> anyhow::Result<()> {
    let limits = limits(plan)?;
    if limits.max_input_len + limits.max_output_len > model.max_position {
        let LlmPlan { max_input_len, max_output_len, .. } = limits;
        let what = format!(
            "{}: {max_input_len} prompt and {max_output_len} answer tokens are more than the {} positions the model was \
             trained for",
            plan.name, model.max_position
        );
        bail!(Diagnostic::new(what).with_help("lower max_input_len or max_output_len"));
    }
    Ok(())
}

/// Why files with these names contain no vocabulary; `None` if they do. `beside` are the names in the same folder.
fn no_vocabulary(names: &[String], beside: &[String]) -> Option<Diagnostic> {
    let is_one = |wanted: &str, names: &[String]| names.iter().any(|name| name == wanted);
    if is_one("tokenizer.json", names) {
        return None;
    }
    let others = ["tokenizer.model", "spiece.model", "tekken.json", "vocab.json"];
    let other = others.into_iter().find(|other| is_one(other, names) || is_one(other, beside));
    let has = other.map_or_else(String::new, |other| format!(", only {other}, which is not read"));
    Some(Diagnostic::new(format!("no tokenizer.json{has}")).with_help(
        "AutoTokenizer.from_pretrained(…).save_pretrained(…) makes one; put it beside the weights and use `path:`",
    ))
}

/// Checks that vocabulary and chat template can be read; returns warnings.
pub(super) fn check_text_files(plan: &Plan, source: &OpenedSource) -> anyhow::Result<Vec<String>> {
    let checkpoint = &source.checkpoint;
    let mut notes = Vec::new();
    match &checkpoint.gguf {
        Some(gguf) => notes.extend(check_vocabulary(&checkpoint.config_path, gguf)?),
        None => {
            let folder = checkpoint.config_path.parent().unwrap_or(Path::new("."));
            let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
            let names: Vec<String> = source.paths.iter().filter_map(|path| name(path)).collect();
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            let beside: Vec<String> = entries.filter_map(|entry| name(&entry.path())).collect();
            if let Some(message) = no_vocabulary(&names, &beside) {
                return Err(CheckpointError::new(folder, message).into());
            }
        }
    }
    notes.extend(text(plan, &source.paths, Some(source))?);
    Ok(notes)
}

/// Checks the text files as an engine directory would hold them. Errors name the original files.
fn text(plan: &Plan, paths: &[PathBuf], source: Option<&OpenedSource>) -> anyhow::Result<Option<String>> {
    let template = plan.model.llm().and_then(|llm| llm.chat_template.as_deref());
    let scratch = tempfile::tempdir().context("cannot make a scratch folder")?;
    match source {
        Some(source) => files::place_text(source, template, scratch.path())?,
        None => files::copy_text(paths, template, scratch.path())?,
    }
    let checkpoint = source.map(|source| &source.checkpoint);
    let origin = |copy: &Path| {
        let name = copy.file_name().unwrap_or_default();
        let own = || paths.iter().find(|path| is_text(path) && path.file_name() == Some(name)).cloned();
        match template {
            Some(template) if name == "chat_template.jinja" => template.to_owned(),
            _ => own().or_else(|| Some(checkpoint?.config_path.clone())).unwrap_or_else(|| copy.to_owned()),
        }
    };
    judge(scratch.path()).map_err(|error| match error {
        TextError::File { path, message } => TextError::File { path: origin(&path), message }.into(),
        other => other.into(),
    })
}
