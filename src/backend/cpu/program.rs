//! Runs float32 graphs on operands in the caller's memory, as the CPU executor of language models does for each layer.

use rten::{Model, ModelOptions, NodeId, Value, ValueOrView};
use rten_tensor::prelude::*;

use super::named::{Named, named_engine};
use super::reference::named_runtime;
use super::{Backend as _, BackendError, BackendInfo};
use crate::backend::onnxruntime::{OnnxRuntime, PreparedGraph};
use crate::onnx;
use crate::tensor::TensorSpec;

/// Floats in host memory that a [`Program`] reads without a copy.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    /// Dimensions of the graph's input.
    pub shape: &'a [usize],
    /// Values in row-major order; if `transposed`, those of the transposed matrix.
    pub data: &'a [f32],
    /// Whether the matrix is stored as `[columns, rows]`.
    pub transposed: bool,
}

/// The library that runs programs.
#[derive(Clone, Copy)]
pub enum CpuEngine {
    /// The rten crate, which is part of this tool.
    Rten,
    /// The ONNX Runtime library of this machine.
    Runtime(&'static OnnxRuntime),
}

impl CpuEngine {
    /// Chooses rten, which is faster with weights that it cannot keep prepared, unless `WATUS_CPU_ENGINE` names
    /// another.
    pub fn find() -> Result<Self, BackendError> {
        match named_engine()? {
            Some(Named::OnnxRuntime) => Ok(CpuEngine::Runtime(named_runtime()?)),
            _ => Ok(CpuEngine::Rten),
        }
    }

    /// Name and thread count.
    pub fn info(self) -> BackendInfo {
        match self {
            CpuEngine::Rten => super::info(),
            CpuEngine::Runtime(runtime) => runtime.info(),
        }
    }
}

/// A graph that is ready to run.
pub struct Program {
    inputs: Vec<TensorSpec>,
    /// For each input, whether its operand is transposed.
    transposed: Vec<bool>,
    loaded: Loaded,
}

enum Loaded {
    Rten { model: Box<Model>, inputs: Vec<NodeId>, outputs: Vec<NodeId> },
    Runtime(PreparedGraph),
}

impl Program {
    /// Prepares a graph whose inputs and outputs are float32 (with rten also float16, computed in float32).
    /// `transposed` says for each input whether its operand will be transposed.
    pub fn new(engine: CpuEngine, graph: onnx::Model, transposed: Vec<bool>) -> Result<Self, BackendError> {
        let load = |error: &dyn std::fmt::Display| BackendError::Load(format!("{}: {error}", super::NAME).into());
        let inputs = graph.inputs().map_err(|error| load(&error))?;
        let outputs = graph.outputs().map_err(|error| load(&error))?;
        let loaded = match engine {
            CpuEngine::Rten => {
                let bytes = graph.to_bytes().map_err(|error| load(&error))?;
                let model = ModelOptions::with_all_ops().load(bytes).map_err(|error| load(&error))?;
                let ids = |specs: &[TensorSpec]| -> Result<Vec<NodeId>, BackendError> {
                    specs.iter().map(|spec| model.node_id(&spec.name).map_err(|error| load(&error))).collect()
                };
                Loaded::Rten { inputs: ids(&inputs)?, outputs: ids(&outputs)?, model: Box::new(model) }
            }
            CpuEngine::Runtime(runtime) => {
                // It takes row-major tensors alone, and multiplies by a transposed matrix as it is.
                let mut graph = graph;
                let named = inputs.iter().zip(&transposed).filter(|(_, transposed)| **transposed);
                let named: Vec<&str> = named.map(|(spec, _)| spec.name.as_str()).collect();
                graph.transpose_inputs(&named);
                Loaded::Runtime(runtime.prepare(&graph)?)
            }
        };
        Ok(Self { inputs, transposed, loaded })
    }

    /// Runs the graph on `operands`, in the order of its inputs; returns the values of each output, in order.
    pub fn run(&mut self, operands: &[Operand<'_>]) -> Result<Vec<Vec<f32>>, BackendError> {
        if operands.len() != self.inputs.len() {
            let message = format!("the graph has {} inputs, {} were given", self.inputs.len(), operands.len());
            return Err(BackendError::Run(message.into()));
        }
        let mut stored = Vec::with_capacity(operands.len());
        for ((spec, transposed), operand) in self.inputs.iter().zip(&self.transposed).zip(operands) {
            if !spec.accepts(operand.shape) || operand.transposed != *transposed {
                let message = format!("got {:?}, the graph wants {spec}", operand.shape);
                return Err(BackendError::Input { name: spec.name.clone(), message: message.into() });
            }
            let mut shape = operand.shape.to_vec();
            if operand.transposed {
                shape.reverse();
            }
            stored.push(shape);
        }
        match &mut self.loaded {
            Loaded::Rten { model, inputs, outputs } => compute(model, (inputs, outputs), &stored, operands),
            Loaded::Runtime(prepared) => {
                let data = operands.iter().map(|operand| operand.data);
                prepared.run(stored.iter().map(Vec::as_slice).zip(data))
            }
        }
    }
}

fn compute(
    model: &Model,
    (inputs, outputs): (&[NodeId], &[NodeId]),
    stored: &[Vec<usize>],
    operands: &[Operand<'_>],
) -> Result<Vec<Vec<f32>>, BackendError> {
    let failed = |error: &dyn std::fmt::Display| BackendError::Run(format!("{}: {error}", super::NAME).into());
    let mut values = Vec::with_capacity(operands.len());
    for ((id, shape), operand) in inputs.iter().zip(stored).zip(operands) {
        let view = rten_tensor::TensorView::try_from_data(shape.as_slice(), operand.data);
        let mut view = view.map_err(|error| failed(&error))?;
        if operand.transposed {
            view.transpose();
        }
        values.push((*id, ValueOrView::from(view)));
    }
    let results = model.run(values, outputs, None).map_err(|error| failed(&error))?;
    let floats = |value: Value| match value {
        Value::FloatTensor(tensor) => Ok(tensor.into_data()),
        other => Err(failed(&format!("an output came back as {:?}", other.dtype()))),
    };
    results.into_iter().map(floats).collect()
}
