//! Matrices of small integers as they are, for arithmetic that keeps them packed: whichever format they came in, an output
//! of a group of inputs is scale · (q - zero), or scale · q + minimum.

use super::View;
use super::encoding::Encoding;

/// What a group has beside its scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupOffset {
    /// The integer that stands for 0.
    ZeroPoint,
    /// What the integer 0 stands for.
    Minimum,
}

/// A matrix's integers.
#[derive(Debug, Clone, Copy)]
pub struct Integers<'a> {
    view: View<'a>,
    /// 4 or 8; integers are from 0 to 2^bits - 1.
    pub bits: u32,
    /// Neighbouring inputs that share scale and offset; all of them may.
    pub group: usize,
    /// What their offset is.
    pub offset: GroupOffset,
}

/// Bits, inputs that share a scale, and what their offset is, of GGUF's blocks that are such.
fn blocks(encoding: Encoding) -> Option<(u32, usize, GroupOffset)> {
    match encoding {
        Encoding::Q4_0 => Some((4, 32, GroupOffset::ZeroPoint)),
        Encoding::Q4_1 => Some((4, 32, GroupOffset::Minimum)),
        Encoding::Q8_0 => Some((8, 32, GroupOffset::ZeroPoint)),
        _ => None,
    }
}

impl Encoding {
    /// Whether GGUF's blocks stay packed in device memory.
    pub fn stays_packed(self) -> bool {
        blocks(self).is_some()
    }
}

impl<'a> View<'a> {
    /// The integers, where the tensor is made of such.
    pub fn integers(&self) -> Option<Integers<'a>> {
        let (bits, group, offset) = match self.packed {
            Some(packed) => (packed.bits(), packed.group(), GroupOffset::ZeroPoint),
            None => blocks(self.encoding)?,
        };
        Some(Integers { view: *self, bits, group, offset })
    }
}

impl Integers<'_> {
    /// The group of each input, where they are not in order (GPTQ's `desc_act`).
    pub fn order(&self) -> Option<Vec<usize>> {
        self.view.packed.and_then(|packed| packed.order())
    }

    /// Integers of rows `first..`, as many as fit into `out`: `[rows, inputs]`.
    pub fn read(&self, first: usize, out: &mut [u8]) {
        if let Some(packed) = self.view.packed {
            return packed.integers(first, out);
        }
        for (row, out) in out.chunks_exact_mut(self.view.columns()).enumerate() {
            let (_, size) = self.view.encoding.block();
            for (block, out) in self.view.row(first + row).chunks_exact(size).zip(out.chunks_exact_mut(32)) {
                let bytes = &block[self.head()..];
                if self.bits == 8 {
                    out.iter_mut().zip(bytes).for_each(|(out, q)| *out = q.wrapping_add(128));
                    continue;
                }
                let (low, high) = out.split_at_mut(16);
                for (byte, (low, high)) in bytes.iter().zip(low.iter_mut().zip(high)) {
                    (*low, *high) = (byte & 15, byte >> 4);
                }
            }
        }
    }

    /// Bytes before a block's integers.
    fn head(&self) -> usize {
        if self.offset == GroupOffset::Minimum { 4 } else { 2 }
    }

    /// Scale and offset of a row's group.
    pub fn terms(&self, row: usize, group: usize) -> (f32, f32) {
        if let Some(packed) = self.view.packed {
            return packed.terms(row, group);
        }
        let (_, size) = self.view.encoding.block();
        let block = &self.view.row(row)[group * size..];
        let half = |at: usize| half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let offset = match self.offset {
            GroupOffset::Minimum => half(2),
            GroupOffset::ZeroPoint if self.bits == 8 => 128.0,
            GroupOffset::ZeroPoint => 8.0,
        };
        (half(0), offset)
    }
}
