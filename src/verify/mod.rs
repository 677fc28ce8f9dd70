//! Verifies an engine directory: files, plan header, signature, and, with a GPU, the numbers.
//!
//! The reference is the CPU backend on the directory's ONNX file, which is the original model with its final shapes,
//! not the simplified copy that TensorRT was given. An engine whose execution was not checked is never called verified:
//! the report says so, and `--require-execution` makes it an exit code.

#[cfg(feature = "cli")]
mod endpoint;
mod likelihood;
mod llm;
mod quality;
mod report;
mod sense;
#[cfg(feature = "cli")]
mod serve;
mod vision;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;

use crate::artifact::about;
use crate::backend::isolated::ProofProcess;
use crate::backend::tensorrt::plan::{self, Header};
use crate::backend::tensorrt::{TensorRt, device::Device};
use crate::backend::{BackendError, Session};
use crate::diagnostic::Diagnostic;
use crate::engine_dir::EngineDir;
use crate::manifest::layout::REPORT_FILE;
use crate::manifest::{EngineContents, GraphEngine, Hasher, Manifest};
use crate::onnx;
use crate::progress::{Event, Progress};
use crate::regular_file;
use crate::tensor::{Tensor, TensorSpec, read_npy, unravel};
use crate::vision as pictures;

#[cfg(feature = "cli")]
#[cfg_attr(docsrs, doc(cfg(feature = "cli")))]
pub use endpoint::Endpoint;
pub use quality::quality;
pub use report::{Agreement, Check, Comparison, Perplexity, PromptReport, Report, Sense, Status};
pub use sense::sense;

/// Verifies the engine in `folder` against the CPU reference, both run by `runner`, and writes the report into the
/// folder. `hash` computes or remembers hashes of files.
pub fn verify(
    folder: &Path,
    runner: &ProofProcess,
    progress: &Arc<dyn Progress>,
    hash: Hasher<'_>,
) -> anyhow::Result<Report> {
    let report = examine(folder, runner, progress, hash)?;
    report.save(folder).with_context(|| format!("cannot write {}", folder.join(REPORT_FILE).display()))?;
    Ok(report)
}

/// Verifies like [`verify`], but does not write the report, for folders that may be read-only.
pub fn examine(
    folder: &Path,
    runner: &ProofProcess,
    progress: &Arc<dyn Progress>,
    hash: Hasher<'_>,
) -> anyhow::Result<Report> {
    let dir = EngineDir::load(folder)?;
    let manifest = &dir.manifest;
    let mut report = Report {
        name: manifest.name.clone(),
        time: std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        executed_on: None,
        judged_by: None,
        tolerance: manifest.verify.tolerance,
        checks: Vec::new(),
        comparisons: Vec::new(),
        answers: Vec::new(),
        prompts: Vec::new(),
        perplexity: None,
        sense: Vec::new(),
    };
    match dir.damage(hash) {
        Some(damage) => report.push("hashes", Status::Failed, damage),
        None => report.push("hashes", Status::Passed, format!("{} files", manifest.files.len())),
    }
    // Damaged files are not worth opening.
    if report.failed() {
        return Ok(report);
    }
    match &manifest.contents {
        EngineContents::Llm { llm, quality } => llm::verify(&dir, (llm, quality.as_ref()), progress, &mut report)?,
        EngineContents::Yolo { graph, .. } | EngineContents::Classifier { graph, .. } | EngineContents::Onnx(graph) => {
            prove(GraphSubject { dir: &dir, graph }, runner, progress, &mut report)?;
        }
    }
    Ok(report)
}

/// A vision or ONNX engine in its directory.
#[derive(Clone, Copy)]
struct GraphSubject<'a> {
    dir: &'a EngineDir,
    graph: &'a GraphEngine,
}

/// Verifies a vision or ONNX engine.
fn prove(
    subject: GraphSubject<'_>,
    runner: &ProofProcess,
    progress: &Arc<dyn Progress>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let GraphSubject { dir, graph } = subject;
    let model = dir.path(&graph.model);
    signature(&model, graph, report);
    let path = dir.path(&graph.engine);
    let file = regular_file::read(&path, u64::MAX).with_context(|| format!("cannot read {}", path.display()))?;
    let (_, plan) = plan::split(&file);
    if let Some(tensorrt) = header(&dir.manifest, plan, report)
        && let Some(mut engine) = load(subject, (&tensorrt, runner), (&path, plan), report)
    {
        let reference = runner.reference().open(&model)?;
        execution(subject, (&mut *engine, reference), progress, report)?;
    }
    Ok(())
}

