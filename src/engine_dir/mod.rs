//! An engine directory as one thing: what its manifest says, whether its files are what they were, and who runs it.
//!
//! Its layout and document are [`crate::manifest`]'s. `check.rs` looks at the files, `open.rs` opens a session or a language
//! model, `picture_model.rs` is the way from pictures to answers, `ultralytics.rs` writes what Ultralytics' engine files begin with.

mod check;
mod open;
mod picture_model;
mod ultralytics;

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::llm::head_name;
use crate::manifest::layout::{ENGINES, WEIGHTS, engine_file};
use crate::manifest::{GraphEngine, Manifest, ManifestError};
use crate::progress::Progress;

pub use check::Damage;
pub use open::BackendChoice;
pub use picture_model::{BatchSizes, PictureAnswer, PictureMeaning, PictureModel};
pub use ultralytics::add_metadata;

/// An engine directory whose manifest was read.
#[derive(Debug, Clone)]
pub struct EngineDir {
    folder: PathBuf,
    /// What it says.
    pub manifest: Manifest,
}

impl EngineDir {
    /// Reads the manifest, and no other file.
    pub fn load(folder: &Path) -> Result<Self, ManifestError> {
        Ok(Self { folder: folder.to_owned(), manifest: Manifest::load(folder)? })
    }

    /// The same of a directory whose files are what the manifest says; all of them are hashed if `full`.
    pub fn load_checked(folder: &Path, full: bool, progress: &dyn Progress) -> anyhow::Result<Self> {
        let engine = Self::load(folder)?;
        engine.check(full, progress)?;
        Ok(engine)
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Its one engine; a language model has many.
    pub fn graph(&self) -> anyhow::Result<&GraphEngine> {
        let name = &self.manifest.name;
        self.manifest.contents.graph().with_context(|| format!("{name} is a language model, which has many engines"))
    }

    /// One of a language model's engines, by its stem.
    pub fn llm_engine(&self, stem: &str) -> PathBuf {
        self.path(ENGINES).join(engine_file(stem))
    }

    /// An engine file that every such directory has.
    pub fn some_engine(&self) -> PathBuf {
        match self.manifest.contents.graph() {
            Some(graph) => self.path(&graph.engine),
            None => self.llm_engine(&head_name(1)),
        }
    }

    /// A language model's files of weights.
    pub fn weights(&self) -> Vec<PathBuf> {
        let names = self.manifest.contents.llm().into_iter().flat_map(|llm| &llm.weights);
        names.map(|name| self.path(WEIGHTS).join(name)).collect()
    }
}
