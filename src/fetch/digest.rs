//! Digests that downloaded files must have.

use std::fs::File;
use std::io;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::artifact::{feed, hex};

/// The digest that a file's content must have.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Digest {
    /// SHA-256 of the content: large files on the hub, `url:` and `pypi:` sources.
    Sha256(String),
    /// Git's object id, SHA-1 of "blob LENGTH\0" and the content: small files on the hub.
    GitBlob(String),
}

impl Digest {
    /// The digest in hexadecimal, by which the hub's cache names files.
    pub fn hex(&self) -> &str {
        match self {
            Digest::Sha256(hex) | Digest::GitBlob(hex) => hex,
        }
    }

    /// Whether the file at `path` has this digest.
    pub fn matches(&self, path: &Path) -> io::Result<bool> {
        let mut file = File::open(path)?;
        let found = match self {
            Digest::Sha256(_) => {
                let mut hasher = Sha256::new();
                feed(&mut file, |chunk| hasher.update(chunk))?;
                hex(&hasher.finalize())
            }
            Digest::GitBlob(_) => {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {}\0", file.metadata()?.len()));
                feed(&mut file, |chunk| hasher.update(chunk))?;
                hex(&hasher.finalize())
            }
        };
        Ok(found.eq_ignore_ascii_case(self.hex()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn digests_match_what_git_and_sha256sum_print() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "hello\n").unwrap();
        // printf 'hello\n' | git hash-object --stdin; printf 'hello\n' | sha256sum
        let git = Digest::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".into());
        let sha = Digest::Sha256("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03".into());
        assert!(git.matches(&path).unwrap());
        assert!(sha.matches(&path).unwrap());
        fs::write(&path, "hellO\n").unwrap();
        assert!(!git.matches(&path).unwrap());
        assert!(!sha.matches(&path).unwrap());
    }
}
