//! Which backend runs an engine, for `run` and `bench`.

use std::path::Path;

use clap::ValueEnum;

use crate::backend::cpu::{self, Cpu, IsolatedCpu};
use crate::backend::tensorrt::{TensorRt, device::Device, plan};
use crate::backend::{Backend, BackendError, Session};
use crate::llm::{self, Generator, Record, model::Runner};
use crate::manifest::Manifest;
use crate::progress::{Event, Progress};
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

/// Who computes an engine directory, with nothing left open.
fn decide(manifest: &Manifest, choice: Choice) -> anyhow::Result<Choice> {
    let choice = match choice {
        Choice::Auto => match Device::open() {
            Ok(_) => Choice::Tensorrt,
            Err(error) if crate::doctor::l4t_release().is_some() => {
                // A Jetson has a GPU: a slow answer from the CPU would hide what is broken.
                return Err(BackendError::Unavailable {
                    what: error.to_string(),
                    help: "`watus-build doctor` tells why; `--backend cpu` computes on the CPU all the same".to_owned(),
                }
                .into());
            }
            Err(_) => {
                eprintln!("no GPU here: {} is computed by the CPU reference", manifest.name);
                Choice::Cpu
            }
        },
        choice => choice,
    };
    if choice == Choice::Cpu {
        return Ok(choice);
    }
    let tensorrt = TensorRt::open()?;
    if tensorrt.version != manifest.tensorrt {
        return Err(BackendError::Load(format!(
            "{} was built by {}, this machine has {}\n  hint: build it again here",
            manifest.name, manifest.tensorrt, tensorrt.version
        ))
        .into());
    }
    Ok(Choice::Tensorrt)
}

/// The CPU reference in a child of this tool: a graph that is too much for it is an error, not a crash.
pub(super) fn reference() -> anyhow::Result<IsolatedCpu> {
    Ok(IsolatedCpu::new(std::env::current_exe()?))
}

/// The session to measure instead of `probe`: the CPU reference in this process, where nothing is sent about, once the
/// graph has shown in its child that it can be computed. `None` where `probe` is on the GPU.
pub(super) fn measured(
    probe: &mut dyn Session,
    model: &Path,
    inputs: &[Tensor],
) -> Result<Option<Box<dyn Session>>, BackendError> {
    if probe.info() != cpu::info() {
        return Ok(None);
    }
    probe.run(inputs)?;
    Cpu.open(model).map(Some)
}

/// Opens an engine directory.
pub(super) fn open(folder: &Path, manifest: &Manifest, choice: Choice) -> anyhow::Result<Box<dyn Session>> {
    if decide(manifest, choice)? == Choice::Cpu {
        return Ok(reference()?.open(&folder.join(&manifest.model))?);
    }
    let file = std::fs::read(folder.join(&manifest.engine))?;
    let (_, plan) = plan::split(&file);
    Ok(TensorRt::open()?.load(plan, manifest.tf32)?)
}

/// Loads a language model.
pub(super) fn open_llm(
    folder: &Path,
    manifest: &Manifest,
    record: &Record,
    choice: Choice,
    progress: &dyn Progress,
) -> anyhow::Result<Generator> {
    let runner = match decide(manifest, choice)? {
        Choice::Cpu => Runner::Cpu,
        _ => Runner::TensorRt { tf32: manifest.tf32 },
    };
    const PHASE: &str = "Loading the weights";
    let mut begun = false;
    let generator = llm::model::open(folder, record, runner, &mut |done, total| {
        if !begun {
            progress.event(Event::Phase { name: PHASE, steps: total });
            begun = true;
        }
        progress.event(Event::Step { phase: PHASE, done });
    });
    progress.event(Event::PhaseDone { name: PHASE });
    Ok(generator?)
}

/// Opens a bare ONNX file on the CPU reference, or builds and loads it.
pub(super) fn open_onnx(path: &Path, choice: Choice) -> anyhow::Result<Box<dyn Session>> {
    match choice {
        Choice::Tensorrt => Ok(Backend::open(&*TensorRt::open()?, path)?),
        Choice::Auto | Choice::Cpu => Ok(reference()?.open(path)?),
    }
}
