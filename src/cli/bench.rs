//! `bench`: measures an engine's speed on this machine. `shapes.rs` determines the input shapes of a bare ONNX file.

mod shapes;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::builder::TypedValueParser;

use super::outputs::refuse_others;
use super::session::{self, Choice};
use super::{Environment, Exit, print, print_json};
use crate::artifact::write_file;
use crate::backend::tensorrt::device::Device;
use crate::backend::{BackendError, Session, cpu};
use crate::bench::{self, BenchObserver, ConditionsSampler, LatencyReport, LlmBenchPlan, LlmReport};
use crate::diagnostic::Diagnostic;
use crate::engine_dir::EngineDir;
use crate::manifest::GraphEngine;
use crate::progress::{Event, Progress};
use crate::sensors::Sensors;
use crate::system_root::Root;
use crate::tensor::{Tensor, TensorSpec};
use crate::vision;

/// Most iterations of one measurement, since all times are kept in memory.
const RUNS: u32 = 10_000_000;
/// Longest prompt of a language model in tokens, the same limit as in recipes.
const TOKENS: u32 = 1_048_576;
/// Largest batch size, the same limit as in recipes.
const BATCH: u32 = 65_536;

/// Argument parser for whole numbers within a range.
fn within(range: RangeInclusive<u32>) -> impl TypedValueParser<Value = usize> {
    let range = i64::from(*range.start())..=i64::from(*range.end());
    clap::value_parser!(u32).range(range).try_map(usize::try_from)
}

/// Measure latency and throughput of engines on seeded inputs; for language models time to first token and tokens per
/// second
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Engine directories, or .onnx files (run on the CPU reference)
    #[arg(required = true, value_name = "ENGINE")]
    engines: Vec<PathBuf>,
    /// Where to run the model
    #[arg(long, value_enum, default_value = "auto")]
    backend: Choice,
    /// Hash every file of the engine directories before loading, not only those that changed
    #[arg(long)]
    verify: bool,
    /// Timed runs
    #[arg(short = 'n', long, default_value_t = 200, value_name = "N", value_parser = within(1..=RUNS))]
    iterations: usize,
    /// Untimed runs before the timed ones
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = within(0..=RUNS))]
    warmup: usize,
    /// Language models: prompt lengths in tokens to measure time to first token at; a spoken turn has 10 to 60
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    #[arg(default_value = "1,8,16,17,24,32,33,48,61,64,65,128,256,512,1024,2048")]
    #[arg(value_parser = within(1..=TOKENS))]
    lengths: Vec<usize>,
    /// Language models: tokens in the KV cache at which decoding speed is measured
    #[arg(long, value_delimiter = ',', default_value = "128,1024", value_name = "N,…")]
    #[arg(value_parser = within(0..=TOKENS))]
    contexts: Vec<usize>,
    /// Language models: drafted tokens in a launch to measure the time of, as speculation verifies them, at each of the
    /// contexts [default: none]
    #[arg(long, value_delimiter = ',', value_name = "N,…", value_parser = within(1..=TOKENS))]
    drafted: Vec<usize>,
    /// Batch sizes, for an engine with a dynamic batch [default: the batch the engine is tuned for]
    #[arg(long, value_delimiter = ',', value_name = "N,…", value_parser = within(1..=BATCH))]
    batch: Vec<usize>,
    /// Shape of an input, for an .onnx file with dynamic dimensions besides the batch; repeatable, once for each input
    #[arg(long = "shape", value_name = "NAME=N,…", conflicts_with = "batch")]
    shapes: Vec<String>,
    /// Language models: result files to compare with, from llama-bench (`-o json`), llama-batched-bench
    /// (`--output-format jsonl`) or `watus-build bench --json`
    #[arg(long, value_name = "FILE", conflicts_with = "json", num_args = 1..)]
    compare: Vec<PathBuf>,
    /// Print JSON instead of a Markdown table
    #[arg(long)]
    json: bool,
    /// Write a chart of the latencies as SVG
    #[arg(long, value_name = "FILE.svg")]
    chart: Option<PathBuf>,
}

