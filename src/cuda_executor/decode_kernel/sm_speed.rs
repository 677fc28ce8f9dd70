//! Relative speeds of the multiprocessors (SMs): on one H100 some read a third faster than others. Their read
//! throughput is measured once when a model is loaded, and each gets a share of every product in proportion.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::super::buffers::{Buffer, Pinned};
use super::super::driver::{Address, word};
use super::super::state::DeviceState;
use super::abi::DecodeParams;
use super::kernel::{DecodeKernel, PhaseList};
use crate::backend::BackendError;

/// Share of the work of each block, and which multiprocessor runs which block.
pub(super) struct SmSpeeds {
    pub(super) shares: Vec<u32>,
    block_of_sm: Option<Buffer>,
}

/// Resolution of shares in parts of the usual share; coarse, so that the same device seldom gets another partition, which
/// changes the order of sums.
const QUARTERS: f64 = 4.0;
/// Number of measurements, of which the median counts.
const RUNS: usize = 5;

/// A multiprocessor, and the clock cycles of its block.
struct Measured {
    sm: u32,
    clocks: Vec<u32>,
}

/// The median of values, of which there must be one.
pub(super) fn median(values: &mut [u32]) -> u32 {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Reads the clock cycles of the blocks of launches.
pub(super) struct BlockClocks {
    clocks: Buffer,
    answer: Pinned,
}

impl BlockClocks {
    pub(super) fn new(stream: &Arc<CudaStream>, blocks: usize) -> Result<Self, BackendError> {
        let clocks = Buffer::new(stream, 8 * blocks, "decode steps")?;
        Ok(Self { clocks, answer: Pinned::new(stream, 8 * blocks)? })
    }

    /// The clock cycles of each block in a launch of a list, and the multiprocessor it was on.
    pub(super) fn of_launch(
        &mut self,
        kernel: &DecodeKernel,
        stream: &CudaStream,
        list: &PhaseList,
        params: DecodeParams,
    ) -> Result<Vec<[u32; 2]>, BackendError> {
        let bytes = 8 * kernel.blocks;
        kernel.launch(stream, list, DecodeParams { block_clocks: self.clocks.address(), ..params })?;
        self.clocks.download(&mut self.answer, 0, bytes)?;
        Ok(bytemuck::cast_slice::<u8, [u32; 2]>(&self.answer.bytes()?[..bytes]).to_vec())
    }
}

impl SmSpeeds {
    /// Equal shares.
    pub(super) fn even(blocks: usize) -> Self {
        Self { shares: vec![word(QUARTERS as usize); blocks], block_of_sm: None }
    }

    /// Address of the table from multiprocessor to block, or 0.
    pub(super) fn block_of_sm(&self) -> Address {
        self.block_of_sm.as_ref().map_or(0, Buffer::address)
    }

    /// Number of multiprocessors in the table; 0 without one.
    pub(super) fn sm_count(&self) -> u32 {
        word(self.bytes() / size_of::<u32>())
    }

    /// Bytes of the table on the device.
    pub(super) fn bytes(&self) -> usize {
        self.block_of_sm.as_ref().map_or(0, Buffer::len)
    }

    /// Measures the time of each block for its part of `list`, an evenly partitioned product with weights larger than
    /// the L2 cache; `None` if all are equally fast.
    pub(super) fn measure(
        kernel: &DecodeKernel,
        state: &DeviceState,
        list: &PhaseList,
        params: DecodeParams,
    ) -> Result<Option<Self>, BackendError> {
        let (stream, blocks) = (&state.device.stream, kernel.blocks);
        let mut clocks = BlockClocks::new(stream, blocks)?;
        // By multiprocessor, for a block may be on another each time.
        let mut measured: Vec<Measured> = Vec::new();
        for _ in 0..RUNS {
            for [clocks, sm] in clocks.of_launch(kernel, stream, list, params)? {
                match measured.iter_mut().find(|measured| measured.sm == sm) {
                    Some(measured) => measured.clocks.push(clocks),
                    None => measured.push(Measured { sm, clocks: vec![clocks] }),
                }
            }
        }
        if measured.len() != blocks {
            return Ok(None);
        }
        measured.sort_unstable_by_key(|measured| measured.sm);
        let clocks: Vec<u32> = measured.iter_mut().map(|measured| median(&mut measured.clocks)).collect();
        let usual = f64::from(median(&mut clocks.clone()));
        let share = |clocks: &u32| (QUARTERS * usual / f64::from((*clocks).max(1))).round().clamp(2.0, 8.0) as u32;
        let shares: Vec<u32> = clocks.iter().map(share).collect();
        if shares.iter().all(|share| *share == shares[0]) {
            return Ok(None);
        }
        let last = measured.last().map_or(0, |measured| measured.sm as usize);
        let mut block_of_sm = vec![0_u32; last + 1];
        measured.iter().enumerate().for_each(|(block, measured)| block_of_sm[measured.sm as usize] = word(block));
        let mut buffer = Buffer::unset(stream, 4 * block_of_sm.len(), "decode steps")?;
        buffer.upload(bytemuck::cast_slice(&block_of_sm))?;
        Ok(Some(Self { shares, block_of_sm: Some(buffer) }))
    }
}
