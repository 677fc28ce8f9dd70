//! A file mapped into memory, read only.
#![allow(unsafe_code)]

use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::CheckpointError;
use crate::regular_file;

/// A mapped file and its path, for messages.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    map: Mmap,
}

impl Mapped {
    /// Maps `path`; nothing is read yet.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let fail = |error: std::io::Error| CheckpointError::new(path, error.to_string());
        let file = regular_file::open(path).map_err(fail)?;
        // SAFETY: the map is read only. A file that another process truncates while it is mapped ends this one with
        // SIGBUS; engine directories hold hard links that nobody writes to.
        let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets go of the pages that were read; they come back from the file when they are read again.
    pub fn release(&self) {
        // SAFETY: the map is of a file and read only, so dropped pages hold nothing that is not in the file.
        let _ = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}
