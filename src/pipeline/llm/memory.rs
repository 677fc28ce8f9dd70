//! How much memory a language model takes when it runs, told before anything is built.

use anyhow::bail;

use super::Prepared;
use crate::backend::BackendError;
use crate::convert::Transformer;
use crate::llm::Shapes;
use crate::memory;
use crate::pipeline::Context;
use crate::recipe::LlmPlan;
use crate::tensor::DType;

/// What the device will hold when the model runs.
#[derive(Debug, Clone, Copy)]
pub struct MemoryPlan {
    /// Weights in the engines' type.
    pub weights: u64,
    /// Keys and values of all slots, and room to move one layer's.
    pub cache: u64,
    /// Masks, activations, engines: an estimate.
    pub scratch: u64,
}

impl MemoryPlan {
    pub(super) fn new(model: &Transformer, shapes: &Shapes, dtype: DType) -> Self {
        let size = dtype.size();
        let longest = shapes.caches.last().copied().unwrap_or(shapes.max_len);
        let cache = model.kv_bytes(size) * longest * shapes.slots;
        let chunk = shapes.chunks.last().copied().unwrap_or(1);
        let scores = model.heads * chunk * (longest + chunk) * size;
        let activations = chunk * (8 * model.hidden_size + 3 * model.intermediate_size) * size;
        let masks = model.group() * chunk * (longest + chunk) * size;
        Self {
            weights: (model.parameters() * size) as u64,
            cache: (cache + cache / model.layers.len().max(1)) as u64,
            scratch: (2 * scores + activations + masks) as u64 + (200 << 20),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.cache + self.scratch
    }
}

/// Refuses what could not run on the GPU it is built on.
pub(super) fn check(prepared: &Prepared, context: &Context) -> anyhow::Result<()> {
    let Some(device) = prepared.device.as_ref().filter(|_| !context.force) else { return Ok(()) };
    let MemoryPlan { weights, cache, scratch } = prepared.memory;
    let total = prepared.memory.total();
    if total <= device.memory {
        return Ok(());
    }
    let LlmPlan { max_batch_size, max_input_len, max_output_len, .. } = prepared.limits;
    // What would fit, if anything does.
    let room = device.memory.saturating_sub(weights + scratch);
    let tokens = room / (prepared.source.model.kv_bytes(prepared.dtype.size()) as u64).max(1);
    let help = if tokens < 256 {
        "the weights alone are too large: take a smaller model".to_owned()
    } else {
        format!("lower max_batch_size, max_input_len or max_output_len until their product is below {tokens} tokens")
    };
    bail!(BackendError::Build(format!(
        "{}: running it takes {}: {} of weights, {} of keys and values ({max_batch_size} sequences of {max_input_len} + \
         {max_output_len} tokens), about {} of scratch memory; {} has {}\n  hint: {help}, or build all the same with --force",
        prepared.plan.name,
        memory::text(total),
        memory::text(weights),
        memory::text(cache),
        memory::text(scratch),
        device.name,
        memory::text(device.memory)
    )))
}
