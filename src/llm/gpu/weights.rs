//! Weights from the mapped file to the device, laid out as the engines want them.
//!
//! A tensor's bytes go up as they are and are transposed and converted there; at no time does the host hold a copy of
//! more than one block-quantised tensor.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::buffers::{Buffer, Pinned};
use super::kernels::{Address, Kernels, kind, word};
use super::step::Kinds;
use super::tiles::{self, Layout};
use crate::backend::BackendError;
use crate::checkpoint::{Checkpoint, CheckpointError, View};
use crate::convert::{Part, Role, Transformer, Weight};
use crate::llm::executor::LlmError;
use crate::tensor::DType;

/// A weight on the device.
pub(super) enum Matrix {
    /// A matrix `[inputs, outputs]`, or a vector.
    Plain(Buffer),
    /// Small integers in tiles, as the step kernel reads them.
    Packed {
        tiles: Buffer,
        /// uint32: where its inputs are, if not in their place.
        order: Option<Buffer>,
        layout: Layout,
    },
}

impl Matrix {
    pub(super) fn address(&self) -> Address {
        match self {
            Matrix::Plain(buffer) | Matrix::Packed { tiles: buffer, .. } => buffer.address(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Matrix::Plain(buffer) => buffer.len(),
            Matrix::Packed { tiles, order, .. } => tiles.len() + order.as_ref().map_or(0, Buffer::len),
        }
    }
}

/// All weights on the device.
pub(super) struct Weights {
    /// `[layer][weight]`, in the order of [`Transformer::layer_weights`].
    pub(super) layers: Vec<Vec<Matrix>>,
    roles: Vec<Role>,
    /// The last norm's `[hidden]`, float32.
    pub(super) norm: Buffer,
    /// `[hidden, vocabulary]`.
    pub(super) output: Matrix,
}

impl Weights {
    pub(super) fn bytes(&self) -> usize {
        let layers: usize = self.layers.iter().flatten().map(Matrix::bytes).sum();
        layers + self.norm.len() + self.output.bytes()
    }

    /// Whether some stayed packed.
    pub(super) fn are_packed(&self) -> bool {
        self.layers.iter().flatten().any(|matrix| matches!(matrix, Matrix::Packed { .. }))
    }

    /// A layer's weight, if it has such.
    pub(super) fn of(&self, layer: usize, role: Role) -> Option<&Matrix> {
        let at = self.roles.iter().position(|have| *have == role)?;
        self.layers.get(layer)?.get(at)
    }
}

/// How these parts can stay packed, if they can.
fn packed(checkpoint: &Checkpoint, parts: &[Part], columns: usize) -> Result<Option<Layout>, CheckpointError> {
    let mut integers = Vec::new();
    let mut rows = 0;
    for part in parts {
        let view = checkpoint.expect(&part.tensor, &part.shape)?;
        rows += view.rows();
        match view.integers() {
            Some(part) => integers.push(part),
            None => return Ok(None),
        }
    }
    Ok(tiles::layout(&integers, rows, columns))
}

/// What kinds of tiles a model's packed matrices have.
pub(super) fn kinds_of_tiles(checkpoint: &Checkpoint, model: &Transformer) -> Result<Kinds, CheckpointError> {
    let layers = (0..model.layers.len()).flat_map(|index| model.layer_weights(index));
    let matrices = layers.filter(|weight| weight.role.is_matrix()).map(|weight| (weight.parts, weight.columns));
    let mut kinds = Kinds::default();
    for (parts, columns) in matrices.chain([(vec![model.output_matrix()], model.hidden_size)]) {
        packed(checkpoint, &parts, columns)?.into_iter().for_each(|layout| kinds.add(layout));
    }
    Ok(kinds)
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    model: &'a Transformer,
    kernels: &'a Kernels,
    stream: &'a Arc<CudaStream>,
    dtype: DType,
    /// Whether integers stay packed.
    keep: bool,
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
    (dtype, keep): (DType, bool),
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
        keep,
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
    let output = loader.matrix(std::slice::from_ref(&matrix), model.vocab_size, model.hidden_size)?;
    loader.check([&model.final_norm(), &matrix])?;
    progress(total, total);
    // On a Jetson the pages would take the same memory a second time.
    checkpoint.files().iter().for_each(crate::checkpoint::Mapped::release);
    let roles = model.layer_weights(0).iter().map(|weight| weight.role).collect();
    Ok(Weights { layers, roles, norm, output })
}

impl Loader<'_> {
    fn weight(&mut self, weight: &Weight) -> Result<Matrix, LlmError> {
        if weight.role.is_matrix() {
            return self.matrix(&weight.parts, weight.rows, weight.columns);
        }
        let norm = weight.role.is_norm();
        let (dtype, offset) = if norm { (DType::Float32, self.model.norm_offset) } else { (self.dtype, 0.0) };
        Ok(Matrix::Plain(self.vector(&weight.parts, weight.columns, dtype, offset)?))
    }

    /// Parts that stay packed, if they can.
    fn packed(&mut self, parts: &[Part], columns: usize) -> Result<Option<Matrix>, LlmError> {
        let Some(layout) = packed(self.checkpoint, parts, columns)?.filter(|_| self.keep) else { return Ok(None) };
        let views = parts.iter().map(|part| self.checkpoint.expect(&part.tensor, &part.shape));
        let views = views.collect::<Result<Vec<_>, _>>()?;
        let integers: Vec<_> = views.iter().filter_map(|view| view.integers()).collect();
        let rows: Vec<usize> = views.iter().map(View::rows).collect();
        let Some(tiled) = tiles::tile(&integers, &rows, layout) else { return Ok(None) };
        let mut tiles = Buffer::new(self.stream, tiled.bytes.len(), "the weights")?;
        tiles.upload(&tiled.bytes)?;
        let order = match tiled.order {
            Some(order) => {
                let bytes: Vec<u8> = order.iter().flat_map(|input| word(*input).to_le_bytes()).collect();
                let mut buffer = Buffer::new(self.stream, bytes.len(), "the weights")?;
                buffer.upload(&bytes)?;
                Some(buffer)
            }
            None => None,
        };
        self.done += views.iter().map(|view| view.bytes.len() as u64).sum::<u64>();
        Ok(Some(Matrix::Packed { tiles, order, layout: tiled.layout }))
    }

    /// Parts of `[rows, columns]` side by side as `[columns, all rows]`, or packed.
    fn matrix(&mut self, parts: &[Part], rows: usize, columns: usize) -> Result<Matrix, LlmError> {
        if let Some(packed) = self.packed(parts, columns)? {
            return Ok(packed);
        }
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
        Ok(Matrix::Plain(buffer))
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
        self.bad.download(&mut self.count, 0, 4)?;
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
