//! Engine directories: what each is, where it was built, whether it is proved and fits this machine.

use std::cell::LazyCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::footprint::{Footprint, entries};
use super::{as_text, spot};
use crate::diagnostic::{Diagnose, Diagnostic};
use crate::engine_dir::{EngineDir, Here};
use crate::manifest::layout::FILE;
use crate::spec::{DeviceInfo, Kind, Precision};
use crate::verify::{Report, Status};

/// An engine directory.
#[derive(Debug, Clone, Serialize)]
pub struct ListedEngine {
    /// Name of the directory.
    pub name: String,
    /// Path of the directory.
    #[serde(serialize_with = "as_text")]
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that are free when it is removed; weights may be shared with a cache.
    pub freed_bytes: u64,
    /// What its manifest tells; `None` if it cannot be read.
    #[serde(flatten)]
    pub facts: Option<EngineFacts>,
    /// Why its manifest cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<Diagnostic>,
    /// The files that links in it lead to, on another disk for example.
    #[serde(skip)]
    pub links: Vec<PathBuf>,
    #[serde(skip)]
    pub(super) footprint: Footprint,
}

/// What an engine directory's manifest and report tell.
#[derive(Debug, Clone, Serialize)]
pub struct EngineFacts {
    /// Kind of the model.
    pub kind: Kind,
    /// Arithmetic of the engine.
    pub precision: Precision,
    /// Where the model came from.
    pub source: String,
    /// When it was built, in seconds since 1970.
    pub built: u64,
    /// The version of this tool that built it.
    pub tool: String,
    /// The TensorRT that built it.
    pub tensorrt: String,
    /// The GPU that it was built on, if there was one.
    pub gpu: Option<DeviceInfo>,
    /// What is known of its proof.
    pub proof: Proof,
    /// Whether it fits this machine.
    pub fit: MachineFit,
}

/// Result of the last verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Proof {
    /// It was executed, and agreed with the reference.
    Verified {
        /// The device that executed it.
        on: String,
        /// The reference.
        by: Option<String>,
    },
    /// It was checked, and not executed.
    NotExecuted,
    /// It failed, and was published with `--force` or is no longer what it was.
    Failed {
        /// Names of the checks.
        checks: Vec<String>,
    },
    /// There is no report.
    NeverVerified,
}

/// Whether this machine and program can use an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum MachineFit {
    /// They can.
    Fits,
    /// They cannot.
    Misfit {
        /// What differs.
        why: String,
        /// The command that builds it again.
        rebuild: String,
    },
    /// It cannot be told.
    Unknown {
        /// What is missing here.
        why: String,
    },
}

/// The engine directories in `folder`, or `folder` itself if it is one.
pub(super) fn folders(folder: &Path) -> Vec<PathBuf> {
    let is_engine = |path: &PathBuf| fs::symlink_metadata(path.join(FILE)).is_ok_and(|file| file.is_file());
    let itself = folder.to_owned();
    if is_engine(&itself) {
        return vec![itself];
    }
    let hidden = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    entries(folder).into_iter().filter(|path| !hidden(path) && is_engine(path)).collect()
}

/// Describes an engine directory.
pub(super) fn listed(path: PathBuf, here: &LazyCell<Here>) -> ListedEngine {
    let footprint = Footprint::of(&fs::canonicalize(&path).unwrap_or_else(|_| path.clone()));
    let (facts, problem) = match EngineDir::load(&path) {
        Ok(engine) => (Some(facts(&engine, here)), None),
        Err(error) => (None, Some(error.diagnostic())),
    };
    ListedEngine {
        name: spot(&path).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        bytes: footprint.bytes(),
        freed_bytes: footprint.freed(),
        facts,
        problem,
        links: links(&path),
        footprint,
        path,
    }
}

fn facts(engine: &EngineDir, here: &Here) -> EngineFacts {
    let manifest = &engine.manifest;
    let written = fs::metadata(engine.path(FILE)).and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    EngineFacts {
        kind: manifest.contents.kind(),
        precision: manifest.precision,
        source: manifest.source.clone(),
        built: written.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
        tool: manifest.tool.clone(),
        tensorrt: manifest.tensorrt.to_string(),
        gpu: manifest.device.clone(),
        proof: proof(Report::load(engine.folder())),
        fit: fit(engine, here),
    }
}

fn proof(report: Option<Report>) -> Proof {
    let Some(report) = report else { return Proof::NeverVerified };
    let failed = report.checks.iter().filter(|check| check.status == Status::Failed);
    let checks: Vec<String> = failed.map(|check| check.name.clone()).collect();
    match report.executed_on {
        _ if !checks.is_empty() => Proof::Failed { checks },
        Some(on) => Proof::Verified { on, by: report.judged_by },
        None => Proof::NotExecuted,
    }
}

fn fit(engine: &EngineDir, here: &Here) -> MachineFit {
    if let Some(why) = engine.misfit_with(here) {
        return MachineFit::Misfit { why, rebuild: engine.rebuild_command() };
    }
    let missing = match (&here.tensorrt, &here.device) {
        (Some(_), Some(_)) => return MachineFit::Fits,
        (None, _) => "there is no TensorRT here",
        (Some(_), None) => "there is no GPU here",
    };
    MachineFit::Unknown { why: missing.to_owned() }
}

/// What the links below a folder lead to.
fn links(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), entries(folder));
    while let Some(path) = pending.pop() {
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => pending.extend(entries(&path)),
            Ok(metadata) if metadata.is_symlink() => found.extend(fs::canonicalize(&path)),
            _ => {}
        }
    }
    found
}
