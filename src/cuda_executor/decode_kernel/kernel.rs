//! Compiles and launches the decode kernel. The only file that launches it.
#![allow(unsafe_code)]

use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute;
use cudarc::driver::{CudaFunction, CudaModule, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg};

use super::super::buffers::Buffer;
use super::super::code;
use super::super::driver::{Address, device_error, word};
use super::super::matrix::PackedMatrix;
use super::super::packed_tiles::{PackedLayout, TileKinds};
use super::abi::{
    BLOCK_THREADS, COMPUTE_WARPS, DEQUANTIZE_STRIPS, DEQUANTIZE_WARPS, DecodeParams, DequantizeParams, PACKED_TILE_N,
    PhaseDescriptor, TopLogitsParams, offset_kind,
};
use super::partition::Partition;
use super::row_class::RowClass;
use super::variant::{self, Variant, VariantTarget};
use crate::backend::BackendError;
use crate::backend::tensorrt::device::Device;
use crate::convert::{LayerTypes, Transformer};
use crate::spec::KvCache;
use crate::tensor::DType;

/// The kernel's source files in order; the only list of them. The tests substitute other primitives, and
/// `scripts/nvrtc.py` parses this list.
macro_rules! source {
    ($primitives:literal) => {
        concat!(
            include_str!("abi.cu"),
            include_str!($primitives),
            include_str!("math.cu"),
            include_str!("phase.cu"),
            include_str!("inputs.cu"),
            include_str!("tile_mma.cu"),
            include_str!("tile_order.cu"),
            include_str!("ring.cu"),
            include_str!("producer.cu"),
            include_str!("epilogue.cu"),
            include_str!("plain_matmul.cu"),
            include_str!("packed_matmul.cu"),
            include_str!("stage_rows.cu"),
            include_str!("wide_mma.cu"),
            include_str!("wide_matmul.cu"),
            include_str!("norm_add.cu"),
            include_str!("rope.cu"),
            include_str!("kv_elements.cu"),
            include_str!("attention_load.cu"),
            include_str!("attention.cu"),
            include_str!("attention_rows_load.cu"),
            include_str!("attention_rows.cu"),
            include_str!("kernel.cu"),
            include_str!("dequantize.cu"),
            include_str!("top_logits.cu")
        )
    };
}

/// The source for NVRTC.
pub(crate) const SOURCE: &str = source!("primitives.cu");

/// The source for the host's C++ compiler, with primitives that emulate the hardware on a CPU.
#[cfg(test)]
pub(super) const EMULATED: &str = concat!(source!("tests/emulator.h"), include_str!("tests/emulator.cc"));

// SAFETY: plain numbers without padding (`Pod`), laid out as abi.cu declares them.
unsafe impl DeviceRepr for DecodeParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for TopLogitsParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for DequantizeParams {}

/// Grid of the kernels that do not run one block per multiprocessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LaunchGrid {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) threads: u32,
}

impl LaunchGrid {
    fn config(self) -> LaunchConfig {
        LaunchConfig { grid_dim: (self.x, self.y, 1), block_dim: (self.threads, 1, 1), shared_mem_bytes: 0 }
    }
}

/// Grid for dequantising a packed matrix: blocks beside each other write the same rows of outputs.
pub(super) fn dequantize_grid(layout: PackedLayout) -> LaunchGrid {
    LaunchGrid {
        x: word(layout.outputs.div_ceil(DEQUANTIZE_WARPS * DEQUANTIZE_STRIPS * PACKED_TILE_N)),
        y: word(layout.tiles()),
        threads: word(32 * DEQUANTIZE_WARPS),
    }
}

/// Parameters for dequantising a packed matrix to `out`.
pub(super) fn dequantize_params(matrix: PackedMatrix, out: Address) -> DequantizeParams {
    let PackedMatrix { tiles, input_order, layout } = matrix;
    DequantizeParams {
        weights: tiles,
        out,
        input_order,
        inputs: word(layout.inputs),
        outputs: word(layout.outputs),
        tile_bytes: word(layout.tile_bytes()),
        group_size: word(layout.group),
        offset_kind: offset_kind(layout.offset),
        padding: 0,
    }
}

/// The kernel, compiled for a device.
pub(crate) struct DecodeKernel {
    decode: CudaFunction,
    dequantize_int4: CudaFunction,
    dequantize_int8: CudaFunction,
    top_logits: CudaFunction,
    /// Blocks of a launch, one per multiprocessor: all run at once, so that they can wait for each other.
    pub(super) blocks: usize,
    shared: usize,
    /// Kinds of packed tiles that it is compiled for.
    kinds: TileKinds,
    /// The launches that it is compiled for.
    pub(super) class: RowClass,
    /// Queries of a slot and key head that a block takes at once.
    pub(super) query_rows: usize,
}

impl DecodeKernel {
    /// Compiles the kernel for a model with these kinds of packed tiles, and for launches of a class; the inner error says why there is none.
    pub(crate) fn compile(
        device: &Device,
        model: &Transformer,
        types: LayerTypes,
        (kinds, class): (TileKinds, RowClass),
    ) -> Result<Result<Self, String>, BackendError> {
        let kv_bits = match types.kv_cache {
            KvCache::Auto => 16,
            KvCache::Int8 => 8,
        };
        match variant::check(model, types) {
            Ok(()) => Self::for_device(device, VariantTarget { dtype: types.dtype, kinds, kv_bits, class }),
            Err(why) => Ok(Err(why)),
        }
    }

