//! The exit codes, which scripts and systemd units may rely on.

use crate::backend::BackendError;
use crate::fetch::FetchError;
use crate::llm::LlmError;
use crate::pipeline::NotProved;
use crate::recipe::RecipeError;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is well.
    Success = 0,
    /// Something else went wrong.
    Failure = 1,
    /// The arguments are off (clap's own code).
    Usage = 2,
    /// A recipe is not valid.
    Recipe = 3,
    /// A source could not be had.
    Fetch = 4,
    /// TensorRT could not build.
    Build = 5,
    /// An engine is damaged, foreign or wrong.
    NotProved = 6,
    /// `--require-execution`, and nothing could execute the engine.
    NotExecuted = 7,
    /// This machine lacks something: TensorRT, a GPU, a driver.
    Environment = 8,
    /// Stopped by the user.
    Cancelled = 130,
}

impl Exit {
    /// The code for an error, by what is at its bottom.
    pub fn of(error: &anyhow::Error) -> Self {
        for cause in error.chain() {
            if cause.is::<RecipeError>() {
                return Exit::Recipe;
            }
            if cause.is::<NotProved>() {
                return Exit::NotProved;
            }
            match cause.downcast_ref::<FetchError>() {
                Some(FetchError::Cancelled(_)) => return Exit::Cancelled,
                Some(_) => return Exit::Fetch,
                None => {}
            }
            match backend_error(cause) {
                Some(BackendError::Unavailable { .. } | BackendError::NoDevice(_)) => return Exit::Environment,
                Some(BackendError::Cancelled) => return Exit::Cancelled,
                Some(BackendError::Build(_)) => return Exit::Build,
                Some(_) => return Exit::Failure,
                None => {}
            }
        }
        Exit::Failure
    }
}

/// A cause that is the backend's, alone or as a language model passes it on.
pub(super) fn backend_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a BackendError> {
    match cause.downcast_ref::<LlmError>() {
        Some(LlmError::Backend(error)) => Some(error),
        _ => cause.downcast_ref(),
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        std::process::ExitCode::from(exit as u8)
    }
}
