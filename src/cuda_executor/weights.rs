//! Uploads weights from the mapped file to the device, in the layout that the engines need.
//!
//! A tensor is uploaded in pieces (`staging.rs`) as it is stored, then transposed and converted on the device; GGUF
//! blocks are decoded on the host. Uploaded pages are dropped from the page cache: on a Jetson they would take the same
//! memory a second time.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::aux_kernels::{AuxKernels, Conversion, Elements, Transposition};
use super::buffers::{Buffer, Pinned};
use super::driver::{kind, word};
use super::matrix::Matrix;
use super::packed_tiles::{MatrixSize, PackedLayout, Strips, TileKinds};
use super::staging::{PIECE, Staging};
use crate::backend::BackendError;
use crate::backend::tensorrt::device::{free_memory, is_integrated};
use crate::checkpoint::{Checkpoint, CheckpointError, View};
use crate::convert::{Part, Role, Transformer, Weight};
use crate::diagnostic::Diagnostic;
use crate::executor::LlmError;
use crate::memory::{self, Memory};
use crate::tensor::DType;

/// Uploaded bytes of a tensor after which pages are dropped; each drop stalls all cores for a moment.
const WINDOW: usize = 64 << 20;

/// All weights on the device.
pub(super) struct DeviceWeights {
    /// Weights by layer, in the order of [`Transformer::layer_weights`].
    pub(super) layers: Vec<Vec<Matrix>>,
    roles: Vec<Role>,
    /// The last norm, `[hidden]` in float32.
    pub(super) norm: Buffer,
    /// The output matrix, `[hidden, vocabulary]`.
    pub(super) output: Matrix,
}

impl DeviceWeights {
    pub(super) fn bytes(&self) -> usize {
        let layers: usize = self.layers.iter().flatten().map(Matrix::bytes).sum();
        layers + self.norm.len() + self.output.bytes()
    }

    /// Whether any weight is packed.
    pub(super) fn are_packed(&self) -> bool {
        self.layers.iter().flatten().any(|matrix| matches!(matrix, Matrix::Packed { .. }))
    }

    /// A layer's weight with this role, if it has one.
    pub(super) fn of(&self, layer: usize, role: Role) -> Option<&Matrix> {
        let at = self.roles.iter().position(|have| *have == role)?;
        self.layers.get(layer)?.get(at)
    }
}

/// The layout in which these parts stay packed, if they can.
fn packed(checkpoint: &Checkpoint, parts: &[Part], columns: usize) -> Result<Option<PackedLayout>, CheckpointError> {
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
    Ok(PackedLayout::of(&integers, MatrixSize { inputs: columns, outputs: rows }))
}

/// The kinds of tiles of a model's packed matrices.
pub(super) fn kinds_of_tiles(checkpoint: &Checkpoint, model: &Transformer) -> Result<TileKinds, CheckpointError> {
    let layers = (0..model.layers.len()).flat_map(|index| model.layer_weights(index));
    let matrices = layers.filter(|weight| weight.role.is_matrix()).map(|weight| (weight.parts, weight.columns));
    let mut kinds = TileKinds::default();
    for (parts, columns) in matrices.chain([(vec![model.output_matrix()], model.hidden_size)]) {
        packed(checkpoint, &parts, columns)?.into_iter().for_each(|layout| kinds.add(layout));
    }
    Ok(kinds)
}

/// The type of a tensor's elements, if it is uploaded as stored.
fn plain(view: &View) -> Option<DType> {
    view.encoding.dtype().filter(|_| view.is_in_order())
}

/// Splits a tensor's rows into pieces of at most `piece` bytes; in multiples of the transposing kernel's tile, if
/// possible.
fn pieces(view: &View, piece: usize) -> Vec<Range<usize>> {
    let row = view.columns() * plain(view).map_or(4, DType::size);
    let (rows, fit) = (view.rows(), (piece / row.max(1)).max(1));
    let step = if fit >= 32 { fit / 32 * 32 } else { fit };
    (0..rows).step_by(step).map(|first| first..rows.min(first + step)).collect()
}

/// Source and settings of the upload.
#[derive(Clone, Copy)]
pub(super) struct WeightSource<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) model: &'a Transformer,
    pub(super) kernels: &'a AuxKernels,
    pub(super) stream: &'a Arc<CudaStream>,
    /// Arithmetic type of the engines.
    pub(super) dtype: DType,
    /// Whether integers stay packed.
    pub(super) keep_packed: bool,
}

