//! Dequantises packed matrices for the engines, on a stream of its own, a layer ahead; once for all passes of a sweep.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream};

use super::buffers::Buffer;
use super::decode_kernel::DecodeKernel;
use super::driver::{Address, device_error};
use super::matrix::{Matrix, WeightsAt};
use super::weights::DeviceWeights;
use crate::backend::BackendError;
use crate::backend::tensorrt::device::Device;

/// Buffers and events of the dequantisation.
pub(super) struct Unpacker {
    kernel: Arc<DecodeKernel>,
    stream: Arc<CudaStream>,
    engines: Arc<CudaStream>,
    /// Buffers of even and odd layers.
    sets: [UnpackedLayer; 2],
}

/// Buffers of a layer's matrices, by index: `[inputs, outputs]` in float16.
struct UnpackedLayer {
    matrices: Vec<Buffer>,
    /// Recorded when the matrices are dequantised.
    ready: CudaEvent,
    /// Recorded when the engines have read them.
    free: CudaEvent,
}

impl Unpacker {
    pub(super) fn new(
        device: &Device,
        kernel: Arc<DecodeKernel>,
        weights: &DeviceWeights,
    ) -> Result<Self, BackendError> {
        let bytes = |at: usize| {
            let bytes = weights.layers.iter().map(|layer| match &layer[at] {
                Matrix::Plain(_) => 0,
                Matrix::Packed { layout, .. } => 2 * layout.inputs * layout.outputs,
            });
            bytes.max().unwrap_or(0)
        };
        // Unpacked as a whole before each use.
        let buffer = |at: usize| Buffer::unset(&device.stream, bytes(at), "unpacked weights");
        let set = || {
            let matrices = (0..weights.layers.first().map_or(0, Vec::len)).map(buffer).collect::<Result<_, _>>()?;
            let event = || device.context.new_event(None).map_err(device_error);
            Ok::<_, BackendError>(UnpackedLayer { matrices, ready: event()?, free: event()? })
        };
        let sets = [set()?, set()?];
        let stream = device.context.new_stream().map_err(device_error)?;
        Ok(Self { kernel, stream, engines: Arc::clone(&device.stream), sets })
    }

    pub(super) fn bytes(&self) -> usize {
        self.sets.iter().flat_map(|set| &set.matrices).map(Buffer::len).sum()
    }

    /// Starts a sweep over the layers.
    pub(super) fn begin(&self, weights: &DeviceWeights) -> Result<(), BackendError> {
        for set in &self.sets {
            set.free.record(&self.engines).map_err(device_error)?;
        }
        self.unpack(weights, 0)
    }

    /// Before a layer's engines: makes them wait for its matrices, and starts the next layer's, if it is one of `layers`.
    pub(super) fn enter(&self, weights: &DeviceWeights, layer: usize, layers: usize) -> Result<(), BackendError> {
        if layer + 1 < layers {
            self.unpack(weights, layer + 1)?;
        }
        self.engines.wait(&self.sets[layer % 2].ready).map_err(device_error)
    }

    /// After a layer's engines: its buffers may be overwritten.
    pub(super) fn leave(&self, layer: usize) -> Result<(), BackendError> {
        self.sets[layer % 2].free.record(&self.engines).map_err(device_error)
    }

    fn unpack(&self, weights: &DeviceWeights, layer: usize) -> Result<(), BackendError> {
        let Some(matrices) = weights.layers.get(layer) else { return Ok(()) };
        let set = &self.sets[layer % 2];
        self.stream.wait(&set.free).map_err(device_error)?;
        for (matrix, out) in matrices.iter().zip(&set.matrices) {
            if let WeightsAt::Packed(matrix) = matrix.addresses() {
                self.kernel.dequantize(&self.stream, matrix, out.address())?;
            }
        }
        set.ready.record(&self.stream).map_err(device_error)
    }

    /// Address of the matrix with index `at` in a layer.
    pub(super) fn address(&self, layer: usize, at: usize) -> Address {
        self.sets[layer % 2].matrices[at].address()
    }
}