    /// Compiles the kernel for a target; the inner error says why there is none.
    pub(super) fn for_device(device: &Device, target: VariantTarget) -> Result<Result<Self, String>, BackendError> {
        let kinds = if target.dtype == DType::Float16 { target.kinds } else { TileKinds::default() };
        let memory = device.shared_memory()?;
        let mut why = None;
        for kinds in kinds.or_all() {
            let variant = match Variant::new(memory, VariantTarget { kinds, ..target }) {
                Ok(variant) => variant,
                Err(too_small) => return Ok(Err(why.unwrap_or(too_small))),
            };
            match code::load(device, SOURCE, &variant.options()) {
                Ok(module) => return Self::of(device, &module, &variant).map(Ok),
                // TensorRT decodes, as it can without our kernel. What was wrong with the kinds there are says more.
                Err(BackendError::Kernels { what, .. }) => why = why.or(Some(what)),
                Err(error) => return Err(error),
            }
        }
        Ok(Err(why.unwrap_or_default()))
    }

    fn of(device: &Device, module: &Arc<CudaModule>, variant: &Variant) -> Result<Self, BackendError> {
        let function = |name: &str| module.load_function(name).map_err(device_error);
        let dtype = variant.target.dtype;
        let decode = function(if dtype == DType::BFloat16 { "decode_bf16" } else { "decode_f16" })?;
        let shared = variant.shared();
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        decode.set_attribute(attribute, i32::try_from(shared).unwrap_or(i32::MAX)).map_err(device_error)?;
        Ok(Self {
            decode,
            dequantize_int4: function("dequantize_int4")?,
            dequantize_int8: function("dequantize_int8")?,
            top_logits: function("top_logits")?,
            blocks: device.multiprocessors()?,
            shared,
            kinds: variant.target.kinds,
            class: variant.target.class,
            query_rows: variant.query_rows(),
        })
    }

    /// Whether it supports packed integers.
    pub(crate) fn takes_packed(&self) -> bool {
        self.kinds != TileKinds::default()
    }

    /// Dequantises a packed matrix to `[inputs, outputs]` in float16.
    pub(crate) fn dequantize(
        &self,
        stream: &CudaStream,
        matrix: PackedMatrix,
        out: Address,
    ) -> Result<(), BackendError> {
        let function = if matrix.layout.bits == 4 { &self.dequantize_int4 } else { &self.dequantize_int8 };
        let params = dequantize_params(matrix, out);
        let mut launch = stream.launch_builder(function);
        launch.arg(&params);
        // SAFETY: the parameter is as dequantize.cu declares it; the caller's buffers have these sizes.
        unsafe { launch.launch(dequantize_grid(matrix.layout).config()) }.map(drop).map_err(device_error)
    }

    /// Finds the largest logits of rows, each searched by `blocks`; see `top_logits.cu`.
    pub(super) fn top_logits(
        &self,
        stream: &CudaStream,
        params: &TopLogitsParams,
        blocks: usize,
        rows: usize,
    ) -> Result<(), BackendError> {
        let mut launch = stream.launch_builder(&self.top_logits);
        launch.arg(params);
        let grid = LaunchGrid { x: word(blocks), y: word(rows), threads: word(32 * COMPUTE_WARPS) };
        // SAFETY: the parameter is as top_logits.cu declares it; the caller's buffers have these sizes.
        unsafe { launch.launch(grid.config()) }.map(drop).map_err(device_error)
    }

    /// Enqueues a list of phases. Every address in it and in `params` must refer to live memory that is large enough
    /// for the sizes beside it.
    pub(super) fn launch(
        &self,
        stream: &CudaStream,
        list: &PhaseList,
        params: DecodeParams,
    ) -> Result<(), BackendError> {
        let params = DecodeParams {
            phases: list.phases.address(),
            counters: list.counters.address(),
            claims: list.claims,
            phase_count: word(list.count),
            ..params
        };
        list.counters.clear()?;
        let mut builder = stream.launch_builder(&self.decode);
        builder.arg(&params);
        let config = LaunchConfig {
            grid_dim: (word(self.blocks), 1, 1),
            block_dim: (word(BLOCK_THREADS), 1, 1),
            shared_mem_bytes: word(self.shared),
        };
        // SAFETY: the parameter is as abi.cu declares it; for the addresses the caller vouches.
        unsafe { builder.launch(config) }.map(drop).map_err(device_error)
    }
}

/// Phases in device memory, with their counters.
pub(super) struct PhaseList {
    phases: Buffer,
    counters: Buffer,
    /// Address of the words behind the counters, one for each block, by which shares of the work are taken.
    claims: Address,
    /// The work partition: the units of each block.
    partition: Buffer,
    count: usize,
}

impl PhaseList {
    /// Uploads phases of launches of a class, for blocks with these shares of the work; the `counters` of strips and heads follow the phases'
    /// own, and the claims of the shares follow those.
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        phases: &[PhaseDescriptor],
        counters: usize,
        (shares, class): (&[u32], RowClass),
    ) -> Result<Self, BackendError> {
        let parts = Partition::new(phases, shares, class);
        let table: &[u8] = bytemuck::cast_slice(&parts.table);
        let mut partition = Buffer::unset(stream, table.len().max(4), "decode steps")?;
        partition.upload(table)?;
        let list = parts.at(partition.address());
        let bytes: &[u8] = bytemuck::cast_slice(&list);
        let mut phases = Buffer::unset(stream, bytes.len(), "decode steps")?;
        phases.upload(bytes)?;
        let counted = list.len() + counters;
        let counters = Buffer::new(stream, (counted + shares.len()) * 4, "decode steps")?;
        let claims = counters.address() + (counted * 4) as Address;
        Ok(Self { phases, counters, claims, partition, count: list.len() })
    }

    pub(super) fn bytes(&self) -> usize {
        self.phases.len() + self.counters.len() + self.partition.len()
    }
}
