//! Names within an engine directory.
//!
//! ```text
//! NAME/
//!   manifest.json, verify.json
//!   NAME.engine, model.onnx, weights-0.data, …     one engine of one ONNX model
//!   engines/layer-….engine, engines/head-….engine  a language model's engines, with their graphs as .onnx,
//!   weights/                                       the checkpoint's files, and its texts (tokenizer.json, …)
//!   speculation.txt                                a text that a language model's answers often quote
//!   images/, inputs/                               what it is verified on
//! ```

/// Name of the manifest.
pub const FILE: &str = "manifest.json";
/// Name of the verification report; see [`crate::verify`].
pub const REPORT_FILE: &str = "verify.json";
/// Name of the float32 model that an engine was built from and is compared with.
pub const MODEL: &str = "model.onnx";
/// Folder of a language model's engines.
pub const ENGINES: &str = "engines";
/// Folder of the checkpoint's files.
pub const WEIGHTS: &str = "weights";
/// Name of the text that answers are drafted from, and its largest size in bytes.
pub const SPECULATION: &str = "speculation.txt";
/// See [`SPECULATION`].
pub const SPECULATION_LIMIT: u64 = 1 << 20;
/// Folder of the images that the engine is verified with.
pub const IMAGES: &str = "images";
/// Folder of the tensors that the engine is verified with.
pub const INPUTS: &str = "inputs";

/// Name of the engine file in a directory called `name`.
pub fn engine_file(name: &str) -> String {
    format!("{name}.engine")
}
