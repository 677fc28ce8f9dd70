//! Builds TensorRT engines from checkpoints on the machine they run on, verifies them against a CPU reference, and runs
//! them.
//!
//! An engine directory that `watus-build build` has made is opened and asked like this:
//!
//! ```no_run
//! use watus_build::{Detector, draw};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let mut detector = Detector::open("engines/yolo11n-seg")?;
//!     let objects = detector.detect("street.jpg")?;
//!     for object in &objects {
//!         println!("{} {:.2} {:?}", object.label, object.score, object.bbox);
//!     }
//!     draw("street.jpg", &objects)?.save("street-objects.jpg")?;
//!     Ok(())
//! }
//! ```
//!
//! - [`Detector`] finds objects, [`Classifier`] says what an image shows. Both take a [`Frame`]: an image of the `image` crate,
//!   a camera's pixels in memory, or a file. Boxes are in pixels of the image that was given.
//! - [`ChatModel`] answers conversations, piece by piece as the answer comes, or with JSON of a schema.
//! - [`Builder`] makes engine directories from code, by the same stages as the command line.
//! - Everything here fails by one [`Error`], which says what is wrong and what to do ([`Error::help`]).
//!
//! The GPU computes where there is one; elsewhere (on a Jetson that is an error), and where [`BackendChoice::Cpu`] is asked for, a
//! reference on the CPU does, which is slow and right. Files of the directory are checked when it is opened. What `detect`,
//! `classify` and `chat` take is `&mut self`: a model answers one caller at a time, and threads have one each or send their frames
//! to the one that has it.
//!
//! # How engine directories come to be
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
//! For language models [`checkpoint`] maps the weights, [`convert`] makes the graphs of a decoder layer and of the head, and at
//! run time an [`executor::Executor`] runs them with the weights bound as inputs: [`executor::CpuExecutor`] anywhere,
//! [`cuda_executor::GpuExecutor`] with TensorRT's engines. [`text`] converts between text and tokens,
//! [`generation::Generator`] generates answers with both, and [`serve`] offers those over the OpenAI API. [`quantize`] rounds
//! weights to small integers where a recipe asks for it.
//!
//! # Features
//!
//! All are on by default. With `default-features = false` there is the runtime alone, which opens engine directories, detects,
//! classifies and answers, and needs a third of the crates less.
//!
//! | feature | modules | what for |
//! |---|---|---|
//! | `fetch` | `recipe`, `fetch`, `quantize`, `pipeline`, `worker`; [`Builder`] | from recipes to engine directories |
//! | `serve` | `serve`, `sensors`, `system_root` | the server |
//! | `charts` | `bench`, `sensors`, `system_root` | measurements, and drawings of them |
//! | `cli` | `cli`, `doctor`; `verify::Endpoint`, `log::subscribe` | the program; brings the other three |
//!
//! # Processes
//!
//! A program whose `main` begins with [`enable_child_processes`] lets the library start it again as a child, for what may
//! crash, never end or take all memory. Without it no child is ever started: chat templates, which come with models, and grammars of
//! schemas then run in this process, without limits of memory.
//!
//! The library never prints; it emits [`progress::Event`]s. ARCHITECTURE.md says which module may import which.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod address;
mod api;
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
#[cfg(feature = "cli")]
mod inventory;
pub mod l4t;
pub mod log;
pub mod manifest;
pub mod memory;
pub mod onnx;
#[cfg(feature = "fetch")]
#[cfg_attr(docsrs, doc(cfg(feature = "fetch")))]
pub mod pipeline;
pub mod prefix_store;
pub mod progress;
#[cfg(feature = "fetch")]
#[cfg_attr(docsrs, doc(cfg(feature = "fetch")))]
pub mod quantize;
#[cfg(feature = "fetch")]
#[cfg_attr(docsrs, doc(cfg(feature = "fetch")))]
pub mod recipe;
pub mod regular_file;
#[cfg(any(feature = "charts", feature = "serve"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "charts", feature = "serve"))))]
pub mod sensors;
#[cfg(feature = "serve")]
#[cfg_attr(docsrs, doc(cfg(feature = "serve")))]
pub mod serve;
pub mod spec;
#[cfg(any(feature = "charts", feature = "serve"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "charts", feature = "serve"))))]
pub mod system_root;
pub mod tensor;
pub mod text;
pub mod verify;
pub mod vision;
#[cfg(feature = "fetch")]
#[cfg_attr(docsrs, doc(cfg(feature = "fetch")))]
pub mod worker;

pub use api::{
    AnswerPiece, ChatAnswer, ChatModel, ChatModelBuilder, ChatOptions, ChatStream, Classification, Classifier,
    ClassifierBuilder, Detector, DetectorBuilder, Error, ErrorKind, Frame, LabelScore, PixelFormat, draw,
};
#[cfg(feature = "fetch")]
#[cfg_attr(docsrs, doc(cfg(feature = "fetch")))]
pub use api::{Builder, BuiltEngine};
pub use backend::BackendInfo;
pub use child_process::enable_child_processes;
pub use engine_dir::BackendChoice;
pub use generation::{Choice, Finish, Usage};
pub use spec::Precision;
pub use text::Message;
pub use vision::{BoundingBox, Detection, Mask, RgbImage};
