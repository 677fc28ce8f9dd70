//! The one error of the front door: what kind it is, what is wrong, and what to do about it.

use std::fmt;
use std::io;

use crate::backend::BackendError;
use crate::checkpoint::CheckpointError;
use crate::confined::ConfinedError;
use crate::diagnostic::{self, Ask, Diagnose, Diagnostic, ask};
use crate::engine_dir::Damage;
use crate::executor::LlmError;
#[cfg(feature = "fetch")]
use crate::fetch::FetchError;
use crate::manifest::ManifestError;
use crate::onnx::OnnxError;
#[cfg(feature = "fetch")]
use crate::pipeline::NotProved;
#[cfg(feature = "fetch")]
use crate::recipe::RecipeError;
#[cfg(feature = "serve")]
use crate::serve::ServeError;
use crate::text::TextError;
use crate::vision::VisionError;

/// Errors that have a next step, for whoever holds a chain of them.
const CAUSES: &[Ask] = &[
    ask::<Error>,
    ask::<BackendError>,
    ask::<CheckpointError>,
    ask::<ConfinedError>,
    ask::<Damage>,
    #[cfg(feature = "fetch")]
    ask::<FetchError>,
    ask::<LlmError>,
    ask::<ManifestError>,
    #[cfg(feature = "fetch")]
    ask::<NotProved>,
    ask::<OnnxError>,
    #[cfg(feature = "fetch")]
    ask::<RecipeError>,
    #[cfg(feature = "serve")]
    ask::<ServeError>,
    ask::<TextError>,
    ask::<VisionError>,
    ask::<io::Error>,
];

/// Why something of the front door did not work.
///
/// As a text ([`fmt::Display`]) it is one message that names what it is about; a line `hint: …` follows where there is a next
/// step, and last come the words of another program that the message sums up, where there are any. [`Error::message`] and
/// [`Error::help`] are the two apart, [`Error::kind`] is for programs that branch.
pub struct Error {
    kind: ErrorKind,
    diagnostic: Diagnostic,
}

/// What went wrong, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The folder is no engine directory, or one of another kind of model.
    NotAnEngine,
    /// A file of the engine directory is missing, or is not what it was when it was published.
    Damaged,
    /// The engine was built for another TensorRT or GPU: it has to be built again on this machine.
    Foreign,
    /// This machine lacks something: TensorRT, a driver, child processes that were not enabled.
    Unavailable,
    /// There is TensorRT, and no GPU that it can use.
    NoDevice,
    /// A language model's kernels can neither be compiled nor are there precompiled.
    Kernels,
    /// A frame or an image cannot be used, or what an engine said of one.
    Image,
    /// What is asked cannot be answered: a parameter or a threshold out of its range, too long a prompt, a schema that cannot be
    /// enforced.
    Request,
    /// A recipe is not valid.
    Recipe,
    /// A source of a recipe could not be had.
    Fetch,
    /// TensorRT could not build.
    Build,
    /// An engine was built and did not pass its verification.
    NotProved,
    /// It was told to stop.
    Cancelled,
    /// Anything else.
    Other,
}

impl Error {
    pub(super) fn new(kind: ErrorKind, diagnostic: Diagnostic) -> Self {
        Self { kind, diagnostic }
    }

    /// Of an error within, whose causes tell the kind.
    pub(super) fn of(error: impl Into<anyhow::Error>) -> Self {
        let error = error.into();
        Self { kind: ErrorKind::of(&error), diagnostic: diagnostic_of(&error) }
    }

    /// What kind it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What is wrong, naming the file, the field or the tensor.
    pub fn message(&self) -> &str {
        &self.diagnostic.message
    }

    /// The next step, where one is known.
    pub fn help(&self) -> Option<&str> {
        self.diagnostic.help.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.diagnostic, f)
    }
}

/// As [`fmt::Display`]: it is what people see of a `main` that returns an error.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.diagnostic, f)
    }
}

impl std::error::Error for Error {}

