//! `run`: one answer from an engine.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::generate::{self, GenerateArgs};
use super::outputs::{refuse_inputs, refuse_others};
use super::session::{self, Choice};
use super::{Environment, Exit, print, print_json};
use crate::artifact::StagedFile;
use crate::backend::Session;
use crate::log::printable;
use crate::manifest::Manifest;
use crate::regular_file;
use crate::tensor::{Tensor, read_npy, write_npy};
use crate::vision::{self, Answer, Detection};

/// Run an engine: pictures in, a prompt in, or tensors
///
/// A language model takes a prompt, as words or from standard input, and streams its answer; on a terminal without a
/// prompt it converses. A classifier or a YOLO model takes pictures, or folders of them, and prints its answers; a
/// detector also draws them. Any engine, or a bare .onnx file on the CPU reference, takes tensors: `--input NAME=FILE.npy`, with `--save DIR` for the outputs.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Engine directory, or an .onnx file
    engine: PathBuf,
    /// Pictures (PNG, JPEG) or folders of them, or the words of a prompt
    #[arg(value_name = "PICTURE|PROMPT")]
    images: Vec<PathBuf>,
    /// Input tensor from a .npy file
    #[arg(long = "input", value_name = "NAME=FILE", conflicts_with = "images")]
    inputs: Vec<String>,
    /// Write every output to DIR/NAME.npy
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Where pictures with their detections drawn on them go
    #[arg(long, value_name = "DIR", default_value = "annotated")]
    annotated: PathBuf,
    /// Draw nothing
    #[arg(long)]
    no_annotated: bool,
    /// Who computes
    #[arg(long, value_enum, default_value = "auto")]
    backend: Choice,
    /// Hash every file of the engine directory first, also those that are known
    #[arg(long)]
    verify: bool,
    /// Print the answers as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    generation: GenerateArgs,
}

