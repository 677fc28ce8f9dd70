//! The front door: engine directories opened and asked in a line each, and recipes built from code.
//!
//! ```text
//! Builder ──▶ recipe ──▶ pipeline ──▶ engine directory ──▶ Detector, Classifier, ChatModel
//! (code)      validate                                     detect,   classify,   ask, chat
//! ```
//!
//! [`Detector`] (`detector.rs`) and [`Classifier`] take a [`Frame`], which is whatever a robot has of an image; [`ChatModel`]
//! answers conversations as [`ChatOptions`] say; [`Builder`] (`builder.rs`, `builder_kinds.rs`, `source.rs`) makes engine
//! directories. `opening.rs` opens one as `watus-build run` does. All fail by [`Error`].

#[cfg(feature = "fetch")]
mod builder;
#[cfg(feature = "fetch")]
mod builder_kinds;
mod chat;
mod chat_options;
mod classifier;
mod detector;
mod error;
mod frame;
mod opening;
#[cfg(feature = "fetch")]
mod source;

#[cfg(feature = "fetch")]
pub use builder::{Builder, BuiltEngine};
pub use chat::{AnswerPiece, ChatAnswer, ChatModel, ChatModelBuilder, ChatStream};
pub use chat_options::ChatOptions;
pub use classifier::{Classification, Classifier, ClassifierBuilder, LabelScore};
pub use detector::{Detector, DetectorBuilder, draw};
#[cfg(feature = "cli")]
pub(crate) use error::diagnostic_of;
pub use error::{Error, ErrorKind};
pub use frame::{Frame, PixelFormat};
