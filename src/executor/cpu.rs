//! The CPU executor: runs the layer graphs in float32 on the CPU reference. `verify` compares engines with it, and it
//! answers on machines without a GPU.
//!
//! Weights are converted to float32 once and kept if memory allows, else layer by layer in every pass. Graphs are built
//! when their shape is first needed.

mod cache;
mod costs;
mod pass;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Instant;

use super::host::{self, Embedding, Floats};
use super::passes::Sizes;
use super::{
    Exchange, Executor, HostLogits, LlmError, MemoryUse, Rows, Span, Step, StepLogits, WantedLogits, check,
    check_exchange, check_launch, not_exchanged, spans,
};
use crate::backend::cpu::{CpuEngine, Operand, Program};
use crate::backend::{BackendError, BackendInfo};
use crate::checkpoint::Checkpoint;
use crate::convert::{LayerShape, LayerTypes, Transformer, head_graph, layer_graph, observed_layer_graph};
use crate::memory::Memory;
use crate::spec::{KvCache, KvLayout};
use crate::tensor::DType;

use self::cache::{Cache, capacity_for};
use self::costs::{LARGEST, chunk_for, launch_cost, sizes};
use self::pass::CpuPass;

/// Most rows of a launch, unless there are more slots.
const ROWS: usize = 64;
/// Largest share of the available memory for float32 weights that are kept.
const RESIDENT_SHARE: f64 = 0.7;

/// The weights of a layer.
type Layer = Vec<Floats>;

/// Mean squares of the inputs of each of a layer's matrices, in the order of execution.
pub type Squares = Vec<Vec<f32>>;

fn operand(weight: &Floats) -> Operand<'_> {
    Operand { shape: &weight.shape, data: &weight.values, transposed: weight.role.is_matrix() }
}

/// Adds the squares of the matrices' inputs, which are an observed graph's last outputs, over `tokens` tokens.
fn add_squares(sums: &mut [Vec<f32>], outputs: &mut Vec<Vec<f32>>, tokens: usize) {
    for sums in sums.iter_mut().rev() {
        let read = outputs.pop().unwrap_or_default();
        for row in read.chunks_exact(sums.len()).take(tokens) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value * value);
        }
    }
}

/// Runs a language model on the CPU.
pub struct CpuExecutor {
    engine: CpuEngine,
    model: Transformer,
    kv_cache: KvCache,
    checkpoint: Arc<Checkpoint>,
    embedding: Embedding,
    /// Float32 weights by layer; empty if layers are converted in every pass.
    resident: Vec<Layer>,
    norm: Vec<f32>,
    output: Vec<f32>,
    layers: HashMap<(LayerShape, bool), Program>,
    /// While observing: sums of squares of the inputs of each layer's matrices, and the number of tokens.
    observed: Option<(Vec<Squares>, usize)>,
    heads: HashMap<usize, Program>,
    /// Caches as `[slot][layer]`.
    caches: Vec<Vec<Cache>>,
    /// Decode steps to compute when they are collected.
    launched: Vec<Step>,
    /// Sizes of passes, and their costs.
    sizes: Sizes,
    max_len: usize,
}

impl CpuExecutor {
    /// Loads `model`, whose tensors were located in `checkpoint`, for `slots` sequences of `max_len` tokens.
    pub fn new(
        model: Transformer,
        checkpoint: Arc<Checkpoint>,
        slots: usize,
        max_len: usize,
    ) -> Result<Self, LlmError> {
        let embedding = Embedding::new(&checkpoint, &model);
        let mut norm = host::floats(&checkpoint, &[model.final_norm()])?;
        norm.iter_mut().for_each(|value| *value += model.norm_offset);
        let output = host::floats(&checkpoint, &[model.output_matrix()])?;
        host::release(&checkpoint, &[model.output_matrix(), model.final_norm()]);
        let caches = vec![vec![Cache::default(); model.layers.len()]; slots];
        let have = Memory::of_this_machine().map_or(u64::MAX, |memory| memory.available);
        let fits = (model.parameters() as f64) * 4.0 < have as f64 * RESIDENT_SHARE;
        let mut executor = Self {
            engine: CpuEngine::find()?,
            embedding,
            resident: Vec::new(),
            norm,
            output,
            layers: HashMap::new(),
            observed: None,
            heads: HashMap::new(),
            caches,
            launched: Vec::new(),
            sizes: sizes(),
            max_len,
            model,
            kv_cache: KvCache::Auto,
            checkpoint,
        };
        // Layers that are widened at every pass are read again: they stay in the page cache.
        let resident = if fits { executor.model.layers.len() } else { 0 };
        for index in 0..resident {
            let layer = executor.widen(index)?;
            executor.resident.push(layer);
            for weight in executor.model.layer_weights(index) {
                host::release(&executor.checkpoint, &weight.parts);
            }
        }
        Ok(executor)
    }

