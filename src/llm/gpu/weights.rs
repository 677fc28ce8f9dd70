//! Weights from the mapped file to the device, laid out as the engines want them.
//!
//! A tensor's bytes go up as they are and are transposed and converted there; at no time does the host hold a copy of
//! more than one block-quantised tensor.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::buffers::{Buffer, Pinned};
use super::kernels::{Kernels, kind};
use crate::backend::BackendError;
use crate::checkpoint::{Checkpoint, CheckpointError, View};
use crate::convert::{Part, Transformer, Weight};
use crate::llm::executor::LlmError;
use crate::tensor::DType;

/// All weights on the device.
pub(super) struct Weights {
    /// `[layer][weight]`, in the order of [`Transformer::layer_weights`].
    pub(super) layers: Vec<Vec<Buffer>>,
    /// The last norm's `[hidden]`, float32.
    pub(super) norm: Buffer,
    /// `[hidden, vocabulary]`, or as the checkpoint has it if tied.
    pub(super) output: Buffer,
}

impl Weights {
    pub(super) fn bytes(&self) -> usize {
        let layers: usize = self.layers.iter().flatten().map(Buffer::len).sum();
        layers + self.norm.len() + self.output.len()
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    model: &'a Transformer,
    kernels: &'a Kernels,
    stream: &'a Arc<CudaStream>,
    dtype: DType,
    /// Raw bytes of one part.
    staging: Buffer,
    /// Count of values out of range.
    bad: Buffer,
    count: Pinned,
    /// Bytes of the file that went up.
    done: u64,
}

/// Loads everything; `progress` hears (bytes so far, bytes in all).
pub(super) fn load(
    checkpoint: &Checkpoint,
    model: &Transformer,
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    dtype: DType,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Weights, LlmError> {
    let layer_parts = (0..model.layers.len()).flat_map(|index| model.layer_weights(index)).flat_map(|w| w.parts);
    let parts: Vec<Part> = layer_parts.chain([model.output_matrix(), model.final_norm()]).collect();
    let (mut largest, mut total) = (0, 0);
    for part in &parts {
        let view = checkpoint.expect(&part.tensor, &part.shape)?;
        let plain = view.encoding.dtype().is_some() && view.is_in_order();
        largest = largest.max(if plain { view.bytes.len() } else { 4 * view.rows() * view.columns() });
        total += view.bytes.len() as u64;
    }
    let mut loader = Loader {
        checkpoint,
        model,
        kernels,
        stream,
        dtype,
        staging: Buffer::new(stream, largest, "a tensor on its way")?,
        bad: Buffer::new(stream, 4, "a counter")?,
        count: Pinned::new(stream, 4)?,
        done: 0,
    };
    let mut layers = Vec::new();
    for index in 0..model.layers.len() {
        let weights = model.layer_weights(index);
        layers.push(weights.iter().map(|weight| loader.weight(weight)).collect::<Result<Vec<_>, _>>()?);
        loader.check(weights.iter().flat_map(|weight| &weight.parts))?;
        progress(loader.done, total);
    }
    let norm = loader.vector(&[model.final_norm()], model.hidden_size, DType::Float32, model.norm_offset)?;
    let matrix = model.output_matrix();
    let output = if model.tied {
        loader.vector(std::slice::from_ref(&matrix), model.vocab_size * model.hidden_size, dtype, 0.0)?
    } else {
        loader.matrix(std::slice::from_ref(&matrix), model.vocab_size, model.hidden_size)?
    };
    loader.check([&model.final_norm(), &matrix])?;
    progress(total, total);
    // On a Jetson the pages would take the same memory a second time.
    checkpoint.files().iter().for_each(crate::checkpoint::Mapped::release);
    Ok(Weights { layers, norm, output })
}

impl Loader<'_> {
    fn weight(&mut self, weight: &Weight) -> Result<Buffer, LlmError> {
        if weight.role.is_matrix() {
            return self.matrix(&weight.parts, weight.rows, weight.columns);
        }
        let norm = weight.role.is_norm();
        let (dtype, offset) = if norm { (DType::Float32, self.model.norm_offset) } else { (self.dtype, 0.0) };
        self.vector(&weight.parts, weight.columns, dtype, offset)
    }

    /// Parts of `[rows, columns]` side by side as `[columns, all rows]`.
    fn matrix(&mut self, parts: &[Part], rows: usize, columns: usize) -> Result<Buffer, LlmError> {
        let buffer = Buffer::new(self.stream, rows * columns * self.dtype.size(), "the weights")?;
        let mut first = 0;
        for part in parts {
            let view = self.checkpoint.expect(&part.tensor, &part.shape)?;
            let from = self.stage(&view)?;
            self.kernels.transpose(
                (self.staging.address(), from),
                (buffer.address(), self.dtype),
                [view.rows(), columns, rows, first],
                self.bad.address(),
            )?;
            first += view.rows();
        }
        Ok(buffer)
    }

    /// Parts one behind the other, in their own layout.
    fn vector(&mut self, parts: &[Part], size: usize, dtype: DType, offset: f32) -> Result<Buffer, LlmError> {
        let buffer = Buffer::new(self.stream, size * dtype.size(), "the weights")?;
        let mut first = 0;
        for part in parts {
            let view = self.checkpoint.expect(&part.tensor, &part.shape)?;
            let count = view.rows() * view.columns();
            let from = self.stage(&view)?;
            let (source, target) = ((self.staging.address(), from), (buffer.address(), dtype));
            self.kernels.convert(source, target, (count, first), (1.0, offset), self.bad.address())?;
            first += count;
        }
        Ok(buffer)
    }

    /// Brings a tensor's elements up, as they are stored or, if that is in blocks, as float32.
    fn stage(&mut self, view: &View) -> Result<DType, BackendError> {
        self.done += view.bytes.len() as u64;
        if let Some(dtype) = view.encoding.dtype().filter(|_| view.is_in_order()) {
            self.staging.upload(view.bytes)?;
            return Ok(dtype);
        }
        let mut values = vec![0.0_f32; view.rows() * view.columns()];
        view.read(0, &mut values);
        self.staging.upload(bytemuck::cast_slice(&values))?;
        Ok(DType::Float32)
    }

    /// Fails if a value so far was not finite, or out of range of the engine's type; finds out which tensor on the host.
    fn check<'p>(&mut self, parts: impl IntoIterator<Item = &'p Part>) -> Result<(), LlmError> {
        self.bad.download(&mut self.count, 4)?;
        if self.count.bytes()?[..4] == [0; 4] {
            return Ok(());
        }
        let limit = if kind(self.dtype) == 1 { half::f16::MAX.to_f32() } else { f32::MAX };
        for part in parts {
            let view = self.checkpoint.expect(&part.tensor, &part.shape)?;
            let mut row = vec![0.0; view.columns()];
            for index in 0..view.rows() {
                view.read_row(index, &mut row);
                // Written so that a NaN is out of range too.
                if let Some(at) = row.iter().position(|value| value.abs().partial_cmp(&limit).is_none_or(|o| o.is_gt()))
                {
                    let at = (index * view.columns() + at, row[at]);
                    if at.1.is_finite() {
                        let message = format!(
                            "tensor `{}` holds {} at element {}, too large for float16\n  hint: build with `precision: bf16`",
                            part.tensor, at.1, at.0
                        );
                        return Err(CheckpointError::new(self.checkpoint.files()[view.file].path(), message).into());
                    }
                    return Err(crate::llm::host::not_finite(self.checkpoint, &view, at.0, at.1).into());
                }
            }
        }
        Err(LlmError::Backend(BackendError::Run(
            "a weight is not finite on the device, though it is in the file".into(),
        )))
    }
}
