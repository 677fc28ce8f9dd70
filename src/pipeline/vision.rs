//! Makes the ONNX model of a vision engine from a fetched source, with the pre- and postprocessing for its manifest.
//!
//! `export.rs` reads Ultralytics' ONNX exports, `names.rs` their class names, `reading.rs` determines what a
//! classifier's output holds.

mod export;
mod names;
mod reading;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::checkpoint::torch::TorchFile;
use crate::checkpoint::{Checkpoint, read_json};
use crate::convert::Config;
use crate::convert::vision::{answers, classifier_model, labels, preprocess, trained_size, yolo_model, yolo_root};
use crate::diagnostic::Diagnostic;
use crate::fetch::Fetched;
use crate::manifest::{EngineContents, GraphEngine};
use crate::onnx::Model;
use crate::recipe::{ClassifierPlan, ModelPlan, Plan, SourcePlan, YoloPlan};
use crate::spec::{Boxes, ClassifierOutput, ClassifierSpec, Preprocess, Resize, Task, Yolo};
use crate::vision::PictureInput;

/// The meaning of a model's tensors.
#[derive(Debug, Clone)]
pub(super) enum Meaning {
    /// Unknown: tensors in, tensors out.
    Tensors,
    /// An image in, classes out.
    Classifier(ClassifierSpec),
    /// An image in, objects out; for a YOLO classifier classes.
    Yolo(Yolo, Option<ClassifierSpec>),
}

impl Meaning {
    pub(super) fn classifier(&self) -> Option<&ClassifierSpec> {
        match self {
            Meaning::Tensors => None,
            Meaning::Classifier(classifier) => Some(classifier),
            Meaning::Yolo(_, classifier) => classifier.as_ref(),
        }
    }

    pub(super) fn yolo(&self) -> Option<&Yolo> {
        match self {
            Meaning::Yolo(yolo, _) => Some(yolo),
            Meaning::Tensors | Meaning::Classifier(_) => None,
        }
    }

    /// Height and width in pixels of the images it takes, if known.
    pub(super) fn size(&self) -> Option<[u32; 2]> {
        let classifier = self.classifier().and_then(|classifier| classifier.preprocess.size);
        classifier.or_else(|| self.yolo().map(|yolo| yolo.size))
    }

    /// The manifest's part for an engine of this meaning.
    pub(super) fn contents(&self, graph: GraphEngine) -> EngineContents {
        match self.clone() {
            Meaning::Tensors => EngineContents::Onnx(graph),
            Meaning::Classifier(classifier) => EngineContents::Classifier { graph, classifier },
            Meaning::Yolo(yolo, classifier) => EngineContents::Yolo { graph, yolo, classifier },
        }
    }
}

/// A model with its meaning.
pub(super) struct Vision {
    pub(super) model: Model,
    pub(super) meaning: Meaning,
    /// Files that the model depends on.
    pub(super) sources: Vec<PathBuf>,
    /// Warnings for the user.
    pub(super) notes: Vec<String>,
}

/// Reads or converts a plan's model.
pub(super) fn load(plan: &Plan, fetched: &Fetched) -> anyhow::Result<Vision> {
    let file = match &plan.source {
        SourcePlan::Hub { file, .. } => file.as_deref(),
        _ => None,
    };
    let only = |extension: &str| {
        let found = fetched.only(extension, file).map_err(|message| anyhow::anyhow!("{}: {message}", plan.name))?;
        Ok::<PathBuf, anyhow::Error>(found.path.clone())
    };
    let has = |extension: &str| fetched.files.iter().any(|file| file.name.ends_with(extension));
    match &plan.model {
        ModelPlan::Yolo { yolo } if !has(".onnx") => checkpoint_yolo(yolo, only("pt")?),
        ModelPlan::Yolo { yolo } => export::load(yolo, only("onnx")?),
        ModelPlan::Classifier { classifier } if has(".safetensors") && file.is_none() => {
            checkpoint_classifier(classifier, fetched)
        }
        ModelPlan::Classifier { classifier } => onnx_classifier(plan, classifier, only("onnx")?),
        ModelPlan::Onnx { .. } => onnx(only("onnx")?, Meaning::Tensors),
        ModelPlan::Llm { .. } => bail!("{} is a language model", plan.name),
    }
}

