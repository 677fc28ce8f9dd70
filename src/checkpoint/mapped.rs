//! A file mapped into memory, read only.
#![allow(unsafe_code)]

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;
use rustix::fs::{Advice, fadvise};

use super::{Checkpoint, CheckpointError, View};
use crate::regular_file;

/// Bytes a core reads at a time.
const READ: usize = 1 << 20;

/// A mapped file and its path, for messages.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    file: File,
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
        Ok(Self { path: path.to_owned(), file, map })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Reads what lies at `offset` into `out`, on all cores and past the mapping: pages that nobody maps cost no faults and
    /// leave the page cache when they are told to.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), CheckpointError> {
        let read = out.par_chunks_mut(READ).enumerate().try_for_each(|(index, out)| {
            let place = index.checked_mul(READ).and_then(|at| offset.checked_add(at));
            let place = place.and_then(|place| u64::try_from(place).ok());
            let place = place.ok_or_else(|| std::io::Error::other("a tensor lies beyond what a file can hold"))?;
            self.file.read_exact_at(out, place)
        });
        read.map_err(|error| CheckpointError::new(&self.path, format!("cannot read bytes from {offset} on: {error}")))
    }

    /// Lets go of the pages of a range, here and in the page cache; they come back from the file when they are read again.
    /// Pages that another process maps stay, and so does what was never written to the disk.
    pub fn release(&self, range: Range<usize>) {
        let page = rustix::param::page_size();
        // Whole pages: the cache gives up no part of one, and a neighbour whose page goes too finds it again.
        let start = range.start / page * page;
        let end = range.end.checked_next_multiple_of(page).unwrap_or(usize::MAX).min(self.map.len());
        let bytes = end.saturating_sub(start);
        if bytes == 0 {
            return;
        }
        // The page cache keeps what is mapped, and a mapping that lets go leaves its pages in the cache.
        // SAFETY: the map is of a file and read only, so dropped pages hold nothing that is not in the file.
        let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, bytes) };
        if let (Ok(start), Ok(bytes)) = (u64::try_from(start), u64::try_from(bytes)) {
            let _ = fadvise(&self.file, start, NonZeroU64::new(bytes), Advice::DontNeed);
        }
    }
}

impl Checkpoint {
    /// Lets go of the pages of a tensor's `rows`, which were copied. Rows that do not lie in the file as they are read, and the
    /// parts of a packed matrix, go with the last row.
    pub fn release(&self, view: &View<'_>, rows: Range<usize>) {
        let file = &self.files[view.file];
        if view.is_in_order() && !view.is_packed() {
            let row = view.bytes.len() / view.rows().max(1);
            let place = |index: usize| view.offset.saturating_add(index.saturating_mul(row));
            return file.release(place(rows.start)..place(rows.end));
        }
        if rows.end < view.rows() {
            return;
        }
        file.release(view.offset..view.offset.saturating_add(view.bytes.len()));
        for entry in view.packed.iter().flat_map(|packed| packed.entries()) {
            self.files[entry.file].release(entry.offset..entry.offset.saturating_add(entry.bytes));
        }
    }

    /// Lets go of all pages: also of those between tensors, and of pages that the kernel keeps in larger pieces than a tensor.
    pub fn release_all(&self) {
        self.files.iter().for_each(|file| file.release(0..file.bytes().len()));
    }
}

#[cfg(test)]
#[allow(clippy::print_stderr)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::memory::page_cache::Watched;

    const PAGE: usize = 1 << 16;

    /// A file of 16 MiB on a disk, all of it cached; none where files live in the page cache alone (tmpfs, as /tmp may be).
    fn cached_file() -> Option<(tempfile::TempDir, PathBuf, Vec<u8>)> {
        // Beside the compiled tests: a build folder is on a disk more often than /tmp is.
        let beside = std::env::current_exe().ok()?;
        let folder = tempfile::tempdir_in(beside.parent()?).ok()?;
        // statfs(2): TMPFS_MAGIC and RAMFS_MAGIC.
        let kind = rustix::fs::statfs(folder.path()).ok()?.f_type;
        if kind == 0x0102_1994 || kind == 0x8584_58f6 {
            return None;
        }
        let bytes: Vec<u8> = (0..4_194_304_u32).flat_map(|word| (word ^ 0x5a5a).to_le_bytes()).collect();
        let path = folder.path().join("weights");
        let mut file = File::create(&path).ok()?;
        file.write_all(&bytes).ok()?;
        // What is not on the disk yet cannot leave the cache.
        file.sync_all().ok()?;
        Some((folder, path, bytes))
    }

    #[test]
    fn released_pages_leave_the_page_cache() {
        let Some((_folder, path, bytes)) = cached_file() else {
            return eprintln!("SKIPPED released_pages_leave_the_page_cache: files here live in memory");
        };
        let (file, watched) = (Mapped::open(&path).unwrap(), Watched::open(&path).unwrap());
        let size = |bytes: usize| u64::try_from(bytes).unwrap();
        assert_eq!(watched.cached().unwrap(), size(bytes.len()), "what was just written is cached");
        // Read through the mapping, as blocks are.
        assert_eq!(file.bytes(), bytes);
        file.release(0..bytes.len() / 2);
        let half = watched.cached().unwrap();
        // The kernel may keep pages in larger pieces, which leave only in one go.
        assert!(half <= size(bytes.len() / 2 + (1 << 21)), "{half} bytes are cached after the first half was released");
        file.release(0..bytes.len());
        let rest = watched.cached().unwrap();
        if rest > 0 && half == size(bytes.len()) {
            // A filesystem that ignores the advice, as some of containers do.
            assert!(std::env::var("CI").as_deref() != Ok("true"), "must not be skipped in CI");
            return eprintln!("SKIPPED released_pages_leave_the_page_cache: the filesystem keeps them");
        }
        assert_eq!(rest, 0, "bytes are cached after all was released");
        // They come back, through the mapping and past it, and go again.
        assert_eq!(file.bytes(), bytes);
        let mut read = vec![0; bytes.len() - 12_345];
        file.read(12_345, &mut read).unwrap();
        assert_eq!(read, bytes[12_345..]);
        assert!(watched.cached().unwrap() >= size(read.len()));
        file.release(0..usize::MAX);
        assert_eq!(watched.cached().unwrap(), 0);
    }

    #[test]
    fn what_is_not_released_stays() {
        let Some((_folder, path, bytes)) = cached_file() else {
            return eprintln!("SKIPPED what_is_not_released_stays: files here live in memory");
        };
        let (file, watched) = (Mapped::open(&path).unwrap(), Watched::open(&path).unwrap());
        let all = watched.cached().unwrap();
        // Nothing, and what is beyond the end.
        file.release(PAGE..PAGE);
        file.release(bytes.len()..usize::MAX);
        assert_eq!(watched.cached().unwrap(), all);
        let mut beyond = [0; 8];
        let error = file.read(bytes.len() - 4, &mut beyond).unwrap_err().to_string();
        assert!(error.contains("weights: cannot read bytes from 16777212 on"), "{error}");
    }
}
