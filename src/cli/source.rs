//! A source where a recipe or an engine directory is taken.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;

use super::Environment;
use crate::diagnostic::Diagnostic;
use crate::engine_dir::BackendChoice;
use crate::fetch::{Fetcher, Lock};
use crate::manifest::ManifestError;
use crate::manifest::layout::FILE;
use crate::pipeline::{self, Context, GivenModel};
use crate::progress::Event;
use crate::worker::Isolation;

/// The lock file of the recipes in a folder.
fn lock_in(folder: &Path) -> anyhow::Result<Lock> {
    Ok(Lock::open(&folder.join("watus.lock"))?)
}

/// Says where an argument may have meant something else.
pub(super) fn tell(note: Option<&String>, environment: &Environment) {
    if let Some(note) = note {
        environment.progress.event(Event::Stage(note));
    }
}

/// What an argument names that is to be run. What is nothing is no engine directory either.
fn given(argument: &Path, engines: &Path) -> Result<GivenModel, ManifestError> {
    GivenModel::of(argument, engines).map_err(|message| ManifestError { path: argument.to_owned(), message })
}

/// The engine directory that an argument names. Of a source it is the one in the folder `engines`, which is built, from a recipe
/// beside it, if it is not there.
pub(super) fn engine(
    argument: &Path,
    engines: &Path,
    backend: BackendChoice,
    environment: &Environment,
) -> anyhow::Result<PathBuf> {
    let GivenModel::Source(source, note) = given(argument, engines)? else { return Ok(argument.to_owned()) };
    tell(note.as_ref(), environment);
    let context = Context {
        output: engines.to_owned(),
        fetcher: Fetcher::from_env(Arc::clone(&environment.progress), Arc::clone(&environment.cancel)),
        rebuild: false,
        force: false,
        isolation: Isolation::Child,
        progress: Arc::clone(&environment.progress),
        cancel: Arc::clone(&environment.cancel),
    };
    let mut lock = lock_in(engines)?;
    let recipe = pipeline::recipe_of(&source, engines, &context.fetcher, &mut lock)?;
    if recipe.text.is_some() {
        recipe.write(&mut lock)?;
        let written = format!("{}: its recipe is {}", recipe.recipe.name(), recipe.place.display());
        environment.progress.event(Event::Stage(&written));
    }
    recipe.engine(backend, &context, &mut lock)
}

/// The engine directory that an argument names; that of a source must be built.
pub(super) fn built(argument: &Path, engines: &Path) -> anyhow::Result<PathBuf> {
    let GivenModel::Source(named, _) = given(argument, engines)? else { return Ok(argument.to_owned()) };
    let folder = pipeline::recipe_place(&named.source, engines).with_extension("");
    if !folder.join(FILE).is_file() {
        let what = Diagnostic::new(format!("{} is not built yet: there is no {}", named.given, folder.display()));
        bail!(what.with_help(format!("`watus-build build {}` builds it", named.given)));
    }
    Ok(folder)
}
