//! Counts the bytes of a file in Linux's page cache, for tests and `bench`, with mincore(2), which reads nothing
//! itself.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uchar, c_void};
use std::fs::File;
use std::io;
use std::path::Path;
use std::ptr;

use rustix::fs::Access;
use rustix::mm::{MapFlags, ProtFlags};

unsafe extern "C" {
    // Of the C library, which the standard library links; no crate that is here has it.
    fn mincore(start: *mut c_void, length: usize, pages: *mut c_uchar) -> c_int;
}

/// Pages per call of mincore.
const PAGES: usize = 1 << 16;

/// A mapped file whose pages in the page cache are counted. The mapping is never accessed, so it keeps none of them.
pub struct Watched {
    start: *mut c_void,
    bytes: usize,
    page: usize,
}

// SAFETY: the mapping is this value's alone, and nobody reads what is in it.
unsafe impl Send for Watched {}

impl Watched {
    /// Maps `path`. Fails where the kernel would not tell the truth: since Linux 5.2 it reports every page as resident
    /// for a file that the caller neither owns nor may write (mincore(2)).
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let owner = std::os::unix::fs::MetadataExt::uid(&metadata);
        let own = rustix::process::geteuid().as_raw();
        if own != 0 && owner != own && rustix::fs::access(path, Access::WRITE_OK).is_err() {
            return Err(io::Error::other("its pages are told to its owner alone"));
        }
        let bytes = usize::try_from(metadata.len()).map_err(io::Error::other)?;
        let page = rustix::param::page_size();
        if bytes == 0 {
            return Ok(Self { start: ptr::null_mut(), bytes, page });
        }
        // SAFETY: a new mapping at a place the kernel chooses; nothing is read through it.
        let start = unsafe { rustix::mm::mmap(ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, &file, 0) }?;
        Ok(Self { start, bytes, page })
    }

    /// Bytes of the file in the page cache.
    pub fn cached(&self) -> io::Result<u64> {
        let (mut resident, mut first) = (0_u64, 0);
        let mut pages = vec![0; PAGES.min(self.bytes.div_ceil(self.page))];
        while first < self.bytes {
            let bytes = (PAGES * self.page).min(self.bytes - first);
            // SAFETY: the range begins on a page and ends within the mapping; `pages` has a byte for each of its pages.
            let told = unsafe { mincore(self.start.byte_add(first), bytes, pages.as_mut_ptr()) };
            if told != 0 {
                return Err(io::Error::last_os_error());
            }
            let held = pages[..bytes.div_ceil(self.page)].iter().filter(|page| *page & 1 == 1).count();
            resident += (held * self.page) as u64;
            first += bytes;
        }
        Ok(resident)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: mapped by `open` with this length, and not used after.
            let _ = unsafe { rustix::mm::munmap(self.start, self.bytes) };
        }
    }
}
