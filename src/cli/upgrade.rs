//! Builds an engine directory again that does not fit this machine or this program, when a server starts.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};

use super::{Environment, say};
use crate::backend::BackendError;
use crate::backend::tensorrt::device::Device;
use crate::diagnostic::{Diagnose, Diagnostic};
use crate::engine_dir::{BackendChoice, EngineDir};
use crate::fetch::{Fetcher, Lock};
use crate::l4t;
use crate::pipeline::{self, Context};
use crate::recipe::{self, Plan};
use crate::worker::Isolation;

/// The error for an engine that does not fit, with both ways to mend it.
pub(super) fn refused(engine: &EngineDir, why: &str) -> BackendError {
    match engine.foreign(why) {
        BackendError::Foreign(told) => {
            let help = told.help.clone().unwrap_or_default();
            BackendError::Foreign(told.with_help(format!("{help}, or let `serve --rebuild` do so when it starts")))
        }
        other => other,
    }
}

/// Builds the engine directory at `folder` again from `recipe`, or from the recipe that it was built from, if it does not
/// fit. What is there stays until the new one is published in one step.
pub(super) fn rebuild(
    folder: &Path,
    recipe: Option<&Path>,
    backend: BackendChoice,
    environment: &Environment,
) -> anyhow::Result<()> {
    let (recipe, why) = match (EngineDir::load(folder), recipe) {
        // Whatever computes: the directory is kept current for this machine.
        (Ok(engine), recipe) => {
            let Some(why) = engine.misfit(BackendChoice::TensorRt) else { return Ok(()) };
            let Some(recipe) = recipe.or(engine.recipe()) else { return Err(no_recipe(&engine, &why).into()) };
            (recipe.to_owned(), format!("{} {why}", engine.manifest.name))
        }
        // Of a layout that this version does not read, for example.
        (Err(error), Some(recipe)) => (recipe.to_owned(), error.diagnostic().message),
        (Err(error), None) => return Err(error.into()),
    };
    // A GPU may come late: built without it, the engine would be another one, and unproved.
    if backend == BackendChoice::TensorRt || (backend == BackendChoice::Auto && l4t::release().is_some()) {
        Device::open()?;
    }
    say(format!("{why}: it is built again from {}", recipe.display()));
    let plan = Plan::new(&recipe, &recipe::load(&recipe)?);
    let place = fs::canonicalize(folder).with_context(|| format!("cannot find {}", folder.display()))?;
    if place.file_name() != Some(OsStr::new(&plan.name)) {
        let what = format!("{} makes `{}`, not {}", recipe.display(), plan.name, place.display());
        bail!(Diagnostic::new(what).with_help("--recipe names the recipe of this engine"));
    }
    let context = Context {
        output: place.parent().unwrap_or(Path::new("/")).to_owned(),
        fetcher: Fetcher::from_env(Arc::clone(&environment.progress), Arc::clone(&environment.cancel)),
        rebuild: true,
        force: false,
        isolation: Isolation::Child,
        progress: Arc::clone(&environment.progress),
        cancel: Arc::clone(&environment.cancel),
    };
    let mut lock = Lock::open(&recipe.parent().unwrap_or(Path::new("")).join("watus.lock"))?;
    let built = pipeline::build(pipeline::prepare(&plan, &context, &mut lock)?, &context)?;
    say(format!("{} is built again", built.folder.display()));
    Ok(())
}

pub(super) fn no_recipe(engine: &EngineDir, why: &str) -> BackendError {
    let what = Diagnostic::new(format!("{} {why}, and its recipe is not known here", engine.manifest.name));
    BackendError::Foreign(what.with_help("--recipe names the recipe that it is built from"))
}
