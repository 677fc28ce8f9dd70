//! Why a model's text files are of no use, or a text cannot be made into tokens.

use std::path::PathBuf;

use crate::checkpoint::CheckpointError;
use crate::diagnostic::Diagnostic;

/// See the module.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TextError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{what} of {have} tokens is longer than the {limit} this engine was built for\n  hint: {help}")]
    TooLong { what: &'static str, have: usize, limit: usize, help: String },
    #[error("{}: {message}", path.display())]
    File { path: PathBuf, message: Diagnostic },
    #[error("{0}")]
    Request(String),
    /// Nobody's fault: the same request may be answered a moment later.
    #[error("{0}")]
    Busy(String),
}
