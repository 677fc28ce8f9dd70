//! TensorRT's engines of the layers and the head, loaded when first used, with a shared scratch memory.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::buffers::Buffer;
use super::driver::device_error;
use super::kv_cache::{NewPositions, SlotRange};
use super::matrix::Matrix;
use super::state::DeviceState;
use super::sweep::{PlacedPass, SweepExtent};
use super::unpack::Unpacker;
use crate::artifact::{cache_dir, sha256, write_file};
use crate::backend::BackendError;
use crate::backend::tensorrt::{Engine, Family, KernelCache, TensorRt};
use crate::convert::LayerShape;
use crate::diagnostic::Diagnostic;
use crate::executor::{head_name, layer_name};
use crate::regular_file;

/// Largest file of compiled kernels in bytes, far more than any needs.
const COMPILED_LIMIT: u64 = 1 << 30;

/// The engines of a directory.
pub(super) struct Engines {
    tensorrt: Arc<TensorRt>,
    folder: PathBuf,
    tf32: bool,
    layers: HashMap<LayerShape, Engine>,
    heads: HashMap<usize, Engine>,
    scratch: Option<Buffer>,
    compiled: RtxKernels,
    /// Dequantises packed weights for the engines; `None` without packed weights.
    unpacker: Option<Unpacker>,
}

/// The kernels that TensorRT-RTX compiles when an engine first runs, cached on disk.
struct RtxKernels {
    kernels: KernelCache,
    /// Path of the cache file, by the content of an engine, library and device; `None` where engines contain their
    /// kernels.
    path: Option<PathBuf>,
    /// Bytes on disk.
    kept: usize,
    /// Whether an engine was loaded since the last write.
    grew: bool,
}

/// Location of the engines.
pub(super) struct EngineFolder {
    pub(super) path: PathBuf,
    /// Shape of one of the engines.
    pub(super) first: LayerShape,
    /// Whether they were built with TF32.
    pub(super) tf32: bool,
}

impl Engines {
    pub(super) fn new(
        tensorrt: Arc<TensorRt>,
        folder: EngineFolder,
        device: &str,
        unpacker: Option<Unpacker>,
    ) -> Result<Self, BackendError> {
        let EngineFolder { path: folder, first, tf32 } = folder;
        let name = (tensorrt.version.family == Family::Rtx).then(|| {
            let plan = std::fs::read(folder.join(format!("{}.engine", layer_name(first)))).unwrap_or_default();
            sha256(format!("{} {device} {tf32} {}", tensorrt.version, sha256(&plan)).as_bytes())
        });
        let path = name.map(|name| cache_dir().join("kernels").join(format!("{name}.rtx")));
        let before = path.as_ref().and_then(|path| regular_file::read(path, COMPILED_LIMIT).ok()).unwrap_or_default();
        let compiled = RtxKernels { kernels: tensorrt.kernel_cache(&before)?, path, kept: before.len(), grew: false };
        let (layers, heads) = (HashMap::new(), HashMap::new());
        Ok(Self { tensorrt, folder, tf32, layers, heads, scratch: None, compiled, unpacker })
    }

    /// Writes the compiled kernels to disk. If that fails, the next start compiles them again.
    fn keep_compiled(&mut self) {
        let RtxKernels { kernels, path: Some(path), kept, grew: grew @ true } = &mut self.compiled else { return };
        *grew = false;
        let bytes = kernels.bytes();
        if bytes.len() != *kept {
            let _ = path.parent().map(std::fs::create_dir_all);
            let _ = write_file(path, &bytes);
            *kept = bytes.len();
        }
    }

    fn load(&mut self, state: &DeviceState, name: &str) -> Result<Engine, BackendError> {
        let path = self.folder.join(format!("{name}.engine"));
        let plan = std::fs::read(&path)
            .map_err(|error| BackendError::Foreign(format!("{}: {error}", path.display()).into()))?;
        let mut engine = self.tensorrt.engine(&plan, self.tf32, &self.compiled.kernels).map_err(|error| {
            let what = Diagnostic::new(format!("{}: {error}", path.display()));
            BackendError::Foreign(
                what.with_help("engines run on the kind of GPU they were built for; build again here"),
            )
        })?;
        let wanted = engine.scratch_bytes();
        if self.scratch.as_ref().is_none_or(|scratch| scratch.len() < wanted) {
            // What is on the stream may still use the old one.
            state.device.stream.synchronize().map_err(device_error)?;
            // What is in TensorRT's scratch memory counts for nothing.
            let scratch = Buffer::unset(&state.device.stream, wanted, "the engines' scratch memory")?;
            for engine in self.layers.values_mut().chain(self.heads.values_mut()) {
                engine.set_scratch(scratch.address() as usize, scratch.len());
            }
            self.scratch = Some(scratch);
        }
        if let Some(scratch) = &self.scratch {
            engine.set_scratch(scratch.address() as usize, scratch.len());
        }
        Ok(engine)
    }

