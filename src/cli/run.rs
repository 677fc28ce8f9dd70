//! `run`: one answer from an engine.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::generate::{self, GenerateArgs};
use super::session::{self, Choice};
use super::{Environment, Exit, print, print_json};
use crate::artifact::StagedFile;
use crate::backend::Session;
use crate::manifest::Manifest;
use crate::tensor::{Tensor, read_npy, write_npy};
use crate::vision;

/// Run an engine: pictures in, a prompt in, or tensors
///
/// A language model takes a prompt, as words or from standard input, and streams its answer; on a terminal without a
/// prompt it converses. A classifier takes pictures and prints its answers. Any engine, or a bare .onnx file on the CPU reference, takes
/// tensors: `--input NAME=FILE.npy`, with `--save DIR` for the outputs.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Engine directory, or an .onnx file
    engine: PathBuf,
    /// Pictures (PNG, JPEG), or the words of a prompt
    #[arg(value_name = "PICTURE|PROMPT")]
    images: Vec<PathBuf>,
    /// Input tensor from a .npy file
    #[arg(long = "input", value_name = "NAME=FILE", conflicts_with = "images")]
    inputs: Vec<String>,
    /// Write every output to DIR/NAME.npy
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Who computes
    #[arg(long, value_enum, default_value = "auto")]
    backend: Choice,
    /// Print the answers as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    generation: GenerateArgs,
}

pub(super) fn execute(args: &Args, environment: &Environment) -> anyhow::Result<Exit> {
    let is_model = args.engine.extension().is_some_and(|extension| extension == "onnx");
    let manifest = if is_model { None } else { Some(Manifest::load(&args.engine)?) };
    if let Some((manifest, record)) = manifest.as_ref().and_then(|manifest| Some((manifest, manifest.llm.as_ref()?))) {
        let generator = session::open_llm(&args.engine, manifest, record, args.backend, &*environment.progress)?;
        let words: Vec<String> = args.images.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        return generate::execute(generator, &words.join(" "), &args.generation, args.json, environment);
    }
    if args.images.is_empty() && args.inputs.is_empty() {
        bail!("nothing to run on\n  hint: give pictures, or tensors with --input NAME=FILE.npy");
    }
    let mut session = match &manifest {
        Some(manifest) => session::open(&args.engine, manifest, args.backend)?,
        None => session::open_onnx(&args.engine, args.backend)?,
    };
    match &manifest {
        Some(manifest) if !args.images.is_empty() => pictures(args, manifest, &mut *session)?,
        _ if !args.images.is_empty() => bail!("a bare model does not say how pictures become tensors: use --input"),
        _ => tensors(args, &mut *session)?,
    }
    Ok(Exit::Success)
}

fn pictures(args: &Args, manifest: &Manifest, session: &mut dyn Session) -> anyhow::Result<()> {
    let Some(classifier) = &manifest.classifier else {
        bail!("{} is a `{}` engine, which takes tensors: use --input NAME=FILE.npy", manifest.name, manifest.kind);
    };
    let [input] = &manifest.inputs[..] else { bail!("{} does not have one input", manifest.name) };
    let size = vision::input_size(&classifier.preprocess, &input.shape)?;
    let batch = input.shape.first().copied().flatten().unwrap_or(1);
    let info = session.info();
    let mut answers = Vec::new();
    for path in &args.images {
        let outputs = session.run(&[classifier.input(path, size, batch)?])?;
        save(args, session, &outputs)?;
        let answer = classifier.answer(outputs.first().context("the engine has no output")?)?;
        if args.json {
            let (engine, device) = (&manifest.name, &info.device);
            let backend = &info.name;
            answers.push(serde_json::json!({
                "engine": engine, "picture": path, "backend": backend, "device": device, "answer": answer,
            }));
            continue;
        }
        let percent = |probability: f32| format!("{:.1} %", probability * 100.0);
        let said = match answer.value {
            Some(value) => format!("{value:.1} (most likely class {}, {})", answer.label, percent(answer.probability)),
            None => format!("{} ({})", answer.label, percent(answer.probability)),
        };
        print(format!("{}: {said}  [{}, {}]", manifest.name, path.display(), info.name))?;
    }
    if args.json { print_json(&answers) } else { Ok(()) }
}

fn tensors(args: &Args, session: &mut dyn Session) -> anyhow::Result<()> {
    let mut given = Vec::new();
    for input in &args.inputs {
        let (name, file) = input.split_once('=').with_context(|| format!("--input {input}: write NAME=FILE.npy"))?;
        let reader = BufReader::new(File::open(file).with_context(|| format!("cannot open {file}"))?);
        given.push((name, read_npy(reader).with_context(|| format!("cannot read {file}"))?));
    }
    let names: Vec<&str> = session.inputs().iter().map(|spec| spec.name.as_str()).collect();
    if let Some((name, _)) = given.iter().find(|(name, _)| !names.contains(name)) {
        bail!("the model has no input `{name}`; it has {}", names.join(", "));
    }
    let mut inputs = Vec::new();
    for spec in session.inputs() {
        let position = given.iter().position(|(name, _)| *name == spec.name);
        let position =
            position.with_context(|| format!("input {spec} is missing: give --input {}=FILE.npy", spec.name))?;
        inputs.push(given.swap_remove(position).1);
    }
    let outputs = session.run(&inputs)?;
    save(args, session, &outputs)?;
    for (spec, output) in session.outputs().iter().zip(&outputs) {
        let values = output.to_f64();
        let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        print(format!(
            "{} {}{:?}: min {low:.6}, max {high:.6}, mean {mean:.6}",
            spec.name,
            output.dtype(),
            output.shape()
        ))?;
    }
    Ok(())
}

fn save(args: &Args, session: &dyn Session, outputs: &[Tensor]) -> anyhow::Result<()> {
    let Some(folder) = &args.save else { return Ok(()) };
    for (spec, output) in session.outputs().iter().zip(outputs) {
        let name: String = spec.name.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
        write(&folder.join(format!("{name}.npy")), output)?;
    }
    Ok(())
}

fn write(path: &Path, tensor: &Tensor) -> anyhow::Result<()> {
    let mut file = StagedFile::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    write_npy(&mut file, tensor)?;
    file.publish()?;
    Ok(())
}
