//! The thread that writes prefixes.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::SystemTime;

use super::folder::{PendingPrefix, StoreFolder};
use super::format::{PrefixHeader, PrefixWriter};
use super::index::StoredPrefix;
use crate::artifact::free_space;
use crate::memory::format_bytes;

/// Bytes of the disk that are left to others.
const SPARED: u64 = 1 << 30;

/// What the thread is to do.
pub(super) enum WriteJob {
    /// Write a layer of a prefix; the first begins a file, the last gives it its name.
    Block { prefix: Arc<PendingPrefix>, layer: usize, block: Vec<u8> },
    /// Forget what is not complete.
    Abandon,
    /// Note on disk that a file was used.
    Touch(String),
}

/// Works until the store is gone.
pub(super) fn write(folder: &StoreFolder, jobs: &Receiver<WriteJob>) {
    let mut open: Option<(Arc<PendingPrefix>, PrefixWriter)> = None;
    // A full disk is told once, not with every prompt.
    let mut told = String::new();
    while let Ok(job) = jobs.recv() {
        match job {
            WriteJob::Block { prefix, layer, block } => {
                let begun = open.take().filter(|(of, writer)| Arc::ptr_eq(of, &prefix) && writer.layer == layer);
                match folder.append(begun.map(|(_, writer)| writer), &prefix.header, (layer, &block)) {
                    Ok(writer) => open = writer.map(|writer| (prefix, writer)),
                    Err(error) => {
                        prefix.is_refused.store(true, Ordering::Relaxed);
                        let (count, what) = (prefix.header.tokens.len(), error.to_string());
                        if told != what {
                            let path = folder.path.display();
                            tracing::warn!("a beginning of {count} tokens is not kept in {path}: {what}");
                            told = what;
                        }
                    }
                }
            }
            WriteJob::Abandon => open = None,
            WriteJob::Touch(name) => {
                // Where it fails, only the order of eviction after a restart is another.
                let _ = File::open(folder.path.join(name)).and_then(|file| file.set_modified(SystemTime::now()));
            }
        }
    }
}

impl StoreFolder {
    /// Writes a layer to the file that was begun, or begins one with the first. Returns the file if it is not complete.
    fn append(
        &self,
        begun: Option<PrefixWriter>,
        header: &PrefixHeader,
        (layer, block): (usize, &[u8]),
    ) -> io::Result<Option<PrefixWriter>> {
        let mut writer = match begun {
            Some(writer) => writer,
            None if layer == 0 => self.begin(header)?,
            // Of one that was given up.
            None => return Ok(None),
        };
        writer.append(block)?;
        if !writer.is_complete() {
            return Ok(Some(writer));
        }
        writer.publish(&self.path)?;
        let (tokens, name) = (header.tokens.as_slice().into(), header.name()?);
        let prefix = StoredPrefix { scope: header.scope, tokens, name, bytes: header.file_bytes()? };
        let covered = self.index().remove_covered(&prefix);
        covered.iter().for_each(|prefix| self.remove(&prefix.name));
        self.index().add(prefix);
        self.written.fetch_add(1, Ordering::Relaxed);
        Ok(None)
    }

    /// Begins a file, for which others make room.
    fn begin(&self, header: &PrefixHeader) -> io::Result<PrefixWriter> {
        let bytes = header.file_bytes()?;
        self.evict(bytes);
        let free = free_space(&self.path)?;
        if free < bytes.saturating_add(SPARED) {
            let [free, bytes, spared] = [free, bytes, SPARED].map(format_bytes);
            return Err(io::Error::other(format!("it takes {bytes}, {free} is free, and {spared} is left to others")));
        }
        PrefixWriter::create(&self.path, header)
    }
}
