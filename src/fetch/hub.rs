//! Downloads repositories of a Hugging Face hub into the cache that huggingface_hub and hf-hub share:
//! `models--OWNER--NAME/{blobs/DIGEST, snapshots/COMMIT/FILE -> blob, refs/REVISION}`.
//!
//! hf-hub provides the token and the cache layout. Its own transfer appends a whole file to a part file if a server
//! ignores `Range`, checks no hash, and does not encode revisions in addresses, so `http.rs` transfers the files.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;

use super::digest::Digest;
use super::http::Download;
use super::lock::{Lock, LockedFile, LockedSource, is_file_name, is_object_id};
use super::{FetchError, Fetched, FetchedFile, Fetcher, check_disk, gguf_guard};
use crate::address::{path, segment};
use crate::artifact::{about, is_contained, write_file};
use crate::checkpoint::{PartName, gguf_models};

/// Files of a repository downloaded at the same time.
const PARALLEL: usize = 4;
/// Largest description of a repository in bytes.
const INFO_LIMIT: u64 = 64 << 20;

/// Address, token and cache of the hub.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// Address without a trailing slash.
    pub endpoint: String,
    /// Access token.
    pub token: Option<String>,
    /// The shared cache, e.g. `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
}

impl HubSettings {
    /// Reads `HF_ENDPOINT`, `HF_TOKEN` (or the saved login), `HF_HUB_CACHE` and `HF_HOME`, as huggingface_hub does.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let saved = match set("HF_HOME") {
            Some(_) => Some(Cache::from_env()),
            None => std::env::var_os("HOME").map(|home| Cache::new(Path::new(&home).join(".cache/huggingface/hub"))),
        };
        let token = set("HF_TOKEN").or_else(|| saved.as_ref()?.token());
        let cache = set("HF_HUB_CACHE").map(PathBuf::from).or_else(|| saved.map(|saved| saved.path().clone()));
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.map(|token| token.trim().to_owned()),
            cache: cache.unwrap_or_else(|| crate::artifact::cache_dir().join("hub")),
        }
    }
}

/// Response to `GET /api/models/OWNER/NAME/revision/REVISION?blobs=true`.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Lfs {
    #[serde(alias = "oid")]
    sha256: String,
    size: Option<u64>,
}

/// Fetches the files of `repository` that match `globs`.
pub(super) fn fetch(
    fetcher: &Fetcher,
    repository: &str,
    revision: &str,
    globs: &[String],
    lock: &mut Lock,
) -> Result<Fetched, FetchError> {
    let name = format!("{repository}@{revision}");
    let Some(locked) = pinned(fetcher, repository, revision, lock)? else {
        return offline(fetcher, repository, revision, Some(globs));
    };
    let wanted = select(&name, &locked, globs)?;
    let repo = Repo::with_revision(repository.to_owned(), RepoType::Model, locked.commit.clone());
    let cache = Cache::new(fetcher.hub.cache.clone()).repo(repo);
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(_, file)| !is_cached(&cache.blob_path(file.digest.hex()), file, fetcher.rehash))
        .collect();
    if !missing.is_empty() {
        if fetcher.offline {
            return Err(FetchError::Offline { name });
        }
        let have = |file: &LockedFile| {
            fs::metadata(super::http::part_path(&cache.blob_path(file.digest.hex()))).map_or(0, |part| part.len())
        };
        check_disk(&fetcher.hub.cache, missing.iter().map(|(_, file)| file.size.saturating_sub(have(file))).sum())?;
        let downloads: Vec<Download> = missing
            .iter()
            .map(|(name, file)| Download {
                url: format!("{}/{}", address(fetcher, "", repository, "resolve", &locked.commit), path(name)),
                name: (*name).clone(),
                target: cache.blob_path(file.digest.hex()),
                digest: file.digest.clone(),
                size: Some(file.size),
                token: fetcher.hub.token.clone(),
                inspection: gguf_guard::inspection(name),
            })
            .collect();
        download_all(fetcher, downloads)?;
    }
    let snapshot = cache.pointer_path(&locked.commit);
    let mut files = Vec::new();
    for (name, file) in wanted {
        let path = snapshot.join(name);
        link(&cache.blob_path(file.digest.hex()), &path, name)?;
        files.push(FetchedFile { name: name.clone(), path });
    }
    if revision != locked.commit {
        let folder = snapshot.ancestors().nth(2).ok_or_else(|| io::Error::other("no cache folder"))?;
        let reference = folder.join("refs").join(revision);
        write_file(&reference, locked.commit.as_bytes()).map_err(about(&reference))?;
    }
    Ok(Fetched { files, commit: Some(locked.commit) })
}

