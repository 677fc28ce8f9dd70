//! Attention with windows, caps, norms and partial rotation.

use super::super::kernel::ATTEND;
use super::*;

#[test]
fn attention_is_that_of_float64() {
    for dtype in [DType::Float16, DType::BFloat16] {
        for mut bench in Bench::all("attention_is_that_of_float64", dtype) {
            let mut draw = Draw(0x2545_f491_4f6c_dd1d);
            for case in 0..if bench.is_fast() { 40 } else { 16 } {
                bench.clear();
                one_attention(&mut bench, &mut draw, case);
            }
        }
    }
}

fn one_attention(bench: &mut Bench, draw: &mut Draw, case: usize) {
    let (kv_heads, group, dim) = (1 + draw.below(4), 1 + draw.below(16), draw.of(&[8, 16, 64, 80, 96, 128, 192, 256]));
    let (rows, capacity) =
        (1 + draw.below(ROWS), if bench.is_fast() { draw.of(&[64, 512, 1344]) } else { draw.of(&[32, 64, 192]) });
    let (heads, rotary) = (kv_heads * group, draw.of(&[dim, dim / 2, dim]) / 2 * 2);
    let (window, cap) = (draw.of(&[0, 0, 1, 37, 130]), draw.of(&[0.0, 0.0, 3.0]));
    let (normed, width, eps) = (draw.below(2) == 1, (heads + 2 * kv_heads) * dim, 1e-6);
    let cached: Vec<usize> = (0..rows).map(|_| draw.below(capacity)).collect();
    let present: Vec<usize> = (0..rows).map(|_| usize::from(draw.below(4) > 0)).collect();
    let inputs = 8;
    let x: Vec<f64> = (0..rows * inputs).map(|_| bench.round(draw.float())).collect();
    let weights: Vec<f64> = (0..inputs * width).map(|_| bench.round(draw.float())).collect();
    let numbers = |bench: &Bench, draw: &mut Draw, count: usize| -> Vec<f64> {
        (0..count).map(|_| bench.round(draw.float())).collect()
    };
    let (keys, values) = (
        numbers(bench, draw, rows * kv_heads * capacity * dim),
        numbers(bench, draw, rows * kv_heads * capacity * dim),
    );
    let (cos, sin) = (numbers(bench, draw, capacity * rotary), numbers(bench, draw, capacity * rotary));
    let norms: Vec<f64> = (0..2 * dim).map(|_| f64::from((1.0 + 0.3 * draw.float()) as f32)).collect();
    let matrix = (bench.short(&weights), None);
    let qkv = bench.bytes(&vec![0xff; rows * width * 2]);
    let out = bench.bytes(&vec![0xff; rows * heads * dim * 2]);
    let (kept_keys, kept_values) = (bench.short(&keys), bench.short(&values));
    let first = Phase {
        x: bench.short(&x),
        out: qkv,
        counters: 2,
        ..shape(matrix, [inputs, width], false, Cut { across: 2, blocks: 1 })
    };
    let word = |n: usize| u32::try_from(n).unwrap();
    let attend = Phase {
        kind: ATTEND,
        x: qkv,
        norm: if normed { bench.floats(&norms[..dim]) } else { 0 },
        key_norm: if normed { bench.floats(&norms[dim..]) } else { 0 },
        out,
        keys: kept_keys,
        values: kept_values,
        cos: bench.short(&cos),
        sin: bench.short(&sin),
        window: word(window),
        rotary: word(rotary),
        counters: 2 + first.strips,
        ..Phase::default()
    };
    let scale = 1.0 / (dim as f64).sqrt();
    let launch = Launch {
        cached: bench.words(&cached),
        present: bench.words(&present),
        rows: word(rows),
        capacity: word(capacity),
        positions: word(capacity),
        heads: word(heads),
        kv_heads: word(kv_heads),
        dim: word(dim),
        splits: word((bench.blocks() / (rows * kv_heads)).max(draw.of(&[1, 2, 3]))),
        eps: eps as f32,
        scale: scale as f32,
        cap: cap as f32,
        ..Launch::default()
    };
    bench.run(&[first, attend], first.strips as usize + rows * kv_heads, launch);
    let what = format!(
        "case {case}: {heads} heads on {kv_heads}, {dim} wide, {rows} rows at {cached:?} of {capacity}, window {window}"
    );
    let (qkv, have) = (bench.read_short(qkv, rows * width), bench.read_short(out, rows * heads * dim));
    let (new_keys, new_values) = (bench.read_short(kept_keys, keys.len()), bench.read_short(kept_values, values.len()));
    let unit = bench.unit();
    for row in 0..rows {
        let position = cached[row];
        let turned = |head: usize, norm: &[f64]| -> Vec<f64> {
            let x = &qkv[row * width + head * dim..][..dim];
            let factor = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / dim as f64 + eps).sqrt();
            let x: Vec<f64> = if normed {
                x.iter().zip(norm).map(|(x, n)| bench.round(x * factor * n)).collect()
            } else {
                x.to_vec()
            };
            (0..dim)
                .map(|i| {
                    if i >= rotary {
                        return x[i];
                    }
                    let other = if i < rotary / 2 { -x[i + rotary / 2] } else { x[i - rotary / 2] };
                    x[i] * cos[position * rotary + i] + other * sin[position * rotary + i]
                })
                .collect()
        };
        for kv in 0..kv_heads {
            let place = |at: usize| ((row * kv_heads + kv) * capacity + at) * dim;
            let key = turned(heads + kv, &norms[dim..]);
            let value = &qkv[row * width + (heads + kv_heads + kv) * dim..][..dim];
            for at in 0..capacity {
                for i in 0..dim {
                    let (want_key, want_value) = match at == position && present[row] == 1 {
                        true => (key[i], value[i]),
                        false => (keys[place(at) + i], values[place(at) + i]),
                    };
                    let (got_key, got_value) = (new_keys[place(at) + i], new_values[place(at) + i]);
                    assert!(
                        (got_key - want_key).abs() <= 4.0 * unit,
                        "{what}: key {at} of row {row}: {got_key}, not {want_key}"
                    );
                    assert!(got_value == want_value, "{what}: value {at} of row {row}: {got_value}, not {want_value}");
                }
            }
            for head in kv * group..(kv + 1) * group {
                let query: Vec<f64> = turned(head, &norms[..dim]).iter().map(|x| x * scale).collect();
                let from = if window > 0 { (position + 1).saturating_sub(window) } else { 0 };
                let key_at = |at: usize| if at == position { &key[..] } else { &keys[place(at)..][..dim] };
                let value_at = |at: usize| if at == position { value } else { &values[place(at)..][..dim] };
                let mut slack = 0.0_f64;
                let scores: Vec<f64> = (from..=position)
                    .map(|at| {
                        let terms = query.iter().zip(key_at(at)).map(|(q, k)| q * k);
                        slack = slack.max(terms.clone().map(f64::abs).sum::<f64>() * 3.0 * unit);
                        let score: f64 = terms.sum();
                        if cap > 0.0 { cap * (score / cap).tanh() } else { score }
                    })
                    .collect();
                let high = scores.iter().copied().fold(f64::MIN, f64::max);
                let shares: Vec<f64> = scores.iter().map(|score| (score - high).exp()).collect();
                let all: f64 = shares.iter().sum();
                for i in 0..dim {
                    let terms = shares.iter().enumerate().map(|(at, share)| share / all * value_at(from + at)[i]);
                    let (want, size) = (terms.clone().sum::<f64>(), terms.map(f64::abs).sum::<f64>());
                    let got = have[(row * heads + head) * dim + i];
                    let bound = size * (2.0 * slack + 4.0 * unit) + 1e-6;
                    assert!(
                        (got - want).abs() <= bound,
                        "{what}: head {head} of row {row} at {i} is {got}, not {want} within {bound:e}"
                    );
                }
            }
        }
    }
}
