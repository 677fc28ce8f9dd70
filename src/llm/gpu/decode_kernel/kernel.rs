//! The decode kernel on this device: compiled for it, launched, and told what to do in the terms of `abi.cu`. The one file
//! that launches it.
#![allow(unsafe_code)]

use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute;
use cudarc::driver::{CudaFunction, CudaModule, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg};

use super::super::buffers::Buffer;
use super::super::code;
use super::super::driver::{Address, device_error, word};
use super::super::packed_tiles::{self, Kinds, Layout};
use super::abi::{Launch, Phase, Places, TILE, WARPS, second};
use super::partition::Dealt;
use super::variant::{self, THREADS, Variant};
use crate::backend::BackendError;
use crate::backend::tensorrt::device::Device;
use crate::convert::Transformer;
use crate::tensor::DType;

/// Source of the kernels.
pub(crate) const SOURCE: &str = concat!(
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

// SAFETY: plain numbers, laid out as abi.cu declares `Step`.
unsafe impl DeviceRepr for Launch {}

/// Grid and threads of a matrix' unpacking: a block for a tile of four strips, a warp for each 32 inputs of each.
pub(super) fn expansion(layout: Layout) -> ((u32, u32), u32) {
    let grid = (word(layout.tiles()), word(layout.outputs.div_ceil(TILE)));
    (grid, word(layout.deep() * TILE / packed_tiles::STRIP))
}

/// The kernel, compiled for this device.
pub(crate) struct Kernel {
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
    pub(crate) fn compile(
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
    pub(crate) fn takes_packed(&self) -> bool {
        self.dtype == DType::Float16
    }

    /// A packed matrix to `[inputs, outputs]` in float16.
    pub(crate) fn expand(
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
