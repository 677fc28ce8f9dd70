//! Engines opened: their files checked, and which backend runs them.

use std::path::Path;

use anyhow::bail;
use clap::ValueEnum;

use super::say;
use crate::backend::cpu::{self, Reference};
use crate::backend::isolated::Isolated;
use crate::backend::tensorrt::{TensorRt, plan};
use crate::backend::{Backend, BackendError, Session};
use crate::diagnostic::Diagnostic;
use crate::engine_dir::{BackendChoice, EngineDir};
use crate::llm::Generator;
use crate::manifest::ManifestError;
use crate::progress::{Progress, Silent};
use crate::tensor::Tensor;

/// Who computes
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Choice {
    /// TensorRT where there is a GPU; else the CPU reference, but never on a Jetson
    Auto,
    /// The engine on the GPU
    Tensorrt,
    /// The CPU reference on the engine's ONNX model
    Cpu,
}

impl From<Choice> for BackendChoice {
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::Auto => BackendChoice::Auto,
            Choice::Tensorrt => BackendChoice::TensorRt,
            Choice::Cpu => BackendChoice::Cpu,
        }
    }
}

/// The bytes of an engine file; what it is instead is an error of the kind that an engine directory's are. `what` it is not
/// is the caller's to say.
pub(super) fn read_engine(path: &Path, what: &str) -> anyhow::Result<Vec<u8>> {
    let fail = |message: String| ManifestError { path: path.to_owned(), message };
    if path.is_dir() {
        let engine = EngineDir::load_checked(path, false, &Silent)?.some_engine();
        bail!(
            Diagnostic::new(format!("{} is an engine directory", path.display()))
                .with_help(format!("name a file in it, e.g. {}", engine.display()))
        );
    }
    let file = crate::regular_file::read(path, u64::MAX).map_err(|error| fail(format!("cannot be read: {error}")))?;
    let (_, plan) = plan::split(&file);
    let header = plan::Header::parse(plan);
    let header = header.ok_or_else(|| fail(format!("{what}\n  hint: an engine directory keeps it as NAME.engine")))?;
    if let Some(length) = header.length.filter(|length| *length != plan.len() as u64) {
        let have = plan.len();
        let again = "hint: build it again: `watus-build build --rebuild RECIPE`";
        return Err(fail(format!("the plan has {have} bytes, its header says {length}\n  {again}")).into());
    }
    Ok(file)
}

/// The CPU reference in a child of this tool: a graph that is too much for it is an error, not a crash.
pub(super) fn reference() -> anyhow::Result<Isolated> {
    Ok(Isolated::new(std::env::current_exe()?))
}

/// The session to measure instead of `probe`: the CPU reference in this process, where nothing is sent about, once the
/// graph has shown in its child that it can be computed. `None` where `probe` is on the GPU.
pub(super) fn measured(
    probe: &mut dyn Session,
    model: &Path,
    inputs: &[Tensor],
) -> Result<Option<Box<dyn Session>>, BackendError> {
    if !cpu::is_reference(&probe.info()) {
        return Ok(None);
    }
    probe.run(inputs)?;
    Reference.open(model).map(Some)
}

/// Opens an engine directory's one engine.
pub(super) fn open(engine: &EngineDir, choice: Choice) -> anyhow::Result<Box<dyn Session>> {
    let runner = engine.choose(choice.into(), &|text| say(text))?;
    engine.session(runner, &reference()?)
}

/// Loads an engine directory's language model.
pub(super) fn open_llm(engine: &EngineDir, choice: Choice, progress: &dyn Progress) -> anyhow::Result<Generator> {
    let runner = engine.choose(choice.into(), &|text| say(text))?;
    engine.generator(runner, progress)
}

/// Opens a bare ONNX file on the CPU reference, or builds and loads it.
pub(super) fn open_onnx(path: &Path, choice: Choice) -> anyhow::Result<Box<dyn Session>> {
    match choice {
        Choice::Tensorrt => Ok(Backend::open(&*TensorRt::open()?, path)?),
        Choice::Auto | Choice::Cpu => Ok(reference()?.open(path)?),
    }
}
