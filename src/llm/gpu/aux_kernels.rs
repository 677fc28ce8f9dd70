//! Our own kernels around the engines. The one file that launches them, so the one with `unsafe`.
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

/// Compiled kernels and the stream they go to.
pub(super) struct Kernels {
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

/// Name of one file that every folder of this version's kernels has.
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

impl Kernels {
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

    /// `[rows, columns]` to columns `first..` of `[columns, stride]`; counts values out of range in `bad`.
    pub(super) fn transpose(
        &self,
        (from, from_type): (Address, DType),
        (to, to_type): (Address, DType),
        [rows, columns, stride, first]: [usize; 4],
        bad: Address,
    ) -> Launched {
        let (from_kind, to_kind) = (kind(from_type), kind(to_type));
        let [rows_, columns_, stride, first] = [rows, columns, stride, first].map(word);
        let mut config = grid(columns.div_ceil(32), rows.div_ceil(32), 1, 32);
        config.block_dim.1 = 8;
        let mut launch = self.stream.launch_builder(&self.transpose);
        launch.arg(&from).arg(&from_kind).arg(&to).arg(&to_kind);
        launch.arg(&rows_).arg(&columns_).arg(&stride).arg(&first).arg(&bad);
        // SAFETY: arguments as aux_kernels.cu declares them; the caller sized both buffers by these numbers.
        unsafe { launch.launch(config) }.map(drop).map_err(device_error)
    }

    /// to[first..] = from · scale + offset.
    pub(super) fn convert(
        &self,
        (from, from_type): (Address, DType),
        (to, to_type): (Address, DType),
        (count, first): (usize, usize),
        (scale, offset): (f32, f32),
        bad: Address,
    ) -> Launched {
        let (from_kind, to_kind) = (kind(from_type), kind(to_type));
        let (count_, first) = (count as u64, first as u64);
        let mut launch = self.stream.launch_builder(&self.convert);
        launch.arg(&from).arg(&from_kind).arg(&to).arg(&to_kind);
        launch.arg(&count_).arg(&first).arg(&scale).arg(&offset).arg(&bad);
        // SAFETY: as above.
        unsafe { launch.launch(grid(count.div_ceil(256), 1, 1, 256)) }.map(drop).map_err(device_error)
    }

    /// The mask of `[batch, group · chunk, cache + chunk]`.
    pub(super) fn mask(
        &self,
        (to, dtype): (Address, DType),
        cached: Address,
        [batch, group, chunk, cache]: [usize; 4],
        window: Option<usize>,
    ) -> Launched {
        let (kind, hidden) = (kind(dtype), MASKED);
        let (chunk_, cache_, window) = (word(chunk), word(cache), window.map_or(0, word));
        let mut launch = self.stream.launch_builder(&self.mask);
        launch.arg(&to).arg(&kind).arg(&cached).arg(&chunk_).arg(&cache_).arg(&window).arg(&hidden);
        let config = grid((cache + chunk).div_ceil(256), group * chunk, batch, 256);
        // SAFETY: as above.
        unsafe { launch.launch(config) }.map(drop).map_err(device_error)
    }

    /// Rows of a rotary table for the next `chunk` positions of each sequence.
    pub(super) fn rotary(
        &self,
        table: Address,
        to: Address,
        cached: Address,
        [batch, chunk, words, positions]: [usize; 4],
    ) -> Launched {
        let (words_, last) = (word(words), word(positions - 1));
        let mut launch = self.stream.launch_builder(&self.rotary);
        launch.arg(&table).arg(&to).arg(&cached).arg(&words_).arg(&last);
        // SAFETY: as above; positions beyond the table are clamped.
        unsafe { launch.launch(grid(chunk, batch, 1, 64)) }.map(drop).map_err(device_error)
    }

    /// Appends new (key, value) to the caches (keys, values).
    pub(super) fn append(
        &self,
        new: [Address; 2],
        caches: [Address; 2],
        (cached, count): (Address, Address),
        [batch, heads, chunk, capacity, words]: [usize; 5],
    ) -> Launched {
        let (heads_, capacity, words_) = (word(heads), word(capacity), word(words));
        let mut launch = self.stream.launch_builder(&self.append);
        launch.arg(&new[0]).arg(&new[1]).arg(&caches[0]).arg(&caches[1]).arg(&cached).arg(&count);
        launch.arg(&heads_).arg(&capacity).arg(&words_);
        // SAFETY: as above; the executor keeps cached + count within the capacity.
        unsafe { launch.launch(grid(chunk, batch * heads, 1, 64)) }.map(drop).map_err(device_error)
    }

    /// The same of caches in 8 bits and their scales.
    pub(super) fn append8(
        &self,
        (new, dtype): ([Address; 2], DType),
        (caches, scales): ([Address; 2], [Address; 2]),
        (cached, count): (Address, Address),
        [batch, heads, chunk, capacity, dim]: [usize; 5],
    ) -> Launched {
        let (kind, heads_, capacity, dim) = (kind(dtype), word(heads), word(capacity), word(dim));
        let mut launch = self.stream.launch_builder(&self.append8);
        launch.arg(&new[0]).arg(&new[1]).arg(&kind);
        launch.arg(&caches[0]).arg(&caches[1]).arg(&scales[0]).arg(&scales[1]).arg(&cached).arg(&count);
        launch.arg(&heads_).arg(&capacity).arg(&dim);
        // SAFETY: as above.
        unsafe { launch.launch(grid(chunk, batch * heads, 1, 64)) }.map(drop).map_err(device_error)
    }

    /// Caches in 8 bits, as far as they are filled, to those the engines read.
    pub(super) fn widen8(
        &self,
        (caches, scales): ([Address; 2], [Address; 2]),
        (wide, dtype): ([Address; 2], DType),
        cached: Address,
        [batch, heads, capacity, dim]: [usize; 4],
    ) -> Launched {
        let (kind, heads_, dim) = (kind(dtype), word(heads), word(dim));
        let mut launch = self.stream.launch_builder(&self.widen8);
        launch.arg(&caches[0]).arg(&caches[1]).arg(&scales[0]).arg(&scales[1]);
        launch.arg(&wide[0]).arg(&wide[1]).arg(&kind).arg(&cached).arg(&heads_).arg(&dim);
        // SAFETY: as above.
        unsafe { launch.launch(grid(capacity, batch * heads, 1, 64)) }.map(drop).map_err(device_error)
    }

    /// Blocks of `from` rows to blocks of `to` rows.
    pub(super) fn spread(&self, source: Address, target: Address, [blocks, from, to, words]: [usize; 4]) -> Launched {
        let (from_, to_, words_) = (word(from), word(to), word(words));
        let mut launch = self.stream.launch_builder(&self.spread);
        launch.arg(&source).arg(&target).arg(&from_).arg(&to_).arg(&words_);
        // SAFETY: as above.
        unsafe { launch.launch(grid(from.min(to), blocks, 1, 64)) }.map(drop).map_err(device_error)
    }
}
