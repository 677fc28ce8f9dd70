//! The likeliest tokens of the last logits, found on the device: see `top_logits.cu`.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::super::buffers::{Buffer, Pinned};
use super::super::driver::{Address, word};
use super::abi::Places;
use super::kernel::Kernel;
use crate::backend::BackendError;
use crate::llm::executor::{LIKELIEST, Likeliest};

/// As top_logits.cu has them: tokens that are found, logits of a block, bytes of a row's result and of a block's sums.
pub(super) const BEST: usize = LIKELIEST;
const SHARE: usize = 2048;
pub(super) const RANKED: usize = 8 * BEST + 8;
pub(super) const MASS: usize = 12;

/// Blocks that share a row of logits.
pub(super) fn shares(vocabulary: usize) -> usize {
    vocabulary.div_ceil(SHARE)
}

/// Where the kernel puts its parts and what it found.
pub(super) struct Ranking {
    vocabulary: usize,
    lists: Buffer,
    masses: Buffer,
    counters: Buffer,
    out: Buffer,
    answer: Pinned,
}

impl Ranking {
    pub(super) fn new(stream: &Arc<CudaStream>, vocabulary: usize, rows: usize) -> Result<Self, BackendError> {
        let buffer = |bytes: usize| Buffer::new(stream, bytes, "likeliest tokens");
        let parts = rows * shares(vocabulary);
        Ok(Self {
            vocabulary,
            lists: buffer(parts * BEST * 8)?,
            masses: buffer(parts * MASS)?,
            counters: buffer(rows * 4)?,
            out: buffer(rows * RANKED)?,
            answer: Pinned::new(stream, rows * RANKED)?,
        })
    }

    /// Ranks `rows` rows of `logits`, in the stream's order. `inverses` has 1 / temperature of each.
    pub(super) fn enqueue(
        &self,
        (kernel, stream): (&Kernel, &CudaStream),
        logits: Address,
        inverses: Address,
        rows: usize,
    ) -> Result<(), BackendError> {
        let [lists, masses, counters, out] =
            [&self.lists, &self.masses, &self.counters, &self.out].map(|buffer| buffer.address());
        let places = Places { logits, inverses, lists, masses, counters, out };
        kernel.rank(stream, (shares(self.vocabulary), rows), word(self.vocabulary), &places)
    }

    /// Waits for what was found in the first `rows`.
    pub(super) fn collect(&mut self, rows: usize) -> Result<Vec<Likeliest>, BackendError> {
        self.out.download(&mut self.answer, 0, rows * RANKED)?;
        Ok(self.answer.bytes()?[..rows * RANKED].chunks_exact(RANKED).map(read).collect())
    }

    pub(super) fn bytes(&self) -> usize {
        self.lists.len() + self.masses.len() + self.out.len()
    }
}

/// One row of what the kernel found.
pub(super) fn read(bytes: &[u8]) -> Likeliest {
    let (keys, sums) = bytes.split_at(8 * BEST);
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let tokens = keys.chunks_exact(8).map(number).filter(|key| *key != 0).map(|key| {
        let (order, token) = (word((key >> 32) as usize), word((!key & 0xffff_ffff) as usize));
        let bits = if order >> 31 == 1 { order & 0x7fff_ffff } else { !order };
        (token, f32::from_bits(bits))
    });
    let sum = |at: usize| f64::from(f32::from_bits(word(number(&sums[4 * at..][..4]) as usize)));
    Likeliest { tokens: tokens.collect(), total: sum(0), warm: sum(1) }
}
