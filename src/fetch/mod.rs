//! Fetches sources: from a [`SourcePlan`] to verified local files.
//!
//! `hub.rs` talks to a Hugging Face hub, `pypi.rs` to the Python Package Index through pip; `http.rs` transfers files,
//! with `request.rs` and the retries of `retry.rs`. Commits of branches and tags are pinned in `watus.lock` by
//! `lock.rs`.

mod digest;
mod error;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod gguf_guard;
mod http;
mod hub;
mod lock;
mod modelfile;
mod ollama;
mod pypi;
mod request;
mod retry;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub use digest::Digest;
pub use error::{Cancelled, FetchError};
pub use hub::HubSettings;
pub use lock::{Lock, LockedFile, LockedSource};
pub use modelfile::Modelfile;
pub use retry::Retry;

use crate::address;
use crate::artifact::{about, is_contained, sha256_file};
use crate::checkpoint::PartName;
use crate::progress::Progress;
use crate::recipe::SourcePlan;
use crate::regular_file;

/// A file of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedFile {
    /// Path within the source.
    pub name: String,
    /// Path on this machine.
    pub path: PathBuf,
}

/// A fetched source.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The files, sorted by name.
    pub files: Vec<FetchedFile>,
    /// Commit of a hub source.
    pub commit: Option<String>,
}

impl Fetched {
    fn single(path: PathBuf) -> Self {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Self { files: vec![FetchedFile { name, path }], commit: None }
    }

    /// The only file whose name ends in `.EXTENSION`, or the one named `file`.
    pub fn only(&self, extension: &str, file: Option<&str>) -> Result<&FetchedFile, String> {
        let mut matching = self.files.iter().filter(|candidate| match file {
            Some(file) => candidate.name == file,
            None => candidate.name.ends_with(&format!(".{extension}")),
        });
        match (matching.next(), matching.next()) {
            (Some(found), None) => Ok(found),
            (None, _) => Err(format!("the source has no {} file", file.unwrap_or(extension))),
            (Some(a), Some(b)) => Err(format!(
                "the source has several .{extension} files ({}, {}, …): name one with `file:`",
                a.name, b.name
            )),
        }
    }
}

/// The names that match one of the globs, as [`Fetcher::fetch`] matches them.
pub fn matching<'a>(names: &[&'a str], globs: &[String]) -> Result<Vec<&'a str>, FetchError> {
    hub::matching(names, globs)
}

/// The glob that matches only this name.
pub fn exactly(name: &str) -> String {
    hub::exactly(name)
}

/// Fetches sources into the caches.
pub struct Fetcher {
    /// Hub address, token and cache.
    pub hub: HubSettings,
    /// Cache of `url:` and `pypi:` sources.
    pub cache: PathBuf,
    /// Whether to use the caches only.
    pub offline: bool,
    /// Whether to hash cached files again instead of trusting their names and sizes.
    pub rehash: bool,
    /// Limits of retries.
    pub retry: Retry,
    /// Receives progress events.
    pub progress: Arc<dyn Progress>,
    /// Cancels when set.
    pub cancel: Arc<AtomicBool>,
}

