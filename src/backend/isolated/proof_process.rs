//! Chooses where a verification runs: in this process or in child processes.

use std::path::Path;

use super::Isolated;
use crate::backend::cpu::Reference;
use crate::backend::tensorrt::TensorRt;
use crate::backend::{Backend, BackendError, Session};

/// The process in which engines and the CPU reference run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProofProcess {
    /// This process, for programs that use the library, debuggers and emulators.
    InProcess,
    /// Child processes.
    Isolated(Isolated),
}

impl ProofProcess {
    /// The CPU reference.
    pub fn reference(&self) -> Box<dyn Backend> {
        match self {
            ProofProcess::InProcess => Box::new(Reference),
            ProofProcess::Isolated(isolated) => Box::new(isolated.clone()),
        }
    }

    /// Loads an engine file, whose plan is `plan`, on the GPU.
    pub fn load(
        &self,
        tensorrt: &TensorRt,
        (engine, plan): (&Path, &[u8]),
        tf32: bool,
    ) -> Result<Box<dyn Session>, BackendError> {
        match self {
            ProofProcess::InProcess => tensorrt.load(plan, tf32),
            ProofProcess::Isolated(isolated) => isolated.load(tensorrt, engine, tf32),
        }
    }
}
