//! What an engine directory says of a language model.

use serde::{Deserialize, Serialize};

use super::KvCache;
use crate::tensor::DType;

/// The static shapes that a language model's engines are built for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shapes {
    /// Sequences held and decoded together.
    pub slots: usize,
    /// Positions of each.
    pub max_len: usize,
    /// Prompt tokens per pass, ascending.
    pub chunks: Vec<usize>,
    /// Cache lengths, ascending; the last holds `max_len`.
    pub caches: Vec<usize>,
    /// (batch, chunk) of decode steps.
    pub steps: Vec<(usize, usize)>,
}

/// What the manifest says of a language model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LlmRecord {
    /// "llama", "mistral", …
    pub family: String,
    /// Weights, counted once each.
    pub parameters: u64,
    /// Arithmetic of the engines.
    pub dtype: DType,
    /// How keys and values are kept.
    #[serde(rename = "kv_type", default, skip_serializing_if = "KvCache::is_auto")]
    pub kv_cache: KvCache,
    /// Longest prompt in tokens.
    pub max_input_len: usize,
    /// Longest answer in tokens.
    pub max_output_len: usize,
    /// Engine shapes.
    pub shapes: Shapes,
    /// The checkpoint's files below `weights/`.
    pub weights: Vec<String>,
}
