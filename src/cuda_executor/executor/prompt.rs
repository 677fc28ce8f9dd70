//! Prompts: cut into launches of our kernel and passes of the engines with the least total time; passes that follow each
//! other are a sweep.

use std::ops::Range;

use super::super::decode_kernel::abi::BLOCK_ROWS;
use super::super::state::BatchRow;
use super::super::sweep::{PlacedPass, SweepExtent, SweepStart, passes_of_sweep, place_passes};
use super::GpuExecutor;
use super::launch::steps_of;
use crate::executor::{Executor, LlmError, Rows};

/// A part of a prompt, and those of its tokens whose logits are wanted.
struct PromptPart<'a> {
    slot: usize,
    position: usize,
    tokens: &'a [u32],
    wanted: Range<usize>,
}

impl GpuExecutor {
    /// The sizes of the passes of `remaining` tokens behind `position`.
    fn cut(&self, position: usize, remaining: usize) -> Vec<usize> {
        let room = |cached: usize| self.options.shapes.cache_for(cached).max(self.state.cache.capacity);
        self.sizes.cut(position, remaining, room)
    }

    /// Whether passes of this size are launches of decode steps or rows, and not of the engines.
    fn is_launch(&self, size: usize) -> bool {
        size == 1 || self.row_sizes.contains(&size)
    }

    /// How many of the first passes are a sweep, if they are of the engines.
    fn sweep_of(&self, sizes: &[usize]) -> usize {
        let engines = sizes.iter().take_while(|size| !self.is_launch(**size)).count();
        passes_of_sweep(&sizes[..engines], self.state.sweep_rows)
    }

    /// The tokens of the first passes that belong together: launches behind each other, or a sweep.
    pub(super) fn tokens_together(&self, position: usize, remaining: usize) -> usize {
        let sizes = self.cut(position, remaining);
        let launches = sizes.iter().take_while(|size| self.is_launch(**size)).count();
        let together = if launches > 0 { launches } else { self.sweep_of(&sizes) };
        sizes.iter().take(together).sum::<usize>().min(remaining)
    }

    /// Appends tokens to a slot; see [`Executor::prefill`].
    pub(super) fn read_prompt(
        &mut self,
        slot: usize,
        position: usize,
        tokens: &[u32],
        rows: Rows,
    ) -> Result<Vec<f32>, LlmError> {
        let sizes = self.cut(position, tokens.len());
        let (mut logits, mut done, mut sizes) = (Vec::new(), 0, &sizes[..]);
        while let Some(first) = sizes.first().copied() {
            let is_launch = self.is_launch(first);
            let (now, later) = sizes.split_at(if is_launch { 1 } else { self.sweep_of(sizes) });
            let count = now.iter().sum::<usize>().min(tokens.len() - done);
            let wanted = match rows {
                Rows::All => 0..count,
                Rows::Last if done + count == tokens.len() => count - 1..count,
                Rows::Last | Rows::None => 0..0,
            };
            let part = PromptPart { slot, position: position + done, tokens: &tokens[done..done + count], wanted };
            logits.extend(if is_launch { self.read_by_launch(&part)? } else { self.read_by_sweep(&part, now)? });
            (done, sizes) = (done + count, later);
        }
        Ok(logits)
    }

    /// Reads a part by a decode step, or a launch with a row for each token.
    fn read_by_launch(&mut self, part: &PromptPart<'_>) -> Result<Vec<f32>, LlmError> {
        let PromptPart { slot, position, tokens, wanted } = part;
        self.launch(&steps_of(*slot, *position, tokens, wanted))?;
        let mut logits = Vec::new();
        for row in 0..wanted.len() {
            logits.extend(self.state.fetch_rows(row, 1)?);
        }
        Ok(logits)
    }

    /// Reads a part by passes of these sizes, which go through the layers together.
    fn read_by_sweep(&mut self, part: &PromptPart<'_>, sizes: &[usize]) -> Result<Vec<f32>, LlmError> {
        let PromptPart { slot, position, tokens, wanted } = part;
        let start = SweepStart { slot: *slot, cached: *position, capacity: self.state.cache.capacity };
        let mut passes = place_passes(start, sizes, tokens.len(), &self.options.shapes);
        for pass in &passes {
            self.load(Some(pass.shape), usize::from(self.program.is_none()))?;
        }
        self.state.place_masks(&mut passes);
        self.enqueue(&passes, tokens, SweepExtent::WHOLE)?;
        // Rows of hidden states, by token.
        let places: Vec<usize> = passes.iter().flat_map(|pass| pass.first..pass.first + pass.count).collect();
        let mut logits = Vec::new();
        for places in places[wanted.clone()].chunks(if self.program.is_some() { BLOCK_ROWS } else { 1 }) {
            for (to, from) in places.iter().enumerate() {
                self.state.take_row(*from, to)?;
            }
            self.head(places.len())?;
            logits.extend(self.state.fetch_rows(0, places.len())?);
        }
        Ok(logits)
    }

    /// Enqueues passes of `tokens`, as many of each as it has.
    pub(super) fn enqueue(
        &mut self,
        passes: &[PlacedPass],
        tokens: &[u32],
        extent: SweepExtent,
    ) -> Result<(), LlmError> {
        let row = |pass: &PlacedPass| {
            let count = if extent.appends { pass.count } else { 0 };
            BatchRow { cached: pass.cached, count, ..BatchRow::default() }
        };
        self.state.place(&passes.iter().map(row).collect::<Vec<_>>())?;
        let mut rest = tokens;
        self.engines.sweep(&mut self.state, passes, extent, |state, pass| {
            let (now, later) = rest.split_at(pass.count.min(rest.len()));
            rest = later;
            let places: Vec<usize> = (0..now.len()).collect();
            state.embed(now, &places, pass.first..pass.first + pass.shape.chunk)
        })
    }
}
