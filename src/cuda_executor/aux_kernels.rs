//! Launches our small kernels around TensorRT's engines: transposition, conversion, masks, rotary rows, caches. The
//! only file that launches them, and therefore one with `unsafe`.
#![allow(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaStream, LaunchConfig, PushKernelArg};

use super::code;
use super::driver::{Address, device_error, kind, word};
use crate::backend::BackendError;
use crate::backend::tensorrt::device::Device;
use crate::convert::MASKED;
use crate::tensor::DType;

/// Source of the kernels.
pub(super) const SOURCE: &str = include_str!("aux_kernels.cu");

/// The compiled kernels, and the stream they run on.
pub(super) struct AuxKernels {
    stream: Arc<CudaStream>,
    transpose: CudaFunction,
    convert: CudaFunction,
    mask: CudaFunction,
    rotary: CudaFunction,
    append: CudaFunction,
    append8: CudaFunction,
    widen8: CudaFunction,
    spread: CudaFunction,
}

/// Name of a file that every folder with this version's precompiled kernels contains.
pub fn packaged_kernel() -> String {
    code::name(SOURCE, &[])
}

/// The folder with this version's precompiled kernels, if there is one.
pub fn packaged_kernels() -> Option<PathBuf> {
    code::packaged_with(&packaged_kernel())
}

type Launched = Result<(), BackendError>;

fn grid(x: usize, y: usize, z: usize, threads: u32) -> LaunchConfig {
    let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    LaunchConfig { grid_dim: (size(x), size(y), size(z)), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// Address and element type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elements {
    pub(super) address: Address,
    pub(super) dtype: DType,
}

/// Addresses of a layer's keys and values, and their element type.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeysValues {
    pub(super) addresses: [Address; 2],
    pub(super) dtype: DType,
}

/// Addresses of a layer's cached keys and values, and of their scales (0 if there are none).
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerAddresses {
    pub(super) rows: [Address; 2],
    pub(super) scales: [Address; 2],
}

/// Device addresses of three arrays with an element per row of a batch: cached positions, new positions, 1 /
/// temperature.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowPositions {
    pub(super) cached: Address,
    pub(super) count: Address,
    pub(super) inverse_temperatures: Address,
}

/// A matrix `[rows, columns]` to transpose into columns `first..` of `[columns, stride]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transposition {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) stride: usize,
    pub(super) first: usize,
}

/// A conversion `to[first..][..count] = from[..count] · scale + offset`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conversion {
    pub(super) count: usize,
    pub(super) first: usize,
    pub(super) scale: f32,
    pub(super) offset: f32,
}

/// Shape of a mask, `[batch, group · chunk, cache + chunk]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct MaskShape {
    pub(super) batch: usize,
    pub(super) group: usize,
    pub(super) chunk: usize,
    pub(super) cache: usize,
}

/// The next `chunk` rows of a table `[positions, words]` for each sequence of a batch; a word has 32 bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct RotaryRows {
    pub(super) batch: usize,
    pub(super) chunk: usize,
    pub(super) words: usize,
    pub(super) positions: usize,
}

/// Shape of caches `[batch, heads, capacity, width]`, to which `chunk` positions are appended.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheShape {
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) chunk: usize,
    pub(super) capacity: usize,
    /// Elements of a row, or its 32-bit words.
    pub(super) width: usize,
}

/// Blocks of `from` rows to copy into blocks of `to` rows; a row has `words` 32-bit words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spread {
    pub(super) blocks: usize,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) words: usize,
}

impl AuxKernels {
    pub(super) fn compile(device: &Device) -> Result<Self, BackendError> {
        let module = code::load(device, SOURCE, &[])?;
        let function = |name: &str| module.load_function(name).map_err(device_error);
        Ok(Self {
            stream: Arc::clone(&device.stream),
            transpose: function("transpose")?,
            convert: function("convert")?,
            mask: function("mask")?,
            rotary: function("rotary")?,
            append: function("append")?,
            append8: function("append8")?,
            widen8: function("widen8")?,
            spread: function("spread")?,
        })
    }

    /// Transposes a matrix into columns of another; counts values out of range in `bad`.
    pub(super) fn transpose(&self, from: Elements, to: Elements, shape: Transposition, bad: Address) -> Launched {
        let (from_kind, to_kind) = (kind(from.dtype), kind(to.dtype));
        let Transposition { rows, columns, stride, first } = shape;
        let mut config = grid(columns.div_ceil(32), rows.div_ceil(32), 1, 32);
        config.block_dim.1 = 8;
        let [rows, columns, stride, first] = [rows, columns, stride, first].map(word);
        let mut launch = self.stream.launch_builder(&self.transpose);
        launch.arg(&from.address).arg(&from_kind).arg(&to.address).arg(&to_kind);
        launch.arg(&rows).arg(&columns).arg(&stride).arg(&first).arg(&bad);
        // SAFETY: arguments as aux_kernels.cu declares them; the caller sized both buffers by these numbers.
        unsafe { launch.launch(config) }.map(drop).map_err(device_error)
    }

