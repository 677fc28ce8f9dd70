//! The stages of a build in their order: fetch, read the model, key, build, manifest, verify, publish.
//!
//! The only module that knows the order. `sources.rs` brings what a plan names, `vision.rs` gets from a source to an ONNX
//! model, `settings.rs` from a recipe's plan to builder options, `precision.rs` to an engine that is right in half
//! precision; `place.rs` knows what may be replaced and what may be linked, `tries.rs` what is proved on.

pub mod llm;
mod place;
mod precision;
mod settings;
mod sources;
mod tries;
mod vision;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, bail};

use crate::artifact::{StagedDirectory, about, cache_dir, is_same_file, sha256_file, sweep};
use crate::backend::BackendError;
use crate::backend::tensorrt::device::{Device, DeviceInfo};
use crate::backend::tensorrt::source::{Wish, ready};
use crate::backend::tensorrt::{BuildOptions, Family, ShapeRange, TensorRt, Version, plan};
use crate::fetch::{Fetcher, Lock};
use crate::manifest::{BuildRecord, FORMAT, Key, Manifest, VerifyRecord};
use crate::memory::{self, Memory};
use crate::onnx::Model;
use crate::progress::{Event, Progress};
use crate::recipe::{Plan, Precision};
use crate::verify::{self, Report};
use crate::vision::{Classifier, Yolo};
use crate::worker::{self, Isolation, Job};

pub use sources::{fetch, fetch_pictures, source_text};

/// What all builds of one call share.
pub struct Context {
    /// Folder of engine directories.
    pub output: PathBuf,
    /// Brings sources.
    pub fetcher: Fetcher,
    /// Build even if nothing changed.
    pub rebuild: bool,
    /// Go on where the memory estimate or the verification says no.
    pub force: bool,
    /// Where TensorRT runs.
    pub isolation: Isolation,
    /// Who watches.
    pub progress: Arc<dyn Progress>,
    /// Set to stop.
    pub cancel: Arc<AtomicBool>,
}

/// How a build ended well.
#[derive(Debug)]
pub struct Outcome {
    /// The engine directory.
    pub folder: PathBuf,
    /// Nothing had changed, nothing was built.
    pub cached: bool,
    /// The verification of what is there now.
    pub report: Option<Report>,
}

/// The verification failed, and `--force` was not given.
#[derive(Debug, thiserror::Error)]
#[error(
    "{name}: the engine did not pass verification and was not published\n{details}\n  hint: `--force` publishes it all the same, for a closer look"
)]
pub struct NotProved {
    /// The recipe's name.
    pub name: String,
    /// The failed checks.
    pub details: String,
}

/// Everything known before TensorRT starts.
pub struct Prepared {
    plan: Plan,
    folder: PathBuf,
    /// In float32, shapes fixed: what judges.
    model: Model,
    /// What is built from, where that is not the same.
    lean: Option<Model>,
    classifier: Option<Classifier>,
    yolo: Option<Yolo>,
    /// Files the model was read from.
    sources: Vec<PathBuf>,
    /// Pictures to prove it on, by their names in the engine directory.
    pictures: Vec<(String, PathBuf)>,
    /// The user's own inputs to prove it on, in the model's order.
    own_inputs: Vec<Vec<PathBuf>>,
    options: BuildOptions,
    key: Key,
    tensorrt: Version,
    device: Option<DeviceInfo>,
    commit: Option<String>,
    /// Why the present engine directory cannot stay; `None` when it can.
    pub stale: Option<String>,
    /// Estimated peak memory of the build.
    pub memory: u64,
}

impl Prepared {
    /// What TensorRT builds from, in float32.
    fn built(&self) -> &Model {
        self.lean.as_ref().unwrap_or(&self.model)
    }
}

