//! Converts vision checkpoints to ONNX: YOLO from `.pt` files, image classifiers from Hugging Face folders.
//!
//! `net.rs` emits the layers of both. Weights become constants of the graph in float32; half precision is a later pass
//! over any ONNX model ([`crate::onnx::Half`]).

mod classifier;
mod net;
mod yolo;

pub use classifier::{answers, classifier_families, classifier_model, labels, preprocess, trained_size};
pub use yolo::{YOLO_HEADS, YoloModel, root as yolo_root, yolo_blocks, yolo_by_onnx, yolo_model};

use super::OPSET;
