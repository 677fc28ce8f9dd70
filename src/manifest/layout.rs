//! Names within an engine directory.
//!
//! ```text
//! NAME/
//!   manifest.json, verify.json
//!   NAME.engine, model.onnx, weights-0.data, …     one engine of one ONNX model
//!   engines/layer-….engine, engines/head-….engine  a language model's engines, with their graphs as .onnx,
//!   weights/                                       the checkpoint's files, and its texts (tokenizer.json, …)
//!   images/, inputs/                               what it is proved on
//! ```

/// The manifest.
pub const FILE: &str = "manifest.json";
/// The verification report; see [`crate::verify`].
pub const REPORT_FILE: &str = "verify.json";
/// The float32 model that an engine was built from, and is judged by.
pub const MODEL: &str = "model.onnx";
/// Folder of a language model's engines.
pub const ENGINES: &str = "engines";
/// Folder of the checkpoint's files.
pub const WEIGHTS: &str = "weights";
/// Folder of the pictures that it is proved on.
pub const IMAGES: &str = "images";
/// Folder of the user's own inputs that it is proved on.
pub const INPUTS: &str = "inputs";

/// The engine file of a directory called `name`.
pub fn engine_file(name: &str) -> String {
    format!("{name}.engine")
}
