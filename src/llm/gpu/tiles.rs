//! Packed integers laid out for the step kernel (`step/tiles.cu`): tiles of 16 outputs and 128 (4 bits) or 64 (8 bits)
//! inputs, in the order in which the lanes of a warp hand them to the tensor cores, each tile with its scales.

use half::f16;
use rayon::prelude::*;

use crate::checkpoint::{Integers, Second};

/// Outputs of a tile; the tiles along the inputs are a strip.
pub(super) const STRIP: usize = 16;
/// Bytes of a tile's integers.
const QUANTS: usize = 1024;
/// Bytes of a group's terms in a tile: two float16 for each output.
const TERMS: usize = 4 * STRIP;

/// Bytes of a tile with so many groups.
pub(super) fn bytes_of_tile(groups: usize) -> usize {
    QUANTS + groups * TERMS
}

/// How a packed matrix lies on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) bits: u32,
    /// Inputs that share terms, within a tile.
    pub(super) group: usize,
    pub(super) second: Second,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl Layout {
    /// Of `bits` in groups of so many inputs, if there is a layout for such.
    pub(super) fn new((bits, group): (u32, usize), [inputs, outputs]: [usize; 2]) -> Option<Self> {
        let mut layout = Self { bits, group, second: Second::Zero, inputs, outputs };
        layout.group = match group {
            group if group >= inputs => layout.deep(),
            group if group.is_multiple_of(layout.deep()) => layout.deep(),
            group @ (32 | 64) => group,
            _ => return None,
        };
        (inputs.is_multiple_of(8) && outputs.is_multiple_of(8)).then_some(layout)
    }

    /// Inputs of a tile.
    pub(super) fn deep(self) -> usize {
        if self.bits == 4 { 128 } else { 64 }
    }

    /// The middle of the integers' range.
    fn middle(self) -> u8 {
        1 << (self.bits - 1)
    }

    /// Tiles along the inputs.
    pub(super) fn tiles(self) -> usize {
        self.inputs.div_ceil(self.deep())
    }

    /// Bytes of a tile.
    pub(super) fn tile_bytes(self) -> usize {
        bytes_of_tile(self.deep() / self.group)
    }

    /// Strips, an even number: two at a time may be a block's.
    fn strips(self) -> usize {
        self.outputs.div_ceil(2 * STRIP) * 2
    }

    /// Bytes of the matrix.
    pub(super) fn bytes(self) -> usize {
        self.strips() * self.tiles() * self.tile_bytes()
    }
}

/// A matrix that can stay packed: parts one below the other.
pub(super) struct Tiled {
    pub(super) layout: Layout,
    /// Inputs in the order of their groups, where they are not in order.
    pub(super) order: Option<Vec<usize>>,
    pub(super) bytes: Vec<u8>,
}

