//! Runs engines on images: prints classes or objects, draws detections. An image that cannot be read is reported and
//! the others go on.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::{Args, save};
use crate::backend::Session;
use crate::cli::outputs::{refuse_inputs, refuse_others};
use crate::cli::{Exit, print, print_json, report, say};
use crate::diagnostic::{Diagnose, Diagnostic};
use crate::engine_dir::{EngineDir, PictureAnswer, PictureMeaning, PictureModel};
use crate::log::printable;
use crate::manifest::Manifest;
use crate::vision::{self, Answer, Detection, RgbImage, VisionError};

pub(super) fn execute(args: &Args, engine: &EngineDir, session: &mut dyn Session) -> anyhow::Result<Exit> {
    let manifest = &engine.manifest;
    let Manifest { name, contents, .. } = manifest;
    let Some(model) = engine.picture_model()? else {
        anyhow::ensure!(contents.preprocess().is_none(), "{name} does not have one input");
        bail!("{name} is a `{}` engine, which takes tensors: use --input NAME=FILE.npy", contents.kind());
    };
    let files = files(&args.images)?;
    let draws = matches!(model.meaning, PictureMeaning::Objects(_)) && !args.no_annotated;
    let drawings = if draws { drawings(args, &files)? } else { Vec::new() };
    let folders = folders(args, &files);
    let (mut documents, mut exit) = (Vec::new(), Exit::Success);
    for (index, path) in files.iter().enumerate() {
        let picture = match vision::read_picture(path) {
            Ok(picture) => picture,
            Err(error) => {
                documents.push(failed(manifest, path, &error));
                let error = anyhow::Error::from(error);
                exit = exit.worst(Exit::of(&error));
                report(&error);
                continue;
            }
        };
        let targets = (drawings.get(index).map(PathBuf::as_path), folders.get(index).map(PathBuf::as_path));
        match answer(args, (name, &model), session, (path, &picture), targets) {
            Ok(document) => documents.push(document),
            Err(error) => {
                // The engine's failure is the next picture's too; what there is has been computed.
                if args.json {
                    print_json(&documents)?;
                }
                return Err(error);
            }
        }
    }
    if args.json {
        print_json(&documents)?;
    }
    Ok(exit)
}

/// The JSON record of an image that could not be read.
fn failed(manifest: &Manifest, path: &Path, error: &VisionError) -> serde_json::Value {
    let Diagnostic { message, help, .. } = error.diagnostic();
    let mut record = serde_json::json!({
        "engine": manifest.name, "picture": path.to_string_lossy(), "error": message,
    });
    if let Some(help) = help {
        record["help"] = help.into();
    }
    record
}

/// Runs one image, and prints, draws and saves the result; `targets` are the paths of the drawing and of the outputs.
fn answer(
    args: &Args,
    (name, model): (&str, &PictureModel),
    session: &mut dyn Session,
    (path, picture): (&Path, &RgbImage),
    (drawing, folder): (Option<&Path>, Option<&Path>),
) -> anyhow::Result<serde_json::Value> {
    let info = session.info();
    // A folder's files may be called anything.
    let place = path.display().to_string();
    let place = printable(&place);
    let outputs = session.run(&[model.tensor(picture).repeated(model.batches.min)])?;
    save(&[], folder, session, &outputs)?;
    let mut document = serde_json::json!({
        "engine": name, "picture": path.to_string_lossy(), "backend": info.name, "device": info.device,
    });
    match model.answer(&outputs, picture)? {
        PictureAnswer::Classes(answer) => {
            if !args.json {
                print(format!("{name}: {}  [{place}, {}]", result_text(&answer), info.name))?;
            }
            document["answer"] = serde_json::to_value(answer)?;
        }
        PictureAnswer::Objects(detections) => {
            if let Some(target) = drawing {
                vision::save_picture(target, &vision::annotate(picture, &detections))?;
                document["annotated"] = serde_json::json!(target);
            }
            if !args.json {
                let drawn = drawing.map(|target| format!(", drawn in {}", target.display())).unwrap_or_default();
                let drawn = printable(&drawn);
                let count = detections.len();
                print(format!("{name}: {count} objects{drawn}  [{place}, {}]", info.name))?;
                detections.iter().try_for_each(|detection| print(found(detection)))?;
            }
            document["detections"] = serde_json::to_value(detections)?;
        }
    }
    Ok(document)
}

/// The images named on the command line, and those in folders named there.
fn files(given: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in given {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut inside: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        let foreign = inside.iter().filter(|path| vision::is_foreign_picture(path));
        if let Some(one) = foreign.clone().next() {
            let count = foreign.count();
            let passed =
                format!("warning: {count} images in unsupported formats are skipped, {} for one", one.display());
            say(Diagnostic::new(passed).with_help(format!("{} are read", vision::FORMATS)));
        }
        inside.retain(|path| vision::is_picture(path));
        inside.sort();
        anyhow::ensure!(
            !inside.is_empty(),
            Diagnostic::new(format!("{} holds no picture", path.display()))
                .with_help(format!("{} are read", vision::FORMATS))
        );
        files.extend(inside);
    }
    Ok(files)
}

