//! The KV cache of all layers and sequences, in the arithmetic's type, or in int8 with a scale per row.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::aux_kernels::{AuxKernels, CacheShape, KeysValues, LayerAddresses, RowPositions, Spread};
use super::buffers::{Buffer, Pinned, copy};
use super::driver::Address;
use crate::backend::BackendError;
use crate::convert::{LayerTypes, Transformer};
use crate::executor::Exchange;
use crate::spec::{KvCache, KvLayout};
use crate::tensor::DType;

/// Keys, or values, of a layer.
struct KvStore {
    /// The rows, `[slots, kv_heads, capacity, head_dim]`.
    rows: Buffer,
    /// For int8: the scale of each row, `[slots, kv_heads, capacity]` in float32.
    scales: Option<Buffer>,
}

/// The KV cache on the device.
pub(super) struct DeviceKvCache {
    stream: Arc<CudaStream>,
    /// Keys and values of each layer.
    layers: Vec<[KvStore; 2]>,
    /// Positions that a slot has room for now, within a sweep in the layer that is computed; the engines need dense caches.
    pub(super) capacity: usize,
    /// Positions that a slot will have room for after the present pass: each layer is moved after its engine has read
    /// it.
    pub(super) next_capacity: usize,
    /// Buffer for moving rows.
    spare: Buffer,
    /// Host memory for a slot's rows of a layer, allocated when it is first needed.
    exchanged: Option<Pinned>,
    /// Dequantised keys and values of a layer, for the engines; only for int8.
    wide: Option<[Buffer; 2]>,
    /// Type that the engines read.
    dtype: DType,
    /// Bytes of a stored row.
    row: usize,
    slots: usize,
    heads: usize,
    dim: usize,
}

/// Positions that each slot has room for: initially, and at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capacities {
    pub(super) first: usize,
    pub(super) largest: usize,
}

/// New keys and values of a layer, `chunk` positions per sequence, and the device address of the numbers of valid ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewPositions {
    pub(super) addresses: [Address; 2],
    pub(super) chunk: usize,
    pub(super) positions: RowPositions,
}

/// A range of slots: `batch` slots from `first`.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlotRange {
    pub(super) first: usize,
    pub(super) batch: usize,
}

