//! The keys and values of prompts' beginnings on disk, so that a restart does not lose them: [`StateDir`] is the folder,
//! [`PrefixStore`] what one engine keeps in it.
//!
//! Input: a scope, tokens, and for each layer the bytes that an executor exports. Output: the same, for the stored prefix of
//! which a new prompt can use most. A file is only read by the engine, with the layout, that wrote it (`format.rs`). What is
//! stored is bounded; the least recently used goes first (`index.rs`, `folder.rs`). A thread writes (`writer.rs`), so that no answer waits
//! for a disk; what cannot be written is a line in the log.
//!
//! The folder's secret keys the numbers of scopes, which thus are the same after a restart, and tell neither API keys nor
//! names of users to whoever finds the folder without knowing them.

mod folder;
mod format;
mod index;
mod writer;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rayon::prelude::*;

use self::folder::StoreFolder;
use self::format::PrefixHeader;
use self::index::PrefixIndex;
use self::writer::WriteJob;
use crate::artifact::{StagedFile, about};
use crate::diagnostic::Diagnostic;
use crate::regular_file;
use crate::spec::KvLayout;

pub use folder::PendingPrefix;
pub use index::StoredPrefix;

/// The folder below the one that is named. All of it is ours.
const FOLDER: &str = "prefixes";
const LOCK: &str = "lock";
const SECRET: &str = "secret";
/// Layers that are read and checked at a time, in parallel.
const TOGETHER: usize = 8;
/// Jobs that may wait for the disk.
const WAITING: usize = 4;

/// Secret that scopes are numbered with.
pub type Secret = [u8; 32];

/// A secret that nobody can guess.
pub fn random_secret() -> io::Result<Secret> {
    let mut secret = Secret::default();
    let source = Path::new("/dev/urandom");
    File::open(source).and_then(|mut file| file.read_exact(&mut secret)).map_err(about(source))?;
    Ok(secret)
}

/// A folder for the state of one server, locked as long as this or its [`PrefixStore`] lives.
pub struct StateDir {
    folder: PathBuf,
    lock: File,
    secret: Secret,
}

impl StateDir {
    /// Opens the state in `folder`, which is created if it does not exist.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let folder = folder.join(FOLDER);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(about(&folder))?;
        check_private(&folder)?;
        let path = folder.join(LOCK);
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.map_err(about(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = format!("{} is in use by another server", folder.display());
                return Err(io::Error::other(Diagnostic::new(what).with_help("give each server a --state of its own")));
            }
            Err(TryLockError::Error(error)) => return Err(about(&path)(error)),
        }
        let secret = secret(&folder.join(SECRET))?;
        Ok(Self { folder, lock, secret })
    }

    /// The secret that the scopes of stored prefixes are numbered with.
    pub fn secret(&self) -> Secret {
        self.secret
    }

    /// What an engine keeps here in at most `limit` bytes; `engine` names it and what computes with it. Files of others,
    /// and damaged ones, are removed.
    pub fn store(self, engine: String, layout: KvLayout, limit: u64) -> io::Result<PrefixStore> {
        let Self { folder: path, lock, .. } = self;
        let folder = StoreFolder {
            index: Mutex::new(PrefixIndex::default()),
            written: AtomicU64::new(0),
            path,
            engine,
            layout,
            limit,
            _lock: lock,
        };
        folder.scan()?;
        let folder = Arc::new(folder);
        let (jobs, receiver) = sync_channel(WAITING);
        let owner = Arc::clone(&folder);
        let writer = std::thread::Builder::new().name("state".to_owned());
        let writer = writer.spawn(move || writer::write(&owner, &receiver))?;
        Ok(PrefixStore { folder, jobs: Some(jobs), writer: Some(writer), loaded: 0 })
    }
}

/// Checks that a folder is one, of this user's, and closed to others.
fn check_private(folder: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(folder).map_err(about(folder))?;
    let what = if !found.is_dir() {
        "is no folder"
    } else if found.uid() != rustix::process::geteuid().as_raw() {
        "is another user's"
    } else if found.mode() & 0o077 != 0 {
        "is open to other users"
    } else {
        return Ok(());
    };
    let what = Diagnostic::new(format!("{} {what}, and would hold what clients wrote", folder.display()));
    Err(io::Error::other(what.with_help("remove it, or name another folder with --state")))
}

/// Reads the secret, or makes one.
fn secret(path: &Path) -> io::Result<Secret> {
    match regular_file::read(path, 1 << 10).map(Secret::try_from) {
        Ok(Ok(secret)) => return Ok(secret),
        Ok(Err(_)) => tracing::warn!("{} is damaged: what was stored with it is lost", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(about(path)(error)),
    }
    let secret = random_secret()?;
    let mut file = StagedFile::create_private(path).map_err(about(path))?;
    file.write_all(&secret).map_err(about(path))?;
    file.publish().map_err(about(path))?;
    Ok(secret)
}

/// What became of a layer that was given to the writer.
#[derive(Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is being written.
    Taken,
    /// The disk is busy: it is to be given again later.
    Later(Vec<u8>),
    /// The prefix cannot be written.
    Refused,
}

