//! Estimates the memory that a language model needs at run time, before anything is built.

use std::fmt;

use super::LlmTarget;
use crate::checkpoint::{Checkpoint, View};
use crate::convert::{LayerTypes, Transformer};
use crate::cuda_executor::{IntegerFormat, MatrixSize, packed_bytes, quantised_bytes};
use crate::diagnostic::Diagnostic;
use crate::memory;
use crate::quantize::{Scheme, Schemes};
use crate::recipe::LlmPlan;
use crate::spec::{KvCache, Shapes};
use crate::tensor::DType;

/// Host memory in bytes while a model is loaded: tensors in staging, pages of the files, the process.
/// `benches/load_memory.py` and `bench` measure it.
const HOST: u64 = 500_000_000;

/// Estimated memory of the device at run time, and of the host while loading, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemoryPlan {
    /// Weights in the engines' type, or packed.
    pub(super) weights: u64,
    /// Keys and values of all slots, and the space to move them.
    pub(super) cache: u64,
    /// Masks, activations and engines, estimated.
    pub(super) scratch: u64,
    /// Upper bound of the host's memory while loading.
    pub(super) host: u64,
    /// Whether device and host share one memory.
    pub(super) shared: bool,
}

impl MemoryPlan {
    /// For a model in its checkpoint, or in floats that are not here yet.
    pub(super) fn new(
        (checkpoint, model): (Option<&Checkpoint>, &Transformer),
        shapes: &Shapes,
        types: LayerTypes,
        (schemes, shared): (Schemes, bool),
    ) -> anyhow::Result<Self> {
        let weights = weights((checkpoint, model), types.dtype, schemes)?;
        Ok(Self::around(weights, model, shapes, types, shared))
    }

    /// For a model whose packed weights are not here yet, and are as long as their files.
    pub(super) fn packed(files: u64, model: &Transformer, shapes: &Shapes, types: LayerTypes, shared: bool) -> Self {
        let layer = model.layer_weights(0).iter().map(|weight| weight.rows * weight.columns).sum::<usize>();
        Self::around((files, (2 * layer * types.dtype.size()) as u64), model, shapes, types, shared)
    }

    /// Around weights of so many bytes, and layers of them that are unpacked for the engines.
    fn around(
        (weights, unpacked): (u64, u64),
        model: &Transformer,
        shapes: &Shapes,
        types: LayerTypes,
        shared: bool,
    ) -> Self {
        let size = types.dtype.size();
        let longest = shapes.caches.last().copied().unwrap_or(shapes.max_len);
        let cache = model.kv_bytes(types) * longest * shapes.slots;
        // Room to move half a layer's, and to widen one's for the engines.
        let rows = 2 * model.kv_heads * longest * shapes.slots;
        let widened = match types.kv_cache {
            KvCache::Auto => 0,
            KvCache::Int8 => rows * model.head_dim * size,
        };
        let moved = cache / (2 * model.layers.len().max(1)) + widened;
        let chunk = shapes.chunks.last().copied().unwrap_or(1);
        let scores = model.heads * chunk * (longest + chunk) * size;
        let activations = chunk * (8 * model.hidden_size + 3 * model.intermediate_size) * size;
        let masks = model.group() * chunk * (longest + chunk) * size;
        Self {
            weights,
            cache: (cache + moved) as u64,
            scratch: (2 * scores + activations + masks) as u64 + unpacked + (200 << 20),
            host: HOST,
            shared,
        }
    }

    /// What takes it, in words.
    pub(super) fn parts(&self) -> String {
        let [weights, cache, scratch] = [self.weights, self.cache, self.scratch].map(memory::format_bytes);
        format!("weights {weights}, keys and values {cache}, scratch {scratch}")
    }

