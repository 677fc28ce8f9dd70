//! Packed integers laid out for the decode kernel (`decode_kernel/tile_mma.cu`): tiles of 16 outputs and 128 (4 bits) or 64 (8 bits)
//! inputs, in the order in which the lanes of a warp hand them to the tensor cores, each tile with its scales.

use half::f16;
use rayon::prelude::*;

use crate::checkpoint::{Integers, Second};
use crate::tensor::DType;

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
    pub(super) fn strips(self) -> usize {
        self.outputs.div_ceil(2 * STRIP) * 2
    }

    /// Bytes of a strip.
    pub(super) fn strip_bytes(self) -> usize {
        self.tiles() * self.tile_bytes()
    }

    /// Bytes of the matrix.
    pub(super) fn bytes(self) -> usize {
        self.strips() * self.strip_bytes()
    }
}

/// Kinds of packed tiles, bits and groups, as packed_matmul.cu numbers them.
const KINDS: [(u32, usize); 5] = [(4, 1), (4, 2), (4, 4), (8, 1), (8, 2)];

/// Which kinds of packed tiles the kernel is compiled for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Kinds(pub(super) u32);

impl Kinds {
    pub(super) const ALL: Self = Self(31);

    pub(super) fn add(&mut self, layout: Layout) {
        let kind = (layout.bits, layout.deep() / layout.group);
        self.0 |= KINDS.iter().position(|have| *have == kind).map_or(0, |at| 1 << at);
    }

    pub(super) fn iter(self) -> impl Iterator<Item = (u32, usize)> {
        KINDS.into_iter().enumerate().filter(move |(at, _)| self.0 >> at & 1 == 1).map(|(_, kind)| kind)
    }

    /// Itself, then all, which a package has compiled where it has not just these.
    pub(super) fn or_all(self) -> impl Iterator<Item = Self> {
        let all = (self != Self::default() && self != Self::ALL).then_some(Self::ALL);
        std::iter::once(self).chain(all)
    }

    /// Says, and returns, what it means for a model with these that there is no kernel. In float32 there never is one.
    pub(super) fn without_kernel(self, why: &str, dtype: DType) -> Vec<String> {
        if dtype == DType::Float32 {
            return Vec::new();
        }
        let warning = format!("there is no kernel for decode steps: {why}; so {}", self.cost_of_none());
        tracing::warn!("{warning}");
        vec![warning]
    }

    fn cost_of_none(self) -> String {
        let widened = match self.iter().map(|(bits, _)| bits).min() {
            None => return "TensorRT's engines decode, which is slower".to_owned(),
            Some(4) => "four",
            Some(_) => "two",
        };
        format!(
            "weights packed in small integers are widened to 16 bits and take up to {widened} times the memory, and \
             TensorRT's engines decode, which is slower"
        )
    }
}

/// What the parts of one matrix have in common, if they can stay packed together: without reading their integers.
pub(super) fn layout(parts: &[Integers<'_>], outputs: usize, inputs: usize) -> Option<Layout> {
    let first = parts.first()?;
    let same = |part: &Integers<'_>| (part.bits, part.group, part.second) == (first.bits, first.group, first.second);
    let layout = Layout::new((first.bits, first.group), [inputs, outputs]).filter(|_| parts.iter().all(same))?;
    Some(Layout { second: first.second, ..layout })
}

/// Bytes of a matrix whose parts are packed, if they can stay so on the device (in float16).
pub fn packed_bytes(parts: &[Integers<'_>], [inputs, outputs]: [usize; 2]) -> Option<usize> {
    layout(parts, outputs, inputs).map(Layout::bytes)
}

/// The same of one that will be quantised to `bits`, in groups of so many inputs.
pub fn quantised_bytes((bits, group): (u32, usize), sizes: [usize; 2]) -> Option<usize> {
    Layout::new((bits, group), sizes).map(Layout::bytes)
}

/// A matrix that is laid out strip by strip: parts one below the other.
pub(super) struct Strips<'a> {
    layout: Layout,
    parts: &'a [Integers<'a>],
    /// Rows of each part, and where they begin.
    rows: &'a [usize],
    starts: Vec<usize>,
    /// Inputs in the order of their groups, where they are not in order.
    pub(super) order: Option<Vec<usize>>,
}

