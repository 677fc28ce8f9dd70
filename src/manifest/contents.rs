//! What an engine directory holds, by its kind.

use serde::{Deserialize, Serialize};

use super::Quality;
use super::layout::WEIGHTS;
use crate::spec::{ClassifierSpec, Kind, LlmRecord, Preprocess, ShapeRange, Yolo};
use crate::tensor::TensorSpec;

/// One engine of one ONNX model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GraphEngine {
    /// Engine file.
    pub engine: String,
    /// ONNX model it was built from, with its final shapes.
    pub model: String,
    /// Inputs in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<TensorSpec>,
    /// Outputs in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<TensorSpec>,
    /// Ranges of dynamic inputs; empty for static shapes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<ShapeRange>,
    /// Products that stay in float32 because the engine was not right without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub full_products: Vec<String>,
}

impl GraphEngine {
    /// Shapes of the inputs, in their order: what the engine is tuned for, or an end of what it takes.
    pub fn input_shapes(&self, end: impl Fn(&ShapeRange) -> &[i64]) -> Vec<Vec<usize>> {
        let shape = |spec: &TensorSpec| match self.profile.iter().find(|range| range.name == spec.name) {
            Some(range) => end(range).iter().map(|dim| usize::try_from(*dim).unwrap_or(1)).collect(),
            None => spec.shape_with(1),
        };
        self.inputs.iter().map(shape).collect()
    }

    /// The batch it is tuned for, where the first dimension is the batch.
    pub fn tuned_batch(&self) -> usize {
        let tuned = self.profile.first().and_then(|range| range.opt.first().copied());
        tuned.and_then(|batch| usize::try_from(batch).ok()).unwrap_or(1)
    }
}

/// What a directory holds, by its kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum EngineContents {
    /// A language model: many engines, and its weights beside them.
    Llm {
        /// Its shapes, limits and files.
        llm: LlmRecord,
        /// What quantising it has cost, where that was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        quality: Option<Quality>,
    },
    /// A YOLO model.
    Yolo {
        /// Its engine.
        #[serde(flatten)]
        graph: GraphEngine,
        /// How pictures go in and objects come out.
        yolo: Yolo,
        /// The same for one that classifies, and for no other.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        classifier: Option<ClassifierSpec>,
    },
    /// An image classifier.
    Classifier {
        /// Its engine.
        #[serde(flatten)]
        graph: GraphEngine,
        /// How pictures go in and answers come out.
        classifier: ClassifierSpec,
    },
    /// Any other ONNX model: tensors go in and come out.
    Onnx(GraphEngine),
}

impl EngineContents {
    /// The recipe's kind.
    pub fn kind(&self) -> Kind {
        match self {
            EngineContents::Llm { .. } => Kind::Llm,
            EngineContents::Yolo { .. } => Kind::Yolo,
            EngineContents::Classifier { .. } => Kind::Classifier,
            EngineContents::Onnx(_) => Kind::Onnx,
        }
    }

    /// The one engine there is; a language model has many.
    pub fn graph(&self) -> Option<&GraphEngine> {
        match self {
            EngineContents::Llm { .. } => None,
            EngineContents::Yolo { graph, .. }
            | EngineContents::Classifier { graph, .. }
            | EngineContents::Onnx(graph) => Some(graph),
        }
    }

    /// What classifies pictures, if it does.
    pub fn classifier(&self) -> Option<&ClassifierSpec> {
        match self {
            EngineContents::Yolo { classifier, .. } => classifier.as_ref(),
            EngineContents::Classifier { classifier, .. } => Some(classifier),
            EngineContents::Llm { .. } | EngineContents::Onnx(_) => None,
        }
    }

    /// The YOLO model, if it is one.
    pub fn yolo(&self) -> Option<&Yolo> {
        match self {
            EngineContents::Yolo { yolo, .. } => Some(yolo),
            _ => None,
        }
    }

    /// The language model, if it is one.
    pub fn llm(&self) -> Option<&LlmRecord> {
        match self {
            EngineContents::Llm { llm, .. } => Some(llm),
            _ => None,
        }
    }

    /// How pictures become its input, if it takes pictures.
    pub fn preprocess(&self) -> Option<Preprocess> {
        let classifier = self.classifier().map(|classifier| classifier.preprocess.clone());
        classifier.or_else(|| self.yolo().map(Yolo::preprocess))
    }

    /// Files that it names, relative to the directory.
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
