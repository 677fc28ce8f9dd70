//! A plan loaded on the GPU, with one device buffer per input and output, and one stream. From the second run with the
//! same shapes it is replayed as a CUDA graph, which saves launching its kernels one by one.

use std::collections::HashMap;
use std::time::Instant;

use cudarc::driver::{CudaSlice, DevicePtr, DriverError, sys};

use super::Version;
use super::device::Device;
use super::graph::Graph;
use super::shim;
use crate::backend::{BackendError, BackendInfo, Samples, Session, check_inputs};
use crate::tensor::{DType, Tensor, TensorSpec, element_count};

/// TensorRT's DataType by number (NvInferRuntimeBase.h; the list has only grown).
const DTYPES: [Option<DType>; 9] = [
    Some(DType::Float32),
    Some(DType::Float16),
    Some(DType::Int8),
    Some(DType::Int32),
    Some(DType::Bool),
    Some(DType::UInt8),
    None, // FP8
    Some(DType::BFloat16),
    Some(DType::Int64),
];

pub(super) struct TrtSession {
    version: Version,
    device: Device,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    /// The bound shapes and the captured graph. Dropped before the buffers that they refer to.
    bound: Bound,
    /// Device buffers by tensor name; they grow with the shapes.
    buffers: HashMap<String, CudaSlice<u8>>,
    /// Declared last, so that it is destroyed after the buffers' addresses are out of use.
    session: shim::TrtContext,
}

/// An engine bound to one set of input shapes.
#[derive(Default)]
struct Bound {
    /// Shapes of the inputs; empty before the first run.
    shapes: Vec<Vec<usize>>,
    /// Indices of outputs whose size depends on values.
    unsized_outputs: Vec<usize>,
    launch: Launch,
}

#[derive(Default)]
enum Launch {
    /// Not run yet with these shapes.
    #[default]
    Fresh,
    /// Run once, which engines need before they can be captured.
    Warm,
    Graph(Graph),
    /// Cannot be captured.
    Plain,
}

fn run_error(error: impl std::fmt::Display) -> BackendError {
    BackendError::Run(error.to_string().into())
}

impl TrtSession {
    pub(super) fn new(version: Version, device: Device, session: shim::TrtContext) -> Result<Self, BackendError> {
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for tensor in session.io().map_err(|error| BackendError::Load(error.into()))? {
            let number = usize::try_from(tensor.dtype).unwrap_or(usize::MAX);
            let dtype = DTYPES.get(number).copied().flatten().ok_or_else(|| {
                let message = format!("tensor `{}` has TensorRT type {number}, which is not supported", tensor.name);
                BackendError::Load(message.into())
            })?;
            let shape = tensor.shape.iter().map(|dim| usize::try_from(*dim).ok()).collect();
            let list = if tensor.is_input { &mut inputs } else { &mut outputs };
            list.push(TensorSpec { name: tensor.name, dtype, shape });
        }
        Ok(Self { version, device, inputs, outputs, bound: Bound::default(), buffers: HashMap::new(), session })
    }

