//! Multiprocessors (SMs) are not all alike: on one H100 some read a third faster than others. What each of them can read is
//! measured once when a model is loaded, and it gets of each product in proportion.

use super::super::buffers::{Buffer, Pinned};
use super::super::driver::{Address, word};
use super::super::state::DeviceState;
use super::abi::DecodeParams;
use super::kernel::{DecodeKernel, PhaseList};
use crate::backend::BackendError;

/// What each block gets of the work, and which multiprocessor does which block's.
pub(super) struct SmSpeeds {
    pub(super) shares: Vec<u32>,
    block_of_sm: Option<Buffer>,
}

/// Shares are in quarters of what most get: coarse, so that the same device seldom gets others, which change the order of sums.
const QUARTERS: f64 = 4.0;
/// Measurements, of which the medians count.
const RUNS: usize = 5;

/// A multiprocessor, and clocks that its block took.
struct Measured {
    sm: u32,
    clocks: Vec<u32>,
}

fn median(values: &mut [u32]) -> u32 {
    values.sort_unstable();
    values[values.len() / 2]
}

impl SmSpeeds {
    /// The same for all.
    pub(super) fn even(blocks: usize) -> Self {
        Self { shares: vec![word(QUARTERS as usize); blocks], block_of_sm: None }
    }

    /// Where the kernel reads whose work a multiprocessor does, or 0.
    pub(super) fn block_of_sm(&self) -> Address {
        self.block_of_sm.as_ref().map_or(0, Buffer::address)
    }

    /// How many multiprocessors it says that of.
    pub(super) fn sm_count(&self) -> u32 {
        word(self.bytes() / size_of::<u32>())
    }

    pub(super) fn bytes(&self) -> usize {
        self.block_of_sm.as_ref().map_or(0, Buffer::len)
    }

    /// Measures how long each block takes for its part of `list`, one product of weights too large for the L2 cache that is
    /// parted evenly; none if all are alike.
    pub(super) fn measure(
        kernel: &DecodeKernel,
        state: &DeviceState,
        list: &PhaseList,
        params: DecodeParams,
    ) -> Result<Option<Self>, BackendError> {
        let (stream, blocks) = (&state.device.stream, kernel.blocks);
        let clocks = Buffer::new(stream, 8 * blocks, "decode steps")?;
        let mut answer = Pinned::new(stream, 8 * blocks)?;
        // By multiprocessor, for a block may be on another each time.
        let mut measured: Vec<Measured> = Vec::new();
        for _ in 0..RUNS {
            kernel.launch(stream, list, DecodeParams { block_clocks: clocks.address(), ..params })?;
            clocks.download(&mut answer, 0, 8 * blocks)?;
            let words: &[u32] = bytemuck::cast_slice(&answer.bytes()?[..8 * blocks]);
            for pair in words.chunks_exact(2) {
                match measured.iter_mut().find(|measured| measured.sm == pair[1]) {
                    Some(measured) => measured.clocks.push(pair[0]),
                    None => measured.push(Measured { sm: pair[1], clocks: vec![pair[0]] }),
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
