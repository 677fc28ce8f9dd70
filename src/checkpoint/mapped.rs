//! Read-only memory-mapped files.
#![allow(unsafe_code)]

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use memmap2::Mmap;
use rayon::prelude::*;
use rustix::fs::{Advice, fadvise};

use super::{Checkpoint, CheckpointError, View};
use crate::regular_file;

/// Bytes that a core reads at a time.
const READ: usize = 1 << 20;

/// Distance in bytes beyond a range that its pages may extend: the kernel keeps pages in pieces of up to 2 MiB, which
/// are only dropped as a whole, and reads ahead.
const AROUND: usize = 8 << 20;

/// A mapped file, with its path for messages.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    file: File,
    map: Mmap,
    released: Mutex<Released>,
}

/// Ranges of a file whose pages were released, in order and not adjacent.
#[derive(Debug, Default)]
struct Released(Vec<Range<usize>>);

impl Released {
    /// Adds a range; returns it extended by adjacent ranges that were released before, by at most [`AROUND`] on either
    /// side. A piece of the page cache that spans two tensors is thus dropped with the second, and so is what was read
    /// ahead into the first.
    fn add(&mut self, range: Range<usize>) -> Range<usize> {
        let first = self.0.partition_point(|other| other.end < range.start);
        let last = self.0.partition_point(|other| other.start <= range.end);
        let touching = &self.0[first..last];
        let start = touching.first().map_or(range.start, |other| other.start.min(range.start));
        let end = touching.last().map_or(range.end, |other| other.end.max(range.end));
        self.0.splice(first..last, std::iter::once(start..end));
        start.max(range.start.saturating_sub(AROUND))..end.min(range.end.saturating_add(AROUND))
    }
}

impl Mapped {
    /// Maps `path`, without reading it.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let fail = |error: std::io::Error| CheckpointError::new(path, error.to_string());
        let file = regular_file::open(path).map_err(fail)?;
        // SAFETY: the map is read only. A file that another process truncates while it is mapped ends this one with
        // SIGBUS; engine directories hold hard links that nobody writes to.
        let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
        Ok(Self { path: path.to_owned(), file, map, released: Mutex::default() })
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Content of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Reads the bytes at `offset` into `out` on all cores with read calls instead of the mapping: unmapped pages cause
    /// no faults, and can be dropped from the page cache.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), CheckpointError> {
        let read = out.par_chunks_mut(READ).enumerate().try_for_each(|(index, out)| {
            let place = index.checked_mul(READ).and_then(|at| offset.checked_add(at));
            let place = place.and_then(|place| u64::try_from(place).ok());
            let place = place.ok_or_else(|| std::io::Error::other("a tensor lies beyond what a file can hold"))?;
            self.file.read_exact_at(out, place)
        });
        read.map_err(|error| CheckpointError::new(&self.path, format!("cannot read bytes from {offset} on: {error}")))
    }

    /// Releases the pages of a range, from this process and from the page cache, with what is left of adjacent ranges
    /// that were released before. They are read from the file again when accessed. Pages that another process maps, or
    /// that were never written to disk, stay.
    pub fn release(&self, range: Range<usize>) {
        let page = rustix::param::page_size();
        // Whole pages: the cache gives up no part of one, and a neighbour whose page goes too finds it again.
        let start = range.start / page * page;
        let end = range.end.checked_next_multiple_of(page).unwrap_or(usize::MAX).min(self.map.len());
        if start >= end {
            return;
        }
        let Range { start, end } = self.released.lock().unwrap_or_else(PoisonError::into_inner).add(start..end);
        let bytes = end - start;
        // The page cache keeps what is mapped, and a mapping that lets go leaves its pages in the cache.
        // SAFETY: the map is of a file and read only, so dropped pages hold nothing that is not in the file.
        let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, bytes) };
        if let (Ok(start), Ok(bytes)) = (u64::try_from(start), u64::try_from(bytes)) {
            let _ = fadvise(&self.file, start, NonZeroU64::new(bytes), Advice::DontNeed);
        }
    }
}

impl Checkpoint {
    /// Releases the pages of a tensor's `rows` after they were copied. Rows that are not stored in the order they are
    /// read, and the parts of a packed matrix, are released with the last row.
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

    /// Releases all pages, also those between tensors, and those that the kernel keeps in larger pieces than a tensor.
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

    /// A file of 16 MiB on a disk, fully cached; `None` on file systems in memory (tmpfs, as /tmp may be).
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
    fn pieces_leave_in_any_order() {
        let Some((_folder, path, bytes)) = cached_file() else {
            return eprintln!("SKIPPED pieces_leave_in_any_order: files here live in memory");
        };
        let (file, watched) = (Mapped::open(&path).unwrap(), Watched::open(&path).unwrap());
        // Tensors begin and end anywhere, and are let go of as the model wants them: every second one, then the others.
        const PIECE: usize = 1_234_567;
        for first in [PIECE, 0] {
            for start in (first..bytes.len()).step_by(2 * PIECE) {
                let end = bytes.len().min(start + PIECE);
                assert_eq!(file.bytes()[start..end], bytes[start..end]);
                file.release(start..end);
            }
        }
        let rest = watched.cached().unwrap();
        if rest == u64::try_from(bytes.len()).unwrap() {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "must not be skipped in CI");
            return eprintln!("SKIPPED pieces_leave_in_any_order: the filesystem keeps them");
        }
        assert_eq!(rest, 0, "bytes are cached after every piece was released");
    }

    #[test]
    fn what_was_released_beside_a_range_goes_along() {
        let mut released = Released::default();
        assert_eq!(released.add(100..200), 100..200);
        assert_eq!(released.add(300..400), 300..400, "what lies between is still wanted");
        assert_eq!(released.add(200..300), 100..400);
        assert_eq!(released.0, std::slice::from_ref(&(100..400)));
        assert_eq!(released.add(150..250), 100..400, "a second time");
        let far = 400 + 3 * AROUND;
        assert_eq!(released.add(400..far), 100..far);
        assert_eq!(released.add(far..far + 10), far - AROUND..far + 10, "at most so much of it");
        assert_eq!(released.0, std::slice::from_ref(&(100..far + 10)));
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
