//! The stages of a language model's build: judge what can be judged, fetch, plan the memory, emit the layer graphs,
//! build their engines, place the weights, verify, publish. The weights are never read, but for their hash.

mod calibrate;
mod export;
mod files;
mod gguf;
mod judge;
mod memory;
mod quantize;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};

use super::{Context, Outcome, common_manifest, place, publish, settings};
use crate::artifact::{StagedDirectory, about, sweep};
use crate::backend::tensorrt::device::{Device, DeviceInfo};
use crate::backend::tensorrt::{BuildOptions, Family, TensorRt, Version};
use crate::checkpoint::Checkpoint;
use crate::convert::{self, Scheme, Transformer};
use crate::fetch::{Fetched, Fetcher, Hashes, Lock, Modelfile};
use crate::llm::text::{TEXT_FILES, TOOL_USE_TEMPLATE};
use crate::llm::{Record, Shapes};
use crate::manifest::{Key, Manifest};
use crate::progress::Event;
use crate::recipe::{KvCache, LlmPlan, Plan, Precision, SourcePlan};
use crate::tensor::DType;
use crate::verify;
use crate::worker::{self, Job};

pub use export::emit_onnx;
pub use memory::MemoryPlan;

/// A source that is here, and what it is.
struct Source {
    checkpoint: Arc<Checkpoint>,
    model: Transformer,
    /// Everything that was fetched.
    paths: Vec<PathBuf>,
    commit: Option<String>,
    /// What an Ollama model says besides its weights.
    modelfile: Option<Modelfile>,
}

/// Everything known before TensorRT starts.
pub struct Prepared {
    plan: Plan,
    limits: LlmPlan,
    folder: PathBuf,
    source: Source,
    shapes: Shapes,
    dtype: DType,
    options: BuildOptions,
    /// How the layers are quantised.
    scheme: Option<Scheme>,
    /// What a model that comes quantised was made of.
    reference: Option<Source>,
    key: Key,
    tensorrt: Version,
    device: Option<DeviceInfo>,
    hashes: Hashes,
    /// Why the present engine directory cannot stay; `None` when it can.
    pub stale: Option<String>,
    /// What running it will take.
    pub memory: MemoryPlan,
}

fn limits(plan: &Plan) -> anyhow::Result<&LlmPlan> {
    plan.llm.as_ref().with_context(|| format!("{} is not a language model", plan.name))
}

/// Brings a plan's model here, after a look at its small files, and records what was pinned.
pub(super) fn fetch(plan: &Plan, fetcher: &Fetcher, lock: &mut Lock) -> anyhow::Result<Fetched> {
    let fetched = fetcher.fetch(&judge::look_ahead(plan, fetcher, lock)?, lock)?;
    lock.save()?;
    Ok(fetched)
}

fn open(plan: &Plan, fetcher: &Fetcher, lock: &mut Lock) -> anyhow::Result<Source> {
    let limits = limits(plan)?;
    let fetched = fetch(plan, fetcher, lock)?;
    let named = match &plan.source {
        SourcePlan::Hub { file, .. } => file.as_deref(),
        _ => None,
    };
    let wanted = fetched
        .files
        .iter()
        .filter(|file| named.is_none_or(|named| !named.ends_with(".gguf") || gguf::is_of(&file.name, named)));
    let mut paths: Vec<PathBuf> = wanted.map(|file| file.path.clone()).collect();
    judge::configuration(plan, &paths)?;
    let checkpoint = Arc::new(Checkpoint::open(&paths)?);
    // A folder's own files are its source, not those of folders in it.
    let template = checkpoint.config_path.with_file_name(TOOL_USE_TEMPLATE);
    if checkpoint.gguf.is_none() && template.is_file() && !paths.contains(&template) {
        paths.push(template.clone());
    }
    let length = limits.max_input_len + limits.max_output_len;
    let mut model = convert::describe(&checkpoint.config_path, &checkpoint.config, length)?;
    judge::length_of(plan, &model)?;
    model.locate(&checkpoint)?;
    // A text file in another folder is another model's.
    let folder = checkpoint.config_path.parent();
    let own = |path: &PathBuf| path.parent() == folder || *path == template;
    let paths = paths.into_iter().filter(|path| !is_text(path) || own(path)).collect();
    let modelfile = fetcher.modelfile(&plan.source)?;
    gguf::check_template(plan, &checkpoint, modelfile.as_ref(), fetcher)?;
    Ok(Source { checkpoint, model, paths, commit: fetched.commit, modelfile })
}

