//! `run`: runs an engine once. `pictures.rs` has the engines that take images, `generate.rs` language models.

mod pictures;

use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::generate::{self, GenerateArgs};
use super::outputs::{refuse_inputs, refuse_others};
use super::session::{self, Choice};
use super::{Environment, Exit, named, print, say};
use crate::api::ChatModel;
use crate::artifact::StagedFile;
use crate::backend::Session;
use crate::diagnostic::Diagnostic;
use crate::engine_dir::EngineDir;
use crate::log::printable;
use crate::regular_file;
use crate::tensor::{Tensor, TensorSpec, read_npy, write_npy};

/// Run an engine on images, a prompt or tensors
///
/// A language model takes a prompt, as arguments or from standard input, and streams its answer; without a prompt on a
/// terminal it holds a conversation. A classifier or a YOLO model takes images or folders of images and prints its
/// results; a detector also draws them. Every engine, and a bare .onnx file on the CPU reference, takes tensors:
/// `--input NAME=FILE.npy`, with `--save DIR` for the outputs.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Engine directory, or an .onnx file
    engine: PathBuf,
    /// Images (PNG, JPEG, WebP, BMP, TIFF, GIF) or folders of images; for a language model the words of the prompt
    #[arg(value_name = "IMAGE|PROMPT")]
    images: Vec<PathBuf>,
    /// Input tensor from a .npy file; repeatable, once for each input
    #[arg(long = "input", value_name = "NAME=FILE", conflicts_with = "images")]
    inputs: Vec<String>,
    /// Write every output tensor to DIR/NAME.npy; with several images to DIR/IMAGE/NAME.npy
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Directory for images with the detections drawn on them: bus-objects.jpg for bus.jpg
    #[arg(long, value_name = "DIR", default_value = "annotated")]
    annotated: PathBuf,
    /// Do not draw detections
    #[arg(long)]
    no_annotated: bool,
    /// Where to run the model
    #[arg(long, value_enum, default_value = "auto")]
    backend: Choice,
    /// Hash every file of the engine directory before loading, not only those that changed
    #[arg(long)]
    verify: bool,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    generation: GenerateArgs,
}

pub(super) fn execute(args: &Args, environment: &Environment) -> anyhow::Result<Exit> {
    let is_model = args.engine.extension().is_some_and(|extension| extension == "onnx");
    let progress = &*environment.progress;
    let engine = if is_model { None } else { Some(EngineDir::load_checked(&args.engine, args.verify, progress)?) };
    let _held = engine.as_ref().and_then(EngineDir::hold);
    if let Some(engine) = engine.as_ref().filter(|engine| engine.manifest.contents.llm().is_some()) {
        let generator = session::open_llm(engine, args.backend, progress)?;
        let model = ChatModel::new(generator, args.generation.max_tokens);
        let words: Vec<String> = args.images.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        return generate::execute(model, &words.join(" "), &args.generation, args.json, environment);
    }
    if args.images.is_empty() && args.inputs.is_empty() {
        bail!(Diagnostic::new("nothing to run on").with_help("give pictures, or tensors with --input NAME=FILE.npy"));
    }
    let mut session = match &engine {
        Some(engine) => session::open(engine, args.backend)?,
        None => session::open_onnx(&args.engine, args.backend)?,
    };
    match &engine {
        Some(engine) if !args.images.is_empty() => pictures::execute(args, engine, &mut *session),
        _ if !args.images.is_empty() => bail!("a bare model does not say how pictures become tensors: use --input"),
        _ => tensors(args, &mut *session).map(|()| Exit::Success),
    }
}

