//! Opens engines for the subcommands: checks the files and chooses the backend.

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
use crate::generation::Generator;
use crate::manifest::ManifestError;
use crate::progress::{Progress, Silent};
use crate::tensor::Tensor;

/// Where to run a model
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Choice {
    /// TensorRT if there is a GPU, else the CPU reference; on a Jetson never the CPU reference
    Auto,
    /// The engine, on the GPU
    Tensorrt,
    /// The CPU reference, on the engine directory's ONNX model
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

/// Reads an engine file. Anything else at `path` is a [`ManifestError`] like those of engine directories; `what` names,
/// in its text, what the path is not.
pub(super) fn read_engine(path: &Path, what: &str) -> anyhow::Result<Vec<u8>> {
    let fail = |message: Diagnostic| ManifestError { path: path.to_owned(), message };
    if path.is_dir() {
        let engine = EngineDir::load_checked(path, false, &Silent)?.some_engine();
        bail!(
            Diagnostic::new(format!("{} is an engine directory", path.display()))
                .with_help(format!("name a file in it, e.g. {}", engine.display()))
        );
    }
    let file = crate::regular_file::read(path, u64::MAX);
    let file = file.map_err(|error| fail(format!("cannot be read: {error}").into()))?;
    let (_, plan) = plan::split(&file);
    let header = plan::Header::parse(plan);
    let help = "an engine directory keeps it as NAME.engine";
    let header = header.ok_or_else(|| fail(Diagnostic::new(what).with_help(help)))?;
    if let Some(length) = header.length.filter(|length| *length != plan.len() as u64) {
        let have = plan.len();
        let what = Diagnostic::new(format!("the plan has {have} bytes, its header says {length}"));
        return Err(fail(what.with_help("build it again: `watus-build build --rebuild RECIPE`")).into());
    }
    Ok(file)
}

/// The CPU reference in a child process, so that a graph that exhausts it is an error and not a crash.
pub(super) fn reference() -> anyhow::Result<Isolated> {
    Ok(Isolated::of_this_program()?)
}

/// The session for `bench` to measure in place of `probe`: the CPU reference in this process, without the cost of
/// sending tensors to a child, after `probe` has shown in its child that the graph runs. `None` if `probe` is on the
/// GPU.
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

/// Opens the engine of a vision or ONNX engine directory.
pub(super) fn open(engine: &EngineDir, choice: Choice) -> anyhow::Result<Box<dyn Session>> {
    let runner = engine.choose(choice.into(), &|text| say(text))?;
    engine.session(runner, &reference()?)
}

/// Loads the language model of an engine directory.
pub(super) fn open_llm(engine: &EngineDir, choice: Choice, progress: &dyn Progress) -> anyhow::Result<Generator> {
    let runner = engine.choose(choice.into(), &|text| say(text))?;
    engine.generator(runner, progress)
}

/// Opens a bare .onnx file on the CPU reference, or builds it with TensorRT and loads the engine.
pub(super) fn open_onnx(path: &Path, choice: Choice) -> anyhow::Result<Box<dyn Session>> {
    match choice {
        Choice::Tensorrt => Ok(Backend::open(&*TensorRt::open()?, path)?),
        Choice::Auto | Choice::Cpu => Ok(reference()?.open(path)?),
    }
}
