//! The CUDA executor: loads a model, runs prompts in passes through TensorRT's engines, and replays decode steps as
//! CUDA graphs.

mod launch;
mod pass;
mod path;
mod step_logits;
mod tune;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::aux_kernels::AuxKernels;
use super::buffers;
use super::decode_kernel::abi::BLOCK_ROWS;
use super::decode_kernel::row_class::RowClass;
use super::decode_kernel::{DecodeKernels, DecodeProgram};
use super::driver::device_error;
use super::engines::{EngineFolder, Engines};
use super::state::{DeviceState, LoadedModel};
use super::unpack::Unpacker;
use super::weights::{self, WeightSource};
use crate::backend::tensorrt::TensorRt;
use crate::backend::tensorrt::device::Device;
use crate::backend::tensorrt::graph::Graph;
use crate::backend::{BackendError, BackendInfo};
use crate::checkpoint::Checkpoint;
use crate::convert::{LayerShape, LayerTypes, Transformer};
use crate::executor::{
    Exchange, Executor, HostLogits, LlmError, MemoryUse, Rows, Sizes, Step, StepLogits, check, check_exchange,
    check_launch, not_exchanged,
};
use crate::spec::{KvLayout, Shapes};

use self::path::{DecodePath, StepKey, StepPath};
use self::step_logits::{DeviceLogits, LaunchedStep};

/// Time of a prompt's passes, whose logits the host waits for and reads, relative to that of the same rows in a launch.
const WAITING: f64 = 1.02;

/// Options of an executor.
#[derive(Debug, Clone)]
pub struct GpuOptions {
    /// Shapes of the engines in the folder.
    pub shapes: Shapes,
    /// Arithmetic type of the engines, and the storage type of keys and values.
    pub types: LayerTypes,
    /// Whether the engines were built with TF32.
    pub tf32: bool,
}

/// Runs a language model on the GPU.
pub struct GpuExecutor {
    info: BackendInfo,
    options: GpuOptions,
    /// Captured decode steps. Dropped before the buffers that they refer to.
    graphs: HashMap<StepKey, Graph>,
    engines: Engines,
    /// Our decode kernel's program; `None` if the kernel does not support the model.
    program: Option<DecodeProgram>,
    state: DeviceState,
    /// Number of positions in each slot, as last reported.
    used: Vec<usize>,
    /// The fastest decode path, by batch size.
    paths: HashMap<usize, StepPath>,
    /// Sizes of passes and their times; passes of one token are decode steps.
    sizes: Sizes,
    /// Sizes of passes that are launches of our kernel with a row for each token.
    row_sizes: Vec<usize>,
    /// (most rows, seconds) of launches: of one row, and of several of any slots.
    launches: Vec<(usize, f64)>,
    /// The launched steps.
    launched: Vec<LaunchedStep>,
    /// Messages about unavailable optimisations.
    warnings: Vec<String>,
}

