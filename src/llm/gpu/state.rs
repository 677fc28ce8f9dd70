//! What lives on the device while a model runs: weights, caches, and the tensors between engines.

use std::sync::Arc;

use half::slice::HalfFloatSliceExt;

use super::buffers::{Buffer, Pinned, copy};
use super::kernels::{Address, Kernels, kind, word};
use super::step::{Kernel, ROWS};
use super::weights::{Matrix, Weights};
use crate::backend::BackendError;
use crate::backend::tensorrt::device::Device;
use crate::checkpoint::Checkpoint;
use crate::convert::{LayerShape, Transformer};
use crate::llm::executor::LlmError;
use crate::llm::host::Embedding;
use crate::llm::shapes::Shapes;
use crate::tensor::DType;

/// See the module. Batches of one use the slot they are told, larger ones row b for slot b.
pub(super) struct State {
    pub(super) device: Device,
    pub(super) kernels: Kernels,
    pub(super) model: Transformer,
    pub(super) dtype: DType,
    pub(super) weights: Weights,
    embedding: Embedding,
    /// `[layer]`: keys and values, `[slots, kv_heads, capacity, head_dim]`.
    caches: Vec<(Buffer, Buffer)>,
    /// Positions a slot has room for now; the engines want caches dense.
    pub(super) capacity: usize,
    /// The room after the present pass: each layer is moved when its engine has read it.
    pub(super) next_capacity: usize,
    /// Room of a whole cache for moving it.
    spare: Buffer,
    /// `[rope]`: cosines and sines of every position, `[max_len, rotary]`.
    pub(super) tables: Vec<(Buffer, Buffer)>,
    pub(super) positions: usize,
    slots: usize,
    /// `[rope]`: the rows of this pass.
    pub(super) rotary: Vec<(Buffer, Buffer)>,
    /// Each kind of window and its mask.
    pub(super) masks: Vec<(Option<usize>, Buffer)>,
    /// Layer inputs and outputs, by turns: `[batch, chunk, hidden]`.
    pub(super) hidden: [Buffer; 2],
    /// A layer's new keys and values.
    pub(super) new: (Buffer, Buffer),
    /// Hidden states whose logits are wanted: `[rows, hidden]`.
    pub(super) last: Buffer,
    pub(super) logits: Buffer,
    /// Positions cached of each sequence, then positions new of each. uint32.
    placed: Buffer,
    embedded: Buffer,
    bad: Buffer,
    /// Who unpacks matrices for the engines, and where to: by their place in a layer.
    pub(super) kernel: Option<Arc<Kernel>>,
    unpacked: Vec<Buffer>,
    staging: Pinned,
    answer: Pinned,
}

impl State {
    pub(super) fn new(
        device: Device,
        kernels: Kernels,
        (model, checkpoint): (Transformer, Arc<Checkpoint>),
        (weights, dtype, kernel): (Weights, DType, Option<Arc<Kernel>>),
        shapes: &Shapes,
    ) -> Result<Self, LlmError> {
        let stream = Arc::clone(&device.stream);
        let size = dtype.size();
        if !(model.head_dim * size).is_multiple_of(4)
            || model.ropes.iter().any(|r| !(r.dimension() * size).is_multiple_of(4))
        {
            return Err(LlmError::Request(format!(
                "heads of {} elements are not supported on the GPU",
                model.head_dim
            )));
        }
        let layers = shapes.layers();
        let tokens = layers.iter().map(|shape| shape.batch * shape.chunk).max().unwrap_or(1);
        let masked = layers.iter().map(|s| s.batch * model.group() * s.chunk * (s.cache + s.chunk)).max().unwrap_or(1);
        let longest = shapes.caches.last().copied().unwrap_or(shapes.max_len);
        let buffer = |bytes: usize, what: &str| Buffer::new(&stream, bytes, what);
        let cache = shapes.slots * model.kv_heads * longest * model.head_dim * size;
        let caches = (0..model.layers.len())
            .map(|_| Ok((buffer(cache, "keys and values")?, buffer(cache, "keys and values")?)))
            .collect::<Result<Vec<_>, BackendError>>()?;
        let mut tables = Vec::new();
        let mut rotary = Vec::new();
        for rope in &model.ropes {
            let d = rope.dimension();
            let (cos, sin) = rope.tables(0..longest);
            let table = |values: &[f32]| -> Result<Buffer, BackendError> {
                let mut table = buffer(values.len() * size, "rotary tables")?;
                table.upload(&narrow(values, dtype))?;
                Ok(table)
            };
            tables.push((table(&cos)?, table(&sin)?));
            rotary.push((buffer(tokens * d * size, "activations")?, buffer(tokens * d * size, "activations")?));
        }
        let mut windows: Vec<Option<usize>> = model.layers.iter().map(|layer| layer.window).collect();
        windows.sort_unstable();
        windows.dedup();
        let masks = windows.into_iter().map(|window| Ok((window, buffer(masked * size, "masks")?)));
        let masks = masks.collect::<Result<Vec<_>, BackendError>>()?;
        let most = |at: usize| {
            let bytes = weights.layers.iter().map(|layer| match &layer[at] {
                Matrix::Plain(_) => 0,
                Matrix::Packed { layout, .. } => layout.inputs * layout.outputs * size,
            });
            bytes.max().unwrap_or(0)
        };
        let unpacked = (0..weights.layers.first().map_or(0, Vec::len)).map(|at| buffer(most(at), "unpacked weights"));
        let unpacked = unpacked.collect::<Result<Vec<_>, _>>()?;
        let hidden = || buffer(tokens * model.hidden_size * size, "activations");
        let new = || buffer(tokens * model.kv_heads * model.head_dim * size, "activations");
        let rows = shapes.slots.max(ROWS);
        Ok(Self {
            embedding: Embedding::new(&checkpoint, &model),
            spare: buffer(cache, "keys and values")?,
            capacity: shapes.caches.first().copied().unwrap_or(longest),
            next_capacity: shapes.caches.first().copied().unwrap_or(longest),
            slots: shapes.slots,
            caches,
            tables,
            positions: longest,
            rotary,
            masks,
            hidden: [hidden()?, hidden()?],
            new: (new()?, new()?),
            last: buffer(rows * model.hidden_size * size, "activations")?,
            logits: buffer(rows * model.vocab_size * 4, "logits")?,
            placed: buffer(2 * 4 * rows, "positions")?,
            embedded: buffer(tokens * model.hidden_size * 4, "embeddings")?,
            bad: buffer(4, "a counter")?,
            staging: Pinned::new(&stream, tokens * model.hidden_size * 4)?,
            answer: Pinned::new(&stream, rows * model.vocab_size * 4)?,
            device,
            kernels,
            kernel,
            unpacked,
            weights,
            model,
            dtype,
        })
    }

