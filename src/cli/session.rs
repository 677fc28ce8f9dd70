//! Which backend runs an engine, for `run` and `bench`.

use std::path::Path;

use clap::ValueEnum;

use crate::backend::cpu::Cpu;
use crate::backend::tensorrt::{TensorRt, device::Device};
use crate::backend::{Backend, BackendError, Session};
use crate::manifest::Manifest;

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

/// Opens an engine directory.
pub(super) fn open(folder: &Path, manifest: &Manifest, choice: Choice) -> anyhow::Result<Box<dyn Session>> {
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
        return Ok(Cpu.open(&folder.join(&manifest.model))?);
    }
    let tensorrt = TensorRt::open()?;
    if tensorrt.version != manifest.tensorrt {
        return Err(BackendError::Load(format!(
            "{} was built by {}, this machine has {}\n  hint: build it again here",
            manifest.name, manifest.tensorrt, tensorrt.version
        ))
        .into());
    }
    Ok(tensorrt.load(&std::fs::read(folder.join(&manifest.engine))?, manifest.tf32)?)
}

/// Opens a bare ONNX file on the CPU reference, or builds and loads it.
pub(super) fn open_onnx(path: &Path, choice: Choice) -> anyhow::Result<Box<dyn Session>> {
    match choice {
        Choice::Tensorrt => Ok(Backend::open(&*TensorRt::open()?, path)?),
        Choice::Auto | Choice::Cpu => Ok(Cpu.open(path)?),
    }
}
