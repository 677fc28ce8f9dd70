//! Builds TensorRT engines from checkpoints on the machine they run on, and verifies them against a CPU reference.
//!
//! ```text
//! recipe ──▶ plan ──▶ fetch ──▶ ONNX model ──▶ TensorRT builder ──▶ engine directory ──▶ verify ──▶ run, bench, serve
//! (YAML)              hub, url,  shapes fixed,  child process,       engine, model,       CPU
//!                     pypi,      checked        C++ shim             manifest, report     reference
//!                     path,        ▲
//!                     ollama       └─ convert ◀─ checkpoint
//! ```
//!
//! The pipeline in this crate's own terms: [`recipe::load`] reads and checks a recipe, [`recipe::Plan::new`] fills in
//! every default, [`pipeline::prepare`] fetches the sources and decides what to build, [`pipeline::build`] builds in a
//! child process ([`worker`]), verifies the engine ([`verify`]) and publishes the directory in one step ([`artifact`]).
//! [`backend::Backend`] and [`backend::Session`] run a model: [`backend::tensorrt`] on the GPU, [`backend::cpu`]
//! everywhere; [`engine_dir::EngineDir`] opens a published directory.
//!
//! Vision checkpoints are converted to ONNX first ([`convert::vision`]), and to half precision by [`onnx::Half`];
//! [`vision`] turns images into input tensors and outputs into classes and objects.
//!
//! For language models [`checkpoint`] maps the weights, [`convert`] makes the graphs of a decoder layer and of the
//! head, and at run time [`llm::Executor`] runs them with the weights bound as inputs and [`llm::Generator`] generates
//! answers; [`serve`] offers those over the OpenAI API.
//!
//! The library never prints; it emits [`progress::Event`]s. ARCHITECTURE.md says which module may import which.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod address;
pub mod artifact;
pub mod backend;
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod confined;
pub mod convert;
pub mod diagnostic;
pub mod doctor;
pub mod engine_dir;
pub mod fetch;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod llm;
pub mod log;
pub mod manifest;
pub mod memory;
pub mod onnx;
pub mod pipeline;
pub mod progress;
pub mod recipe;
pub mod regular_file;
pub mod serve;
pub mod spec;
pub mod tensor;
pub mod verify;
pub mod vision;
pub mod worker;
