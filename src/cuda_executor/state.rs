//! The device memory of a running model: weights, caches, and tensors between engines.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use half::slice::HalfFloatSliceExt;

use super::aux_kernels::{AuxKernels, Conversion, Elements, MaskShape, RotaryRows, RowPositions};
use super::buffers::{Buffer, Pinned, copy};
use super::decode_kernel::abi::BLOCK_ROWS;
use super::driver::{Address, kind, word};
use super::kv_cache::{Capacities, DeviceKvCache};
use super::weights::DeviceWeights;
use crate::backend::BackendError;
use crate::backend::tensorrt::device::Device;
use crate::checkpoint::Checkpoint;
use crate::convert::{LayerShape, LayerTypes, Rope, Transformer};
use crate::executor::{Embedding, LlmError};
use crate::spec::Shapes;
use crate::tensor::DType;

/// A row of a batch: one sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchRow {
    /// Number of cached positions, and of new ones.
    pub(super) cached: usize,
    pub(super) count: usize,
    /// 1 / temperature for sampling its next token.
    pub(super) inverse_temperature: f32,
}

impl Default for BatchRow {
    /// A row without a sequence.
    fn default() -> Self {
        Self { cached: 0, count: 0, inverse_temperature: 1.0 }
    }
}

/// Cosines and sines, `[positions, rotary]` each.
pub(super) struct RopeTable {
    pub(super) cos: Buffer,
    pub(super) sin: Buffer,
}

impl RopeTable {
    /// The table of the first `positions`.
    fn of(rope: &Rope, positions: usize, stream: &Arc<CudaStream>, dtype: DType) -> Result<Self, BackendError> {
        let (cos, sin) = rope.tables(0..positions);
        let table = |values: &[f32]| -> Result<Buffer, BackendError> {
            let mut table = Buffer::unset(stream, values.len() * dtype.size(), "rotary tables")?;
            table.upload(&narrow(values, dtype))?;
            Ok(table)
        };
        Ok(Self { cos: table(&cos)?, sin: table(&sin)? })
    }

    /// Allocates two tables of `bytes` each, not yet written.
    fn unset(bytes: usize, stream: &Arc<CudaStream>) -> Result<Self, BackendError> {
        let rows = || Buffer::unset(stream, bytes, "activations");
        Ok(Self { cos: rows()?, sin: rows()? })
    }
}

/// The mask of a kind of window.
pub(super) struct WindowMask {
    pub(super) window: Option<usize>,
    pub(super) mask: Buffer,
}

/// A loaded model.
pub(super) struct LoadedModel {
    pub(super) checkpoint: Arc<Checkpoint>,
    pub(super) weights: DeviceWeights,
    pub(super) types: LayerTypes,
    /// Most rows of a launch of the decode kernel whose rows are of any slots; 0 if there is none.
    pub(super) shared_rows: usize,
}

/// The device memory. A batch of one uses the slot it is given; in larger batches row b is slot b.
pub(super) struct DeviceState {
    pub(super) device: Device,
    pub(super) kernels: AuxKernels,
    pub(super) model: Transformer,
    pub(super) dtype: DType,
    pub(super) weights: DeviceWeights,
    embedding: Embedding,
    pub(super) cache: DeviceKvCache,
    /// Tables of all positions, by rope.
    pub(super) tables: Vec<RopeTable>,
    pub(super) positions: usize,
    /// Rows of the positions in this pass, by rope.
    pub(super) rotary: Vec<RopeTable>,
    pub(super) masks: Vec<WindowMask>,
    /// Inputs and outputs of layers, in turn: `[batch, chunk, hidden]`.
    pub(super) hidden: [Buffer; 2],
    /// New keys and values of a layer.
    pub(super) new: [Buffer; 2],
    /// Hidden states for the head: `[rows, hidden]`.
    pub(super) last: Buffer,
    pub(super) logits: Buffer,
    /// Numbers of cached positions of each sequence, then of new ones (uint32), then 1 / temperature (float32).
    placed: Buffer,
    embedded: Buffer,
    bad: Buffer,
    staging: Pinned,
    answer: Pinned,
}