/// Checks that the model has the inputs and outputs of the manifest.
fn signature(model: &Path, graph: &GraphEngine, report: &mut Report) {
    let outcome = onnx::Model::load(model).and_then(|model| {
        let (inputs, outputs) = (model.inputs()?, model.outputs()?);
        Ok(compare_specs(&graph.inputs, &inputs).or_else(|| compare_specs(&graph.outputs, &outputs)))
    });
    let count = graph.inputs.len() + graph.outputs.len();
    match outcome {
        Ok(None) => report.push("signature", Status::Passed, format!("{count} inputs and outputs as the model's")),
        Ok(Some(difference)) => report.push("signature", Status::Failed, difference),
        Err(error) => report.push("signature", Status::Failed, error),
    }
}

/// The outputs of the engine, with those dimensions left open that the model leaves open.
fn with_open_dimensions(model: &[TensorSpec], engine: &[TensorSpec]) -> Vec<TensorSpec> {
    let mut outputs = engine.to_vec();
    for (engine, model) in outputs.iter_mut().zip(model) {
        if model.shape.is_empty() {
            engine.shape.clear();
        }
        for (dim, of_model) in engine.shape.iter_mut().zip(&model.shape) {
            *dim = dim.filter(|_| of_model.is_some());
        }
    }
    outputs
}

fn compare_specs(expected: &[TensorSpec], found: &[TensorSpec]) -> Option<String> {
    if expected.len() != found.len() {
        return Some(format!("{} tensors expected, {} found", expected.len(), found.len()));
    }
    expected.iter().zip(found).find(|(a, b)| a != b).map(|(a, b)| format!("{a} expected, {b} found"))
}

/// Checks the plan against its manifest and this machine's TensorRT and GPU, without loading it. Returns TensorRT if
/// the engine can be executed.
fn header(manifest: &Manifest, plan: &[u8], report: &mut Report) -> Option<Arc<TensorRt>> {
    if let Err(mistake) = plan_agrees(manifest, plan) {
        report.push("header", Status::Failed, mistake);
        return None;
    }
    machine_agrees(manifest, report)
}

/// Checks the manifest against this machine's TensorRT and GPU.
fn machine_agrees(manifest: &Manifest, report: &mut Report) -> Option<Arc<TensorRt>> {
    let built_by = manifest.tensorrt;
    let tensorrt = match TensorRt::open() {
        Ok(tensorrt) => tensorrt,
        Err(error) => {
            report.push("header", Status::Passed, format!("a plan by {built_by}"));
            report.push("execution", Status::Skipped, Diagnostic::from(error).at("not checked"));
            return None;
        }
    };
    if tensorrt.version != built_by {
        let detail = format!("built by {built_by}, this machine has {}: build again", tensorrt.version);
        report.push("header", Status::Failed, detail);
        return None;
    }
    let here = match Device::open().and_then(|device| device.info()) {
        Ok(here) => here,
        Err(error) => {
            report.push("header", Status::Passed, format!("a plan by {built_by}, as installed here"));
            report.push("execution", Status::Skipped, Diagnostic::from(error).at("not checked"));
            return None;
        }
    };
    if let Some(built) = manifest.device.as_ref().filter(|built| built.compute_capability != here.compute_capability) {
        let detail = format!(
            "built on {} ({}), this GPU is {} ({}): build again",
            built.name, built.compute_capability, here.name, here.compute_capability
        );
        report.push("header", Status::Failed, detail);
        return None;
    }
    report.push("header", Status::Passed, format!("a plan by {built_by}, for {}", here.name));
    Some(tensorrt)
}

/// Checks tag, version and length of the plan against the manifest.
fn plan_agrees(manifest: &Manifest, plan: &[u8]) -> Result<(), String> {
    let header = Header::parse(plan).ok_or("the file does not begin like a TensorRT plan")?;
    if let Some(version) = header.version.filter(|version| *version != manifest.tensorrt) {
        return Err(format!("the plan was built by {version}, the manifest says {}", manifest.tensorrt));
    }
    match header.length {
        Some(length) if length != plan.len() as u64 => {
            Err(format!("the plan has {} bytes, its header says {length}", plan.len()))
        }
        _ => Ok(()),
    }
}

