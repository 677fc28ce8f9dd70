//! How pictures become tensors and outputs become answers: what a recipe says of a vision model and its manifest keeps.
//!
//! [`crate::vision`] does it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::Sides;

/// How an image becomes an input tensor: `[batch, channels, height, width]` or with channels last, 3 channels or 1 for
/// grey, float32, float16 or uint8, as the model has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// Height and width in pixels. Default: the input's own, where the model fixes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<[u32; 2]>,
    /// How the picture meets that size. Default: `stretch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<Fit>,
    /// Resize to this first, then cut `size` out of the middle; instead of `fit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    /// How pixels in between are found. Default: `bilinear`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resample: Option<Resample>,
    /// Channel order. Default: `rgb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<Color>,
    /// Subtracted from the byte (0 to 255), per channel in the order of `color`; for grey three times the same.
    pub mean: [f32; 3],
    /// Divides what is left, per channel.
    pub std: [f32; 3],
}

/// A size to resize to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Resize {
    /// Of the shorter edge in pixels; the other follows.
    ShortestEdge(u32),
    /// Height and width in pixels, whatever the aspect ratio.
    Both([u32; 2]),
}

impl<'de> Deserialize<'de> for Resize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Sides::deserialize(deserializer)? {
            Sides::One(edge) => Resize::ShortestEdge(edge),
            Sides::Both(sides) => Resize::Both(sides),
        })
    }
}

/// Interpolation. All but `linear` widen their filter when they shrink (antialiasing), as PIL does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Resample {
    Nearest,
    Bilinear,
    Bicubic,
    Lanczos,
    /// Between the four neighbours, whatever the scale, as OpenCV's `INTER_LINEAR`.
    Linear,
}

/// How a picture is brought to the model's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// Scale both sides, ignoring the aspect ratio.
    Stretch,
    /// Scale the shorter side, cut the middle out.
    Crop,
    /// Scale the longer side, fill with grey (114).
    Letterbox,
}

/// What a YOLO model predicts; Ultralytics' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Task {
    Detect,
    Segment,
    Classify,
}

/// Channel order of the input tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Color {
    Rgb,
    Bgr,
}

/// What a classifier's output holds, `[batch, classes]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClassifierOutput {
    /// Unnormalised scores; softmax is applied.
    Logits,
    /// Probabilities already.
    Probabilities,
    /// Probabilities whose weighted mean of `class_values` is the answer, e.g. an age.
    Expectation,
    /// Unnormalised scores of labels that do not exclude each other; each gets a sigmoid.
    Multilabel,
    /// Probabilities already, of labels that do not exclude each other.
    #[serde(rename = "multilabel_probabilities")]
    MultilabelProbabilities,
    /// Values as they are, of a regression.
    Values,
}

impl ClassifierOutput {
    /// The word for it in a recipe.
    pub fn word(self) -> &'static str {
        match self {
            ClassifierOutput::Logits => "logits",
            ClassifierOutput::Probabilities => "probabilities",
            ClassifierOutput::Expectation => "expectation",
            ClassifierOutput::Multilabel => "multilabel",
            ClassifierOutput::MultilabelProbabilities => "multilabel_probabilities",
            ClassifierOutput::Values => "values",
        }
    }
}

/// A classifier's way in and out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassifierSpec {
    /// Image to tensor.
    pub preprocess: Preprocess,
    /// Class names, if there are any.
    pub labels: Option<Vec<String>>,
    /// What the output holds.
    pub output: ClassifierOutput,
    /// Class values for an expectation.
    pub class_values: Option<Vec<f32>>,
}

/// How a detector's output says where objects are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boxes {
    /// `[batch, 4 + classes + masks, anchors]`: centre, width and height in pixels of the input, a score for each class.
    /// Non-maximum suppression follows.
    #[default]
    Anchors,
    /// `[batch, boxes, 6 + masks]`: left, top, right, bottom in pixels of the input, score, class. The model has chosen
    /// (YOLOv10 and YOLO26, or an export with `nms=True`).
    Final,
    /// `[batch, boxes, 6]`: centre, width and height as shares of the picture, score, class; or a score for each class after
    /// the fourth. The model has chosen, of a picture that is stretched to the input (RT-DETR).
    Queries,
}

impl Boxes {
    /// The output's shape in words.
    pub fn shape(self) -> &'static str {
        match self {
            Boxes::Anchors => "[batch, 4 + classes, anchors]",
            Boxes::Final => "[batch, boxes, 6]",
            Boxes::Queries => "[batch, boxes, 6] or [batch, boxes, 4 + classes]",
        }
    }

    fn are_anchors(&self) -> bool {
        *self == Boxes::Anchors
    }
}

/// A YOLO model's way in and out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Yolo {
    /// What it predicts.
    pub task: Task,
    /// Class names in order.
    pub names: Vec<String>,
    /// Largest stride in pixels.
    pub stride: usize,
    /// Height and width of the input.
    pub size: [u32; 2],
    /// How its output says where objects are.
    #[serde(default, skip_serializing_if = "Boxes::are_anchors")]
    pub boxes: Boxes,
    /// Scores below are not reported.
    pub confidence: f32,
    /// Of two boxes of one class that overlap more (intersection over union), the better is kept.
    pub iou: f32,
    /// Boxes reported at most.
    pub max_detections: usize,
    /// The engine file begins with Ultralytics' metadata.
    pub metadata: bool,
    /// What the checkpoint says of itself: license, docs, head.
    pub about: BTreeMap<String, String>,
}

impl Yolo {
    /// How its pictures become tensors: letterboxed (RT-DETR's are stretched), RGB, 0 to 1.
    pub fn preprocess(&self) -> Preprocess {
        Preprocess {
            size: Some(self.size),
            fit: Some(if self.boxes == Boxes::Queries { Fit::Stretch } else { Fit::Letterbox }),
            resize: None,
            resample: Some(Resample::Linear),
            color: None,
            mean: [0.0; 3],
            std: [255.0; 3],
        }
    }
}
