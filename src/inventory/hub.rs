//! The cache that huggingface_hub and this tool share: `models--OWNER--NAME/{blobs/DIGEST, snapshots/COMMIT/FILE -> blob,
//! refs/REVISION}`. Revisions share blobs, which are counted once and go with the last revision that names them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::footprint::{Footprint, entries};
use crate::artifact::{about, is_held, remove_directory};
use crate::regular_file;

/// A revision of a repository.
#[derive(Debug, Clone, Serialize)]
pub struct HubRevision {
    /// The commit.
    pub commit: String,
    /// Branches and tags that stood for it when it was fetched.
    pub refs: Vec<String>,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that are free when it is removed.
    pub freed_bytes: u64,
    /// Its files.
    pub files: Vec<CachedFile>,
    #[serde(skip)]
    pub(super) blobs: BTreeSet<PathBuf>,
    /// The blobs that no other revision has.
    #[serde(skip)]
    pub(super) alone: Footprint,
}

/// A file of a revision.
#[derive(Debug, Clone, Serialize)]
pub struct CachedFile {
    /// Name in the repository.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// Prefix of the folders of models.
const MODELS: &str = "models--";
const SNAPSHOTS: &str = "snapshots";
const BLOBS: &str = "blobs";
const REFS: &str = "refs";
/// Largest file below `refs` in bytes: each holds a commit.
const REF_LIMIT: u64 = 4096;

/// The repositories in a cache, each with its name and its folder.
pub(super) fn repositories(cache: &Path) -> Vec<(String, PathBuf)> {
    let named = |path: PathBuf| {
        // Neither owner nor name holds `--`.
        let name = path.file_name()?.to_str()?.strip_prefix(MODELS)?.replacen("--", "/", 1);
        Some((name, path))
    };
    entries(cache).into_iter().filter(|path| is_folder(path)).filter_map(named).collect()
}

/// The revisions of a repository.
pub(super) fn revisions(repository: &Path) -> Vec<HubRevision> {
    let refs = refs(&repository.join(REFS));
    let folders = entries(&repository.join(SNAPSHOTS)).into_iter().filter(|path| is_folder(path));
    let mut revisions: Vec<HubRevision> = folders.map(|folder| revision(repository, &folder, &refs)).collect();
    let alone: Vec<Footprint> = (0..revisions.len()).map(|index| alone(&revisions, index)).collect();
    for (revision, alone) in revisions.iter_mut().zip(alone) {
        revision.freed_bytes = alone.freed();
        revision.alone = alone;
    }
    revisions
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// The blobs that only one of the revisions has.
fn alone(revisions: &[HubRevision], index: usize) -> Footprint {
    let others = revisions.iter().enumerate().filter(|(other, _)| *other != index);
    let shared: BTreeSet<&PathBuf> = others.flat_map(|(_, other)| &other.blobs).collect();
    let mut alone = Footprint::default();
    for blob in revisions[index].blobs.iter().filter(|blob| !shared.contains(blob)) {
        alone.join(&Footprint::of(blob));
    }
    alone
}

fn revision(repository: &Path, folder: &Path, refs: &[(String, String)]) -> HubRevision {
    let commit = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (mut files, mut blobs, mut footprint) = (Vec::new(), BTreeSet::new(), Footprint::default());
    for (name, blob) in files_of(repository, folder) {
        let of = Footprint::of(&blob);
        files.push(CachedFile { name, bytes: of.bytes() });
        if blobs.insert(blob) {
            footprint.join(&of);
        }
    }
    let named = refs.iter().filter(|(_, of)| *of == commit);
    HubRevision {
        refs: named.map(|(name, _)| name.clone()).collect(),
        bytes: footprint.bytes(),
        freed_bytes: 0,
        commit,
        files,
        blobs,
        alone: Footprint::default(),
    }
}

/// The names of a snapshot's files, each with its blob, or itself where it is no link. Links that lead out of the repository
/// are left out.
fn files_of(repository: &Path, folder: &Path) -> Vec<(String, PathBuf)> {
    let store = fs::canonicalize(repository.join(BLOBS)).ok();
    let (mut files, mut pending) = (Vec::new(), entries(folder));
    while let Some(path) = pending.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            pending.extend(entries(&path));
            continue;
        }
        let file = match metadata.is_symlink() {
            true => fs::canonicalize(&path).ok().filter(|blob| blob.parent() == store.as_deref()),
            false => fs::canonicalize(&path).ok(),
        };
        let name = path.strip_prefix(folder).map(|name| name.to_string_lossy().into_owned());
        files.extend(name.ok().zip(file));
    }
    files.sort();
    files
}

/// The names below `refs`, each with its commit.
fn refs(folder: &Path) -> Vec<(String, String)> {
    let (mut refs, mut pending) = (Vec::new(), entries(folder));
    while let Some(path) = pending.pop() {
        if is_folder(&path) {
            pending.extend(entries(&path));
        } else if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file())
            && let Ok(commit) = regular_file::read_text(&path, REF_LIMIT)
            && let Ok(name) = path.strip_prefix(folder)
        {
            refs.push((name.to_string_lossy().into_owned(), commit.trim().to_owned()));
        }
    }
    refs.sort();
    refs
}

/// Whether a download into the repository is at work: ours lock part files, huggingface_hub files in `.locks`.
pub(super) fn is_busy(repository: &Path) -> bool {
    let parts = entries(&repository.join(BLOBS)).into_iter();
    let parts = parts.filter(|path| path.extension().is_some_and(|extension| extension == "incomplete"));
    let theirs = repository.parent().zip(repository.file_name());
    let theirs = theirs.map(|(cache, name)| entries(&cache.join(".locks").join(name))).unwrap_or_default();
    parts.chain(theirs).any(|path| is_held(&path).unwrap_or(false))
}

/// Removes a revision: its names first, then the blobs that no other has.
pub(super) fn remove_revision(repository: &Path, commit: &str) -> io::Result<()> {
    // As it is now: another revision may have come that shares blobs.
    let revisions = revisions(repository);
    let Some(revision) = revisions.iter().find(|revision| revision.commit == commit) else { return Ok(()) };
    let others = revisions.iter().filter(|other| other.commit != commit);
    let shared: BTreeSet<&PathBuf> = others.flat_map(|other| &other.blobs).collect();
    for name in &revision.refs {
        let path = repository.join(REFS).join(name);
        fs::remove_file(&path).map_err(about(&path))?;
    }
    // Names of files that the revision is known not to have.
    let absent = repository.join(".no_exist").join(commit);
    if is_folder(&absent) {
        fs::remove_dir_all(&absent).map_err(about(&absent))?;
    }
    let folder = repository.join(SNAPSHOTS).join(commit);
    remove_directory(&folder).map_err(about(&folder))?;
    for blob in revision.blobs.iter().filter(|blob| !shared.contains(blob)) {
        match fs::remove_file(blob) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(about(blob)(error)),
            _ => {}
        }
    }
    Ok(())
}
