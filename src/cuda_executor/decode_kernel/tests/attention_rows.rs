//! Attention of rows of a table: several tokens of one slot, causal among themselves, beside other slots' rows.

use super::super::abi::ATTENTION;
use super::super::matmul::matmul;
use super::attention::CachedRows;
use super::*;
use crate::cuda_executor::driver::word;

/// Inputs of the product before attention.
const INPUTS: usize = 8;
const EPS: f64 = 1e-6;

#[test]
fn attention_of_rows_of_a_table_is_that_of_float64() {
    for (class, dtype, kv_bits) in ROWS {
        for mut bench in Bench::of_class("attention_of_rows_of_a_table_is_that_of_float64", dtype, kv_bits, class) {
            let mut draw = Draw(0xbb67_ae85_84ca_a73b);
            for case in 0..if bench.is_fast() { 40 } else { 10 } {
                bench.clear();
                let case = RowsCase::draw(&mut bench, &mut draw, case);
                let done = case.run(&mut bench, &mut draw);
                case.check_cache(&bench, &done);
                (0..case.rows.len()).for_each(|row| case.check_row(&bench, &done, row));
            }
        }
    }
}

/// Sizes and contents.
struct RowsCase {
    what: String,
    rows: Vec<TableRow>,
    slots: usize,
    kv_heads: usize,
    group: usize,
    dim: usize,
    capacity: usize,
    rotary: usize,
    window: usize,
    softcap: f64,
    is_normed: bool,
    norms: Vec<f64>,
    cos: Vec<f64>,
    sin: Vec<f64>,
    keys: CachedRows,
    values: CachedRows,
}

/// What the kernel made of it: the queries, keys and values of the product, the outputs, the cache.
struct Attended {
    qkv: Vec<f64>,
    out: Vec<f64>,
    keys: Vec<f64>,
    values: Vec<f64>,
}

/// Up to `most` rows: of each slot none, one, or several at consecutive positions.
fn draw_rows(draw: &mut Draw, most: usize, slots: usize, capacity: usize) -> Vec<TableRow> {
    let all = 1 + draw.below(most);
    let mut rows: Vec<TableRow> = Vec::new();
    for slot in 0..slots {
        let some = if draw.below(2) == 0 { 1 } else { draw.below(most.min(capacity) + 1) };
        let count = some.min(all - rows.len());
        let first = draw.below(capacity - count + 1);
        rows.extend((0..count).map(|at| TableRow { slot, position: first + at, is_wanted: true }));
    }
    if rows.is_empty() { vec![TableRow { slot: 0, position: capacity - 1, is_wanted: true }] } else { rows }
}

impl RowsCase {
    fn draw(bench: &mut Bench, draw: &mut Draw, case: usize) -> Self {
        let (kv_heads, group) = (1 + draw.below(3), 1 + draw.below(16));
        let dim = draw.of(&[16, 64, 80, 96, 128, 192, 256]);
        let capacity = if bench.is_fast() { draw.of(&[64, 512, 1344]) } else { draw.of(&[64, 192]) };
        let slots = 1 + draw.below(8);
        let rows = draw_rows(draw, bench.class.most(), slots, capacity);
        let rotary = draw.of(&[dim, dim / 2]);
        let (window, softcap) = (draw.of(&[0, 0, 1, 37, 130]), draw.of(&[0.0, 0.0, 3.0]));
        let numbers = |bench: &Bench, draw: &mut Draw| -> Vec<f64> {
            (0..capacity * rotary).map(|_| bench.round(draw.float())).collect()
        };
        let [cos, sin] = [0; 2].map(|_| numbers(bench, draw));
        let [keys, values] = [0; 2].map(|_| CachedRows::random(bench, draw, slots * kv_heads * capacity, dim));
        let at: Vec<_> = rows.iter().map(|row| (row.slot, row.position)).collect();
        let what = format!("case {case}: {group} heads on each of {kv_heads}, {dim} wide, {at:?} of {capacity}");
        let norms = (0..2 * dim).map(|_| f64::from((1.0 + 0.3 * draw.float()) as f32)).collect();
        let is_normed = draw.below(2) == 1;
        Self {
            what,
            rows,
            slots,
            kv_heads,
            group,
            dim,
            capacity,
            rotary,
            window,
            softcap,
            is_normed,
            norms,
            cos,
            sin,
            keys,
            values,
        }
    }

    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// Elements of a row of queries, keys and values.
    fn width(&self) -> usize {
        (self.heads() + 2 * self.kv_heads) * self.dim
    }

