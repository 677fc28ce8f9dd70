//! Builds language models: checks the source early, fetches it, plans the memory, writes the layer graphs, and places
//! the weights beside the engines. The weights are only hashed, not read otherwise, unless they are quantised.

mod export;
mod files;
mod fit;
mod gguf;
mod judge;
mod memory;
mod quantize;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};

use super::Context;
use super::settings::{self, Typing};
use super::target::{BuildHost, BuildJobs, Description, StagedBuild, Target};
use crate::backend::tensorrt::BuildOptions;
use crate::checkpoint::Checkpoint;
use crate::convert::{self, LayerTypes, Transformer};
use crate::diagnostic::Diagnostic;
use crate::fetch::{Fetched, Fetcher, Lock, Modelfile};
use crate::hashes::Hashes;
use crate::manifest::{EngineContents, Key, VerifyRecord};
use crate::quantize::Schemes;
use crate::recipe::{LlmPlan, Plan, SourcePlan};
use crate::spec::{KvCache, LlmRecord, Shapes, Version};
use crate::tensor::DType;
use crate::text::{TEXT_FILES, TOOL_USE_TEMPLATE};
use memory::MemoryPlan;

pub(super) use export::emit_onnx;
pub(super) use fit::{LlmFit, LlmSettings, fit};

/// A fetched and opened source.
struct OpenedSource {
    checkpoint: Arc<Checkpoint>,
    model: Transformer,
    /// All fetched files.
    paths: Vec<PathBuf>,
    commit: Option<String>,
    /// The Modelfile, for an Ollama model.
    modelfile: Option<Modelfile>,
}

/// A language model to build.
pub(super) struct LlmTarget {
    plan: Plan,
    limits: LlmPlan,
    machine: BuildHost,
    source: OpenedSource,
    shapes: Shapes,
    types: LayerTypes,
    options: BuildOptions,
    /// Quantisation of the layers and of the output matrix.
    schemes: Schemes,
    /// The float checkpoint of an already quantised model, to measure its quality loss.
    reference: Option<OpenedSource>,
    /// Estimated memory at run time.
    memory: MemoryPlan,
}

fn limits(plan: &Plan) -> anyhow::Result<&LlmPlan> {
    plan.model.llm().with_context(|| format!("{} is not a language model", plan.name))
}

/// Fetches a plan's model after checking its small files, and records what was pinned.
pub(super) fn fetch(plan: &Plan, fetcher: &Fetcher, lock: &mut Lock) -> anyhow::Result<Fetched> {
    let fetched = fetcher.fetch(&judge::look_ahead(plan, fetcher, lock)?, lock)?;
    lock.save()?;
    Ok(fetched)
}

fn open(plan: &Plan, fetcher: &Fetcher, lock: &mut Lock) -> anyhow::Result<OpenedSource> {
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
    Ok(OpenedSource { checkpoint, model, paths, commit: fetched.commit, modelfile })
}

impl LlmTarget {
    /// Fetches a plan's source and checks it. Unless it is already `built`, it is checked before gigabytes are hashed.
    pub(super) fn open(plan: &Plan, context: &Context, lock: &mut Lock, built: bool) -> anyhow::Result<Self> {
        let limits = limits(plan)?.clone();
        // Before gigabytes are fetched.
        limits.speculation_text.as_deref().map(files::speculation_text).transpose()?;
        let source = open(plan, &context.fetcher, lock)?;
        let words = if built { Vec::new() } else { judge::check_text_files(plan, &source)? };
        context.warn(&plan.name, source.checkpoint.notes.iter().chain(&source.model.notes).chain(&words));
        let kv_cache = kv_cache(plan, &source.model)?;
        let reference = match &plan.verify.reference {
            Some(source) => {
                let reference = open(&Plan { source: source.clone(), ..plan.clone() }, &context.fetcher, lock);
                Some(reference.with_context(|| format!("{}: the reference of `verify`", plan.name))?)
            }
            None => None,
        };
        let machine = BuildHost::look()?;
        let lengths = (limits.max_input_len, limits.max_input_len + limits.max_output_len);
        let shapes = Shapes::new(limits.max_batch_size, lengths, machine.tensorrt.family);
        let types = LayerTypes { dtype: plan.build.precision.dtype(), kv_cache };
        let options = builder_options(plan, machine.tensorrt, types.dtype)?;
        let schemes = quantize::schemes(plan, &source)?;
        let of_model = (Some(&*source.checkpoint), &source.model);
        let memory = MemoryPlan::new(of_model, &shapes, types, (schemes, machine.shared))?;
        let plan = plan.clone();
        Ok(Self { plan, limits, machine, source, shapes, types, options, schemes, reference, memory })
    }

    /// Names and hashes of the files that a build uses.
    fn content<'a>(paths: impl Iterator<Item = &'a PathBuf>, hashes: &mut Hashes) -> anyhow::Result<String> {
        let mut content = String::new();
        for path in paths {
            let hash = hashes.sha256(path).with_context(|| format!("cannot read {}", path.display()))?;
            content.push_str(&format!("{} {hash}\n", path.file_name().unwrap_or_default().to_string_lossy()));
        }
        Ok(content)
    }
}