    /// Converts elements; counts values out of range in `bad`.
    pub(super) fn convert(&self, from: Elements, to: Elements, how: Conversion, bad: Address) -> Launched {
        let (from_kind, to_kind) = (kind(from.dtype), kind(to.dtype));
        let (count, first) = (how.count as u64, how.first as u64);
        let mut launch = self.stream.launch_builder(&self.convert);
        launch.arg(&from.address).arg(&from_kind).arg(&to.address).arg(&to_kind);
        launch.arg(&count).arg(&first).arg(&how.scale).arg(&how.offset).arg(&bad);
        // SAFETY: as above.
        unsafe { launch.launch(grid(how.count.div_ceil(256), 1, 1, 256)) }.map(drop).map_err(device_error)
    }

    /// Writes the masks of sequences, whose numbers of cached positions are at `cached`.
    pub(super) fn mask(&self, to: Elements, cached: Address, shape: MaskShape, window: Option<usize>) -> Launched {
        let MaskShape { batch, group, chunk, cache } = shape;
        let config = grid((cache + chunk).div_ceil(256), group * chunk, batch, 256);
        let (kind, hidden) = (kind(to.dtype), MASKED);
        let (chunk, cache, window) = (word(chunk), word(cache), window.map_or(0, word));
        let mut launch = self.stream.launch_builder(&self.mask);
        launch.arg(&to.address).arg(&kind).arg(&cached).arg(&chunk).arg(&cache).arg(&window).arg(&hidden);
        // SAFETY: as above.
        unsafe { launch.launch(config) }.map(drop).map_err(device_error)
    }

    /// Copies the rows of a rotary table for each sequence's next positions.
    pub(super) fn rotary(&self, table: Address, to: Address, cached: Address, rows: RotaryRows) -> Launched {
        let (words, last) = (word(rows.words), word(rows.positions - 1));
        let mut launch = self.stream.launch_builder(&self.rotary);
        launch.arg(&table).arg(&to).arg(&cached).arg(&words).arg(&last);
        // SAFETY: as above; positions beyond the table are clamped.
        unsafe { launch.launch(grid(rows.chunk, rows.batch, 1, 64)) }.map(drop).map_err(device_error)
    }

    /// Appends new keys and values to caches of the same element type, whose width is in words.
    pub(super) fn append(
        &self,
        new: [Address; 2],
        caches: [Address; 2],
        positions: RowPositions,
        shape: CacheShape,
    ) -> Launched {
        let RowPositions { cached, count, .. } = positions;
        let (heads, capacity, words) = (word(shape.heads), word(shape.capacity), word(shape.width));
        let mut launch = self.stream.launch_builder(&self.append);
        launch.arg(&new[0]).arg(&new[1]).arg(&caches[0]).arg(&caches[1]).arg(&cached).arg(&count);
        launch.arg(&heads).arg(&capacity).arg(&words);
        let config = grid(shape.chunk, shape.batch * shape.heads, 1, 64);
        // SAFETY: as above; the executor keeps cached + count within the capacity.
        unsafe { launch.launch(config) }.map(drop).map_err(device_error)
    }

    /// Appends new keys and values to int8 caches and their scales.
    pub(super) fn append8(
        &self,
        new: KeysValues,
        caches: LayerAddresses,
        positions: RowPositions,
        shape: CacheShape,
    ) -> Launched {
        let (KeysValues { addresses: new, dtype }, LayerAddresses { rows, scales }) = (new, caches);
        let RowPositions { cached, count, .. } = positions;
        let kind = kind(dtype);
        let (heads, capacity, dim) = (word(shape.heads), word(shape.capacity), word(shape.width));
        let mut launch = self.stream.launch_builder(&self.append8);
        launch.arg(&new[0]).arg(&new[1]).arg(&kind);
        launch.arg(&rows[0]).arg(&rows[1]).arg(&scales[0]).arg(&scales[1]).arg(&cached).arg(&count);
        launch.arg(&heads).arg(&capacity).arg(&dim);
        let config = grid(shape.chunk, shape.batch * shape.heads, 1, 64);
        // SAFETY: as above.
        unsafe { launch.launch(config) }.map(drop).map_err(device_error)
    }

    /// Dequantises the filled part of int8 caches into those that the engines read.
    pub(super) fn widen8(
        &self,
        caches: LayerAddresses,
        to: KeysValues,
        cached: Address,
        shape: CacheShape,
    ) -> Launched {
        let (LayerAddresses { rows, scales }, KeysValues { addresses: wide, dtype }) = (caches, to);
        let (kind, heads, dim) = (kind(dtype), word(shape.heads), word(shape.width));
        let mut launch = self.stream.launch_builder(&self.widen8);
        launch.arg(&rows[0]).arg(&rows[1]).arg(&scales[0]).arg(&scales[1]);
        launch.arg(&wide[0]).arg(&wide[1]).arg(&kind).arg(&cached).arg(&heads).arg(&dim);
        let config = grid(shape.capacity, shape.batch * shape.heads, 1, 64);
        // SAFETY: as above.
        unsafe { launch.launch(config) }.map(drop).map_err(device_error)
    }

    /// Copies blocks of rows into blocks with room for another number of rows.
    pub(super) fn spread(&self, source: Address, target: Address, spread: Spread) -> Launched {
        let (from, to, words) = (word(spread.from), word(spread.to), word(spread.words));
        let mut launch = self.stream.launch_builder(&self.spread);
        launch.arg(&source).arg(&target).arg(&from).arg(&to).arg(&words);
        let config = grid(spread.from.min(spread.to), spread.blocks, 1, 64);
        // SAFETY: as above.
        unsafe { launch.launch(config) }.map(drop).map_err(device_error)
    }
}