    /// Loads the engines of a shape before a graph is captured, so that the graph's scratch memory never moves.
    pub(super) fn prepare(
        &mut self,
        state: &DeviceState,
        shape: Option<LayerShape>,
        rows: usize,
    ) -> Result<bool, BackendError> {
        let before = self.scratch.as_ref().map(Buffer::address);
        let loaded = self.layers.len() + self.heads.len();
        if let Some(shape) = shape
            && !self.layers.contains_key(&shape)
        {
            let engine = self.load(state, &layer_name(shape))?;
            self.layers.insert(shape, engine);
        }
        if rows > 0 && !self.heads.contains_key(&rows) {
            let engine = self.load(state, &head_name(rows))?;
            self.heads.insert(rows, engine);
        }
        match self.layers.len() + self.heads.len() > loaded {
            true => self.compiled.grew = true,
            // They have run since.
            false => self.keep_compiled(),
        }
        Ok(before.is_some() && before != self.scratch.as_ref().map(Buffer::address))
    }

    /// Enqueues the head for the first `rows` of `DeviceState::last`.
    pub(super) fn head(&mut self, state: &mut DeviceState, rows: usize) -> Result<(), BackendError> {
        let engine = self.heads.get_mut(&rows);
        let engine = engine.ok_or_else(|| BackendError::Run(format!("{} is not loaded", head_name(rows)).into()))?;
        let buffers = [("hidden", &state.last), ("norm", &state.weights.norm), ("logits", &state.logits)];
        for (name, buffer) in buffers {
            engine.set_address(name, buffer.address() as usize)?;
        }
        // Packed only where our kernel runs, which computes logits itself: it is never unpacked.
        let Matrix::Plain(output) = &state.weights.output else {
            return Err(BackendError::Run("the output matrix is packed, and engines take it in floats".into()));
        };
        engine.set_address("output", output.address() as usize)?;
        engine.enqueue(state.device.stream.cu_stream() as usize)
    }

    pub(super) fn scratch_bytes(&self) -> usize {
        self.scratch.as_ref().map_or(0, Buffer::len) + self.unpacker.as_ref().map_or(0, Unpacker::bytes)
    }

    /// Enqueues passes from the hidden states in `DeviceState::hidden[0]`, where `embed` puts each pass's, to those of the
    /// last layer: all of them through one layer before any goes through the next.
    pub(super) fn sweep<E: From<BackendError>>(
        &mut self,
        state: &mut DeviceState,
        passes: &[PlacedPass],
        extent: SweepExtent,
        mut embed: impl FnMut(&mut DeviceState, &PlacedPass) -> Result<(), E>,
    ) -> Result<(), E> {
        let layers = state.model.layers.len().min(extent.layers);
        state.prologue(passes)?;
        if let Some(unpacker) = self.unpacker.as_ref().filter(|_| extent.unpacks) {
            unpacker.begin(&state.weights)?;
        }
        for layer in 0..layers {
            if let Some(unpacker) = self.unpacker.as_ref().filter(|_| extent.unpacks) {
                unpacker.enter(&state.weights, layer, layers)?;
            }
            for pass in passes {
                if layer == 0 {
                    // The host looks up a pass's embeddings while the device computes those before.
                    embed(state, pass)?;
                }
                self.run(state, layer, pass)?;
            }
            if let Some(unpacker) = self.unpacker.as_ref().filter(|_| extent.unpacks) {
                unpacker.leave(layer)?;
            }
        }
        Ok(())
    }

    /// Enqueues a pass's run through a layer, and appends its keys and values to the cache.
    fn run(&mut self, state: &mut DeviceState, layer: usize, pass: &PlacedPass) -> Result<(), BackendError> {
        let PlacedPass { shape, slot, row, capacity, next_capacity, .. } = *pass;
        let engine = self.layers.get_mut(&shape);
        let engine = engine.ok_or_else(|| BackendError::Run(format!("{} is not loaded", layer_name(shape)).into()))?;
        // Each layer's cache grows on its own, from pass to pass.
        (state.cache.capacity, state.cache.next_capacity) = (capacity, next_capacity);
        let slots = SlotRange { first: slot, batch: shape.batch };
        let positions = state.positions_from(row);
        for (name, address) in state.bindings(layer, pass)? {
            engine.set_address(name, address as usize)?;
        }
        if shape.cache > 0 {
            let [key, value] = state.cache.past(&state.kernels, layer, slots, positions.cached)?;
            engine.set_address("past_key", key as usize)?;
            engine.set_address("past_value", value as usize)?;
        }
        for (at, (name, weight)) in state.weight_names.iter().zip(&state.weights.layers[layer]).enumerate() {
            let address = match (weight, &self.unpacker) {
                (Matrix::Packed { .. }, Some(unpacker)) => unpacker.address(layer, at),
                (weight, _) => weight.address(),
            };
            engine.set_address(name, address as usize)?;
        }
        engine.enqueue(state.device.stream.cu_stream() as usize)?;
        let addresses = state.new.each_ref().map(Buffer::address);
        let new = NewPositions { addresses, chunk: shape.chunk, positions };
        state.cache.append(&state.kernels, layer, slots, new)?;
        state.cache.capacity = next_capacity;
        Ok(())
    }
}
