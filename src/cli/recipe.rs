//! `recipe`: checks recipes, prints one with its defaults, prints the JSON Schema.

use std::path::PathBuf;

use clap::Subcommand;

use super::{Exit, print};
use crate::address;
use crate::recipe::{self, Plan, SourcePlan};

/// Check recipes, show their defaults, or print their JSON Schema
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
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

pub(super) fn execute(args: &Args) -> anyhow::Result<Exit> {
    match &args.command {
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