/// The folder for each image's outputs: `--save` itself for one image, a folder below it for each of several.
fn folders(args: &Args, files: &[PathBuf]) -> Vec<PathBuf> {
    let Some(save) = &args.save else { return Vec::new() };
    let mut folders: Vec<PathBuf> = Vec::new();
    for path in files {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let mut folder = if files.len() == 1 { save.clone() } else { save.join(&*stem) };
        let mut number = 2;
        while folders.contains(&folder) {
            folder = save.join(format!("{stem}-{number}"));
            number += 1;
        }
        folders.push(folder);
    }
    folders
}

/// The path of each image's drawing, determined before the first is drawn. None may overwrite an input image.
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

/// The path of one image's drawing, which its name tells from the image. Images of the same name from several folders get different
/// paths.
fn annotated(args: &Args, picture: &Path, drawn: &[PathBuf]) -> PathBuf {
    let stem = picture.file_stem().unwrap_or_default().to_string_lossy();
    let png = picture.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
    let extension = if png { "png" } else { "jpg" };
    let first = args.annotated.join(format!("{stem}-objects.{extension}"));
    match drawn.contains(&first) {
        true => args.annotated.join(format!("{stem}-objects-{}.{extension}", drawn.len())),
        false => first,
    }
}

fn result_text(answer: &Answer) -> String {
    let percent = |probability: f32| format!("{:.1} %", probability * 100.0);
    // Labels are a checkpoint's; a line end in one would forge a line.
    let label = printable(&answer.label);
    match (answer.probability, answer.value, &answer.present) {
        (Some(probability), Some(value), _) => {
            format!("{value:.1} (most likely class {label}, {})", percent(probability))
        }
        (Some(probability), None, Some(present)) if present.is_empty() => {
            format!("no label (most likely {label}, {})", percent(probability))
        }
        (Some(_), None, Some(present)) => {
            let shown = answer.top.iter().take(present.len());
            let shown = shown.map(|(label, probability)| format!("{} ({})", printable(label), percent(*probability)));
            let shown: Vec<String> = shown.collect();
            let more = present.len() - shown.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            shown.join(", ") + &more
        }
        (Some(probability), None, None) => format!("{label} ({})", percent(probability)),
        (None, ..) => {
            let values = answer.top.iter().map(|(label, value)| match (answer.top.len(), label.as_str()) {
                (1, "0") => format!("{value:.4}"),
                _ => format!("{} {value:.4}", printable(label)),
            });
            values.collect::<Vec<_>>().join(", ")
        }
    }
}

fn found(detection: &Detection) -> String {
    let [left, top, right, bottom] = detection.bbox.corners();
    let mask = detection.mask.as_ref().map(|mask| format!(", {} pixels", mask.area())).unwrap_or_default();
    let label = printable(&detection.label);
    format!("  {label} {:.3}  from {left:.0}, {top:.0} to {right:.0}, {bottom:.0}{mask}", detection.score)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(label: &str) -> Answer {
        Answer {
            label: label.to_owned(),
            class: 0,
            probability: Some(0.5),
            value: None,
            present: None,
            top: vec![(label.to_owned(), 0.8), ("tram".to_owned(), 0.6)],
        }
    }

    #[test]
    fn labels_stay_in_their_line() {
        for (label, shown) in [("owl", "owl"), ("a\nb", "a\\nb"), ("a\u{1b}[2J", "a\\u{1b}[2J"), ("żółw", "żółw")]
        {
            assert_eq!(result_text(&answer(label)), format!("{shown} (50.0 %)"));
            let valued = Answer { value: Some(3.0), ..answer(label) };
            assert_eq!(result_text(&valued), format!("3.0 (most likely class {shown}, 50.0 %)"));
            let none = Answer { present: Some(Vec::new()), ..answer(label) };
            assert_eq!(result_text(&none), format!("no label (most likely {shown}, 50.0 %)"));
            let several = Answer { present: Some(vec![label.to_owned(); 3]), ..answer(label) };
            assert_eq!(result_text(&several), format!("{shown} (80.0 %), tram (60.0 %) and 1 more"));
            let values = Answer { probability: None, value: Some(0.8), ..answer(label) };
            assert_eq!(result_text(&values), format!("{shown} 0.8000, tram 0.6000"));
            let detection = Detection {
                label: label.to_owned(),
                class: 0,
                score: 0.5,
                bbox: [1.0, 2.0, 3.0, 4.0].into(),
                mask: None,
            };
            assert_eq!(found(&detection), format!("  {shown} 0.500  from 1, 2 to 3, 4"));
        }
        let one = Answer { probability: None, value: Some(0.0061), top: vec![("0".to_owned(), 0.0061)], ..answer("0") };
        assert_eq!(result_text(&one), "0.0061");
    }
}
