//! A source where a recipe or an engine directory is taken: what an argument names, the source's recipe beside the engines, and
//! the engine that is built from it if it is not there.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};

use super::new_recipe::{GivenSource, SourceRecipe, is_export, new_recipe};
use super::{Context, build, prepare};
use crate::artifact::write_file;
use crate::backend::tensorrt::TensorRt;
use crate::diagnostic::Diagnostic;
use crate::engine_dir::{BackendChoice, EngineDir};
use crate::fetch::{Fetcher, Lock};
use crate::manifest::layout::{ENGINES, FILE, REPORT_FILE};
use crate::onnx::Model;
use crate::recipe::{self, Plan, Source, SourcePlan, name_of, parse_source, repository, scheme_of};

/// What an argument names.
#[derive(Debug, Clone, PartialEq)]
pub enum GivenModel {
    /// An engine directory, whole or not.
    EngineDirectory,
    /// A recipe, there or not, or a file that is none.
    Recipe,
    /// A source, and a note if there are two things of this name.
    Source(Box<GivenSource>, Option<String>),
}

/// Ends of the names of models in one file.
const MODELS: [&str; 3] = ["gguf", "pt", "onnx"];

impl GivenModel {
    /// Finds out what `argument` names; `engines` is the folder of engine directories. A path that exists is that path, before a
    /// scheme and before a hub's repository.
    pub fn of(argument: &Path, engines: &Path) -> Result<Self, Diagnostic> {
        let text = argument.to_str();
        let end = argument.extension().map(|end| end.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        if argument.exists() {
            let is_model = MODELS.contains(&end.as_str());
            let Some(text) = text.filter(|_| argument.is_dir() || is_model) else { return Ok(Self::Recipe) };
            if argument.is_dir() && is_engine_directory(argument) {
                return Ok(Self::EngineDirectory);
            }
            let source = Source { path: Some(text.to_owned()), ..Source::default() };
            let note = repository(text)
                .map(|_| format!("{text} is here, and is what is taken; `hub:{text}` names the hub's repository"));
            return Ok(Self::Source(GivenSource::boxed(text, source), note));
        }
        let Some(text) = text else { return Err(Diagnostic::new("there is no such file or folder")) };
        let source = scheme_of(text).or_else(|| repository(text).filter(|_| !is_beside(argument, engines)));
        match source {
            Some(source) => Ok(Self::Source(GivenSource::boxed(text, source), None)),
            None if matches!(end.as_str(), "yaml" | "yml") => Ok(Self::Recipe),
            None => Err(nothing(text)),
        }
    }
}

/// Whether a folder is an engine directory, or what is left of one. A folder of sources may have one of engines in it.
fn is_engine_directory(folder: &Path) -> bool {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let has_engine =
        |folder: &Path| entries(folder).any(|entry| entry.path().extension().is_some_and(|end| end == "engine"));
    [FILE, REPORT_FILE].into_iter().any(|name| folder.join(name).exists())
        || has_engine(folder)
        || has_engine(&folder.join(ENGINES))
}

/// Whether a missing path is one within a folder that is there, or within that of engines: no repository's name.
fn is_beside(path: &Path, engines: &Path) -> bool {
    path.parent().is_some_and(|folder| folder == engines || folder.is_dir())
}

fn nothing(text: &str) -> Diagnostic {
    let what = Diagnostic::new("there is no such file or folder, and it is no name on a hub (OWNER/NAME)");
    match repository(text) {
        Some(_) => what.with_help(format!("`hub:{text}` looks for it on the hub all the same")),
        None => what.with_help(
            "a model is named by a file (.gguf, .pt, .onnx), a folder, OWNER/NAME on a hub, ollama:NAME, or \
             pypi:PACKAGE==VERSION/FILE",
        ),
    }
}

/// Whether a file is an ONNX export of Ultralytics, which says how pictures are read and answers are given.
pub fn is_picture_export(path: &Path) -> bool {
    Model::read(path).is_ok_and(|model| is_export(&model))
}

/// The file of a source's recipe in a folder of engines.
pub fn recipe_place(source: &Source, engines: &Path) -> PathBuf {
    engines.join(format!("{}.yaml", name_of(source)))
}

/// The recipe of a source in the folder `engines`: the one that is there, or a new one, which is not written yet.
pub fn recipe_of(
    named: &GivenSource,
    engines: &Path,
    fetcher: &Fetcher,
    lock: &mut Lock,
) -> anyhow::Result<SourceRecipe> {
    let place = recipe_place(&named.source, engines);
    if !place.exists() {
        return new_recipe(named, &place, fetcher, lock);
    }
    let recipe = recipe::load(&place)?;
    if !is_same(&named.source, recipe.source(), engines) {
        let there = super::source_text(&Plan::new(&place, &recipe).source, None);
        let what = Diagnostic::new(format!("{} is a recipe of {there}, not of {}", place.display(), named.given));
        bail!(what.with_help("rename the file, or choose another folder for engines"));
    }
    Ok(SourceRecipe { place, recipe, text: None })
}

/// Whether a recipe in the folder `engines` has the source that was asked for, whatever else it says of it.
fn is_same(asked: &Source, has: &Source, engines: &Path) -> bool {
    let revision = |source: &Source| source.revision.clone().unwrap_or_else(|| "main".to_owned());
    let path = |path: PathBuf| fs::canonicalize(&path).unwrap_or(path);
    let is_path = match (&asked.path, &has.path) {
        // The recipe may name one of a folder's files.
        (Some(asked), Some(has)) => {
            let (asked, has) = (path(PathBuf::from(asked)), path(engines.join(has)));
            has == asked || has.parent() == Some(asked.as_path())
        }
        (asked, has) => asked == has,
    };
    is_path
        && (&asked.hub, &asked.ollama, &asked.pypi) == (&has.hub, &has.ollama, &has.pypi)
        && (&asked.package_version, revision(asked)) == (&has.package_version, revision(has))
        && (asked.file.is_none() || asked.file == has.file)
}

impl SourceRecipe {
    /// Writes the recipe, and what was pinned beside it. A file that is there is left as it is.
    pub fn write(&self, lock: &mut Lock) -> anyhow::Result<()> {
        let Some(text) = &self.text else { return Ok(()) };
        if self.place.symlink_metadata().is_ok() {
            let what = Diagnostic::new(format!("{} is there already; it was left as it is", self.place.display()));
            bail!(what.with_help("name another file, or move it away"));
        }
        let cannot = || format!("cannot write {}", self.place.display());
        if let Some(folder) = self.place.parent() {
            fs::create_dir_all(folder).with_context(cannot)?;
        }
        write_file(&self.place, text.as_bytes()).with_context(cannot)?;
        Ok(lock.save()?)
    }

