//! The exit codes. Scripts and systemd units rely on them.

use crate::api::ErrorKind;

/// Exit code of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success.
    Success = 0,
    /// An error without a code of its own.
    Failure = 1,
    /// The arguments are invalid (clap's own code).
    Usage = 2,
    /// A recipe is invalid.
    Recipe = 3,
    /// A source could not be fetched.
    Fetch = 4,
    /// TensorRT could not build the engine.
    Build = 5,
    /// An engine is damaged, was built for another machine, or fails verification.
    NotProved = 6,
    /// With `--require-execution`: the engine could not be executed here.
    NotExecuted = 7,
    /// The machine lacks TensorRT, a GPU or a driver.
    Environment = 8,
    /// CUDA kernels of a language model can neither be compiled nor are there as precompiled PTX.
    Kernels = 9,
    /// Stopped by Ctrl-C or a signal.
    Cancelled = 130,
}

impl Exit {
    /// The exit code of an error, decided by the first error in its chain that has a code of its own.
    pub fn of(error: &anyhow::Error) -> Self {
        match ErrorKind::of(error) {
            ErrorKind::Recipe => Exit::Recipe,
            ErrorKind::Fetch => Exit::Fetch,
            ErrorKind::Build => Exit::Build,
            ErrorKind::NotProved | ErrorKind::NotAnEngine | ErrorKind::Damaged | ErrorKind::Foreign => Exit::NotProved,
            ErrorKind::Unavailable | ErrorKind::NoDevice => Exit::Environment,
            ErrorKind::Kernels => Exit::Kernels,
            ErrorKind::Cancelled => Exit::Cancelled,
            ErrorKind::Image | ErrorKind::Request | ErrorKind::Other => Exit::Failure,
        }
    }

    /// The more severe of two exit codes, for commands that work on several recipes or engines.
    pub fn worst(self, other: Self) -> Self {
        if other.severity() > self.severity() { other } else { self }
    }

    /// Rank of the code: a wrong engine is the most severe, then errors that a retry does not cure, then errors that it
    /// may cure, then checks that were not run.
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
        use crate::executor::LlmError;
        use crate::manifest::ManifestError;
        let manifest = || ManifestError { path: PathBuf::from("m"), message: "x".into() };
        let damage = Damage { folder: PathBuf::from("m"), what: "x".to_owned() };
        let text = || "x".to_owned();
        let cases: [(anyhow::Error, Exit); 10] = [
            (manifest().into(), Exit::NotProved),
            (anyhow::Error::from(manifest()).context("while opening"), Exit::NotProved),
            (damage.into(), Exit::NotProved),
            (BackendError::Foreign(text().into()).into(), Exit::NotProved),
            (LlmError::Backend(BackendError::Foreign(text().into())).into(), Exit::NotProved),
            (BackendError::Load(text().into()).into(), Exit::Failure),
            (BackendError::Build(text().into()).into(), Exit::Build),
            (BackendError::NoDevice(text()).into(), Exit::Environment),
            (LlmError::Backend(BackendError::Kernels { what: text(), help: text() }).into(), Exit::Kernels),
            (LlmError::request(text()).into(), Exit::Failure),
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