impl GpuExecutor {
    /// Loads `model`, whose tensors were located in `checkpoint`, with the engines in `folder`. `progress` is called
    /// with the bytes of weights so far, and in total.
    pub fn new(
        folder: &Path,
        model: Transformer,
        checkpoint: Arc<Checkpoint>,
        options: GpuOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LlmError> {
        let tensorrt = TensorRt::open()?;
        let device = Device::open()?;
        buffers::single_stream(&device.stream);
        let kernels = AuxKernels::compile(&device)?;
        let info = BackendInfo { name: tensorrt.version.to_string(), device: device.description() };
        let kinds = weights::kinds_of_tiles(&checkpoint, &model)?;
        let (decode, warnings) = DecodeKernels::for_model(&device, &model, options.types, kinds)?;
        let kernel = decode.as_ref().map(|decode| Arc::clone(&decode.apart));
        let keep_packed = kernel.as_ref().is_some_and(|kernel| kernel.takes_packed());
        let source = WeightSource {
            checkpoint: &checkpoint,
            model: &model,
            kernels: &kernels,
            stream: &device.stream,
            dtype: options.types.dtype,
            keep_packed,
        };
        let weights = weights::load(source, progress)?;
        let unpacker = kernel.filter(|_| weights.are_packed());
        let unpacker = unpacker.map(|kernel| Unpacker::new(&device, kernel, &weights)).transpose()?;
        let shared_rows = decode.as_ref().map_or(0, DecodeKernels::shared_rows);
        let loaded = LoadedModel { checkpoint, weights, types: options.types, shared_rows };
        let state = DeviceState::new(device, kernels, model, loaded, &options.shapes)?;
        let program = decode.map(|decode| DecodeProgram::new(decode, &state, options.shapes.slots)).transpose()?;
        let first = options.shapes.layers().first().copied();
        let first = first.ok_or_else(|| LlmError::internal("the engine directory names no engines"))?;
        let engine_folder = EngineFolder { path: folder.to_owned(), first, tf32: options.tf32 };
        let engines = Engines::new(tensorrt, engine_folder, &info.device, unpacker)?;
        let mut executor = Self {
            info,
            graphs: HashMap::new(),
            engines,
            state,
            used: vec![0; options.shapes.slots],
            paths: HashMap::new(),
            sizes: Sizes::new(Vec::new()),
            row_sizes: Vec::new(),
            launches: Vec::new(),
            program,
            launched: Vec::new(),
            warnings,
            options,
        };
        executor.tune()?;
        Ok(executor)
    }

    /// Loads engines, unless they are loaded.
    fn load(&mut self, layers: Option<LayerShape>, rows: usize) -> Result<(), BackendError> {
        if self.engines.prepare(&self.state, layers, rows)? {
            self.graphs.clear(); // the scratch memory they refer to has moved
        }
        Ok(())
    }

    /// Runs a decode step as a CUDA graph, which is captured when its shape is first used. The logits stay on the
    /// device.
    fn replay(&mut self, key: StepKey) -> Result<(), BackendError> {
        let StepKey { shape, path, .. } = key;
        let layers = (path == DecodePath::Engines).then_some(shape);
        let rows = if self.program.is_some() { 0 } else { shape.batch };
        self.load(layers, rows)?;
        if !self.graphs.contains_key(&key) {
            // Once as it is: engines finish their preparations at their first run, which cannot be captured. Writing
            // the same keys and values twice changes nothing.
            let hidden = self.state.hidden[0].address();
            let rows = match path {
                DecodePath::Rows(class) => class.most(),
                DecodePath::Engines | DecodePath::Kernels => shape.batch * shape.chunk,
            };
            let bytes = rows * self.state.model.hidden_size * self.state.dtype.size();
            let stream = Arc::clone(&self.state.device.stream);
            let keep = buffers::Buffer::unset(&stream, bytes, "activations")?;
            buffers::copy(&stream, hidden, keep.address(), bytes)?;
            self.step(key)?;
            buffers::copy(&stream, keep.address(), hidden, bytes)?;
            stream.synchronize().map_err(device_error)?;
            let graph = Graph::capture(&stream, || self.step(key))?;
            self.graphs.insert(key, graph);
        }
        self.graphs[&key].launch()
    }

    fn step(&mut self, key: StepKey) -> Result<(), BackendError> {
        let StepKey { shape, path, slot } = key;
        match (path, &self.program) {
            (DecodePath::Kernels, Some(program)) => program.enqueue(&self.state, shape.batch, slot)?,
            (DecodePath::Rows(class), Some(program)) => program.enqueue_rows(&self.state, class)?,
            _ => {
                self.engines.enqueue(&mut self.state, shape, slot, usize::MAX)?;
                for row in 0..shape.batch {
                    self.state.take_row(row * shape.chunk, row)?;
                }
                self.head(shape.batch)?;
            }
        }
        match &self.program {
            Some(program) if shape.batch > 0 => program.rank(&self.state, shape.batch),
            _ => Ok(()),
        }
    }

    /// Runs the head on the first `rows` of `DeviceState::last`.
    fn head(&mut self, rows: usize) -> Result<(), BackendError> {
        match &self.program {
            Some(program) => program.head(&self.state, rows),
            None => self.engines.head(&mut self.state, rows),
        }
    }
}

impl Executor for GpuExecutor {
    fn info(&self) -> BackendInfo {
        self.info.clone()
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn slots(&self) -> usize {
        self.options.shapes.slots
    }

    fn max_len(&self) -> usize {
        self.options.shapes.max_len
    }

    fn vocab_size(&self) -> usize {
        self.state.model.vocab_size
    }

    fn rows(&self) -> usize {
        self.program.as_ref().map_or(0, DecodeProgram::shared_rows).max(self.slots())
    }

    fn launch_cost(&self, rows: usize) -> f64 {
        let one = self.launches.first().map_or(1.0, |(_, seconds)| *seconds);
        let fitting = self.launches.iter().find(|(most, _)| *most >= rows);
        fitting.map_or(rows as f64 * one, |(_, seconds)| *seconds)
    }

    fn prefill_cost(&self, position: usize, tokens: usize) -> f64 {
        let room = |cached: usize| self.options.shapes.cache_for(cached).max(self.state.cache.capacity);
        self.sizes.time(position, tokens, room) * WAITING
    }

    fn pass(&self, position: usize, remaining: usize) -> usize {
        let size = self.next(position, remaining);
        if size > 1 {
            return size.min(remaining);
        }
        // All decode steps in a row.
        (1..remaining).find(|done| self.next(position + done, remaining - done) > 1).unwrap_or(remaining)
    }

    fn prefill(&mut self, slot: usize, position: usize, tokens: &[u32], rows: Rows) -> Result<Vec<f32>, LlmError> {
        check(self, slot, position, tokens)?;
        self.used[slot] = position;
        self.make_room(position)?;
        let (mut logits, mut done) = (Vec::new(), 0);
        while done < tokens.len() {
            let rest = &tokens[done..];
            let cached = position + done;
            let chunk = self.next(cached, rest.len());
            let count = chunk.min(rest.len());
            done += count;
            let wanted = match rows {
                Rows::All => 0..count,
                Rows::Last if done == tokens.len() => count - 1..count,
                Rows::Last | Rows::None => 0..0,
            };
            if chunk == 1 || self.row_sizes.contains(&chunk) {
                self.launch(&launch::steps_of(slot, cached, &rest[..count], &wanted))?;
                for row in 0..wanted.len() {
                    logits.extend(self.state.fetch_rows(row, 1)?);
                }
                continue;
            }
            self.take_in(slot, cached, &rest[..count], chunk)?;
            let wanted: Vec<usize> = wanted.collect();
            for wanted in wanted.chunks(if self.program.is_some() { BLOCK_ROWS } else { 1 }) {
                for (to, from) in wanted.iter().enumerate() {
                    self.state.take_row(*from, to)?;
                }
                self.head(wanted.len())?;
                logits.extend(self.state.fetch_rows(0, wanted.len())?);
            }
        }
        self.used[slot] = position + tokens.len();
        Ok(logits)
    }

    fn launch(&mut self, steps: &[Step]) -> Result<(), LlmError> {
        check_launch(self, steps)?;
        let needed = steps.iter().map(|step| step.position + 1).max().unwrap_or(0);
        for step in steps {
            self.used[step.slot] = step.position;
        }
        self.make_room(needed)?;
        self.launched = match self.class_of(steps) {
            Some(RowClass::Apart) => self.launch_apart(steps)?,
            Some(class) => self.launch_rows(steps, class)?,
            None => self.launch_by_turns(steps)?,
        };
        for step in steps {
            self.used[step.slot] = step.position + 1;
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<Box<dyn StepLogits + '_>, LlmError> {
        let Self { state, launched, program, .. } = self;
        let Some(program) = program else {
            let rows = launched.iter_mut().map(|step| match (step.fetched.take(), step.row) {
                (Some(fetched), _) => Ok(fetched),
                (None, Some(row)) => state.fetch_rows(row, 1),
                (None, None) => Ok(Vec::new()),
            });
            return Ok(Box::new(HostLogits(rows.collect::<Result<_, _>>()?)));
        };
        let found = program.top_logits(launched.iter().filter_map(|step| step.row).max().map_or(0, |row| row + 1))?;
        Ok(Box::new(DeviceLogits { state, steps: launched, found, row: Vec::new() }))
    }

    fn copy(&mut self, from: usize, to: usize, positions: usize) -> Result<(), LlmError> {
        self.state.cache.copy_slot(from, to, positions)?;
        self.used[to] = positions;
        Ok(())
    }

    fn release(&mut self, slot: usize) {
        if let Some(used) = self.used.get_mut(slot) {
            *used = 0;
        }
    }

    fn forget(&mut self, slot: usize) -> Result<(), LlmError> {
        self.release(slot);
        Ok(self.state.cache.clear_slot(slot)?)
    }

    fn kv_layout(&self) -> Option<KvLayout> {
        Some(self.state.cache.layout())
    }

    fn export(&mut self, slot: usize, layer: usize, positions: usize) -> Result<Vec<u8>, LlmError> {
        let exchange = Exchange { slot, layer, positions };
        check_exchange(self, exchange)?;
        if positions > self.state.cache.capacity {
            return Err(not_exchanged(slot, layer, positions));
        }
        Ok(self.state.cache.export(exchange)?)
    }

    fn import(&mut self, slot: usize, layer: usize, positions: usize, bytes: &[u8]) -> Result<(), LlmError> {
        let exchange = Exchange { slot, layer, positions };
        if bytes.len() != check_exchange(self, exchange)? {
            return Err(not_exchanged(slot, layer, positions));
        }
        self.used[slot] = positions;
        self.make_room(positions)?;
        Ok(self.state.cache.import(exchange, bytes)?)
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse {
            weights: self.state.weights.bytes() as u64,
            cache: self.state.cache.bytes() as u64,
            scratch: (self.state.scratch_bytes()
                + self.engines.scratch_bytes()
                + self.program.as_ref().map_or(0, DecodeProgram::scratch_bytes)) as u64,
        }
    }

    fn bandwidth(&mut self) -> Result<f64, LlmError> {
        Ok(tune::copy_bandwidth(&self.state.device.stream)?)
    }

    fn bytes_per_step(&self) -> u64 {
        self.state.weights.bytes() as u64
    }
}
