//! Recipes of the kind `onnx`, as written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{Build, Source, Verify};
use crate::spec::Kind;

/// Recipe of any other ONNX model, built as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map of fields")]
pub struct OnnxRecipe {
    /// Version of the recipe format; always 1.
    pub version: u32,
    /// Name of the engine directory: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Always `onnx`.
    pub kind: Kind,
    /// Where the `.onnx` file comes from.
    pub source: Source,
    /// Constant values for inputs, by name, such as a sampling rate: each becomes a constant, and the engine no longer
    /// has that input. One number for all elements, or as many numbers as the input has elements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<BTreeMap<String, InputValue>>,
    /// Settings of the TensorRT builder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// Settings of the verification against the CPU reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
}

/// Value of an input: one number for all of its elements, or one number per element in row-major order.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum InputValue {
    Truth(bool),
    Whole(i64),
    Float(f64),
    Wholes(Vec<i64>),
    Floats(Vec<f64>),
}