/// What the parts of one matrix have in common, if they can stay packed together: without reading their integers.
pub(super) fn layout(parts: &[Integers<'_>], outputs: usize, inputs: usize) -> Option<Layout> {
    let first = parts.first()?;
    let same = |part: &Integers<'_>| (part.bits, part.group, part.second) == (first.bits, first.group, first.second);
    let layout = Layout::new((first.bits, first.group), [inputs, outputs]).filter(|_| parts.iter().all(same))?;
    Some(Layout { second: first.second, ..layout })
}

/// Lays out a matrix; none if its scales are finer than float16 or its order of inputs differs from part to part.
pub(super) fn tile(parts: &[Integers<'_>], rows: &[usize], layout: Layout) -> Option<Tiled> {
    let order = order(parts, layout.inputs)?;
    let starts: Vec<usize> = rows.iter().scan(0, |sum, rows| Some(std::mem::replace(sum, *sum + rows))).collect();
    // The part and its row that is an output.
    let locate = |output: usize| {
        let part = starts.partition_point(|start| *start <= output) - 1;
        (part, output - starts[part])
    };
    let read = |first: usize, quants: &mut [u8]| {
        let mut quants = quants;
        let mut output = first;
        while !quants.is_empty() {
            let (part, row) = locate(output);
            let these = (rows[part] - row).min(quants.len() / layout.inputs);
            let (now, rest) = quants.split_at_mut(these * layout.inputs);
            parts[part].read(row, now);
            (quants, output) = (rest, output + these);
        }
    };
    let terms = |output: usize, group: usize| {
        let (part, row) = locate(output);
        parts[part].terms(row, group)
    };
    tile_of(layout, (order, parts[0].group), &read, &terms)
}

/// Lays out a matrix of which `read` gives the integers of outputs from one on, `terms` scale and second of an output's
/// group of `size` inputs.
pub(super) fn tile_of(
    layout: Layout,
    (order, size): (Option<Vec<usize>>, usize),
    read: &(dyn Fn(usize, &mut [u8]) + Sync),
    terms: &(dyn Fn(usize, usize) -> (f32, f32) + Sync),
) -> Option<Tiled> {
    let mut bytes = vec![0; layout.bytes()];
    let strips = bytes.par_chunks_mut(layout.tiles() * layout.tile_bytes()).enumerate();
    let exact = strips.map(|(strip, bytes)| {
        let first = strip * STRIP;
        let count = layout.outputs.saturating_sub(first).min(STRIP);
        // Integers of the middle stand for nothing, as do scales of 0.
        let mut quants = vec![layout.middle(); STRIP * layout.inputs];
        if count > 0 {
            read(first, &mut quants[..count * layout.inputs]);
        }
        fill(bytes, layout, (order.as_deref(), size), count, &quants, &|output, group| terms(first + output, group))
    });
    exact.reduce(|| true, |a, b| a && b).then_some(Tiled { layout, order, bytes })
}

/// Inputs sorted by group, where they are not; none if a group has not its number of them, or parts differ.
#[allow(clippy::option_option)]
fn order(parts: &[Integers<'_>], inputs: usize) -> Option<Option<Vec<usize>>> {
    let first = parts[0].order();
    if parts[1..].iter().any(|part| part.order() != first) {
        return None;
    }
    let Some(groups) = first else { return Some(None) };
    let size = parts[0].group;
    if groups.iter().enumerate().all(|(input, group)| input / size == *group) {
        return Some(None);
    }
    let mut order: Vec<usize> = (0..inputs).collect();
    order.sort_by_key(|input| groups[*input]);
    order.iter().enumerate().all(|(place, input)| place / size == groups[*input]).then_some(Some(order))
}

/// Fills a strip; says whether every term is a float16.
fn fill(
    bytes: &mut [u8],
    layout: Layout,
    (order, size): (Option<&[usize]>, usize),
    count: usize,
    quants: &[u8],
    terms: &dyn Fn(usize, usize) -> (f32, f32),
) -> bool {
    let mut exact = true;
    let (deep, inputs) = (layout.deep(), layout.inputs);
    let middle = layout.middle();
    let quant = |output: usize, k: usize| match k < inputs {
        true => quants[output * inputs + order.map_or(k, |order| order[k])],
        false => middle,
    };
    for (tile, bytes) in bytes.chunks_exact_mut(layout.tile_bytes()).enumerate() {
        for step in 0..deep / 16 {
            for lane in 0..32 {
                let (g, k) = (lane / 4, tile * deep + step / 2 * 32 + lane % 4 * 8 + step % 2 * 4);
                // The pairs of the first operand of m16n8k16: (output, input) of the lower one. See tiles.cu.
                let pairs = [(g, k), (g + 8, k), (g, k + 2), (g + 8, k + 2)];
                let pairs = pairs.map(|(output, k)| [quant(output, k), quant(output, k + 1)]);
                if layout.bits == 4 {
                    let half = |e: usize| {
                        let [a, b, c, d] = pairs.map(|pair| u16::from(pair[e]));
                        a << 6 | b << 2 | d << 10 | (c & 3) << 14 | c >> 2
                    };
                    let at = step / 4 * 512 + lane * 16 + step % 4 * 4;
                    bytes[at..][..2].copy_from_slice(&half(0).to_le_bytes());
                    bytes[at + 2..][..2].copy_from_slice(&half(1).to_le_bytes());
                } else {
                    let at = step / 2 * 512 + lane * 16 + step % 2 * 8;
                    bytes[at..][..8].copy_from_slice(pairs.as_flattened());
                }
            }
        }
        for part in 0..deep / layout.group {
            let k = tile * deep + part * layout.group;
            for output in (0..count).filter(|_| k < inputs) {
                let (scale, second) = terms(output, k / size);
                let (narrow, last) = (f16::from_f32(scale), f16::from_f32(second));
                exact &= narrow.to_f32() == scale && last.to_f32() == second;
                let at = QUANTS + part * TERMS + output % 8 * 8 + output / 8 * 4;
                bytes[at..at + 2].copy_from_slice(&narrow.to_le_bytes());
                bytes[at + 2..at + 4].copy_from_slice(&last.to_le_bytes());
            }
        }
    }
    exact
}