/// Loads the engine on the GPU, and checks its inputs and outputs against the manifest's.
fn load(
    GraphSubject { dir, graph }: GraphSubject<'_>,
    (tensorrt, runner): (&TensorRt, &ProofProcess),
    file: (&Path, &[u8]),
    report: &mut Report,
) -> Option<Box<dyn Session>> {
    let engine = match runner.load(tensorrt, file, dir.manifest.tf32) {
        Ok(engine) => engine,
        Err(error) => {
            report.push("execution", Status::Failed, error);
            return None;
        }
    };
    let info = engine.info();
    report.executed_on = Some(format!("{}, {}", info.name, info.device));
    // With a profile, the engine's shapes are open where the manifest's are; TensorRT keeps the model's order. Of outputs it
    // knows sizes that the model leaves open.
    let known = with_open_dimensions(&graph.outputs, engine.outputs());
    let found = compare_specs(&graph.inputs, engine.inputs()).or_else(|| compare_specs(&graph.outputs, &known));
    if let Some(difference) = found {
        report.push("engine signature", Status::Failed, difference);
        return None;
    }
    Some(engine)
}

fn execution(
    subject: GraphSubject<'_>,
    (engine, mut reference): (&mut dyn Session, Box<dyn Session>),
    progress: &Arc<dyn Progress>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let manifest = &subject.dir.manifest;
    report.judged_by = Some(reference.info().name);
    for Case { name, inputs, picture } in cases(subject)? {
        progress.event(Event::Stage(&format!("{}: comparing {name}", manifest.name)));
        let both = engine.run(&inputs).and_then(|have| Ok((have, reference.run(&inputs)?)));
        let compared = both.and_then(|(have, want)| {
            report.comparisons.extend(compare_outputs(reference.outputs(), &name, &have, &want)?);
            Ok((have, want))
        });
        match (compared, picture) {
            (Ok((have, want)), Some(picture)) => {
                report.answers.extend(vision::agreement(manifest, &name, picture, &have, &want));
            }
            (Ok(_), None) => {}
            (Err(error), _) => {
                report.push("execution", Status::Failed, Diagnostic::from(error).at(name));
                return Ok(());
            }
        }
    }
    conclude(report);
    vision::conclude(manifest, report);
    Ok(())
}

fn conclude(report: &mut Report) {
    let worst = report.comparisons.iter().max_by(|a, b| a.relative_error.total_cmp(&b.relative_error));
    let Some(worst) = worst.cloned() else {
        return report.push("execution", Status::Failed, "there was nothing to compare");
    };
    let count = report.comparisons.len();
    let text = format!(
        "{count} comparisons, worst relative error {:.1e} of {:.0e} allowed: {}{:?} for {}, engine {} against {}",
        worst.relative_error, report.tolerance, worst.output, worst.worst, worst.case, worst.engine, worst.reference
    );
    // Not `error <= tolerance` negated: a NaN must fail.
    let passed = worst.relative_error <= report.tolerance;
    report.push("execution", if passed { Status::Passed } else { Status::Failed }, text);
}

/// One input to compare on.
struct Case {
    /// "seed 1", or the name of an image.
    name: String,
    inputs: Vec<Tensor>,
    /// Height and width of the image in pixels.
    picture: Option<[u32; 2]>,
}

/// The inputs to compare on: seeded ones, the user's tensors, then the images.
fn cases(GraphSubject { dir, graph }: GraphSubject<'_>) -> anyhow::Result<Vec<Case>> {
    let manifest = &dir.manifest;
    let mut cases = Vec::new();
    let seeds = 1..=u64::from(manifest.verify.seeds);
    let mut tries: Vec<(u64, &str, Vec<Vec<usize>>)> =
        seeds.map(|seed| (seed, "", graph.input_shapes(|range| &range.opt))).collect();
    if manifest.verify.seeds > 0 && !graph.profile.is_empty() {
        tries.push((1, ", smallest shapes", graph.input_shapes(|range| &range.min)));
        tries.push((1, ", largest shapes", graph.input_shapes(|range| &range.max)));
    }
    for (seed, of_shapes, shapes) in tries {
        let specs = graph.inputs.iter().zip(shapes).zip(0..);
        let inputs: Option<Vec<Tensor>> =
            specs.map(|((spec, shape), index)| Tensor::seeded(spec.dtype, shape, seed * 1000 + index)).collect();
        let inputs = inputs.ok_or_else(|| anyhow::anyhow!("an input type cannot be made on the host"))?;
        cases.push(Case { name: format!("seed {seed}{of_shapes}"), inputs, picture: None });
    }
    for (index, files) in manifest.verify.inputs.iter().enumerate() {
        let read = |file: &String| {
            let path = dir.path(file);
            regular_file::open(&path).and_then(read_npy).map_err(about(&path))
        };
        let inputs = files.iter().map(read).collect::<Result<Vec<Tensor>, _>>()?;
        cases.push(Case { name: format!("own inputs {}", index + 1), inputs, picture: None });
    }
    let Some(model) = dir.picture_model()? else { return Ok(cases) };
    for image in &manifest.verify.images {
        let picture = pictures::read_picture(&dir.path(image))?;
        let inputs = vec![model.tensor(&picture).repeated(model.batches.tuned)];
        cases.push(Case { name: image.clone(), inputs, picture: Some([picture.height(), picture.width()]) });
    }
    Ok(cases)
}