impl Fetcher {
    /// A fetcher with settings from the environment.
    pub fn from_env(progress: Arc<dyn Progress>, cancel: Arc<AtomicBool>) -> Self {
        let hub = HubSettings::from_env();
        let offline = std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| value == "1");
        Self {
            hub,
            cache: crate::artifact::cache_dir(),
            offline,
            rehash: false,
            retry: Retry::default(),
            progress,
            cancel,
        }
    }

    /// Fetches a source. `lock` pins hub revisions, and gets new ones added.
    pub fn fetch(&self, source: &SourcePlan, lock: &mut Lock) -> Result<Fetched, FetchError> {
        match source {
            SourcePlan::Hub { repository, revision, files, .. } => hub::fetch(self, repository, revision, files, lock),
            SourcePlan::Path { path, sha256 } => local(path, sha256.as_deref()),
            SourcePlan::Url { url, sha256 } => self.url(url, sha256),
            SourcePlan::Pypi { package, version, file, sha256 } => {
                pypi::fetch(self, &pypi::Member { package, version, file, sha256: sha256.as_deref() })
            }
            SourcePlan::Ollama { model } => ollama::find(model),
        }
    }

    /// The names of a hub repository's files, without fetching them. `lock` is used and changed as by
    /// [`Fetcher::fetch`].
    pub fn names(&self, repository: &str, revision: &str, lock: &mut Lock) -> Result<Vec<String>, FetchError> {
        hub::names(self, repository, revision, lock)
    }

    /// The Modelfile of an Ollama model; `None` for other sources. Parameters that are not applied are reported as
    /// warnings.
    pub fn modelfile(&self, source: &SourcePlan) -> Result<Option<Modelfile>, FetchError> {
        match source {
            SourcePlan::Ollama { model } => ollama::modelfile(model, &*self.progress).map(Some),
            _ => Ok(None),
        }
    }

    fn downloader(&self) -> http::Downloader {
        http::Downloader::new(self.retry, Arc::clone(&self.progress), Arc::clone(&self.cancel))
    }

    fn url(&self, url: &str, sha256: &str) -> Result<Fetched, FetchError> {
        let name = url.split(['?', '#']).next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        // `.` is contained, and no file's name.
        if !is_contained(name) || Path::new(name).file_name().is_none() {
            return Err(FetchError::UnsafeName { name: address::shown(url), file: name.to_owned() });
        }
        let target = self.cache.join("url").join(sha256.to_ascii_lowercase()).join(name);
        if target.exists()
            && self.rehash
            && sha256_file(&target).map_err(about(&target))? != sha256.to_ascii_lowercase()
        {
            fs::remove_file(&target).map_err(about(&target))?;
        }
        if !target.exists() {
            if self.offline {
                return Err(FetchError::Offline { name: address::shown(url) });
            }
            self.downloader().download(&http::Download {
                url: url.to_owned(),
                name: name.to_owned(),
                target: target.clone(),
                digest: Digest::Sha256(sha256.to_owned()),
                size: None,
                token: None,
                inspection: gguf_guard::inspection(name),
            })?;
        }
        Ok(Fetched::single(target))
    }
}

fn local(path: &Path, sha256: Option<&str>) -> Result<Fetched, FetchError> {
    if !path.exists() {
        return Err(FetchError::NoSuchPath { path: path.to_owned() });
    }
    if path.is_dir() {
        let mut files = Vec::new();
        for entry in fs::read_dir(path).map_err(about(path))? {
            let entry = entry.map_err(about(path))?;
            if entry.path().is_file() {
                let name = entry.file_name().to_string_lossy().into_owned();
                files.push(FetchedFile { name, path: entry.path() });
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        return Ok(Fetched { files, commit: None });
    }
    // Opened only to learn what it is: a pipe would be waited for.
    let no_file = |error: io::Error| FetchError::NotAFile { path: path.to_owned(), message: error.to_string() };
    regular_file::open(path).map_err(no_file)?;
    if let Some(expected) = sha256 {
        let found = sha256_file(path).map_err(about(path))?;
        if !found.eq_ignore_ascii_case(expected) {
            return Err(FetchError::WrongSha256 { path: path.to_owned(), found, expected: expected.to_owned() });
        }
    }
    let parts = other_parts(path);
    if !parts.is_empty() {
        let mut files = Fetched::single(path.to_owned()).files;
        files.extend(parts);
        files.sort_by(|a, b| a.name.cmp(&b.name));
        return Ok(Fetched { files, commit: None });
    }
    Ok(Fetched::single(path.to_owned()))
}

/// The other parts of a split GGUF. A missing part is reported when they are opened.
fn other_parts(path: &Path) -> Vec<FetchedFile> {
    let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { return Vec::new() };
    let Some(part) = PartName::of(&name) else { return Vec::new() };
    let others =
        part.all().filter(|other| *other != name).map(|name| FetchedFile { path: path.with_file_name(&name), name });
    others.filter(|file| file.path.is_file()).collect()
}

/// Refuses a download that the disk cannot hold, with 64 MB in reserve.
fn check_disk(folder: &Path, bytes: u64) -> Result<(), FetchError> {
    fs::create_dir_all(folder).map_err(about(folder))?;
    let stat = rustix::fs::statvfs(folder).map_err(io::Error::from).map_err(about(folder))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    const MB: u64 = 1_000_000;
    if bytes > 0 && bytes.saturating_add(64 * MB) > free {
        return Err(FetchError::DiskFull { folder: folder.to_owned(), need: bytes.div_ceil(MB), free: free / MB });
    }
    Ok(())
}
