//! The part of a manifest that depends on the kind of model.

use serde::{Deserialize, Serialize};

use super::Quality;
use super::layout::WEIGHTS;
use crate::spec::{ClassifierSpec, Kind, LlmRecord, Preprocess, ShapeRange, Yolo};
use crate::tensor::TensorSpec;

/// A single engine and the ONNX model it was built from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct GraphEngine {
    /// Name of the engine file.
    pub engine: String,
    /// Name of the ONNX model with final shapes.
    pub model: String,
    /// Inputs of the engine, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<TensorSpec>,
    /// Outputs of the engine, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<TensorSpec>,
    /// Shape ranges of dynamic inputs; empty for static shapes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<ShapeRange>,
    /// Names of matrix products kept in float32, because the engine was not accurate enough without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub full_products: Vec<String>,
}

impl GraphEngine {
    /// Shapes of the inputs, in order; for dynamic inputs `end` chooses the smallest, tuned or largest one.
    pub fn input_shapes(&self, end: impl Fn(&ShapeRange) -> &[i64]) -> Vec<Vec<usize>> {
        let shape = |spec: &TensorSpec| match self.profile.iter().find(|range| range.name == spec.name) {
            Some(range) => end(range).iter().map(|dim| usize::try_from(*dim).unwrap_or(1)).collect(),
            None => spec.shape_with(1),
        };
        self.inputs.iter().map(shape).collect()
    }

    /// The batch size that an engine with a dynamic batch is tuned for; 1 for static shapes.
    pub fn tuned_batch(&self) -> usize {
        let tuned = self.profile.first().and_then(|range| range.opt.first().copied());
        tuned.and_then(|batch| usize::try_from(batch).ok()).unwrap_or(1)
    }
}

/// The contents of an engine directory, by kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", expecting = "an object")]
pub enum EngineContents {
    /// A language model: several engines, and its weights beside them.
    Llm {
        /// Shapes, limits and file names.
        llm: LlmRecord,
        /// Quality loss of the quantisation; `None` for models that were not compared with a float checkpoint.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        quality: Option<Quality>,
    },
    /// A YOLO model.
    Yolo {
        /// The engine.
        #[serde(flatten)]
        graph: GraphEngine,
        /// Pre- and postprocessing of objects.
        yolo: Yolo,
        /// Pre- and postprocessing of classes, for a YOLO classifier only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        classifier: Option<ClassifierSpec>,
    },
    /// An image classifier.
    Classifier {
        /// The engine.
        #[serde(flatten)]
        graph: GraphEngine,
        /// Pre- and postprocessing.
        classifier: ClassifierSpec,
    },
    /// Any other ONNX model, which takes and returns tensors.
    Onnx(GraphEngine),
}

/// The fields of all kinds, read without regard to what belongs together: each straight from the text, with its place in it.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
#[allow(dead_code)]
struct ContentFields {
    kind: Option<Kind>,
    llm: Option<LlmRecord>,
    quality: Option<Quality>,
    yolo: Option<Yolo>,
    classifier: Option<ClassifierSpec>,
    engine: Option<String>,
    model: Option<String>,
    inputs: Option<Vec<TensorSpec>>,
    outputs: Option<Vec<TensorSpec>>,
    profile: Option<Vec<ShapeRange>>,
    full_products: Option<Vec<String>>,
}

/// The first field that is not what its name says, with its place in the text.
pub(super) fn mistake(text: &str) -> Option<serde_json::Error> {
    serde_json::from_str::<ContentFields>(text).err()
}

impl EngineContents {
    /// Kind of the model.
    pub fn kind(&self) -> Kind {
        match self {
            EngineContents::Llm { .. } => Kind::Llm,
            EngineContents::Yolo { .. } => Kind::Yolo,
            EngineContents::Classifier { .. } => Kind::Classifier,
            EngineContents::Onnx(_) => Kind::Onnx,
        }
    }

    /// The engine of a vision or ONNX model; `None` for a language model, which has several.
    pub fn graph(&self) -> Option<&GraphEngine> {
        match self {
            EngineContents::Llm { .. } => None,
            EngineContents::Yolo { graph, .. }
            | EngineContents::Classifier { graph, .. }
            | EngineContents::Onnx(graph) => Some(graph),
        }
    }

    /// Pre- and postprocessing of a classifier, YOLO classifiers included.
    pub fn classifier(&self) -> Option<&ClassifierSpec> {
        match self {
            EngineContents::Yolo { classifier, .. } => classifier.as_ref(),
            EngineContents::Classifier { classifier, .. } => Some(classifier),
            EngineContents::Llm { .. } | EngineContents::Onnx(_) => None,
        }
    }

    /// Pre- and postprocessing of a YOLO model.
    pub fn yolo(&self) -> Option<&Yolo> {
        match self {
            EngineContents::Yolo { yolo, .. } => Some(yolo),
            _ => None,
        }
    }

    /// Shapes, limits and file names of a language model.
    pub fn llm(&self) -> Option<&LlmRecord> {
        match self {
            EngineContents::Llm { llm, .. } => Some(llm),
            _ => None,
        }
    }

    /// Preprocessing of images, for models that take them.
    pub fn preprocess(&self) -> Option<Preprocess> {
        let classifier = self.classifier().map(|classifier| classifier.preprocess.clone());
        classifier.or_else(|| self.yolo().map(Yolo::preprocess))
    }

    /// Names of the files that the contents refer to, relative to the directory.
    pub(super) fn files(&self) -> Vec<String> {
        match self {
            EngineContents::Llm { llm, .. } => llm.weights.iter().map(|name| format!("{WEIGHTS}/{name}")).collect(),
            EngineContents::Yolo { graph, .. }
            | EngineContents::Classifier { graph, .. }
            | EngineContents::Onnx(graph) => {
                vec![graph.engine.clone(), graph.model.clone()]
            }
        }
    }
}
