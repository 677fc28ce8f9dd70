//! The files of a store, and what is done with those that cannot be used.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::format::{self, PrefixFile, PrefixHeader};
use super::index::{PrefixIndex, StoredPrefix};
use crate::artifact::about;
use crate::spec::KvLayout;

/// A prefix on its way to disk.
#[derive(Debug)]
pub struct PendingPrefix {
    pub(super) header: PrefixHeader,
    /// Whether it cannot be written.
    pub(super) is_refused: AtomicBool,
}

/// What the store shares with its writer.
pub(super) struct StoreFolder {
    pub(super) path: PathBuf,
    pub(super) engine: String,
    pub(super) layout: KvLayout,
    /// Most bytes of all files.
    pub(super) limit: u64,
    pub(super) index: Mutex<PrefixIndex>,
    /// Number of prefixes that were written since the start.
    pub(super) written: AtomicU64,
    /// Kept as long as somebody writes.
    pub(super) _lock: File,
}

impl StoreFolder {
    pub(super) fn index(&self) -> MutexGuard<'_, PrefixIndex> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the file called `name`, which must be of this engine.
    pub(super) fn open(&self, name: &str) -> io::Result<PrefixFile> {
        let file = PrefixFile::open(&self.path.join(name))?;
        if file.header.engine != self.engine || file.header.layout != self.layout {
            return Err(io::Error::other("it is of another engine"));
        }
        Ok(file)
    }

    /// Finds what is stored, and removes what cannot be used and what writers that were killed have left.
    pub(super) fn scan(&self) -> io::Result<()> {
        let mut found: Vec<(SystemTime, StoredPrefix)> = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(about(&self.path))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // No other writer lives: the folder is locked.
            if name.starts_with('.') && name.contains(".staging-") {
                self.remove(&name);
            }
            if !format::is_stored(&name) {
                continue;
            }
            match self.open(&name).and_then(|file| Ok((entry.metadata()?.modified()?, file))) {
                Ok((used, PrefixFile { header: PrefixHeader { scope, tokens, .. }, bytes, .. })) => {
                    found.push((used, StoredPrefix { scope, tokens: tokens.into(), name, bytes }));
                }
                Err(why) => self.discard(&name, &why),
            }
        }
        found.sort_by_key(|(used, _)| *used);
        found.into_iter().for_each(|(_, prefix)| self.index().add(prefix));
        self.evict(0);
        Ok(())
    }

    /// Removes those used longest ago, so that there is room for `bytes` more.
    pub(super) fn evict(&self, bytes: u64) {
        let evicted = self.index().make_room(bytes, self.limit);
        evicted.iter().for_each(|prefix| self.remove(&prefix.name));
    }

    pub(super) fn remove(&self, name: &str) {
        let path = self.path.join(name);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
    }

    /// Removes what cannot be used, with a line in the log.
    pub(super) fn discard(&self, name: &str, why: &io::Error) {
        self.index().remove(name);
        tracing::warn!("{}: {why}; it is removed", self.path.join(name).display());
        self.remove(name);
    }
}
