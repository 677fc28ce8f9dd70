//! What runs a model: the CPU reference (rten) and TensorRT, behind one pair of traits.
//!
//! A [`Backend`] opens an ONNX file and gives a [`Session`]; `tests/conformance.rs` holds both to the same cases.
//! TensorRT also builds plans and opens them without the ONNX file (`tensorrt::TensorRt`).

pub mod cpu;
pub mod isolated;
pub mod onnxruntime;
pub mod tensorrt;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::diagnostic::{Diagnose, Diagnostic};
use crate::tensor::{Tensor, TensorSpec};

/// Why a backend could not do its work.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs)]
pub enum BackendError {
    /// The backend is not on this machine, or not usable.
    #[error("{}", self.diagnostic())]
    Unavailable { what: String, help: String },
    /// Our kernels for language models can neither be compiled nor are there precompiled: waiting brings none.
    #[error("{}", self.diagnostic())]
    Kernels { what: String, help: String },
    /// There is TensorRT but no GPU to execute on.
    #[error("no usable NVIDIA GPU: {0}")]
    NoDevice(String),
    #[error("{0}")]
    Build(Diagnostic),
    #[error("{0}")]
    Load(Diagnostic),
    /// An engine that was built for another TensorRT or GPU, or that TensorRT does not take for one.
    #[error("{0}")]
    Foreign(Diagnostic),
    #[error("{0}")]
    Run(Diagnostic),
    #[error("input `{name}`: {message}")]
    Input { name: String, message: Diagnostic },
    #[error("cancelled")]
    Cancelled,
}

impl Diagnose for BackendError {
    fn diagnostic(&self) -> Diagnostic {
        match self {
            Self::Unavailable { what, help } | Self::Kernels { what, help } => Diagnostic::new(what).with_help(help),
            Self::Build(said) | Self::Load(said) | Self::Foreign(said) | Self::Run(said) => said.clone(),
            Self::Input { name, message } => message.clone().at(format!("input `{name}`")),
            Self::NoDevice(_) | Self::Cancelled => Diagnostic::new(self.to_string()),
        }
    }
}

/// Who computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendInfo {
    /// "cpu (rten 0.27)" or "TensorRT-RTX 1.6.1".
    pub name: String,
    /// Name of the GPU or the CPU's thread count.
    pub device: String,
}

/// Opens ONNX models for execution.
pub trait Backend: Send + Sync {
    /// Who computes.
    fn info(&self) -> BackendInfo;
    /// Prepares a model with static input shapes.
    fn open(&self, onnx: &Path) -> Result<Box<dyn Session>, BackendError>;
}

/// A model ready to run.
pub trait Session: Send {
    /// Who computes.
    fn info(&self) -> BackendInfo;
    /// What `run` wants, in order.
    fn inputs(&self) -> &[TensorSpec];
    /// What `run` returns, in order.
    fn outputs(&self) -> &[TensorSpec];
    /// Runs once, host tensors in and out.
    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError>;
    /// Runs `warmup + iterations` times and times the latter.
    fn measure(&mut self, inputs: &[Tensor], warmup: usize, iterations: usize) -> Result<Samples, BackendError> {
        let mut samples = Samples::default();
        for iteration in 0..warmup + iterations {
            let start = std::time::Instant::now();
            self.run(inputs)?;
            if iteration >= warmup {
                samples.end_to_end_ms.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        Ok(samples)
    }
}

/// Latencies of single runs, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// Host tensors in, host tensors out.
    pub end_to_end_ms: Vec<f64>,
    /// On the device alone, between two events; empty for a backend without one.
    pub compute_ms: Vec<f64>,
}

/// Checks inputs against what a session wants.
pub fn check_inputs(specs: &[TensorSpec], inputs: &[Tensor]) -> Result<(), BackendError> {
    if specs.len() != inputs.len() {
        let message = format!("the model has {} inputs, {} were given", specs.len(), inputs.len());
        return Err(BackendError::Run(message.into()));
    }
    for (spec, input) in specs.iter().zip(inputs) {
        if spec.dtype != input.dtype() || !spec.accepts(input.shape()) {
            let message = format!("got {}{:?}, the model wants {spec}", input.dtype(), input.shape());
            return Err(BackendError::Input { name: spec.name.clone(), message: message.into() });
        }
    }
    Ok(())
}