impl Diagnose for Error {
    fn diagnostic(&self) -> Diagnostic {
        self.diagnostic.clone()
    }
}

impl ErrorKind {
    /// By the first of an error's causes that tells.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        for cause in error.chain() {
            if let Some(error) = cause.downcast_ref::<Error>() {
                return error.kind;
            }
            #[cfg(feature = "fetch")]
            if let Some(kind) = of_build(cause) {
                return kind;
            }
            if let Some(kind) = of_engine(cause) {
                return kind;
            }
        }
        ErrorKind::Other
    }
}

#[cfg(feature = "fetch")]
fn of_build(cause: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
    if cause.is::<RecipeError>() {
        return Some(ErrorKind::Recipe);
    }
    if cause.is::<NotProved>() {
        return Some(ErrorKind::NotProved);
    }
    match cause.downcast_ref::<FetchError>()? {
        FetchError::Cancelled(_) => Some(ErrorKind::Cancelled),
        _ => Some(ErrorKind::Fetch),
    }
}

fn of_engine(cause: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
    if cause.is::<ManifestError>() {
        return Some(ErrorKind::NotAnEngine);
    }
    if cause.is::<Damage>() {
        return Some(ErrorKind::Damaged);
    }
    if cause.is::<VisionError>() {
        return Some(ErrorKind::Image);
    }
    // A language model passes on errors of its backend and of its texts.
    let model = cause.downcast_ref::<LlmError>();
    let text = match model {
        Some(LlmError::Text(error)) => Some(error),
        _ => cause.downcast_ref::<TextError>(),
    };
    if let Some(TextError::Request(_) | TextError::TooLong { .. }) = text {
        return Some(ErrorKind::Request);
    }
    let backend = match model {
        Some(LlmError::Backend(error)) => error,
        _ => cause.downcast_ref::<BackendError>()?,
    };
    Some(match backend {
        BackendError::Unavailable { .. } => ErrorKind::Unavailable,
        BackendError::NoDevice(_) => ErrorKind::NoDevice,
        BackendError::Kernels { .. } => ErrorKind::Kernels,
        BackendError::Cancelled => ErrorKind::Cancelled,
        BackendError::Build(_) => ErrorKind::Build,
        BackendError::Foreign(_) => ErrorKind::Foreign,
        _ => ErrorKind::Other,
    })
}

/// The message of an error and its causes, and the hint; a cause whose text is already contained is left out.
pub(crate) fn diagnostic_of(error: &anyhow::Error) -> Diagnostic {
    diagnostic::of_chain(error, CAUSES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_whole_and_comes_apart() {
        let inner = BackendError::Unavailable { what: "no TensorRT".to_owned(), help: "install it".to_owned() };
        let error = Error::of(anyhow::Error::from(inner).context("while opening m"));
        assert_eq!(error.to_string(), "while opening m: no TensorRT\n  hint: install it");
        assert_eq!(format!("{error:?}"), error.to_string());
        assert_eq!((error.message(), error.help()), ("while opening m: no TensorRT", Some("install it")));
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        // Passed on, it is what it was, with its next step.
        let passed = Error::of(anyhow::Error::from(error).context("again"));
        assert_eq!((passed.kind(), passed.help()), (ErrorKind::Unavailable, Some("install it")));
        // What a text quotes is no next step.
        let quoted = Error::of(anyhow::anyhow!("no `a\n  hint: rm`"));
        assert_eq!((quoted.message(), quoted.help()), ("no `a\n  hint: rm`", None));
        assert_eq!(Error::of(LlmError::request("max_tokens is 0")).kind(), ErrorKind::Request);
        assert_eq!(Error::of(TextError::Request("no such turn".to_owned())).kind(), ErrorKind::Request);
        assert_eq!(Error::of(TextError::Internal("x".into())).kind(), ErrorKind::Other);
        assert_eq!(Error::of(ConfinedError::NotEnabled).help(), Some(crate::confined::ENABLE));
        assert_eq!(Error::of(anyhow::anyhow!("x")).kind(), ErrorKind::Other);
    }
}
