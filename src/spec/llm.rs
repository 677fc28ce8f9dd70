//! Records of a language model in the manifest of an engine directory.

use serde::{Deserialize, Serialize};

use super::KvCache;
use crate::tensor::DType;

/// The static shapes that the engines of a language model are built for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct Shapes {
    /// Number of sequences in the KV cache, which are decoded together.
    pub slots: usize,
    /// Longest sequence in positions, prompt and answer together.
    pub max_len: usize,
    /// Prompt tokens per prefill pass, ascending.
    pub chunks: Vec<usize>,
    /// Cache lengths in positions, ascending; the last is at least `max_len`.
    pub caches: Vec<usize>,
    /// Shapes of decode steps: (batch, tokens per sequence).
    pub steps: Vec<(usize, usize)>,
}

/// A language model's part of the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct LlmRecord {
    /// Model family: "llama", "mistral", …
    pub family: String,
    /// Number of parameters, tied ones counted once.
    pub parameters: u64,
    /// Arithmetic type of the engines.
    pub dtype: DType,
    /// Storage type of keys and values.
    #[serde(rename = "kv_type", default, skip_serializing_if = "KvCache::is_auto")]
    pub kv_cache: KvCache,
    /// Longest prompt in tokens.
    pub max_input_len: usize,
    /// Longest answer in tokens.
    pub max_output_len: usize,
    /// Shapes of the engines.
    pub shapes: Shapes,
    /// Names of the weight files below `weights/`.
    pub weights: Vec<String>,
    /// The output matrix (LM head), if the build packed it into one of these files; `None` if it is where the checkpoint
    /// has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadRecord>,
}

/// An output matrix in a file of its own, packed as compressed-tensors packs matrices (`pack-quantized`), which takes the place of
/// the checkpoint's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadRecord {
    /// Name of the file below `weights/`.
    pub file: String,
    /// Bits of an integer, 4 or 8.
    pub bits: u32,
    /// Number of consecutive inputs that share a scale.
    pub group_size: usize,
    /// Whether the middle integer represents 0, without zero points.
    pub symmetric: bool,
}

/// How an executor writes the keys and values of a sequence: for each layer its keys, then its values; each of them
/// `[kv_heads, positions, head_dim]`, and for int8 then the scales of the rows, `[kv_heads, positions]` in float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct KvLayout {
    /// Number of layers.
    pub layers: usize,
    /// Number of key heads of a layer.
    pub kv_heads: usize,
    /// Elements of a row.
    pub head_dim: usize,
    /// Type of the elements.
    pub elements: DType,
    /// Arithmetic type that they were computed in.
    pub dtype: DType,
    /// How they were rounded.
    pub kv_cache: KvCache,
}

impl KvLayout {
    /// Bytes of a position's row of one head, without its scale.
    pub fn row_bytes(&self) -> Option<usize> {
        self.head_dim.checked_mul(self.elements.size())
    }

    /// Bytes of a row's scale; 0 without scales.
    pub fn scale_bytes(&self) -> usize {
        if self.elements == DType::Int8 { DType::Float32.size() } else { 0 }
    }

    /// Bytes of a layer's keys and values of so many positions; `None` if no memory is as large.
    pub fn layer_bytes(&self, positions: usize) -> Option<usize> {
        let row = self.row_bytes()?.checked_add(self.scale_bytes())?;
        row.checked_mul(self.kv_heads)?.checked_mul(positions)?.checked_mul(2)
    }
}
