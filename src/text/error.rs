//! Why a model's text files are of no use, or a text cannot be made into tokens.

use std::path::PathBuf;

use crate::checkpoint::CheckpointError;
use crate::diagnostic::{Diagnose, Diagnostic};

/// Why a model's text files are of no use, or a text cannot be made into tokens.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", self.diagnostic())]
#[allow(missing_docs)]
pub enum TextError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    TooLong {
        what: &'static str,
        have: usize,
        limit: usize,
        help: String,
    },
    File {
        path: PathBuf,
        message: Diagnostic,
    },
    /// The fault of what was asked: put otherwise it may be answered.
    Request(String),
    /// A fault of this program or of the model's files, which no other request is to blame for either.
    Internal(Diagnostic),
    /// A passing shortage: the same request may succeed a moment later.
    Busy(String),
}

impl Diagnose for TextError {
    fn diagnostic(&self) -> Diagnostic {
        match self {
            Self::Checkpoint(error) => error.diagnostic(),
            Self::TooLong { what, have, limit, help } => {
                Diagnostic::new(format!("{what} of {have} tokens is longer than the {limit} this engine was built for"))
                    .with_help(help)
            }
            Self::File { path, message } => message.clone().at(path.display()),
            Self::Request(message) | Self::Busy(message) => Diagnostic::new(message),
            Self::Internal(message) => message.clone(),
        }
    }
}
