//! Why a source could not be fetched, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::diagnostic::{Diagnose, Diagnostic};

/// The user cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

/// Why a source could not be fetched. Every diagnostic has a hint, unless nothing is known to help.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.diagnostic())]
#[allow(missing_docs)]
pub enum FetchError {
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    #[error(transparent)]
    Io(#[from] io::Error),
    Gated {
        name: String,
    },
    Unauthorized {
        name: String,
    },
    NotFound {
        name: String,
        url: String,
    },
    NoSuchRevision {
        name: String,
    },
    RateLimited {
        name: String,
    },
    AskedToWait {
        name: String,
        seconds: u64,
        longest: u64,
    },
    BadAddress {
        name: String,
        address: String,
        message: String,
    },
    Status {
        name: String,
        status: u16,
    },
    Network {
        name: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    GaveUp {
        attempts: u32,
        last: Box<FetchError>,
    },
    WrongHash {
        name: String,
        url: String,
    },
    WrongSha256 {
        path: PathBuf,
        found: String,
        expected: String,
    },
    UnsafeName {
        name: String,
        file: String,
    },
    BadAnswer {
        name: String,
        what: String,
    },
    NothingMatches {
        name: String,
        globs: String,
        present: String,
        help: &'static str,
    },
    /// The requested files, or all that there are, contain no model.
    NoModel {
        name: String,
        message: Diagnostic,
    },
    DiskFull {
        folder: PathBuf,
        need: u64,
        free: u64,
    },
    Offline {
        name: String,
    },
    NotAFile {
        path: PathBuf,
        message: String,
    },
    NoSuchPath {
        path: PathBuf,
    },
    Unreadable {
        name: String,
        message: Diagnostic,
        kept: Box<str>,
    },
    Ollama {
        model: String,
        message: Diagnostic,
    },
    Pip {
        requirement: String,
        message: Diagnostic,
    },
    Wheel {
        package: String,
        message: Diagnostic,
    },
    Lock {
        path: PathBuf,
        message: String,
    },
}

impl Diagnose for FetchError {
    fn diagnostic(&self) -> Diagnostic {
        match self {
            Self::Cancelled(cancelled) => Diagnostic::new(cancelled.to_string()),
            Self::Io(error) => error.diagnostic(),
            Self::Unreadable { name, message, kept } => unreadable(message, kept).at(name),
            Self::Ollama { model: of, message } | Self::Wheel { package: of, message } => message.clone().at(of),
            Self::NoModel { name, message } => message.clone().at(name),
            Self::Pip { requirement, message } => message.clone().at(format!("pip could not download {requirement}")),
            Self::Gated { name } => Diagnostic::new(format!("{name} is gated"))
                .with_help("accept its terms on the model's page, then set HF_TOKEN to a token of that account"),
            Self::Unauthorized { name } => Diagnostic::new(format!("{name}: access denied"))
                .with_help("check the name; for a private repository set HF_TOKEN to a token that may read it"),
            Self::NotFound { name, url } => Diagnostic::new(format!("{name} does not exist at {url}"))
                .with_help("check the spelling, and HF_ENDPOINT if you set it"),
            Self::NoSuchRevision { name } => Diagnostic::new(format!("{name}: no such revision"))
                .with_help("give a branch, tag or commit the repository has"),
            Self::RateLimited { name } => Diagnostic::new(format!("{name}: the server asks to slow down (429)"))
                .with_help("wait a few minutes; a token (HF_TOKEN) raises the limit"),
            Self::AskedToWait { name, seconds, longest } => {
                let wait = format!("the server asks to wait {seconds} s, and {longest} s are waited at most");
                Diagnostic::new(wait).with_help("run it again then; what has come is kept").at(name)
            }
            Self::BadAddress { name, address, message } => {
                Diagnostic::new(format!("{name}: cannot fetch {address}: {message}"))
                    .with_help("check the address, and HF_ENDPOINT if you set it")
            }
            Self::Status { name, status } => {
                Diagnostic::new(format!("{name}: the server answers with status {status}"))
            }
            Self::Network { name, source } => Diagnostic::new(format!("{name}: {source}")),
            Self::GaveUp { attempts, last } => Diagnostic::new(format!("gave up after {attempts} tries: {last}"))
                .with_help("run it again; the download goes on where it stopped"),
            Self::WrongHash { name, url } => {
                Diagnostic::new(format!("{name}: the content does not match its hash (from {url}), twice"))
                    .with_help("the server or a proxy damages it; nothing was kept")
            }
            Self::UnsafeName { name, file } => unsafe_name(name, file),
            Self::BadAnswer { name, what } => {
                Diagnostic::new(format!("{name}: the server's answer makes no sense: {what}"))
            }
            Self::NothingMatches { name, globs, present, help } => {
                Diagnostic::new(format!("{name}: no file matches {globs}"))
                    .with_help(format!("the repository has: {present}{help}"))
            }
            Self::WrongSha256 { path, found, expected } => wrong_sha256(path, found, expected),
            Self::DiskFull { folder, need, free } => disk_full(folder, *need, *free),
            Self::Offline { name } => offline(name),
            Self::NotAFile { path, message } => {
                Diagnostic::new(message).with_help("`path:` names a file or a folder of files").at(path.display())
            }
            Self::NoSuchPath { path } => Diagnostic::new(format!("{} does not exist", path.display()))
                .with_help("`path:` is relative to the recipe"),
            Self::Lock { path, message } => {
                Diagnostic::new(message).with_help("delete it to pin anew").at(path.display())
            }
        }
    }
}

fn unsafe_name(name: &str, file: &str) -> Diagnostic {
    Diagnostic::new(format!(
        "{name}: the server names a file {file:?}, which would leave the cache or forge a line; refused"
    ))
}

fn wrong_sha256(path: &Path, found: &str, expected: &str) -> Diagnostic {
    Diagnostic::new(format!("{}: sha256 is {found}, the recipe says {expected}", path.display()))
        .with_help("get the right file, or correct the recipe if you trust this one")
}

fn disk_full(folder: &Path, need: u64, free: u64) -> Diagnostic {
    Diagnostic::new(format!("{need} MB are needed in {}, {free} MB are free", folder.display()))
        .with_help("free some, or set HF_HOME and WATUS_CACHE_DIR to a larger disk")
}

fn offline(name: &str) -> Diagnostic {
    Diagnostic::new(format!("{name} is not in the cache, and --offline forbids fetching it"))
        .with_help("run `watus-build fetch` once with a network")
}

/// Why the beginning of a file was enough to refuse it, with the hint of the check if it has one.
fn unreadable(why: &Diagnostic, kept: &str) -> Diagnostic {
    let what = Diagnostic::new(format!("{}; {kept} of it were downloaded", why.message));
    what.with_help(why.help.as_deref().unwrap_or(ANOTHER))
}

const ANOTHER: &str = "name another file with `file:`, e.g. one in Q4_K_M, Q8_0 or F16";
