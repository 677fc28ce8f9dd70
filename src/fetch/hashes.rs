//! Hashes of large files, remembered while a file stays as it was, so that 15 GB are hashed once and not at every build.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::artifact::{is_sha256, sha256_file, write_file};

/// A file while its content stays: device, inode, length, and the content's time in nanoseconds. Links share it, so a
/// published engine directory's weights are known as the checkpoint's.
fn identity(path: &Path) -> io::Result<String> {
    let m = fs::metadata(path)?;
    Ok(format!("{}-{}-{}-{}.{:09}", m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    sha256: String,
    /// Day of last use, counted from 1970.
    day: u64,
}

/// What was not asked for so long is forgotten.
const KEPT_DAYS: u64 = 180;

fn today() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs() / 86_400
}

/// The memory, a JSON file in the cache directory. Losing it costs time alone.
#[derive(Debug)]
pub struct Hashes {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
    /// Bytes hashed because nothing was known of them.
    pub hashed_bytes: u64,
    /// Seconds that took.
    pub seconds: f64,
}

impl Hashes {
    /// What is remembered in `cache`.
    pub fn open(cache: &Path) -> Self {
        let path = cache.join("hashes.json");
        let entries = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { path, entries, hashed_bytes: 0, seconds: 0.0 }
    }

    /// A file's SHA-256: from its name in a hub cache or an Ollama store, which were checked when it came; from memory;
    /// or by reading it.
    pub fn sha256(&mut self, path: &Path) -> io::Result<String> {
        let real = fs::canonicalize(path)?;
        let name = real.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let in_store = real.parent().and_then(Path::file_name).is_some_and(|folder| folder == "blobs");
        let named = name.strip_prefix("sha256-").unwrap_or(&name);
        if in_store && is_sha256(named) {
            return Ok(named.to_ascii_lowercase());
        }
        let before = identity(&real)?;
        if let Some(entry) = self.entries.get_mut(&before) {
            entry.day = today();
            return Ok(entry.sha256.clone());
        }
        let start = std::time::Instant::now();
        let sha256 = sha256_file(&real)?;
        self.seconds += start.elapsed().as_secs_f64();
        self.hashed_bytes += fs::metadata(&real)?.len();
        // Changed while it was read: nothing is known of it.
        if identity(&real)? == before {
            self.entries.insert(before, Entry { sha256: sha256.clone(), day: today() });
        }
        Ok(sha256)
    }

    /// Keeps what was learnt.
    pub fn save(&mut self) -> io::Result<()> {
        let oldest = today().saturating_sub(KEPT_DAYS);
        self.entries.retain(|_, entry| entry.day >= oldest);
        write_file(&self.path, &serde_json::to_vec(&self.entries).map_err(io::Error::other)?).map(drop)
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
}
