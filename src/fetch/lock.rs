//! `watus.lock`: the commit that each branch or tag resolved to, and every file's size and hash, so that a rebuild on
//! another day or machine gets the same bytes. It lies beside the recipe and belongs in version control.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::FetchError;
use super::digest::Digest;
use crate::artifact::{is_contained, write_file};
use crate::recipe::yaml_danger;
use crate::regular_file;

/// A file of a pinned source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "a map of fields")]
pub struct LockedFile {
    /// Size in bytes.
    pub size: u64,
    /// Digest of the content.
    #[serde(flatten)]
    pub digest: Digest,
}

/// A pinned hub source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a map of fields")]
pub struct LockedSource {
    /// Commit that the revision resolved to.
    pub commit: String,
    /// All files of the repository at that commit, by name.
    pub files: BTreeMap<String, LockedFile>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a map of fields")]
struct LockDocument {
    version: u32,
    sources: BTreeMap<String, LockedSource>,
}

/// The lock file of a folder of recipes.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    document: LockDocument,
    changed: bool,
    /// Whether to resolve branches again instead of using the pinned commits.
    pub update: bool,
}

/// Largest lock file in bytes: two lines per file, for thousands of files of some hundred repositories.
const SIZE_LIMIT: u64 = 64 << 20;

const HEADER: &str = "# Written by watus-build: what each revision stood for. Commit it; `fetch --update` pins anew.\n";

impl Lock {
    /// Reads the lock file at `path`; a missing one is empty.
    pub fn open(path: &Path) -> Result<Self, FetchError> {
        let bad = |message: String| FetchError::Lock { path: path.to_owned(), message };
        let document = match regular_file::read_text(path, SIZE_LIMIT) {
            Ok(text) => {
                if let Some((what, _)) = yaml_danger(&text) {
                    return Err(bad(what.to_owned()));
                }
                serde_yaml::from_str(&text).map_err(|error| bad(error.to_string()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                LockDocument { version: 1, ..LockDocument::default() }
            }
            Err(error) => return Err(bad(error.to_string())),
        };
        let lock = Self { path: path.to_owned(), document, changed: false, update: false };
        lock.check()?;
        Ok(lock)
    }

    /// Checks names, which become paths, and digests, which become file names: a lock file can be edited or merged
    /// badly.
    fn check(&self) -> Result<(), FetchError> {
        let bad = |message: String| Err(FetchError::Lock { path: self.path.clone(), message });
        if self.document.version != 1 {
            return bad(format!("version {} is not supported", self.document.version));
        }
        for (key, source) in &self.document.sources {
            if !is_object_id(&source.commit) {
                return bad(format!("{key}: `{}` is not a commit", source.commit));
            }
            for (name, file) in &source.files {
                if !is_file_name(name) || !is_object_id(file.digest.hex()) {
                    return bad(format!("{key}: bad entry {name:?}"));
                }
            }
        }
        Ok(())
    }

    /// The pinned files of `repository` at `revision`.
    pub fn get(&self, repository: &str, revision: &str) -> Option<&LockedSource> {
        if self.update { None } else { self.document.sources.get(&key(repository, revision)) }
    }

    /// Pins `repository` at `revision`.
    pub fn set(&mut self, repository: &str, revision: &str, source: LockedSource) {
        let key = key(repository, revision);
        if self.document.sources.get(&key) != Some(&source) {
            self.document.sources.insert(key, source);
            self.changed = true;
        }
    }

    /// Writes the file if anything was pinned.
    pub fn save(&mut self) -> Result<(), FetchError> {
        if self.changed {
            let bad = |message: String| FetchError::Lock { path: self.path.clone(), message };
            let text = serde_yaml::to_string(&self.document).map_err(|error| bad(error.to_string()))?;
            write_file(&self.path, format!("{HEADER}{text}").as_bytes()).map_err(|error| bad(error.to_string()))?;
            self.changed = false;
        }
        Ok(())
    }
}

fn key(repository: &str, revision: &str) -> String {
    format!("{repository}@{revision}")
}

/// Whether the hub's name of a file stays inside the cache, and can be printed within a line.
pub(super) fn is_file_name(name: &str) -> bool {
    is_contained(name) && !name.chars().any(char::is_control)
}

/// Whether `text` is 40 (SHA-1) or 64 (SHA-256) hexadecimal digits.
pub(super) fn is_object_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
