//! Which TensorRT builds, for which GPU, and which shapes it is asked for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// TensorRT for datacentres and Jetson, or TensorRT-RTX.
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

/// What a GPU is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Marketing name.
    pub name: String,
    /// E.g. "8.7".
    pub compute_capability: String,
    /// Device memory in bytes; on a Jetson the same as the machine's.
    pub memory: u64,
}

/// The shapes that one dynamic input may have, and the one that the engine is made fastest for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ShapeRange {
    pub name: String,
    pub min: Vec<i64>,
    pub opt: Vec<i64>,
    pub max: Vec<i64>,
}
