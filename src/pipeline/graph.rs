//! Builds vision and other ONNX models: one graph, one engine. `vision.rs` makes the graph from a source, `settings.rs`
//! its shapes from a plan, `precision.rs` its half-precision version.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::precision::{self, FloatModel, HALF_MODEL, LEAN_MODEL};
use super::settings::{self, Typing};
use super::target::{BuildHost, BuildJobs, Description, Emitted, StagedBuild, Target};
use super::vision::{self, Meaning, Vision};
use super::{Context, place, sources, tries};
use crate::artifact::{about, is_same_file, write_file};
use crate::backend::BackendError;
use crate::backend::tensorrt::BuildOptions;
use crate::backend::tensorrt::source::{Wish, explained, ready};
use crate::diagnostic::Diagnostic;
use crate::engine_dir::add_metadata;
use crate::fetch::Lock;
use crate::hashes::Hashes;
use crate::manifest::layout::{IMAGES, MODEL, engine_file};
use crate::manifest::{GraphEngine, Key, VerifyRecord};
use crate::memory::{self, Memory};
use crate::onnx::Model;
use crate::recipe::{ModelPlan, Plan};
use crate::spec::{Precision, ShapeRange};
use crate::tensor::DType;

/// A graph to build.
pub(super) struct GraphTarget {
    plan: Plan,
    machine: BuildHost,
    floats: FloatModel,
    options: BuildOptions,
    meaning: Meaning,
    /// Files that the model was read from.
    sources: Vec<PathBuf>,
    /// Images to verify with, and their names in the engine directory.
    pictures: Vec<(String, PathBuf)>,
    /// The user's tensors to verify with: per item a file for every input, in the model's order.
    own_inputs: Vec<Vec<PathBuf>>,
    commit: Option<String>,
    /// Estimated peak memory of the build in bytes.
    memory: u64,
}

/// The plan's builder settings for this machine's TensorRT.
fn builder_options(plan: &Plan, machine: &BuildHost, profile: Vec<ShapeRange>) -> anyhow::Result<BuildOptions> {
    let build = &plan.build;
    let mut options = BuildOptions { detailed_profiling: true, profile, ..settings::builder_options(build) };
    if build.precision.bits().is_some() {
        bail!("{}: int8 and int4 are for language models", plan.name);
    }
    let dtype = build.precision.dtype();
    match Typing::new(plan, machine.tensorrt, dtype)? {
        // A graph in float32 is built as it is.
        Typing::Strong => options.strongly_typed = dtype != DType::Float32,
        Typing::Permitted { fp16 } => {
            (options.flags.fp16, options.flags.obey_precision_constraints) = (fp16, fp16);
        }
    }
    Ok(options)
}

/// The file that errors about a model name.
fn origin<'a>(sources: &'a [PathBuf], plan: &'a Plan) -> &'a Path {
    sources.first().map_or(Path::new(&plan.name), PathBuf::as_path)
}

impl GraphTarget {
    /// Fetches a plan's source, and checks whether it can be built.
    pub(super) fn open(plan: &Plan, context: &Context, lock: &mut Lock) -> anyhow::Result<Self> {
        let fetched = sources::fetch(plan, &context.fetcher, lock)?;
        let pictures = sources::fetch_pictures(plan, &context.fetcher, lock)?;
        let Vision { mut model, meaning, sources, notes } = vision::load(plan, &fetched)?;
        context.warn(&plan.name, &notes);
        let machine = BuildHost::look()?;
        let place = origin(&sources, plan);
        let wish = Wish { half: plan.build.precision != Precision::Fp32, force: Some(context.force) };
        let (profile, lean) = ready(&mut model, machine.tensorrt, wish, |model| -> anyhow::Result<Vec<ShapeRange>> {
            settings::give_values(plan, model)?;
            let profile = settings::resolve_shapes(plan, meaning.size(), model)?;
            vision::check(model, place, &meaning)?;
            Ok(profile)
        })?;
        let own_inputs = tries::own_inputs(plan, &model)?;
        let options = builder_options(plan, &machine, profile)?;
        let memory = memory::build_estimate(model.summary()?.parameter_bytes, options.workspace_bytes);
        let floats = FloatModel { model, lean, tensorrt: machine.tensorrt };
        let (plan, commit) = (plan.clone(), fetched.commit);
        Ok(Self { plan, machine, floats, options, meaning, sources, pictures, own_inputs, commit, memory })
    }