    /// The product that makes queries, keys and values at random.
    fn product(&self, bench: &mut Bench, draw: &mut Draw, out: u64) -> PhaseDescriptor {
        let mut numbers = |count: usize| -> Vec<f64> { (0..count).map(|_| bench.round(draw.float())).collect() };
        let (x, weights) = (numbers(self.rows.len() * INPUTS), numbers(INPUTS * self.width()));
        let width = StripWidth { plain_tiles: 2, blocks: 1, is_wide: bench.class.finishers() > 0 };
        let size = MatrixSize { inputs: INPUTS, outputs: self.width() };
        let shape = matmul(WeightsAt::Plain(bench.short(&weights)), size, false, width);
        PhaseDescriptor { x: bench.short(&x), out, first_counter: 2, ..shape }
    }

    fn run(&self, bench: &mut Bench, draw: &mut Draw) -> Attended {
        let (rows, heads, dim) = (self.rows.len(), self.heads(), self.dim);
        let qkv = bench.bytes(&vec![0xff; rows * self.width() * 2]);
        let out = bench.bytes(&vec![0xff; rows * heads * dim * 2]);
        let first = self.product(bench, draw, qkv);
        let attention = PhaseDescriptor {
            kind: ATTENTION,
            x: qkv,
            norm_weight: if self.is_normed { bench.floats(&self.norms[..dim]) } else { 0 },
            key_norm_weight: if self.is_normed { bench.floats(&self.norms[dim..]) } else { 0 },
            out,
            keys: self.keys.rows,
            values: self.values.rows,
            key_scales: self.keys.scales,
            value_scales: self.values.scales,
            cos: bench.short(&self.cos),
            sin: bench.short(&self.sin),
            window: word(self.window),
            rotary_dim: word(self.rotary),
            first_counter: 2 + first.strips,
            ..PhaseDescriptor::default()
        };
        let params = DecodeParams {
            table: bench.table(&self.rows, (self.group, self.kv_heads), draw.of(&[1, 2, 3])),
            capacity: word(self.capacity),
            rope_positions: word(self.capacity),
            heads: word(heads),
            kv_heads: word(self.kv_heads),
            head_dim: word(dim),
            norm_eps: EPS as f32,
            attention_scale: self.scale() as f32,
            attention_softcap: self.softcap as f32,
            ..DecodeParams::default()
        };
        bench.run(&[first, attention], first.strips as usize + 1 + rows * self.kv_heads, params);
        let (qkv, out) = (bench.read_short(qkv, rows * self.width()), bench.read_short(out, rows * heads * dim));
        Attended { qkv, out, keys: self.keys.read(bench), values: self.values.read(bench) }
    }

    fn scale(&self) -> f64 {
        1.0 / (self.dim as f64).sqrt()
    }