/// Sizes of an upload.
struct UploadSizes {
    /// Bytes in the files.
    stored: u64,
    /// Bytes on the device.
    loaded: usize,
    /// Bytes of a staging piece.
    piece: usize,
}

fn sizes(source: &WeightSource<'_>) -> Result<UploadSizes, LlmError> {
    let WeightSource { checkpoint, model, dtype, keep_packed, .. } = *source;
    let layers = (0..model.layers.len()).flat_map(|index| model.layer_weights(index));
    let inner = layers.map(|weight| (weight.role.is_matrix(), weight.parts, weight.columns));
    let outer =
        [(true, vec![model.output_matrix()], model.hidden_size), (false, vec![model.final_norm()], model.hidden_size)];
    let mut sizes = UploadSizes { stored: 0, loaded: 0, piece: PIECE };
    for (is_matrix, parts, columns) in inner.chain(outer) {
        let mut elements = 0;
        for part in &parts {
            let view = checkpoint.expect(&part.tensor, &part.shape)?;
            sizes.stored += view.bytes.len() as u64;
            sizes.piece = sizes.piece.max(view.columns() * plain(&view).map_or(4, DType::size));
            elements += view.rows() * view.columns();
        }
        let layout = if is_matrix && keep_packed { packed(checkpoint, &parts, columns)? } else { None };
        sizes.piece = sizes.piece.max(layout.map_or(0, PackedLayout::strip_bytes));
        // Norms are float32, and small.
        sizes.loaded += layout.map_or(elements * dtype.size(), PackedLayout::bytes);
    }
    Ok(sizes)
}

/// Refuses weights that cannot fit on an integrated device: there the allocation succeeds, and the kernel's
/// out-of-memory killer ends a process when the memory is filled. On others the allocation fails.
fn check_room(stream: &CudaStream, sizes: &UploadSizes) -> Result<(), BackendError> {
    let context = stream.context();
    let Some(free) = free_memory(context).filter(|_| is_integrated(context)) else { return Ok(()) };
    // Other programs may go to a swap file; compressed memory holds no weights.
    let swap = Memory::of_this_machine().map_or(0, |memory| memory.disk_swap);
    let wanted = (sizes.loaded + 3 * sizes.piece) as u64;
    if wanted <= free.saturating_add(swap) {
        return Ok(());
    }
    let (wanted, free) = (memory::format_bytes(wanted), memory::format_bytes(free));
    let what = format!("the weights take {wanted}, {free} is free of the memory that CPU and GPU share");
    Err(BackendError::Run(Diagnostic::new(what).with_help(
        "close other programs, or take a smaller model or one of 4 bits; `watus-build doctor` says what memory there is",
    )))
}

struct WeightLoader<'a> {
    source: WeightSource<'a>,
    staging: Staging,
    /// Number of values out of range.
    bad: Buffer,
    count: Pinned,
    /// Bytes of the file uploaded so far.
    done: u64,
}

/// Uploads all weights; `progress` is called with the bytes so far, and in total.
pub(super) fn load(source: WeightSource<'_>, progress: &mut dyn FnMut(u64, u64)) -> Result<DeviceWeights, LlmError> {
    let WeightSource { checkpoint, model, stream, .. } = source;
    let sizes = sizes(&source)?;
    check_room(stream, &sizes)?;
    let mut loader = WeightLoader {
        source,
        staging: Staging::new(stream, sizes.piece)?,
        bad: Buffer::new(stream, 4, "a counter")?,
        count: Pinned::new(stream, 4)?,
        done: 0,
    };
    let mut layers = Vec::new();
    for index in 0..model.layers.len() {
        let weights = model.layer_weights(index);
        layers.push(weights.iter().map(|weight| loader.weight(weight)).collect::<Result<Vec<_>, _>>()?);
        loader.check(weights.iter().flat_map(|weight| &weight.parts))?;
        progress(loader.done, sizes.stored);
    }
    let norm = loader.vector(&[model.final_norm()], model.hidden_size, DType::Float32, model.norm_offset)?;
    let matrix = model.output_matrix();
    let output = loader.matrix(std::slice::from_ref(&matrix), model.vocab_size, model.hidden_size)?;
    loader.check([&model.final_norm(), &matrix])?;
    progress(sizes.stored, sizes.stored);
    checkpoint.release_all();
    let roles = model.layer_weights(0).iter().map(|weight| weight.role).collect();
    Ok(DeviceWeights { layers, roles, norm, output })
}

