//! A sweep: passes of a prompt that go through the layers together, all through one layer before any goes through the
//! next, so that a layer's weights are unpacked once for all. Here is which passes are one, and where the tensors of each
//! lie. A pass attends to those before it: they have been through the layer, and are in its cache.

use crate::convert::LayerShape;
use crate::spec::Shapes;

/// Passes begin at multiples of so many rows: whatever a row has, TensorRT's tensors begin at multiples of 256 bytes.
const STEP: usize = 128;
/// Most bytes of the hidden states of a sweep, inputs and outputs: 4,096 tokens of a 7B in 16 bits. To unpack such a
/// model takes as long as the arithmetic of some 160 (H100) or 200 (AGX Orin) tokens, so that a larger sweep would save
/// another 5 % at most, on either.
const MOST_BYTES: usize = 64 << 20;
/// Most bytes of the masks of a sweep that are kept from layer to layer, unless those of one pass have more.
const MASK_BYTES: usize = 32 << 20;

/// A pass of the engines, of one sequence or (a decode step) of several, and where its tensors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PlacedPass {
    pub(super) shape: LayerShape,
    /// Its first slot.
    pub(super) slot: usize,
    /// Where the positions of its first sequence are among those that were uploaded.
    pub(super) row: usize,
    /// Its first row of hidden states and of rotary tables.
    pub(super) first: usize,
    /// Tokens that it is not padded with, and those that are cached before.
    pub(super) count: usize,
    pub(super) cached: usize,
    /// Positions that a slot has room for when it reads a layer's cache, and after it.
    pub(super) capacity: usize,
    pub(super) next_capacity: usize,
    /// Offset of its masks in bytes; `None` if they are written anew for each layer.
    pub(super) mask: Option<usize>,
}

/// How much of a sweep runs: all of it, except where it is timed.
#[derive(Debug, Clone, Copy)]
pub(super) struct SweepExtent {
    /// The first layers.
    pub(super) layers: usize,
    /// Whether packed weights are unpacked; else engines read what was unpacked last.
    pub(super) unpacks: bool,
    /// Whether keys and values are appended to the cache.
    pub(super) appends: bool,
}

impl SweepExtent {
    pub(super) const WHOLE: Self = Self { layers: usize::MAX, unpacks: true, appends: true };
}

/// Where a sweep begins: the slot, its cached positions, and the capacity of the cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct SweepStart {
    pub(super) slot: usize,
    pub(super) cached: usize,
    pub(super) capacity: usize,
}

impl PlacedPass {
    /// A pass of its own.
    pub(super) fn alone(shape: LayerShape, slot: usize, capacity: usize) -> Self {
        let (count, mask) = (shape.chunk, Some(0));
        Self { shape, slot, row: 0, first: 0, count, cached: 0, capacity, next_capacity: capacity, mask }
    }
}

/// Rows for the hidden states of a sweep, of which a token has `bytes`: for the largest pass, for no more than the
/// longest sequence, and as many as [`MOST_BYTES`] hold.
pub(super) fn rows_of_sweep(bytes: usize, largest: usize, longest: usize) -> usize {
    let affordable = MOST_BYTES / (2 * bytes.max(1)) / STEP * STEP;
    longest.next_multiple_of(STEP).min(affordable).max(largest)
}

/// Most passes of a sweep of so many rows.
pub(super) fn most_passes(rows: usize) -> usize {
    rows.div_ceil(STEP).max(1)
}

/// Bytes for the masks of a kind of window, if those of the largest pass have `largest`, and a sweep has so many rows.
pub(super) fn bytes_of_masks(largest: usize, rows: usize) -> usize {
    MASK_BYTES.min(largest.saturating_mul(most_passes(rows))).max(largest)
}

/// How many of the next passes are a sweep, if there are so many rows: at least one.
pub(super) fn passes_of_sweep(sizes: &[usize], rows: usize) -> usize {
    let ends = sizes.iter().scan(0_usize, |first, size| {
        let end = *first + size;
        *first = end.next_multiple_of(STEP);
        Some(end)
    });
    ends.take_while(|end| *end <= rows).count().clamp(1, sizes.len().max(1))
}

/// The passes of these sizes, for `tokens` tokens.
///
/// They read caches as they are and leave them as large as the next one wants them: a long prompt's first passes need
/// not attend to the room of its last.
pub(super) fn place_passes(start: SweepStart, sizes: &[usize], tokens: usize, shapes: &Shapes) -> Vec<PlacedPass> {
    let SweepStart { slot, cached: before, mut capacity } = start;
    let (mut passes, mut done, mut first) = (Vec::with_capacity(sizes.len()), 0, 0);
    for (row, chunk) in sizes.iter().copied().enumerate() {
        let (cached, count) = (before + done, chunk.min(tokens.saturating_sub(done)));
        let shape = LayerShape { batch: 1, chunk, cache: if cached == 0 { 0 } else { capacity } };
        let next_capacity = shapes.cache_for(cached + count).max(capacity);
        passes.push(PlacedPass { shape, slot, row, first, count, cached, capacity, next_capacity, mask: None });
        (done, capacity, first) = (done + count, next_capacity, (first + chunk).next_multiple_of(STEP));
    }
    passes
}

