//! `inspect`: describes an ONNX file, a PyTorch checkpoint, an engine directory or an engine file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::{Exit, print, print_json, session};
use crate::backend::BackendError;
use crate::backend::tensorrt::{TensorRt, plan};
use crate::checkpoint::torch::TorchFile;
use crate::convert::vision::yolo_root;
use crate::diagnostic::Diagnostic;
use crate::engine_dir::EngineDir;
use crate::log::printable;
use crate::manifest::{EngineContents, GraphEngine, Manifest};
use crate::memory;
use crate::onnx::{Model, Summary};
use crate::progress::Silent;
use crate::verify::{Report, Status};

const IS_NOT: &str =
    "neither an ONNX model (.onnx), a PyTorch checkpoint (.pt), an engine directory nor a TensorRT plan";

/// Describe an ONNX model, a PyTorch checkpoint, an engine directory or an engine file
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// .onnx file, PyTorch .pt file, engine directory, or .engine file
    path: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print the layers as TensorRT reports them; needs the GPU that the engine was built for
    #[arg(long)]
    layers: bool,
}

pub(super) fn execute(args: &Args) -> anyhow::Result<Exit> {
    if args.path.is_dir() {
        engine(args, &args.path)?;
    } else if args.path.extension().is_some_and(|extension| extension == "onnx") {
        let model = Model::read(&args.path)?;
        let summary = model.summary()?;
        if args.json { print_json(&summary)? } else { model_text(&summary)? }
    } else if args.path.extension().is_some_and(|extension| extension == "pt") {
        torch(args)?;
    } else {
        plan_file(args)?;
    }
    Ok(Exit::Success)
}

fn model_text(summary: &Summary) -> anyhow::Result<()> {
    let opsets: Vec<String> = summary
        .opsets
        .iter()
        .map(|(domain, version)| format!("{} {version}", if domain.is_empty() { "ai.onnx" } else { domain }))
        .collect();
    let producer = printable(&summary.producer);
    print(format!("ONNX IR {}, opset {}, by {producer}", summary.ir_version, printable(&opsets.join(", "))))?;
    for input in &summary.inputs {
        print(printable(&format!("input   {input}")))?;
    }
    for output in &summary.outputs {
        print(printable(&format!("output  {output}")))?;
    }
    print(format!("weights {} parameters, {}", summary.parameters, memory::format_bytes(summary.parameter_bytes)))?;
    for file in &summary.external_data {
        print(printable(&format!("data    {file}")))?;
    }
    let mut operators: Vec<_> = summary.operators.iter().collect();
    operators.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let operators: Vec<String> = operators.iter().map(|(name, count)| format!("{name} {count}")).collect();
    print(printable(&format!("nodes   {}", operators.join(", "))))
}

/// Prints the model's part of a manifest: architecture, sizes, classes.
fn model_of(contents: &EngineContents) -> anyhow::Result<()> {
    if let Some(llm) = contents.llm() {
        let parameters = llm.parameters as f64 / 1e9;
        let engines = llm.shapes.layers().len();
        print(printable(&format!("model   {}, {parameters:.2} G parameters, {engines} engines", llm.family)))?;
        print(format!(
            "limits  {} sequences, {} prompt and {} answer tokens",
            llm.shapes.slots, llm.max_input_len, llm.max_output_len
        ))?;
    }
    if let Some(yolo) = contents.yolo() {
        let [height, width] = yolo.size;
        print(format!("model   YOLO, {} classes, {height} x {width} pixels", yolo.names.len()))?;
    }
    Ok(())
}

fn engine(args: &Args, folder: &Path) -> anyhow::Result<()> {
    let engine = EngineDir::load(folder)?;
    if args.layers {
        return layers_of(&engine);
    }
    let (manifest, report) = (&engine.manifest, Report::load(folder));
    if args.json {
        return print_json(&serde_json::json!({ "manifest": manifest, "verify": report }));
    }
    let Manifest { name, contents, precision, tool, .. } = manifest;
    print(printable(&format!("{name}: {} engine, {precision}, by {tool}", contents.kind())))?;
    let gpu = manifest
        .device
        .as_ref()
        .map_or("no GPU".to_owned(), |device| format!("{} {}", device.name, device.compute_capability));
    let l4t = manifest.l4t.as_ref().map(|l4t| format!(", L4T {l4t}")).unwrap_or_default();
    print(format!(
        "built   {:.1} s with {} on {gpu}{l4t}, peak memory {}",
        manifest.build.seconds,
        manifest.tensorrt,
        memory::format_bytes(manifest.build.peak_memory_bytes)
    ))?;
    print(printable(&format!("source  {}", manifest.source)))?;
    model_of(contents)?;
    if let Some(graph) = contents.graph() {
        graph_text(graph)?;
    }
    for (name, file) in &manifest.files {
        let hash = file.sha256.get(..12).unwrap_or(&file.sha256);
        print(printable(&format!("file    {hash} {:>11} {name}", file.bytes)))?;
    }
    for warning in &manifest.build.warnings {
        print(printable(&format!("warned  {warning}")))?;
    }
    for check in report.iter().flat_map(|report| &report.checks) {
        let status = match check.status {
            Status::Passed => "passed",
            Status::Failed => "FAILED",
            Status::Skipped => "skipped",
            Status::Warned => "WARNED",
        };
        print(format!("verify  {} {status}: {}", check.name, check.seen()))?;
    }
    Ok(())
}

