//! Recipes of the kind `onnx`, as written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{Build, Source, Verify};
use crate::spec::Kind;

/// An ONNX file to an engine, as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OnnxRecipe {
    /// Schema version; 1.
    pub version: u32,
    /// Name of the engine directory: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Always `onnx`.
    pub kind: Kind,
    /// Where the `.onnx` file comes from.
    pub source: Source,
    /// Values for inputs that choose what is computed, such as a sampling rate: they become constants, the engine has no such
    /// inputs. One number for all elements, or a list of as many numbers as the input has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<BTreeMap<String, InputValue>>,
    /// How TensorRT builds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// How the engine is proved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
}

/// An input's value: one number for all its elements, or one for each in row-major order.
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
