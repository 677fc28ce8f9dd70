//! `build`: builds engine directories from recipes and sources.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::fetch::SourceArgs;
use super::{Environment, Exit, print, source};
use crate::diagnostic::Diagnostic;
use crate::engine_dir::EngineDir;
use crate::fetch::FetchError;
use crate::pipeline::{self, Context, Emitted, GivenModel};
use crate::progress::Event;
use crate::recipe::{self, Plan, RecipeError};
use crate::worker::Isolation;

/// Build, verify and publish engines from recipes and sources
///
/// Engines that are up to date are not built again. An engine that fails verification is not published. A source gets a recipe
/// that fits this machine, which is written beside the engine and is what decides from then on.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recipe files (YAML), or sources: OWNER/NAME@REVISION on a hub, ollama:NAME, a .gguf, .pt or .onnx file, a folder
    #[arg(required = true, value_name = "RECIPE|SOURCE")]
    recipes: Vec<PathBuf>,
    /// Directory in which engine directories are written
    #[arg(short, long, default_value = "engines", value_name = "DIR")]
    output: PathBuf,
    /// Print what would be fetched and built and why, without doing it
    #[arg(long)]
    dry_run: bool,
    /// Build even if the engine is up to date
    #[arg(long)]
    rebuild: bool,
    /// Build even if the estimate exceeds free memory, and publish even if verification fails
    #[arg(long)]
    force: bool,
    /// Exit with code 7 if the engine could not be executed on this machine
    #[arg(long)]
    require_execution: bool,
    /// Run TensorRT in this process instead of a child process, for debuggers and emulators
    #[arg(long)]
    in_process: bool,
    /// Write the whole model in another format instead of building an engine
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with = "dry_run")]
    emit: Option<Emit>,
    #[command(flatten)]
    sources: SourceArgs,
}

/// Other formats of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Emit {
    /// ONNX. Vision: OUTPUT/NAME.onnx. LLM: OUTPUT/NAME-onnx/model.onnx with weights linked from the checkpoint
    /// (OUTPUT/NAME.onnx if OUTPUT is the checkpoint's folder)
    Onnx,
}

pub(super) fn execute(args: &Args, environment: &Environment) -> anyhow::Result<Exit> {
    // All recipes are read before anything is built: a typo in the last one costs no hour.
    let mut plans = Vec::new();
    for path in &args.recipes {
        plans.extend(plan(args, path, environment)?);
    }
    for (index, plan) in plans.iter().enumerate() {
        if let Some(twin) = plans[..index].iter().find(|twin| twin.name == plan.name) {
            anyhow::bail!(
                "{} and {} would both write the engine `{}`",
                twin.recipe.display(),
                plan.recipe.display(),
                plan.name
            );
        }
    }
    let mut fetcher = args.sources.fetcher(environment);
    fetcher.offline |= args.dry_run;
    let context = Context {
        output: args.output.clone(),
        fetcher,
        rebuild: args.rebuild,
        force: args.force,
        isolation: if args.in_process { Isolation::InProcess } else { Isolation::Child },
        progress: Arc::clone(&environment.progress),
        cancel: Arc::clone(&environment.cancel),
    };
    let mut exit = Exit::Success;
    for plan in &plans {
        let span = tracing::error_span!("build", recipe = plan.name);
        match span.in_scope(|| build_recipe(args, plan, &context)) {
            Ok(code) => exit = exit.worst(code),
            // One bad recipe does not stop the others; the exit code remembers.
            Err(error) => {
                super::report(&error);
                exit = exit.worst(Exit::of(&error));
            }
        }
        if environment.cancel.load(Ordering::Relaxed) {
            return Ok(Exit::Cancelled);
        }
    }
    Ok(exit)
}

