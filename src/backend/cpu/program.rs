//! Float32 graphs on operands that somebody else keeps: what a language model's executor runs layer by layer.

use rten::{Model, ModelOptions, NodeId, Value, ValueOrView};
use rten_tensor::prelude::*;

use super::named::{Named, named_engine};
use super::reference::named_runtime;
use super::{Backend as _, BackendError, BackendInfo};
use crate::backend::onnxruntime::{OnnxRuntime, PreparedGraph};
use crate::onnx;
use crate::tensor::TensorSpec;

/// Host floats given to a [`Program`] without a copy.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    /// Dimensions as the graph wants them.
    pub shape: &'a [usize],
    /// Row-major, or for a transposed matrix its transpose.
    pub data: &'a [f32],
    /// The matrix lies in memory as `[columns, rows]`.
    pub transposed: bool,
}

/// Who computes programs.
#[derive(Clone, Copy)]
pub enum CpuEngine {
    /// The crate that is part of this tool.
    Rten,
    /// The library on this machine.
    Runtime(&'static OnnxRuntime),
}

impl CpuEngine {
    /// rten, which is the faster of the two with weights that it does not keep; `WATUS_CPU_ENGINE` names another.
    pub fn find() -> Result<Self, BackendError> {
        match named_engine()? {
            Some(Named::OnnxRuntime) => Ok(CpuEngine::Runtime(named_runtime()?)),
            _ => Ok(CpuEngine::Rten),
        }
    }

    /// Who that is.
    pub fn info(self) -> BackendInfo {
        match self {
            CpuEngine::Rten => super::info(),
            CpuEngine::Runtime(runtime) => runtime.info(),
        }
    }
}

/// A graph ready to run.
pub struct Program {
    inputs: Vec<TensorSpec>,
    /// Of the inputs, those that come transposed.
    transposed: Vec<bool>,
    loaded: Loaded,
}

enum Loaded {
    Rten { model: Box<Model>, inputs: Vec<NodeId>, outputs: Vec<NodeId> },
    Runtime(PreparedGraph),
}

impl Program {
    /// Prepares a graph whose inputs and outputs are float32 (or, for rten, float16, computed in float32); of its inputs
    /// those that `transposed` says so of will come transposed.
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

    /// Runs on `operands`, in the order of the graph's inputs; returns the outputs' values in order.
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
