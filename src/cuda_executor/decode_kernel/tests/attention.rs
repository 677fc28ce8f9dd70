//! Attention with windows, caps, norms and partial rotation.

use super::super::abi::{ATTENTION, BLOCK_ROWS};
use super::super::matmul::matmul;
use super::*;

#[test]
fn attention_is_that_of_float64() {
    for (dtype, kv_bits) in [(DType::Float16, 16), (DType::BFloat16, 16), (DType::Float16, 8), (DType::BFloat16, 8)] {
        for mut bench in Bench::all("attention_is_that_of_float64", dtype, kv_bits) {
            let mut draw = Draw(0x2545_f491_4f6c_dd1d);
            for case in 0..if bench.is_fast() { 40 } else { 16 } {
                bench.clear();
                one_attention(&mut bench, &mut draw, case);
            }
        }
    }
}

/// Cached rows, and what they stand for.
pub(super) struct CachedRows {
    pub(super) rows: u64,
    pub(super) scales: u64,
    count: usize,
    dim: usize,
    pub(super) values: Vec<f64>,
}

impl CachedRows {
    pub(super) fn random(bench: &mut Bench, draw: &mut Draw, count: usize, dim: usize) -> Self {
        if bench.kv_bits == 16 {
            let values: Vec<f64> = (0..count * dim).map(|_| bench.round(draw.float())).collect();
            return Self { rows: bench.short(&values), scales: 0, count, dim, values };
        }
        let bytes: Vec<u8> = (0..count * dim).map(|_| u8::try_from(1 + draw.below(255)).unwrap()).collect();
        let scales: Vec<f64> = (0..count).map(|_| f64::from((draw.float().abs() / 127.0) as f32)).collect();
        let values = Self::values_of(bench, &bytes, &scales);
        Self { rows: bench.bytes(&bytes), scales: bench.floats(&scales), count, dim, values }
    }

    fn values_of(bench: &Bench, bytes: &[u8], scales: &[f64]) -> Vec<f64> {
        let dim = bytes.len() / scales.len();
        let of = |(at, byte): (usize, &u8)| bench.round((f64::from(*byte) - 128.0) * scales[at / dim]);
        bytes.iter().enumerate().map(of).collect()
    }

    /// What they stand for now.
    pub(super) fn read(&self, bench: &Bench) -> Vec<f64> {
        if bench.kv_bits == 16 {
            return bench.read_short(self.rows, self.count * self.dim);
        }
        let scales = bench.read_floats(self.scales, self.count);
        Self::values_of(bench, &bench.read(self.rows, self.count * self.dim), &scales)
    }
}

