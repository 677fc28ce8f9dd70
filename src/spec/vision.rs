//! Pre- and postprocessing of vision models, as recipes and manifests record them.
//!
//! [`crate::vision`] implements it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::Sides;

/// How an image becomes the input tensor. The model's input decides the layout (`[batch, channels, height, width]` or
/// channels last), 3 channels or 1 for grey, and float32, float16 or uint8.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "fetch", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, expecting = "a map of fields")]
pub struct Preprocess {
    /// Input size [height, width] in pixels. Default: the model's, if its input has a fixed size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<[u32; 2]>,
    /// How an image is brought to `size`: `stretch`, `crop` or `letterbox`. Default: `stretch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<Fit>,
    /// Instead of `fit`: resize to this size, then crop `size` from the centre.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    /// Interpolation of the resize. Default: `bilinear`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resample: Option<Resample>,
    /// Channel order of the input tensor. Default: `rgb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<Color>,
    /// Subtracted from the pixel values (0 to 255), per channel in the order of `color`; for grey give the same number
    /// three times.
    pub mean: [f32; 3],
    /// Divisor after `mean` is subtracted, per channel in the order of `color`.
    pub std: [f32; 3],
}

/// Size to resize to: one number for the shorter edge, or [height, width].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "fetch", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Resize {
    /// Length of the shorter edge in pixels; the aspect ratio is kept.
    ShortestEdge(u32),
    /// Height and width in pixels; the aspect ratio is not kept.
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

/// Interpolation. All but `linear` widen their filter when they shrink an image (antialiasing), as PIL does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "fetch", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Resample {
    Nearest,
    Bilinear,
    Bicubic,
    Lanczos,
    /// Interpolates between four neighbours at any scale, without antialiasing, as OpenCV's `INTER_LINEAR`.
    Linear,
}

/// How an image is brought to the input size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "fetch", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// Resize both sides, without keeping the aspect ratio.
    Stretch,
    /// Resize the shorter side to fit, and crop the centre.
    Crop,
    /// Resize the longer side to fit, and pad with grey (114).
    Letterbox,
}

/// Task of a YOLO model, by Ultralytics' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Task {
    Detect,
    Segment,
    Classify,
}

/// Channel order of the input tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "fetch", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Color {
    Rgb,
    Bgr,
}

/// What a classifier's output `[batch, classes]` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "fetch", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ClassifierOutput {
    /// Unnormalised scores; softmax is applied to them.
    Logits,
    /// Probabilities; softmax is part of the model.
    Probabilities,
    /// Probabilities; the result is the mean of `class_values` weighted by them, e.g. an age.
    Expectation,
    /// Unnormalised scores of labels that do not exclude each other; a sigmoid is applied to each.
    Multilabel,
    /// Probabilities of labels that do not exclude each other; the sigmoid is part of the model.
    #[serde(rename = "multilabel_probabilities")]
    MultilabelProbabilities,
    /// Values of a regression, reported as they are.
    Values,
}

impl ClassifierOutput {
    /// The value of `output:` in a recipe.
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

/// Pre- and postprocessing of a classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct ClassifierSpec {
    /// How an image becomes the input tensor.
    pub preprocess: Preprocess,
    /// Class names in output order, if known.
    pub labels: Option<Vec<String>>,
    /// What the output holds.
    pub output: ClassifierOutput,
    /// With an expectation: the value of each class.
    pub class_values: Option<Vec<f32>>,
}

/// Layout of a detector's output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boxes {
    /// `[batch, 4 + classes + masks, anchors]`: centre, width and height in pixels of the input, then one score per
    /// class. Needs non-maximum suppression.
    #[default]
    Anchors,
    /// `[batch, boxes, 6 + masks]`: left, top, right, bottom in pixels of the input, score, class. Non-maximum
    /// suppression is part of the model or not needed (YOLOv10 and YOLO26, or an export with `nms=True`).
    Final,
    /// `[batch, boxes, 6]`: centre, width and height as fractions of the image, score, class; or
    /// `[batch, boxes, 4 + classes]` with one score per class. Not suppressed; the image is stretched to the input
    /// (RT-DETR).
    Queries,
}

impl Boxes {
    /// The output's shape, for messages.
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

/// Pre- and postprocessing of a YOLO model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct Yolo {
    /// Task of the model.
    pub task: Task,
    /// Class names in output order.
    pub names: Vec<String>,
    /// Largest stride of the feature maps in pixels.
    pub stride: usize,
    /// Height and width of the input in pixels.
    pub size: [u32; 2],
    /// Layout of the output.
    #[serde(default, skip_serializing_if = "Boxes::are_anchors")]
    pub boxes: Boxes,
    /// Confidence threshold: detections with a lower score are dropped.
    pub confidence: f32,
    /// Intersection-over-union threshold of non-maximum suppression within a class.
    pub iou: f32,
    /// Largest number of detections per image.
    pub max_detections: usize,
    /// Whether Ultralytics' metadata precedes the plan in the engine file.
    pub metadata: bool,
    /// Further metadata of the checkpoint: license, docs, head.
    pub about: BTreeMap<String, String>,
}

impl Yolo {
    /// Preprocessing as Ultralytics does it: letterboxed (stretched for RT-DETR), RGB, 0 to 1.
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
