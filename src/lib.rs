//! Turns checkpoints into proven TensorRT engines on the machine they run on.
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
//! every default, [`pipeline::prepare`] fetches and decides what a build would do, [`pipeline::build`] builds in a
//! child process ([`worker`]), proves the engine ([`verify`]) and publishes the directory in one step ([`artifact`]).
//! [`backend::Backend`] and [`backend::Session`] are what runs a model: [`backend::tensorrt`] on the GPU,
//! [`backend::cpu`] everywhere; [`engine_dir::EngineDir`] opens what a build has published.
//!
//! Vision checkpoints become ONNX models first ([`convert::vision`]) and, in half precision, half-precision copies of them
//! ([`onnx::Half`]); [`vision`] is the way from pictures and back to answers.
//!
//! Of language models [`checkpoint`] maps the weights, [`convert`] makes graphs of a decoder layer and the head, and at run
//! time an [`executor::Executor`] runs them with the weights bound: [`executor::CpuExecutor`] anywhere,
//! [`cuda_executor::GpuExecutor`] with TensorRT's engines. [`text`] is the way from words to tokens and back,
//! [`generation::Generator`] makes answers with both, and [`serve`] gives them to OpenAI's clients. [`quantize`] makes small
//! integers of weights where a recipe asks for them.
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
pub mod cuda_executor;
pub mod diagnostic;
pub mod doctor;
pub mod engine_dir;
pub mod executor;
pub mod fetch;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod generation;
pub mod log;
pub mod manifest;
pub mod memory;
pub mod onnx;
pub mod pipeline;
pub mod progress;
pub mod quantize;
pub mod recipe;
pub mod regular_file;
pub mod serve;
pub mod spec;
pub mod tensor;
pub mod text;
pub mod verify;
pub mod vision;
pub mod worker;