/// The plan of a recipe, or of a source, whose recipe is written; `None` if a dry run would have to ask the network for it.
fn plan(args: &Args, path: &Path, environment: &Environment) -> anyhow::Result<Option<Plan>> {
    let named = match GivenModel::of(path, &args.output) {
        Ok(GivenModel::Recipe) => return Ok(Some(Plan::new(path, &recipe::load(path)?))),
        Ok(GivenModel::EngineDirectory) => return Err(is_built(path)),
        Ok(GivenModel::Source(named, note)) => {
            source::tell(note.as_ref(), environment);
            named
        }
        Err(Diagnostic { message, help, .. }) => {
            return Err(RecipeError::Invalid { path: path.to_owned(), line: None, message, help }.into());
        }
    };
    let mut fetcher = args.sources.fetcher(environment);
    fetcher.offline |= args.dry_run;
    let place = pipeline::recipe_place(&named.source, &args.output);
    let mut lock = args.sources.lock(&place)?;
    let made = match pipeline::recipe_of(&named, &args.output, &fetcher, &mut lock) {
        Err(error) if args.dry_run && matches!(error.downcast_ref(), Some(FetchError::Offline { .. })) => {
            print(format!("{}: to be looked at; what follows depends on it", named.given))?;
            return Ok(None);
        }
        made => made?,
    };
    made.check_owner(&args.output)?;
    if made.text.is_some() && args.dry_run {
        print(format!("{}: a recipe to be written", place.display()))?;
    } else if made.text.is_some() {
        made.write(&mut lock)?;
        let written = format!("{}: its recipe is {}", made.recipe.name(), place.display());
        environment.progress.event(Event::Stage(&written));
    }
    Ok(Some(made.plan()))
}

/// The error for what is built already.
fn is_built(path: &Path) -> anyhow::Error {
    let what = Diagnostic::new(format!("{} is an engine directory, and no recipe", path.display()));
    let engine = EngineDir::load(path).ok();
    let command = engine.map_or("`watus-build build RECIPE`".to_owned(), |engine| engine.rebuild_command());
    what.with_help(format!("it is built again by {command}")).into()
}

fn build_recipe(args: &Args, plan: &Plan, context: &Context) -> anyhow::Result<Exit> {
    let mut lock = args.sources.lock(&plan.recipe)?;
    if args.dry_run {
        return dry_run(plan, context, &mut lock);
    }
    if args.emit == Some(Emit::Onnx) {
        let Emitted { path, seconds } = pipeline::emit_onnx(plan, context, &mut lock)?;
        let written = seconds.map_or("written".to_owned(), |seconds| format!("written in {seconds:.3} s"));
        print(format!("{}: {written}: {}", plan.name, path.display()))?;
        return Ok(Exit::Success);
    }
    let outcome = pipeline::build(pipeline::prepare(plan, context, &mut lock)?, context)?;
    let executed = outcome.report.as_ref().and_then(|report| report.executed_on.clone());
    let state = if outcome.cached { "current" } else { "built" };
    let proof = match (&executed, &outcome.report) {
        (Some(on), Some(report)) if report.failed() => format!("FAILED verification on {on}, published by --force"),
        (Some(on), report) => {
            let judge = report.as_ref().and_then(|report| report.judged_by.as_ref());
            let judge = judge.map(|judge| format!(" against the {judge}")).unwrap_or_default();
            format!("verified on {on}{judge}")
        }
        (None, _) => "execution not checked (no GPU here)".to_owned(),
    };
    print(format!("{}: {state}, {proof}: {}", plan.name, outcome.folder.display()))?;
    Ok(if args.require_execution && executed.is_none() { Exit::NotExecuted } else { Exit::Success })
}

fn dry_run(plan: &Plan, context: &Context, lock: &mut crate::fetch::Lock) -> anyhow::Result<Exit> {
    let name = &plan.name;
    print(format!("{name}: {} -> {}", plan.recipe.display(), context.output.join(name).display()))?;
    let source = pipeline::source_text(&plan.source, None);
    // What makes it stale, what it takes, how it is proved.
    match pipeline::prepare(plan, context, lock) {
        Ok(prepared) => {
            print(format!("  fetch    {source}: here already"))?;
            match &prepared.stale {
                None => print("  build    nothing to do: the engine is current")?,
                Some(why) => {
                    print(format!("  build    because {why}; {}", prepared.memory_text()))?;
                    print(format!("  verify   {}", prepared.proof_text()))?;
                    print("  publish  engine directory with manifest.json and verify.json")?;
                }
            }
        }
        Err(error) if matches!(error.downcast_ref(), Some(FetchError::Offline { .. })) => {
            print(format!("  fetch    {source}: to be downloaded; what follows depends on it"))?;
        }
        Err(error) => return Err(error),
    }
    Ok(Exit::Success)
}