    /// Rounds keys and values as a cache of this kind does. Before anything is read.
    pub fn with_kv_cache(self, kv_cache: KvCache) -> Self {
        Self { kv_cache, ..self }
    }

    fn widen(&self, index: usize) -> Result<Layer, LlmError> {
        let weights = self.model.layer_weights(index);
        weights.iter().map(|weight| Ok(host::weight(&self.checkpoint, &self.model, weight)?)).collect()
    }

    /// Mean squares of the inputs of each layer's matrices while reading `tokens`.
    pub fn observe(&mut self, tokens: &[u32]) -> Result<Vec<Squares>, LlmError> {
        let nothing: Squares = self.model.matrix_inputs().into_iter().map(|inputs| vec![0.0; inputs]).collect();
        self.observed = Some((vec![nothing; self.model.layers.len()], 0));
        self.release(0);
        let read = self.prefill(0, 0, tokens, Rows::None);
        let (mut sums, count) = self.observed.take().unwrap_or_default();
        read?;
        sums.iter_mut().flatten().flatten().for_each(|sum| *sum /= count.max(1) as f32);
        Ok(sums)
    }

    /// Builds the layers' graph of a shape, unless it exists.
    fn prepare(&mut self, shape: LayerShape, observed: bool) -> Result<(), LlmError> {
        if self.layers.contains_key(&(shape, observed)) {
            return Ok(());
        }
        let graph = match observed {
            true => observed_layer_graph(&self.model, shape, self.kv_cache),
            false => layer_graph(&self.model, shape, LayerTypes { dtype: DType::Float32, kv_cache: self.kv_cache }),
        };
        let graph = graph.map_err(|error| BackendError::Load(error.into()))?;
        let operands = if shape.cache > 0 { 6 } else { 4 };
        let mut transposed = vec![false; operands];
        transposed.extend(self.model.layer_weights(0).iter().map(|weight| weight.role.is_matrix()));
        self.layers.insert((shape, observed), Program::new(self.engine, graph, transposed)?);
        Ok(())
    }

    /// Runs all layers on the tokens of `spans`, padded to `chunk` rows; appends the new keys and values, and returns the
    /// hidden states `[chunk, hidden]`. To the layers, several spans are one sequence whose mask keeps them apart, so that
    /// weights are read once for all.
    fn forward(&mut self, spans: &[Span], tokens: &[u32], chunk: usize) -> Result<Vec<f32>, LlmError> {
        let pass = CpuPass::new(&self.model, spans, chunk);
        self.prepare(pass.shape, self.observed.is_some())?;
        let mut hidden = vec![0.0; chunk * self.model.hidden_size];
        self.embedding.rows(tokens, &mut hidden)?;
        let mut masks: HashMap<Option<usize>, Vec<f32>> = HashMap::new();
        for index in 0..self.model.layers.len() {
            let window = self.model.layers[index].window;
            let mask = masks.entry(window).or_insert_with(|| pass.mask(&self.model, window));
            hidden = self.layer(index, &pass, mask, &hidden)?;
        }
        if let Some((_, count)) = &mut self.observed {
            *count += tokens.len();
        }
        Ok(hidden)
    }

