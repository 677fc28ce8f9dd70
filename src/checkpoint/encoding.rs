//! Storage of tensor elements: plain floats, or GGUF's blocks of scales and small integers.
//!
//! Block layouts are those of ggml (`ggml-common.h` and the Python package `gguf`, `quants.py`). A block is 32 elements,
//! or 256 for the K types, along a row.

use half::{bf16, f16};

use crate::tensor::DType;

/// Storage of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Encoding {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
    /// Packed integers with separate scales; see `packed.rs`.
    INT4,
    INT8,
}

impl Encoding {
    /// Elements and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Encoding::F32 => (1, 4),
            Encoding::F16 | Encoding::BF16 => (1, 2),
            Encoding::Q4_0 => (32, 18),
            Encoding::Q4_1 => (32, 20),
            Encoding::Q5_0 => (32, 22),
            Encoding::Q5_1 => (32, 24),
            Encoding::Q8_0 => (32, 34),
            Encoding::Q4_K => (256, 144),
            Encoding::Q5_K => (256, 176),
            Encoding::Q6_K => (256, 210),
            Encoding::INT4 => (8, 4),
            Encoding::INT8 => (4, 4),
        }
    }

    /// The element type if every element is a float of its own; `None` for blocks.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Encoding::F32 => Some(DType::Float32),
            Encoding::F16 => Some(DType::Float16),
            Encoding::BF16 => Some(DType::BFloat16),
            _ => None,
        }
    }

    /// The encoding with ggml's type number.
    pub(super) fn from_ggml(number: u32) -> Option<Self> {
        Some(match number {
            0 => Encoding::F32,
            1 => Encoding::F16,
            2 => Encoding::Q4_0,
            3 => Encoding::Q4_1,
            6 => Encoding::Q5_0,
            7 => Encoding::Q5_1,
            8 => Encoding::Q8_0,
            12 => Encoding::Q4_K,
            13 => Encoding::Q5_K,
            14 => Encoding::Q6_K,
            30 => Encoding::BF16,
            _ => return None,
        })
    }

    /// The supported encodings of GGUF files.
    pub fn of_gguf() -> impl Iterator<Item = Self> {
        (0..256).filter_map(Self::from_ggml)
    }

    /// Bytes of a row of `elements`; `None` if the row does not end with a block.
    pub fn row_bytes(self, elements: usize) -> Option<usize> {
        let (block, bytes) = self.block();
        elements.is_multiple_of(block).then(|| elements / block)?.checked_mul(bytes)
    }

    /// Decodes whole blocks: `bytes` contains `out.len()` elements.
    pub(super) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let (elements, size) = self.block();
        debug_assert_eq!(bytes.len() / size, out.len() / elements);
        let blocks = bytes.chunks_exact(size).zip(out.chunks_exact_mut(elements));
        match self {
            Encoding::F32 => blocks.for_each(|(b, out)| out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Encoding::F16 => blocks.for_each(|(b, out)| out[0] = half_at(b, 0)),
            Encoding::BF16 => blocks.for_each(|(b, out)| out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            Encoding::Q4_0 => blocks.for_each(|(b, out)| q4(b, out, half_at(b, 0), None, 2)),
            Encoding::Q4_1 => blocks.for_each(|(b, out)| q4(b, out, half_at(b, 0), Some(half_at(b, 2)), 4)),
            Encoding::Q5_0 => blocks.for_each(|(b, out)| q5(b, out, half_at(b, 0), None, 2)),
            Encoding::Q5_1 => blocks.for_each(|(b, out)| q5(b, out, half_at(b, 0), Some(half_at(b, 2)), 4)),
            Encoding::Q8_0 => blocks.for_each(|(b, out)| {
                let scale = half_at(b, 0);
                b[2..].iter().zip(out).for_each(|(q, out)| *out = scale * f32::from(i8::from_le_bytes([*q])));
            }),
            Encoding::Q4_K => blocks.for_each(|(b, out)| k_quant(b, out, false)),
            Encoding::Q5_K => blocks.for_each(|(b, out)| k_quant(b, out, true)),
            Encoding::Q6_K => blocks.for_each(|(b, out)| q6_k(b, out)),
            // Their scales are elsewhere: `View::read` knows.
            Encoding::INT4 | Encoding::INT8 => {}
        }
    }
}

