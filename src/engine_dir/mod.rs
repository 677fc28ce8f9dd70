//! [`EngineDir`], an opened engine directory: its manifest, the check of its files, and the backend that runs it.
//!
//! [`crate::manifest`] defines the layout and the document. `check.rs` checks the files, `fit.rs` whether it was built for
//! this machine and program. `open.rs` opens a session or a language model, for which `model.rs` knows the files and both
//! executors; `picture_model.rs` turns images into inputs and outputs into answers, `ultralytics.rs` writes the metadata
//! at the start of Ultralytics' engine files.

mod check;
mod fit;
pub mod model;
mod open;
mod picture_model;
mod ultralytics;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::artifact::sha256;
use crate::backend::BackendInfo;
use crate::executor::head_name;
use crate::manifest::layout::{ENGINES, WEIGHTS, engine_file};
use crate::manifest::{GraphEngine, Manifest, ManifestError};
use crate::progress::Progress;

pub use check::Damage;
pub use fit::{Here, TOOL};
pub use open::BackendChoice;
pub use picture_model::{BatchSizes, PictureAnswer, PictureMeaning, PictureModel};
pub use ultralytics::add_metadata;

/// An engine directory whose manifest has been read.
#[derive(Debug, Clone)]
pub struct EngineDir {
    folder: PathBuf,
    /// The manifest.
    pub manifest: Manifest,
}

impl EngineDir {
    /// Reads the manifest, and no other file.
    pub fn load(folder: &Path) -> Result<Self, ManifestError> {
        Ok(Self { folder: folder.to_owned(), manifest: Manifest::load(folder)? })
    }

    /// Reads the manifest and checks the files against it; `full` hashes all of them.
    pub fn load_checked(folder: &Path, full: bool, progress: &dyn Progress) -> anyhow::Result<Self> {
        let engine = Self::load(folder)?;
        engine.check(full, progress)?;
        Ok(engine)
    }

    /// Keeps `remove` from taking the directory away for as long as the result lives; `None` if its file system has no locks.
    pub fn hold(&self) -> Option<File> {
        let folder = File::open(&self.folder).ok()?;
        folder.lock_shared().ok().map(|()| folder)
    }

    /// Path of the directory.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The engine of a vision or ONNX model; an error for a language model, which has several.
    pub fn graph(&self) -> anyhow::Result<&GraphEngine> {
        let name = &self.manifest.name;
        self.manifest.contents.graph().with_context(|| format!("{name} is a language model, which has many engines"))
    }

    /// Path of one of a language model's engines, by its file stem.
    pub fn llm_engine(&self, stem: &str) -> PathBuf {
        self.path(ENGINES).join(engine_file(stem))
    }

    /// Path of an engine file that exists in every such directory.
    pub fn some_engine(&self) -> PathBuf {
        match self.manifest.contents.graph() {
            Some(graph) => self.path(&graph.engine),
            None => self.llm_engine(&head_name(1)),
        }
    }

    /// What keys and values depend on beside the tokens, as a digest: the files of the directory, what they were built
    /// from, this program's version, and the backend that computes.
    pub fn state_key(&self, backend: &BackendInfo) -> String {
        let mut parts = format!("{}\n{}\n", env!("CARGO_PKG_VERSION"), backend.name);
        for (part, value) in &self.manifest.key.0 {
            parts.push_str(&format!("{part:?} {value:?}\n"));
        }
        for (name, record) in &self.manifest.files {
            parts.push_str(&format!("{name:?} {:?}\n", record.sha256));
        }
        sha256(parts.as_bytes())
    }

    /// Paths of a language model's weight files.
    pub fn weights(&self) -> Vec<PathBuf> {
        let names = self.manifest.contents.llm().into_iter().flat_map(|llm| &llm.weights);
        names.map(|name| self.path(WEIGHTS).join(name)).collect()
    }
}
