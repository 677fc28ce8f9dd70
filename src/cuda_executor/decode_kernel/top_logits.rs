//! Finds the largest logits of a step on the device; see `top_logits.cu`.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::super::buffers::{Buffer, Pinned};
use super::super::driver::{Address, word};
use super::abi::{EXP_SUMS_BYTES, LOGITS_PER_BLOCK, TopLogitsParams, TopLogitsRow};
use super::kernel::DecodeKernel;
use crate::backend::BackendError;
use crate::executor::{TOP_LOGITS, TopLogits};

/// Number of blocks that search a row of logits.
pub(super) fn blocks_of_row(vocabulary: usize) -> usize {
    vocabulary.div_ceil(LOGITS_PER_BLOCK)
}

/// Buffers of the kernel's partial and final results.
pub(super) struct TopLogitsFinder {
    vocabulary: usize,
    lists: Buffer,
    sums: Buffer,
    counters: Buffer,
    out: Buffer,
    answer: Pinned,
}

/// Addresses of rows of logits, and of 1 / temperature for each.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogitRows {
    pub(super) logits: Address,
    pub(super) inverse_temperatures: Address,
    pub(super) rows: usize,
}

impl TopLogitsFinder {
    pub(super) fn new(stream: &Arc<CudaStream>, vocabulary: usize, rows: usize) -> Result<Self, BackendError> {
        let buffer = |bytes: usize| Buffer::new(stream, bytes, "likeliest tokens");
        let parts = rows * blocks_of_row(vocabulary);
        let out = rows * size_of::<TopLogitsRow>();
        Ok(Self {
            vocabulary,
            lists: buffer(parts * TOP_LOGITS * 8)?,
            sums: buffer(parts * EXP_SUMS_BYTES)?,
            counters: buffer(rows * 4)?,
            out: buffer(out)?,
            answer: Pinned::new(stream, out)?,
        })
    }

    /// Enqueues the search in rows of logits, in the stream's order.
    pub(super) fn enqueue(
        &self,
        kernel: &DecodeKernel,
        stream: &CudaStream,
        of: LogitRows,
    ) -> Result<(), BackendError> {
        let params = TopLogitsParams {
            logits: of.logits,
            inverse_temperatures: of.inverse_temperatures,
            lists: self.lists.address(),
            sums: self.sums.address(),
            counters: self.counters.address(),
            out: self.out.address(),
            vocabulary: word(self.vocabulary),
            padding: 0,
        };
        kernel.top_logits(stream, &params, blocks_of_row(self.vocabulary), of.rows)
    }

    /// Waits for the results of the first `rows`.
    pub(super) fn collect(&mut self, rows: usize) -> Result<Vec<TopLogits>, BackendError> {
        const ROW: usize = size_of::<TopLogitsRow>();
        self.out.download(&mut self.answer, 0, rows * ROW)?;
        Ok(self.answer.bytes()?[..rows * ROW].chunks_exact(ROW).map(read).collect())
    }

    /// Bytes on the device: the answer's copy is the host's.
    pub(super) fn bytes(&self) -> usize {
        self.lists.len() + self.sums.len() + self.counters.len() + self.out.len()
    }
}

/// Parses the kernel's result for a row.
pub(super) fn read(bytes: &[u8]) -> TopLogits {
    let row: TopLogitsRow = bytemuck::pod_read_unaligned(bytes);
    let token = |key: u64| {
        // `sort_key` undone: the logit's bits above, in an order that integers have, and the token's complement.
        let (order, token) = (word((key >> 32) as usize), word((!key & 0xffff_ffff) as usize));
        let bits = if order >> 31 == 1 { order & 0x7fff_ffff } else { !order };
        (token, f32::from_bits(bits))
    };
    TopLogits {
        tokens: row.keys.into_iter().filter(|key| *key != 0).map(token).collect(),
        sum_exp: f64::from(row.sum_exp),
        sum_exp_at_temperature: f64::from(row.sum_exp_at_temperature),
    }
}