fn graph_text(graph: &GraphEngine) -> anyhow::Result<()> {
    if !graph.full_products.is_empty() {
        print(printable(&format!("float32 {}", graph.full_products.join(", "))))?;
    }
    for input in &graph.inputs {
        print(printable(&format!("input   {input}")))?;
    }
    for output in &graph.outputs {
        print(printable(&format!("output  {output}")))?;
    }
    Ok(())
}

/// Prints a PyTorch checkpoint: its task, its modules by class, its weights.
fn torch(args: &Args) -> anyhow::Result<()> {
    let file = TorchFile::open(&args.path)?;
    let model = yolo_root(&file);
    let class = model.class().map_or("no object".to_owned(), |(module, name)| format!("{module}.{name}"));
    let (mut classes, mut tensors, mut parameters) = (BTreeMap::new(), 0, 0);
    for (path, module) in model.modules("")? {
        let (_, name) = module.class().unwrap_or(("", "unknown"));
        *classes.entry(name).or_insert(0) += 1;
        for (name, item) in module.tensors() {
            let tensor = item.tensor(&format!("{path}.{name}"))?;
            tensors += 1;
            // Integers only count batches.
            parameters += if tensor.encoding.is_some() { tensor.count() } else { 0 };
        }
    }
    let names: Vec<&str> =
        model.get("names").iter().flat_map(|names| names.items()).filter_map(|(_, v)| v.text()).collect();
    if args.json {
        let (tensors, modules) = (tensors, &classes);
        return print_json(&serde_json::json!({
            "class": class, "names": names, "tensors": tensors, "parameters": parameters, "modules": modules,
        }));
    }
    print(printable(&format!("{class}, {tensors} tensors, {parameters} parameters and statistics")))?;
    if !names.is_empty() {
        print(printable(&format!("names   {}: {}", names.len(), names.join(", "))))?;
    }
    let mut classes: Vec<_> = classes.into_iter().collect();
    classes.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let classes: Vec<String> = classes.iter().map(|(name, count)| format!("{name} {count}")).collect();
    print(printable(&format!("modules {}", classes.join(", "))))
}

fn plan_file(args: &Args) -> anyhow::Result<()> {
    if args.layers {
        return layers(&args.path);
    }
    let file = session::read_engine(&args.path, IS_NOT)?;
    let (metadata, plan) = plan::split(&file);
    let Some(header) = plan::Header::parse(plan) else { bail!("{}: {IS_NOT}", args.path.display()) };
    if args.json {
        return print_json(&serde_json::json!({ "header": header, "bytes": plan.len(), "metadata": metadata }));
    }
    let by = header.version.map_or("an unknown TensorRT".to_owned(), |version| version.to_string());
    let size = memory::format_bytes(plan.len() as u64);
    print(format!("plan by {by}, {size}; --layers shows more where it can be loaded"))?;
    let Some(metadata) = metadata else { return Ok(()) };
    print("begins with Ultralytics' metadata (`watus-build strip` takes them off):")?;
    for (key, value) in metadata.as_object().into_iter().flatten() {
        print(printable(&format!("{key:<12} {value}")))?;
    }
    Ok(())
}

/// Prints TensorRT's layers of a vision or ONNX engine, after checking that the files are unchanged.
fn layers_of(engine: &EngineDir) -> anyhow::Result<()> {
    if engine.manifest.contents.graph().is_none() {
        bail!("a language model has many engines: name one, e.g. {}", engine.some_engine().display());
    }
    engine.check(false, &Silent)?;
    layers(&engine.some_engine())
}

fn layers(path: &Path) -> anyhow::Result<()> {
    let file = session::read_engine(path, IS_NOT)?;
    let plan = plan::split(&file).1;
    let tensorrt = TensorRt::open()?;
    let foreign = |why: String| {
        let what = Diagnostic::new(format!("{} {why}", path.display()));
        BackendError::Foreign(what.with_help("build it again here: `watus-build build RECIPE`"))
    };
    if let Some(version) = plan::Header::parse(plan).and_then(|header| header.version)
        && version != tensorrt.version
    {
        return Err(foreign(format!("was built by {version}, this machine has {}", tensorrt.version)).into());
    }
    print(tensorrt.inspect(plan).map_err(|error| match error {
        BackendError::Load(message) => foreign(format!("cannot be loaded: {message}")),
        other => other,
    })?)
}
