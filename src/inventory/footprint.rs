//! What files take on a disk: one that has several names (hard links) is counted once.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A file as it was met.
#[derive(Debug, Clone, Copy)]
struct CountedFile {
    bytes: u64,
    /// Its names, and how many of them were met.
    names: u64,
    met: u64,
}

/// Files by device and inode.
#[derive(Debug, Clone, Default)]
pub struct Footprint(BTreeMap<(u64, u64), CountedFile>);

impl Footprint {
    /// The files below a folder, or a single file. Links are not followed. What cannot be read is not counted.
    pub fn of(path: &Path) -> Self {
        let mut all = Self::default();
        let mut pending = vec![path.to_owned()];
        while let Some(path) = pending.pop() {
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_dir() => pending.extend(entries(&path)),
                Ok(metadata) => all.add(&metadata),
                Err(_) => {}
            }
        }
        all
    }

    /// Counts one name of a file.
    pub fn add(&mut self, metadata: &Metadata) {
        if metadata.is_file() {
            let file = CountedFile { bytes: metadata.len(), names: metadata.nlink(), met: 0 };
            self.0.entry((metadata.dev(), metadata.ino())).or_insert(file).met += 1;
        }
    }

    /// Adds the names that `other` has met; the same name must not be among both.
    pub fn join(&mut self, other: &Self) {
        for (inode, file) in &other.0 {
            self.0.entry(*inode).or_insert(CountedFile { met: 0, ..*file }).met += file.met;
        }
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.0.values().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// Bytes that are free once these names are gone: those of files without any other name.
    pub fn freed(&self) -> u64 {
        let alone = self.0.values().filter(|file| file.met >= file.names);
        alone.fold(0, |sum, file| sum.saturating_add(file.bytes))
    }
}

/// Paths in a folder, sorted; none if it cannot be read.
pub(super) fn entries(folder: &Path) -> Vec<std::path::PathBuf> {
    let read = || -> io::Result<Vec<_>> { Ok(fs::read_dir(folder)?.flatten().map(|entry| entry.path()).collect()) };
    let mut paths = read().unwrap_or_default();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_several_names_counts_once_and_is_freed_with_the_last() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        for folder in ["a", "a/deep", "b", "outside"] {
            fs::create_dir(path(folder)).unwrap();
        }
        fs::write(path("a/one"), [0; 100]).unwrap();
        fs::write(path("a/deep/two"), [0; 30]).unwrap();
        fs::write(path("outside/large"), [0; 5000]).unwrap();
        fs::hard_link(path("a/one"), path("a/again")).unwrap();
        fs::hard_link(path("a/one"), path("b/third")).unwrap();
        std::os::unix::fs::symlink(path("outside"), path("a/out")).unwrap();
        std::os::unix::fs::symlink(path("outside/large"), path("b/large")).unwrap();
        let (a, b) = (Footprint::of(&path("a")), Footprint::of(&path("b")));
        assert_eq!((a.bytes(), a.freed()), (130, 30));
        assert_eq!((b.bytes(), b.freed()), (100, 0));
        let mut both = a;
        both.join(&b);
        assert_eq!((both.bytes(), both.freed()), (130, 130));
        assert_eq!(Footprint::of(&path("nowhere")).bytes(), 0);
        assert_eq!(Footprint::of(&path("a/out")).bytes(), 0, "a link itself");
    }
}