    /// Runs a layer on hidden states `[chunk, hidden]`.
    fn layer(&mut self, index: usize, pass: &CpuPass<'_>, mask: &[f32], hidden: &[f32]) -> Result<Vec<f32>, LlmError> {
        let LayerShape { chunk, cache, .. } = pass.shape;
        let (hidden_size, group) = (self.model.hidden_size, self.model.group());
        let streamed;
        let weights = match self.resident.get(index) {
            Some(weights) => weights,
            None => {
                streamed = self.widen(index)?;
                &streamed
            }
        };
        let mut joined = Cache::default();
        let stored = pass.past(&mut self.caches, index, &self.model, &mut joined);
        let rope = self.model.layers[index].rope;
        let (cos, sin) = &pass.tables[rope];
        let rotary = [1, 1, chunk, self.model.ropes[rope].dimension()];
        let past = [1, self.model.kv_heads, cache, self.model.head_dim];
        let (hidden_shape, mask_shape) = ([1, chunk, hidden_size], [1, 1, group * chunk, cache + chunk]);
        let plain = |shape, data| Operand { shape, data, transposed: false };
        let mut operands = vec![
            plain(&hidden_shape[..], hidden),
            plain(&rotary[..], cos),
            plain(&rotary[..], sin),
            plain(&mask_shape[..], mask),
        ];
        if cache > 0 {
            operands.push(plain(&past[..], &stored.key));
            operands.push(plain(&past[..], &stored.value));
        }
        operands.extend(weights.iter().map(operand));
        let missing = || BackendError::Load("a pass has no graph".into());
        let program = self.layers.get_mut(&(pass.shape, self.observed.is_some())).ok_or_else(missing)?;
        let mut outputs = program.run(&operands)?;
        let rows: usize = pass.spans.iter().map(|span| span.count).sum();
        if let Some((sums, _)) = &mut self.observed {
            add_squares(&mut sums[index], &mut outputs, rows);
        }
        let (value, key) = (outputs.pop().unwrap_or_default(), outputs.pop().unwrap_or_default());
        pass.append(&mut self.caches, index, (&key, &value), &self.model);
        Ok(outputs.pop().unwrap_or_default())
    }

    /// Logits `[rows, vocabulary]` of `rows` hidden states.
    fn logits(&mut self, hidden: &[f32], rows: usize) -> Result<Vec<f32>, LlmError> {
        let (hidden_size, vocabulary) = (self.model.hidden_size, self.model.vocab_size);
        let head = match self.heads.entry(rows) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let graph = head_graph(&self.model, rows, DType::Float32);
                let graph = graph.map_err(|error| BackendError::Load(error.into()))?;
                entry.insert(Program::new(self.engine, graph, vec![false, false, true])?)
            }
        };
        let mut outputs = head.run(&[
            Operand { shape: &[rows, hidden_size], data: hidden, transposed: false },
            Operand { shape: &[hidden_size], data: &self.norm, transposed: false },
            Operand { shape: &[hidden_size, vocabulary], data: &self.output, transposed: true },
        ])?;
        Ok(outputs.pop().unwrap_or_default())
    }

    /// Logits of each step that wants any, from the hidden states of all.
    fn wanted(&mut self, steps: &[Step], hidden: &[f32]) -> Result<Vec<Vec<f32>>, LlmError> {
        let wants = |step: &Step| step.wanted != WantedLogits::None;
        let rows = steps.iter().zip(hidden.chunks_exact(self.model.hidden_size));
        let wanted: Vec<f32> = rows.filter(|(step, _)| wants(step)).flat_map(|(_, row)| row).copied().collect();
        let logits = match steps.iter().filter(|step| wants(step)).count() {
            0 => Vec::new(),
            count => self.logits(&wanted, count)?,
        };
        let mut rows = logits.chunks_exact(self.model.vocab_size).map(<[f32]>::to_vec);
        Ok(steps.iter().map(|step| if wants(step) { rows.next().unwrap_or_default() } else { Vec::new() }).collect())
    }
}

impl Executor for CpuExecutor {
    fn info(&self) -> BackendInfo {
        self.engine.info()
    }

    fn slots(&self) -> usize {
        self.caches.len()
    }

    fn max_len(&self) -> usize {
        self.max_len
    }

    fn vocab_size(&self) -> usize {
        self.model.vocab_size
    }

    fn pass(&self, position: usize, remaining: usize) -> usize {
        self.sizes.next(position, remaining, capacity_for).min(remaining)
    }

