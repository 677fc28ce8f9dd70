//! The recipe as written: one YAML document for one model. Field docs double as the JSON Schema's descriptions.
//!
//! Unknown fields are errors. Defaults are applied in `plan.rs`, not here, so that a recipe is printed as it was
//! written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::shape::InputShape;
use crate::spec::{ClassifierOutput, Kind, KvCache, Precision, Preprocess, Sides};

/// The schema version that this tool reads.
pub const VERSION: u32 = 1;

/// Recipe of an image classifier: a Hugging Face folder (config.json and safetensors), or an ONNX file with one image
/// input and one output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map of fields")]
pub struct ClassifierRecipe {
    /// Version of the recipe format; always 1.
    pub version: u32,
    /// Name of the engine directory: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Always `classifier`.
    pub kind: Kind,
    /// Where the checkpoint or the `.onnx` file comes from.
    pub source: Source,
    /// How an image becomes the input tensor. Default: as preprocessor_config.json says. Required for an ONNX file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<Preprocess>,
    /// Class names in output order. Default: the checkpoint's, else the class indices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// What the output tensor holds. Default: by the checkpoint's `problem_type`; for an ONNX file `probabilities` if
    /// the graph ends in a Softmax, `multilabel_probabilities` if it ends in a Sigmoid, else `logits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<ClassifierOutput>,
    /// With `output: expectation`: the value that each class stands for, in output order, e.g. an age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_values: Option<Vec<f32>>,
    /// Settings of the TensorRT builder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// Settings of the verification against the CPU reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
}

/// Recipe of a YOLO model: an Ultralytics checkpoint (.pt) or its ONNX export.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map of fields")]
pub struct YoloRecipe {
    /// Version of the recipe format; always 1.
    pub version: u32,
    /// Name of the engine directory: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Always `yolo`.
    pub kind: Kind,
    /// Where the checkpoint or its ONNX export comes from.
    pub source: Source,
    /// Input size in pixels, one number or [height, width], each a multiple of 32. Default: 640; 224 for a YOLO
    /// classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<ImageSize>,
    /// Confidence threshold, 0 to 1: detections with a lower score are dropped. Default: 0.25.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
    /// Intersection-over-union threshold of non-maximum suppression, 0 to 1: of two boxes of one class that overlap
    /// more, the one with the lower score is dropped. Default: 0.7.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iou: Option<f32>,
    /// Largest number of detections per image. Default: 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_detections: Option<u32>,
    /// Write a plain TensorRT plan, without the metadata that Ultralytics puts in front of it and that trtexec and
    /// DeepStream cannot read. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<bool>,
    /// Settings of the TensorRT builder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// Settings of the verification against the CPU reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
}

/// Image size in pixels: one number for both sides, or [height, width].
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
    /// Height and width in pixels.
    pub fn sides(self) -> [u32; 2] {
        match self {
            ImageSize::Square(size) => [size; 2],
            ImageSize::Sides(sides) => sides,
        }
    }
}

/// Recipe of a large language model: a Hugging Face checkpoint (safetensors) or a GGUF file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map of fields")]
pub struct LlmRecipe {
    /// Version of the recipe format; always 1.
    pub version: u32,
    /// Name of the engine directory: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Always `llm`.
    pub kind: Kind,
    /// Where the checkpoint comes from.
    pub source: Source,
    /// Largest number of sequences decoded together. Default: 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_batch_size: Option<u32>,
    /// Longest prompt in tokens. Default: 2048.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_input_len: Option<u32>,
    /// Longest answer in tokens. Default: 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_len: Option<u32>,
    /// Jinja file, relative to the recipe, that replaces the model's own chat template. Default: the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// What tokens are drafted from, several of which the model then verifies at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speculation: Option<SpeculationRecipe>,
    /// Settings of the TensorRT builder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// Settings of the verification against the CPU reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
}

/// What the tokens of answers are drafted from besides the conversation. Drafts change no answer, only its time.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpeculationRecipe {
    /// Text file of up to 1 MiB, relative to the recipe, that answers often quote, such as a manual or typical answers.
    /// It is copied into the engine directory. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// Where files come from: exactly one of `hub`, `path`, `url`, `pypi` and `ollama`, with the fields that belong to it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map of fields")]