impl std::fmt::Display for Encoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 16 bytes of nibbles at `at`: element i is the low nibble of byte i, element i + 16 its high nibble. Without a
/// minimum the integers are centred on 8.
fn q4(block: &[u8], out: &mut [f32], scale: f32, minimum: Option<f32>, at: usize) {
    let (low, high) = out.split_at_mut(16);
    let value = |nibble: u8| match minimum {
        Some(minimum) => scale * f32::from(nibble) + minimum,
        None => scale * (f32::from(nibble) - 8.0),
    };
    for (byte, (low, high)) in block[at..at + 16].iter().zip(low.iter_mut().zip(high)) {
        *low = value(byte & 15);
        *high = value(byte >> 4);
    }
}

/// Like [`q4`], with the fifth bits of the 32 elements in four bytes before the nibbles; centred on 16.
fn q5(block: &[u8], out: &mut [f32], scale: f32, minimum: Option<f32>, at: usize) {
    let fifth = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let value = |nibble: u8, index: usize| {
        let q = f32::from(nibble | u8::from(fifth >> index & 1 == 1) << 4);
        minimum.map_or(scale * (q - 16.0), |minimum| scale * q + minimum)
    };
    for (index, byte) in block[at + 4..at + 20].iter().enumerate() {
        out[index] = value(byte & 15, index);
        out[index + 16] = value(byte >> 4, index + 16);
    }
}

/// Q4_K and Q5_K: half scale, half minimum, 8 six-bit (scale, minimum) pairs packed in 12 bytes, [32 bytes of fifth
/// bits,] 128 bytes of nibbles. Each run of 64 elements is 32 low nibbles, then the same bytes' high nibbles.
fn k_quant(block: &[u8], out: &mut [f32], fifth: bool) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let packed = &block[4..16];
    let nibbles = if fifth { &block[48..176] } else { &block[16..144] };
    let pair = |index: usize| -> (u8, u8) {
        if index < 4 {
            (packed[index] & 63, packed[index + 4] & 63)
        } else {
            (packed[index + 4] & 15 | packed[index - 4] >> 6 << 4, packed[index + 4] >> 4 | packed[index] >> 6 << 4)
        }
    };
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = pair(group);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        let bytes = &nibbles[group / 2 * 32..][..32];
        for (index, (byte, out)) in bytes.iter().zip(out).enumerate() {
            let nibble = if group % 2 == 0 { byte & 15 } else { byte >> 4 };
            let high = if fifth { (block[16 + index] >> group & 1) << 4 } else { 0 };
            *out = scale * f32::from(nibble | high) - minimum;
        }
    }
}

/// Q6_K: 128 bytes of low nibbles, 64 bytes of high pairs, 16 signed scales, half scale. Each half block of 128
/// elements uses 64 low bytes and 32 high bytes, in four runs of 32.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 208);
    for (half, out) in out.chunks_exact_mut(128).enumerate() {
        let low = &block[64 * half..][..64];
        let high = &block[128 + 32 * half..][..32];
        let scales = &block[192 + 8 * half..][..8];
        for (index, out) in out.iter_mut().enumerate() {
            let (run, at) = (index / 32, index % 32);
            let byte = low[at + 32 * (run % 2)];
            let nibble = if run < 2 { byte & 15 } else { byte >> 4 };
            let q = nibble | (high[at] >> (2 * run) & 3) << 4;
            let scale = i8::from_le_bytes([scales[index / 16]]);
            *out = d * f32::from(scale) * (f32::from(q) - 32.0);
        }
    }
}
