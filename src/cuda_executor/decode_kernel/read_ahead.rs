//! How far ahead of the computation a block's producer warps read. What is enough depends on the device: bytes that are
//! under way hide the latency of memory, and more make all other loads wait; prefetches share the L2 cache, and memory,
//! among all blocks. So it follows from the device's sizes and, where the LM head's matrix is large enough to be timed,
//! from how fast it is read when a model is loaded. It changes the speed alone.

use super::super::driver::word;
use super::super::state::DeviceState;
use super::abi::{COMPUTE_WARPS, DecodeParams, MOST_SLOTS_IN_FLIGHT, PLAIN_TILE_BYTES};
use super::kernel::{DecodeKernel, PhaseList};
use super::sm_speed::{BlockClocks, median};
use crate::backend::BackendError;

/// Bytes of a block's prefetches at a time: two plain tiles for each of its producer warps.
const PREFETCHED: usize = COMPUTE_WARPS * PLAIN_TILE_BYTES;
/// Share of the L2 cache for what all blocks prefetch: activations and partial sums have the rest. That is four prefetches
/// a block on an H100, where it was found (50 MB, 132 blocks); three on an AGX Orin (4 MB, 16 blocks).
const SHARE_OF_CACHE: usize = 3;
/// Most prefetches of a block; more was never tried.
const MOST_PREFETCHES: usize = 8;
/// Slots in flight and clocks between two prefetches where reading was not timed: an H100's.
const UNTIMED: (u32, u32) = (2, 2500);
/// Clocks between two prefetches, at least and at most.
const CLOCKS: (f64, f64) = (500.0, 50_000.0);
/// Time of a product with fewer slots in flight, relative to the best, that is as good: it leaves more of memory's queues to
/// other loads.
const AS_GOOD: f64 = 1.02;
/// Timed launches with each number of slots in flight, by turns, of which the median counts.
const RUNS: usize = 5;

/// See the module; `abi.cu` documents the fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadAhead {
    slots_in_flight: u32,
    prefetch_tiles: u32,
    prefetch_clocks: u32,
}

impl ReadAhead {
    /// For a device with an L2 cache of `cache` bytes, for as many blocks as it has multiprocessors.
    pub(super) fn new(cache: usize, blocks: usize) -> Self {
        let all = SHARE_OF_CACHE * blocks.max(1) * PREFETCHED;
        let prefetches = ((cache + all / 2) / all).min(MOST_PREFETCHES);
        let (slots_in_flight, prefetch_clocks) = UNTIMED;
        Self { slots_in_flight, prefetch_tiles: word(prefetches), prefetch_clocks }
    }

    /// The parameters of a launch that reads so far ahead.
    pub(super) fn of_launch(self, params: DecodeParams) -> DecodeParams {
        let Self { slots_in_flight, prefetch_tiles, prefetch_clocks } = self;
        DecodeParams { slots_in_flight, prefetch_tiles, prefetch_clocks, ..params }
    }

    /// Times `list`, an evenly partitioned product with `bytes` of weights, more than the L2 cache holds.
    pub(super) fn measure(
        self,
        kernel: &DecodeKernel,
        state: &DeviceState,
        (list, bytes): (&PhaseList, usize),
        params: DecodeParams,
    ) -> Result<Self, BackendError> {
        let stream = &state.device.stream;
        let mut clocks = BlockClocks::new(stream, kernel.blocks)?;
        let mut samples = [const { Vec::new() }; MOST_SLOTS_IN_FLIGHT];
        // The first round wakes the device.
        for round in 0..=RUNS {
            for (slots_in_flight, samples) in (1..).zip(&mut samples) {
                let params = Self { slots_in_flight, ..self }.of_launch(params);
                let blocks = clocks.of_launch(kernel, stream, list, params)?;
                if round > 0 {
                    samples.push(median(&mut blocks.iter().map(|[clocks, _]| *clocks).collect::<Vec<_>>()));
                }
            }
        }
        Ok(self.timed(samples.map(|mut samples| median(&mut samples)), bytes / kernel.blocks.max(1)))
    }

    /// What is chosen if blocks take so many clocks to read `bytes` each, with one slot in flight, two, and so on.
    fn timed(self, clocks: [u32; MOST_SLOTS_IN_FLIGHT], bytes: usize) -> Self {
        let best = clocks.iter().copied().min().unwrap_or(0).max(1);
        let as_good = |clocks: &u32| f64::from(*clocks) <= AS_GOOD * f64::from(best);
        let slots = clocks.iter().position(as_good).map_or(UNTIMED.0, |at| word(at + 1));
        // Prefetches come as fast as memory is read.
        let prefetch_clocks = PREFETCHED as f64 * f64::from(best) / bytes.max(1) as f64;
        let prefetch_clocks = prefetch_clocks.clamp(CLOCKS.0, CLOCKS.1).round() as u32;
        Self { slots_in_flight: slots, prefetch_clocks, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_h100_has_what_was_measured_on_it_and_an_orin_what_fits_it() {
        let of = |cache: usize, blocks| ReadAhead::new(cache, blocks).prefetch_tiles;
        // H100, A100 40 MB, AGX Orin, Orin NX with 8 multiprocessors and 4 MB; none where there is no room.
        assert_eq!([of(50 << 20, 132), of(40 << 20, 108), of(4 << 20, 16), of(4 << 20, 8)], [4, 4, 3, 5]);
        assert_eq!([of(1 << 20, 132), of(1 << 30, 16), of(0, 0)], [0, 8, 0]);
    }

    #[test]
    fn no_more_is_under_way_than_makes_reading_faster() {
        let read_ahead = ReadAhead::new(50 << 20, 132);
        // A head of 32,000 by 4,096 in 16 bits at 13 bytes a clock of an SM, as on an H100.
        let timed = read_ahead.timed([180_000, 153_000, 152_000], 2 * 32_000 * 4096 / 132);
        assert_eq!(timed, ReadAhead { slots_in_flight: 2, prefetch_tiles: 4, prefetch_clocks: 2508 });
        // An Orin's blocks read 8 bytes a clock, however much is under way.
        let timed = read_ahead.timed([2_050_000, 2_048_000, 2_049_000], 2 * 32_000 * 4096 / 16);
        assert_eq!((timed.slots_in_flight, timed.prefetch_clocks), (1, 4096));
        assert_eq!(read_ahead.timed([300, 200, 100], 0).slots_in_flight, 3);
        assert_eq!(read_ahead.timed([0; 3], 1 << 30).prefetch_clocks, 500, "clocks that stand still");
        let params = read_ahead.of_launch(DecodeParams { rows: 7, ..DecodeParams::default() });
        assert_eq!((params.rows, params.slots_in_flight, params.prefetch_clocks), (7, 2, 2500));
    }
}
