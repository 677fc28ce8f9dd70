//! The CPU reference that the user chooses with `WATUS_CPU_ENGINE`.

use crate::backend::BackendError;

/// Environment variable that chooses the CPU reference.
pub const VARIABLE: &str = "WATUS_CPU_ENGINE";

/// A CPU reference chosen by the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// rten, which is part of this tool.
    Rten,
    /// The ONNX Runtime library.
    OnnxRuntime,
}

/// The CPU reference that `WATUS_CPU_ENGINE` names; an error if it names none of them.
pub fn named_engine() -> Result<Option<Named>, BackendError> {
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