impl WeightLoader<'_> {
    fn weight(&mut self, weight: &Weight) -> Result<Matrix, LlmError> {
        if weight.role.is_matrix() {
            return self.matrix(&weight.parts, weight.rows, weight.columns);
        }
        let norm = weight.role.is_norm();
        let (dtype, offset) =
            if norm { (DType::Float32, self.source.model.norm_offset) } else { (self.source.dtype, 0.0) };
        Ok(Matrix::Plain(self.vector(&weight.parts, weight.columns, dtype, offset)?))
    }

    /// Uploads parts packed, if they can stay so; they are laid out in the staging buffer.
    fn packed(&mut self, parts: &[Part], columns: usize) -> Result<Option<Matrix>, LlmError> {
        let Some(layout) = packed(self.source.checkpoint, parts, columns)?.filter(|_| self.source.keep_packed) else {
            return Ok(None);
        };
        let views = parts.iter().map(|part| self.source.checkpoint.expect(&part.tensor, &part.shape));
        let views = views.collect::<Result<Vec<_>, _>>()?;
        let integers: Vec<_> = views.iter().filter_map(|view| view.integers()).collect();
        let rows: Vec<usize> = views.iter().map(View::rows).collect();
        let Some(strips) = Strips::new(&integers, &rows, layout) else { return Ok(None) };
        // Overwritten strip by strip, those that fill it up to an even number too.
        let mut tiles = Buffer::unset(self.source.stream, layout.bytes(), "the weights")?;
        let size = layout.strip_bytes();
        let step = (self.staging.piece() / size).max(1);
        let mut kept = vec![0; views.len()];
        for first in (0..layout.strips()).step_by(step) {
            let count = step.min(layout.strips() - first);
            if !strips.fill(first, self.staging.room(count * size)?) {
                return Ok(None);
            }
            self.staging.send_to(&mut tiles, first * size, count * size)?;
            for (part, (view, kept)) in views.iter().zip(&mut kept).enumerate() {
                self.let_go(view, kept, strips.rows_before(part, first + count));
            }
        }
        let order = match &strips.order {
            Some(order) => {
                let bytes: Vec<u8> = order.iter().flat_map(|input| word(*input).to_le_bytes()).collect();
                let mut buffer = Buffer::unset(self.source.stream, bytes.len(), "the weights")?;
                buffer.upload(&bytes)?;
                Some(buffer)
            }
            None => None,
        };
        self.done += views.iter().map(|view| view.bytes.len() as u64).sum::<u64>();
        Ok(Some(Matrix::Packed { tiles, order, layout }))
    }

    /// Uploads parts of `[rows, columns]` side by side as `[columns, all rows]`, or packed.
    fn matrix(&mut self, parts: &[Part], rows: usize, columns: usize) -> Result<Matrix, LlmError> {
        if let Some(packed) = self.packed(parts, columns)? {
            return Ok(packed);
        }
        // Overwritten column by column: the parts have all rows.
        let buffer = Buffer::unset(self.source.stream, rows * columns * self.source.dtype.size(), "the weights")?;
        let mut first = 0;
        for part in parts {
            let view = self.source.checkpoint.expect(&part.tensor, &part.shape)?;
            let mut kept = 0;
            for piece in pieces(&view, self.staging.piece()) {
                let from = self.stage(&view, &piece)?;
                let from = Elements { address: self.staging.address(), dtype: from };
                let to = Elements { address: buffer.address(), dtype: self.source.dtype };
                let shape = Transposition { rows: piece.len(), columns, stride: rows, first };
                self.source.kernels.transpose(from, to, shape, self.bad.address())?;
                first += piece.len();
                self.let_go(&view, &mut kept, piece.end);
            }
        }
        filled(first, rows, "rows")?;
        Ok(Matrix::Plain(buffer))
    }

    /// Uploads vectors, one after the other.
    fn vector(&mut self, parts: &[Part], size: usize, dtype: DType, offset: f32) -> Result<Buffer, LlmError> {
        // Overwritten element by element: the parts have all of them.
        let buffer = Buffer::unset(self.source.stream, size * dtype.size(), "the weights")?;
        let mut first = 0;
        for part in parts {
            let view = self.source.checkpoint.expect(&part.tensor, &part.shape)?;
            let mut kept = 0;
            for piece in pieces(&view, self.staging.piece()) {
                let count = piece.len() * view.columns();
                let from = self.stage(&view, &piece)?;
                let from = Elements { address: self.staging.address(), dtype: from };
                let to = Elements { address: buffer.address(), dtype };
                self.source.kernels.convert(
                    from,
                    to,
                    Conversion { count, first, scale: 1.0, offset },
                    self.bad.address(),
                )?;
                first += count;
                self.let_go(&view, &mut kept, piece.end);
            }
        }
        filled(first, size, "elements")?;
        Ok(buffer)
    }

    /// Stages rows of a tensor as stored, or as float32 if they are in blocks or in another order.
    fn stage(&mut self, view: &View, rows: &Range<usize>) -> Result<DType, LlmError> {
        let elements = rows.len() * view.columns();
        self.done += (view.bytes.len() / view.rows() * rows.len()) as u64;
        if let Some(dtype) = plain(view) {
            let (first, bytes) = (rows.start * view.columns() * dtype.size(), elements * dtype.size());
            let room = self.staging.room(bytes)?;
            self.source.checkpoint.files()[view.file].read(view.offset + first, room)?;
            self.staging.send(bytes)?;
            return Ok(dtype);
        }
        view.read(rows.start, bytemuck::cast_slice_mut(self.staging.room(4 * elements)?));
        self.staging.send(4 * elements)?;
        Ok(DType::Float32)
    }

    /// Drops the pages of rows `kept..to` of a tensor, if they are enough, or the last.
    fn let_go(&self, view: &View, kept: &mut usize, to: usize) {
        let bytes = to.saturating_sub(*kept).saturating_mul(view.bytes.len() / view.rows());
        if *kept < to && (bytes >= WINDOW || to == view.rows()) {
            self.source.checkpoint.release(view, *kept..to);
            *kept = to;
        }
    }

    /// Fails if a value so far was not finite or out of the engine type's range; finds the tensor on the host.
    fn check<'p>(&mut self, parts: impl IntoIterator<Item = &'p Part>) -> Result<(), LlmError> {
        self.bad.download(&mut self.count, 0, 4)?;
        if self.count.bytes()?[..4] == [0; 4] {
            return Ok(());
        }
        let limit = if kind(self.source.dtype) == 1 { half::f16::MAX.to_f32() } else { f32::MAX };
        for part in parts {
            let view = self.source.checkpoint.expect(&part.tensor, &part.shape)?;
            let mut row = vec![0.0; view.columns()];
            for index in 0..view.rows() {
                view.read_row(index, &mut row);
                // Written so that a NaN is out of range too.
                if let Some(at) = row.iter().position(|value| value.abs().partial_cmp(&limit).is_none_or(|o| o.is_gt()))
                {
                    let at = (index * view.columns() + at, row[at]);
                    if at.1.is_finite() {
                        let message = format!(
                            "tensor `{}` holds {} at element {}, too large for float16",
                            part.tensor, at.1, at.0
                        );
                        let path = self.source.checkpoint.files()[view.file].path();
                        let error = CheckpointError::new(path, message).with_help("build with `precision: bf16`");
                        return Err(error.into());
                    }
                    return Err(crate::executor::not_finite(self.source.checkpoint, &view, at.0, at.1).into());
                }
            }
        }
        Err(LlmError::Backend(BackendError::Run(
            "a weight is not finite on the device, though it is in the file".into(),
        )))
    }
}

