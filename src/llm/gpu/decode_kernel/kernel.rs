//! The decode kernel on this device: compiled for it, launched, and told what to do in the terms of `abi.cu`. The one file
//! that launches it.
#![allow(unsafe_code)]

use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute;
use cudarc::driver::{CudaFunction, CudaModule, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg};

use super::super::aux_kernels::{Address, device_error, word};
use super::super::buffers::Buffer;
use super::super::code;
use super::super::packed_tiles::{self, Layout};
use super::partition::Dealt;
use super::top_logits::Places;
use super::variant::{self, Kinds, THREADS, Variant};
use crate::backend::BackendError;
use crate::backend::tensorrt::device::Device;
use crate::checkpoint::Second;
use crate::convert::Transformer;
use crate::tensor::DType;

/// Source of the kernels.
pub(in super::super) const SOURCE: &str = concat!(
    include_str!("abi.cu"),
    include_str!("primitives.cu"),
    include_str!("math.cu"),
    include_str!("tile_mma.cu"),
    include_str!("producer.cu"),
    include_str!("inputs.cu"),
    include_str!("plain_matmul.cu"),
    include_str!("packed_matmul.cu"),
    include_str!("attention.cu"),
    include_str!("kernel.cu"),
    include_str!("top_logits.cu")
);

/// As abi.cu has them.
pub(super) const TILE: usize = 64;
pub(super) const WIDEST: usize = WARPS * TILE;
/// Columns of a strip where a residual is added after a norm.
pub(super) const ADD_WIDTH: usize = 128;
/// Warps side by side. Long rows of plain weights read faster, but more blocks then share a strip, which costs more the
/// more sequences there are.
pub(super) const PLAIN_ACROSS: usize = 4;
pub(super) const PLAIN_ACROSS_TOGETHER: usize = 2;
pub(super) const WARPS: usize = 8;
pub(super) const FETCHERS: usize = 4;
/// Inputs of a plain tile.
pub(super) const PLAIN_DEEP: usize = 32;
/// Sequences of a step at most.
pub(in super::super) const ROWS: usize = 8;
/// Bytes of a tile of plain weights.
pub(super) const PLAIN_TILE: usize = 4096;