/// Places the passes' masks, of `bytes` for a shape, one behind the other if there is room for all.
pub(super) fn place_masks(passes: &mut [PlacedPass], room: usize, bytes: impl Fn(LayerShape) -> usize) {
    let (mut at, mut end) = (0_usize, 0);
    for pass in passes.iter_mut() {
        pass.mask = Some(at);
        end = at + bytes(pass.shape);
        at = end.next_multiple_of(STEP * 2);
    }
    if end > room {
        passes.iter_mut().for_each(|pass| pass.mask = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes() -> Shapes {
        let (caches, chunks) = (vec![512, 1024, 2048, 2560], vec![16, 128, 512]);
        Shapes { slots: 2, max_len: 2560, chunks, caches, steps: vec![(1, 1)] }
    }

    #[test]
    fn a_pass_attends_to_those_before_it() {
        let start = SweepStart { slot: 1, cached: 0, capacity: 512 };
        let passes = place_passes(start, &[512, 512, 512, 16], 1550, &shapes());
        let of = |pass: &PlacedPass| {
            (pass.shape.chunk, pass.shape.cache, pass.cached, pass.count, pass.capacity, pass.next_capacity)
        };
        // The last is padded. Each finds the cache as large as the one before has left it.
        let want = [
            (512, 0, 0, 512, 512, 512),
            (512, 512, 512, 512, 512, 1024),
            (512, 1024, 1024, 512, 1024, 2048),
            (16, 2048, 1536, 14, 2048, 2048),
        ];
        assert_eq!(passes.iter().map(of).collect::<Vec<_>>(), want);
        assert!(passes.iter().enumerate().all(|(row, pass)| (pass.row, pass.slot) == (row, 1)));
        assert_eq!(passes.iter().map(|pass| pass.first).collect::<Vec<_>>(), [0, 512, 1024, 1536]);
        // Behind what is cached, beside another slot's longer sequence: the room it needs is there.
        let start = SweepStart { slot: 0, cached: 40, capacity: 2048 };
        let passes = place_passes(start, &[16, 16], 32, &shapes());
        assert_eq!(
            passes.iter().map(of).collect::<Vec<_>>(),
            [(16, 2048, 40, 16, 2048, 2048), (16, 2048, 56, 16, 2048, 2048)]
        );
        assert_eq!(passes[1].first, STEP, "tensors are aligned");
    }

    #[test]
    fn a_sweep_has_as_many_passes_as_there_are_rows_for() {
        let sizes = [512, 512, 128, 16, 16];
        for (rows, passes) in [(512, 1), (1023, 1), (1024, 2), (1152, 3), (1168, 4), (1295, 4), (1296, 5), (8, 1)] {
            assert_eq!(passes_of_sweep(&sizes, rows), passes, "{rows} rows");
            assert!(passes_of_sweep(&sizes, rows) <= most_passes(rows), "each has its positions");
        }
        // A 7B's in 16 bits; a small model's longest sequence; at least a pass.
        assert_eq!(rows_of_sweep(8192, 512, 100_000), 4096);
        assert_eq!(rows_of_sweep(1152, 512, 2500), 2560);
        assert_eq!(rows_of_sweep(1 << 20, 512, 2500), 512);
        assert_eq!((rows_of_sweep(8, 16, 40), most_passes(128)), (128, 1));
    }

    #[test]
    fn masks_are_kept_where_all_of_them_fit() {
        let start = SweepStart { slot: 0, cached: 0, capacity: 512 };
        let mut passes = place_passes(start, &[512, 512, 128], 1100, &shapes());
        let bytes = |shape: LayerShape| shape.chunk * (shape.cache + shape.chunk) + 2;
        let (all, last) = (786_944 + 128 * (1024 + 128) + 2, 128 * (1024 + 128) + 2);
        place_masks(&mut passes, all, bytes);
        assert_eq!(passes.iter().map(|pass| pass.mask).collect::<Vec<_>>(), [Some(0), Some(262_400), Some(786_944)]);
        place_masks(&mut passes, all - 1, bytes);
        assert!(passes.iter().all(|pass| pass.mask.is_none()));
        place_masks(&mut passes[2..], last, bytes);
        assert_eq!(passes[2].mask, Some(0));
        assert_eq!([bytes_of_masks(1 << 20, 1024), bytes_of_masks(48 << 20, 4096)], [8 << 20, 48 << 20]);
        assert_eq!(bytes_of_masks(12 << 20, 4096), MASK_BYTES);
    }
}