/// Checks that a buffer was filled completely.
fn filled(have: usize, wanted: usize, what: &str) -> Result<(), BackendError> {
    match have == wanted {
        true => Ok(()),
        false => Err(BackendError::Run(format!("a weight of {wanted} {what} has parts of {have}").into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_every_row_once_and_are_read_as_they_lie() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llm/llama");
        let paths: Vec<_> = ["config.json", "model.safetensors"].iter().map(|name| folder.join(name)).collect();
        let checkpoint = Checkpoint::open(&paths).unwrap();
        for name in checkpoint.names() {
            let view = checkpoint.tensor(name).unwrap();
            let row = view.columns() * plain(&view).unwrap().size();
            for piece in [row, 3 * row, 70 * row + 1, PIECE] {
                let mut read = Vec::new();
                for rows in pieces(&view, piece) {
                    assert!(!rows.is_empty() && rows.len() * row <= piece, "{name}: {rows:?} in {piece} bytes");
                    assert_eq!(read.len(), rows.start * row, "{name}");
                    let mut bytes = vec![0; rows.len() * row];
                    checkpoint.files()[view.file].read(view.offset + rows.start * row, &mut bytes).unwrap();
                    read.extend(bytes);
                }
                assert!(read == view.bytes, "{name} in pieces of {piece} bytes");
            }
        }
    }
}
