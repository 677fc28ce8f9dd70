//! The stages of a build in order: fetch, read the model, key, build, manifest, verify, publish.
//!
//! The only module that knows this order, which is the same for all kinds of models: `target.rs` is the trait of their
//! differences, `llm/` and `graph.rs` implement it. `sources.rs` fetches a plan's files, `vision.rs` makes an ONNX
//! model of a source, `settings.rs` builder options of a plan, `precision.rs` a half-precision model; `key.rs` has the
//! cache key, `place.rs` decides what may be replaced or linked, `tries.rs` handles the user's tensors to verify with.

mod graph;
mod key;
mod llm;
mod place;
mod precision;
mod settings;
mod sources;
mod target;
mod tries;
mod vision;

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context as _, bail};

use crate::artifact::{StagedDirectory, about, cache_dir, sweep};
use crate::backend::BackendError;
use crate::diagnostic::{Diagnose, Diagnostic};
use crate::engine_dir::TOOL;
use crate::fetch::{Fetcher, Lock};
use crate::hashes::Hashes;
use crate::l4t;
use crate::manifest::{BuildRecord, FORMAT, Key, Manifest};
use crate::memory;
use crate::progress::{Event, Progress};
use crate::recipe::{ModelPlan, Plan};
use crate::spec::{DeviceInfo, Family, Version};
use crate::verify::{self, Report};
use crate::worker::{self, Isolation, Job};
use target::{BuildHost, BuildJobs, Description, StagedBuild, Target};

pub use place::strange_content;
pub use sources::{fetch, fetch_pictures, source_text};
pub use target::Emitted;

/// Settings shared by all builds of one call.
pub struct Context {
    /// Folder in which engine directories are published.
    pub output: PathBuf,
    /// Fetches sources.
    pub fetcher: Fetcher,
    /// Whether to build even if the engine is up to date.
    pub rebuild: bool,
    /// Whether to continue if the memory estimate is exceeded or the verification fails.
    pub force: bool,
    /// Process in which TensorRT runs.
    pub isolation: Isolation,
    /// Receives progress events.
    pub progress: Arc<dyn Progress>,
    /// Cancels when set.
    pub cancel: Arc<AtomicBool>,
}

impl Context {
    /// Reports a stage of a plan's build.
    fn stage(&self, name: &str, what: &str) {
        self.progress.event(Event::Stage(&format!("{name}: {what}")));
    }

    /// Reports warnings about a plan.
    fn warn<'a>(&self, name: &str, notes: impl IntoIterator<Item = &'a String>) {
        for note in notes {
            self.progress.event(Event::Warning(&format!("{name}: {note}")));
        }
    }
}

/// Result of a successful build.
#[derive(Debug)]
pub struct Outcome {
    /// Path of the engine directory.
    pub folder: PathBuf,
    /// Whether the engine was up to date, so that nothing was built.
    pub cached: bool,
    /// Report of the verification of the published engine.
    pub report: Option<Report>,
}

/// The engine failed verification, and `--force` was not given.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.diagnostic())]
pub struct NotProved {
    /// Name of the engine.
    pub name: String,
    /// The failed checks.
    pub details: String,
}

impl Diagnose for NotProved {
    fn diagnostic(&self) -> Diagnostic {
        let Self { name, details } = self;
        Diagnostic::new(format!("{name}: the engine did not pass verification and was not published\n{details}"))
            .with_help("`--force` publishes it all the same, for a closer look")
    }
}

/// A model that is ready to be built.
pub struct Prepared {
    plan: Plan,
    folder: PathBuf,
    target: Box<dyn Target>,
    key: Key,
    hashes: Hashes,
    /// Why the published engine must be replaced; `None` if it is up to date.
    pub stale: Option<String>,
}

impl Prepared {
    /// The memory that building or running needs, in words.
    pub fn memory_text(&self) -> String {
        self.target.memory_text()
    }

    /// How the engine will be verified, in words.
    pub fn proof_text(&self) -> String {
        self.target.proof_text()
    }
}

/// Fetches the source, and determines whether and why a build is needed.
pub fn prepare(plan: &Plan, context: &Context, lock: &mut Lock) -> anyhow::Result<Prepared> {
    let folder = context.output.join(&plan.name);
    place::check_at_first(&folder)?;
    sweep(&folder).map_err(about(&folder))?;
    let built = folder.exists();
    let target: Box<dyn Target> = match &plan.model {
        ModelPlan::Llm { .. } => Box::new(llm::LlmTarget::open(plan, context, lock, built)?),
        _ => Box::new(graph::GraphTarget::open(plan, context, lock)?),
    };
    let mut hashes = Hashes::open(&context.fetcher.cache);
    let key = key::key(&*target, &mut hashes)?;
    tell_of_hashing(plan, &hashes, context);
    let stale = match context.rebuild {
        true => Some("a rebuild was asked for".to_owned()),
        false => key::staleness(&folder, &key, &mut |path| hashes.sha256(path)),
    };
    if stale.is_some() {
        place::check_engine(&folder)?;
        if built {
            context.warn(&plan.name, &target.notes()?);
        }
    }
    remember(&mut hashes, &plan.name, context);
    Ok(Prepared { plan: plan.clone(), folder, target, key, hashes, stale })
}

