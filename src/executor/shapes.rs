//! The static shapes that a language model's engines are built for.

use crate::convert::LayerShape;
use crate::spec::{Family, Shapes};

/// Prompt tokens per pass. Measured times decide how a prompt is cut into passes; see `passes`.
const CHUNKS: [usize; 3] = [16, 128, 512];
/// Prompt tokens per pass where engines are built in a moment (RTX): a spoken turn has 10 to 60 tokens.
const MANY_CHUNKS: [usize; 7] = [16, 32, 64, 128, 256, 512, 1024];
/// Smallest cache in positions that engines are built for; larger ones double up to the longest sequence.
const SMALLEST_CACHE: usize = 512;
/// Cache lengths are multiples of this number of positions, which keeps every slot aligned.
const CACHE_STEP: usize = 64;
/// Tokens per sequence to which a decode step may be padded, if that selects a faster kernel; see
/// `cuda_executor/executor/tune.rs`.
const PADDINGS: [usize; 3] = [1, 4, 8];

impl Shapes {
    /// Shapes for `slots` sequences of `max_len` tokens and prompts up to `max_input`, with the builder of `family`.
    pub fn new(slots: usize, (max_input, max_len): (usize, usize), family: Family) -> Self {
        let longest = max_len.next_multiple_of(CACHE_STEP);
        let doubling = std::iter::successors(Some(SMALLEST_CACHE), |cache| cache.checked_mul(2));
        let mut caches: Vec<usize> = doubling.take_while(|cache| *cache < longest).collect();
        caches.push(longest);
        let all: &[usize] = if family == Family::Rtx { &MANY_CHUNKS } else { &CHUNKS };
        let mut chunks: Vec<usize> = all.iter().copied().take_while(|chunk| *chunk < max_input).collect();
        chunks.extend(all.get(chunks.len()));
        let mut steps: Vec<(usize, usize)> = PADDINGS.into_iter().map(|padding| (1, padding)).collect();
        if slots > 1 {
            steps.extend(
                PADDINGS.into_iter().filter(|padding| slots * padding <= 8 || *padding == 1).map(|p| (slots, p)),
            );
        }
        Self { slots, max_len, chunks, caches, steps }
    }

    /// Shapes of all layer engines.
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

    /// Rows of all head engines.
    pub fn heads(&self) -> Vec<usize> {
        if self.slots > 1 { vec![1, self.slots] } else { vec![1] }
    }

    /// The smallest cache for `positions`.
    pub fn cache_for(&self, positions: usize) -> usize {
        let enough = self.caches.iter().find(|cache| **cache >= positions);
        enough.or(self.caches.last()).copied().unwrap_or(self.max_len)
    }
}

/// File stem of a layer engine.
pub fn layer_name(shape: LayerShape) -> String {
    format!("layer-{shape}")
}

/// File stem of a head engine.
pub fn head_name(rows: usize) -> String {
    format!("head-r{rows}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_cover_what_is_asked() {
        let shapes = Shapes::new(4, (2048, 2560), Family::Enterprise);
        assert_eq!(shapes.caches, [512, 1024, 2048, 2560]);
        assert_eq!(shapes.chunks, [16, 128, 512]);
        assert_eq!(shapes.steps, [(1, 1), (1, 4), (1, 8), (4, 1)]);
        assert_eq!(shapes.layers().len(), 3 * 5 + 4 * 4);
        assert_eq!([1, 512, 513, 2560].map(|n| shapes.cache_for(n)), [512, 512, 1024, 2560]);
        assert_eq!(Shapes::new(1, (200, 300), Family::Rtx).chunks, [16, 32, 64, 128, 256]);
        let small = Shapes::new(1, (8, 40), Family::Rtx);
        assert_eq!((small.caches, small.chunks, small.steps), (vec![64], vec![16], vec![(1, 1), (1, 4), (1, 8)]));
    }
}