    /// Bytes of keys and values, and of what is between engines.
    pub(super) fn cache_bytes(&self) -> usize {
        self.caches.iter().map(|(key, value)| key.len() + value.len()).sum()
    }

    pub(super) fn scratch_bytes(&self) -> usize {
        let masks: usize = self.masks.iter().map(|(_, mask)| mask.len()).sum();
        let pairs = self.tables.iter().chain(&self.rotary).map(|(a, b)| a.len() + b.len()).sum::<usize>();
        let hidden = self.hidden.iter().map(Buffer::len).sum::<usize>();
        let unpacked: usize = self.unpacked.iter().map(Buffer::len).sum();
        masks + pairs + hidden + unpacked + self.spare.len() + self.embedded.len() + self.logits.len()
    }

    /// Tells the device where the sequences are: (cached, new) positions, one pair per row of the batch.
    pub(super) fn place(&mut self, rows: &[(usize, usize)]) -> Result<(), BackendError> {
        let half = self.placed.len() / 2;
        let mut bytes = vec![0; half + 4 * rows.len()];
        for (row, (cached, count)) in rows.iter().enumerate() {
            bytes[4 * row..][..4].copy_from_slice(&word(*cached).to_le_bytes());
            bytes[half + 4 * row..][..4].copy_from_slice(&word(*count).to_le_bytes());
        }
        self.placed.upload(&bytes)
    }