/// Numbers for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrefixCounts {
    /// Prefixes on disk.
    pub stored: usize,
    /// Bytes of their files.
    pub bytes: u64,
    /// Prefixes that were written since the start.
    pub written: u64,
    /// Prefixes that were read since the start.
    pub loaded: u64,
}

/// The stored prefixes of one engine. Dropped, it waits until what it was given is written.
pub struct PrefixStore {
    folder: Arc<StoreFolder>,
    jobs: Option<SyncSender<WriteJob>>,
    writer: Option<JoinHandle<()>>,
    loaded: u64,
}

impl PrefixStore {
    /// How keys and values are stored.
    pub fn layout(&self) -> KvLayout {
        self.folder.layout
    }

    /// Numbers for metrics.
    pub fn counts(&self) -> PrefixCounts {
        let (written, loaded) = (self.folder.written.load(Ordering::Relaxed), self.loaded);
        let index = self.folder.index();
        PrefixCounts { stored: index.len(), bytes: index.bytes(), written, loaded }
    }

    /// The `most` that were used last, the latest first.
    pub fn recent(&self, most: usize) -> Vec<StoredPrefix> {
        self.folder.index().recent().take(most).cloned().collect()
    }

    /// The prefix of which most positions are usable, and how many.
    pub fn longest(&self, usable: impl Fn(&StoredPrefix) -> usize) -> Option<(StoredPrefix, usize)> {
        self.folder.index().longest(usable).map(|(prefix, count)| (prefix.clone(), count))
    }

    /// Reads a prefix and hands each layer's keys and values to `take`. False if the file is damaged or gone, after any
    /// number of layers; `take` has seen nothing that is damaged.
    pub fn load<E>(
        &mut self,
        prefix: &StoredPrefix,
        mut take: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<bool, E> {
        let file = match self.folder.open(&prefix.name) {
            Ok(file) => file,
            Err(why) => {
                self.folder.discard(&prefix.name, &why);
                return Ok(false);
            }
        };
        let layers = self.folder.layout.layers;
        for first in (0..layers).step_by(TOGETHER) {
            let group = first..(first + TOGETHER).min(layers);
            let blocks: Vec<io::Result<Vec<u8>>> = group.into_par_iter().map(|layer| file.read(layer)).collect();
            for (layer, block) in (first..).zip(blocks) {
                match block {
                    Ok(block) => take(layer, &block)?,
                    Err(why) => {
                        self.folder.discard(&prefix.name, &why);
                        return Ok(false);
                    }
                }
            }
        }
        self.loaded += 1;
        self.folder.index().touch(&prefix.name);
        if let Some(jobs) = &self.jobs {
            // Only the order of eviction is at stake.
            let _ = jobs.try_send(WriteJob::Touch(prefix.name.clone()));
        }
        Ok(true)
    }

    /// A prefix to be written, layer by layer; `None` if it is larger than all may be.
    pub fn prepare(&self, scope: u64, tokens: Vec<u32>) -> Option<Arc<PendingPrefix>> {
        let StoreFolder { engine, layout, limit, .. } = &*self.folder;
        let header = PrefixHeader { engine: engine.clone(), layout: *layout, scope, tokens };
        let fits = header.file_bytes().is_ok_and(|bytes| bytes <= *limit);
        fits.then(|| Arc::new(PendingPrefix { header, is_refused: AtomicBool::new(false) }))
    }

    /// Gives the writer a layer of a prefix, each in turn; with the last it appears on disk.
    pub fn offer(&self, prefix: &Arc<PendingPrefix>, layer: usize, block: Vec<u8>) -> Offered {
        let Some(jobs) = self.jobs.as_ref().filter(|_| !prefix.is_refused.load(Ordering::Relaxed)) else {
            return Offered::Refused;
        };
        match jobs.try_send(WriteJob::Block { prefix: Arc::clone(prefix), layer, block }) {
            Ok(()) => Offered::Taken,
            Err(TrySendError::Full(WriteJob::Block { block, .. })) => Offered::Later(block),
            Err(_) => Offered::Refused,
        }
    }

    /// Gives up a prefix that is not complete.
    pub fn abandon(&self, prefix: &PendingPrefix) {
        prefix.is_refused.store(true, Ordering::Relaxed);
        if let Some(jobs) = &self.jobs {
            // Else the next one takes its place.
            let _ = jobs.try_send(WriteJob::Abandon);
        }
    }
}

impl Drop for PrefixStore {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

#[cfg(test)]
mod tests;
