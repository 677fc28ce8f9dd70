//! Finds what a user names among what an inventory lists, says why it must stay, and removes it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::cache::{CacheKind, CachedItem};
use super::engines::ListedEngine;
use super::footprint::{Footprint, entries};
use super::hub::{self, HubRevision};
use super::{Inventory, spot};
use crate::artifact::{has_writer, is_held, remove_directory};
use crate::diagnostic::Diagnostic;
use crate::pipeline::strange_content;

/// Something that an inventory lists, to be removed.
#[derive(Debug, Clone, Copy)]
pub enum Removal<'a> {
    /// An engine directory.
    Engine(&'a ListedEngine),
    /// Something in a cache, a whole repository for example.
    Cached(&'a CachedItem),
    /// One of a repository's revisions.
    Revision(&'a CachedItem, &'a HubRevision),
}

/// Digits of a commit that are shown, and the fewest by which it may be named.
const SHOWN_DIGITS: usize = 12;
const FEWEST_DIGITS: usize = 7;

impl Inventory {
    /// What `name` stands for: an engine's name or path, or the name of something cached; a revision follows its repository
    /// and an `@`.
    pub fn find(&self, name: &str) -> Result<Removal<'_>, Diagnostic> {
        let path = Path::new(name);
        let engines: Vec<&ListedEngine> = match name.contains('/') {
            true => self.engines.iter().filter(|engine| spot(&engine.path) == spot(path)).collect(),
            false => self.engines.iter().filter(|engine| engine.name == name).collect(),
        };
        if let [engine] = engines[..] {
            return Ok(Removal::Engine(engine));
        }
        if engines.len() > 1 {
            let paths: Vec<String> = engines.iter().map(|engine| engine.path.display().to_string()).collect();
            let what = format!("{} engines are called `{name}`: {}", engines.len(), paths.join(", "));
            return Err(Diagnostic::new(what).with_help("give the path of one"));
        }
        if let Some(item) = self.cache.iter().find(|item| item.name == name) {
            return Ok(Removal::Cached(item));
        }
        let unknown = || {
            let what =
                Diagnostic::new(format!("`{name}` is neither a listed engine nor anything listed of the caches"));
            what.with_help("`watus-build list` shows the names; --in DIR looks for engines in another folder, too")
        };
        let (repository, revision) = name.rsplit_once('@').ok_or_else(unknown)?;
        let item = self.cache.iter().find(|item| item.name == repository).ok_or_else(unknown)?;
        let revision = item.revision(revision)?;
        // Nothing is left of a repository without its only one.
        Ok(if item.revisions.len() == 1 { Removal::Cached(item) } else { Removal::Revision(item, revision) })
    }

    /// What is cached of a kind.
    pub fn of_kind(&self, kind: CacheKind) -> impl Iterator<Item = Removal<'_>> {
        self.cache.iter().filter(move |item| item.kind == kind).map(Removal::Cached)
    }

    /// Why something must stay, if it must. `chosen` is all that is to be removed with it.
    pub fn refusal(&self, removal: &Removal<'_>, chosen: &[Removal<'_>]) -> anyhow::Result<Option<Diagnostic>> {
        match removal {
            Removal::Engine(engine) => engine.refusal(),
            Removal::Cached(item) | Removal::Revision(item, _) => {
                Ok(item.in_use().or_else(|| self.needed(removal, chosen)))
            }
        }
    }

    /// An engine that stays and reads its weights through a link into what is to be removed.
    fn needed(&self, removal: &Removal<'_>, chosen: &[Removal<'_>]) -> Option<Diagnostic> {
        let goes = |engine: &ListedEngine| {
            chosen.iter().any(|other| matches!(other, Removal::Engine(other) if other.path == engine.path))
        };
        let engine =
            self.engines.iter().find(|engine| !goes(engine) && engine.links.iter().any(|to| removal.holds(to)))?;
        let path = engine.path.display();
        let what = Diagnostic::new(format!("{} is needed: {path} has links to its files", removal.name()));
        Some(what.with_help(format!("remove that engine as well: `watus-build remove {path} …`")))
    }
}

impl CachedItem {
    fn revision(&self, name: &str) -> Result<&HubRevision, Diagnostic> {
        let named = |revision: &&HubRevision| {
            let digits = name.len() >= FEWEST_DIGITS && revision.commit.starts_with(name);
            digits || revision.commit == name || revision.refs.iter().any(|of| of == name)
        };
        let found: Vec<&HubRevision> = self.revisions.iter().filter(named).collect();
        if let [revision] = found[..] {
            return Ok(revision);
        }
        let all: Vec<&str> = self.revisions.iter().map(HubRevision::shown).collect();
        let (which, have) = if found.is_empty() { ("no", "it has ") } else { ("more than one", "they are among ") };
        let what = Diagnostic::new(format!("{} has {which} revision `{name}` here", self.name));
        Err(what.with_help(match all.is_empty() {
            true => format!("name the repository alone: {}", self.name),
            false => format!("{have}{}", all.join(", ")),
        }))
    }

