//! Converts images to input tensors and outputs to results, and draws results onto images.
//!
//! [`crate::spec`] defines the settings that recipes and manifests contain, so that `run` and `verify` need no recipe.
//! `picture.rs` reads images (`gif_frame.rs` and `tiff_samples.rs` read what the `image` crate reads differently from
//! PIL), `resize.rs` resizes, `input.rs` makes tensors, `classify.rs` and `detect.rs` interpret outputs,
//! `bounding_box.rs` and `mask.rs` describe where objects are, `draw.rs` draws.

mod bounding_box;
mod classify;
mod detect;
mod draw;
mod gif_frame;
mod input;
mod letterbox;
mod limits;
mod mask;
mod picture;
mod resize;
mod tiff_samples;

use std::path::PathBuf;

pub use crate::spec::{Boxes, ClassifierOutput, ClassifierSpec, Color, Fit, Preprocess, Resample, Resize, Task, Yolo};
pub use bounding_box::BoundingBox;
pub use classify::{Answer, TOP};
pub use detect::Detection;
pub use draw::annotate;
pub use image::RgbImage;
pub use input::{PictureInput, pixel_axes, to_tensor};
pub use letterbox::Letterbox;
pub use mask::Mask;
pub use picture::{FORMATS, is_foreign_picture, is_picture, read_picture, save_picture};

use crate::diagnostic::{Diagnose, Diagnostic};

/// Why an image or an output cannot be used.
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

impl Diagnose for VisionError {
    fn diagnostic(&self) -> Diagnostic {
        let before = |told: &Diagnostic, what: String| told.clone().map_message(|told| format!("{what}{told}"));
        match self {
            Self::Picture { path, message } => before(message, format!("cannot read picture {}: ", path.display())),
            Self::Input { found, wanted } => before(wanted, format!("the model's input is {found}; ")),
            Self::Output { found, wanted } => before(wanted, format!("the output is {found}; ")),
            Self::Write { .. } => Diagnostic::new(self.to_string()),
        }
    }
}