/// What a phase does, as abi.cu numbers it.
pub(super) const PRODUCT: u32 = 0;
pub(super) const ATTEND: u32 = 1;
pub(super) const ADD: u32 = 2;

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Phase {
    pub(super) x: Address,
    pub(super) squares: Address,
    pub(super) norm: Address,
    pub(super) key_norm: Address,
    pub(super) weights: Address,
    pub(super) order: Address,
    pub(super) bias: Address,
    pub(super) residual: Address,
    pub(super) out: Address,
    pub(super) out_squares: Address,
    pub(super) keys: Address,
    pub(super) values: Address,
    pub(super) key_scales: Address,
    pub(super) value_scales: Address,
    pub(super) cos: Address,
    pub(super) sin: Address,
    pub(super) dealt: Address,
    pub(super) owners: Address,
    pub(super) kind: u32,
    pub(super) weight_kind: u32,
    pub(super) inputs: u32,
    pub(super) outputs: u32,
    pub(super) stride: u32,
    pub(super) across: u32,
    pub(super) tile_k: u32,
    pub(super) tiles: u32,
    pub(super) strips: u32,
    pub(super) tile_bytes: u32,
    pub(super) group: u32,
    pub(super) second: u32,
    pub(super) square_count: u32,
    pub(super) gated: u32,
    pub(super) wide: u32,
    pub(super) counters: u32,
    pub(super) window: u32,
    pub(super) rotary: u32,
    pub(super) cap: f32,
    pub(super) parts: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Launch {
    pub(super) phases: Address,
    pub(super) counters: Address,
    pub(super) partial: Address,
    pub(super) attention: Address,
    pub(super) cached: Address,
    pub(super) present: Address,
    pub(super) count: u32,
    pub(super) rows: u32,
    pub(super) slot: u32,
    pub(super) capacity: u32,
    pub(super) positions: u32,
    pub(super) heads: u32,
    pub(super) kv_heads: u32,
    pub(super) dim: u32,
    pub(super) gelu: u32,
    pub(super) splits: u32,
    pub(super) eps: f32,
    pub(super) scale: f32,
    pub(super) cap: f32,
    pub(super) _end: u32,
    pub(super) ranks: Address,
    pub(super) times: Address,
}

// SAFETY: plain numbers, laid out as abi.cu declares `Step`.
unsafe impl DeviceRepr for Launch {}

/// Number of an arrangement of terms in abi.cu.
pub(super) fn second(second: Second) -> u32 {
    match second {
        Second::Zero => 1,
        Second::Minimum => 2,
    }
}

/// Grid and threads of a matrix' unpacking: a block for a tile of four strips, a warp for each 32 inputs of each.
pub(super) fn expansion(layout: Layout) -> ((u32, u32), u32) {
    let grid = (word(layout.tiles()), word(layout.outputs.div_ceil(TILE)));
    (grid, word(layout.deep() * TILE / packed_tiles::STRIP))
}

/// The kernel, compiled for this device.
pub(in super::super) struct Kernel {
    step: CudaFunction,
    expand: [(u32, CudaFunction); 2],
    rank: CudaFunction,
    /// One on each multiprocessor: all run at once, and may wait for each other.
    pub(super) blocks: usize,
    shared: usize,
    dtype: DType,
}

impl Kernel {
    /// Compiles it for a model with these kinds of packed tiles, or says why there is none.
    pub(in super::super) fn compile(
        device: &Device,
        model: &Transformer,
        dtype: DType,
        kinds: Kinds,
    ) -> Result<Result<Self, String>, BackendError> {
        let kept = if model.kv_type.is_some() { 8 } else { 16 };
        match variant::check(model, dtype) {
            Ok(()) => Self::for_device(device, dtype, (kinds, kept)),
            Err(why) => Ok(Err(why)),
        }
    }

    /// Compiles it for these kinds of packed tiles and caches of so many bits, or says why there is none.
    pub(super) fn for_device(
        device: &Device,
        dtype: DType,
        (kinds, kept): (Kinds, usize),
    ) -> Result<Result<Self, String>, BackendError> {
        let kinds = if dtype == DType::Float16 { kinds } else { Kinds::default() };
        let memory = device.shared_memory()?;
        let mut why = None;
        for kinds in kinds.or_all() {
            let variant = match Variant::new(memory, dtype, (kinds, kept)) {
                Ok(variant) => variant,
                Err(too_small) => return Ok(Err(why.unwrap_or(too_small))),
            };
            match code::load(device, SOURCE, &variant.options()) {
                Ok(module) => return Self::of(device, &module, &variant, dtype).map(Ok),
                // TensorRT decodes, as it can without our kernel. What was wrong with the kinds there are says more.
                Err(BackendError::Kernels { what, .. }) => why = why.or(Some(what)),
                Err(error) => return Err(error),
            }
        }
        Ok(Err(why.unwrap_or_default()))
    }

    fn of(device: &Device, module: &Arc<CudaModule>, variant: &Variant, dtype: DType) -> Result<Self, BackendError> {
        let function = |name: &str| module.load_function(name).map_err(device_error);
        let step = function(if dtype == DType::BFloat16 { "step_bf16" } else { "step_f16" })?;
        let shared = variant.shared();
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        step.set_attribute(attribute, i32::try_from(shared).unwrap_or(i32::MAX)).map_err(device_error)?;
        let expand = [(4, function("expand_int4")?), (8, function("expand_int8")?)];
        let rank = function("rank")?;
        Ok(Self { step, expand, rank, blocks: device.multiprocessors()?, shared, dtype })
    }

    /// Whether it multiplies packed integers.
    pub(in super::super) fn takes_packed(&self) -> bool {
        self.dtype == DType::Float16
    }

    /// A packed matrix to `[inputs, outputs]` in float16.
    pub(in super::super) fn expand(
        &self,
        stream: &CudaStream,
        (tiled, order, layout): (Address, Address, Layout),
        out: Address,
    ) -> Result<(), BackendError> {
        let function = self.expand.iter().find(|(bits, _)| *bits == layout.bits);
        let (_, function) = function.ok_or_else(|| BackendError::Run(format!("{} bits", layout.bits)))?;
        let [inputs, outputs, bytes, group] =
            [layout.inputs, layout.outputs, layout.tile_bytes(), layout.group].map(word);
        let second = second(layout.second);
        let mut launch = stream.launch_builder(function);
        launch.arg(&tiled).arg(&out).arg(&order).arg(&inputs).arg(&outputs).arg(&bytes).arg(&group).arg(&second);
        let ((tiles, columns), threads) = expansion(layout);
        let (grid_dim, block_dim) = ((tiles, columns, 1), (threads, 1, 1));
        // SAFETY: arguments as kernel.cu declares them; the caller's buffers have these sizes.
        unsafe { launch.launch(LaunchConfig { grid_dim, block_dim, shared_mem_bytes: 0 }) }
            .map(drop)
            .map_err(device_error)
    }

    /// Finds the likeliest of rows of logits, which so many blocks share; see `top_logits.cu`.
    pub(super) fn rank(
        &self,
        stream: &CudaStream,
        (shares, rows): (usize, usize),
        vocabulary: u32,
        places: &Places,
    ) -> Result<(), BackendError> {
        let mut launch = stream.launch_builder(&self.rank);
        launch.arg(&places.logits).arg(&vocabulary).arg(&places.inverses);
        launch.arg(&places.lists).arg(&places.masses).arg(&places.counters).arg(&places.out);
        let (grid_dim, block_dim) = ((word(shares), word(rows), 1), (word(32 * WARPS), 1, 1));
        // SAFETY: arguments as top_logits.cu declares them; the caller's buffers have these sizes.
        unsafe { launch.launch(LaunchConfig { grid_dim, block_dim, shared_mem_bytes: 0 }) }
            .map(drop)
            .map_err(device_error)
    }

    /// Puts a list of phases on the stream. Every address in it and in `launch` must be of memory that lives, and is large
    /// enough for the sizes beside it.
    pub(super) fn launch(&self, stream: &CudaStream, list: &List, launch: Launch) -> Result<(), BackendError> {
        let launch = Launch {
            phases: list.phases.address(),
            counters: list.counters.address(),
            count: word(list.count),
            ..launch
        };
        list.counters.clear()?;
        let mut builder = stream.launch_builder(&self.step);
        builder.arg(&launch);
        let config = LaunchConfig {
            grid_dim: (word(self.blocks), 1, 1),
            block_dim: (word(THREADS), 1, 1),
            shared_mem_bytes: word(self.shared),
        };
        // SAFETY: arguments as abi.cu declares them; for the addresses the caller vouches.
        unsafe { builder.launch(config) }.map(drop).map_err(device_error)
    }
}

/// Phases on the device, and their counters.
pub(super) struct List {
    phases: Buffer,
    counters: Buffer,
    /// What falls to each block.
    table: Buffer,
    count: usize,
}

impl List {
    /// For blocks with these shares; `counters` of strips and heads come after the phases' own.
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        list: &[Phase],
        counters: usize,
        shares: &[u32],
    ) -> Result<Self, BackendError> {
        let dealt = Dealt::new(list, shares);
        let bytes: Vec<u8> = dealt.table.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut table = Buffer::unset(stream, bytes.len().max(4), "decode steps")?;
        table.upload(&bytes)?;
        let list = dealt.at(table.address());
        let bytes = size_of_val(list.as_slice());
        let mut phases = Buffer::unset(stream, bytes, "decode steps")?;
        // SAFETY: `Phase` is plain numbers without padding.
        phases.upload(unsafe { std::slice::from_raw_parts(list.as_ptr().cast::<u8>(), bytes) })?;
        let counters = Buffer::new(stream, (list.len() + counters) * 4, "decode steps")?;
        Ok(Self { phases, counters, table, count: list.len() })
    }

    pub(super) fn bytes(&self) -> usize {
        self.phases.len() + self.counters.len() + self.table.len()
    }
}