/// A classifier in an ONNX file, which does not describe its images.
fn onnx_classifier(plan: &Plan, classifier: &ClassifierPlan, path: PathBuf) -> anyhow::Result<Vision> {
    let preprocess = classifier.preprocess.clone().ok_or_else(|| {
        Diagnostic::new(format!("{}: an ONNX file does not say how pictures become tensors", plan.name))
            .with_help("add `preprocess:`")
    })?;
    let mut vision = onnx(path.clone(), Meaning::Tensors)?;
    let model = (&vision.model, path.as_path());
    let (output, note) = reading::reading(model, classifier.output, ClassifierOutput::Logits)?;
    vision.meaning = Meaning::Classifier(finished(classifier, preprocess, None, output));
    vision.notes.extend(note);
    Ok(vision)
}

fn onnx(path: PathBuf, meaning: Meaning) -> anyhow::Result<Vision> {
    let model = Model::load(&path)?;
    let beside = model.external_files().into_iter().map(|file| path.with_file_name(file));
    let sources = std::iter::once(path.clone()).chain(beside).collect();
    Ok(Vision { model, meaning, sources, notes: Vec::new() })
}

/// Refuses a model that can never give results: its input is no image, or the labels do not match its classes.
pub(super) fn check(model: &Model, place: &Path, meaning: &Meaning) -> anyhow::Result<()> {
    let classifier = meaning.classifier();
    let preprocess = classifier.map(|classifier| classifier.preprocess.clone());
    let Some(preprocess) = preprocess.or_else(|| meaning.yolo().map(Yolo::preprocess)) else { return Ok(()) };
    let inputs = model.inputs()?;
    let [input] = &inputs[..] else {
        let count = inputs.len();
        let what = Diagnostic::new(format!("{}: it has {count} inputs; pictures want one", place.display()));
        bail!(what.with_help("use `kind: onnx`"));
    };
    PictureInput::new(&preprocess, input).with_context(|| place.display().to_string())?;
    if let Some(classifier) = classifier {
        classifier.expect(&model.outputs()?).with_context(|| place.display().to_string())?;
    }
    Ok(())
}

/// Combines the recipe's settings with the model's; `output` already is a combination.
fn finished(
    plan: &ClassifierPlan,
    preprocess: Preprocess,
    labels: Option<Vec<String>>,
    output: ClassifierOutput,
) -> ClassifierSpec {
    ClassifierSpec {
        preprocess,
        labels: plan.labels.clone().or(labels),
        output,
        class_values: plan.class_values.clone(),
    }
}

/// A classifier in a Hugging Face folder, whose settings apply where the recipe has none.
fn checkpoint_classifier(plan: &ClassifierPlan, fetched: &Fetched) -> anyhow::Result<Vision> {
    let sources: Vec<PathBuf> = fetched.files.iter().map(|file| file.path.clone()).collect();
    let checkpoint = Checkpoint::open(&sources)?;
    let trained = trained_size(&checkpoint);
    let pixels = |[height, width]: [usize; 2]| Some([u32::try_from(height).ok()?, u32::try_from(width).ok()?]);
    let preprocess = match &plan.preprocess {
        Some(preprocess) => preprocess.clone(),
        None => {
            let beside = sources.iter().find(|path| path.ends_with("preprocessor_config.json"));
            let path = beside.ok_or_else(|| {
                let path = checkpoint.config_path.display();
                let what = "preprocessor_config.json is missing: how pictures become tensors";
                Diagnostic::new(what).with_help("add `preprocess:`").at(path)
            })?;
            preprocess(&Config::new(path, &read_json(path)?), trained.and_then(pixels))?
        }
    };
    let size = preprocess.size.map(|size| size.map(|side| side as usize)).or(trained);
    let size = size.ok_or_else(|| {
        Diagnostic::new("nothing says what size pictures have")
            .with_help("add `preprocess: { size: [224, 224] }`")
            .at(checkpoint.config_path.display())
    })?;
    let model = classifier_model(&checkpoint, size, None)?;
    let preprocess = Preprocess { size: pixels(size), ..preprocess };
    let labels = labels(&checkpoint)?;
    let default = plan.output.map_or_else(|| answers(&checkpoint), Ok)?;
    let (output, note) = reading::reading((&model, checkpoint.config_path.as_path()), plan.output, default)?;
    // Weights alone decide; tokenizers and the like beside them do not.
    let sources = sources.into_iter().filter(|path| {
        let named = |name: &str| path.ends_with(name);
        path.extension().is_some_and(|extension| extension == "safetensors")
            || named("config.json")
            || named("preprocessor_config.json")
    });
    let sources = sources.collect();
    let meaning = Meaning::Classifier(finished(plan, preprocess, labels, output));
    Ok(Vision { model, meaning, sources, notes: note.into_iter().collect() })
}

