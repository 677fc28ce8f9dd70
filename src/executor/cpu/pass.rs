//! What all layers of a pass share: its spans, shape, masks and rotary tables.

use super::cache::{Cache, capacity_for};
use crate::convert::{LayerShape, Transformer};
use crate::executor::Span;
use crate::executor::sight::Sight;

/// A pass over the rows of some sequences, and what all layers share of it.
pub(super) struct CpuPass<'a> {
    pub(super) spans: &'a [Span],
    /// The spans with the rows that pad the pass, which continue the last.
    padded: Vec<Span>,
    pub(super) shape: LayerShape,
    /// Cosines and sines of the rows' positions, for each of the model's ropes.
    pub(super) tables: Vec<(Vec<f32>, Vec<f32>)>,
}

impl<'a> CpuPass<'a> {
    pub(super) fn new(model: &Transformer, spans: &'a [Span], chunk: usize) -> Self {
        let (cached, rows) = spans.iter().fold((0, 0), |sum, span| (sum.0 + span.position, sum.1 + span.count));
        let cache = if cached == 0 { 0 } else { capacity_for(cached) };
        let mut padded = spans.to_vec();
        if let Some(last) = padded.last_mut() {
            last.count += chunk - rows;
        }
        let tables = model.ropes.iter().map(|rope| {
            let (mut cos, mut sin) = (Vec::new(), Vec::new());
            for Span { position, count, .. } in &padded {
                let (more_cos, more_sin) = rope.tables(*position..position + count);
                cos.extend(more_cos);
                sin.extend(more_sin);
            }
            (cos, sin)
        });
        let tables = tables.collect();
        Self { spans, padded, shape: LayerShape { batch: 1, chunk, cache }, tables }
    }

    pub(super) fn mask(&self, model: &Transformer, window: Option<usize>) -> Vec<f32> {
        Sight { group: model.group(), cache: self.shape.cache, spans: &self.padded, window }.mask()
    }

    /// The keys and values of a layer before the pass: one sequence's where they are, those of several `joined`.
    pub(super) fn past<'b>(
        &self,
        caches: &'b mut [Vec<Cache>],
        index: usize,
        model: &Transformer,
        joined: &'b mut Cache,
    ) -> &'b Cache {
        let cache = self.shape.cache;
        match self.spans {
            [span] => {
                let stored = &mut caches[span.slot][index];
                if cache > 0 {
                    stored.resize(cache, model);
                }
                stored
            }
            spans => {
                let part = |span: &Span| (&caches[span.slot][index], span.position);
                let parts: Vec<(&Cache, usize)> = spans.iter().map(part).collect();
                *joined = Cache::joined(&parts, cache, model);
                joined
            }
        }
    }

    /// Appends a layer's new keys and values, `[kv_heads, chunk, head_dim]`, to those of each sequence.
    pub(super) fn append(&self, caches: &mut [Vec<Cache>], index: usize, new: (&[f32], &[f32]), model: &Transformer) {
        let mut row = 0;
        for Span { slot, position, count } in self.spans.iter().copied() {
            caches[slot][index].append(position, row..row + count, self.shape.chunk, new, model);
            row += count;
        }
    }
}