/// Saves remembered hashes. If the cache is read-only they are lost, which costs only time.
fn remember(hashes: &mut Hashes, name: &str, context: &Context) {
    if let Err(error) = hashes.save() {
        context.warn(name, [&format!("hashes are not remembered, the next build reads all files again: {error}")]);
    }
}

fn tell_of_hashing(plan: &Plan, hashes: &Hashes, context: &Context) {
    if let Some(text) = hashing_text(hashes.hashed_bytes, hashes.seconds) {
        context.stage(&plan.name, &text);
    }
}

/// Bytes and seconds of hashing from which on it is told.
const LONG_HASHING: (u64, f64) = (100_000_000, 1.0);

/// What hashing took, if somebody may have waited for it.
fn hashing_text(bytes: u64, seconds: f64) -> Option<String> {
    let long = bytes >= LONG_HASHING.0 || seconds >= LONG_HASHING.1;
    long.then(|| format!("hashed {} of new files in {seconds:.1} s", memory::format_bytes(bytes)))
}

/// Builds what [`prepare`] found stale, verifies and publishes it.
pub fn build(mut prepared: Prepared, context: &Context) -> anyhow::Result<Outcome> {
    let folder = prepared.folder.clone();
    if prepared.stale.is_none() {
        return Ok(Outcome { report: Report::load(&folder), folder, cached: true });
    }
    check_memory(&*prepared.target, context)?;
    let name = prepared.plan.name.clone();
    let staged = StagedDirectory::create(&folder).map_err(about(&folder))?;
    context.stage(&name, "preparing the model");
    let mut work = StagedBuild { staged: staged.path(), context, hashes: &mut prepared.hashes };
    prepared.target.place(&mut work)?;
    let first = attempt(&mut prepared, staged.path(), &[], context)?;
    let products = if first.wrong_answers() { prepared.target.half_products()? } else { None };
    let report = match products {
        None => first,
        Some(products) => {
            let tell = |what: &str| context.progress.event(Event::Warning(&format!("{name}: {what}")));
            let attempt = |full: &[String]| attempt(&mut prepared, staged.path(), full, context);
            precision::search(&products, &tell, attempt)?
        }
    };
    let outcome = publish(staged, report, &name, context)?;
    remember(&mut prepared.hashes, &name, context);
    Ok(outcome)
}

/// Builds the engines in their staged directory, with the products `full` in float32, and verifies them.
fn attempt(prepared: &mut Prepared, staged: &Path, full: &[String], context: &Context) -> anyhow::Result<Report> {
    let Prepared { plan, target, key, hashes, .. } = prepared;
    let (name, start) = (&plan.name, Instant::now());
    let BuildJobs { engines, options, temporary } = target.write_models(staged, full)?;
    let machine = target.machine();
    let job = Job {
        processes: processes(engines.len(), machine.tensorrt),
        timing_cache: timing_cache(machine.tensorrt, machine.device.as_ref()),
        engines,
        options,
        verbose: false,
    };
    let what = if job.engines.len() == 1 { String::new() } else { format!("{} engines ", job.engines.len()) };
    context.stage(name, &format!("building {what}with {}", machine.tensorrt));
    let record = worker::build(&context.isolation, &job, &context.progress, &context.cancel);
    let record = record.map_err(|error| target.explain(staged, error.into()))?;
    for model in temporary {
        fs::remove_file(&model).map_err(about(&model))?;
    }
    tell_of_tactics(name, &record, context);
    let described = target.finish(&mut StagedBuild { staged, context, hashes: &mut *hashes }, full)?;
    let mut manifest = manifest(plan, key, &**target, described);
    manifest.build = record;
    manifest.record_files(staged, &mut |path| hashes.sha256(path))?;
    manifest.save(staged)?;
    let peak = manifest.build.peak_memory_bytes + worker::peak_memory("self").unwrap_or(0);
    let (seconds, peak) = (start.elapsed().as_secs_f64(), memory::format_bytes(peak));
    context.stage(name, &format!("built in {seconds:.1} s with at most {peak} of memory"));
    context.stage(name, "verifying");
    let runner = settings::runner(&context.isolation)?;
    let report = verify::verify(staged, &runner, &context.progress, &mut |path| hashes.sha256(path));
    report.map_err(|error| target.explain(staged, error))
}