/// The names of all files of `repository`; offline those of the files in the cache.
pub(super) fn names(
    fetcher: &Fetcher,
    repository: &str,
    revision: &str,
    lock: &mut Lock,
) -> Result<Vec<String>, FetchError> {
    if let Some(locked) = pinned(fetcher, repository, revision, lock)? {
        return Ok(locked.files.into_keys().collect());
    }
    let fetched = offline(fetcher, repository, revision, None)?;
    Ok(fetched.files.into_iter().map(|file| file.name).collect())
}

/// The pinned files of a revision, from the lock or else the hub; `None` offline.
fn pinned(
    fetcher: &Fetcher,
    repository: &str,
    revision: &str,
    lock: &mut Lock,
) -> Result<Option<LockedSource>, FetchError> {
    check_contained(&format!("{repository}@{revision}"), [repository, revision])?;
    Ok(match lock.get(repository, revision) {
        Some(locked) => Some(locked.clone()),
        None if fetcher.offline => None,
        None => {
            let locked = resolve(fetcher, repository, revision)?;
            lock.set(repository, revision, locked.clone());
            Some(locked)
        }
    })
}

/// Checks that names stay inside the cache as paths; a plan made by hand was not checked as a recipe is.
fn check_contained(name: &str, parts: [&str; 2]) -> Result<(), FetchError> {
    match parts.into_iter().find(|part| !is_contained(part)) {
        Some(part) => Err(FetchError::UnsafeName { name: name.to_owned(), file: part.to_owned() }),
        None => Ok(()),
    }
}

/// `ENDPOINT/PLACE/OWNER/NAME/WHAT/REVISION`; a revision is one segment, even if it contains slashes.
fn address(fetcher: &Fetcher, place: &str, repository: &str, what: &str, revision: &str) -> String {
    format!("{}{place}/{}/{what}/{}", fetcher.hub.endpoint, path(repository), segment(revision))
}

/// Asks the hub for the commit of a revision, and for the size and hash of every file.
fn resolve(fetcher: &Fetcher, repository: &str, revision: &str) -> Result<LockedSource, FetchError> {
    let name = format!("{repository}@{revision}");
    let url = format!("{}?blobs=true", address(fetcher, "/api/models", repository, "revision", revision));
    let text = fetcher.downloader().text(&name, &url, fetcher.hub.token.as_deref(), INFO_LIMIT)?;
    let bad = |what: &str| FetchError::BadAnswer { name: name.clone(), what: what.to_owned() };
    let info: Info = serde_json::from_str(&text).map_err(|error| bad(&error.to_string()))?;
    if !is_object_id(&info.sha) {
        return Err(bad("the commit is not a hash"));
    }
    let mut files = BTreeMap::new();
    // macOS leaves an "Icon\r"; nobody selects such a file, and its name would forge lines.
    for sibling in info.siblings.into_iter().filter(|sibling| !sibling.rfilename.contains(char::is_control)) {
        if !is_file_name(&sibling.rfilename) {
            return Err(FetchError::UnsafeName { name, file: sibling.rfilename });
        }
        let (digest, size) = match (sibling.lfs, sibling.blob_id) {
            (Some(lfs), _) => (Digest::Sha256(lfs.sha256), lfs.size.or(sibling.size)),
            (None, Some(id)) => (Digest::GitBlob(id), sibling.size),
            (None, None) => return Err(bad(&format!("{} has no hash", sibling.rfilename))),
        };
        let size = size.ok_or_else(|| bad(&format!("{} has no size", sibling.rfilename)))?;
        if !is_object_id(digest.hex()) {
            return Err(bad(&format!("the hash of {} is not one", sibling.rfilename)));
        }
        files.insert(sibling.rfilename, LockedFile { size, digest });
    }
    Ok(LockedSource { commit: info.sha, files })
}

/// The names that match one of the globs. `*` does not cross folders: `*.json` does not match "1_Pooling/config.json".
/// If that matches nothing at all it does, as in huggingface_hub's `allow_patterns`.
pub(super) fn matching<'a>(names: &[&'a str], globs: &[String]) -> Result<Vec<&'a str>, FetchError> {
    for stays in [true, false] {
        let matcher = matcher(globs, stays)?;
        let wanted: Vec<&str> = names.iter().copied().filter(|name| matcher.is_match(name)).collect();
        if !wanted.is_empty() {
            return Ok(wanted);
        }
    }
    Ok(Vec::new())
}

/// The glob that matches only this name.
pub(super) fn exactly(name: &str) -> String {
    globset::escape(name)
}

fn matcher(globs: &[String], stays: bool) -> Result<GlobSet, FetchError> {
    let bad = |error: globset::Error| FetchError::Io(io::Error::other(error));
    let mut builder = GlobSetBuilder::new();
    for glob in globs {
        builder.add(GlobBuilder::new(glob).literal_separator(stays).build().map_err(bad)?);
    }
    builder.build().map_err(bad)
}

