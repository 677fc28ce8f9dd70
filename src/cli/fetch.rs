//! `fetch`: downloads the sources of recipes, so that `build --offline` can use them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Environment, Exit, print};
use crate::fetch::{Fetcher, Lock};
use crate::pipeline;
use crate::recipe::{self, Plan};

/// Download the sources of recipes; downloads are verified and resumable
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recipe files (YAML)
    #[arg(required = true, value_name = "RECIPE")]
    recipes: Vec<PathBuf>,
    #[command(flatten)]
    sources: SourceArgs,
    /// Resolve branches and tags again instead of using the commits in watus.lock
    #[arg(long)]
    update: bool,
}

/// Options shared by the commands that fetch sources.
#[derive(Debug, clap::Args)]
pub(super) struct SourceArgs {
    /// Do not use the network, only the cache; HF_HUB_OFFLINE=1 does the same
    #[arg(long)]
    offline: bool,
    /// Hash cached files again instead of trusting remembered hashes
    #[arg(long)]
    rehash: bool,
    /// Lock file with the commits of Hugging Face repositories [default: watus.lock beside the recipe]
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
}

impl SourceArgs {
    pub(super) fn fetcher(&self, environment: &Environment) -> Fetcher {
        let mut fetcher = Fetcher::from_env(Arc::clone(&environment.progress), Arc::clone(&environment.cancel));
        fetcher.offline |= self.offline;
        fetcher.rehash = self.rehash;
        fetcher
    }

    pub(super) fn lock(&self, recipe: &Path) -> anyhow::Result<Lock> {
        let beside = || recipe.parent().unwrap_or(Path::new("")).join("watus.lock");
        Ok(Lock::open(&self.lock.clone().unwrap_or_else(beside))?)
    }
}

pub(super) fn execute(args: &Args, environment: &Environment) -> anyhow::Result<Exit> {
    let fetcher = args.sources.fetcher(environment);
    let mut exit = Exit::Success;
    for path in &args.recipes {
        // As with `build`, one that cannot be had does not stop the others.
        if let Err(error) = fetch_recipe(args, path, &fetcher) {
            if super::is_broken_pipe(&error) {
                return Err(error);
            }
            super::report(&error);
            exit = exit.worst(Exit::of(&error));
        }
        if environment.cancel.load(Ordering::Relaxed) {
            return Ok(Exit::Cancelled);
        }
    }
    Ok(exit)
}

fn fetch_recipe(args: &Args, path: &Path, fetcher: &Fetcher) -> anyhow::Result<()> {
    let plan = Plan::new(path, &recipe::load(path)?);
    let mut lock = args.sources.lock(path)?;
    lock.update = args.update;
    let fetched = pipeline::fetch(&plan, fetcher, &mut lock)?;
    if let Some(commit) = &fetched.commit {
        print(format!("{}: commit {commit}", plan.name))?;
    }
    let pictures = pipeline::fetch_pictures(&plan, fetcher, &mut lock)?;
    for (_, path) in &pictures {
        print(format!("{}: {}", plan.name, path.display()))?;
    }
    for file in &fetched.files {
        print(format!("{}: {}", plan.name, file.path.display()))?;
    }
    Ok(())
}