    /// Memory that the device needs; includes the host's where both share one memory.
    pub(super) fn total(&self) -> u64 {
        self.weights + self.cache + self.scratch + if self.shared { self.host } else { 0 }
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "running it takes about {}: {}; loading it at most {} of {} memory",
            memory::format_bytes(self.total()),
            self.parts(),
            memory::format_bytes(self.host),
            if self.shared { "the same" } else { "the host's" }
        )
    }
}

/// Bytes of the weights on the device: packed where supported, and two layers of packed weights unpacked for the
/// engines. The output matrix is never unpacked. A packed copy of the embedding is all that the device has of it, whose rows are
/// read from the file. Without a checkpoint the weights are floats.
fn weights(
    (checkpoint, model): (Option<&Checkpoint>, &Transformer),
    dtype: DType,
    schemes: Schemes,
) -> anyhow::Result<(u64, u64)> {
    let (mut weights, mut unpacked) = (0, 0);
    let outer = [(vec![model.output_matrix()], model.hidden_size, true), (vec![model.final_norm()], 1, false)];
    let layers = (0..model.layers.len()).flat_map(|index| model.layer_weights(index));
    let first = model.layer_weights(0).len();
    let inner = layers.map(|weight| (weight.parts, weight.columns, weight.role.is_matrix()));
    for (at, (parts, columns, is_matrix)) in inner.chain(outer).enumerate() {
        let elements: usize = parts.iter().map(|part| part.shape.iter().product::<usize>()).sum();
        let plain = (elements * dtype.size()) as u64;
        let in_layer = at < first * model.layers.len();
        let views = match checkpoint {
            Some(checkpoint) => {
                parts.iter().map(|part| checkpoint.tensor(&part.tensor)).collect::<Result<Vec<_>, _>>()?
            }
            None => Vec::new(),
        };
        let size = MatrixSize { inputs: columns, outputs: elements / columns };
        let scheme = if in_layer { schemes.layers } else { schemes.head };
        let packed = match scheme {
            Some(Scheme { bits, group, .. }) => quantised_bytes(IntegerFormat { bits, group }, size),
            // Written anew with the layers, in floats.
            None if schemes.layers.is_some() => None,
            None => {
                let parts: Option<Vec<_>> = views.iter().map(View::integers).collect();
                parts.and_then(|parts| packed_bytes(&parts, size))
            }
        };
        let Some(packed) = packed.filter(|_| is_matrix && dtype == DType::Float16) else {
            weights += plain;
            continue;
        };
        weights += packed as u64;
        if at < first {
            unpacked += 2 * plain;
        }
    }
    Ok((weights, unpacked))
}

/// The error for a model that does not fit into `available` bytes of the GPU it is built on, with a configuration that
/// would fit, if there is one.
pub(super) fn too_large(target: &LlmTarget, available: u64) -> Diagnostic {
    let MemoryPlan { weights, cache, scratch, host, shared } = target.memory;
    let LlmPlan { max_batch_size, max_input_len, max_output_len, .. } = target.limits;
    let host = if shared { host } else { 0 };
    let room = available.saturating_sub(weights + scratch + host);
    let tokens = room / (target.source.model.kv_bytes(target.types) as u64).max(1);
    let help = if tokens < 256 {
        "the weights alone are too large: take a smaller model".to_owned()
    } else {
        format!("lower max_batch_size, max_input_len or max_output_len until their product is below {tokens} tokens")
    };
    Diagnostic::new(format!(
        "{}: running it takes {}: {} of weights, {} of keys and values ({max_batch_size} sequences of {max_input_len} + \
         {max_output_len} tokens), about {} of scratch memory{}; {} has {}",
        target.plan.name,
        memory::format_bytes(target.memory.total()),
        memory::format_bytes(weights),
        memory::format_bytes(cache),
        memory::format_bytes(scratch),
        if shared {
            format!(", {} for loading it from the same memory", memory::format_bytes(host))
        } else {
            String::new()
        },
        target.machine.device.as_ref().map_or("the GPU", |device| device.name.as_str()),
        memory::format_bytes(available)
    ))
    .with_help(format!("{help}, or build all the same with --force"))
}
