//! Which static shapes an engine directory holds, and which of them a pass uses.

use serde::{Deserialize, Serialize};

use crate::convert::LayerShape;

/// Prompt tokens taken at once.
const CHUNKS: [usize; 3] = [16, 128, 512];
/// The smallest cache an engine is built for; larger ones double up to the longest sequence.
const SMALLEST_CACHE: usize = 512;
/// Cache lengths are multiples of this, which keeps every slot aligned.
const CACHE_STEP: usize = 64;
/// Tokens of one sequence a decode step may be padded to, where that chooses a faster kernel; see `gpu::tune`.
const PADDINGS: [usize; 3] = [1, 4, 8];

/// The shapes of one engine directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shapes {
    /// Sequences held and decoded together.
    pub slots: usize,
    /// Positions of each.
    pub max_len: usize,
    /// Prompt tokens per pass, ascending.
    pub chunks: Vec<usize>,
    /// Cache lengths, ascending; the last holds `max_len`.
    pub caches: Vec<usize>,
    /// (batch, chunk) of decode steps.
    pub steps: Vec<(usize, usize)>,
}

impl Shapes {
    /// Shapes for `slots` sequences of `max_len` tokens, prompts up to `max_input`.
    pub fn new(slots: usize, max_input: usize, max_len: usize) -> Self {
        let longest = max_len.next_multiple_of(CACHE_STEP);
        let doubling = std::iter::successors(Some(SMALLEST_CACHE), |cache| cache.checked_mul(2));
        let mut caches: Vec<usize> = doubling.take_while(|cache| *cache < longest).collect();
        caches.push(longest);
        let mut chunks: Vec<usize> = CHUNKS.into_iter().take_while(|chunk| *chunk < max_input).collect();
        if let Some(next) = CHUNKS.get(chunks.len()) {
            chunks.push(*next);
        }
        let mut steps: Vec<(usize, usize)> = PADDINGS.into_iter().map(|padding| (1, padding)).collect();
        if slots > 1 {
            steps.extend(
                PADDINGS.into_iter().filter(|padding| slots * padding <= 8 || *padding == 1).map(|p| (slots, p)),
            );
        }
        Self { slots, max_len, chunks, caches, steps }
    }

    /// Every layer engine.
    pub fn layers(&self) -> Vec<LayerShape> {
        let mut shapes = Vec::new();
        for chunk in &self.chunks {
            let caches = std::iter::once(&0).chain(&self.caches);
            shapes.extend(caches.map(|cache| LayerShape { batch: 1, chunk: *chunk, cache: *cache }));
        }
        for (batch, chunk) in &self.steps {
            shapes.extend(self.caches.iter().map(|cache| LayerShape { batch: *batch, chunk: *chunk, cache: *cache }));
        }
        shapes.sort();
        shapes.dedup();
        shapes
    }

    /// Rows of every head engine.
    pub fn heads(&self) -> Vec<usize> {
        if self.slots > 1 { vec![1, self.slots] } else { vec![1] }
    }

    /// The smallest cache that holds `positions`.
    pub fn cache_for(&self, positions: usize) -> usize {
        let enough = self.caches.iter().find(|cache| **cache >= positions);
        enough.or(self.caches.last()).copied().unwrap_or(self.max_len)
    }

    /// The pass for `remaining` prompt tokens: the largest that is filled, else the smallest that holds them.
    pub fn chunk_for(&self, remaining: usize) -> usize {
        let holds = self.chunks.iter().find(|chunk| **chunk >= remaining);
        let filled = self.chunks.iter().rev().find(|chunk| **chunk <= remaining);
        match (holds, filled) {
            // Padding to less than twice the tokens is cheaper than two passes.
            (Some(holds), Some(filled)) if 2 * remaining <= *holds => *filled,
            (Some(holds), _) => *holds,
            (None, filled) => filled.or(self.chunks.last()).copied().unwrap_or(1),
        }
    }
}

/// File stem of a layer's engine.
pub fn layer_name(shape: LayerShape) -> String {
    format!("layer-{shape}")
}

/// File stem of a head's engine.
pub fn head_name(rows: usize) -> String {
    format!("head-r{rows}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_cover_what_is_asked() {
        let shapes = Shapes::new(4, 2048, 2560);
        assert_eq!(shapes.caches, [512, 1024, 2048, 2560]);
        assert_eq!(shapes.chunks, [16, 128, 512]);
        assert_eq!(shapes.steps, [(1, 1), (1, 4), (1, 8), (4, 1)]);
        assert_eq!(shapes.layers().len(), 3 * 5 + 4 * 4);
        assert_eq!([1, 512, 513, 2560].map(|n| shapes.cache_for(n)), [512, 512, 1024, 2560]);
        // 20 tokens: 16 and 4 more; 100: once 128; 300: 128, 128, 44 more.
        assert_eq!([1, 16, 20, 100, 300, 600].map(|n| shapes.chunk_for(n)), [16, 16, 16, 128, 512, 512]);
        let small = Shapes::new(1, 8, 40);
        assert_eq!((small.caches, small.chunks, small.steps), (vec![64], vec![16], vec![(1, 1), (1, 4), (1, 8)]));
    }
}
