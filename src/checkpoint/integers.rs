//! Access to quantised matrices as integers, for kernels that keep them packed. In every format a weight is scale ·
//! (q - zero), or scale · q + minimum, with the terms of its group of inputs.

use super::View;
use super::encoding::Encoding;

/// The second term of a group, besides its scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupOffset {
    /// The integer that represents 0.
    ZeroPoint,
    /// The weight that the integer 0 represents.
    Minimum,
}

/// The integers of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct Integers<'a> {
    view: View<'a>,
    /// Bits of an integer, 4 or 8; integers are 0 to 2^bits - 1.
    pub bits: u32,
    /// Number of neighbouring inputs that share scale and offset; may be all inputs.
    pub group: usize,
    /// Meaning of the offset.
    pub offset: GroupOffset,
}

/// Bits, group size and offset of GGUF block encodings that are integers with a scale; `None` for others.
fn blocks(encoding: Encoding) -> Option<(u32, usize, GroupOffset)> {
    match encoding {
        Encoding::Q4_0 => Some((4, 32, GroupOffset::ZeroPoint)),
        Encoding::Q4_1 => Some((4, 32, GroupOffset::Minimum)),
        Encoding::Q8_0 => Some((8, 32, GroupOffset::ZeroPoint)),
        _ => None,
    }
}

impl Encoding {
    /// Whether GGUF blocks of this encoding stay packed in device memory.
    pub fn stays_packed(self) -> bool {
        blocks(self).is_some()
    }
}

impl<'a> View<'a> {
    /// The integers of this tensor; `None` if it is not stored as integers.
    pub fn integers(&self) -> Option<Integers<'a>> {
        let (bits, group, offset) = match self.packed {
            Some(packed) => (packed.bits(), packed.group(), GroupOffset::ZeroPoint),
            None => blocks(self.encoding)?,
        };
        Some(Integers { view: *self, bits, group, offset })
    }
}

impl Integers<'_> {
    /// The group of each input, if groups are not consecutive (GPTQ's `desc_act`).
    pub fn order(&self) -> Option<Vec<usize>> {
        self.view.packed.and_then(|packed| packed.order())
    }

    /// Reads the integers of rows `first..` into `out` (`[rows, inputs]`), as many rows as fit.
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

    /// Bytes of a block before its integers.
    fn head(&self) -> usize {
        if self.offset == GroupOffset::Minimum { 4 } else { 2 }
    }

    /// Scale and offset of a group in a row.
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