impl DeviceKvCache {
    /// Allocates the cache for `slots` sequences of a model.
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        model: &Transformer,
        types: LayerTypes,
        slots: usize,
        capacities: Capacities,
    ) -> Result<Self, BackendError> {
        let LayerTypes { dtype, kv_cache } = types;
        let (kept, has_scales) = match kv_cache {
            KvCache::Auto => (dtype, false),
            KvCache::Int8 => (DType::Int8, true),
        };
        let buffer = |bytes: usize| Buffer::new(stream, bytes, "keys and values");
        let (rows, dim) = (slots * model.kv_heads * capacities.largest, model.head_dim);
        let row = dim * kept.size();
        let store = || {
            let scales = has_scales.then(|| buffer(4 * rows)).transpose()?;
            Ok::<_, BackendError>(KvStore { rows: buffer(rows * row)?, scales })
        };
        let layers = (0..model.layers.len()).map(|_| Ok([store()?, store()?])).collect::<Result<_, BackendError>>()?;
        let wide = || buffer(rows * dim * dtype.size());
        Ok(Self {
            layers,
            spare: buffer(rows * row)?,
            exchanged: None,
            wide: has_scales.then(|| Ok::<_, BackendError>([wide()?, wide()?])).transpose()?,
            stream: Arc::clone(stream),
            capacity: capacities.first,
            next_capacity: capacities.first,
            dtype,
            row,
            slots,
            heads: model.kv_heads,
            dim,
        })
    }

    /// All buffers, each with its bytes per position.
    fn parts(&self, layer: usize) -> impl Iterator<Item = (&Buffer, usize)> {
        self.layers[layer].iter().flat_map(|store| {
            [Some((&store.rows, self.row)), store.scales.as_ref().map(|scales| (scales, 4))].into_iter().flatten()
        })
    }

    /// Bytes of keys and values.
    pub(super) fn bytes(&self) -> usize {
        (0..self.layers.len()).flat_map(|layer| self.parts(layer)).map(|(part, _)| part.len()).sum()
    }

    /// Bytes of auxiliary buffers.
    pub(super) fn scratch_bytes(&self) -> usize {
        self.spare.len() + self.wide.iter().flatten().map(Buffer::len).sum::<usize>()
    }

    /// Addresses of a slot's keys and values, in caches of `capacity`.
    pub(super) fn addresses(&self, layer: usize, slot: usize, capacity: usize) -> LayerAddresses {
        let first = slot * self.heads * capacity;
        let stores = self.layers[layer].each_ref();
        LayerAddresses {
            rows: stores.map(|store| store.rows.address() + (first * self.row) as u64),
            scales: stores.map(|store| store.scales.as_ref().map_or(0, |scales| scales.address() + 4 * first as u64)),
        }
    }

    /// Copies the first `positions` of a slot to another.
    pub(super) fn copy_slot(&self, from: usize, to: usize, positions: usize) -> Result<(), BackendError> {
        for (part, bytes) in (0..self.layers.len()).flat_map(|layer| self.parts(layer)) {
            for head in 0..self.heads {
                let at = |slot: usize| part.address() + ((slot * self.heads + head) * self.capacity * bytes) as u64;
                copy(&self.stream, at(from), at(to), positions * bytes)?;
            }
        }
        Ok(())
    }

    /// How keys and values are exported.
    pub(super) fn layout(&self) -> KvLayout {
        let (elements, kv_cache) = match self.wide {
            Some(_) => (DType::Int8, KvCache::Int8),
            None => (self.dtype, KvCache::Auto),
        };
        let (layers, kv_heads, head_dim) = (self.layers.len(), self.heads, self.dim);
        KvLayout { layers, kv_heads, head_dim, elements, dtype: self.dtype, kv_cache }
    }

    /// Takes the host memory for [`DeviceKvCache::export`] and [`DeviceKvCache::import`].
    fn host_memory(&mut self) -> Result<Pinned, BackendError> {
        // A scale has no more bytes than its row.
        let size = self.spare.len() / self.slots;
        self.exchanged.take().map_or_else(|| Pinned::new(&self.stream, size), Ok)
    }

    /// Copies keys and values to the host, in the order of [`DeviceKvCache::layout`]. Waits for the stream.
    pub(super) fn export(&mut self, exchange: Exchange) -> Result<Vec<u8>, BackendError> {
        let Exchange { slot, layer, positions } = exchange;
        let mut pinned = self.host_memory()?;
        let mut exported = Vec::new();
        for (part, width) in self.parts(layer) {
            let size = positions * width;
            // Heads are apart by the capacity: one copy for all is faster than one for each.
            for head in 0..self.heads {
                let from = part.address() + ((slot * self.heads + head) * self.capacity * width) as u64;
                copy(&self.stream, from, self.spare.address() + (head * size) as u64, size)?;
            }
            self.spare.download(&mut pinned, 0, self.heads * size)?;
            exported.extend_from_slice(&pinned.bytes()?[..self.heads * size]);
        }
        self.exchanged = Some(pinned);
        Ok(exported)
    }

    /// Copies exported keys and values to a slot, whose other positions stay what they are.
    pub(super) fn import(&mut self, exchange: Exchange, exported: &[u8]) -> Result<(), BackendError> {
        let Exchange { slot, layer, positions } = exchange;
        let mut pinned = self.host_memory()?;
        let parts: Vec<(Address, usize)> = self.parts(layer).map(|(part, width)| (part.address(), width)).collect();
        let mut rest = exported;
        for (part, width) in parts {
            let size = positions * width;
            let (these, after) = rest.split_at(self.heads * size);
            pinned.write(&self.stream)?[..these.len()].copy_from_slice(these);
            self.spare.upload_pinned(&pinned, these.len())?;
            for head in 0..self.heads {
                let to = part + ((slot * self.heads + head) * self.capacity * width) as u64;
                copy(&self.stream, self.spare.address() + (head * size) as u64, to, size)?;
            }
            rest = after;
        }
        self.exchanged = Some(pinned);
        Ok(())
    }

    /// Zeroes a slot.
    pub(super) fn clear_slot(&self, slot: usize) -> Result<(), BackendError> {
        for (part, bytes) in (0..self.layers.len()).flat_map(|layer| self.parts(layer)) {
            let size = self.heads * self.capacity * bytes;
            part.clear_part(slot * size, size)?;
        }
        Ok(())
    }

    /// Changes the capacity of a layer's slots, and keeps their content.
    fn move_layer(&self, kernels: &AuxKernels, layer: usize, capacity: usize) -> Result<(), BackendError> {
        let blocks = self.slots * self.heads;
        for (part, bytes) in self.parts(layer) {
            let spread = Spread { blocks, from: self.capacity, to: capacity, words: bytes / 4 };
            kernels.spread(part.address(), self.spare.address(), spread)?;
            copy(&self.stream, self.spare.address(), part.address(), blocks * capacity * bytes)?;
        }
        Ok(())
    }

    /// Changes the capacity of all slots in all layers.
    pub(super) fn resize(&mut self, kernels: &AuxKernels, capacity: usize) -> Result<(), BackendError> {
        for layer in 0..self.layers.len() {
            self.move_layer(kernels, layer, capacity)?;
        }
        (self.capacity, self.next_capacity) = (capacity, capacity);
        Ok(())
    }

    /// Addresses of the keys and values that the engines read for some slots of a layer. `cached` is the address of
    /// their numbers of positions.
    pub(super) fn past(
        &self,
        kernels: &AuxKernels,
        layer: usize,
        slots: SlotRange,
        cached: Address,
    ) -> Result<[Address; 2], BackendError> {
        let caches = self.addresses(layer, slots.first, self.capacity);
        let Some(wide) = &self.wide else { return Ok(caches.rows) };
        let wide = KeysValues { addresses: wide.each_ref().map(Buffer::address), dtype: self.dtype };
        let (heads, capacity, width) = (self.heads, self.capacity, self.dim);
        kernels.widen8(caches, wide, cached, CacheShape { batch: slots.batch, heads, chunk: 0, capacity, width })?;
        Ok(wide.addresses)
    }

    /// Appends a layer's `new` keys and values, `[batch, heads, chunk, dim]`, to some slots.
    pub(super) fn append(
        &self,
        kernels: &AuxKernels,
        layer: usize,
        slots: SlotRange,
        new: NewPositions,
    ) -> Result<(), BackendError> {
        if self.next_capacity != self.capacity {
            self.move_layer(kernels, layer, self.next_capacity)?;
        }
        let caches = self.addresses(layer, slots.first, self.next_capacity);
        let (heads, capacity) = (self.heads, self.next_capacity);
        let shape = |width: usize| CacheShape { batch: slots.batch, heads, chunk: new.chunk, capacity, width };
        let NewPositions { addresses, positions, .. } = new;
        match self.wide {
            Some(_) => kernels.append8(KeysValues { addresses, dtype: self.dtype }, caches, positions, shape(self.dim)),
            None => kernels.append(addresses, caches.rows, positions, shape(self.row / 4)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::print_stderr)]
mod tests {
    use super::super::buffers::single_stream;
    use super::super::driver::word;
    use super::*;
    use crate::backend::tensorrt::device::Device;
    use crate::convert;
    use crate::tensor::SplitMix64;

    /// Values that are appended are read back, within half a step of int8, wherever they are moved in between.
    #[test]
    fn what_is_appended_is_read() {
        let device = match Device::open() {
            Ok(device) => device,
            Err(error) => return eprintln!("SKIPPED what_is_appended_is_read: {error}"),
        };
        single_stream(&device.stream);
        let kernels = AuxKernels::compile(&device).unwrap();
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llm/llama/config.json");
        let model = convert::describe(&path, &crate::checkpoint::read_json(&path).unwrap(), 64).unwrap();
        let (heads, dim, chunk) = (model.kv_heads, model.head_dim, 4);
        for kept in [KvCache::Auto, KvCache::Int8] {
            let types = LayerTypes { dtype: DType::Float32, kv_cache: kept };
            let capacities = Capacities { first: 16, largest: 64 };
            let mut cache = DeviceKvCache::new(&device.stream, &model, types, 3, capacities).unwrap();
            let mut random = SplitMix64(5);
            let buffer = |bytes: &[u8]| {
                let mut buffer = Buffer::new(&device.stream, bytes.len(), "a test").unwrap();
                buffer.upload(bytes).unwrap();
                buffer
            };
            // `[2 sequences, heads, chunk, dim]` from slot 1 on: three new after five, four after none.
            let mut draw = || (random.next_u64() % 2001) as f32 / 1000.0 - 1.0;
            let new: [Vec<f32>; 2] = [0; 2].map(|_| (0..2 * heads * chunk * dim).map(|_| draw()).collect());
            let sent = new.each_ref().map(|new| buffer(bytemuck::cast_slice(new)));
            let placed = buffer(bytemuck::cast_slice(&[word(5), word(0), word(3), word(4)]));
            let cached = placed.address();
            let positions = RowPositions { cached, count: cached + 8, inverse_temperatures: 0 };
            cache.next_capacity = 32;
            let layer = model.layers.len() - 1;
            let new_positions = NewPositions { addresses: sent.each_ref().map(Buffer::address), chunk, positions };
            cache.append(&kernels, layer, SlotRange { first: 1, batch: 2 }, new_positions).unwrap();
            cache.capacity = 32;
            cache.resize(&kernels, 64).unwrap();
            cache.copy_slot(1, 0, 8).unwrap();
            let filled = buffer(bytemuck::cast_slice(&[word(8), word(8), word(4)]));
            let past = cache.past(&kernels, layer, SlotRange { first: 0, batch: 3 }, filled.address()).unwrap();
            for (new, past) in new.iter().zip(past) {
                let count = 3 * heads * 64 * dim;
                let mut pinned = Pinned::new(&device.stream, count * 4).unwrap();
                let read = Buffer::new(&device.stream, count * 4, "a test").unwrap();
                copy(&device.stream, past, read.address(), count * 4).unwrap();
                read.download(&mut pinned, 0, count * 4).unwrap();
                let have: &[f32] = bytemuck::cast_slice(&pinned.bytes().unwrap()[..count * 4]);
                for (slot, sequence, first, count) in [(0, 0, 5, 3), (1, 0, 5, 3), (2, 1, 0, 4)] {
                    for (head, at) in (0..heads).flat_map(|head| (0..count).map(move |at| (head, at))) {
                        let want = &new[((sequence * heads + head) * chunk + at) * dim..][..dim];
                        let have = &have[((slot * heads + head) * 64 + first + at) * dim..][..dim];
                        let largest = want.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                        let step = if kept == KvCache::Int8 { largest * 0.501 / 127.0 } else { 0.0 };
                        for (have, want) in have.iter().zip(want) {
                            assert!(
                                (have - want).abs() <= step,
                                "{kept:?}: slot {slot}, head {head}: {have}, not {want}"
                            );
                        }
                    }
                }
            }
        }
    }

    /// Keys, values and scales come back as they were, wherever they are moved in between, and next to nothing else.
    #[test]
    fn what_is_imported_is_exported() {
        let device = match Device::open() {
            Ok(device) => device,
            Err(error) => return eprintln!("SKIPPED what_is_imported_is_exported: {error}"),
        };
        single_stream(&device.stream);
        let kernels = AuxKernels::compile(&device).unwrap();
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llm/llama/config.json");
        let model = convert::describe(&path, &crate::checkpoint::read_json(&path).unwrap(), 64).unwrap();
        for kept in [KvCache::Auto, KvCache::Int8] {
            let types = LayerTypes { dtype: DType::Float16, kv_cache: kept };
            let capacities = Capacities { first: 16, largest: 64 };
            let mut cache = DeviceKvCache::new(&device.stream, &model, types, 3, capacities).unwrap();
            let layout = cache.layout();
            let scales = if kept == KvCache::Int8 { 4 } else { 0 };
            let row = layout.head_dim * layout.elements.size();
            assert_eq!(layout.layer_bytes(10), Some(2 * model.kv_heads * 10 * (row + scales)));
            let mut random = SplitMix64(7);
            let layer = model.layers.len() - 1;
            let at = |slot, positions| Exchange { slot, layer, positions };
            let bytes: Vec<u8> =
                (0..layout.layer_bytes(10).unwrap()).map(|_| random.next_u64().to_le_bytes()[0]).collect();
            cache.import(at(1, 10), &bytes).unwrap();
            cache.import(Exchange { layer: 0, ..at(1, 10) }, &vec![3; bytes.len()]).unwrap();
            assert_eq!(cache.export(at(1, 10)).unwrap(), bytes, "{kept:?}");
            cache.resize(&kernels, 32).unwrap();
            cache.copy_slot(1, 2, 10).unwrap();
            assert_eq!(cache.export(at(2, 10)).unwrap(), bytes, "{kept:?}, moved");
            // The first positions of each head.
            let fewer = cache.export(at(2, 4)).unwrap();
            assert_eq!(fewer[..4 * row], bytes[..4 * row], "{kept:?}");
            assert_eq!(fewer[4 * row..][..4 * row], bytes[10 * row..][..4 * row], "{kept:?}");
            for slot in [0, 2] {
                let around = cache.export(at(slot, 11)).unwrap();
                let last = &around[10 * row..11 * row];
                assert!(last.iter().all(|byte| *byte == 0), "{kept:?}: slot {slot} was written beside");
            }
        }
    }
}