/// Fetches the source and decides what a build would do.
pub fn prepare(plan: &Plan, context: &Context, lock: &mut Lock) -> anyhow::Result<Prepared> {
    let limits = limits(plan)?.clone();
    let folder = context.output.join(&plan.name);
    place::check_at_first(&folder)?;
    sweep(&folder).map_err(about(&folder))?;
    let mut source = open(plan, &context.fetcher, lock)?;
    // What was built once has been looked at; anything else is before gigabytes are hashed.
    let built = folder.exists();
    let words = if built { Vec::new() } else { judge::words(plan, &source)? };
    warn(plan, context, source.checkpoint.notes.iter().chain(&source.model.notes).chain(&words));
    source.model.kv_type = kv_type(plan, &source.model)?;
    let reference = match &plan.verify.reference {
        Some(source) => {
            let reference = open(&Plan { source: source.clone(), ..plan.clone() }, &context.fetcher, lock);
            Some(reference.with_context(|| format!("{}: the reference of `verify`", plan.name))?)
        }
        None => None,
    };
    let tensorrt = TensorRt::open()?.version;
    let lengths = (limits.max_input_len, limits.max_input_len + limits.max_output_len);
    let shapes = Shapes::new(limits.max_batch_size, lengths, tensorrt.family);
    let (dtype, options) = builder_options(plan, tensorrt)?;
    let device = Device::open().and_then(|device| Ok((device.info()?, device.is_integrated()))).ok();
    let (device, shared) = device.map_or((None, false), |(info, shared)| (Some(info), shared));
    let scheme = quantize::scheme(plan, &source)?;
    let memory = MemoryPlan::new((&source.checkpoint, &source.model), &shapes, dtype, (scheme, shared))?;
    let mut hashes = Hashes::open(&context.fetcher.cache);
    let sources = (&source, reference.as_ref());
    let key = key(plan, sources, &shapes, (tensorrt, device.as_ref(), &options), &mut hashes)?;
    tell_of_hashing(plan, &hashes, context);
    let stale = match context.rebuild {
        true => Some("a rebuild was asked for".to_owned()),
        false => settings::staleness(&folder, &key, &mut |path| hashes.sha256(path)),
    };
    if stale.is_some() {
        place::check_engine(&folder)?;
        if built {
            warn(plan, context, judge::words(plan, &source)?.iter());
        }
    }
    hashes.save()?;
    Ok(Prepared {
        plan: plan.clone(),
        limits,
        folder,
        source,
        shapes,
        dtype,
        options,
        scheme,
        reference,
        key,
        tensorrt,
        device,
        hashes,
        stale,
        memory,
    })
}

fn warn<'a>(plan: &Plan, context: &Context, notes: impl Iterator<Item = &'a String>) {
    for note in notes {
        context.progress.event(Event::Warning(&format!("{}: {note}", plan.name)));
    }
}

fn tell_of_hashing(plan: &Plan, hashes: &Hashes, context: &Context) {
    if hashes.hashed_bytes > 0 {
        let (bytes, seconds) = (crate::memory::text(hashes.hashed_bytes), hashes.seconds);
        let text = format!("{}: hashed {bytes} of new files in {seconds:.1} s", plan.name);
        context.progress.event(Event::Stage(&text));
    }
}

/// How keys and values are kept, if not as they are computed.
fn kv_type(plan: &Plan, model: &Transformer) -> anyhow::Result<Option<DType>> {
    if plan.build.kv_cache == KvCache::Auto {
        return Ok(None);
    }
    // Sixteen bytes are read at once.
    if !model.head_dim.is_multiple_of(16) {
        bail!(
            "{}: heads of {} elements cannot be kept in 8 bits\n  hint: leave out `kv_cache`",
            plan.name,
            model.head_dim
        );
    }
    Ok(Some(DType::Int8))
}

/// The layer graphs carry their types; TensorRT before 9 takes them as a permission only.
fn builder_options(plan: &Plan, version: Version) -> anyhow::Result<(DType, BuildOptions)> {
    let build = &plan.build;
    let mut options = BuildOptions {
        workspace_bytes: build.workspace_mib.map(|mib| u64::from(mib) << 20),
        optimization_level: build.optimization_level,
        compute_capabilities: build.compute_capabilities.clone(),
        ..BuildOptions::default()
    };
    let typed = version.family == Family::Rtx || version.major >= 9;
    options.strongly_typed = typed;
    let dtype = match build.precision {
        Precision::Fp32 => DType::Float32,
        Precision::Fp16 | Precision::Int8 | Precision::Int4 => DType::Float16,
        Precision::Bf16 => DType::BFloat16,
    };
    if dtype == DType::BFloat16 && !typed {
        bail!("{}: {version} has no bfloat16\n  hint: use `precision: fp16`", plan.name)
    }
    options.flags.tf32 = dtype != DType::Float32 || build.tf32;
    options.flags.fp16 = dtype == DType::Float16 && !typed;
    Ok((dtype, options))
}