/// Runs engine and reference, and compares every output.
pub fn compare(
    engine: &mut dyn Session,
    reference: &mut dyn Session,
    case: &str,
    inputs: &[Tensor],
) -> Result<Vec<Comparison>, BackendError> {
    let (have, want) = (engine.run(inputs)?, reference.run(inputs)?);
    compare_outputs(reference.outputs(), case, &have, &want)
}

fn compare_outputs(
    specs: &[TensorSpec],
    case: &str,
    have: &[Tensor],
    want: &[Tensor],
) -> Result<Vec<Comparison>, BackendError> {
    let mut comparisons = Vec::new();
    for ((spec, have), want) in specs.iter().zip(have).zip(want) {
        if have.shape() != want.shape() {
            let (have, want) = (have.shape(), want.shape());
            return Err(BackendError::Run(
                format!("output {} has shape {have:?}, the reference {want:?}", spec.name).into(),
            ));
        }
        comparisons.push(compare_tensors(case, &spec.name, have, want));
    }
    Ok(comparisons)
}

/// max|have - want| / max|want|, with the worst element.
pub fn compare_tensors(case: &str, output: &str, have: &Tensor, want: &Tensor) -> Comparison {
    let (a, b) = (have.to_f64(), want.to_f64());
    let scale = b.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    let difference = |index: usize| {
        let difference = (a[index] - b[index]).abs();
        match (a[index] == b[index], difference.is_finite()) {
            (true, _) => 0.0, // infinities of one sign included
            (false, true) => difference,
            (false, false) => f64::INFINITY, // a NaN on either side
        }
    };
    let worst = (0..a.len()).max_by(|x, y| difference(*x).total_cmp(&difference(*y)));
    let error = worst.map_or(0.0, difference);
    let relative_error = if error == 0.0 { 0.0 } else { error / scale };
    Comparison {
        case: case.to_owned(),
        output: output.to_owned(),
        relative_error,
        worst: worst.map(|index| unravel(index, have.shape())).unwrap_or_default(),
        engine: worst.map_or(0.0, |index| a[index]),
        reference: worst.map_or(0.0, |index| b[index]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_finds_the_worst_element() {
        let want = Tensor::from_f32(vec![2, 3], vec![1.0, -10.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let have = Tensor::from_f32(vec![2, 3], vec![1.0, -10.0, 3.0, 4.0, 5.5, 6.0]).unwrap();
        let found = compare_tensors("c", "o", &have, &want);
        assert_eq!((found.worst.as_slice(), found.engine, found.reference), (&[1, 1][..], 5.5, 5.0));
        assert!((found.relative_error - 0.05).abs() < 1e-12);
    }

    #[test]
    fn what_is_not_finite_never_passes() {
        let want = Tensor::from_f32(vec![2], vec![1.0, 2.0]).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let have = Tensor::from_f32(vec![2], vec![1.0, bad]).unwrap();
            for (a, b) in [(&have, &want), (&want, &have)] {
                let error = compare_tensors("c", "o", a, b).relative_error;
                assert!(error.is_nan() || error > 1e9, "{bad}: {error}");
            }
        }
        let zeros = Tensor::from_f32(vec![2], vec![0.0, 0.0]).unwrap();
        assert_eq!(compare_tensors("c", "o", &want, &zeros).relative_error, f64::INFINITY, "reference all zero");
        assert_eq!(compare_tensors("c", "o", &zeros, &zeros).relative_error, 0.0);
    }
}