    /// Brings the embeddings of `tokens` up as the first layer's input; `places` are their rows there.
    pub(super) fn embed(&mut self, tokens: &[u32], places: &[usize]) -> Result<(), LlmError> {
        let hidden = self.model.hidden_size;
        let last = places.iter().max().map_or(0, |row| row + 1);
        let staging = self.staging.write()?;
        if tokens.len() <= ROWS {
            // So few are converted faster here than a kernel starts.
            let (mut row, size) = (vec![0.0; hidden], hidden * self.dtype.size());
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
        let (from, to) = ((self.embedded.address(), dtype), (self.hidden[0].address(), self.dtype));
        self.kernels.convert(from, to, (last * hidden, 0), (scale, 0.0), self.bad.address())?;
        Ok(())
    }

    /// Masks and rotary rows of a pass, from where [`State::place`] said the sequences are.
    pub(super) fn prologue(&mut self, shape: LayerShape) -> Result<(), BackendError> {
        let LayerShape { batch, chunk, cache } = shape;
        let (cached, _) = self.places();
        for (window, mask) in &self.masks {
            let sizes = [batch, self.model.group(), chunk, cache];
            self.kernels.mask((mask.address(), self.dtype), cached, sizes, *window)?;
        }
        for ((rope, table), rows) in self.model.ropes.iter().zip(&self.tables).zip(&self.rotary) {
            let sizes = [batch, chunk, rope.dimension() * self.dtype.size() / 4, self.positions];
            self.kernels.rotary(table.0.address(), rows.0.address(), cached, sizes)?;
            self.kernels.rotary(table.1.address(), rows.1.address(), cached, sizes)?;
        }
        Ok(())
    }

    /// Where [`State::place`] has put its numbers.
    pub(super) fn places(&self) -> (Address, Address) {
        (self.placed.address(), self.placed.address() + (self.placed.len() / 2) as Address)
    }

    /// Where `slot`'s keys and values of a layer begin, in caches of `capacity`.
    pub(super) fn cache(&self, layer: usize, slot: usize, capacity: usize) -> (Address, Address) {
        let (key, value) = &self.caches[layer];
        let offset = slot * self.model.kv_heads * capacity * self.model.head_dim * self.dtype.size();
        (key.address() + offset as u64, value.address() + offset as u64)
    }

    /// Copies the first `positions` of a slot's keys and values to another slot.
    pub(super) fn copy_slot(&self, from: usize, to: usize, positions: usize) -> Result<(), BackendError> {
        let row = self.model.head_dim * self.dtype.size();
        for layer in 0..self.caches.len() {
            let (from, to) = (self.cache(layer, from, self.capacity), self.cache(layer, to, self.capacity));
            for head in 0..self.model.kv_heads {
                let offset = (head * self.capacity * row) as u64;
                for (from, to) in [(from.0, to.0), (from.1, to.1)] {
                    copy(&self.device.stream, from + offset, to + offset, positions * row)?;
                }
            }
        }
        Ok(())
    }

    /// Appends a layer's new keys and values to the caches from `slot` on.
    pub(super) fn append(&mut self, shape: LayerShape, layer: usize, slot: usize) -> Result<(), BackendError> {
        let words = self.model.head_dim * self.dtype.size() / 4;
        if self.next_capacity != self.capacity {
            self.move_layer(layer, self.next_capacity)?;
        }
        let sizes = [shape.batch, self.model.kv_heads, shape.chunk, self.next_capacity, words];
        let new = (self.new.0.address(), self.new.1.address());
        let caches = self.cache(layer, slot, self.next_capacity);
        self.kernels.append(new, caches, self.places(), sizes)
    }

    /// Gives every slot of a layer's caches room for `capacity` positions, keeping what is in them.
    fn move_layer(&self, layer: usize, capacity: usize) -> Result<(), BackendError> {
        let words = self.model.head_dim * self.dtype.size() / 4;
        let blocks = self.slots * self.model.kv_heads;
        let (key, value) = &self.caches[layer];
        for cache in [key, value] {
            let sizes = [blocks, self.capacity, capacity, words];
            self.kernels.spread(cache.address(), self.spare.address(), sizes)?;
            let bytes = blocks * capacity * words * 4;
            copy(&self.device.stream, self.spare.address(), cache.address(), bytes)?;
        }
        Ok(())
    }

    /// Changes the room of every slot in every layer.
    pub(super) fn resize(&mut self, capacity: usize) -> Result<(), BackendError> {
        for layer in 0..self.caches.len() {
            self.move_layer(layer, capacity)?;
        }
        (self.capacity, self.next_capacity) = (capacity, capacity);
        Ok(())
    }

    /// Where weight `at` of a layer is as the engines want it.
    pub(super) fn unpacked(&self, layer: usize, at: usize) -> Result<Address, BackendError> {
        match (&self.weights.layers[layer][at], &self.kernel) {
            (Matrix::Packed { tiles, order, layout }, Some(kernel)) => {
                let out = self.unpacked[at].address();
                let order = order.as_ref().map_or(0, Buffer::address);
                kernel.expand(&self.device.stream, (tiles.address(), order, *layout), out)?;
                Ok(out)
            }
            (weight, _) => Ok(weight.address()),
        }
    }

    /// Puts hidden state `from` of the last layer's output into row `to` of the head's input.
    pub(super) fn take_row(&mut self, from: usize, to: usize) -> Result<(), BackendError> {
        let bytes = self.model.hidden_size * self.dtype.size();
        let output = self.hidden[self.model.layers.len() % 2].address();
        copy(&self.device.stream, output + (from * bytes) as u64, self.last.address() + (to * bytes) as u64, bytes)
    }

    /// Waits for the logits of a batch; these rows of them.
    pub(super) fn fetch_rows(&mut self, batch: usize, rows: &[usize]) -> Result<Vec<f32>, BackendError> {
        let width = self.model.vocab_size;
        self.logits.download(&mut self.answer, batch * width * 4)?;
        let all: &[f32] = bytemuck::cast_slice(&self.answer.bytes()?[..batch * width * 4]);
        let mut logits = Vec::with_capacity(rows.len() * width);
        rows.iter().for_each(|row| logits.extend_from_slice(&all[row * width..(row + 1) * width]));
        Ok(logits)
    }
}

/// float32 to the bytes of sixteen bits each, many at a time.
fn halves<T: Copy>(values: &[f32], zero: T) -> Vec<u8>
where
    [T]: HalfFloatSliceExt,
{
    let mut halves = vec![zero; values.len()];
    halves.as_mut_slice().convert_from_f32_slice(values);
    bytemuck::cast_slice::<u16, u8>(halves.as_slice().reinterpret_cast()).to_vec()
}

/// float32 to the bytes of `dtype`.
fn narrow(values: &[f32], dtype: DType) -> Vec<u8> {
    match kind(dtype) {
        1 => halves(values, half::f16::ZERO),
        2 => halves(values, half::bf16::ZERO),
        _ => bytemuck::cast_slice(values).to_vec(),
    }
}