    /// A head of a row, normed and rotated.
    fn turned(&self, bench: &Bench, x: &[f64], norm: &[f64], position: usize) -> Vec<f64> {
        let factor = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / self.dim as f64 + EPS).sqrt();
        let normed = |(x, norm): (&f64, &f64)| if self.is_normed { bench.round(x * factor * norm) } else { *x };
        let x: Vec<f64> = x.iter().zip(norm).map(normed).collect();
        let (rotary, half) = (self.rotary, self.rotary / 2);
        let rotated = |i: usize| {
            let other = if i < half { -x[i + half] } else { x[i - half] };
            x[i] * self.cos[position * rotary + i] + other * self.sin[position * rotary + i]
        };
        (0..self.dim).map(|i| if i < rotary { rotated(i) } else { x[i] }).collect()
    }

    /// Index in the cache of a key head's row at a position.
    fn place(&self, slot: usize, kv: usize, position: usize) -> usize {
        ((slot * self.kv_heads + kv) * self.capacity + position) * self.dim
    }

    /// Each row's keys and values were appended, and nothing else was written.
    fn check_cache(&self, bench: &Bench, done: &Attended) {
        let (dim, unit) = (self.dim, bench.unit());
        let mut wanted = [(&self.keys.values, &done.keys, 4.0 * unit), (&self.values.values, &done.values, 0.0)]
            .map(|(before, have, slack)| (before.clone(), vec![0.0; before.len()], have, slack));
        for (index, row) in self.rows.iter().enumerate() {
            let of = |head: usize| &done.qkv[index * self.width() + head * dim..][..dim];
            for kv in 0..self.kv_heads {
                let key = self.turned(bench, of(self.heads() + kv), &self.norms[dim..], row.position);
                let new = [key, of(self.heads() + self.kv_heads + kv).to_vec()];
                for ((want, bound, _, slack), new) in wanted.iter_mut().zip(new) {
                    let at = self.place(row.slot, kv, row.position);
                    // In 8 bits half a step, one of 127.
                    let largest = new.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
                    let step = if bench.kv_bits == 8 { largest * (0.501 / 127.0 + unit) } else { 0.0 };
                    want[at..][..dim].copy_from_slice(&new);
                    bound[at..][..dim].fill(*slack + step);
                }
            }
        }
        for (want, bound, have, _) in &wanted {
            for (at, (have, want)) in have.iter().zip(want).enumerate() {
                assert!((have - want).abs() <= bound[at], "{}: cached element {at} is {have}, not {want}", self.what);
            }
        }
        assert_eq!(self.keys.values.len(), self.slots * self.kv_heads * self.capacity * dim);
    }

    /// A row's outputs, from the cache as it is now.
    fn check_row(&self, bench: &Bench, done: &Attended, index: usize) {
        let (dim, TableRow { slot, position, .. }) = (self.dim, self.rows[index]);
        let from = if self.window > 0 { (position + 1).saturating_sub(self.window) } else { 0 };
        for head in 0..self.heads() {
            let x = &done.qkv[index * self.width() + head * dim..][..dim];
            let query = self.turned(bench, x, &self.norms[..dim], position);
            let at = self.place(slot, head / self.group, from);
            let seen = at..at + (position + 1 - from) * dim;
            let mut slack = 0.0_f64;
            let scores: Vec<f64> = (done.keys[seen.clone()].chunks_exact(dim))
                .map(|key| {
                    let terms = query.iter().zip(key).map(|(q, k)| q * self.scale() * k);
                    slack = slack.max(terms.clone().map(f64::abs).sum::<f64>() * 3.0 * bench.unit());
                    let score: f64 = terms.sum();
                    if self.softcap > 0.0 { self.softcap * (score / self.softcap).tanh() } else { score }
                })
                .collect();
            let high = scores.iter().copied().fold(f64::MIN, f64::max);
            let shares: Vec<f64> = scores.iter().map(|score| (score - high).exp()).collect();
            let all: f64 = shares.iter().sum();
            let values = &done.values[seen];
            for i in 0..dim {
                let terms = shares.iter().enumerate().map(|(at, share)| share / all * values[at * dim + i]);
                let (want, size) = (terms.clone().sum::<f64>(), terms.map(f64::abs).sum::<f64>());
                let got = done.out[(index * self.heads() + head) * dim + i];
                let bound = size * (2.0 * slack + 4.0 * bench.unit()) + 1e-6;
                assert!(
                    (got - want).abs() <= bound,
                    "{}: head {head} of row {index} at {i} is {got}, not {want} within {bound:e}",
                    self.what
                );
            }
        }
    }
}