/// How keys and values are stored.
fn kv_cache(plan: &Plan, model: &Transformer) -> anyhow::Result<KvCache> {
    // Sixteen bytes are read at once.
    if plan.build.kv_cache == KvCache::Int8 && !model.head_dim.is_multiple_of(16) {
        let what = format!("{}: heads of {} elements cannot be kept in 8 bits", plan.name, model.head_dim);
        bail!(Diagnostic::new(what).with_help("leave out `kv_cache`"));
    }
    Ok(plan.build.kv_cache)
}

/// Builder settings. The layer graphs contain their types, which TensorRT before 9 only takes as a permission.
fn builder_options(plan: &Plan, version: Version, dtype: DType) -> anyhow::Result<BuildOptions> {
    let mut options = settings::builder_options(&plan.build);
    // The switch is about float32 alone; engines of other types are built and loaded with it on.
    options.flags.tf32 |= dtype != DType::Float32;
    match Typing::new(plan, version, dtype)? {
        Typing::Strong => options.strongly_typed = true,
        Typing::Permitted { fp16 } => options.flags.fp16 = fp16,
    }
    Ok(options)
}

/// The files of a source that a build uses.
fn used(source: &OpenedSource) -> impl Iterator<Item = &PathBuf> {
    let weights = |path: &Path| source.checkpoint.files().iter().any(|file| file.path() == path);
    source.paths.iter().filter(move |path| is_text(path) || weights(path))
}

fn is_text(path: &Path) -> bool {
    TEXT_FILES.iter().any(|text| path.ends_with(text))
}

impl Target for LlmTarget {
    fn machine(&self) -> &BuildHost {
        &self.machine
    }

    fn commit(&self) -> Option<&str> {
        self.source.commit.as_deref()
    }

    fn add_key_parts(&self, key: &mut Key, hashes: &mut Hashes) -> anyhow::Result<()> {
        let Self { plan, source, .. } = self;
        let LlmPlan { chat_template, speculation_text, .. } = &self.limits;
        let named = chat_template.iter().chain(&plan.build.calibration).chain(speculation_text);
        let judged_by = self.reference.as_ref().map(|reference| Self::content(used(reference), hashes)).transpose()?;
        let mut content = Self::content(used(source).chain(named), hashes)?;
        if let Some(modelfile) = &source.modelfile {
            content.push_str(&serde_json::to_string(&modelfile.generation)?);
        }
        key.hashed("source", content.as_bytes());
        key.hashed("options", &serde_json::to_vec(&self.options)?);
        let verify = (&plan.verify.prompts, plan.verify.tolerance, plan.verify.quality, &judged_by);
        key.hashed("recipe", &serde_json::to_vec(&(&self.shapes, &plan.build, verify))?);
        Ok(())
    }

    fn memory(&self) -> (u64, Option<u64>) {
        (self.memory.total(), self.machine.device.as_ref().map(|device| device.memory))
    }

    fn memory_text(&self) -> String {
        self.memory.to_string()
    }

    fn too_large(&self, available: u64) -> Diagnostic {
        memory::too_large(self, available)
    }

    fn proof_text(&self) -> String {
        format!("prompts, divergence below {:.0e}", self.plan.verify.tolerance)
    }

    fn notes(&self) -> anyhow::Result<Vec<String>> {
        judge::check_text_files(&self.plan, &self.source)
    }

    fn write_models(&self, staged: &Path, _full: &[String]) -> anyhow::Result<BuildJobs> {
        let engines = files::emit(self, staged)?;
        Ok(BuildJobs { engines, options: self.options.clone(), temporary: Vec::new() })
    }

    /// Places text files, and weights as they are or quantised.
    fn finish(&self, work: &mut StagedBuild<'_>, _full: &[String]) -> anyhow::Result<Description> {
        let Self { plan, source, limits, .. } = self;
        let staged = work.staged;
        files::place_text(source, limits.chat_template.as_deref(), staged)?;
        if let Some(path) = &limits.speculation_text {
            files::place_speculation_text(path, staged)?;
        }
        let mut weights = match self.schemes.layers {
            Some(_) => quantize::write(self, staged, &*work.context.progress)?,
            None => files::place_weights(self, work)?,
        };
        let head = quantize::write_head(self, &mut weights, staged, &*work.context.progress)?;
        let llm = LlmRecord {
            family: source.model.family.to_owned(),
            parameters: source.model.parameters() as u64,
            dtype: self.types.dtype,
            kv_cache: self.types.kv_cache,
            max_input_len: limits.max_input_len,
            max_output_len: limits.max_output_len,
            shapes: self.shapes.clone(),
            weights,
            head,
        };
        let is_quantised = self.schemes != Schemes::default() || !llm.kv_cache.is_auto();
        let quality = if is_quantised || self.reference.is_some() {
            work.context.stage(&plan.name, "comparing the quantised model with the checkpoint");
            Some(quantize::measure_quality(self, &llm, staged)?)
        } else {
            None
        };
        let (prompts, tolerance) = (plan.verify.prompts.clone(), plan.verify.tolerance);
        Ok(Description {
            contents: EngineContents::Llm { llm, quality },
            // The switch is about float32 alone; engines of other types are built and loaded with it on.
            tf32: plan.build.tf32 || self.types.dtype != DType::Float32,
            verify: VerifyRecord { prompts, tolerance, ..VerifyRecord::default() },
        })
    }
}
