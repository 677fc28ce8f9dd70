//! Recipes in code: what a recipe file says, said by a program, and built by the same stages.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::error::{Error, ErrorKind};
use super::source::{name_of, parse_source};
use crate::confined;
use crate::diagnostic::Diagnostic;
use crate::fetch::{Fetcher, Lock};
use crate::pipeline::{self, Context};
use crate::progress::{Progress, Silent};
use crate::recipe::{self, Build, Picture, Plan, Recipe, Source, Verify};
use crate::spec::Precision;
use crate::worker::Isolation;

/// Builds an engine directory from a recipe that is made in code.
///
/// [`Builder::yolo`], [`Builder::classifier`], [`Builder::llm`] and [`Builder::onnx`] begin one, and have the settings of their
/// kind; [`Builder::from_file`] and [`Builder::from_yaml`] take one that is written. What is not said is as in a recipe file, and
/// what a recipe file must not say is an error of [`Builder::build`].
///
/// A source is a text, as recipes and `watus-build inspect` name it: `path:yolo11n.pt` (or the path alone),
/// `hub:OWNER/NAME` or `hub:OWNER/NAME@REVISION`, `ollama:llama3.2:1b`, `pypi:PACKAGE==VERSION/FILE`, or an https address, which
/// needs [`Builder::sha256`].
///
/// TensorRT builds in a process of its own, which is this program started again: call
/// `watus_build::enable_child_processes()` first thing in `main`, or take [`Builder::in_process`].
///
/// ```no_run
/// # fn main() -> Result<(), watus_build::Error> {
/// use watus_build::{Builder, Detector, Precision};
///
/// let built = Builder::yolo("path:yolo11n.pt")
///     .image_size(640)
///     .precision(Precision::Fp16)
///     .verify_images(["street.jpg"])
///     .build("engines")?;
/// let detector = Detector::open(&built.folder)?;
/// # let _ = detector;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Builder<R = Recipe> {
    pub(super) recipe: R,
    pub(super) build: Build,
    pub(super) verify: Verify,
    name: Option<String>,
    source: Option<Source>,
    sha256: Option<String>,
    /// Of the recipe's file; of one in code a name in the folder that its paths are relative to.
    place: Option<PathBuf>,
    folder: PathBuf,
    lock: Option<PathBuf>,
    offline: bool,
    rebuild: bool,
    force: bool,
    in_process: bool,
    progress: Arc<dyn Progress>,
    cancel: Arc<AtomicBool>,
}

/// An engine directory that is there now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuiltEngine {
    /// The engine directory.
    pub folder: PathBuf,
    /// It was there already and nothing it depends on had changed, so nothing was built.
    pub was_current: bool,
    /// TensorRT and GPU on which its numbers were verified; `None` where nothing here could execute it.
    pub executed_on: Option<String>,
}

impl<R> Builder<R> {
    /// With a recipe's own build and verification settings.
    pub(super) fn new(recipe: R, build: Build, verify: Verify) -> Self {
        Self {
            recipe,
            build,
            verify,
            name: None,
            source: None,
            sha256: None,
            place: None,
            folder: PathBuf::new(),
            lock: None,
            offline: false,
            rebuild: false,
            force: false,
            in_process: false,
            progress: Arc::new(Silent),
            cancel: Arc::default(),
        }
    }

    /// Name and source of a recipe that begins with a source.
    pub(super) fn named(source: &str) -> (String, Source) {
        let source = parse_source(source);
        (name_of(&source), source)
    }

    /// Name of the engine directory: letters, digits, `.`, `_`, `-`. Default: the source's.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Where the model comes from, with every field that a recipe has for it.
    #[must_use]
    pub fn source(mut self, source: Source) -> Self {
        self.source = Some(source);
        self
    }

    /// SHA-256 of the source's file, in hexadecimal.
    #[must_use]
    pub fn sha256(mut self, digest: impl Into<String>) -> Self {
        self.sha256 = Some(digest.into());
        self
    }

    /// Arithmetic of the engine. Default: fp16 for a language model, else fp32.
    #[must_use]
    pub fn precision(mut self, precision: Precision) -> Self {
        self.build.precision = Some(precision);
        self
    }

    /// The largest batch that the engine takes: of images, or of an ONNX file's inputs whose first dimension is dynamic. Default: 1,
    /// or an ONNX file's `batch`. A language model has [`Builder::max_batch_size`] instead.
    #[must_use]
    pub fn max_batch(mut self, batch: u32) -> Self {
        self.build.max_batch = Some(batch);
        self
    }

