//! What this tool keeps in its cache directory, and what work that ended early has left there and beside engine directories.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::as_texts;
use super::footprint::{Footprint, entries};
use super::hub::{self, HubRevision};
use crate::artifact::{is_held, is_sha256, staged_for};

/// Kinds of what is cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheKind {
    /// Repositories of a hub; huggingface_hub has them in common with this tool.
    Hub,
    /// Files of `url:` sources.
    Url,
    /// Files of `pypi:` sources.
    Pypi,
    /// Remembered hashes.
    Hashes,
    /// Compiled CUDA kernels of language models.
    Kernels,
    /// Kernels that TensorRT-RTX compiled when engines first ran.
    Rtx,
    /// TensorRT's timings of tactics.
    Timing,
    /// What builds and downloads that ended early have left.
    Leftovers,
}

/// Something in a cache.
#[derive(Debug, Clone, Serialize)]
pub struct CachedItem {
    /// Its kind.
    pub kind: CacheKind,
    /// Its name, which `remove` takes.
    pub name: String,
    /// Its folder, or its files.
    #[serde(serialize_with = "as_texts")]
    pub paths: Vec<PathBuf>,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that are free when it is removed; engine directories may share weights.
    pub freed_bytes: u64,
    /// A repository's revisions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<HubRevision>,
    #[serde(skip)]
    pub(super) footprint: Footprint,
}

impl CachedItem {
    /// An item of files and folders.
    fn of(kind: CacheKind, name: String, paths: Vec<PathBuf>) -> Self {
        let mut footprint = Footprint::default();
        paths.iter().for_each(|path| footprint.join(&Footprint::of(path)));
        let (bytes, freed_bytes) = (footprint.bytes(), footprint.freed());
        Self { kind, name, paths, bytes, freed_bytes, revisions: Vec::new(), footprint }
    }
}

/// Digits of a hash that names show.
const SHOWN_DIGITS: usize = 12;
/// Digits of the key that `fetch::pypi` makes of a package and a file.
const PYPI_DIGITS: usize = 16;

/// The repositories in a hub's cache.
pub(super) fn repositories(cache: &Path) -> Vec<CachedItem> {
    let item = |(name, path): (String, PathBuf)| {
        let revisions = hub::revisions(&path);
        CachedItem { revisions, ..CachedItem::of(CacheKind::Hub, format!("hub:{name}"), vec![path]) }
    };
    hub::repositories(cache).into_iter().map(item).collect()
}

/// What is in this tool's cache directory; other programs' files there are left out.
pub(super) fn items(cache: &Path) -> Vec<CachedItem> {
    let mut items = sources(&cache.join("url"), CacheKind::Url, is_sha256);
    items.extend(sources(&cache.join("pypi"), CacheKind::Pypi, |name| {
        name.len() == PYPI_DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit())
    }));
    let hashed = |path: &PathBuf, extension: &str| {
        let stem = path.file_stem().is_some_and(|stem| stem.to_str().is_some_and(is_sha256));
        stem && path.extension().is_some_and(|found| found == extension) && is_file(path)
    };
    let files = |folder: &str, fits: &dyn Fn(&PathBuf) -> bool| -> Vec<PathBuf> {
        entries(&cache.join(folder)).into_iter().filter(fits).collect()
    };
    let groups = [
        (CacheKind::Hashes, "hashes", files("", &|path| path.ends_with("hashes.json") && is_file(path))),
        (CacheKind::Kernels, "kernels", files("kernels", &|path| hashed(path, "ptx"))),
        (CacheKind::Rtx, "rtx", files("kernels", &|path| hashed(path, "rtx"))),
        (
            CacheKind::Timing,
            "timing",
            files("timing", &|path| path.extension().is_some_and(|extension| extension == "timing") && is_file(path)),
        ),
    ];
    let found = groups.into_iter().filter(|(_, _, paths)| !paths.is_empty());
    items.extend(found.map(|(kind, name, paths)| CachedItem::of(kind, name.to_owned(), paths)));
    items
}

fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// Folders of a source each, with a hash for a name and a file in it.
fn sources(folder: &Path, kind: CacheKind, is_key: impl Fn(&str) -> bool) -> Vec<CachedItem> {
    let prefix = if kind == CacheKind::Url { "url" } else { "pypi" };
    let mut items = Vec::new();
    for path in entries(folder) {
        let Some(key) = path.file_name().and_then(|name| name.to_str()).filter(|name| is_key(name)) else { continue };
        let file = entries(&path).into_iter().find(|path| is_file(path) && !is_unfinished(path));
        let Some(name) = file.as_deref().and_then(Path::file_name) else { continue };
        let shown = format!("{prefix}:{}/{}", &key[..SHOWN_DIGITS], name.to_string_lossy());
        items.push(CachedItem::of(kind, shown, vec![path]));
    }
    items
}

/// Whether a file or directory is being written, or was when its writer ended.
fn is_unfinished(path: &Path) -> bool {
    let part = path.extension().is_some_and(|extension| extension == "incomplete");
    part || path.file_name().is_some_and(|name| staged_for(name).is_some())
}

/// What dead writers have left in `places` (folders of engine directories) and in the cache directory. A hub's part files
/// belong to their repositories, where the next download goes on with them.
pub(super) fn leftovers(places: &[PathBuf], cache: &Path) -> Option<CachedItem> {
    let below = |name: &str| entries(&cache.join(name));
    let sources: Vec<PathBuf> = below("url").into_iter().chain(below("pypi")).filter(|path| is_source(path)).collect();
    let own = ["", "url", "pypi", "kernels", "timing"].map(|name| cache.join(name));
    let mut left = Vec::new();
    for folder in places.iter().chain(&own).chain(&sources) {
        for path in entries(folder) {
            let ours = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file() || metadata.is_dir());
            // Part files are only looked for where downloads put them.
            let staged = path.file_name().is_some_and(|name| staged_for(name).is_some());
            let wanted = staged || (sources.contains(folder) && is_unfinished(&path));
            if ours && wanted && !left.contains(&path) && !is_held(&path).unwrap_or(true) {
                left.push(path);
            }
        }
    }
    (!left.is_empty()).then(|| CachedItem::of(CacheKind::Leftovers, "leftovers".to_owned(), left))
}

/// A folder in which no download has finished: others are removed with all that is in them.
fn is_source(path: &Path) -> bool {
    let folder = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let key = path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.'));
    folder && key && !entries(path).iter().any(|path| is_file(path) && !is_unfinished(path))
}