pub(super) fn execute(args: &Args, environment: &Environment) -> anyhow::Result<Exit> {
    if let Some(chart) = &args.chart {
        refuse_others(chart, |head| head.starts_with(b"<svg"), "SVG")?;
    }
    let mut reports = Vec::new();
    let notes = crate::doctor::performance_notes();
    let mut models = Vec::new();
    for path in &args.engines {
        if let Some(report) = language_model(args, path, environment)? {
            models.push(LlmReport { notes: notes.clone(), ..report });
            continue;
        }
        let (opened, inputs, mut session) = open(args, path, environment)?;
        let graph = opened.as_ref().map(EngineDir::graph).transpose()?;
        let own = graph.map_or(1, GraphEngine::tuned_batch);
        let subject = Subject { path, engine: opened.as_ref().zip(graph), inputs };
        for batch in if args.batch.is_empty() { vec![own] } else { args.batch.clone() } {
            let mut report = engine(args, &subject, (&mut *session, batch), environment)?;
            report.notes.clone_from(&notes);
            reports.push(report);
        }
    }
    anyhow::ensure!(
        models.is_empty() || reports.is_empty(),
        "language models and other engines are measured differently: give one kind at a time"
    );
    anyhow::ensure!(args.compare.is_empty() || reports.is_empty(), "--compare is for language models");
    let peers = peers(&args.compare)?;
    match (args.json, models.is_empty()) {
        (true, true) => print_json(&reports)?,
        (true, false) => print_json(&models)?,
        (false, true) => print(bench::markdown(&reports).trim_end())?,
        (false, false) => print(bench::llm_markdown(&models).trim_end())?,
    }
    for report in models.iter().filter(|_| !peers.is_empty()) {
        print(format!("\n{}", bench::compare_markdown(report, &peers).trim_end()))?;
    }
    if let Some(path) = &args.chart {
        let svg = match &models[..] {
            [] => bench::svg(&reports),
            [report] if !peers.is_empty() => bench::compare_svg(report, &peers),
            _ => bench::llm_svg(&models),
        };
        let svg = svg.map_err(anyhow::Error::msg)?;
        write_file(path, svg.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(Exit::Success)
}

/// An opened model: its engine directory (`None` for a bare .onnx file), its inputs and its session.
type Opened = (Option<EngineDir>, Vec<TensorSpec>, Box<dyn Session>);

/// Opens an engine directory or a bare .onnx file.
fn open(args: &Args, path: &Path, environment: &Environment) -> anyhow::Result<Opened> {
    if path.extension().is_some_and(|extension| extension == "onnx") {
        let inputs = shapes::fixed(path, &args.shapes, args.backend)?;
        return Ok((None, inputs, session::open_onnx(path, args.backend)?));
    }
    anyhow::ensure!(args.shapes.is_empty(), "{}: its shapes are fixed: --shape is for .onnx files", path.display());
    let opened = EngineDir::load_checked(path, args.verify, &*environment.progress)?;
    let session = session::open(&opened, args.backend)?;
    let inputs = opened.graph()?.inputs.clone();
    Ok((Some(opened), inputs, session))
}

/// Reads the results of other tools, for `--compare`.
fn peers(files: &[PathBuf]) -> anyhow::Result<Vec<bench::Peer>> {
    let mut peers = Vec::new();
    for path in files {
        let text = crate::regular_file::read_text(path, 64 << 20)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let read = bench::Peer::read(&text).map_err(anyhow::Error::msg);
        peers.extend(read.with_context(|| format!("{} is no result file", path.display()))?);
    }
    Ok(peers)
}

/// A model to measure.
struct Subject<'a> {
    path: &'a Path,
    /// The engine directory and its record; `None` for a bare .onnx file.
    engine: Option<(&'a EngineDir, &'a GraphEngine)>,
    inputs: Vec<TensorSpec>,
}

/// Measures a vision or ONNX engine at one batch size: on seeded inputs, and from image to result if it takes images.
fn engine(
    args: &Args,
    subject: &Subject<'_>,
    (session, batch): (&mut dyn Session, usize),
    environment: &Environment,
) -> anyhow::Result<LatencyReport> {
    let Subject { path, engine, inputs: specs } = subject;
    let name = match engine {
        Some((engine, _)) => engine.manifest.name.clone(),
        None => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
    };
    let graph = engine.map(|(_, graph)| graph);
    let inputs = seeded(specs, graph, batch).with_context(|| format!("{name} has an input no tensor fits"))?;
    environment.progress.event(Event::Stage(&format!("{name}: {} runs of {batch}", args.warmup + args.iterations)));
    let sampler = ConditionsSampler::start(Sensors::new(Root::live()));
    let model = engine.map_or(path.to_path_buf(), |(engine, graph)| engine.path(&graph.model));
    let mut own = session::measured(session, &model, &inputs)?;
    let session: &mut dyn Session = match &mut own {
        Some(own) => &mut **own,
        None => session,
    };
    let mut report = bench::measure(&name, session, &inputs, args.warmup, args.iterations)?;
    report.conditions = Some(sampler.stop());
    let Some((engine, _)) = engine else { return Ok(report) };
    let Some(image) = engine.manifest.verify.images.first() else { return Ok(report) };
    let Some(model) = engine.picture_model()? else { return Ok(report) };
    let picture = vision::read_picture(&engine.path(image))?;
    let prepare = || model.tensor(&picture).repeated(report.batch);
    let answer = |outputs: &[Tensor]| {
        let answered = model.answer(outputs, &picture).map(drop);
        answered.map_err(|error| BackendError::Run(error.into()))
    };
    report.stages = bench::measure_stages(session, &prepare, &answer, (args.warmup, args.iterations))?;
    Ok(report)
}

/// Measures a language model. Returns `None` if `path` is something else.
fn language_model(args: &Args, path: &Path, environment: &Environment) -> anyhow::Result<Option<LlmReport>> {
    if !path.is_dir() {
        return Ok(None);
    }
    // Of other engines the caller checks the files.
    let engine = EngineDir::load(path)?;
    let name = &engine.manifest.name;
    let Some(record) = engine.manifest.contents.llm() else { return Ok(None) };
    let progress = &*environment.progress;
    engine.check(args.verify, progress)?;
    let files = engine.weights();
    // Opened before: a context is not what loading takes.
    let device = (args.backend != Choice::Cpu).then(|| Device::open().ok()).flatten();
    let used = move || device.as_ref().and_then(Device::used_memory);
    let sampler = bench::MemorySampler::start(files, Box::new(used));
    let start = Instant::now();
    let generator = session::open_llm(&engine, args.backend, progress);
    let loaded = (start.elapsed().as_secs_f64(), sampler.stop());
    let mut generator = generator?;
    let on_gpu = !cpu::is_reference(&generator.executor().info());
    let rows = generator.executor().rows();
    if let Some(over) = args.drafted.iter().find(|drafted| **drafted >= rows) {
        let what = format!(
            "{name}: --drafted {over}: a launch has at most {rows} rows here, one of them the token before the draft"
        );
        bail!(Diagnostic::new(what).with_help("leave it out"));
    }
    let plan = LlmBenchPlan {
        lengths: args.lengths.iter().copied().filter(|length| *length <= record.max_input_len).collect(),
        contexts: args.contexts.clone(),
        drafted: args.drafted.clone(),
        // A prompt takes seconds on a CPU, and its noise is small beside that.
        prompts: if on_gpu { 10 } else { 2 },
        steps: if on_gpu { 50 } else { 10 },
    };
    let conditions = ConditionsSampler::start(Sensors::new(Root::live()));
    let mut heard = Heard { name, progress, conditions: &conditions, on_gpu };
    let report = bench::measure_llm(name, generator.executor(), &plan, loaded, &mut heard)?;
    Ok(Some(LlmReport { conditions: Some(conditions.stop()), ..report }))
}

/// Tells the progress of a language model's measurement.
struct Heard<'a> {
    name: &'a str,
    progress: &'a dyn Progress,
    conditions: &'a ConditionsSampler,
    /// Elsewhere the energy of an idle GPU would be told.
    on_gpu: bool,
}

impl BenchObserver for Heard<'_> {
    fn begins(&mut self, what: &str) {
        self.progress.event(Event::Stage(&format!("{}: {what}", self.name)));
    }

    fn joules(&self) -> Option<f64> {
        self.on_gpu.then(|| self.conditions.joules()).flatten()
    }
}

/// Seeded inputs in the shapes the engine is tuned for, with `batch` as the dynamic first dimension.
fn seeded(specs: &[TensorSpec], graph: Option<&GraphEngine>, batch: usize) -> Option<Vec<Tensor>> {
    let tuned = graph.map(|graph| graph.input_shapes(|range| &range.opt)).unwrap_or_default();
    let shape = |(at, spec): (usize, &TensorSpec)| {
        let mut shape = tuned.get(at).cloned().unwrap_or_else(|| spec.shape_with(batch));
        if let (Some(None), Some(first)) = (spec.shape.first(), shape.first_mut()) {
            *first = batch;
        }
        shape
    };
    let shapes = specs.iter().enumerate().map(shape);
    specs.iter().zip(shapes).zip(1..).map(|((spec, shape), seed)| Tensor::seeded(spec.dtype, shape, seed)).collect()
}
