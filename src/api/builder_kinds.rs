//! What the recipes of one kind alone may say.

use std::collections::BTreeMap;

use super::builder::Builder;
use crate::recipe::{
    Build, ClassifierRecipe, ImageSize, InputShape, InputValue, LlmRecipe, OnnxRecipe, SpeculationRecipe, Verify,
    YoloRecipe,
};
use crate::spec::{ClassifierOutput, KvCache, Precision, Preprocess};

impl Builder<YoloRecipe> {
    /// A YOLO checkpoint (`.pt`), or an ONNX export of one.
    pub fn yolo(source: &str) -> Self {
        let (name, source) = Self::named(source);
        Self::new(YoloRecipe::bare(name, source), Build::default(), Verify::default())
    }

    /// Height and width of the input in pixels, a multiple of 32. Default: 640, or 224 for a classifying YOLO.
    #[must_use]
    pub fn image_size(mut self, pixels: u32) -> Self {
        self.recipe.image_size = Some(ImageSize::Square(pixels));
        self
    }

    /// Height and width of the input in pixels, multiples of 32, where they differ.
    #[must_use]
    pub fn image_sides(mut self, height: u32, width: u32) -> Self {
        self.recipe.image_size = Some(ImageSize::Sides([height, width]));
        self
    }

    /// Score threshold, 0 to 1: objects below it are not reported. Default: 0.25.
    #[must_use]
    pub fn confidence(mut self, confidence: f32) -> Self {
        self.recipe.confidence = Some(confidence);
        self
    }

    /// IoU threshold of non-maximum suppression, 0 to 1: of two boxes of one class that overlap more, the better one is kept.
    /// Default: 0.7.
    #[must_use]
    pub fn iou(mut self, iou: f32) -> Self {
        self.recipe.iou = Some(iou);
        self
    }

    /// Largest number of objects reported. Default: 300.
    #[must_use]
    pub fn max_detections(mut self, count: u32) -> Self {
        self.recipe.max_detections = Some(count);
        self
    }
}

impl Builder<ClassifierRecipe> {
    /// An image classifier: a checkpoint of Hugging Face, or an ONNX file.
    pub fn classifier(source: &str) -> Self {
        let (name, source) = Self::named(source);
        Self::new(ClassifierRecipe::bare(name, source), Build::default(), Verify::default())
    }

    /// How an image becomes the input. Default: what preprocessor_config.json says; an ONNX file needs it.
    #[must_use]
    pub fn preprocess(mut self, preprocess: Preprocess) -> Self {
        self.recipe.preprocess = Some(preprocess);
        self
    }

    /// Names of the classes, in the output's order. Default: the checkpoint's own, or numbers.
    #[must_use]
    pub fn labels<L: Into<String>>(mut self, labels: impl IntoIterator<Item = L>) -> Self {
        self.recipe.labels = Some(labels.into_iter().map(Into::into).collect());
        self
    }

    /// What the output holds. Default: what the checkpoint or the last nodes of the ONNX file say.
    #[must_use]
    pub fn output(mut self, output: ClassifierOutput) -> Self {
        self.recipe.output = Some(output);
        self
    }

    /// The value of each class, e.g. an age, for [`ClassifierOutput::Expectation`].
    #[must_use]
    pub fn class_values(mut self, values: impl IntoIterator<Item = f32>) -> Self {
        self.recipe.class_values = Some(values.into_iter().collect());
        self
    }
}

impl Builder<LlmRecipe> {
    /// A language model: a checkpoint of Hugging Face, a GGUF, or a model of Ollama.
    pub fn llm(source: &str) -> Self {
        let (name, source) = Self::named(source);
        Self::new(LlmRecipe::bare(name, source), Build::default(), Verify::default())
    }

    /// Sequences decoded together. Default: 4.
    #[must_use]
    pub fn max_batch_size(mut self, sequences: u32) -> Self {
        self.recipe.max_batch_size = Some(sequences);
        self
    }

    /// Longest prompt in tokens. Default: 2048.
    #[must_use]
    pub fn max_input_len(mut self, tokens: u32) -> Self {
        self.recipe.max_input_len = Some(tokens);
        self
    }

    /// Longest answer in tokens. Default: 512.
    #[must_use]
    pub fn max_output_len(mut self, tokens: u32) -> Self {
        self.recipe.max_output_len = Some(tokens);
        self
    }

    /// A Jinja file to use instead of the model's own chat template.
    #[must_use]
    pub fn chat_template(mut self, path: impl Into<String>) -> Self {
        self.recipe.chat_template = Some(path.into());
        self
    }

    /// A text file that answers often quote; what it says next is drafted, which changes no answer, only its time.
    #[must_use]
    pub fn speculation_text(mut self, path: impl Into<String>) -> Self {
        self.recipe.speculation = Some(SpeculationRecipe { text: Some(path.into()) });
        self
    }

    /// How keys and values are kept. Default: as they are computed.
    #[must_use]
    pub fn kv_cache(mut self, cache: KvCache) -> Self {
        self.build.kv_cache = Some(cache);
        self
    }

    /// Type of the output matrix (LM head): int8 or int4 quantise it, fp16 keeps it as the checkpoint has it. Default: int8
    /// with a precision of int4, else as the checkpoint has it.
    #[must_use]
    pub fn head(mut self, precision: Precision) -> Self {
        self.build.head = Some(precision);
        self
    }

    /// Prompts that the engine is verified on, besides the built-in ones.
    #[must_use]
    pub fn verify_prompts<P: Into<String>>(mut self, prompts: impl IntoIterator<Item = P>) -> Self {
        self.verify.prompts.get_or_insert_default().extend(prompts.into_iter().map(Into::into));
        self
    }
}

impl Builder<OnnxRecipe> {
    /// Any other ONNX file: tensors go in and come out.
    pub fn onnx(source: &str) -> Self {
        let (name, source) = Self::named(source);
        Self::new(OnnxRecipe::bare(name, source), Build::default(), Verify::default())
    }

    /// A value that makes a constant of an input; once for each input.
    #[must_use]
    pub fn input_value(mut self, name: impl Into<String>, value: InputValue) -> Self {
        self.recipe.inputs.get_or_insert_default().insert(name.into(), value);
        self
    }

    /// The shape of an input, or a range of shapes, where more than the batch is dynamic; once for each input.
    #[must_use]
    pub fn input_shape(mut self, name: impl Into<String>, shape: InputShape) -> Self {
        let shapes: &mut BTreeMap<String, InputShape> = self.build.shapes.get_or_insert_default();
        shapes.insert(name.into(), shape);
        self
    }

    /// Batch size of inputs whose first dimension is dynamic. Default: 1.
    #[must_use]
    pub fn batch(mut self, batch: u32) -> Self {
        self.build.batch = Some(batch);
        self
    }
}
