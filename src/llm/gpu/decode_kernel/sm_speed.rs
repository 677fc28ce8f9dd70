//! Multiprocessors are not all alike: on one H100 some read a third faster than the others, for their neighbours are fewer.
//! What each of them can read is measured once when a model is loaded, and they get as much of each product.

use super::super::buffers::{Buffer, Pinned};
use super::super::driver::{Address, word};
use super::super::state::State;
use super::abi::Launch;
use super::kernel::{Kernel, List};
use crate::backend::BackendError;

/// What each block gets, and which multiprocessor is which block.
pub(super) struct Shares {
    pub(super) of: Vec<u32>,
    ranks: Option<Buffer>,
}

/// Shares are in quarters of what most get: coarse, so that the same device always gets the same, and sums the same order.
const QUARTERS: f64 = 4.0;
const RUNS: usize = 5;

impl Shares {
    /// The same for all.
    pub(super) fn even(blocks: usize) -> Self {
        Self { of: vec![word(QUARTERS as usize); blocks], ranks: None }
    }

    /// Where the ranks are, if there are any.
    pub(super) fn ranks(&self) -> Address {
        self.ranks.as_ref().map_or(0, Buffer::address)
    }

    /// Measures how long each block takes for its part of `list`, one product of weights too large for the L2 cache, dealt out
    /// evenly; none if all are alike.
    pub(super) fn measure(
        kernel: &Kernel,
        state: &State,
        list: &List,
        launch: Launch,
    ) -> Result<Option<Self>, BackendError> {
        let (stream, blocks) = (&state.device.stream, kernel.blocks);
        let times = Buffer::new(stream, 8 * blocks, "decode steps")?;
        let mut answer = Pinned::new(stream, 8 * blocks)?;
        // By multiprocessor, for a block may be on another each time.
        let mut taken: Vec<(u32, Vec<u32>)> = Vec::new();
        for _ in 0..RUNS {
            kernel.launch(stream, list, Launch { times: times.address(), ..launch })?;
            times.download(&mut answer, 0, 8 * blocks)?;
            let words: &[u32] = bytemuck::cast_slice(&answer.bytes()?[..8 * blocks]);
            for pair in words.chunks_exact(2) {
                match taken.iter_mut().find(|(multiprocessor, _)| *multiprocessor == pair[1]) {
                    Some((_, clocks)) => clocks.push(pair[0]),
                    None => taken.push((pair[1], vec![pair[0]])),
                }
            }
        }
        if taken.len() != blocks {
            return Ok(None);
        }
        let median = |values: &mut Vec<u32>| {
            values.sort_unstable();
            values[values.len() / 2]
        };
        taken.sort_unstable();
        let clocks: Vec<u32> = taken.iter_mut().map(|(_, clocks)| median(clocks)).collect();
        let usual = f64::from(median(&mut clocks.clone()));
        let share = |clocks: &u32| (QUARTERS * usual / f64::from((*clocks).max(1))).round().clamp(2.0, 8.0) as u32;
        let of: Vec<u32> = clocks.iter().map(share).collect();
        if of.iter().all(|share| *share == of[0]) {
            return Ok(None);
        }
        let last = taken.last().map_or(0, |(multiprocessor, _)| *multiprocessor as usize);
        let mut ranks = vec![0_u32; last + 1];
        taken.iter().enumerate().for_each(|(rank, (multiprocessor, _))| ranks[*multiprocessor as usize] = word(rank));
        let mut buffer = Buffer::unset(stream, 4 * ranks.len(), "decode steps")?;
        buffer.upload(bytemuck::cast_slice(&ranks))?;
        Ok(Some(Self { of, ranks: Some(buffer) }))
    }
}
