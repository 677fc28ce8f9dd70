//! The likeliest tokens and what all weigh, against a sort on the host.

use super::super::abi::{BLOCK_ROWS, EXP_SUMS_BYTES, TopLogitsParams, TopLogitsRow};
use super::super::top_logits::{blocks_of_row, read};
use super::*;
use crate::cuda_executor::driver::word;
use crate::executor::TOP_LOGITS;

#[test]
fn the_likeliest_are_those_of_a_sort() {
    for mut bench in Bench::all("the_likeliest_are_those_of_a_sort", DType::Float16, 16) {
        let mut draw = Draw(0x0123_4567_89ab_cdef);
        for vocabulary in [8, 64, 1000, 2048, 2056, if bench.is_fast() { 151_936 } else { 9000 }] {
            bench.clear();
            one_ranking(&mut bench, &mut draw, vocabulary);
        }
    }
}

fn one_ranking(bench: &mut Bench, draw: &mut Draw, vocabulary: usize) {
    let rows = 1 + draw.below(BLOCK_ROWS);
    // Some are equal, some of no weight at all.
    let mut logit = |_| match draw.below(50) {
        0 => f64::from(f32::NEG_INFINITY),
        1..10 => (draw.float() * 5.0).round() + 0.0,
        _ => f64::from((draw.float() * 20.0) as f32),
    };
    let logits: Vec<f64> = (0..rows * vocabulary).map(&mut logit).collect();
    let inverses: Vec<f64> = (0..rows).map(|_| f64::from(1.0 / draw.of(&[0.3_f32, 1.0, 2.5]))).collect();
    const ROW: usize = size_of::<TopLogitsRow>();
    let blocks = blocks_of_row(vocabulary);
    let params = TopLogitsParams {
        logits: bench.floats(&logits),
        inverse_temperatures: bench.floats(&inverses),
        lists: bench.bytes(&vec![0xff; rows * blocks * TOP_LOGITS * 8]),
        sums: bench.bytes(&vec![0xff; rows * blocks * EXP_SUMS_BYTES]),
        counters: bench.words(&vec![0; rows]),
        out: bench.bytes(&vec![0xff; rows * ROW]),
        vocabulary: word(vocabulary),
        padding: 0,
    };
    // Twice: the last block to arrive leaves counters as they were.
    for _ in 0..2 {
        match &bench.machine {
            KernelHost::Gpu(device, kernel) => {
                kernel.top_logits(&device.stream, &params, blocks, rows).unwrap();
                device.stream.synchronize().unwrap();
            }
            KernelHost::Cpu(emulator) => emulator.top_logits(&params, blocks, rows),
        }
    }
    let bytes = bench.read(params.out, rows * ROW);
    for (row, found) in bytes.chunks_exact(ROW).map(read).enumerate() {
        let logits = &logits[row * vocabulary..][..vocabulary];
        let mut order: Vec<usize> = (0..vocabulary).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let want: Vec<(u32, f32)> =
            order[..TOP_LOGITS.min(vocabulary)].iter().map(|token| (word(*token), logits[*token] as f32)).collect();
        assert_eq!(found.tokens, want, "row {row} of {rows}, {vocabulary} tokens");
        let best = logits[order[0]];
        let sum = |inverse: f64| logits.iter().map(|logit| ((logit - best) * inverse).exp()).sum::<f64>();
        for (have, want) in [(found.sum_exp, sum(1.0)), (found.sum_exp_at_temperature, sum(inverses[row]))] {
            assert!((have / want - 1.0).abs() < 1e-5, "row {row} of {rows}, {vocabulary} tokens: {have}, not {want}");
        }
    }
}
