//! Backends that run models: the CPU reference (ONNX Runtime or rten) and TensorRT, behind one pair of traits.
//!
//! A [`Backend`] opens an ONNX file as a [`Session`]; `tests/conformance.rs` runs the same cases on both. TensorRT also
//! builds plans and loads them without the ONNX file (`tensorrt::TensorRt`).

pub mod cpu;
pub mod isolated;
pub mod onnxruntime;
pub mod tensorrt;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::diagnostic::{Diagnose, Diagnostic};
use crate::tensor::{Tensor, TensorSpec};

/// An error of a backend.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs)]
pub enum BackendError {
    /// The backend is not installed on this machine, or not usable.
    #[error("{}", self.diagnostic())]
    Unavailable { what: String, help: String },
    /// The CUDA kernels for language models can neither be compiled nor are there precompiled; retrying does not help.
    #[error("{}", self.diagnostic())]
    Kernels { what: String, help: String },
    /// TensorRT is installed, but there is no GPU to run on.
    #[error("no usable NVIDIA GPU: {0}")]
    NoDevice(String),
    #[error("{0}")]
    Build(Diagnostic),
    #[error("{0}")]
    Load(Diagnostic),
    /// The engine was built for another TensorRT or GPU, or is none.
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

/// The backend and device that run a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendInfo {
    /// Name and version of the library: "cpu (rten 0.27)" or "TensorRT-RTX 1.6.1".
    pub name: String,
    /// Name of the GPU, or the CPU's thread count.
    pub device: String,
}

/// A library that runs ONNX models.
pub trait Backend: Send + Sync {
    /// Name and device.
    fn info(&self) -> BackendInfo;
    /// Opens a model, whose input shapes must be static.
    fn open(&self, onnx: &Path) -> Result<Box<dyn Session>, BackendError>;
}

/// An opened model.
pub trait Session: Send {
    /// Name and device.
    fn info(&self) -> BackendInfo;
    /// Inputs in the order that `run` takes them.
    fn inputs(&self) -> &[TensorSpec];
    /// Outputs in the order that `run` returns them.
    fn outputs(&self) -> &[TensorSpec];
    /// Runs the model once, from host tensors to host tensors.
    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError>;
    /// Runs the model `warmup + iterations` times, and returns the times of the latter.
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
    /// From host tensors to host tensors.
    pub end_to_end_ms: Vec<f64>,
    /// On the device alone, between two events; empty for the CPU.
    pub compute_ms: Vec<f64>,
}

/// Checks number, types and shapes of inputs against a session's.
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