/// An Ultralytics checkpoint.
fn checkpoint_yolo(plan: &YoloPlan, path: PathBuf) -> anyhow::Result<Vision> {
    let file = TorchFile::open(&path)?;
    let head = yolo_root(&file).class().map_or("", |(_, class)| class);
    let default = if head.starts_with("Classification") { 224 } else { 640 };
    let size = plan.size.unwrap_or([default; 2]);
    let converted = yolo_model(&file, size.map(|side| side as usize), None)?;
    let (mut yolo, classifier) = around(plan, converted.task, converted.names, converted.stride, size);
    yolo.about = converted.about;
    let meaning = Meaning::Yolo(yolo, classifier);
    Ok(Vision { model: converted.model, meaning, sources: vec![path], notes: converted.notes })
}

/// Pre- and postprocessing of a YOLO model; a YOLO classifier has a classifier's too.
fn around(
    plan: &YoloPlan,
    task: Task,
    names: Vec<String>,
    stride: usize,
    size: [u32; 2],
) -> (Yolo, Option<ClassifierSpec>) {
    let classifier = (task == Task::Classify).then(|| ClassifierSpec {
        // torchvision's Resize and CenterCrop, as Ultralytics uses them (`data/augment.py`, `classify_transforms`): to the
        // shorter edge for a square, else to both sides, so that nothing is left to cut.
        preprocess: Preprocess {
            size: Some(size),
            fit: None,
            resize: (size[0] == size[1]).then_some(Resize::ShortestEdge(size[0])),
            resample: None,
            color: None,
            mean: [0.0; 3],
            std: [255.0; 3],
        },
        labels: Some(names.clone()),
        output: ClassifierOutput::Probabilities,
        class_values: None,
    });
    let YoloPlan { confidence, iou, max_detections, metadata, .. } = *plan;
    let about = BTreeMap::new();
    let boxes = Boxes::Anchors;
    (Yolo { task, names, stride, size, boxes, confidence, iou, max_detections, metadata, about }, classifier)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Preprocessing of Ultralytics' transforms (torchvision's), from tests/data/vision/make_detections.py.
    #[test]
    fn classifiers_that_are_not_square_squeeze_pictures() {
        let plan = YoloPlan { size: None, confidence: 0.25, iou: 0.7, max_detections: 300, metadata: false };
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let picture = crate::vision::read_picture(&repository.join("recipes/images/face.png")).unwrap();
        let preprocess = |size| around(&plan, Task::Classify, vec!["a".to_owned()], 1, size).1.unwrap().preprocess;
        assert_eq!(preprocess([20, 20]).resize, Some(Resize::ShortestEdge(20)));
        let have = crate::vision::to_tensor(&picture, &preprocess([20, 28]), [20, 28]);
        let want = std::fs::File::open(repository.join("tests/data/vision/classify-rect.npy")).unwrap();
        let want = crate::tensor::read_npy(want).unwrap();
        assert_eq!(have.shape(), want.shape());
        let worst = have.to_f64().iter().zip(want.to_f64()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst * 255.0 <= 1.01, "{}", worst * 255.0);
    }
}
