//! Converts image classifiers of `transformers` (safetensors and config.json) to ONNX.
//!
//! One function per family emits the graph by the checkpoint's own tensor names; `preprocessor.rs` reads the
//! preprocessing. Input `pixel_values` `[batch, 3, height, width]`, output `logits` `[batch, classes]`.

mod builder;
mod convolutional;
mod preprocessor;
mod swin;
mod vit;

use std::path::Path;

use serde_json::Value;

use self::builder::{ClassifierGraph, Read};
use super::OPSET;
use super::net::{Map, Net};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::convert::Config;
use crate::onnx::{GraphBuilder, Model};
use crate::tensor::DType;
use crate::vision::ClassifierOutput;

pub use preprocessor::preprocess;

type Emit = fn(&mut ClassifierGraph<'_>, &Map) -> Read<String>;

/// The families, by `model_type`.
const FAMILIES: &[(&str, Emit)] = &[
    ("vit", vit::vit),
    ("deit", vit::deit),
    ("beit", vit::beit),
    ("swin", swin::swin),
    ("convnext", convolutional::convnext),
    ("resnet", convolutional::resnet),
];

/// The supported families, by `model_type`.
pub fn classifier_families() -> Vec<&'static str> {
    FAMILIES.iter().map(|(name, _)| *name).collect()
}

/// Height and width that a model was trained with, if its configuration contains them.
pub fn trained_size(checkpoint: &Checkpoint) -> Option<[usize; 2]> {
    let size = checkpoint.config.get("image_size")?;
    let whole = |value: &Value| usize::try_from(value.as_u64()?).ok();
    match size.as_array().map(Vec::as_slice) {
        Some([height, width]) => Some([whole(height)?, whole(width)?]),
        _ => whole(size).map(|size| [size; 2]),
    }
}

/// Class names in output order, from `id2label`; `None` if they are `transformers`' placeholders.
pub fn labels(checkpoint: &Checkpoint) -> Read<Option<Vec<String>>> {
    let Some(map) = checkpoint.config.get("id2label").and_then(Value::as_object) else { return Ok(None) };
    let wrong = || CheckpointError::new(&checkpoint.config_path, "`id2label` does not number its labels from 0");
    let mut labels = Vec::with_capacity(map.len());
    for index in 0..map.len() {
        let label = map.get(&index.to_string()).and_then(Value::as_str).ok_or_else(wrong)?;
        labels.push(label.to_owned());
    }
    let placeholders = labels.iter().enumerate().all(|(index, label)| *label == format!("LABEL_{index}"));
    Ok((!labels.is_empty() && !placeholders).then_some(labels))
}

/// Interpretation of the output, as in `transformers` (`pipelines/image_classification.py`, `postprocess`): values of a
/// regression unchanged, a sigmoid for labels that do not exclude each other and for a single one, else a softmax.
pub fn answers(checkpoint: &Checkpoint) -> Read<ClassifierOutput> {
    let config = Config::new(&checkpoint.config_path, &checkpoint.config);
    let kind = config.get("problem_type").filter(|kind| !kind.is_null());
    match (kind.map(|kind| kind.as_str().unwrap_or_default()), classes(&config)?) {
        (Some("regression"), _) => Ok(ClassifierOutput::Values),
        (Some("multi_label_classification"), _) | (None, 1) => Ok(ClassifierOutput::Multilabel),
        (Some("single_label_classification"), 1) => Err(config
            .error("`problem_type: single_label_classification` of one label says nothing")
            .with_help("say `output: values` or `output: multilabel` in the recipe, whichever it was trained for")),
        (Some("single_label_classification") | None, _) => Ok(ClassifierOutput::Logits),
        (Some(_), _) => Err(config.error(format!(
            "`problem_type: {}` is not supported; regression, multi_label_classification and single_label_classification \
             are",
            kind.unwrap_or(&Value::Null)
        ))),
    }
}

/// Number of classes: that of `id2label`, else `num_labels`, else 2, which `transformers` does not write.
fn classes(config: &Config<'_>) -> Read<usize> {
    let labels = config.within("id2label").map(|labels| labels.fields().len()).filter(|count| *count > 0);
    match labels {
        Some(count) => Ok(count),
        None => Ok(config.optional_size("num_labels")?.unwrap_or(2)),
    }
}

/// Emits a classifier for images of size `image` (height, width); with a dynamic batch if `batch` is `None`.
pub fn classifier_model(checkpoint: &Checkpoint, image: [usize; 2], batch: Option<usize>) -> Read<Model> {
    let config = Config::new(&checkpoint.config_path, &checkpoint.config);
    let kind = config
        .text("model_type")
        .ok_or_else(|| config.error("`model_type` is missing: no model of `transformers`?"))?;
    let Some((_, emit)) = FAMILIES.iter().find(|(name, _)| *name == kind) else {
        return Err(config.error(format!("model_type `{kind}` is not supported as a classifier")).with_help(format!(
            "these are: {}; anything else can be exported to ONNX and built from that",
            classifier_families().join(", ")
        )));
    };
    if config.optional_size("num_channels")?.is_some_and(|channels| channels != 3) {
        return Err(config.error("only pictures of three channels are supported"));
    }
    let mut graph = GraphBuilder::new(kind, OPSET);
    graph.input("pixel_values", DType::Float32, &[batch, Some(3), Some(image[0]), Some(image[1])]);
    let input = Map { name: "pixel_values".to_owned(), channels: 3, height: image[0], width: image[1] };
    let classes = classes(&config)?;
    let mut builder = ClassifierGraph { net: Net { graph }, weights: checkpoint, config, classes };
    let logits = emit(&mut builder, &input)?;
    let mut graph = builder.net.graph;
    graph.scope("");
    graph.node_named("Identity", &[&logits], &["logits"], &[]);
    graph.output("logits", DType::Float32, &[batch, Some(classes)]);
    graph.finish(Path::new("model.onnx")).map_err(|error| CheckpointError::new(&error.path, error.message))
}