    /// Whoever writes there now.
    fn in_use(&self) -> Option<Diagnostic> {
        let held = |path: &PathBuf| match self.kind {
            CacheKind::Hub => hub::is_busy(path),
            // Downloads lock their part file, which lies in the folder.
            CacheKind::Url | CacheKind::Pypi => entries(path).iter().any(|path| is_held(path).unwrap_or(false)),
            _ => has_writer(path) || is_held(path).unwrap_or(false),
        };
        let at = self.paths.iter().find(|path| held(path))?;
        let what = Diagnostic::new(format!("{} is in use: something is being written to {}", self.name, at.display()));
        Some(what.with_help("wait until that fetch or build is done, or stop it"))
    }
}

impl HubRevision {
    /// The commit, short.
    pub fn shown(&self) -> &str {
        self.commit.get(..SHOWN_DIGITS).unwrap_or(&self.commit)
    }
}

impl ListedEngine {
    fn refusal(&self) -> anyhow::Result<Option<Diagnostic>> {
        let path = self.path.display();
        let metadata = fs::symlink_metadata(&self.path).with_context(|| format!("cannot look at {path}"))?;
        if metadata.is_symlink() {
            let to = fs::canonicalize(&self.path).unwrap_or_default();
            let what = Diagnostic::new(format!("{path} is a link to {}, and links are not followed", to.display()));
            return Ok(Some(
                what.with_help(format!("`rm {path}` removes the link; then remove what it led to, by its own path")),
            ));
        }
        if has_writer(&self.path) {
            let what = Diagnostic::new(format!("{path} is in use: a build is about to replace it"));
            return Ok(Some(what.with_help("wait until that build is done, or stop it")));
        }
        if is_held(&self.path).with_context(|| format!("cannot look at {path}"))? {
            return Ok(Some(self.held()));
        }
        let stays = |strange: String| {
            let what = Diagnostic::new(format!("{path} {strange}; it was left as it is"));
            what.with_help("move that away first; a whole folder is removed, or none of it")
        };
        Ok(strange_content(&self.path)?.map(stays))
    }

    fn held(&self) -> Diagnostic {
        let what = Diagnostic::new(format!("{} is in use: a program runs it", self.path.display()));
        what.with_help("stop the `serve` or `run` that has it open")
    }
}

impl Removal<'_> {
    /// What it is called.
    pub fn name(&self) -> String {
        match self {
            Removal::Engine(engine) => engine.path.display().to_string(),
            Removal::Cached(item) => item.name.clone(),
            Removal::Revision(item, revision) => format!("{}@{}", item.name, revision.shown()),
        }
    }

    /// Its files that no revision which stays has.
    pub fn footprint(&self) -> &Footprint {
        match self {
            Removal::Engine(engine) => &engine.footprint,
            Removal::Cached(item) => &item.footprint,
            Removal::Revision(_, revision) => &revision.alone,
        }
    }

    /// Whether it is, or is part of, `other`.
    pub fn is_within(&self, other: &Removal<'_>) -> bool {
        match (self, other) {
            (Removal::Engine(one), Removal::Engine(other)) => one.path == other.path,
            (Removal::Cached(one) | Removal::Revision(one, _), Removal::Cached(other)) => one.name == other.name,
            (Removal::Revision(one, at), Removal::Revision(other, other_at)) => {
                one.name == other.name && at.commit == other_at.commit
            }
            _ => false,
        }
    }

    /// Whether a file, by its path without links, is among its own.
    fn holds(&self, file: &Path) -> bool {
        let below = |path: &PathBuf| fs::canonicalize(path).is_ok_and(|path| file.starts_with(path));
        match self {
            Removal::Engine(engine) => below(&engine.path),
            Removal::Cached(item) => item.paths.iter().any(below),
            Removal::Revision(_, revision) => revision.blobs.contains(file),
        }
    }

    /// Removes it. What [`Inventory::refusal`] refuses must not come here.
    pub fn remove(&self) -> anyhow::Result<()> {
        match self {
            Removal::Engine(engine) => match remove_directory(&engine.path) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(engine.held().into()),
                removed => removed.with_context(|| format!("cannot remove {}", engine.path.display())),
            },
            Removal::Cached(item) => item.paths.iter().try_for_each(|path| remove_path(path)),
            Removal::Revision(item, revision) => item.paths.iter().try_for_each(|path| {
                hub::remove_revision(path, &revision.commit).with_context(|| format!("cannot remove {}", self.name()))
            }),
        }
    }
}

fn remove_path(path: &Path) -> anyhow::Result<()> {
    let remove = || -> io::Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        if metadata.is_dir() { remove_directory(path) } else { fs::remove_file(path) }
    };
    match remove() {
        // Whoever removed it first.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("cannot remove {}", path.display())),
    }
}
