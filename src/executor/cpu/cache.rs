//! Keys and values of a slot in one layer, in host memory.

use std::ops::Range;

use crate::convert::Transformer;

/// Smallest cache that graphs are built for, in positions; larger ones are powers of two.
const SMALLEST_CACHE: usize = 64;

/// The cache size, in positions, of the graph that holds `positions`.
pub(super) fn capacity_for(positions: usize) -> usize {
    positions.next_power_of_two().max(SMALLEST_CACHE)
}

/// Keys and values of a layer and slot: `[kv_heads, capacity, head_dim]`.
#[derive(Default, Clone)]
pub(super) struct Cache {
    capacity: usize,
    pub(super) key: Vec<f32>,
    pub(super) value: Vec<f32>,
}

impl Cache {
    /// The first positions of several caches, one after the other.
    pub(super) fn joined(parts: &[(&Self, usize)], capacity: usize, model: &Transformer) -> Self {
        let d = model.head_dim;
        let mut joined = Self::default();
        joined.resize(capacity, model);
        let mut first = 0;
        for (part, positions) in parts.iter().copied().filter(|(_, positions)| *positions > 0) {
            for (to, from) in [(&mut joined.key, &part.key), (&mut joined.value, &part.value)] {
                for (to, from) in to.chunks_exact_mut(capacity * d).zip(from.chunks_exact(part.capacity * d)) {
                    to[first * d..(first + positions) * d].copy_from_slice(&from[..positions * d]);
                }
            }
            first += positions;
        }
        joined
    }

    /// The bytes of the first `positions` positions, the keys' before the values'; `None` if it holds fewer.
    pub(super) fn export(&self, positions: usize, model: &Transformer) -> Option<Vec<u8>> {
        let d = model.head_dim;
        if positions == 0 || positions > self.capacity {
            return None;
        }
        let mut bytes = Vec::with_capacity(2 * model.kv_heads * positions * d * size_of::<f32>());
        for part in [&self.key, &self.value] {
            for head in part.chunks_exact(self.capacity * d) {
                bytes.extend_from_slice(bytemuck::cast_slice(&head[..positions * d]));
            }
        }
        Some(bytes)
    }

    /// A cache of `positions` positions that were exported.
    pub(super) fn import(bytes: &[u8], positions: usize, model: &Transformer) -> Self {
        let (d, capacity) = (model.head_dim, capacity_for(positions));
        let mut cache = Self::default();
        cache.resize(capacity, model);
        let (keys, values) = bytes.split_at(bytes.len() / 2);
        for (to, from) in [(&mut cache.key, keys), (&mut cache.value, values)] {
            let heads = from.chunks_exact(positions * d * size_of::<f32>());
            for (to, from) in to.chunks_exact_mut(capacity * d).zip(heads) {
                // They need not be aligned.
                bytemuck::cast_slice_mut::<f32, u8>(&mut to[..positions * d]).copy_from_slice(from);
            }
        }
        cache
    }

    /// Grows or shrinks the cache to `capacity` positions, since the graph needs it dense.
    pub(super) fn resize(&mut self, capacity: usize, model: &Transformer) {
        if capacity == self.capacity {
            return;
        }
        let d = model.head_dim;
        let kept = capacity.min(self.capacity) * d;
        let moved = |old: &[f32]| {
            let mut new = vec![0.0; model.kv_heads * capacity * d];
            if self.capacity > 0 {
                for (new, old) in new.chunks_exact_mut(capacity * d).zip(old.chunks_exact(self.capacity * d)) {
                    new[..kept].copy_from_slice(&old[..kept]);
                }
            }
            new
        };
        (self.key, self.value) = (moved(&self.key), moved(&self.value));
        self.capacity = capacity;
    }

    /// Writes `rows` of the `chunk` rows of a pass after the first `position` positions.
    pub(super) fn append(
        &mut self,
        position: usize,
        rows: Range<usize>,
        chunk: usize,
        new: (&[f32], &[f32]),
        model: &Transformer,
    ) {
        let end = position + rows.len();
        let needed = capacity_for(end);
        if needed > self.capacity {
            self.resize(needed, model);
        }
        let d = model.head_dim;
        for (cache, new) in [(&mut self.key, new.0), (&mut self.value, new.1)] {
            for (cache, new) in cache.chunks_exact_mut(self.capacity * d).zip(new.chunks_exact(chunk * d)) {
                cache[position * d..end * d].copy_from_slice(&new[rows.start * d..rows.end * d]);
            }
        }
    }
}
