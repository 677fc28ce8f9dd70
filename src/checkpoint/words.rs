//! Small integers in 32-bit words: where each lies is said once, for who reads them and for who packs them.
//!
//! Layouts are those of the packages that write them: AutoGPTQ and GPTQModel (`qlinear`), AutoAWQ (`WQLinear_GEMM`, eight columns
//! in the order 0 2 4 6 1 3 5 7), compressed-tensors (`pack_to_int32`, whose `packed_dim` is the axis that is packed).

use std::ops::Add;

/// Place of each of eight neighbours in a word.
const IN_ORDER: [u32; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
/// The same in AWQ's words.
const AWQ_ORDER: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Integers in a word.
pub(super) const fn per_word(bits: u32) -> usize {
    if bits == 4 { 8 } else { 4 }
}

/// A word of bytes that hold little-endian words.
pub(super) fn word(bytes: &[u8], index: usize) -> u32 {
    let at = 4 * index;
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The axis along which neighbours share a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PackedAxis {
    /// Neighbours of one row.
    Columns,
    /// Neighbours of one column.
    Rows,
}

/// Integers `[rows, columns]` of 4 or 8 bits in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WordGrid {
    rows: usize,
    columns: usize,
    bits: u32,
    axis: PackedAxis,
    order: &'static [u32; 8],
}

/// Where an integer lies: the word, and how many bits are below it. What its row and its column add to that are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WordPlace {
    word: usize,
    shift: u32,
}

impl Add for WordPlace {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self { word: self.word + other.word, shift: self.shift + other.shift }
    }
}

impl WordPlace {
    /// The integer that lies there.
    #[inline(always)]
    pub(super) fn read(self, words: &[u8], bits: u32) -> u32 {
        word(words, self.word) >> self.shift & ((1 << bits) - 1)
    }
}

impl WordGrid {
    /// A word holds neighbours of one row, the first in its lowest bits.
    pub fn along_rows([rows, columns]: [usize; 2], bits: u32) -> Self {
        Self { rows, columns, bits, axis: PackedAxis::Columns, order: &IN_ORDER }
    }

    /// A word holds neighbours of one column, the first in its lowest bits.
    pub fn along_columns([rows, columns]: [usize; 2], bits: u32) -> Self {
        Self { rows, columns, bits, axis: PackedAxis::Rows, order: &IN_ORDER }
    }

    /// AWQ's: 4 bits, neighbours of one row in an order of their own.
    pub(super) fn awq([rows, columns]: [usize; 2]) -> Self {
        Self { rows, columns, bits: 4, axis: PackedAxis::Columns, order: &AWQ_ORDER }
    }

    /// The shape of the words.
    pub fn shape(self) -> [usize; 2] {
        let count = per_word(self.bits);
        match self.axis {
            PackedAxis::Columns => [self.rows, self.columns.div_ceil(count)],
            PackedAxis::Rows => [self.rows.div_ceil(count), self.columns],
        }
    }

    /// What a row adds to the place of its integers.
    pub(super) fn row(self, row: usize) -> WordPlace {
        let [_, across] = self.shape();
        match self.axis {
            PackedAxis::Columns => WordPlace { word: row * across, shift: 0 },
            PackedAxis::Rows => WordPlace { word: row / per_word(self.bits) * across, shift: self.shift(row) },
        }
    }

    /// What a column adds to the place of its integers.
    pub(super) fn column(self, column: usize) -> WordPlace {
        match self.axis {
            PackedAxis::Columns => WordPlace { word: column / per_word(self.bits), shift: self.shift(column) },
            PackedAxis::Rows => WordPlace { word: column, shift: 0 },
        }
    }

    fn shift(self, along: usize) -> u32 {
        self.bits * self.order[along % per_word(self.bits)]
    }

    /// The integer at a place of the grid.
    pub(super) fn read(self, words: &[u8], [row, column]: [usize; 2]) -> u32 {
        (self.row(row) + self.column(column)).read(words, self.bits)
    }

    /// Packs the integers that `integer` gives for row and column; each is below 2 to the power of the bits.
    pub fn pack(self, integer: impl Fn(usize, usize) -> u8) -> Vec<u8> {
        let [down, across] = self.shape();
        let mut words = vec![0_u32; down * across];
        for row in 0..self.rows {
            for column in 0..self.columns {
                let place = self.row(row) + self.column(column);
                words[place.word] |= u32::from(integer(row, column)) << place.shift;
            }
        }
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words as compressed-tensors 0.20 (`pack_to_int32`) and AutoAWQ 0.2 (`WQLinear_GEMM.from_linear`) pack them, and what is
    /// packed is read again.
    #[test]
    fn words_are_those_of_the_packages() {
        let cases: [(WordGrid, [usize; 2], &[u32]); 5] = [
            (WordGrid::along_rows([2, 10], 4), [2, 2], &[0x52fc_9630, 0x0000_00b8, 0x1d95_1d95, 0x0000_0095]),
            (WordGrid::along_columns([10, 2], 4), [2, 2], &[0x3e94_fa50, 0xd71b_5f93, 0x0000_00d8, 0x0000_0093]),
            (
                WordGrid::along_rows([3, 5], 8),
                [3, 2],
                &[0x0906_0300, 0x0000_000c, 0x110d_0905, 0x0000_0015, 0x1914_0f0a, 0x0000_001e],
            ),
            (
                WordGrid::along_columns([5, 3], 8),
                [2, 3],
                &[0x0f0a_0500, 0x150f_0903, 0x1b14_0d06, 0x0000_0014, 0x0000_001b, 0x0000_0022],
            ),
            (WordGrid::awq([2, 16]), [2, 2], &[0x5f93_2c60, 0xd71b_a4e8, 0x1919_d5d5, 0x1919_d5d5]),
        ];
        for (grid, shape, want) in cases {
            let integer = |row: usize, column: usize| (5 * row + 3 * column + row * column) % (1 << grid.bits);
            let words = grid.pack(|row, column| u8::try_from(integer(row, column)).unwrap());
            assert_eq!(grid.shape(), shape, "{grid:?}");
            assert_eq!((0..words.len() / 4).map(|at| word(&words, at)).collect::<Vec<_>>(), want, "{grid:?}");
            for place in (0..grid.rows).flat_map(|row| (0..grid.columns).map(move |column| [row, column])) {
                let have = usize::try_from(grid.read(&words, place)).unwrap();
                assert_eq!(have, integer(place[0], place[1]), "{grid:?} at {place:?}");
            }
        }
    }
}
