//! Which CPU reference computes: ONNX Runtime where it is present, else rten, or the one that `WATUS_CPU_ENGINE` names.

use std::path::Path;

use super::onnxruntime::OnnxRuntime;
use super::{Backend, BackendError, BackendInfo, Cpu, Session, info};

/// The best reference there is here, in this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reference;

/// Names a CPU reference by hand.
const VARIABLE: &str = "WATUS_CPU_ENGINE";

/// A CPU reference that was named by hand.
pub(super) enum Named {
    Rten,
    OnnxRuntime,
}

pub(super) fn named_engine() -> Result<Option<Named>, BackendError> {
    let unknown = |name: &str| BackendError::Unavailable {
        what: format!("{VARIABLE}={name} names no CPU reference"),
        help: "`rten` and `onnxruntime` are two".to_owned(),
    };
    match std::env::var(VARIABLE).as_deref() {
        Err(_) | Ok("") => Ok(None),
        Ok("rten") => Ok(Some(Named::Rten)),
        Ok("onnxruntime") => Ok(Some(Named::OnnxRuntime)),
        Ok(other) => Err(unknown(other)),
    }
}

/// The library that was asked for by hand.
pub(super) fn named_runtime() -> Result<&'static OnnxRuntime, BackendError> {
    OnnxRuntime::find()?.ok_or_else(|| BackendError::Unavailable {
        what: format!("{VARIABLE}=onnxruntime, and there is none here"),
        help: "run scripts/setup-onnxruntime.sh".to_owned(),
    })
}

impl Reference {
    /// The library that computes, if it is not rten; and whether it was named by hand.
    fn runtime() -> Result<(Option<&'static OnnxRuntime>, bool), BackendError> {
        match named_engine()? {
            Some(Named::Rten) => Ok((None, true)),
            Some(Named::OnnxRuntime) => Ok((Some(named_runtime()?), true)),
            None => Ok((OnnxRuntime::find()?, false)),
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
