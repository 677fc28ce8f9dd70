//! Chooses the CPU reference: ONNX Runtime if it is present, else rten, or the one that `WATUS_CPU_ENGINE` names.

use std::path::Path;

use super::named::{Named, VARIABLE, named_engine};
use super::{Backend, BackendError, BackendInfo, Cpu, Session, info};
use crate::backend::isolated::Isolated;
use crate::backend::onnxruntime::OnnxRuntime;
use crate::backend::onnxruntime::library::{self, Found, SET_UP};
use crate::confined;

/// The preferred CPU reference of this machine, in this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reference;

fn none_here() -> BackendError {
    BackendError::Unavailable {
        what: format!("{VARIABLE}=onnxruntime, and there is none here"),
        help: format!("run {SET_UP}"),
    }
}

/// The ONNX Runtime library, which the user chose; an error if it is not usable.
pub(super) fn named_runtime() -> Result<&'static OnnxRuntime, BackendError> {
    // What crashes where it is opened must not take this process along.
    if let Some(program) = confined::program() {
        Isolated::new(program.to_owned()).library().and_then(wanted)?;
    }
    wanted(OnnxRuntime::look())?;
    OnnxRuntime::find()?.ok_or_else(none_here)
}

/// Turns a missing or broken library into an error.
fn wanted(found: Found) -> Result<Found, BackendError> {
    match found {
        Found::Absent => Err(none_here()),
        Found::Broken(broken) => Err(broken.error()),
        Found::Ready(library) => Ok(Found::Ready(library)),
    }
}

impl Reference {
    /// Opens the library that would be used in this process; an error if the user chose it and it is not usable.
    pub(in crate::backend) fn library() -> Result<Found, BackendError> {
        match named_engine()? {
            Some(Named::Rten) => Ok(Found::Absent),
            Some(Named::OnnxRuntime) => wanted(OnnxRuntime::look()),
            None => Ok(OnnxRuntime::look()),
        }
    }

    /// The library to use, `None` for rten, and whether the user chose it.
    fn runtime() -> Result<(Option<&'static OnnxRuntime>, bool), BackendError> {
        match named_engine()? {
            Some(Named::Rten) => Ok((None, true)),
            Some(Named::OnnxRuntime) => Ok((Some(named_runtime()?), true)),
            None => {
                let runtime = OnnxRuntime::find()?;
                if let Found::Broken(broken) = OnnxRuntime::look() {
                    library::give_up(broken);
                }
                Ok((runtime, false))
            }
        }
    }
}

impl Backend for Reference {
    fn info(&self) -> BackendInfo {
        let runtime = Self::runtime().ok().and_then(|(runtime, _)| runtime);
        runtime.map_or_else(info, |runtime| runtime.info())
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Session>, BackendError> {
        match Self::runtime()? {
            (None, _) => Cpu.open(path),
            (Some(runtime), true) => runtime.open(path),
            // An older library may not know what rten does.
            (Some(runtime), false) => runtime.open(path).or_else(|error| Cpu.open(path).map_err(|_| error)),
        }
    }
}