    /// Hashes of all files that the engine is made of and verified with.
    fn content(&self, hashes: &mut Hashes) -> anyhow::Result<String> {
        let mut content = String::new();
        for file in &self.sources {
            content.push_str(&hashes.sha256(file).with_context(|| format!("source {}", file.display()))?);
        }
        for (name, picture) in &self.pictures {
            content.push_str(name);
            content.push_str(&hashes.sha256(picture).with_context(|| format!("picture {}", picture.display()))?);
        }
        for file in self.own_inputs.iter().flatten() {
            content.push_str(&hashes.sha256(file).with_context(|| format!("input {}", file.display()))?);
        }
        Ok(content)
    }
}

impl Target for GraphTarget {
    fn machine(&self) -> &BuildHost {
        &self.machine
    }

    fn commit(&self) -> Option<&str> {
        self.commit.as_deref()
    }

    fn add_key_parts(&self, key: &mut Key, hashes: &mut Hashes) -> anyhow::Result<()> {
        let plan = &self.plan;
        key.hashed("source", self.content(hashes)?.as_bytes());
        if let ModelPlan::Onnx { inputs } = &plan.model
            && !inputs.is_empty()
        {
            key.hashed("inputs", &serde_json::to_vec(inputs)?);
        }
        key.hashed("options", &serde_json::to_vec(&self.options)?);
        // The plan without paths: moving a recipe changes nothing.
        let (kind, meaning) = (plan.model.kind(), (self.meaning.classifier(), self.meaning.yolo()));
        let verify = (plan.verify.seeds, plan.verify.tolerance);
        key.hashed("recipe", &serde_json::to_vec(&(kind, &plan.build, meaning.0, meaning.1, verify))?);
        Ok(())
    }

    fn memory(&self) -> (u64, Option<u64>) {
        let memory = Memory::of_this_machine();
        (self.memory, memory.map(|memory| memory.available.saturating_add(memory.disk_swap)))
    }

    fn memory_text(&self) -> String {
        let have =
            Memory::of_this_machine().map_or("unknown".to_owned(), |memory| memory::format_bytes(memory.available));
        format!("about {} of memory, {have} available", memory::format_bytes(self.memory))
    }

    fn too_large(&self, available: u64) -> Diagnostic {
        Diagnostic::new(format!(
            "{}: the build needs about {}, {} are available",
            self.plan.name,
            memory::format_bytes(self.memory),
            memory::format_bytes(available)
        ))
        .with_help(
            "close other programs, set build.workspace_mib, lower build.batch, add swap on a disk, or try all the same with \
             --force",
        )
    }

    fn proof_text(&self) -> String {
        let verify = &self.plan.verify;
        let (seeds, images, tolerance) = (verify.seeds, verify.images.len(), verify.tolerance);
        format!("{seeds} random inputs, {images} pictures, tolerance {tolerance:.0e}")
    }

    /// Stages the model, its external data, and what it is verified with.
    fn place(&self, work: &mut StagedBuild<'_>) -> anyhow::Result<()> {
        let staged = work.staged;
        let mut model = self.floats.model.clone();
        let data = model.flatten_external().into_iter();
        let moves: Vec<place::Move> =
            data.map(|(old, new)| (self.floats.model.path().with_file_name(old), staged.join(new))).collect();
        place::place(&moves, &self.plan.source, false, work.context).context("external data")?;
        for (from, to) in &moves {
            work.hashes.copied(from, to).map_err(about(from))?;
        }
        let path = staged.join(MODEL);
        fs::write(&path, model.to_bytes()?).map_err(about(&path))?;
        // The files may have changed since they were checked: what TensorRT maps is what is looked at here.
        Model::load(&path)?;
        for (name, from) in &self.pictures {
            fs::create_dir_all(staged.join(IMAGES)).map_err(about(staged))?;
            fs::copy(from, staged.join(name)).with_context(|| format!("picture {}", from.display()))?;
        }
        tries::place(&self.own_inputs, staged)
    }

