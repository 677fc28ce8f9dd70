//! What is built and what is cached on this machine: what each takes on the disk, and how it is removed.
//!
//! In go [`Places`], out comes an [`Inventory`] of engine directories (`engines.rs`), the hub's cache (`hub.rs`) and this tool's
//! (`cache.rs`). `footprint.rs` counts a file that has several names once. `removal.rs` removes what an inventory lists, and
//! nothing else.

mod cache;
mod engines;
mod footprint;
mod hub;
mod removal;

use std::cell::LazyCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

pub use cache::{CacheKind, CachedItem};
pub use engines::{EngineFacts, ListedEngine, MachineFit, Proof};
pub use footprint::Footprint;
pub use removal::Removal;

use crate::artifact::cache_dir;
use crate::engine_dir::Here;
use crate::fetch::HubSettings;

/// The folder in which `build` publishes engine directories.
pub const ENGINES: &str = "engines";

/// Where an inventory is taken.
#[derive(Debug, Clone)]
pub struct Places {
    /// Folders of engine directories, or engine directories.
    pub engines: Vec<PathBuf>,
    /// The hub's cache.
    pub hub: PathBuf,
    /// This tool's cache directory.
    pub cache: PathBuf,
}

impl Places {
    /// The places that builds and downloads use by default, and further folders of engine directories.
    pub fn from_env(more: &[PathBuf]) -> Self {
        let engines = [PathBuf::from(ENGINES)].into_iter().chain(more.iter().cloned()).collect();
        Self { engines, hub: HubSettings::from_env().cache, cache: cache_dir() }
    }
}

/// What is built and cached.
#[derive(Debug, Clone, Serialize)]
pub struct Inventory {
    /// Engine directories, by the order of the places and by name.
    pub engines: Vec<ListedEngine>,
    /// What is in the caches, by kind and name.
    pub cache: Vec<CachedItem>,
    /// Bytes of everything together; a file with several names counts once.
    pub bytes: u64,
}

impl Inventory {
    /// Looks at the places. What is not there or cannot be read is left out.
    pub fn look(places: &Places) -> Self {
        let here = LazyCell::new(Here::look as fn() -> Here);
        let (mut engines, mut seen, mut folders) = (Vec::new(), BTreeSet::new(), Vec::new());
        for place in &places.engines {
            let found = engines::folders(place);
            folders.push(if found.contains(place) { parent(&spot(place)) } else { place.clone() });
            for path in found.into_iter().filter(|path| seen.insert(spot(path))) {
                engines.push(engines::listed(path, &here));
            }
        }
        let mut cache = cache::repositories(&places.hub);
        cache.extend(cache::items(&places.cache));
        let mut once = BTreeSet::new();
        folders.retain(|folder| once.insert(fs::canonicalize(folder).unwrap_or_default()));
        cache.extend(cache::leftovers(&folders, &places.cache));
        let mut all = Footprint::default();
        engines.iter().for_each(|engine| all.join(&engine.footprint));
        cache.iter().for_each(|item| all.join(&item.footprint));
        Self { engines, cache, bytes: all.bytes() }
    }
}

/// The folder that holds a path.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => PathBuf::from("/"),
    }
}

/// A path whose folder is without links, so that equal ones are one place. What is there may itself be a link.
fn spot(path: &Path) -> PathBuf {
    // `.` and `..` have no name of their own.
    let path = if path.file_name().is_some() { path.to_owned() } else { fs::canonicalize(path).unwrap_or_default() };
    let folder = fs::canonicalize(parent(&path)).unwrap_or_else(|_| parent(&path));
    path.file_name().map_or_else(|| folder.clone(), |name| folder.join(name))
}

/// A path in JSON, which holds Unicode alone.
fn as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// Paths in JSON.
fn as_texts<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.display().to_string()))
}
