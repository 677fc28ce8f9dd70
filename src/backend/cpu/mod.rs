//! The CPU reference, which `verify` compares engines with and which runs models without a GPU: ONNX Runtime if it is
//! present ([`Reference`]), else rten, a pure Rust crate that is part of this tool ([`Cpu`]).
//!
//! rten computes in float32 and int32: float16 is widened on input and rounded on output, int64 and bool become int32,
//! and values that do not fit are an error. Where rten deviates from ONNX, the graph is rewritten or refused by name
//! before rten gets it ([`onnx::Model::prepare_for_reference`]).
//!
//! A stranger's graph can make rten panic, loop for ever or allocate all memory. [`Cpu`] catches what can be caught in
//! this process; [`Isolated`](super::isolated::Isolated) runs [`Reference`] in a child process under limits, and is
//! what the command line uses.

mod guard;
mod named;
mod program;
mod reference;

use std::path::Path;

use half::f16;
use rten::{DataType, Model, ModelOptions, NodeId, RunOptions, Value, ValueOrView, ValueType};
use rten_tensor::prelude::*;

use super::{Backend, BackendError, BackendInfo, Session, check_inputs};
use crate::diagnostic::Diagnostic;
use crate::onnx;
use crate::tensor::{DType, Tensor, TensorData, TensorSpec};

pub use named::{Named, VARIABLE, named_engine};
pub use program::{CpuEngine, Operand, Program};
pub use reference::Reference;

/// rten, in this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu;

/// Prefix of the names of all CPU references.
pub(crate) const NAME: &str = "CPU reference";

/// Whether a CPU reference ran the model, not a GPU.
pub fn is_reference(info: &BackendInfo) -> bool {
    info.name.starts_with(NAME)
}

/// Description of the CPU reference `engine`, with its thread count.
pub(in crate::backend) fn info_of(engine: &str) -> BackendInfo {
    BackendInfo { name: format!("{NAME} ({engine})"), device: format!("{} threads", threads()) }
}

/// Number of threads that a reference computes with.
pub(super) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

pub(in crate::backend) fn info() -> BackendInfo {
    info_of("rten")
}

impl Backend for Cpu {
    fn info(&self) -> BackendInfo {
        info()
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Session>, BackendError> {
        let described = onnx::Model::load(path).map_err(|error| BackendError::Load(error.into()))?;
        guard::depth(&described)?;
        let ready = guard::guarded(0, BackendError::Load, || Ready::of(described))?;
        // Nodes that were written otherwise are several now.
        let depth = guard::depth(&ready.model)?;
        let session = guard::guarded(depth, BackendError::Load, || CpuSession::open(path, ready, depth))?;
        Ok(Box::new(session))
    }
}

/// A model prepared for rten.
struct Ready {
    model: onnx::Model,
    /// Whether the graph was changed from that of the file.
    rewritten: bool,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    guards: Vec<onnx::Guard>,
}

impl Ready {
    fn of(mut model: onnx::Model) -> Result<Self, BackendError> {
        let load = |error: onnx::OnnxError| BackendError::Load(error.into());
        let (inputs, outputs) = (model.inputs().map_err(load)?, model.outputs().map_err(load)?);
        let prepared = model.prepare_for_reference();
        let (changed, guards) =
            prepared.map_err(|error| BackendError::Load(Diagnostic::from(error).at("CPU reference")))?;
        let rewritten = model.make_explicit() || changed;
        Ok(Self { model, rewritten, inputs, outputs, guards })
    }
}

impl CpuSession {
    fn open(path: &Path, ready: Ready, depth: usize) -> Result<Self, BackendError> {
        let load = |message: String| BackendError::Load(format!("CPU reference: {}: {message}", path.display()).into());
        let Ready { model: mut described, rewritten, inputs, outputs, guards } = ready;
        let mut options = ModelOptions::with_all_ops();
        // rten maps external data itself, but only from files beside the model that are named like data; engine
        // directories hold nothing else. It follows a link to the model first, and would find, or miss, data there that
        // are not the ones that were checked.
        let real = std::fs::canonicalize(path).map_err(|error| load(error.to_string()))?;
        let mappable = |file: &String| {
            let data = std::fs::canonicalize(path.with_file_name(file));
            !file.contains('/') && file.ends_with(".data") && data.is_ok_and(|data| data.parent() == real.parent())
        };
        let model = if rewritten || !described.external_files().iter().all(mappable) {
            for (old, new) in described.flatten_external() {
                let data = path.with_file_name(old);
                let bytes = std::fs::read(&data).map_err(|error| load(format!("{}: {error}", data.display())))?;
                options.external_data(&new, bytes);
            }
            options.load(described.to_bytes().map_err(|error| BackendError::Load(error.into()))?)
        } else {
            options.load_file(path)
        };
        let model = model.map_err(|error| load(error.to_string()))?;
        let id = |name: &String| model.node_id(name).map_err(|error| load(error.to_string()));
        let ids = |specs: &[TensorSpec]| specs.iter().map(|spec| id(&spec.name)).collect::<Result<Vec<NodeId>, _>>();
        let input_ids = ids(&inputs)?;
        let mut output_ids = ids(&outputs)?;
        for guard in &guards {
            output_ids.push(id(&guard.output)?);
        }
        Ok(Self { input_ids, output_ids, inputs, outputs, guards, model, depth })
    }
}

struct CpuSession {
    model: Model,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    input_ids: Vec<NodeId>,
    /// The outputs, then the guards' outputs.
    output_ids: Vec<NodeId>,
    guards: Vec<onnx::Guard>,
    /// Longest chain of nodes.
    depth: usize,
}

impl Session for CpuSession {
    fn info(&self) -> BackendInfo {
        info()
    }

    fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError> {
        check_inputs(&self.inputs, inputs)?;
        guard::guarded(self.depth, BackendError::Run, || self.compute(inputs))
    }
}

impl CpuSession {
    fn compute(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError> {
        let mut values = Vec::with_capacity(inputs.len());
        for ((id, spec), tensor) in self.input_ids.iter().zip(&self.inputs).zip(inputs) {
            values.push((*id, ValueOrView::Value(to_rten(&spec.name, tensor)?)));
        }
        let results = self
            .model
            .run(values, &self.output_ids, Some(RunOptions::default()))
            .map_err(|error| BackendError::Run(format!("CPU reference: {error}").into()))?;
        let mut results = results.into_iter();
        let outputs = self.outputs.iter().zip(results.by_ref());
        let outputs = outputs.map(|(spec, value)| from_rten(spec, value)).collect::<Result<Vec<Tensor>, _>>()?;
        for (guard, value) in self.guards.iter().zip(results) {
            if let Value::FloatTensor(largest) = value
                && largest.iter().any(|largest| *largest >= onnx::GUARD_LIMIT)
            {
                let message =
                    format!("CPU reference: {}: an int64 result is beyond int32, which is computed in", guard.node);
                return Err(BackendError::Run(message.into()));
            }
        }
        Ok(outputs)
    }
}

fn to_rten(name: &str, tensor: &Tensor) -> Result<Value, BackendError> {
    let shape = tensor.shape();
    fn wrap<T>(shape: &[usize], data: Vec<T>) -> Value
    where
        Value: From<rten_tensor::Tensor<T>>,
    {
        rten_tensor::Tensor::from_data(shape, data).into()
    }
    Ok(match tensor.data() {
        TensorData::F32(values) => wrap(shape, values.clone()),
        TensorData::F16(values) => wrap(shape, values.iter().map(|value| value.to_f32()).collect::<Vec<f32>>()),
        TensorData::I8(values) => wrap(shape, values.clone()),
        TensorData::U8(values) => wrap(shape, values.clone()),
        TensorData::I32(values) => wrap(shape, values.clone()),
        TensorData::Bool(values) => wrap(shape, values.iter().map(|value| i32::from(*value)).collect::<Vec<i32>>()),
        TensorData::I64(values) => {
            let narrow = values.iter().map(|value| i32::try_from(*value)).collect::<Result<Vec<i32>, _>>();
            let narrow = narrow.map_err(|_| BackendError::Input {
                name: name.to_owned(),
                message: "an int64 value does not fit the CPU reference's int32".into(),
            })?;
            wrap(shape, narrow)
        }
    })
}

fn from_rten(spec: &TensorSpec, value: Value) -> Result<Tensor, BackendError> {
    let wrong =
        |have: ValueType| BackendError::Run(format!("CPU reference: output {spec} came back as {have:?}").into());
    let have = value.dtype();
    let (shape, data) = match value {
        Value::FloatTensor(tensor) => {
            let shape = tensor.shape().to_vec();
            let values = tensor.into_data();
            match spec.dtype {
                DType::Float32 => (shape, TensorData::F32(values)),
                DType::Float16 => (shape, TensorData::F16(values.into_iter().map(f16::from_f32).collect())),
                _ => return Err(wrong(have)),
            }
        }
        Value::Int32Tensor(tensor) => {
            let shape = tensor.shape().to_vec();
            let values = tensor.into_data();
            match spec.dtype {
                DType::Int32 => (shape, TensorData::I32(values)),
                DType::Int64 => (shape, TensorData::I64(values.into_iter().map(i64::from).collect())),
                DType::Bool => {
                    (shape, TensorData::Bool(values.into_iter().map(|value| u8::from(value != 0)).collect()))
                }
                _ => return Err(wrong(have)),
            }
        }
        Value::Int8Tensor(tensor) if spec.dtype == DType::Int8 => {
            (tensor.shape().to_vec(), TensorData::I8(tensor.into_data()))
        }
        Value::UInt8Tensor(tensor) if spec.dtype == DType::UInt8 => {
            (tensor.shape().to_vec(), TensorData::U8(tensor.into_data()))
        }
        _ => return Err(wrong(have)),
    };
    Tensor::new(shape, data).ok_or_else(|| wrong(ValueType::Tensor(DataType::Float)))
}
