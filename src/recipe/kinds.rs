//! [`Recipe`], the recipe of any kind, and its JSON Schema.

use schemars::JsonSchema;
use serde::Serialize;

use super::onnx::OnnxRecipe;
use super::schema::{Build, ClassifierRecipe, LlmRecipe, Source, VERSION, Verify, YoloRecipe};
use crate::spec::Kind;

/// A recipe of any kind.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Recipe {
    Llm(LlmRecipe),
    Yolo(YoloRecipe),
    Classifier(ClassifierRecipe),
    Onnx(OnnxRecipe),
}

impl LlmRecipe {
    /// A recipe that says nothing beyond name and source.
    pub fn bare(name: String, source: Source) -> Self {
        Self {
            version: VERSION,
            name,
            kind: Kind::Llm,
            source,
            max_batch_size: None,
            max_input_len: None,
            max_output_len: None,
            chat_template: None,
            speculation: None,
            build: None,
            verify: None,
        }
    }
}

impl YoloRecipe {
    /// A recipe that says nothing beyond name and source.
    pub fn bare(name: String, source: Source) -> Self {
        Self {
            version: VERSION,
            name,
            kind: Kind::Yolo,
            source,
            image_size: None,
            confidence: None,
            iou: None,
            max_detections: None,
            raw: None,
            build: None,
            verify: None,
        }
    }
}

impl ClassifierRecipe {
    /// A recipe that says nothing beyond name and source.
    pub fn bare(name: String, source: Source) -> Self {
        Self {
            version: VERSION,
            name,
            kind: Kind::Classifier,
            source,
            preprocess: None,
            labels: None,
            output: None,
            class_values: None,
            build: None,
            verify: None,
        }
    }
}

impl OnnxRecipe {
    /// A recipe that says nothing beyond name and source.
    pub fn bare(name: String, source: Source) -> Self {
        Self { version: VERSION, name, kind: Kind::Onnx, source, inputs: None, build: None, verify: None }
    }
}

impl Recipe {
    /// A recipe that says nothing beyond name and source.
    pub fn bare(kind: Kind, name: String, source: Source) -> Self {
        match kind {
            Kind::Llm => Recipe::Llm(LlmRecipe::bare(name, source)),
            Kind::Yolo => Recipe::Yolo(YoloRecipe::bare(name, source)),
            Kind::Classifier => Recipe::Classifier(ClassifierRecipe::bare(name, source)),
            Kind::Onnx => Recipe::Onnx(OnnxRecipe::bare(name, source)),
        }
    }

    /// Name of the engine directory.
    pub fn name(&self) -> &str {
        match self {
            Recipe::Llm(recipe) => &recipe.name,
            Recipe::Yolo(recipe) => &recipe.name,
            Recipe::Classifier(recipe) => &recipe.name,
            Recipe::Onnx(recipe) => &recipe.name,
        }
    }

    /// Kind of the model.
    pub fn kind(&self) -> Kind {
        match self {
            Recipe::Llm(_) => Kind::Llm,
            Recipe::Yolo(_) => Kind::Yolo,
            Recipe::Classifier(_) => Kind::Classifier,
            Recipe::Onnx(_) => Kind::Onnx,
        }
    }

    /// Where the model comes from.
    pub fn source(&self) -> &Source {
        match self {
            Recipe::Llm(recipe) => &recipe.source,
            Recipe::Yolo(recipe) => &recipe.source,
            Recipe::Classifier(recipe) => &recipe.source,
            Recipe::Onnx(recipe) => &recipe.source,
        }
    }

    /// Settings of the builder, if the recipe has any.
    pub fn build(&self) -> Option<&Build> {
        match self {
            Recipe::Llm(recipe) => recipe.build.as_ref(),
            Recipe::Yolo(recipe) => recipe.build.as_ref(),
            Recipe::Classifier(recipe) => recipe.build.as_ref(),
            Recipe::Onnx(recipe) => recipe.build.as_ref(),
        }
    }

    /// Settings of the verification, if the recipe has any.
    pub fn verify(&self) -> Option<&Verify> {
        match self {
            Recipe::Llm(recipe) => recipe.verify.as_ref(),
            Recipe::Yolo(recipe) => recipe.verify.as_ref(),
            Recipe::Classifier(recipe) => recipe.verify.as_ref(),
            Recipe::Onnx(recipe) => recipe.verify.as_ref(),
        }
    }
}

/// What recipes of all kinds have, to be changed.
pub(crate) struct SharedFields<'a> {
    pub(crate) name: &'a mut String,
    pub(crate) source: &'a mut Source,
    pub(crate) build: &'a mut Option<Build>,
    pub(crate) verify: &'a mut Option<Verify>,
}

impl Recipe {
    /// What recipes of all kinds have.
    pub(crate) fn shared_fields(&mut self) -> SharedFields<'_> {
        match self {
            Recipe::Llm(LlmRecipe { name, source, build, verify, .. }) => SharedFields { name, source, build, verify },
            Recipe::Yolo(YoloRecipe { name, source, build, verify, .. }) => {
                SharedFields { name, source, build, verify }
            }
            Recipe::Classifier(ClassifierRecipe { name, source, build, verify, .. }) => {
                SharedFields { name, source, build, verify }
            }
            Recipe::Onnx(OnnxRecipe { name, source, build, verify, .. }) => {
                SharedFields { name, source, build, verify }
            }
        }
    }
}

impl From<LlmRecipe> for Recipe {
    fn from(recipe: LlmRecipe) -> Self {
        Recipe::Llm(recipe)
    }
}

impl From<YoloRecipe> for Recipe {
    fn from(recipe: YoloRecipe) -> Self {
        Recipe::Yolo(recipe)
    }
}

impl From<ClassifierRecipe> for Recipe {
    fn from(recipe: ClassifierRecipe) -> Self {
        Recipe::Classifier(recipe)
    }
}

impl From<OnnxRecipe> for Recipe {
    fn from(recipe: OnnxRecipe) -> Self {
        Recipe::Onnx(recipe)
    }
}

/// The JSON Schema of a recipe file, for editors.
pub fn json_schema() -> String {
    let mut schema = schemars::schema_for!(Recipe);
    schema.insert("title".into(), "watus-build recipe, version 1".into());
    // `kind` decides which of the four shapes applies; schemars cannot see that through the untagged enum.
    if let Some(shapes) = schema.get_mut("$defs").and_then(|defs| defs.as_object_mut()) {
        for (shape, kind) in
            [("LlmRecipe", "llm"), ("YoloRecipe", "yolo"), ("ClassifierRecipe", "classifier"), ("OnnxRecipe", "onnx")]
        {
            if let Some(properties) = shapes.get_mut(shape).and_then(|shape| shape.get_mut("properties")) {
                properties["kind"] = serde_json::json!({ "const": kind });
                properties["version"] = serde_json::json!({ "const": VERSION });
            }
        }
    }
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema is plain JSON");
    text.push('\n');
    text
}
