//! The likeliest tokens and what all weigh, against a sort on the host.

use super::super::abi::Places;
use super::super::top_logits::{BEST, MASS, RANKED, read, shares};
use super::*;
use crate::llm::gpu::driver::word;

#[test]
fn the_likeliest_are_those_of_a_sort() {
    for mut bench in Bench::all("the_likeliest_are_those_of_a_sort", (DType::Float16, 16)) {
        let mut draw = Draw(0x0123_4567_89ab_cdef);
        for vocabulary in [8, 64, 1000, 2048, 2056, if bench.is_fast() { 151_936 } else { 9000 }] {
            bench.clear();
            one_ranking(&mut bench, &mut draw, vocabulary);
        }
    }
}

fn one_ranking(bench: &mut Bench, draw: &mut Draw, vocabulary: usize) {
    let rows = 1 + draw.below(ROWS);
    // Some are equal, some of no weight at all.
    let mut logit = |_| match draw.below(50) {
        0 => f64::from(f32::NEG_INFINITY),
        1..10 => (draw.float() * 5.0).round() + 0.0,
        _ => f64::from((draw.float() * 20.0) as f32),
    };
    let logits: Vec<f64> = (0..rows * vocabulary).map(&mut logit).collect();
    let inverses: Vec<f64> = (0..rows).map(|_| f64::from(1.0 / draw.of(&[0.3_f32, 1.0, 2.5]))).collect();
    let parts = rows * shares(vocabulary);
    let places = Places {
        logits: bench.floats(&logits),
        inverses: bench.floats(&inverses),
        lists: bench.bytes(&vec![0xff; parts * BEST * 8]),
        masses: bench.bytes(&vec![0xff; parts * MASS]),
        counters: bench.words(&vec![0; rows]),
        out: bench.bytes(&vec![0xff; rows * RANKED]),
    };
    // Twice: who comes last leaves counters as they were.
    for _ in 0..2 {
        match &bench.machine {
            Machine::Gpu(device, kernel) => {
                kernel.rank(&device.stream, (shares(vocabulary), rows), word(vocabulary), &places).unwrap();
                device.stream.synchronize().unwrap();
            }
            Machine::Cpu(emulator) => emulator.rank((shares(vocabulary), rows), vocabulary, &places),
        }
    }
    let bytes = bench.read(places.out, rows * RANKED);
    for (row, found) in bytes.chunks_exact(RANKED).map(read).enumerate() {
        let logits = &logits[row * vocabulary..][..vocabulary];
        let mut order: Vec<usize> = (0..vocabulary).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let want: Vec<(u32, f32)> =
            order[..BEST.min(vocabulary)].iter().map(|token| (word(*token), logits[*token] as f32)).collect();
        assert_eq!(found.tokens, want, "row {row} of {rows}, {vocabulary} tokens");
        let best = logits[order[0]];
        let sum = |inverse: f64| logits.iter().map(|logit| ((logit - best) * inverse).exp()).sum::<f64>();
        for (have, want) in [(found.total, sum(1.0)), (found.warm, sum(inverses[row]))] {
            assert!((have / want - 1.0).abs() < 1e-5, "row {row} of {rows}, {vocabulary} tokens: {have}, not {want}");
        }
    }
}
