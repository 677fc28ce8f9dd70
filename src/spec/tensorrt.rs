//! TensorRT versions, GPUs and the shapes of dynamic inputs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// TensorRT product: `Enterprise` is TensorRT for datacentres and Jetson, `Rtx` is TensorRT-RTX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Family {
    Enterprise,
    Rtx,
}

/// A TensorRT version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
#[serde(expecting = "an object")]
pub struct Version {
    pub family: Family,
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.family == Family::Rtx { "TensorRT-RTX" } else { "TensorRT" };
        write!(f, "{family} {}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct DeviceInfo {
    /// Product name, e.g. "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// Compute capability, e.g. "8.7".
    pub compute_capability: String,
    /// Device memory in bytes; on a Jetson the memory that CPU and GPU share.
    pub memory: u64,
}

/// An optimization profile of one dynamic input: smallest and largest shape, and the shape that the engine is tuned
/// for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
#[serde(expecting = "an object")]
pub struct ShapeRange {
    pub name: String,
    pub min: Vec<i64>,
    pub opt: Vec<i64>,
    pub max: Vec<i64>,
}