fn key(
    plan: &Plan,
    (source, reference): (&Source, Option<&Source>),
    shapes: &Shapes,
    (tensorrt, device, options): (Version, Option<&DeviceInfo>, &BuildOptions),
    hashes: &mut Hashes,
) -> anyhow::Result<Key> {
    let mut content = |paths: &mut dyn Iterator<Item = &PathBuf>| -> anyhow::Result<String> {
        let mut content = String::new();
        for path in paths {
            let hash = hashes.sha256(path).with_context(|| format!("cannot read {}", path.display()))?;
            content.push_str(&format!("{} {hash}\n", path.file_name().unwrap_or_default().to_string_lossy()));
        }
        Ok(content)
    };
    let named = plan.llm.iter().filter_map(|llm| llm.chat_template.as_ref()).chain(&plan.build.calibration);
    let judged_by = reference.map(|reference| content(&mut used(reference))).transpose()?;
    let mut content = content(&mut used(source).chain(named))?;
    if let Some(modelfile) = &source.modelfile {
        content.push_str(&serde_json::to_string(&modelfile.generation)?);
    }
    let mut key = Key::default();
    key.text("tool", env!("CARGO_PKG_VERSION"));
    key.text("tensorrt", tensorrt.to_string());
    let gpu = device.map(|device| format!("{} {}", device.name, device.compute_capability));
    key.text("gpu", gpu.unwrap_or_else(|| "none".to_owned()));
    key.hashed("source", content.as_bytes());
    key.hashed("options", &serde_json::to_vec(options)?);
    let verify = (&plan.verify.prompts, plan.verify.tolerance, plan.verify.quality, &judged_by);
    key.hashed("recipe", &serde_json::to_vec(&(shapes, &plan.build, verify))?);
    Ok(key)
}

/// The files of a source that a build uses.
fn used(source: &Source) -> impl Iterator<Item = &PathBuf> {
    let weights = |path: &Path| source.checkpoint.files().iter().any(|file| file.path() == path);
    source.paths.iter().filter(move |path| is_text(path) || weights(path))
}

fn is_text(path: &Path) -> bool {
    TEXT_FILES.iter().any(|text| path.ends_with(text))
}

/// Builds what `prepare` found stale, proves and publishes it.
pub fn build(mut prepared: Prepared, context: &Context) -> anyhow::Result<Outcome> {
    let name = prepared.plan.name.clone();
    if prepared.stale.is_none() {
        let folder = prepared.folder.clone();
        return Ok(Outcome { report: verify::Report::load(&folder), folder, cached: true });
    }
    memory::check(&prepared, context)?;
    let start = Instant::now();
    let staged = StagedDirectory::create(&prepared.folder).map_err(about(&prepared.folder))?;
    let stage = |what: &str| context.progress.event(Event::Stage(&format!("{name}: {what}")));
    let engines = files::emit(&prepared, staged.path())?;
    let count = engines.len();
    let rtx = prepared.tensorrt.family == Family::Rtx;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let job = Job {
        engines,
        // RTX times nothing while it builds, so builds do not disturb each other.
        processes: if rtx { cores.min(3) } else { 1 },
        timing_cache: super::timing_cache(prepared.tensorrt, prepared.device.as_ref()),
        options: prepared.options.clone(),
        verbose: false,
    };
    stage(&format!("building {count} engines with {}", prepared.tensorrt));
    let record = worker::build(&context.isolation, &job, &context.progress, &context.cancel)?;
    let scheme = prepared.scheme;
    files::place_text(&prepared.source, prepared.limits.chat_template.as_deref(), staged.path())?;
    let weights = match scheme {
        Some(scheme) => quantize::write(&prepared, scheme, staged.path(), context)?,
        None => files::place_weights(&mut prepared, staged.path(), context)?,
    };
    let mut manifest = manifest(&prepared, weights)?;
    manifest.build = record;
    if let Some(scheme) = scheme {
        quantize::describe(scheme, staged.path())?;
    }
    if scheme.is_some() || prepared.reference.is_some() || prepared.source.model.kv_type.is_some() {
        stage("comparing what is quantised with the checkpoint");
        manifest.quality = Some(quantize::quality(&prepared, &manifest, staged.path())?);
    }
    let hashes = &mut prepared.hashes;
    manifest.record_files(staged.path(), &mut |path| hashes.sha256(path))?;
    manifest.save(staged.path())?;
    let peak = manifest.build.peak_memory_bytes + worker::peak_memory("self").unwrap_or(0);
    let (seconds, peak) = (start.elapsed().as_secs_f64(), crate::memory::text(peak));
    stage(&format!("built in {seconds:.1} s with at most {peak} of memory"));
    stage("verifying");
    let runner = settings::runner(&context.isolation);
    let report = verify::verify(staged.path(), &runner, &context.progress, &mut |path| hashes.sha256(path))?;
    let outcome = publish(staged, report, &name, context)?;
    prepared.hashes.save()?;
    Ok(outcome)
}

fn manifest(prepared: &Prepared, weights: Vec<String>) -> anyhow::Result<Manifest> {
    let Prepared { plan, source, limits, .. } = prepared;
    let (device, commit) = (prepared.device.as_ref(), source.commit.as_deref());
    let mut manifest = common_manifest(plan, &prepared.key, prepared.tensorrt, device, commit)?;
    // The switch is about float32 alone; engines of other types are built and loaded with it on.
    manifest.tf32 |= prepared.dtype != DType::Float32;
    manifest.verify.prompts.clone_from(&plan.verify.prompts);
    manifest.llm = Some(Record {
        family: source.model.family.to_owned(),
        parameters: source.model.parameters() as u64,
        dtype: prepared.dtype,
        kv_type: source.model.kv_type,
        max_input_len: limits.max_input_len,
        max_output_len: limits.max_output_len,
        shapes: prepared.shapes.clone(),
        weights,
    });
    Ok(manifest)
}
