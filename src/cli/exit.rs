//! The exit codes, which scripts and systemd units may rely on.

use crate::api::ErrorKind;

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
    /// A language model's kernels can neither be compiled nor are there precompiled.
    Kernels = 9,
    /// Stopped by the user.
    Cancelled = 130,
}

impl Exit {
    /// The code for an error, by what is at its bottom.
    pub fn of(error: &anyhow::Error) -> Self {
        match ErrorKind::of(error) {
            ErrorKind::Recipe => Exit::Recipe,
            ErrorKind::Fetch => Exit::Fetch,
            ErrorKind::Build => Exit::Build,
            ErrorKind::NotProved | ErrorKind::NotAnEngine | ErrorKind::Damaged | ErrorKind::Foreign => Exit::NotProved,
            ErrorKind::Unavailable | ErrorKind::NoDevice => Exit::Environment,
            ErrorKind::Kernels => Exit::Kernels,
            ErrorKind::Cancelled => Exit::Cancelled,
            ErrorKind::Picture | ErrorKind::Request | ErrorKind::Other => Exit::Failure,
        }
    }

    /// The code of several jobs, which must not hide the worst of theirs.
    pub fn worst(self, other: Self) -> Self {
        if other.severity() > self.severity() { other } else { self }
    }

    /// What must not be overlooked is high: an engine that is wrong, then what does not mend itself, then what may by a
    /// second try, then what merely was not looked at.
    fn severity(self) -> u8 {
        match self {
            Exit::Success => 0,
            Exit::NotExecuted => 1,
            Exit::Fetch => 2,
            Exit::Failure => 3,
            Exit::Environment => 4,
            Exit::Kernels => 5,
            Exit::Usage => 6,
            Exit::Recipe => 7,
            Exit::Build => 8,
            Exit::NotProved => 9,
            Exit::Cancelled => 10,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        std::process::ExitCode::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_the_kind_of_error() {
        use std::path::PathBuf;

        use crate::backend::BackendError;
        use crate::engine_dir::Damage;
        use crate::llm::LlmError;
        use crate::manifest::ManifestError;
        let manifest = || ManifestError { path: PathBuf::from("m"), message: "x".to_owned() };
        let damage = Damage { folder: PathBuf::from("m"), what: "x".to_owned() };
        let text = || "x".to_owned();
        let cases: [(anyhow::Error, Exit); 10] = [
            (manifest().into(), Exit::NotProved),
            (anyhow::Error::from(manifest()).context("while opening"), Exit::NotProved),
            (damage.into(), Exit::NotProved),
            (BackendError::Foreign(text()).into(), Exit::NotProved),
            (LlmError::Backend(BackendError::Foreign(text())).into(), Exit::NotProved),
            (BackendError::Load(text()).into(), Exit::Failure),
            (BackendError::Build(text()).into(), Exit::Build),
            (BackendError::NoDevice(text()).into(), Exit::Environment),
            (LlmError::Backend(BackendError::Kernels { what: text(), help: text() }).into(), Exit::Kernels),
            (LlmError::Request(text()).into(), Exit::Failure),
        ];
        for (error, exit) in cases {
            assert_eq!(Exit::of(&error), exit, "{error:?}");
        }
    }

    #[test]
    fn the_worst_code_wins_in_any_order() {
        use Exit::{Build, Cancelled, Fetch, NotExecuted, NotProved, Recipe, Success};
        for (codes, worst) in [
            ([Success, NotExecuted, Success], NotExecuted),
            ([NotProved, Fetch, Success], NotProved),
            ([Fetch, NotProved, NotExecuted], NotProved),
            ([Build, Recipe, Fetch], Build),
            ([Success, Cancelled, NotProved], Cancelled),
            ([Success, Success, Success], Success),
        ] {
            assert_eq!(codes.into_iter().fold(Success, Exit::worst), worst, "{codes:?}");
            assert_eq!(codes.into_iter().rev().fold(Success, Exit::worst), worst, "{codes:?}");
        }
    }
}