    fn half_products(&self) -> anyhow::Result<Option<Vec<String>>> {
        match precision::half(self.plan.build.precision, &[]) {
            Some(half) => Ok(Some(self.floats.built().half_products(&half)?)),
            None => Ok(None),
        }
    }

    fn write_models(&self, staged: &Path, full: &[String]) -> anyhow::Result<BuildJobs> {
        let half = precision::half(self.plan.build.precision, full);
        let (options, model) = self.floats.write(self.options.clone(), half.as_ref(), staged)?;
        let temporary = if model == staged.join(MODEL) { Vec::new() } else { vec![model.clone()] };
        let engine = staged.join(engine_file(&self.plan.name));
        Ok(BuildJobs { engines: vec![(model, engine)], options, temporary })
    }

    /// Rewrites errors to name the original file instead of the staged copy, which is soon gone, and nodes by name; for
    /// what could not be built the reason comes first.
    fn explain(&self, staged: &Path, error: anyhow::Error) -> anyhow::Error {
        let error = match error.downcast::<BackendError>() {
            Ok(error) => error,
            Err(error) => return error,
        };
        let built = self.floats.built();
        let source = self.sources.first().map_or(self.floats.model.path(), PathBuf::as_path);
        let named = |text: &str| {
            let text = [MODEL, LEAN_MODEL, HALF_MODEL].iter().fold(text.to_owned(), |text, model| {
                text.replace(&*staged.join(model).to_string_lossy(), &source.to_string_lossy())
            });
            built.name_nodes(&text)
        };
        let error = match error {
            BackendError::Build(said) => {
                BackendError::Build(explained(built, source, self.machine.tensorrt, said.map_message(named)))
            }
            BackendError::Load(said) => BackendError::Load(said.map_message(named)),
            BackendError::Run(said) => BackendError::Run(said.map_message(named)),
            other => other,
        };
        error.into()
    }

    fn finish(&self, work: &mut StagedBuild<'_>, full: &[String]) -> anyhow::Result<Description> {
        let (plan, model) = (&self.plan, &self.floats.model);
        let graph = GraphEngine {
            engine: engine_file(&plan.name),
            model: MODEL.to_owned(),
            inputs: model.inputs()?,
            outputs: model.outputs()?,
            profile: self.options.profile.clone(),
            full_products: full.to_vec(),
        };
        if let Some(yolo) = self.meaning.yolo().filter(|yolo| yolo.metadata) {
            add_metadata(&work.staged.join(&graph.engine), &graph, yolo, plan.build.precision)?;
        }
        let verify = VerifyRecord {
            seeds: plan.verify.seeds,
            images: self.pictures.iter().map(|(name, _)| name.clone()).collect(),
            inputs: tries::names(&self.own_inputs),
            tolerance: plan.verify.tolerance,
            ..VerifyRecord::default()
        };
        Ok(Description { contents: self.meaning.contents(graph), tf32: plan.build.tf32, verify })
    }
}

/// Writes only the float32 model that would be built from, as NAME.onnx in the output folder.
pub(super) fn emit_onnx(plan: &Plan, context: &Context, lock: &mut Lock) -> anyhow::Result<Emitted> {
    let path = context.output.join(format!("{}.onnx", plan.name));
    place::check_onnx_file(&path, context.force)?;
    let fetched = sources::fetch(plan, &context.fetcher, lock)?;
    if fetched.files.iter().any(|file| is_same_file(&file.path, &path)) {
        let what = Diagnostic::new(format!("{} is the source itself", path.display()));
        bail!(what.with_help("choose another folder with --output"));
    }
    let Vision { mut model, meaning, sources, notes } = vision::load(plan, &fetched)?;
    context.warn(&plan.name, &notes);
    settings::give_values(plan, &mut model)?;
    settings::resolve_shapes(plan, meaning.size(), &mut model)?;
    vision::check(&model, origin(&sources, plan), &meaning)?;
    anyhow::ensure!(
        model.external_files().is_empty(),
        "{}: the model is an ONNX file with data beside it already: {}",
        plan.name,
        model.path().display()
    );
    fs::create_dir_all(&context.output).map_err(about(&context.output))?;
    write_file(&path, &model.to_bytes()?).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Emitted { path, seconds: None })
}
