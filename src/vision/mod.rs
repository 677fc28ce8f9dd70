//! Pictures to input tensors, outputs to answers, answers onto pictures.
//!
//! The types here are what a recipe says of a vision model and what its manifest keeps, so `run` and `verify` need no
//! recipe. `picture.rs` reads and resizes (`gif_frame.rs` and `tiff_samples.rs` read what the `image` crate reads otherwise than
//! PIL), `input.rs` makes tensors, `classify.rs` and `detect.rs` interpret outputs, `mask.rs` makes
//! outlines of objects, `draw.rs` draws.

mod classify;
mod detect;
mod draw;
mod gif_frame;
mod input;
mod mask;
mod picture;
mod sides;
mod tiff_samples;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

pub use classify::{Answer, Classifier};
pub(crate) use detect::overlap;
pub use detect::{Boxes, Detection, Letterbox, Yolo};
pub use draw::annotate;
pub use image::RgbImage;
pub use input::{PictureInput, pixel_axes};
pub use mask::Mask;
pub use picture::{FORMATS, is_foreign_picture, is_picture, read_picture, save_picture, to_tensor};
pub use sides::Sides;

use crate::diagnostic::Diagnostic;

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

/// Why a picture or an output is not usable.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum VisionError {
    #[error("cannot read picture {}: {message}", path.display())]
    Picture { path: PathBuf, message: Diagnostic },
    #[error("the model's input is {found}; {wanted}")]
    Input { found: String, wanted: Diagnostic },
    #[error("the output is {found}; {wanted}")]
    Output { found: String, wanted: Diagnostic },
    #[error("cannot write picture {}: {message}", path.display())]
    Write { path: PathBuf, message: String },
}