impl<'a> Strips<'a> {
    /// None if the parts' orders of inputs differ or a group has not its number of them.
    pub(super) fn new(parts: &'a [Integers<'a>], rows: &'a [usize], layout: Layout) -> Option<Self> {
        let order = order(parts, layout.inputs)?;
        let starts = rows.iter().scan(0, |sum, rows| Some(std::mem::replace(sum, *sum + rows))).collect();
        Some(Self { layout, parts, rows, starts, order })
    }

    /// The part and its row that is an output.
    fn locate(&self, output: usize) -> (usize, usize) {
        let part = self.starts.partition_point(|start| *start <= output) - 1;
        (part, output - self.starts[part])
    }

    /// Outputs of a part that are in the first `strips`.
    pub(super) fn rows_before(&self, part: usize, strips: usize) -> usize {
        (strips * STRIP).saturating_sub(self.starts[part]).min(self.rows[part])
    }

    /// Lays out strips from `first` on, as many as `bytes` has room for; false if one has scales that are finer than float16.
    pub(super) fn fill(&self, first: usize, bytes: &mut [u8]) -> bool {
        let inputs = self.layout.inputs;
        let read = |first: usize, quants: &mut [u8]| {
            let mut quants = quants;
            let mut output = first;
            while !quants.is_empty() {
                let (part, row) = self.locate(output);
                let these = (self.rows[part] - row).min(quants.len() / inputs);
                let (now, rest) = quants.split_at_mut(these * inputs);
                self.parts[part].read(row, now);
                (quants, output) = (rest, output + these);
            }
        };
        let terms = |output: usize, group: usize| {
            let (part, row) = self.locate(output);
            self.parts[part].terms(row, group)
        };
        lay_out(self.layout, (self.order.as_deref(), self.parts[0].group), (&read, &terms), first, bytes)
    }
}

/// Gives the integers of outputs from one on.
type Read<'a> = &'a (dyn Fn(usize, &mut [u8]) + Sync);
/// Gives scale and second of an output's group.
type Terms<'a> = &'a (dyn Fn(usize, usize) -> (f32, f32) + Sync);

/// Lays out strips from `first` on into `bytes`, of a matrix with groups of `size` inputs.
fn lay_out(
    layout: Layout,
    (order, size): (Option<&[usize]>, usize),
    (read, terms): (Read<'_>, Terms<'_>),
    first: usize,
    bytes: &mut [u8],
) -> bool {
    let strips = bytes.par_chunks_mut(layout.strip_bytes()).enumerate();
    let exact = strips.map(|(strip, bytes)| {
        let first = (first + strip) * STRIP;
        let count = layout.outputs.saturating_sub(first).min(STRIP);
        // Integers of the middle stand for nothing, as do scales of 0.
        let mut quants = vec![layout.middle(); STRIP * layout.inputs];
        if count > 0 {
            read(first, &mut quants[..count * layout.inputs]);
        }
        bytes.fill(0);
        fill(bytes, layout, (order, size), count, &quants, &|output, group| terms(first + output, group))
    });
    exact.reduce(|| true, |a, b| a && b)
}

/// A whole matrix, for tests.
#[cfg(test)]
pub(super) struct Tiled {
    pub(super) layout: Layout,
    pub(super) order: Option<Vec<usize>>,
    pub(super) bytes: Vec<u8>,
}

/// Lays out a matrix of which `read` gives the integers of outputs from one on, `terms` scale and second of an output's
/// group of `size` inputs; none if a scale is finer than float16. In several calls, as weights are.
#[cfg(test)]
pub(super) fn tile_of(
    layout: Layout,
    (order, size): (Option<Vec<usize>>, usize),
    read: Read<'_>,
    terms: Terms<'_>,
) -> Option<Tiled> {
    let mut bytes = vec![0xa5; layout.bytes()];
    let exact = bytes
        .chunks_mut(3 * layout.strip_bytes())
        .enumerate()
        .all(|(at, bytes)| lay_out(layout, (order.as_deref(), size), (read, terms), 3 * at, bytes));
    exact.then_some(Tiled { layout, order, bytes })
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
                // The pairs of the first operand of m16n8k16: (output, input) of the lower one. See tile_mma.cu.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn being_without_has_its_price_named() {
        for (kinds, part) in [(0, "decode, which is slower"), (16, "two times"), (20, "four times")] {
            assert!(Kinds(kinds).cost_of_none().contains(part), "{kinds}");
        }
    }
}