/// Fetches the source and decides what a build would do.
pub fn prepare(plan: &Plan, context: &Context, lock: &mut Lock) -> anyhow::Result<Prepared> {
    let folder = context.output.join(&plan.name);
    place::check_at_first(&folder)?;
    sweep(&folder).map_err(about(&folder))?;
    let fetched = fetch(plan, &context.fetcher, lock)?;
    let pictures = fetch_pictures(plan, &context.fetcher, lock)?;
    let loaded = vision::load(plan, &fetched)?;
    tell_notes(plan, &loaded, context);
    let size = loaded.size();
    let vision::Vision { mut model, classifier, yolo, sources, .. } = loaded;
    let tensorrt = TensorRt::open()?;
    let place = sources.first().map_or(Path::new(&plan.name), PathBuf::as_path);
    let wish = Wish { half: plan.build.precision != Precision::Fp32, force: Some(context.force) };
    let (profile, lean) = ready(&mut model, tensorrt.version, wish, |model| -> anyhow::Result<Vec<ShapeRange>> {
        settings::give_values(plan, model)?;
        let profile = settings::resolve_shapes(plan, size, model)?;
        vision::check(model, place, (classifier.as_ref(), yolo.as_ref()))?;
        Ok(profile)
    })?;
    let own_inputs = tries::own_inputs(plan, &model)?;
    let options = settings::builder_options(plan, tensorrt.version, profile)?;
    let memory = memory::build_estimate(model.summary()?.parameter_bytes, options.workspace_bytes);
    let mut prepared = Prepared {
        plan: plan.clone(),
        folder,
        model,
        lean,
        classifier,
        yolo,
        sources,
        pictures,
        own_inputs,
        options,
        key: Key::default(),
        tensorrt: tensorrt.version,
        device: Device::open().and_then(|device| device.info()).ok(),
        commit: fetched.commit,
        stale: context.rebuild.then(|| "a rebuild was asked for".to_owned()),
        memory,
    };
    prepared.key = settings::key(&prepared)?;
    if prepared.stale.is_none() {
        prepared.stale = settings::staleness(&prepared.folder, &prepared.key, &mut sha256_file);
    }
    if prepared.stale.is_some() {
        place::check_engine(&prepared.folder)?;
    }
    Ok(prepared)
}

fn tell_notes(plan: &Plan, loaded: &vision::Vision, context: &Context) {
    for note in &loaded.notes {
        context.progress.event(Event::Warning(&format!("{}: {note}", plan.name)));
    }
}

/// Builds what `prepare` found stale, proves and publishes it.
pub fn build(prepared: Prepared, context: &Context) -> anyhow::Result<Outcome> {
    let name = prepared.plan.name.clone();
    let stage = |what: &str| context.progress.event(Event::Stage(&format!("{name}: {what}")));
    let folder = prepared.folder.clone();
    if prepared.stale.is_none() {
        return Ok(Outcome { report: Report::load(&folder), folder, cached: true });
    }
    check_memory(&prepared, context)?;
    let staged = StagedDirectory::create(&folder).map_err(about(&folder))?;
    stage("preparing the model");
    place_inputs(&prepared, staged.path(), context)?;
    let report = precision::build_right(&prepared, staged.path(), context)?;
    publish(staged, report, &name, context)
}

/// Builds the engine in its staged directory, with `full` products in float32, and proves it.
fn attempt(prepared: &Prepared, staged: &Path, full: &[String], context: &Context) -> anyhow::Result<Report> {
    let name = &prepared.plan.name;
    let stage = |what: &str| context.progress.event(Event::Stage(&format!("{name}: {what}")));
    let engine = format!("{name}.engine");
    let (options, source) = precision::source(prepared, staged, full)?;
    let job = Job {
        engines: vec![(source.clone(), staged.join(&engine))],
        processes: 1,
        timing_cache: timing_cache(prepared.tensorrt, prepared.device.as_ref()),
        options,
        verbose: false,
    };
    stage(&format!("building with {}", prepared.tensorrt));
    let record = worker::build(&context.isolation, &job, &context.progress, &context.cancel);
    let record = record.map_err(|error| settings::named(prepared, &source, error))?;
    if source != staged.join(MODEL) {
        fs::remove_file(&source)?;
    }
    if record.skipped_tactics > 0 {
        context.progress.event(Event::Warning(&format!(
            "{name}: TensorRT left out {} tactics for lack of memory; a rebuild with more free memory may run faster",
            record.skipped_tactics
        )));
    }
    let mut manifest = manifest(prepared, engine)?;
    manifest.full_products = full.to_vec();
    manifest.build = record;
    if let Some(yolo) = prepared.yolo.as_ref().filter(|yolo| yolo.metadata) {
        let path = staged.join(&manifest.engine);
        let dynamic = !manifest.profile.is_empty();
        let batch = manifest.inputs.first().and_then(|input| input.shape.first().copied().flatten());
        let batch = batch.unwrap_or_else(|| manifest.tuned_batch());
        let metadata = vision::metadata(yolo, batch, &manifest.precision, dynamic, std::time::SystemTime::now());
        let plan = fs::read(&path).map_err(about(&path))?;
        fs::write(&path, plan::join(&metadata, &plan)).map_err(about(&path))?;
    }
    manifest.record_files(staged, &mut sha256_file)?;
    manifest.save(staged)?;
    stage("verifying");
    let runner = settings::runner(&context.isolation);
    let report = verify::verify(staged, &runner, &context.progress, &mut sha256_file);
    report.map_err(|error| match error.downcast::<BackendError>() {
        Ok(error) => settings::named(prepared, &staged.join(MODEL), error).into(),
        Err(error) => error,
    })
}