fn tensors(args: &Args, session: &mut dyn Session) -> anyhow::Result<()> {
    let names: Vec<&str> = session.inputs().iter().map(|spec| spec.name.as_str()).collect();
    let given = named::split_all("--input", &args.inputs, &names)?;
    let mut inputs = Vec::new();
    for spec in session.inputs() {
        let file = given.iter().find(|(name, _)| *name == spec.name).map(|(_, file)| *file);
        let file = file.with_context(|| format!("input {spec} is missing: give --input {}=FILE.npy", spec.name))?;
        let reader =
            BufReader::new(regular_file::open(Path::new(file)).with_context(|| format!("cannot open {file}"))?);
        inputs.push(read_npy(reader).with_context(|| format!("cannot read {file}"))?);
    }
    let outputs = session.run(&inputs)?;
    let files: Vec<&Path> = given.iter().map(|(_, file)| Path::new(*file)).collect();
    save(&files, args.save.as_deref(), session, &outputs)?;
    for (spec, output) in session.outputs().iter().zip(&outputs) {
        let values = summary(&output.to_f64());
        print(format!("{} {}{:?}: {values}", printable(&spec.name), output.dtype(), output.shape()))?;
    }
    Ok(())
}

/// Minimum, maximum and mean of the numbers, and the count of NaNs.
fn summary(values: &[f64]) -> String {
    let numbers: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
    let [Some(low), Some(high)] = [f64::min, f64::max].map(|choose| numbers.iter().copied().reduce(choose)) else {
        let why = if values.is_empty() { "it is empty".to_owned() } else { format!("all {} are NaN", values.len()) };
        return format!("no numbers: {why}");
    };
    let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
    let text = format!("min {low:.6}, max {high:.6}, mean {mean:.6}");
    match values.len() - numbers.len() {
        0 => text,
        odd => format!("{text}, {odd} of {} are NaN", values.len()),
    }
}

/// Writes the outputs into `folder` if one is given, and over none of the files in `read`.
fn save(read: &[&Path], folder: Option<&Path>, session: &dyn Session, outputs: &[Tensor]) -> anyhow::Result<()> {
    let Some(folder) = folder else { return Ok(()) };
    let names = file_names(session.outputs());
    for name in &names {
        let target = folder.join(name);
        refuse_inputs(&target, read.iter().copied())?;
        refuse_others(&target, |head| head.starts_with(b"\x93NUMPY"), "tensor in .npy")?;
    }
    for ((spec, name), output) in session.outputs().iter().zip(&names).zip(outputs) {
        // Two names may differ in nothing that a file's name keeps.
        if name.contains('-') {
            say(format!("{} is written to {}", spec.name, folder.join(name).display()));
        }
        write(&folder.join(name), output)?;
    }
    Ok(())
}

/// A distinct file name for each output, made of the letters and digits of its name.
fn file_names(outputs: &[TensorSpec]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for spec in outputs {
        let plain: String = spec.name.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
        let mut name = format!("{plain}.npy");
        let mut number = 2;
        while names.contains(&name) {
            name = format!("{plain}-{number}.npy");
            number += 1;
        }
        names.push(name);
    }
    names
}

fn write(path: &Path, tensor: &Tensor) -> anyhow::Result<()> {
    let written = StagedFile::create(path).and_then(|mut file| {
        write_npy(&mut file, tensor)?;
        file.publish().map(drop)
    });
    written.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_counted_and_not_compared() {
        let nan = f64::NAN;
        for (values, text) in [
            (&[][..], "no numbers: it is empty"),
            (&[nan, nan], "no numbers: all 2 are NaN"),
            (&[1.0, nan, 3.0], "min 1.000000, max 3.000000, mean 2.000000, 1 of 3 are NaN"),
            (&[-2.0, 4.0], "min -2.000000, max 4.000000, mean 1.000000"),
            (&[f64::INFINITY, 1.0], "min 1.000000, max inf, mean inf"),
        ] {
            assert_eq!(summary(values), text);
        }
    }

    #[test]
    fn outputs_do_not_share_a_file() {
        let spec =
            |name: &str| TensorSpec { name: name.to_owned(), dtype: crate::tensor::DType::Float32, shape: Vec::new() };
        let outputs = ["o.1", "o/1", "o:1", "o_1", "żółw", "../../o"].map(spec);
        let names = ["o_1.npy", "o_1-2.npy", "o_1-3.npy", "o_1-4.npy", "żółw.npy", "______o.npy"];
        assert_eq!(file_names(&outputs), names);
    }
}