impl DeviceState {
    pub(super) fn new(
        device: Device,
        kernels: AuxKernels,
        model: Transformer,
        loaded: LoadedModel,
        shapes: &Shapes,
    ) -> Result<Self, LlmError> {
        let LoadedModel { checkpoint, weights, types, shared_rows } = loaded;
        let dtype = types.dtype;
        let stream = Arc::clone(&device.stream);
        let size = dtype.size();
        check_heads(&model, size)?;
        let layers = shapes.layers();
        let tokens = layers.iter().map(|shape| shape.batch * shape.chunk).max().unwrap_or(1).max(shared_rows);
        let masked = layers.iter().map(|s| s.batch * model.group() * s.chunk * (s.cache + s.chunk)).max().unwrap_or(1);
        let longest = shapes.caches.last().copied().unwrap_or(shapes.max_len);
        // Zeroed is what has rows that no sequence may have written; the rest is written as a whole by each pass.
        let buffer = |bytes: usize, what: &str| Buffer::new(&stream, bytes, what);
        let unset = |bytes: usize, what: &str| Buffer::unset(&stream, bytes, what);
        let capacity = shapes.caches.first().copied().unwrap_or(longest);
        let capacities = Capacities { first: capacity, largest: longest };
        let cache = DeviceKvCache::new(&stream, &model, types, shapes.slots, capacities)?;
        let tables = model.ropes.iter().map(|rope| RopeTable::of(rope, longest, &stream, dtype));
        let tables = tables.collect::<Result<_, _>>()?;
        let rotary = model.ropes.iter().map(|rope| RopeTable::unset(tokens * rope.dimension() * size, &stream));
        let rotary = rotary.collect::<Result<_, _>>()?;
        let mut windows: Vec<Option<usize>> = model.layers.iter().map(|layer| layer.window).collect();
        windows.sort_unstable();
        windows.dedup();
        let masks = windows.into_iter().map(|window| Ok(WindowMask { window, mask: unset(masked * size, "masks")? }));
        let masks = masks.collect::<Result<Vec<_>, BackendError>>()?;
        let hidden = || buffer(tokens * model.hidden_size * size, "activations");
        let new = || unset(tokens * model.kv_heads * model.head_dim * size, "activations");
        let heads = shapes.slots.max(BLOCK_ROWS);
        let rows = heads.max(shared_rows);
        Ok(Self {
            embedding: Embedding::new(&checkpoint, &model),
            cache,
            tables,
            positions: longest,
            rotary,
            masks,
            hidden: [hidden()?, hidden()?],
            new: [new()?, new()?],
            last: buffer(heads * model.hidden_size * size, "activations")?,
            logits: buffer(rows * model.vocab_size * 4, "logits")?,
            placed: buffer(3 * 4 * rows, "positions")?,
            embedded: unset(tokens * model.hidden_size * 4, "embeddings")?,
            bad: buffer(4, "a counter")?,
            staging: Pinned::new(&stream, tokens * model.hidden_size * 4)?,
            answer: Pinned::new(&stream, heads * model.vocab_size * 4)?,
            device,
            kernels,
            weights,
            model,
            dtype,
        })
    }

    /// Bytes of the tensors between engines.
    pub(super) fn scratch_bytes(&self) -> usize {
        let masks: usize = self.masks.iter().map(|masked| masked.mask.len()).sum();
        let tables = self.tables.iter().chain(&self.rotary);
        let tables: usize = tables.map(|table| table.cos.len() + table.sin.len()).sum();
        let hidden = self.hidden.iter().map(Buffer::len).sum::<usize>();
        masks + tables + hidden + self.cache.scratch_bytes() + self.embedded.len() + self.logits.len()
    }

    /// Uploads the positions of a batch's sequences.
    pub(super) fn place(&mut self, rows: &[BatchRow]) -> Result<(), BackendError> {
        let third = self.placed.len() / 3;
        let mut bytes = vec![0; 2 * third + 4 * rows.len()];
        for (at, row) in rows.iter().enumerate() {
            let words = [word(row.cached), word(row.count), row.inverse_temperature.to_bits()];
            for (part, word) in words.into_iter().enumerate() {
                bytes[part * third + 4 * at..][..4].copy_from_slice(&word.to_le_bytes());
            }
        }
        self.placed.upload(&bytes)
    }