pub struct Source {
    /// Hugging Face repository, `owner/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// With `hub`: branch, tag or commit. Default: `main`. The commit is pinned in watus.lock at the first fetch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// With `hub`: glob patterns of the files to fetch. Default: the files that models of this kind need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<String>>,
    /// Local file or folder, relative to the recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Address of one file, https:// or http://; requires `sha256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Package on the Python Package Index; requires `package_version` and `file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pypi: Option<String>,
    /// Model in the local Ollama store, e.g. `llama3.2` or `llama3.2:1b`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ollama: Option<String>,
    /// With `pypi`: exact version of the package.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package_version: Option<String>,
    /// With `pypi`: path of the file inside the wheel. With `hub`: the one file to read the model from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// SHA-256 of the file, 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// Settings of the TensorRT builder.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map of fields")]
pub struct Build {
    /// Arithmetic of the engine, and for an llm the type of its KV cache unless `kv_cache` says otherwise. int8 and
    /// int4 quantise the weights of an llm's layers and compute in fp16. Default: fp16 for an llm, else fp32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Type of an llm's output matrix (LM head): int8 or int4 quantise it, also one of a checkpoint whose layers come quantised or
    /// stay floats; the type of the arithmetic keeps it as the checkpoint has it. If it is tied to the embedding, a copy is
    /// quantised. Default: int8 with `precision: int4`, else as the checkpoint has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Precision>,
    /// With `precision` or `head` in int8 or int4: number of consecutive inputs that share a scale; 32, 64 or 128. Default: the
    /// largest of these that divides all of the model's input sizes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<u32>,
    /// With `precision: int8` or `int4`: text file, relative to the recipe, similar to what the model will read.
    /// Weights of inputs with large activations on it are scaled before rounding (AWQ), which lowers the quality loss.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// How an llm stores keys and values: `auto` in the type it computes in, `int8` in 8 bits with one scale per
    /// position and head, half the memory of fp16. Default: auto.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<KvCache>,
    /// Let fp32 layers use TF32 tensor cores: faster, but only about 3 decimal digits precise. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tf32: Option<bool>,
    /// Batch size of inputs whose first dimension is dynamic. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
    /// Largest batch size: the first dimension stays dynamic from 1 to this, tuned for `batch`. Default: `batch`, so
    /// that the batch size is fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_batch: Option<u32>,
    /// Shape of an input, by name, if more than the batch is dynamic. For an onnx recipe also a range of shapes, all of
    /// which the engine accepts: `{ min: [1, 16], opt: [1, 128], max: [1, 512] }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shapes: Option<BTreeMap<String, InputShape>>,
    /// Largest scratch memory of a tactic (TensorRT's workspace), in MiB. Default: TensorRT's, all device memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_mib: Option<u32>,
    /// TensorRT's builder optimization level, 0 (fastest build) to 5 (fastest engine); needs TensorRT 8.6 or later.
    /// Default: TensorRT's, 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimization_level: Option<u8>,
    /// TensorRT-RTX only: compute capabilities of the GPUs to build for, e.g. `["8.9"]`. Default: this machine's;
    /// without a GPU all that RTX supports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capabilities: Option<Vec<String>>,
}

/// Settings of the verification: the engine's outputs are compared with the CPU reference's.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map of fields")]
pub struct Verify {
    /// Number of random inputs to compare on. Default: 3; 0 for a yolo recipe with `images`, and with `inputs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seeds: Option<u32>,
    /// Images to compare on: files or folders relative to the recipe, or sources. They are copied into the engine
    /// directory. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<Picture>>,
    /// For an onnx recipe: tensors to compare on. Each list item maps every input's name to a `.npy` file, relative to
    /// the recipe. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Vec<BTreeMap<String, String>>>,
    /// For an llm: prompts to compare on, besides the built-in ones. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<Vec<String>>,
    /// Largest allowed difference to the CPU reference. For an llm: mean Kullback-Leibler divergence in nats per token;
    /// default 1e-5 for fp32, 1e-2 for fp16 or an int8 KV cache, 5e-2 for bf16. Otherwise max|engine - reference| /
    /// max|reference| of any output; default 1e-3 for fp32, 5e-2 for lower precisions, where the results on the images
    /// decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f64>,
    /// For an llm checkpoint that is already quantised: the float checkpoint it was made from, to measure its quality
    /// loss against. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Box<Source>>,
    /// For an llm whose weights or KV cache are quantised by this build, or that has a `reference`: largest allowed
    /// mean Kullback-Leibler divergence from the checkpoint, or from the `reference`, in nats per token. Default: 0.3 with int4
    /// or a `reference`, else 0.02.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergence: Option<f64>,
    /// For an llm whose weights or KV cache are quantised by this build, or that has a `reference`: largest allowed
    /// ratio of its perplexity to the checkpoint's, or to the `reference`'s. Default: 1.3 with int4 or a `reference`, else
    /// 1.03.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
}

/// An image to verify with: a path relative to the recipe, or a source.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Picture {
    Path(String),
    Source(Box<Source>),
}
