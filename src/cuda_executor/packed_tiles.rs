//! Layout of packed integers for the decode kernel (`decode_kernel/tile_mma.cu`): tiles of 16 outputs and 128 (4 bits)
//! or 64 (8 bits) inputs, in the order in which the lanes of a warp pass them to the tensor cores, each tile with its
//! scales.

use half::f16;
use rayon::prelude::*;

use super::decode_kernel::abi::{GROUP_TERM_BYTES, PACKED_TILE_N, PACKED_TILE_QUANT_BYTES};
use crate::checkpoint::{GroupOffset, Integers};
use crate::tensor::DType;

/// Bytes of a tile with this number of groups.
pub(super) fn bytes_of_tile(groups: usize) -> usize {
    PACKED_TILE_QUANT_BYTES + groups * GROUP_TERM_BYTES
}

/// Number of inputs and outputs of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MatrixSize {
    pub inputs: usize,
    pub outputs: usize,
}

/// Bits of integers, and the number of inputs of an output that share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct IntegerFormat {
    pub bits: u32,
    pub group: usize,
}

/// Layout of a packed matrix on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PackedLayout {
    pub(super) bits: u32,
    /// Number of inputs that share scale and offset within a tile.
    pub(super) group: usize,
    pub(super) offset: GroupOffset,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl PackedLayout {
    /// The layout for integers of a format; `None` if there is none.
    pub(super) fn new(format: IntegerFormat, size: MatrixSize) -> Option<Self> {
        let (IntegerFormat { bits, group }, MatrixSize { inputs, outputs }) = (format, size);
        let mut layout = Self { bits, group, offset: GroupOffset::ZeroPoint, inputs, outputs };
        layout.group = match group {
            group if group >= inputs => layout.tile_k(),
            group if group.is_multiple_of(layout.tile_k()) => layout.tile_k(),
            group @ (32 | 64) => group,
            _ => return None,
        };
        (inputs.is_multiple_of(8) && outputs.is_multiple_of(8)).then_some(layout)
    }

    /// The layout for the parts of a matrix, if they can stay packed together; their integers are not read.
    pub(super) fn of(parts: &[Integers<'_>], size: MatrixSize) -> Option<Self> {
        let first = parts.first()?;
        let format = |part: &Integers<'_>| IntegerFormat { bits: part.bits, group: part.group };
        let same = |part: &Integers<'_>| format(part) == format(first) && part.offset == first.offset;
        let layout = Self::new(format(first), size).filter(|_| parts.iter().all(same))?;
        Some(Self { offset: first.offset, ..layout })
    }

    /// Number of inputs of a tile.
    pub(super) fn tile_k(self) -> usize {
        if self.bits == 4 { 128 } else { 64 }
    }

    /// The middle of the integers' range.
    fn middle(self) -> u8 {
        1 << (self.bits - 1)
    }

    /// Number of tiles along the inputs.
    pub(super) fn tiles(self) -> usize {
        self.inputs.div_ceil(self.tile_k())
    }

    /// Number of groups in a tile.
    fn groups(self) -> usize {
        self.tile_k() / self.group
    }

    /// Bytes of a tile.
    pub(super) fn tile_bytes(self) -> usize {
        bytes_of_tile(self.groups())
    }

    /// Number of strips (tiles along all inputs), which is even, since a block may take two at a time.
    pub(super) fn strips(self) -> usize {
        self.outputs.div_ceil(2 * PACKED_TILE_N) * 2
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

/// Bytes on the device of a matrix whose parts stay packed; `None` if they cannot (then it is float16).
pub fn packed_bytes(parts: &[Integers<'_>], size: MatrixSize) -> Option<usize> {
    PackedLayout::of(parts, size).map(PackedLayout::bytes)
}

/// Bytes on the device of a matrix that will be quantised to a format; `None` if it cannot stay packed (then it is
/// float16).
pub fn quantised_bytes(format: IntegerFormat, size: MatrixSize) -> Option<usize> {
    PackedLayout::new(format, size).map(PackedLayout::bytes)
}

/// A kind of packed tiles, for which the kernel has a specialised function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TileKind {
    bits: u32,
    /// Number of groups in a tile.
    pub(super) groups: usize,
}

/// All kinds, in the order of their bits, which is that of packed_matmul.cu.
const KINDS: [TileKind; 5] = [
    TileKind { bits: 4, groups: 1 },
    TileKind { bits: 4, groups: 2 },
    TileKind { bits: 4, groups: 4 },
    TileKind { bits: 8, groups: 1 },
    TileKind { bits: 8, groups: 2 },
];

/// A set of tile kinds, a bit for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TileKinds(pub(super) u32);

impl TileKinds {
    pub(super) const ALL: Self = Self((1 << KINDS.len()) - 1);

    pub(super) fn add(&mut self, layout: PackedLayout) {
        let kind = TileKind { bits: layout.bits, groups: layout.groups() };
        self.0 |= KINDS.iter().position(|have| *have == kind).map_or(0, |at| 1 << at);
    }

    pub(super) fn iter(self) -> impl Iterator<Item = TileKind> {
        KINDS.into_iter().enumerate().filter(move |(at, _)| self.0 >> at & 1 == 1).map(|(_, kind)| kind)
    }

    /// This set, then the set of all, which packages contain compiled if they do not contain this one.
    pub(super) fn or_all(self) -> impl Iterator<Item = Self> {
        let all = (self != Self::default() && self != Self::ALL).then_some(Self::ALL);
        std::iter::once(self).chain(all)
    }

    /// Returns the message that a model with these tiles has no kernel, and what that costs. In float32 there never is
    /// one.
    pub(super) fn without_kernel(self, why: &str, dtype: DType) -> Vec<String> {
        if dtype == DType::Float32 {
            return Vec::new();
        }
        let engines = "TensorRT's engines decode, which is slower";
        let cost = self.cost_of_widening().map_or_else(|| engines.to_owned(), |cost| format!("{cost}, and {engines}"));
        warn(format!("there is no kernel for decode steps: {why}; so {cost}"))
    }

    /// Returns the message that a model's packed tiles have no kernel, so that the kernel for plain weights decodes.
    pub(super) fn without_packed(self, why: &str) -> Vec<String> {
        let cost = self.cost_of_widening().unwrap_or_default();
        warn(format!("there is no kernel for packed weights: {why}; so {cost}, and decode steps take longer"))
    }

    /// What it costs that these tiles have no kernel; `None` if there are none.
    fn cost_of_widening(self) -> Option<String> {
        let times = if self.iter().map(|kind| kind.bits).min()? == 4 { "four" } else { "two" };
        Some(format!("weights packed in small integers are widened to 16 bits and take up to {times} times the memory"))
    }
}

fn warn(warning: String) -> Vec<String> {
    tracing::warn!("{warning}");
    vec![warning]
}

/// The integers and terms of a matrix, as its checkpoint has them.
#[derive(Clone, Copy)]
pub(super) struct QuantSource<'a> {
    /// The order in which inputs are laid out, if it differs from the checkpoint's.
    pub(super) order: Option<&'a [usize]>,
    /// Number of inputs of a group in the checkpoint; a tile may contain a part of one.
    pub(super) group: usize,
    /// Reads the integers of outputs from the given one, as many as fit: `[outputs, inputs]`.
    pub(super) read: &'a (dyn Fn(usize, &mut [u8]) + Sync),
    /// Returns scale and offset of an output's group.
    pub(super) terms: &'a (dyn Fn(usize, usize) -> (f32, f32) + Sync),
}

impl QuantSource<'_> {
    /// Lays out strips from `first`, as many as fit in `bytes`; false if float16 cannot represent a scale or offset.
    pub(super) fn lay_out(&self, layout: PackedLayout, first: usize, bytes: &mut [u8]) -> bool {
        let strips = bytes.par_chunks_mut(layout.strip_bytes()).enumerate();
        let exact = strips.map(|(strip, bytes)| self.fill_strip(layout, (first + strip) * PACKED_TILE_N, bytes));
        exact.reduce(|| true, |a, b| a && b)
    }

    /// Lays out the strip whose first output is `first`.
    fn fill_strip(&self, layout: PackedLayout, first: usize, bytes: &mut [u8]) -> bool {
        let (inputs, tile_k) = (layout.inputs, layout.tile_k());
        let count = layout.outputs.saturating_sub(first).min(PACKED_TILE_N);
        // Integers of the middle stand for nothing, as do scales of 0.
        let mut quants = vec![layout.middle(); PACKED_TILE_N * inputs];
        if count > 0 {
            (self.read)(first, &mut quants[..count * inputs]);
        }
        bytes.fill(0);
        let quant = |output: usize, k: usize| match k < inputs {
            true => quants[output * inputs + self.order.map_or(k, |order| order[k])],
            false => layout.middle(),
        };
        let mut exact = true;
        for (tile, bytes) in bytes.chunks_exact_mut(layout.tile_bytes()).enumerate() {
            let (quants, terms) = bytes.split_at_mut(PACKED_TILE_QUANT_BYTES);
            fill_quants(layout.bits, |output, k| quant(output, tile * tile_k + k), quants);
            for (part, terms) in terms.chunks_exact_mut(GROUP_TERM_BYTES).enumerate() {
                let k = tile * tile_k + part * layout.group;
                for output in (0..count).filter(|_| k < inputs) {
                    let (scale, offset) = (self.terms)(first + output, k / self.group);
                    let narrow = [f16::from_f32(scale), f16::from_f32(offset)];
                    // Infinite ones are widened as well: those kernels count what is not finite, and it is refused.
                    exact &= narrow.map(f16::to_f32) == [scale, offset] && narrow.iter().all(|term| term.is_finite());
                    let at = output % 8 * 8 + output / 8 * 4;
                    terms[at..][..2].copy_from_slice(&narrow[0].to_le_bytes());
                    terms[at + 2..][..2].copy_from_slice(&narrow[1].to_le_bytes());
                }
            }
        }
        exact
    }
}

/// Writes a tile's integers. `quant` returns that of an output and an input in the tile.
fn fill_quants(bits: u32, quant: impl Fn(usize, usize) -> u8, bytes: &mut [u8]) {
    let tile_k = PACKED_TILE_QUANT_BYTES * 8 / bits as usize / PACKED_TILE_N;
    for (step, lane) in (0..tile_k / 16).flat_map(|step| (0..32).map(move |lane| (step, lane))) {
        let (g, k) = (lane / 4, step / 2 * 32 + lane % 4 * 8 + step % 2 * 4);
        // The pairs of the first operand of m16n8k16: (output, input) of the lower one. See tile_mma.cu.
        let pairs = [(g, k), (g + 8, k), (g, k + 2), (g + 8, k + 2)];
        let pairs = pairs.map(|(output, k)| [quant(output, k), quant(output, k + 1)]);
        if bits == 4 {
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

/// A matrix of concatenated parts, to be laid out strip by strip.
pub(super) struct Strips<'a> {
    layout: PackedLayout,
    parts: &'a [Integers<'a>],
    /// Number of rows of each part, and the parts' first rows.
    rows: &'a [usize],
    starts: Vec<usize>,
    /// The inputs sorted by group, if groups are not consecutive.
    pub(super) order: Option<Vec<usize>>,
}

impl<'a> Strips<'a> {
    /// Returns `None` if the parts' orders of inputs differ, or groups have different sizes.
    pub(super) fn new(parts: &'a [Integers<'a>], rows: &'a [usize], layout: PackedLayout) -> Option<Self> {
        let order = order(parts, layout.inputs)?;
        let starts = rows.iter().scan(0, |sum, rows| Some(std::mem::replace(sum, *sum + rows))).collect();
        Some(Self { layout, parts, rows, starts, order })
    }

    /// The part that contains an output, and the row in it.
    fn locate(&self, output: usize) -> (usize, usize) {
        let part = self.starts.partition_point(|start| *start <= output) - 1;
        (part, output - self.starts[part])
    }

    /// Number of a part's outputs in the first `strips`.
    pub(super) fn rows_before(&self, part: usize, strips: usize) -> usize {
        (strips * PACKED_TILE_N).saturating_sub(self.starts[part]).min(self.rows[part])
    }

    /// Lays out strips from `first`, as many as fit in `bytes`; false if float16 cannot represent a scale.
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
        let group = self.parts[0].group;
        let source = QuantSource { order: self.order.as_deref(), group, read: &read, terms: &terms };
        source.lay_out(self.layout, first, bytes)
    }
}