    /// Uploads the embeddings of `tokens` as input of the first layer; `places` are their rows among the pass's `rows`.
    /// The other rows are zeroed: the values of an earlier pass would grow from pass to pass until they are NaN, and a
    /// NaN key spoils every query even where it is masked.
    pub(super) fn embed(&mut self, tokens: &[u32], places: &[usize], rows: usize) -> Result<(), LlmError> {
        let hidden = self.model.hidden_size;
        let last = places.iter().max().map_or(0, |row| row + 1);
        let size = hidden * self.dtype.size();
        self.hidden[0].clear_part(last * size, rows.saturating_sub(last) * size)?;
        let staging = self.staging.write()?;
        if tokens.len() <= BLOCK_ROWS {
            // So few are converted faster here than a kernel starts.
            let mut row = vec![0.0; hidden];
            staging[..size * last].fill(0);
            for (token, place) in tokens.iter().zip(places) {
                self.embedding.rows(&[*token], &mut row)?;
                staging[size * place..][..size].copy_from_slice(&narrow(&row, self.dtype));
            }
            self.hidden[0].upload_pinned(&self.staging, last * size)?;
            return Ok(());
        }
        let view = self.embedding.stored()?;
        let (dtype, scale) = match view.encoding.dtype() {
            // As they are stored; the device converts.
            Some(dtype @ (DType::Float16 | DType::BFloat16)) => {
                for (token, place) in tokens.iter().zip(places) {
                    staging[2 * hidden * place..][..2 * hidden].copy_from_slice(view.row(*token as usize));
                }
                (dtype, self.model.embedding_scale)
            }
            _ => {
                let mut row = vec![0.0; hidden];
                for (token, place) in tokens.iter().zip(places) {
                    self.embedding.rows(&[*token], &mut row)?;
                    staging[4 * hidden * place..][..4 * hidden].copy_from_slice(bytemuck::cast_slice(&row));
                }
                (DType::Float32, 1.0)
            }
        };
        self.embedded.upload_pinned(&self.staging, last * hidden * dtype.size())?;
        let from = Elements { address: self.embedded.address(), dtype };
        let to = Elements { address: self.hidden[0].address(), dtype: self.dtype };
        let how = Conversion { count: last * hidden, first: 0, scale, offset: 0.0 };
        self.kernels.convert(from, to, how, self.bad.address())?;
        Ok(())
    }

    /// Computes masks and rotary rows of a pass, for the positions set by [`DeviceState::place`].
    pub(super) fn prologue(&mut self, shape: LayerShape) -> Result<(), BackendError> {
        let LayerShape { batch, chunk, cache } = shape;
        let cached = self.positions_of_rows().cached;
        for WindowMask { window, mask } in &self.masks {
            let to = Elements { address: mask.address(), dtype: self.dtype };
            let shape = MaskShape { batch, group: self.model.group(), chunk, cache };
            self.kernels.mask(to, cached, shape, *window)?;
        }
        for ((rope, table), rows) in self.model.ropes.iter().zip(&self.tables).zip(&self.rotary) {
            let words = rope.dimension() * self.dtype.size() / 4;
            let which = RotaryRows { batch, chunk, words, positions: self.positions };
            self.kernels.rotary(table.cos.address(), rows.cos.address(), cached, which)?;
            self.kernels.rotary(table.sin.address(), rows.sin.address(), cached, which)?;
        }
        Ok(())
    }

    /// Addresses of the numbers that [`DeviceState::place`] uploaded.
    pub(super) fn positions_of_rows(&self) -> RowPositions {
        let (cached, third) = (self.placed.address(), (self.placed.len() / 3) as Address);
        RowPositions { cached, count: cached + third, inverse_temperatures: cached + 2 * third }
    }

    /// Copies hidden state `from` of the last layer's output to row `to` of the head's input.
    pub(super) fn take_row(&mut self, from: usize, to: usize) -> Result<(), BackendError> {
        let bytes = self.model.hidden_size * self.dtype.size();
        let output = self.hidden[self.model.layers.len() % 2].address();
        copy(&self.device.stream, output + (from * bytes) as u64, self.last.address() + (to * bytes) as u64, bytes)
    }

    /// Waits for `count` rows of logits from `first`, and downloads them.
    pub(super) fn fetch_rows(&mut self, first: usize, count: usize) -> Result<Vec<f32>, BackendError> {
        let row = self.model.vocab_size * 4;
        self.logits.download(&mut self.answer, first * row, count * row)?;
        Ok(bytemuck::cast_slice(&self.answer.bytes()?[..count * row]).to_vec())
    }
}

/// Checks head sizes: heads are copied by 32-bit words.
fn check_heads(model: &Transformer, size: usize) -> Result<(), LlmError> {
    let dims = model.ropes.iter().map(Rope::dimension).chain([model.head_dim]);
    match dims.map(|dim| dim * size).all(|bytes| bytes.is_multiple_of(4)) {
        true => Ok(()),
        false => {
            let what = format!("heads of {} elements are not supported on the GPU", model.head_dim);
            Err(LlmError::internal(what))
        }
    }
}

/// Converts float32 to 16-bit elements as bytes, many at a time.
fn halves<T: Copy>(values: &[f32], zero: T) -> Vec<u8>
where
    [T]: HalfFloatSliceExt,
{
    let mut halves = vec![zero; values.len()];
    halves.as_mut_slice().convert_from_f32_slice(values);
    bytemuck::cast_slice::<u16, u8>(halves.as_slice().reinterpret_cast()).to_vec()
}

/// Converts float32 to the bytes of `dtype`.
fn narrow(values: &[f32], dtype: DType) -> Vec<u8> {
    match kind(dtype) {
        1 => halves(values, half::f16::ZERO),
        2 => halves(values, half::bf16::ZERO),
        _ => bytemuck::cast_slice(values).to_vec(),
    }
}