/// Puts a verified directory in its place, if it passed or `--force` was given.
fn publish(staged: StagedDirectory, report: Report, name: &str, context: &Context) -> anyhow::Result<Outcome> {
    let folder = context.output.join(name);
    if report.failed() && !context.force {
        let failed = report.checks.iter().filter(|check| check.status == verify::Status::Failed);
        let details: Vec<String> = failed.map(|check| format!("  {}: {}", check.name, check.detail)).collect();
        return Err(NotProved { name: name.to_owned(), details: details.join("\n") }.into());
    }
    if context.cancel.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(BackendError::Cancelled.into());
    }
    for check in report.checks.iter().filter(|check| check.status == verify::Status::Warned) {
        context.progress.event(Event::Warning(&format!("{name}: {}: {}", check.name, check.detail)));
    }
    let mut manifest = Manifest::load(staged.path())?;
    manifest.verify.judge.clone_from(&report.judged_by);
    manifest.save(staged.path()).map_err(about(staged.path()))?;
    // Minutes have passed since it was looked at.
    place::check_engine(&folder)?;
    staged.publish().with_context(|| format!("cannot publish {}", folder.display()))?;
    Ok(Outcome { folder, cached: false, report: Some(report) })
}

fn check_memory(prepared: &Prepared, context: &Context) -> anyhow::Result<()> {
    let Some(memory) = Memory::of_this_machine() else { return Ok(()) };
    let have = memory.available.saturating_add(memory.disk_swap);
    if prepared.memory <= have || context.force {
        return Ok(());
    }
    bail!(BackendError::Build(format!(
        "{}: the build needs about {}, {} are available\n  hint: close other programs, set build.workspace_mib, lower \
         build.batch, add swap on a disk, or try all the same with --force",
        prepared.plan.name,
        memory::text(prepared.memory),
        memory::text(have)
    )))
}

/// The float32 model of an engine directory.
const MODEL: &str = "model.onnx";

/// Puts the model, its external data and the pictures into the staged directory.
fn place_inputs(prepared: &Prepared, staged: &Path, context: &Context) -> anyhow::Result<()> {
    let mut model = prepared.model.clone();
    let data = model.flatten_external().into_iter();
    let moves: Vec<place::Move> =
        data.map(|(old, new)| (prepared.model.path().with_file_name(old), staged.join(new))).collect();
    place::place(&moves, &prepared.plan.source, false, context).context("external data")?;
    let path = staged.join(MODEL);
    fs::write(&path, model.to_bytes()?).map_err(about(&path))?;
    // The files may have changed since they were checked: what TensorRT maps is what is looked at here.
    Model::load(&path)?;
    for (name, from) in &prepared.pictures {
        fs::create_dir_all(staged.join("images")).map_err(about(staged))?;
        fs::copy(from, staged.join(name)).with_context(|| format!("picture {}", from.display()))?;
    }
    tries::place(&prepared.own_inputs, staged)
}

