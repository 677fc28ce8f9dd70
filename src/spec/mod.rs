//! Plain records that recipes, manifests and reports consist of, and that the runtimes take.
//!
//! Nothing here reads files or knows a runtime. `vision.rs` has pre- and postprocessing of vision models (`sides.rs`
//! parses sizes), `llm.rs` the shapes and limits of a language model, `tensorrt.rs` TensorRT versions, GPUs and input
//! shapes.

mod llm;
mod sides;
mod tensorrt;
mod vision;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::tensor::DType;

pub use llm::{HeadRecord, KvLayout, LlmRecord, Shapes};
pub use sides::Sides;
pub use tensorrt::{DeviceInfo, Family, ShapeRange, Version};
pub use vision::{Boxes, ClassifierOutput, ClassifierSpec, Color, Fit, Preprocess, Resample, Resize, Task, Yolo};

/// Kind of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "fetch", derive(schemars::JsonSchema))]
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

/// Arithmetic of an engine; int8 and int4 are quantised weights with float16 arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "fetch", derive(schemars::JsonSchema))]
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
    /// Bits of a quantised weight; `None` for floats.
    pub fn bits(self) -> Option<u32> {
        match self {
            Precision::Int8 => Some(8),
            Precision::Int4 => Some(4),
            _ => None,
        }
    }

    /// The type of the arithmetic; quantised weights are dequantised to float16.
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

/// How an llm stores keys and values: in the type it computes in, or in 8 bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "fetch", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum KvCache {
    #[default]
    Auto,
    Int8,
}

impl KvCache {
    /// Whether they are kept as they are computed.
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
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
