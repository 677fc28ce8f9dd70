//! Which CPU reference a person names, by `WATUS_CPU_ENGINE`.

use crate::backend::BackendError;

/// Names a CPU reference by hand.
pub const VARIABLE: &str = "WATUS_CPU_ENGINE";

/// A CPU reference that was named by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// Part of this tool.
    Rten,
    /// The library.
    OnnxRuntime,
}

/// The CPU reference that `WATUS_CPU_ENGINE` names.
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
