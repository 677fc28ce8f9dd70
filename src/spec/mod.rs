//! The plain records that documents are made of: what recipes, manifests and reports say, and the runtime is told.
//!
//! Nothing here reads a file or knows who runs a model. `vision.rs` is how pictures go in and answers come out (`sides.rs`
//! reads sizes), `llm.rs` which shapes and limits a language model has, `tensorrt.rs` which TensorRT and GPU a build is of.

mod llm;
mod sides;
mod tensorrt;
mod vision;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tensor::DType;

pub use llm::{LlmRecord, Shapes};
pub use sides::Sides;
pub use tensorrt::{DeviceInfo, Family, ShapeRange, Version};
pub use vision::{Boxes, ClassifierOutput, ClassifierSpec, Color, Fit, Preprocess, Resample, Resize, Task, Yolo};

/// What a recipe makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Kind {
    Llm,
    Yolo,
    Classifier,
    Onnx,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Llm => "llm",
            Kind::Yolo => "yolo",
            Kind::Classifier => "classifier",
            Kind::Onnx => "onnx",
        })
    }
}

/// Arithmetic of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Precision {
    Fp32,
    Fp16,
    Bf16,
    Int8,
    Int4,
}

impl Precision {
    /// Bits of a quantised weight.
    pub fn bits(self) -> Option<u32> {
        match self {
            Precision::Int8 => Some(8),
            Precision::Int4 => Some(4),
            _ => None,
        }
    }

    /// The type that is computed with: quantised weights are widened to float16.
    pub fn dtype(self) -> DType {
        match self {
            Precision::Fp32 => DType::Float32,
            Precision::Fp16 | Precision::Int8 | Precision::Int4 => DType::Float16,
            Precision::Bf16 => DType::BFloat16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
            Precision::Int4 => "int4",
        })
    }
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum KvCache {
    Auto,
    Int8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_messages_are_those_of_documents() {
        let word = |value: serde_json::Value| value.as_str().unwrap().to_owned();
        for kind in [Kind::Llm, Kind::Yolo, Kind::Classifier, Kind::Onnx] {
            assert_eq!(kind.to_string(), word(serde_json::to_value(kind).unwrap()));
        }
        for precision in [Precision::Fp32, Precision::Fp16, Precision::Bf16, Precision::Int8, Precision::Int4] {
            assert_eq!(precision.to_string(), word(serde_json::to_value(precision).unwrap()));
        }
    }
}