    /// All settings of the build, in place of those that were said so far.
    #[must_use]
    pub fn build_settings(mut self, settings: Build) -> Self {
        self.build = settings;
        self
    }

    /// All settings of the verification, in place of those that were said so far.
    #[must_use]
    pub fn verify_settings(mut self, settings: Verify) -> Self {
        self.verify = settings;
        self
    }

    /// Images that the engine is verified on, files or folders.
    #[must_use]
    pub fn verify_images<P: AsRef<Path>>(mut self, images: impl IntoIterator<Item = P>) -> Self {
        let images = images.into_iter().map(|path| Picture::Path(path.as_ref().to_string_lossy().into_owned()));
        self.verify.images.get_or_insert_default().extend(images);
        self
    }

    /// Random inputs that the engine is verified on.
    #[must_use]
    pub fn verify_seeds(mut self, seeds: u32) -> Self {
        self.verify.seeds = Some(seeds);
        self
    }

    /// The largest error that the verification allows; what it measures depends on the kind, as recipes say.
    #[must_use]
    pub fn verify_tolerance(mut self, tolerance: f64) -> Self {
        self.verify.tolerance = Some(tolerance);
        self
    }

    /// The folder that paths are relative to. Default: the recipe file's, or the current one.
    #[must_use]
    pub fn relative_to(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = folder.into();
        self
    }

    /// Where it is kept what branches and tags of hubs stood for. Default: `watus.lock` in the folder that paths are relative to.
    #[must_use]
    pub fn lock_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.lock = Some(path.into());
        self
    }

    /// Fetches nothing: sources are taken from the cache. Default: false, or what `HF_HUB_OFFLINE` says.
    #[must_use]
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Builds even if nothing has changed. Default: false.
    #[must_use]
    pub fn rebuild(mut self, rebuild: bool) -> Self {
        self.rebuild = rebuild;
        self
    }

    /// Goes on against the memory estimate, and publishes against the verification. Default: false.
    #[must_use]
    pub fn force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    /// Runs TensorRT in this process. When memory runs out, the kernel then takes this program and not the build. Default: false.
    #[must_use]
    pub fn in_process(mut self, in_process: bool) -> Self {
        self.in_process = in_process;
        self
    }

    /// Receives stages, downloads and warnings. Default: they are dropped.
    #[must_use]
    pub fn progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// Stops the build, from another thread, when it is set to true.
    #[must_use]
    pub fn cancel(mut self, cancel: Arc<AtomicBool>) -> Self {
        self.cancel = cancel;
        self
    }
}

impl Builder<Recipe> {
    /// A recipe file.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let builder = Self::of(recipe::load(path).map_err(Error::of)?);
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Self { place: Some(path.to_owned()), folder, ..builder })
    }

    /// The text of a recipe file.
    pub fn from_yaml(text: &str) -> Result<Self, Error> {
        Ok(Self::of(recipe::parse(Path::new("recipe"), text).map_err(Error::of)?))
    }

    /// A recipe of any kind.
    pub fn of(recipe: Recipe) -> Self {
        let (build, verify) = (recipe.build().cloned(), recipe.verify().cloned());
        Self::new(recipe, build.unwrap_or_default(), verify.unwrap_or_default())
    }
}

impl<R: Into<Recipe>> Builder<R> {
    /// The recipe that was made, checked as a file is.
    pub fn recipe(self) -> Result<Recipe, Error> {
        let mut recipe: Recipe = self.recipe.into();
        let fields = recipe.shared_fields();
        if let Some(name) = self.name {
            *fields.name = name;
        }
        if let Some(source) = self.source {
            *fields.source = source;
        }
        if self.sha256.is_some() {
            fields.source.sha256 = self.sha256;
        }
        *fields.build = (self.build != Build::default()).then_some(self.build);
        *fields.verify = (self.verify != Verify::default()).then_some(self.verify);
        recipe::validate(&recipe).map_err(Error::of)
    }