pub(super) fn execute(args: &Args, environment: &Environment) -> anyhow::Result<Exit> {
    let is_model = args.engine.extension().is_some_and(|extension| extension == "onnx");
    let progress = &*environment.progress;
    let manifest = if is_model { None } else { Some(session::load(&args.engine, args.verify, progress)?) };
    if let Some((manifest, record)) = manifest.as_ref().and_then(|manifest| Some((manifest, manifest.llm.as_ref()?))) {
        let generator = session::open_llm(&args.engine, manifest, record, args.backend, progress)?;
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
    let Some(preprocess) = manifest.preprocess() else {
        bail!("{} is a `{}` engine, which takes tensors: use --input NAME=FILE.npy", manifest.name, manifest.kind);
    };
    let [input] = &manifest.inputs[..] else { bail!("{} does not have one input", manifest.name) };
    let size = vision::input_size(&preprocess, &input.shape)?;
    let batch = input.shape.first().copied().flatten().unwrap_or(1);
    let info = session.info();
    let mut answers = Vec::new();
    let files = files(&args.images)?;
    let draws = manifest.classifier.is_none() && manifest.yolo.is_some() && !args.no_annotated;
    let drawings = if draws { drawings(args, &files)? } else { Vec::new() };
    for (index, path) in files.iter().enumerate() {
        let picture = vision::read_picture(path)?;
        // A folder's files may be called anything.
        let place = path.display().to_string();
        let place = printable(&place);
        let outputs = session.run(&[vision::to_tensor(&picture, &preprocess, size).repeated(batch)])?;
        save(args, session, &outputs)?;
        let mut document = serde_json::json!({
            "engine": manifest.name, "picture": path.to_string_lossy(), "backend": info.name, "device": info.device,
        });
        if let Some(classifier) = &manifest.classifier {
            let answer = classifier.answer(outputs.first().context("the engine has no output")?)?;
            if !args.json {
                print(format!("{}: {}  [{place}, {}]", manifest.name, said(&answer), info.name))?;
            }
            document["answer"] = serde_json::to_value(answer)?;
        } else if let Some(yolo) = &manifest.yolo {
            let detections = yolo.detections(&outputs, [picture.height(), picture.width()])?;
            let target = drawings.get(index);
            if let Some(target) = target {
                vision::save_picture(target, &vision::annotate(&picture, &detections))?;
                document["annotated"] = serde_json::json!(target);
            }
            if !args.json {
                let drawn = target.map(|target| format!(", drawn in {}", target.display())).unwrap_or_default();
                let drawn = printable(&drawn);
                let count = detections.len();
                let name = &manifest.name;
                print(format!("{name}: {count} objects{drawn}  [{place}, {}]", info.name))?;
                detections.iter().try_for_each(|detection| print(found(detection)))?;
            }
            document["detections"] = serde_json::to_value(detections)?;
        }
        answers.push(document);
    }
    if args.json { print_json(&answers) } else { Ok(()) }
}

/// The pictures named, and those in folders named.
fn files(given: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in given {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut inside: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        inside.retain(|path| vision::is_picture(path));
        inside.sort();
        anyhow::ensure!(!inside.is_empty(), "{} holds no PNG or JPEG", path.display());
        files.extend(inside);
    }
    Ok(files)
}

/// Where the drawings go, before the first is made: none may take a picture's place.
fn drawings(args: &Args, files: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut drawings: Vec<PathBuf> = Vec::new();
    for path in files {
        let drawing = annotated(args, path, &drawings);
        refuse_inputs(&drawing, files.iter().map(PathBuf::as_path))?;
        refuse_others(&drawing, |head| head.starts_with(b"\x89PNG") || head.starts_with(b"\xff\xd8"), "picture")?;
        drawings.push(drawing);
    }
    Ok(drawings)
}

/// Where a picture's drawing goes; pictures of one name from several folders do not overwrite each other's.
fn annotated(args: &Args, picture: &Path, drawn: &[PathBuf]) -> PathBuf {
    let stem = picture.file_stem().unwrap_or_default().to_string_lossy();
    let png = picture.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
    let extension = if png { "png" } else { "jpg" };
    let first = args.annotated.join(format!("{stem}.{extension}"));
    if drawn.contains(&first) { args.annotated.join(format!("{stem}-{}.{extension}", drawn.len())) } else { first }
}

fn said(answer: &Answer) -> String {
    let percent = |probability: f32| format!("{:.1} %", probability * 100.0);
    // Labels are a checkpoint's; a line end in one would forge a line.
    let label = printable(&answer.label);
    match answer.value {
        Some(value) => format!("{value:.1} (most likely class {label}, {})", percent(answer.probability)),
        None => format!("{label} ({})", percent(answer.probability)),
    }
}

fn found(detection: &Detection) -> String {
    let [left, top, right, bottom] = detection.bbox;
    let mask = detection.mask.as_ref().map(|mask| format!(", {} pixels", mask.area())).unwrap_or_default();
    let label = printable(&detection.label);
    format!("  {label} {:.3}  from {left:.0}, {top:.0} to {right:.0}, {bottom:.0}{mask}", detection.score)
}

fn tensors(args: &Args, session: &mut dyn Session) -> anyhow::Result<()> {
    let mut given = Vec::new();
    for input in &args.inputs {
        let (name, file) = input.split_once('=').with_context(|| format!("--input {input}: write NAME=FILE.npy"))?;
        let reader =
            BufReader::new(regular_file::open(Path::new(file)).with_context(|| format!("cannot open {file}"))?);
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
        let values = summary(&output.to_f64());
        print(format!("{} {}{:?}: {values}", printable(&spec.name), output.dtype(), output.shape()))?;
    }
    Ok(())
}

/// Least, greatest and mean of what are numbers, and how many are not.
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

fn save(args: &Args, session: &dyn Session, outputs: &[Tensor]) -> anyhow::Result<()> {
    let Some(folder) = &args.save else { return Ok(()) };
    let target = |name: &str| {
        let name: String = name.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
        folder.join(format!("{name}.npy"))
    };
    for spec in session.outputs() {
        let given = args.inputs.iter().filter_map(|input| Some(Path::new(input.split_once('=')?.1)));
        refuse_inputs(&target(&spec.name), given)?;
        refuse_others(&target(&spec.name), |head| head.starts_with(b"\x93NUMPY"), "tensor in .npy")?;
    }
    for (spec, output) in session.outputs().iter().zip(outputs) {
        write(&target(&spec.name), output)?;
    }
    Ok(())
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
    fn labels_stay_in_their_line() {
        for (label, shown) in [("owl", "owl"), ("a\nb", "a\\nb"), ("a\u{1b}[2J", "a\\u{1b}[2J"), ("żółw", "żółw")]
        {
            let answer = Answer { label: label.to_owned(), class: 0, probability: 0.5, value: None, top: Vec::new() };
            assert_eq!(said(&answer), format!("{shown} (50.0 %)"));
            let valued = Answer { value: Some(3.0), ..answer };
            assert_eq!(said(&valued), format!("3.0 (most likely class {shown}, 50.0 %)"));
            let detection =
                Detection { label: label.to_owned(), class: 0, score: 0.5, bbox: [1.0, 2.0, 3.0, 4.0], mask: None };
            assert_eq!(found(&detection), format!("  {shown} 0.500  from 1, 2 to 3, 4"));
        }
    }
}
