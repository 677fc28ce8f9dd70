//! Vision checkpoints to ONNX: YOLO from `.pt` files, image classifiers from Hugging Face folders.
//!
//! `net.rs` emits what both are made of. Weights become constants of the graph, in float32; half precision is a later
//! pass over any ONNX model ([`crate::onnx::Half`]).

mod classifier;
mod net;
mod yolo;

pub use classifier::{answers, classifier_model, labels, preprocess, trained_size};
pub use yolo::{YoloModel, root as yolo_root, yolo_model};

use super::OPSET;