    fn prefill(&mut self, slot: usize, position: usize, tokens: &[u32], rows: Rows) -> Result<Vec<f32>, LlmError> {
        check(self, slot, position, tokens)?;
        let (mut logits, mut done) = (Vec::new(), 0);
        while done < tokens.len() {
            let chunk = self.sizes.next(position + done, tokens.len() - done, capacity_for);
            let count = chunk.min(tokens.len() - done);
            let span = Span { slot, position: position + done, count };
            let hidden = self.forward(&[span], &tokens[done..done + count], chunk)?;
            done += count;
            let size = self.model.hidden_size;
            match rows {
                Rows::All => logits.extend(self.logits(&hidden[..count * size], count)?),
                Rows::Last if done == tokens.len() => {
                    logits = self.logits(&hidden[(count - 1) * size..count * size], 1)?
                }
                Rows::Last | Rows::None => {}
            }
        }
        Ok(logits)
    }

    fn rows(&self) -> usize {
        ROWS.max(self.slots())
    }

    fn launch_cost(&self, rows: usize) -> f64 {
        launch_cost(rows)
    }

    fn prefill_cost(&self, position: usize, tokens: usize) -> f64 {
        self.sizes.time(position, tokens, capacity_for)
    }

    /// Only records the steps, so that whoever waits for the previous tokens gets them before they are computed.
    fn launch(&mut self, steps: &[Step]) -> Result<(), LlmError> {
        check_launch(self, steps)?;
        self.launched = steps.to_vec();
        Ok(())
    }

    fn collect(&mut self) -> Result<Box<dyn StepLogits + '_>, LlmError> {
        let mut logits = Vec::with_capacity(self.launched.len());
        for steps in std::mem::take(&mut self.launched).chunks(LARGEST) {
            let tokens: Vec<u32> = steps.iter().map(|step| step.token).collect();
            let hidden = self.forward(&spans(steps), &tokens, chunk_for(steps.len()))?;
            logits.extend(self.wanted(steps, &hidden)?);
        }
        Ok(Box::new(HostLogits(logits)))
    }

    fn copy(&mut self, from: usize, to: usize, positions: usize) -> Result<(), LlmError> {
        for index in 0..self.model.layers.len() {
            let source = (&self.caches[from][index], positions);
            self.caches[to][index] = Cache::joined(&[source], capacity_for(positions), &self.model);
        }
        Ok(())
    }

    fn release(&mut self, slot: usize) {
        if let Some(layers) = self.caches.get_mut(slot) {
            layers.fill_with(Cache::default);
        }
    }

    fn kv_layout(&self) -> Option<KvLayout> {
        let Transformer { ref layers, kv_heads, head_dim, .. } = self.model;
        let (elements, dtype, kv_cache) = (DType::Float32, DType::Float32, self.kv_cache);
        Some(KvLayout { layers: layers.len(), kv_heads, head_dim, elements, dtype, kv_cache })
    }

    fn export(&mut self, slot: usize, layer: usize, positions: usize) -> Result<Vec<u8>, LlmError> {
        check_exchange(self, Exchange { slot, layer, positions })?;
        let bytes = self.caches[slot][layer].export(positions, &self.model);
        bytes.ok_or_else(|| not_exchanged(slot, layer, positions))
    }

    fn import(&mut self, slot: usize, layer: usize, positions: usize, bytes: &[u8]) -> Result<(), LlmError> {
        if bytes.len() != check_exchange(self, Exchange { slot, layer, positions })? {
            return Err(not_exchanged(slot, layer, positions));
        }
        self.caches[slot][layer] = Cache::import(bytes, positions, &self.model);
        Ok(())
    }

    fn memory(&self) -> MemoryUse {
        let floats = |count: usize| 4 * count as u64;
        let resident: usize = self.resident.iter().flatten().map(|floats| floats.values.len()).sum();
        let cached: usize = self.caches.iter().flatten().map(|cache| cache.key.len() + cache.value.len()).sum();
        MemoryUse { weights: floats(resident + self.output.len()), cache: floats(cached), scratch: 0 }
    }

    fn bandwidth(&mut self) -> Result<f64, LlmError> {
        use rayon::prelude::*;
        // Sums of the output matrix on all cores: what reading weights costs without arithmetic worth the name.
        let once = || self.output.par_chunks(1 << 16).map(|chunk| chunk.iter().sum::<f32>()).sum::<f32>();
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let start = Instant::now();
            std::hint::black_box(once());
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(4.0 * self.output.len() as f64 / best)
    }

    fn bytes_per_step(&self) -> u64 {
        let embedding = if self.model.tied { 0 } else { self.model.vocab_size * self.model.hidden_size };
        4 * (self.model.parameters() - embedding) as u64
    }
}