/// Lays out a whole matrix, in several calls as in an upload; `None` if float16 cannot represent a scale.
#[cfg(test)]
pub(super) fn lay_out_whole(layout: PackedLayout, source: QuantSource<'_>) -> Option<Vec<u8>> {
    let mut bytes = vec![0xa5; layout.bytes()];
    let mut parts = bytes.chunks_mut(3 * layout.strip_bytes()).enumerate();
    let exact = parts.all(|(at, bytes)| source.lay_out(layout, 3 * at, bytes));
    exact.then_some(bytes)
}

/// The inputs sorted by group, if groups are not consecutive; the outer `None` if groups have different sizes, or parts
/// differ.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_float16_does_not_hold_and_what_is_not_finite_is_not_kept_packed() {
        let layout = PackedLayout::new(IntegerFormat { bits: 4, group: 128 }, MatrixSize { inputs: 128, outputs: 16 });
        let kept = |scale: f32, offset: f32| {
            let read = |_: usize, quants: &mut [u8]| quants.fill(8);
            // One group of the sixteen.
            let terms = |output: usize, _: usize| if output == 5 { (scale, offset) } else { (0.5, 8.0) };
            let source = QuantSource { order: None, group: 128, read: &read, terms: &terms };
            lay_out_whole(layout.unwrap(), source).is_some()
        };
        assert!(kept(0.25, 7.0) && kept(-0.25, -1.5));
        let bad = [0.1, 70_000.0, 1e-9, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        assert_eq!(bad.map(|term| (kept(term, 7.0), kept(0.25, term))), [(false, false); 6]);
    }

    #[test]
    fn being_without_has_its_price_named() {
        for (kinds, part) in [(0, "so TensorRT's engines decode"), (16, "two times"), (20, "four times")] {
            let told = TileKinds(kinds).without_kernel("x", DType::Float16).join("\n");
            assert!(told.contains(part) && told.contains("engines decode, which is slower"), "{told}");
            assert_eq!(TileKinds(kinds).without_kernel("x", DType::Float32), Vec::<String>::new());
        }
        let told = TileKinds(20).without_packed("99 KB").join("\n");
        assert!(
            told.contains("99 KB; so weights") && told.contains("four times") && !told.contains("engines"),
            "{told}"
        );
    }
}