    /// The recipe with its defaults.
    pub fn plan(&self) -> Plan {
        Plan::new(&self.place, &self.recipe)
    }

    /// The engine directory of this recipe in the context's folder, to be run by `backend`. It is built if it is not there, or
    /// does not fit recipe, source, machine or program any more.
    pub fn engine(&self, backend: BackendChoice, context: &Context, lock: &mut Lock) -> anyhow::Result<PathBuf> {
        let plan = self.plan();
        let folder = context.output.join(&plan.name);
        self.check_owner(&context.output)?;
        if self.is_ready(&plan, &folder, backend, lock) {
            return Ok(folder);
        }
        // Before gigabytes are fetched.
        TensorRt::open()?;
        let prepared = prepare(&plan, context, lock)?;
        if let Some(why) = &prepared.stale {
            context.stage(&plan.name, &format!("building the engine, because {why}"));
        }
        Ok(build(prepared, context)?.folder)
    }

    /// Refuses a folder of engines in which another recipe made the engine of this name: it is not replaced by the way.
    pub fn check_owner(&self, engines: &Path) -> anyhow::Result<()> {
        let folder = engines.join(self.recipe.name());
        let Ok(engine) = EngineDir::load(&folder) else { return Ok(()) };
        let Some(other) = engine.recipe().filter(|other| !is_file(other, &self.place)) else { return Ok(()) };
        let folder = folder.display();
        let what =
            Diagnostic::new(format!("{folder} was built from {}, not from {}", other.display(), self.place.display()));
        bail!(what.with_help(format!("name {folder} to use it, or choose another folder for engines")))
    }