fn tell_of_tactics(name: &str, record: &BuildRecord, context: &Context) {
    if record.skipped_tactics > 0 {
        context.progress.event(Event::Warning(&format!(
            "{name}: TensorRT skipped {} tactics for lack of memory; a rebuild with more free memory may run faster",
            record.skipped_tactics
        )));
    }
}

/// Number of processes to distribute engines over. RTX times nothing while it builds, so builds do not disturb each
/// other.
fn processes(engines: usize, tensorrt: Version) -> usize {
    if engines == 1 || tensorrt.family != Family::Rtx {
        return 1;
    }
    std::thread::available_parallelism().map_or(1, NonZero::get).min(3)
}

/// Publishes a verified directory if it passed, or with `--force`.
fn publish(staged: StagedDirectory, report: Report, name: &str, context: &Context) -> anyhow::Result<Outcome> {
    let folder = context.output.join(name);
    if report.failed() && !context.force {
        let failed = report.checks.iter().filter(|check| check.status == verify::Status::Failed);
        let details: Vec<String> = failed.map(|check| format!("  {}: {}", check.name, check.seen())).collect();
        return Err(NotProved { name: name.to_owned(), details: details.join("\n") }.into());
    }
    if context.cancel.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(BackendError::Cancelled.into());
    }
    for check in report.checks.iter().filter(|check| check.status == verify::Status::Warned) {
        context.progress.event(Event::Warning(&format!("{name}: {}: {}", check.name, check.seen())));
    }
    let mut manifest = Manifest::load(staged.path())?;
    manifest.verify.judge.clone_from(&report.judged_by);
    manifest.save(staged.path()).map_err(about(staged.path()))?;
    // Minutes have passed since it was looked at.
    place::check_engine(&folder)?;
    staged.publish().with_context(|| format!("cannot publish {}", folder.display()))?;
    Ok(Outcome { folder, cached: false, report: Some(report) })
}

/// Refuses a build that exceeds the memory, unless `--force` was given.
fn check_memory(target: &dyn Target, context: &Context) -> anyhow::Result<()> {
    match target.memory() {
        (needed, Some(available)) if needed > available && !context.force => {
            bail!(BackendError::Build(target.too_large(available)))
        }
        _ => Ok(()),
    }
}

/// Writes the full model as ONNX in the output folder or in a folder below it, without building engines.
pub fn emit_onnx(plan: &Plan, context: &Context, lock: &mut Lock) -> anyhow::Result<Emitted> {
    match &plan.model {
        ModelPlan::Llm { .. } => llm::emit_onnx(plan, context, lock),
        _ => graph::emit_onnx(plan, context, lock),
    }
}

/// Path of the timing cache of a TensorRT version and GPU; `None` for RTX, which has none.
fn timing_cache(tensorrt: Version, device: Option<&DeviceInfo>) -> Option<PathBuf> {
    let device = device.filter(|_| tensorrt.family == Family::Enterprise)?;
    let plain = |text: String| text.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-");
    let name = plain(format!("{tensorrt}-{}-{}.timing", device.name, device.compute_capability));
    Some(cache_dir().join("timing").join(name))
}

/// The absolute path of a plan's recipe file, so that the engine can be built again; `None` if there is no such file, or
/// none that a manifest can name.
fn recipe_file(plan: &Plan) -> Option<String> {
    let path = fs::canonicalize(&plan.recipe).ok().filter(|path| path.is_file())?;
    path.into_os_string().into_string().ok().filter(|path| !path.chars().any(char::is_control))
}

/// The manifest of a build, without the list of files.
fn manifest(plan: &Plan, key: &Key, target: &dyn Target, described: Description) -> Manifest {
    let Description { contents, tf32, verify } = described;
    let BuildHost { tensorrt, device, .. } = target.machine();
    Manifest {
        format: FORMAT,
        name: plan.name.clone(),
        contents,
        tool: TOOL.to_owned(),
        key: key.clone(),
        tensorrt: *tensorrt,
        device: device.clone(),
        l4t: l4t::release(),
        precision: plan.build.precision,
        tf32,
        source: source_text(&plan.source, target.commit()),
        recipe: recipe_file(plan),
        verify,
        build: BuildRecord::default(),
        files: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashing_is_told_if_it_takes_long() {
        assert_eq!((hashing_text(0, 0.0), hashing_text(99_000_000, 0.9)), (None, None));
        assert_eq!(hashing_text(100_000_000, 0.1).as_deref(), Some("hashed 100 MB of new files in 0.1 s"));
        assert_eq!(hashing_text(5, 1.5).as_deref(), Some("hashed 1 MB of new files in 1.5 s"));
    }
}