/// Writes the float32 model alone, as it would be built from: NAME.onnx in the output folder.
pub fn emit_onnx(plan: &Plan, context: &Context, lock: &mut Lock) -> anyhow::Result<PathBuf> {
    let path = context.output.join(format!("{}.onnx", plan.name));
    place::check_onnx_file(&path, context.force)?;
    let fetched = fetch(plan, &context.fetcher, lock)?;
    if fetched.files.iter().any(|file| is_same_file(&file.path, &path)) {
        bail!("{} is the source itself\n  hint: choose another folder with --output", path.display());
    }
    let loaded = vision::load(plan, &fetched)?;
    tell_notes(plan, &loaded, context);
    let size = loaded.size();
    let mut model = loaded.model;
    settings::give_values(plan, &mut model)?;
    settings::resolve_shapes(plan, size, &mut model)?;
    let place = loaded.sources.first().map_or(Path::new(&plan.name), PathBuf::as_path);
    vision::check(&model, place, (loaded.classifier.as_ref(), loaded.yolo.as_ref()))?;
    anyhow::ensure!(
        model.external_files().is_empty(),
        "{}: the model is an ONNX file with data beside it already: {}",
        plan.name,
        model.path().display()
    );
    fs::create_dir_all(&context.output).map_err(about(&context.output))?;
    crate::artifact::write_file(&path, &model.to_bytes()?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// One timing cache per TensorRT and GPU; RTX has none.
fn timing_cache(tensorrt: Version, device: Option<&DeviceInfo>) -> Option<PathBuf> {
    let device = device.filter(|_| tensorrt.family == Family::Enterprise)?;
    let plain = |text: String| text.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-");
    let name = plain(format!("{tensorrt}-{}-{}.timing", device.name, device.compute_capability));
    Some(cache_dir().join("timing").join(name))
}

/// A manifest with what every kind has; the rest is empty.
fn common_manifest(
    plan: &Plan,
    key: &Key,
    tensorrt: Version,
    device: Option<&DeviceInfo>,
    commit: Option<&str>,
) -> anyhow::Result<Manifest> {
    let text = |value: serde_json::Value| value.as_str().map(str::to_owned).unwrap_or_default();
    Ok(Manifest {
        format: FORMAT,
        name: plan.name.clone(),
        kind: text(serde_json::to_value(plan.kind)?),
        tool: concat!("watus-build ", env!("CARGO_PKG_VERSION")).to_owned(),
        key: key.clone(),
        tensorrt,
        device: device.cloned(),
        l4t: crate::doctor::l4t_release(),
        precision: text(serde_json::to_value(plan.build.precision)?),
        tf32: plan.build.tf32,
        engine: String::new(),
        model: String::new(),
        source: source_text(&plan.source, commit),
        inputs: Vec::new(),
        outputs: Vec::new(),
        profile: Vec::new(),
        classifier: None,
        yolo: None,
        full_products: Vec::new(),
        llm: None,
        quality: None,
        verify: VerifyRecord { tolerance: plan.verify.tolerance, ..VerifyRecord::default() },
        build: BuildRecord::default(),
        files: BTreeMap::new(),
    })
}

fn manifest(prepared: &Prepared, engine: String) -> anyhow::Result<Manifest> {
    let Prepared { plan, model, .. } = prepared;
    let (device, commit) = (prepared.device.as_ref(), prepared.commit.as_deref());
    let mut manifest = common_manifest(plan, &prepared.key, prepared.tensorrt, device, commit)?;
    (manifest.engine, manifest.model) = (engine, MODEL.to_owned());
    (manifest.inputs, manifest.outputs) = (model.inputs()?, model.outputs()?);
    manifest.profile.clone_from(&prepared.options.profile);
    manifest.classifier.clone_from(&prepared.classifier);
    manifest.yolo.clone_from(&prepared.yolo);
    manifest.verify.seeds = plan.verify.seeds;
    manifest.verify.inputs = tries::names(&prepared.own_inputs);
    manifest.verify.images = prepared.pictures.iter().map(|(name, _)| name.clone()).collect();
    Ok(manifest)
}