    /// Whether the engine can be used without a look at its source: it was built from what is pinned, the recipe names no other
    /// files, and was not changed since.
    fn is_ready(&self, plan: &Plan, folder: &Path, backend: BackendChoice, lock: &Lock) -> bool {
        let commit = match &plan.source {
            SourcePlan::Hub { repository, revision, .. } => lock.get(repository, revision).map(|pinned| &pinned.commit),
            SourcePlan::Pypi { .. } | SourcePlan::Url { .. } => None,
            // What is there may be another model by now.
            SourcePlan::Path { .. } | SourcePlan::Ollama { .. } => return false,
        };
        let source = super::source_text(&plan.source, commit.map(String::as_str));
        let llm = plan.model.llm();
        let names_files = llm.is_some_and(|llm| llm.chat_template.is_some() || llm.speculation_text.is_some())
            || plan.build.calibration.is_some()
            || plan.verify.reference.is_some()
            || !(plan.verify.images.is_empty() && plan.verify.inputs.is_empty());
        let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        let is_older = |recipe: SystemTime| changed(&folder.join(FILE)).is_some_and(|built| recipe <= built);
        !names_files
            && changed(&self.place).is_some_and(is_older)
            && EngineDir::load(folder).is_ok_and(|engine| {
                engine.manifest.source == source
                    && engine.recipe().is_some_and(|recipe| is_file(recipe, &self.place))
                    && engine.misfit(backend).is_none()
            })
    }
}

fn is_file(a: &Path, b: &Path) -> bool {
    crate::artifact::is_same_file(a, b)
}

/// The source that a text names, as [`GivenModel::of`] has it, for those who take nothing else.
pub fn given_source(text: &str) -> Result<GivenSource, Diagnostic> {
    match GivenModel::of(Path::new(text), Path::new(""))? {
        GivenModel::Source(source, _) => Ok(*source),
        GivenModel::EngineDirectory => Err(Diagnostic::new("is an engine directory, which is built already")),
        GivenModel::Recipe if text.ends_with(".yaml") || text.ends_with(".yml") => {
            Err(Diagnostic::new("is a recipe already"))
        }
        // What it is is said by whoever looks at it.
        GivenModel::Recipe => Ok(GivenSource { given: text.to_owned(), source: parse_source(&format!("path:{text}")) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(name: &str) -> Source {
        Source { hub: Some(name.to_owned()), ..Source::default() }
    }

    #[test]
    fn what_is_there_is_what_is_meant() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        for folder in ["engines/built", "engines/torn/engines", "models/qwen/engines/qwen", "models/empty", "moje/łódź"]
        {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for file in [
            "engines/built/manifest.json",
            "engines/torn/engines/head-r1.engine",
            "models/qwen/config.json",
            "models/m.GGUF",
            "models/a.txt",
            "r.yaml",
            "żółw.pt",
        ] {
            fs::write(at(file), "").unwrap();
        }
        fs::create_dir_all(at("half")).unwrap();
        fs::write(at("half/m.engine"), "").unwrap();
        let engines = at("engines");
        let of = |path: &Path| GivenModel::of(path, &engines);
        for engine in ["engines/built", "engines/torn", "half"] {
            assert_eq!(of(&at(engine)), Ok(GivenModel::EngineDirectory), "{engine}");
        }
        for file in ["r.yaml", "models/a.txt", "missing.yaml", "engines/missing.yml"] {
            assert_eq!(of(&at(file)), Ok(GivenModel::Recipe), "{file}");
        }
        for source in ["models/qwen", "models/empty", "models/m.GGUF", "żółw.pt", "moje/łódź"] {
            let path = at(source).to_str().unwrap().to_owned();
            let Ok(GivenModel::Source(found, None)) = of(&at(source)) else { panic!("{source}") };
            assert_eq!((found.source.path.as_ref(), &found.given), (Some(&path), &path));
        }
        for missing in ["models/none", "none", "none.gguf", "a/b/c"] {
            let told = of(&at(missing)).unwrap_err().to_string();
            assert!(told.contains("no such file or folder"), "{missing}: {told}");
        }
    }

    #[test]
    fn names_of_hubs_and_stores() {
        let of = |text: &str| GivenModel::of(Path::new(text), Path::new("engines"));
        for (text, source) in [
            ("Qwen/Qwen3-0.6B", hub("Qwen/Qwen3-0.6B")),
            ("Qwen/Qwen3-0.6B@v1", Source { revision: Some("v1".to_owned()), ..hub("Qwen/Qwen3-0.6B") }),
            ("hub:engines/x", hub("engines/x")),
            ("hub:src/x", hub("src/x")),
            ("ollama:llama3.2:1b", Source { ollama: Some("llama3.2:1b".to_owned()), ..Source::default() }),
        ] {
            assert_eq!(of(text), Ok(GivenModel::Source(GivenSource::boxed(text, source), None)));
        }
        // `src` is a folder here, and `engines` that of engines.
        for text in ["engines/x", "src/x"] {
            let told = of(text).unwrap_err().to_string();
            assert!(told.contains(&format!("`hub:{text}` looks for it on the hub")), "{told}");
        }
        let told = of("Qwen3-0.6B").unwrap_err().to_string();
        assert!(told.contains("OWNER/NAME on a hub, ollama:NAME"), "{told}");
        // Both: the crate's own folder of this name, and a repository that may be one.
        let Ok(GivenModel::Source(found, Some(note))) = of("tests/data") else { panic!("a folder") };
        assert_eq!(found.source.path.as_deref(), Some("tests/data"));
        assert!(note.contains("`hub:tests/data` names the hub's repository"), "{note}");
    }

    #[test]
    fn a_recipe_is_anothers_or_the_same() {
        let scratch = tempfile::tempdir().unwrap();
        let engines = scratch.path().join("engines");
        fs::create_dir_all(scratch.path().join("m")).unwrap();
        fs::create_dir_all(&engines).unwrap();
        fs::write(scratch.path().join("m/a.gguf"), "").unwrap();
        let path = |path: PathBuf| Source { path: Some(path.to_str().unwrap().to_owned()), ..Source::default() };
        let here = |name: &str| path(scratch.path().join(name));
        let with = |file: &str| Source { file: Some(file.to_owned()), ..hub("a/b") };
        let main = Source { revision: Some("main".to_owned()), ..hub("a/b") };
        let other = Source { revision: Some("v2".to_owned()), ..hub("a/b") };
        for (asked, has, same) in [
            (hub("a/b"), hub("a/b"), true),
            (hub("a/b"), main, true),
            (hub("a/b"), other, false),
            (hub("a/b"), hub("c/b"), false),
            (hub("a/b"), with("m.gguf"), true),
            (with("m.gguf"), with("n.gguf"), false),
            (here("m/a.gguf"), path(PathBuf::from("../m/a.gguf")), true),
            (here("m"), here("m/a.gguf"), true),
            (here("m/a.gguf"), here("m/b.gguf"), false),
            (here("m/a.gguf"), hub("m/a"), false),
        ] {
            assert_eq!(is_same(&asked, &has, &engines), same, "{asked:?} {has:?}");
        }
    }
}