    /// Sets shapes and addresses, and allocates the buffers; returns the outputs as zeros.
    fn bind(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError> {
        check_inputs(&self.inputs, inputs)?;
        let Self { device, inputs: input_specs, outputs: output_specs, bound, buffers, session, .. } = self;
        let same = bound.shapes.iter().map(Vec::as_slice).eq(inputs.iter().map(Tensor::shape));
        if !same {
            // Before buffers move: a graph refers to them.
            *bound = Bound::default();
        }
        for (spec, tensor) in input_specs.iter().zip(inputs) {
            let dims: Vec<i64> = tensor.shape().iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect();
            if same {
                continue;
            }
            let address = place(device, buffers, &spec.name, tensor.bytes().len())?;
            session
                .bind(&spec.name, &dims, address)
                .map_err(|error| BackendError::Input { name: spec.name.clone(), message: error.into() })?;
        }
        let mut outputs = Vec::with_capacity(output_specs.len());
        for (at, spec) in output_specs.iter().enumerate() {
            let dims = session.shape(&spec.name).map_err(run_error)?;
            let known: Result<Vec<usize>, _> = dims.iter().map(|dim| usize::try_from(*dim)).collect();
            let shape = match (known, same) {
                (Ok(shape), true) => shape,
                (Ok(shape), false) => {
                    let bytes = element_count(&shape).and_then(|count| count.checked_mul(spec.dtype.size()));
                    let bytes = bytes.ok_or_else(|| run_error(format!("output `{}` is too large", spec.name)))?;
                    let address = place(device, buffers, &spec.name, bytes)?;
                    session.bind(&spec.name, &[], address).map_err(run_error)?;
                    shape
                }
                (Err(_), _) => {
                    if !same {
                        make_room(device, buffers, session, &spec.name)?;
                        bound.unsized_outputs.push(at);
                        // Nothing that is read on the host can be captured.
                        bound.launch = Launch::Plain;
                    }
                    vec![0]
                }
            };
            let tensor = Tensor::zeros(spec.dtype, shape);
            outputs.push(tensor.ok_or_else(|| run_error(format!("output {spec} has a type the host cannot hold")))?);
        }
        bound.shapes = inputs.iter().map(|input| input.shape().to_vec()).collect();
        Ok(outputs)
    }

    fn upload(&mut self, inputs: &[Tensor]) -> Result<(), BackendError> {
        for (spec, tensor) in self.inputs.iter().zip(inputs) {
            if let Some(buffer) = self.buffers.get_mut(&spec.name)
                && !tensor.bytes().is_empty()
            {
                self.device.stream.memcpy_htod(tensor.bytes(), buffer).map_err(run_error)?;
            }
        }
        Ok(())
    }

    fn download(&mut self, outputs: &mut [Tensor]) -> Result<(), BackendError> {
        for at in &self.bound.unsized_outputs {
            let (Some(spec), Some(output)) = (self.outputs.get(*at), outputs.get_mut(*at)) else { continue };
            let dims = self.session.written_shape(&spec.name).map_err(run_error)?;
            let shape = dims.iter().map(|dim| usize::try_from(*dim)).collect::<Result<Vec<_>, _>>();
            let tensor = shape.ok().and_then(|shape| Tensor::zeros(spec.dtype, shape));
            *output = tensor.ok_or_else(|| run_error(format!("output `{}` was not computed", spec.name)))?;
        }
        for (spec, tensor) in self.outputs.iter().zip(outputs) {
            let bytes = tensor.bytes_mut();
            if let Some(buffer) = self.buffers.get(&spec.name)
                && !bytes.is_empty()
            {
                self.device.stream.memcpy_dtoh(&buffer.slice(..bytes.len()), bytes).map_err(run_error)?;
            }
        }
        self.device.stream.synchronize().map_err(run_error)
    }

    fn enqueue(&mut self) -> Result<(), BackendError> {
        let Self { device, bound, session, .. } = self;
        let stream = device.stream.cu_stream() as usize;
        let mut plain = || session.enqueue(stream).map_err(run_error);
        match &bound.launch {
            Launch::Graph(graph) => return graph.launch(),
            Launch::Plain => return plain(),
            Launch::Fresh => {
                plain()?;
                bound.launch = Launch::Warm;
                return Ok(());
            }
            Launch::Warm => {}
        }
        // TensorRT refuses to be captured where it works on the host in between.
        match Graph::capture(&device.stream, &mut plain) {
            Ok(graph) => {
                graph.launch()?;
                bound.launch = Launch::Graph(graph);
                Ok(())
            }
            Err(_) => {
                bound.launch = Launch::Plain;
                plain()
            }
        }
    }
}

/// Gives a tensor `bytes` of device memory (at least one, so that it has an address), and returns the address.
fn place(
    device: &Device,
    buffers: &mut HashMap<String, CudaSlice<u8>>,
    name: &str,
    bytes: usize,
) -> Result<usize, BackendError> {
    let stream = &device.stream;
    if buffers.get(name).is_none_or(|buffer| buffer.len() < bytes) {
        // Poison: an output TensorRT fails to write must not look like an answer. All ones is a NaN.
        let buffer = stream.clone_htod(&vec![0xff_u8; bytes.max(1)]).map_err(|error: DriverError| {
            run_error(format!("no device memory for `{name}` ({bytes} bytes): {error}"))
        })?;
        buffers.insert(name.to_owned(), buffer);
    }
    let buffer = buffers.get(name).ok_or_else(|| run_error(format!("no buffer for `{name}`")))?;
    usize::try_from(buffer.device_ptr(stream).0).map_err(run_error)
}

/// Gives an output whose size depends on values as much memory as it can need.
fn make_room(
    device: &Device,
    buffers: &mut HashMap<String, CudaSlice<u8>>,
    session: &mut shim::TrtContext,
    name: &str,
) -> Result<(), BackendError> {
    let unknown = || run_error(format!("TensorRT knows no bound for the size of output `{name}`"));
    let bytes = session.most_bytes(name).ok_or_else(unknown)?;
    let address = place(device, buffers, name, bytes)?;
    session.give_room(name, address, bytes).map_err(run_error)
}

impl Session for TrtSession {
    fn info(&self) -> BackendInfo {
        BackendInfo { name: self.version.to_string(), device: self.device.description() }
    }

    fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError> {
        let mut outputs = self.bind(inputs)?;
        self.upload(inputs)?;
        self.enqueue()?;
        self.download(&mut outputs)?;
        Ok(outputs)
    }

    fn measure(&mut self, inputs: &[Tensor], warmup: usize, iterations: usize) -> Result<Samples, BackendError> {
        let mut outputs = self.bind(inputs)?;
        let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let start = self.device.context.new_event(timed).map_err(run_error)?;
        let end = self.device.context.new_event(timed).map_err(run_error)?;
        let mut samples = Samples::default();
        for iteration in 0..warmup + iterations {
            let began = Instant::now();
            self.upload(inputs)?;
            start.record(&self.device.stream).map_err(run_error)?;
            self.enqueue()?;
            end.record(&self.device.stream).map_err(run_error)?;
            self.download(&mut outputs)?;
            if iteration >= warmup {
                samples.end_to_end_ms.push(began.elapsed().as_secs_f64() * 1e3);
                samples.compute_ms.push(f64::from(start.elapsed_ms(&end).map_err(run_error)?));
            }
        }
        Ok(samples)
    }
}
