//! Passes of a prompt through the engines, and the room that they need in the caches.

use super::super::state::BatchRow;
use super::GpuExecutor;
use super::path::EnginePass;
use crate::backend::BackendError;
use crate::convert::LayerShape;
use crate::executor::LlmError;

impl GpuExecutor {
    /// Grows the slots to at least `needed` positions, or shrinks them if no slot needs more.
    pub(super) fn make_room(&mut self, needed: usize) -> Result<(), BackendError> {
        let longest = self.used.iter().copied().max().unwrap_or(0);
        let wanted = self.options.shapes.cache_for(needed.max(longest));
        if wanted > self.state.cache.capacity || (longest == 0 && wanted < self.state.cache.capacity) {
            self.state.cache.resize(&self.state.kernels, wanted)?;
        }
        Ok(())
    }

    /// Size of the next pass.
    pub(super) fn next(&self, position: usize, remaining: usize) -> usize {
        let room = |cached: usize| self.options.shapes.cache_for(cached).max(self.state.cache.capacity);
        self.sizes.next(position, remaining, room)
    }

    /// Runs a pass of `tokens`, padded to `chunk`, through the engines of all layers.
    pub(super) fn take_in(&mut self, slot: usize, cached: usize, tokens: &[u32], chunk: usize) -> Result<(), LlmError> {
        let count = tokens.len();
        let cache = if cached == 0 { 0 } else { self.state.cache.capacity };
        let shape = LayerShape { batch: 1, chunk, cache };
        self.load(Some(shape), usize::from(self.program.is_none()))?;
        // The pass reads caches as they are and leaves them as large as the next one wants them: a long prompt's first
        // chunks need not attend to the room of its last.
        let room = self.options.shapes.cache_for(cached + count);
        self.state.cache.next_capacity = room.max(self.state.cache.capacity);
        let row = BatchRow { cached, count, ..BatchRow::default() };
        self.enqueue(EnginePass { shape, slot, layers: usize::MAX }, tokens, row)
    }

    /// Enqueues a pass of `tokens`.
    pub(super) fn enqueue(&mut self, pass: EnginePass, tokens: &[u32], row: BatchRow) -> Result<(), LlmError> {
        let EnginePass { shape, slot, layers } = pass;
        let rows: Vec<usize> = (0..tokens.len()).collect();
        self.state.embed(tokens, &rows, shape.chunk)?;
        self.state.place(&[row])?;
        Ok(self.engines.enqueue(&mut self.state, shape, slot, layers)?)
    }
}
