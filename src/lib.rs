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
//! # Features
//!
//! All are on by default. With `default-features = false` there is the runtime alone, which opens engine directories, detects,
//! classifies and answers, and needs a third of the crates less.
//!
//! | feature | modules | what for |
//! |---|---|---|
//! | `fetch` | `recipe`, `fetch`, `quantize`, `pipeline`, `worker` | from recipes to engine directories |
//! | `serve` | `serve` | the server |
//! | `charts` | `bench` | measurements, and drawings of them |
//! | `cli` | `cli`, `doctor`; `verify::Endpoint`, `log::subscribe` | the program; brings the other three |
//!
//! # Processes
//!
//! A program whose `main` begins with [`enable_child_processes`] lets the library start it again as a child, for what may
//! crash, never end or take all memory. Without it no child is ever started.
//!
//! The library never prints; it emits [`progress::Event`]s. ARCHITECTURE.md says which module may import which.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod address;
pub mod artifact;
pub mod backend;
#[cfg(feature = "charts")]
#[cfg_attr(docsrs, doc(cfg(feature = "charts")))]
pub mod bench;
pub mod checkpoint;
pub mod child_process;
#[cfg(feature = "cli")]
#[cfg_attr(docsrs, doc(cfg(feature = "cli")))]
pub mod cli;
pub mod confined;
pub mod convert;
pub mod cuda_executor;
pub mod diagnostic;
#[cfg(feature = "cli")]
#[cfg_attr(docsrs, doc(cfg(feature = "cli")))]
pub mod doctor;
pub mod engine_dir;
pub mod executor;
#[cfg(feature = "fetch")]
#[cfg_attr(docsrs, doc(cfg(feature = "fetch")))]
pub mod fetch;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod generation;
pub mod hashes;
pub mod l4t;
pub mod log;
pub mod manifest;
pub mod memory;
pub mod onnx;
#[cfg(feature = "fetch")]
#[cfg_attr(docsrs, doc(cfg(feature = "fetch")))]
pub mod pipeline;
pub mod progress;
#[cfg(feature = "fetch")]
#[cfg_attr(docsrs, doc(cfg(feature = "fetch")))]
pub mod quantize;
#[cfg(feature = "fetch")]
#[cfg_attr(docsrs, doc(cfg(feature = "fetch")))]
pub mod recipe;
pub mod regular_file;
#[cfg(feature = "serve")]
#[cfg_attr(docsrs, doc(cfg(feature = "serve")))]
pub mod serve;
pub mod spec;
pub mod tensor;
pub mod text;
pub mod verify;
pub mod vision;
#[cfg(feature = "fetch")]
#[cfg_attr(docsrs, doc(cfg(feature = "fetch")))]
pub mod worker;

pub use child_process::enable_child_processes;