    /// Fetches the source, builds the engine, verifies it, and publishes the directory `output`/NAME. What is there and current
    /// stays.
    pub fn build(self, output: impl AsRef<Path>) -> Result<BuiltEngine, Error>
    where
        R: Clone,
    {
        let recipe = self.clone().recipe()?;
        let place = self.place.filter(|place| place.parent() == Some(&*self.folder));
        let place = place.unwrap_or_else(|| self.folder.join(format!("{}.yaml", recipe.name())));
        let plan = Plan::new(&place, &recipe);
        let mut fetcher = Fetcher::from_env(Arc::clone(&self.progress), Arc::clone(&self.cancel));
        fetcher.offline |= self.offline;
        let context = Context {
            output: output.as_ref().to_owned(),
            fetcher,
            rebuild: self.rebuild,
            force: self.force,
            isolation: isolation(self.in_process)?,
            progress: self.progress,
            cancel: self.cancel,
        };
        let lock = self.lock.unwrap_or_else(|| self.folder.join("watus.lock"));
        let mut lock = Lock::open(&lock).map_err(Error::of)?;
        let prepared = pipeline::prepare(&plan, &context, &mut lock).map_err(Error::of)?;
        let outcome = pipeline::build(prepared, &context).map_err(Error::of)?;
        let executed_on = outcome.report.and_then(|report| report.executed_on);
        Ok(BuiltEngine { folder: outcome.folder, was_current: outcome.cached, executed_on })
    }
}

/// Where TensorRT builds.
fn isolation(in_process: bool) -> Result<Isolation, Error> {
    match confined::program() {
        _ if in_process => Ok(Isolation::InProcess),
        Some(_) => Ok(Isolation::Child),
        None => {
            let message = Diagnostic::new("a build needs a process of its own, and this program starts none").with_help(
                "call `watus_build::enable_child_processes()` first thing in `main`, or build with `in_process(true)`",
            );
            Err(Error::new(ErrorKind::Unavailable, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_says_what_a_file_says() {
        let yaml = "version: 1\nname: yolo11n\nkind: yolo\nsource: { path: models/yolo11n.pt }\nimage_size: [480, 640]\n\
                    confidence: 0.5\nbuild: { precision: fp16 }\nverify: { images: [a.jpg, b.jpg], seeds: 2 }\n";
        let made = Builder::yolo("path:models/yolo11n.pt").image_sides(480, 640).confidence(0.5);
        let made = made.precision(Precision::Fp16).verify_images(["a.jpg", "b.jpg"]).verify_seeds(2);
        assert_eq!(made.recipe().unwrap(), Builder::from_yaml(yaml).unwrap().recipe().unwrap());

        let yaml =
            "version: 1\nname: qwen\nkind: llm\nsource: { hub: Qwen/Qwen3-4B, revision: v1 }\nmax_input_len: 512\n";
        let made = Builder::llm("hub:Qwen/Qwen3-4B@v1").name("qwen").max_input_len(512);
        assert_eq!(made.recipe().unwrap(), Builder::from_yaml(yaml).unwrap().recipe().unwrap());
        let changed = Builder::from_yaml(yaml).unwrap().name("other").precision(Precision::Int8).recipe().unwrap();
        assert_eq!((changed.name(), changed.build().unwrap().precision), ("other", Some(Precision::Int8)));

        let yaml = "version: 1\nname: a\nkind: onnx\nsource: { path: a.onnx }\nbuild: { batch: 2, max_batch: 4 }\n";
        let made = Builder::onnx("a.onnx").batch(2).max_batch(4);
        assert_eq!(made.recipe().unwrap(), Builder::from_yaml(yaml).unwrap().recipe().unwrap());
    }

    #[test]
    fn what_a_file_must_not_say_code_must_not() {
        let error = Builder::yolo("a.pt").iou(1.5).recipe().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Recipe);
        assert!(error.message().starts_with("recipe `a`: ") && error.message().contains("iou"), "{error}");
        let error = Builder::classifier("https://example.org/a.onnx").recipe().unwrap_err();
        assert!(error.message().contains("needs `sha256`"), "{error}");
        let error = Builder::llm("hub:Qwen/Qwen3-4B").max_batch(2).recipe().unwrap_err();
        assert!(
            error.message().contains("max_batch") && error.help().is_some_and(|help| help.contains("max_batch_size"))
        );
        let error = Builder::from_yaml("version: 1\nkind: yolo\nnme: x\n").err().unwrap();
        assert_eq!((error.kind(), error.help()), (ErrorKind::Recipe, Some("did you mean `name`?")));
        // A test's program answers to nothing as a child.
        let error = Builder::onnx("a.onnx").build("engines").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
}