fn select<'a>(
    name: &str,
    locked: &'a LockedSource,
    globs: &[String],
) -> Result<Vec<(&'a String, &'a LockedFile)>, FetchError> {
    let names: Vec<&str> = locked.files.keys().map(String::as_str).collect();
    let wanted = matching(&names, globs)?.into_iter().filter_map(|name| locked.files.get_key_value(name));
    let wanted: Vec<_> = wanted.collect();
    if wanted.is_empty() {
        let mut present = present(locked);
        if locked.files.len() > present.len() {
            present.push("…");
        }
        return Err(FetchError::NothingMatches {
            name: name.to_owned(),
            globs: globs.join(", "),
            help: if present.iter().any(|name| name.ends_with(".gguf")) { "; name one with `file:`" } else { "" },
            present: present.join(", "),
        });
    }
    Ok(wanted)
}

/// The names to list in an error: in a repository of GGUF files those, else the first files.
fn present(locked: &LockedSource) -> Vec<&str> {
    let names = || locked.files.keys().map(String::as_str);
    let ggufs: Vec<&str> = names().filter(|name| name.ends_with(".gguf")).collect();
    match ggufs.is_empty() {
        true => names().take(8).collect(),
        false => gguf_models(&ggufs).into_iter().take(32).collect(),
    }
}

fn is_cached(blob: &Path, file: &LockedFile, rehash: bool) -> bool {
    let right_size = fs::metadata(blob).is_ok_and(|metadata| metadata.len() == file.size);
    let right = right_size && (!rehash || file.digest.matches(blob).unwrap_or(false));
    if !right {
        let _ = fs::remove_file(blob);
    }
    right
}

/// Runs a few downloads at a time, the largest first; the first error stops the others. The first part of a split GGUF
/// is started before the others, since its header decides whether any of them is usable.
fn download_all(fetcher: &Fetcher, mut downloads: Vec<Download>) -> Result<(), FetchError> {
    let is_first = |name: &str| PartName::of(name).is_some_and(|part| part.is_first());
    downloads.sort_by_key(|download| (is_first(&download.name), download.size));
    let downloader = fetcher.downloader();
    let queue = Mutex::new(downloads);
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut queue| queue.pop());
                    let Some(download) = next else { return };
                    if let Err(error) = downloader.download(&download) {
                        if let Ok(mut queue) = queue.lock() {
                            queue.clear();
                        }
                        if let Ok(mut failed) = failed.lock() {
                            failed.get_or_insert(error);
                        }
                        downloader.stop();
                        return;
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or(None).map_or(Ok(()), Err)
}

/// Makes `snapshots/COMMIT/NAME` a relative link to its blob, as huggingface_hub does.
fn link(blob: &Path, path: &Path, name: &str) -> Result<(), FetchError> {
    let parent = path.parent().ok_or_else(|| io::Error::other("no folder"))?;
    fs::create_dir_all(parent).map_err(about(parent))?;
    let up = "../".repeat(2 + name.matches('/').count());
    let digest = blob.file_name().ok_or_else(|| io::Error::other("no blob name"))?.to_string_lossy();
    let target = PathBuf::from(format!("{up}blobs/{digest}"));
    match fs::read_link(path) {
        Ok(existing) if existing == target => return Ok(()),
        Ok(_) => fs::remove_file(path).map_err(about(path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => fs::remove_file(path).map_err(about(path))?,
    }
    match symlink(&target, path) {
        // Another run of this tool made it first.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => Ok(other.map_err(about(path))?),
    }
}

/// Finds the files without a lock entry and a network, from the cache's refs and snapshots.
fn offline(
    fetcher: &Fetcher,
    repository: &str,
    revision: &str,
    globs: Option<&[String]>,
) -> Result<Fetched, FetchError> {
    let name = format!("{repository}@{revision}");
    let folder = fetcher.hub.cache.join(format!("models--{}", repository.replace('/', "--")));
    let commit = if is_object_id(revision) {
        revision.to_owned()
    } else {
        let text = fs::read_to_string(folder.join("refs").join(revision));
        text.map(|text| text.trim().to_owned()).map_err(|_| FetchError::Offline { name: name.clone() })?
    };
    if !is_object_id(&commit) {
        return Err(FetchError::Offline { name });
    }
    let mut files = Vec::new();
    let root = folder.join("snapshots").join(&commit);
    let mut pending = vec![root.clone()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).map_err(|_| FetchError::Offline { name: name.clone() })? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let file = path.strip_prefix(&root).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
            if path.exists() {
                files.push(FetchedFile { name: file, path });
            }
        }
    }
    if let Some(globs) = globs {
        let names: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let wanted = matching(&names, globs)?;
        files.retain(|file| wanted.contains(&file.name.as_str()));
    }
    if files.is_empty() {
        return Err(FetchError::Offline { name });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Fetched { files, commit: Some(commit) })
}
