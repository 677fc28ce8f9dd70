//! Packed weights to float16, for the engines: every kind of tile, to the bit.

use super::super::super::packed_tiles::{IntegerFormat, PackedLayout, QuantSource, lay_out_whole};
use super::*;
use crate::checkpoint::GroupOffset;

/// Inputs and outputs: less than a tile, whole tiles, parts of tiles at both ends, more outputs than a block has.
const SIZES: [(usize, usize); 5] = [(8, 8), (128, 32), (200, 40), (264, 136), (520, 264)];
/// Bytes behind the matrix that nobody writes.
const BEHIND: usize = 64;

#[test]
fn packed_weights_become_the_floats_that_they_stand_for() {
    for mut bench in Bench::all("packed_weights_become_the_floats_that_they_stand_for", DType::Float16, 16) {
        let mut draw = Draw(0x3c6e_f372_fe94_f82b);
        let kinds = [4, 8].into_iter().flat_map(|bits| [32, 64, 128, 256, 0].map(|group| (bits, group)));
        for (at, (bits, group)) in kinds.enumerate() {
            for (shape, (inputs, outputs)) in SIZES.into_iter().enumerate() {
                bench.clear();
                let group = if group == 0 { inputs } else { group };
                let size = MatrixSize { inputs, outputs };
                let layout = PackedLayout::new(IntegerFormat { bits, group }, size).unwrap();
                let offset = if (at + shape) % 2 == 0 { GroupOffset::ZeroPoint } else { GroupOffset::Minimum };
                one_matrix(&mut bench, &mut draw, PackedLayout { offset, ..layout }, group);
            }
        }
    }
}

/// A matrix whose checkpoint has groups of `group` inputs.
fn one_matrix(bench: &mut Bench, draw: &mut Draw, layout: PackedLayout, group: usize) {
    let PackedLayout { bits, offset, inputs, outputs, .. } = layout;
    let mut order: Vec<usize> = (0..inputs).collect();
    let is_permuted = draw.below(2) == 1;
    if is_permuted {
        (1..inputs).for_each(|at| order.swap(at, draw.below(at + 1)));
    }
    let quants: Vec<u8> = (0..inputs * outputs).map(|_| u8::try_from(draw.below(1 << bits)).unwrap()).collect();
    let narrow = |value: f64| f16::from_f64(value).to_f32();
    let terms: Vec<(f32, f32)> = (0..inputs.div_ceil(group) * outputs)
        .map(|_| {
            let scale = narrow(0.1 * draw.float());
            let last = match offset {
                GroupOffset::ZeroPoint => narrow(draw.below((1 << bits) + 1) as f64),
                GroupOffset::Minimum => narrow(draw.float()),
            };
            (scale, last)
        })
        .collect();
    let read = |first: usize, out: &mut [u8]| out.copy_from_slice(&quants[first * inputs..][..out.len()]);
    let of_group = |output: usize, group: usize| terms[group * outputs + output];
    let source = QuantSource { order: Some(&order), group, read: &read, terms: &of_group };
    let tiles = lay_out_whole(layout, source).unwrap();
    let input_order = if is_permuted { bench.words(&order) } else { 0 };
    let matrix = PackedMatrix { tiles: bench.bytes(&tiles), input_order, layout };
    let bytes = 2 * inputs * outputs;
    let out = bench.bytes(&vec![0xff; bytes + BEHIND]);
    bench.dequantize(matrix, out);
    let have = bench.read(out, bytes + BEHIND);
    let what = format!("{inputs}x{outputs}, {bits} bits, groups of {group}, {offset:?}, permuted: {is_permuted}");
    for (place, input) in order.into_iter().enumerate() {
        for output in 0..outputs {
            let (scale, last) = terms[place / group * outputs + output];
            let offset = if offset == GroupOffset::Minimum { last } else { last * -scale };
            // One rounding to float32, one to float16.
            let want = f16::from_f32(scale.mul_add(f32::from(quants[output * inputs + input]), offset));
            let at = 2 * (input * outputs + output);
            let have = u16::from_le_bytes([have[at], have[at + 1]]);
            assert_eq!(have, want.to_bits(), "{what}: [{input}, {output}] is not {want}");
        }
    }
    assert!(have[bytes..].iter().all(|byte| *byte == 0xff), "{what}: what is behind it is written");
}