fn one_attention(bench: &mut Bench, draw: &mut Draw, case: usize) {
    let (kv_heads, group, dim) = (1 + draw.below(4), 1 + draw.below(16), draw.of(&[8, 16, 64, 80, 96, 128, 192, 256]));
    let dim = if bench.kv_bits == 8 { dim.max(16) } else { dim };
    let (rows, capacity) =
        (1 + draw.below(BLOCK_ROWS), if bench.is_fast() { draw.of(&[64, 512, 1344]) } else { draw.of(&[32, 64, 192]) });
    let (heads, rotary) = (kv_heads * group, draw.of(&[dim, dim / 2, dim]) / 2 * 2);
    let (window, cap) = (draw.of(&[0, 0, 1, 37, 130]), draw.of(&[0.0, 0.0, 3.0]));
    let (normed, width, eps) = (draw.below(2) == 1, (heads + 2 * kv_heads) * dim, 1e-6);
    let cached: Vec<usize> = (0..rows).map(|_| draw.below(capacity)).collect();
    let occupied: Vec<usize> = (0..rows).map(|_| usize::from(draw.below(4) > 0)).collect();
    let inputs = 8;
    let x: Vec<f64> = (0..rows * inputs).map(|_| bench.round(draw.float())).collect();
    let weights: Vec<f64> = (0..inputs * width).map(|_| bench.round(draw.float())).collect();
    let numbers = |bench: &Bench, draw: &mut Draw, count: usize| -> Vec<f64> {
        (0..count).map(|_| bench.round(draw.float())).collect()
    };
    let [keys, values] = [0; 2].map(|_| CachedRows::random(bench, draw, rows * kv_heads * capacity, dim));
    let (cos, sin) = (numbers(bench, draw, capacity * rotary), numbers(bench, draw, capacity * rotary));
    let norms: Vec<f64> = (0..2 * dim).map(|_| f64::from((1.0 + 0.3 * draw.float()) as f32)).collect();
    let matrix = WeightsAt::Plain(bench.short(&weights));
    let qkv = bench.bytes(&vec![0xff; rows * width * 2]);
    let out = bench.bytes(&vec![0xff; rows * heads * dim * 2]);
    let size = MatrixSize { inputs, outputs: width };
    let first = PhaseDescriptor {
        x: bench.short(&x),
        out: qkv,
        first_counter: 2,
        ..matmul(matrix, size, false, StripWidth { plain_tiles: 2, blocks: 1, is_wide: false })
    };
    let word = |n: usize| u32::try_from(n).unwrap();
    let attention = PhaseDescriptor {
        kind: ATTENTION,
        x: qkv,
        norm_weight: if normed { bench.floats(&norms[..dim]) } else { 0 },
        key_norm_weight: if normed { bench.floats(&norms[dim..]) } else { 0 },
        out,
        keys: keys.rows,
        values: values.rows,
        key_scales: keys.scales,
        value_scales: values.scales,
        cos: bench.short(&cos),
        sin: bench.short(&sin),
        window: word(window),
        rotary_dim: word(rotary),
        first_counter: 2 + first.strips,
        ..PhaseDescriptor::default()
    };
    let scale = 1.0 / (dim as f64).sqrt();
    let params = DecodeParams {
        cached: bench.words(&cached),
        occupied: bench.words(&occupied),
        rows: word(rows),
        capacity: word(capacity),
        rope_positions: word(capacity),
        heads: word(heads),
        kv_heads: word(kv_heads),
        head_dim: word(dim),
        kv_splits: word((bench.blocks() / (rows * kv_heads)).max(draw.of(&[1, 2, 3]))),
        norm_eps: eps as f32,
        attention_scale: scale as f32,
        attention_softcap: cap as f32,
        ..DecodeParams::default()
    };
    bench.run(&[first, attention], first.strips as usize + rows * kv_heads, params);
    let what = format!(
        "case {case}: {heads} heads on {kv_heads}, {dim} wide, {rows} rows at {cached:?} of {capacity}, window {window}"
    );
    let (qkv, have) = (bench.read_short(qkv, rows * width), bench.read_short(out, rows * heads * dim));
    let (new_keys, new_values) = (keys.read(bench), values.read(bench));
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
            // In 8 bits half a step, one of 127.
            let [key_step, value_step] = [&key[..], value].map(|row| {
                let largest = row.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
                if bench.kv_bits == 8 { largest * (0.501 / 127.0 + unit) } else { 0.0 }
            });
            for at in 0..capacity {
                for i in 0..dim {
                    let is_new = at == position && occupied[row] == 1;
                    let (want_key, want_value) = match is_new {
                        true => (key[i], value[i]),
                        false => (keys.values[place(at) + i], values.values[place(at) + i]),
                    };
                    let (got_key, got_value) = (new_keys[place(at) + i], new_values[place(at) + i]);
                    assert!(
                        (got_key - want_key).abs() <= 4.0 * unit + if is_new { key_step } else { 0.0 },
                        "{what}: key {at} of row {row}: {got_key}, not {want_key}"
                    );
                    assert!(
                        (got_value - want_value).abs() <= if is_new { value_step } else { 0.0 },
                        "{what}: value {at} of row {row}: {got_value}, not {want_value}"
                    );
                }
            }
            if bench.kv_bits == 8 && occupied[row] == 0 {
                continue; // what was attended to is nowhere to be read
            }
            // In 8 bits the new row is attended to as it was kept.
            let stored = |new: &[f64], exact: &[f64]| {
                if bench.kv_bits == 8 { new[place(position)..][..dim].to_vec() } else { exact.to_vec() }
            };
            let (key, value) = (stored(&new_keys, &key), stored(&new_values, value));
            for head in kv * group..(kv + 1) * group {
                let query: Vec<f64> = turned(head, &norms[..dim]).iter().map(|x| x * scale).collect();
                let from = if window > 0 { (position + 1).saturating_sub(window) } else { 0 };
                let key_at = |at: usize| if at == position { &key[..] } else { &keys.values[place(at)..][..dim] };
                let value_at = |at: usize| if at == position { &value[..] } else { &values.values[place(at)..][..dim] };
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
