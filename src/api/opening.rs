//! Engine directories opened as `watus-build run` opens them: files checked, backend chosen.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Error, ErrorKind};
use crate::backend::Session;
use crate::backend::cpu::Reference;
use crate::backend::isolated::Isolated;
use crate::confined;
use crate::diagnostic::Diagnostic;
use crate::engine_dir::model::Runner;
use crate::engine_dir::{BackendChoice, EngineDir, PictureMeaning, PictureModel};
use crate::progress::{Event, Progress, Silent};
use crate::spec::Kind;

/// What is to be opened, and how.
pub(super) struct Opening {
    folder: PathBuf,
    pub(super) backend: BackendChoice,
    pub(super) hash_all: bool,
    pub(super) progress: Arc<dyn Progress>,
}

/// A model of images with what computes it.
pub(super) struct OpenedPictureModel {
    pub(super) name: String,
    pub(super) model: PictureModel,
    pub(super) session: Box<dyn Session>,
}

/// What every builder has.
macro_rules! opening_methods {
    () => {
        /// Backend to run on. Default: [`BackendChoice::Auto`], the GPU if there is one.
        #[must_use]
        pub fn backend(mut self, backend: BackendChoice) -> Self {
            self.opening.backend = backend;
            self
        }

        /// Hashes every file of the directory before it is used, also large ones that were hashed on this machine before.
        /// Default: false.
        #[must_use]
        pub fn hash_all_files(mut self, all: bool) -> Self {
            self.opening.hash_all = all;
            self
        }

        /// Receives progress events and warnings (of a missing GPU, say). Default: they are dropped.
        #[must_use]
        pub fn progress(mut self, progress: std::sync::Arc<dyn $crate::progress::Progress>) -> Self {
            self.opening.progress = progress;
            self
        }
    };
}
pub(super) use opening_methods;

impl Opening {
    pub(super) fn new(folder: &Path) -> Self {
        let (folder, backend) = (folder.to_owned(), BackendChoice::Auto);
        Self { folder, backend, hash_all: false, progress: Arc::new(Silent) }
    }

    /// The directory, its files checked.
    pub(super) fn engine(&self) -> Result<EngineDir, Error> {
        EngineDir::load_checked(&self.folder, self.hash_all, &*self.progress).map_err(Error::of)
    }

    /// Who computes.
    pub(super) fn runner(&self, engine: &EngineDir) -> Result<Runner, Error> {
        engine.choose(self.backend, &|text| self.progress.event(Event::Warning(text))).map_err(Error::of)
    }

    /// What takes images, and says of them what `wanted` wants.
    pub(super) fn picture_model(&self, wanted: fn(&PictureMeaning) -> bool) -> Result<OpenedPictureModel, Error> {
        let engine = self.engine()?;
        let name = engine.manifest.name.clone();
        let model = engine.picture_model().map_err(Error::of)?;
        let Some(model) = model.filter(|model| wanted(&model.meaning)) else { return Err(misfit(&engine)) };
        let runner = self.runner(&engine)?;
        // Where this program may be started again as a child, the reference runs in one, under limits.
        let session = match confined::program() {
            Some(program) => engine.session(runner, &Isolated::new(program.to_owned())),
            None => engine.session(runner, &Reference),
        };
        Ok(OpenedPictureModel { name, model, session: session.map_err(Error::of)? })
    }
}

/// That the directory holds another kind of model, and what opens it.
pub(super) fn misfit(engine: &EngineDir) -> Error {
    let contents = &engine.manifest.contents;
    let (what, help) = match (contents.kind(), contents.classifier()) {
        (Kind::Llm, _) => ("a language model", "open it with `ChatModel`"),
        (Kind::Classifier, _) | (Kind::Yolo, Some(_)) => ("an image classifier", "open it with `Classifier`"),
        (Kind::Yolo, None) => ("a detector", "open it with `Detector`"),
        (Kind::Onnx, _) => ("a model of tensors", "open it with `engine_dir::EngineDir::session`"),
    };
    let message = format!("{} is {what}", engine.folder().display());
    Error::new(ErrorKind::NotAnEngine, Diagnostic::new(message).with_help(help))
}
