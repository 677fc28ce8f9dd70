//! Remembers the hashes of large files while they are unchanged, so that 15 GB are hashed once and not for every build.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::artifact::{about, is_sha256, sha256_file, write_file};

/// Identifies a file's content: device, inode, length, and modification time in nanoseconds. Hard links share it, so
/// the weights of a published engine directory are recognised as the checkpoint's.
fn identity(path: &Path) -> io::Result<String> {
    let m = fs::metadata(path)?;
    Ok(format!("{}-{}-{}-{}.{:09}", m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct HashEntry {
    sha256: String,
    /// Day of last use, in days since 1970.
    day: u64,
}

/// Days after which an unused hash is forgotten.
const KEPT_DAYS: u64 = 180;

fn today() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs() / 86_400
}

/// Remembered hashes, a JSON file in the cache directory. Losing it costs only time.
#[derive(Debug)]
pub struct Hashes {
    path: PathBuf,
    entries: BTreeMap<String, HashEntry>,
    /// Whether there are hashes that are not saved.
    changed: bool,
    /// Whether they could not be saved.
    refused: bool,
    /// Bytes that had to be hashed.
    pub hashed_bytes: u64,
    /// Seconds that hashing took.
    pub seconds: f64,
}

impl Hashes {
    /// Reads the hashes remembered in `cache`.
    pub fn open(cache: &Path) -> Self {
        let path = cache.join("hashes.json");
        let entries = crate::regular_file::read(&path, 64 << 20)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self { path, entries, changed: false, refused: false, hashed_bytes: 0, seconds: 0.0 }
    }

    /// The SHA-256 in a file's name in a hub cache or an Ollama store, whose files never change.
    pub fn of_store(path: &Path) -> Option<String> {
        let real = fs::canonicalize(path).ok()?;
        let name = real.file_name()?.to_str()?;
        let named = name.strip_prefix("sha256-").unwrap_or(name);
        let in_store = real.parent()?.file_name()? == "blobs";
        (in_store && is_sha256(named)).then(|| named.to_ascii_lowercase())
    }

    /// A file's SHA-256: from its name in a hub cache or an Ollama store, which was verified at download; remembered;
    /// or by reading it.
    pub fn sha256(&mut self, path: &Path) -> io::Result<String> {
        match Self::of_store(path) {
            Some(named) => Ok(named),
            None => self.read(path),
        }
    }

    /// The SHA-256 of a file's content, whatever its name says: remembered, or by reading it.
    pub fn read(&mut self, path: &Path) -> io::Result<String> {
        let real = fs::canonicalize(path)?;
        let before = identity(&real)?;
        if let Some(entry) = self.entries.get_mut(&before) {
            self.changed |= entry.day != today();
            entry.day = today();
            return Ok(entry.sha256.clone());
        }
        let start = std::time::Instant::now();
        let sha256 = sha256_file(&real)?;
        self.seconds += start.elapsed().as_secs_f64();
        self.hashed_bytes += fs::metadata(&real)?.len();
        // Changed while it was read: nothing is known of it.
        if identity(&real)? == before {
            self.remember(before, &sha256);
        }
        Ok(sha256)
    }

    /// Whether [`Hashes::read`] would not have to read this file.
    pub fn knows(&self, path: &Path) -> bool {
        identity(path).is_ok_and(|identity| self.entries.contains_key(&identity))
    }

    /// Records that `copy` has the content of `original`, so that it need not be hashed, unless the original has
    /// changed since it was.
    pub fn copied(&mut self, original: &Path, copy: &Path) -> io::Result<()> {
        let (from, to) = (identity(original)?, identity(copy)?);
        let known = self.entries.get(&from).map(|entry| entry.sha256.clone());
        if let Some(known) = known.or_else(|| Self::of_store(original)) {
            self.remember(to, &known);
        }
        Ok(())
    }

    fn remember(&mut self, identity: String, sha256: &str) {
        self.entries.insert(identity, HashEntry { sha256: sha256.to_owned(), day: today() });
        self.changed = true;
    }

    /// Saves new hashes. Where that has failed it is not tried again, so it is told once.
    pub fn save(&mut self) -> io::Result<()> {
        if !self.changed || self.refused {
            return Ok(());
        }
        self.refused = true;
        let oldest = today().saturating_sub(KEPT_DAYS);
        self.entries.retain(|_, entry| entry.day >= oldest);
        let entries = serde_json::to_vec(&self.entries).map_err(io::Error::other)?;
        write_file(&self.path, &entries).map_err(about(&self.path))?;
        (self.changed, self.refused) = (false, false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_hashed_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights");
        fs::write(&file, "a").unwrap();
        let mut hashes = Hashes::open(folder.path());
        let first = hashes.sha256(&file).unwrap();
        hashes.save().unwrap();
        let mut again = Hashes::open(folder.path());
        assert_eq!((again.sha256(&file).unwrap(), again.hashed_bytes), (first.clone(), 0));
        fs::write(&file, "b").unwrap();
        assert_ne!(again.sha256(&file).unwrap(), first);
        assert_eq!(again.hashed_bytes, 1);
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights");
        fs::write(&file, "a").unwrap();
        // Below a file no folder can be made, not even by root.
        let mut hashes = Hashes::open(&file.join("cache"));
        hashes.sha256(&file).unwrap();
        let error = hashes.save().unwrap_err().to_string();
        assert!(error.contains("weights/cache/hashes.json: "), "{error}");
        hashes.save().unwrap();
    }

    #[test]
    fn a_copy_is_known_as_its_original_unless_that_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, copy) = (folder.path().join("weights"), folder.path().join("copy"));
        fs::write(&file, "a").unwrap();
        let mut hashes = Hashes::open(folder.path());
        let known = hashes.sha256(&file).unwrap();
        fs::copy(&file, &copy).unwrap();
        hashes.copied(&file, &copy).unwrap();
        assert_eq!((hashes.read(&copy).unwrap(), hashes.hashed_bytes, hashes.knows(&copy)), (known, 1, true));
        fs::write(&file, "bc").unwrap();
        fs::copy(&file, &copy).unwrap();
        hashes.copied(&file, &copy).unwrap();
        assert!(!hashes.knows(&copy));
    }

    #[test]
    fn what_a_file_holds_is_not_told_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let blob = folder.path().join("blobs").join("0".repeat(64));
        fs::create_dir(folder.path().join("blobs")).unwrap();
        fs::write(&blob, "a").unwrap();
        let mut hashes = Hashes::open(folder.path());
        assert_eq!(hashes.sha256(&blob).unwrap(), "0".repeat(64));
        assert_eq!(hashes.read(&blob).unwrap(), crate::artifact::sha256(b"a"));
    }
}
