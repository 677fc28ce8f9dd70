//! The step kernel against float64, on shapes drawn at random: products of every kind of weight, attention of every kind.
//! Outputs are poisoned before. Needs a GPU.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use half::{bf16, f16};

use super::super::buffers::{Buffer, Pinned};
use super::super::tiles::{Layout, tile_of};
use super::super::weights::Matrix;
use super::kernel::{ATTEND, Kernel, Launch, List, Phase, ROWS};
use super::{WIDEST, product};
use crate::backend::tensorrt::device::Device;
use crate::checkpoint::Second;
use crate::tensor::DType;

/// Numbers that look random (Vigna 2015, xorshift64*).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next()).unwrap() % limit
    }
    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
    fn float(&mut self) -> f64 {
        self.next() as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// A GPU, a kernel for any weights, and memory that lives as long as this.
struct Bench {
    device: Device,
    kernel: Kernel,
    dtype: DType,
    held: Vec<Buffer>,
}

impl Bench {
    fn open(test: &str, dtype: DType) -> Option<Self> {
        let device = Device::open().inspect_err(|error| eprintln!("SKIPPED {test}: {error}")).ok()?;
        super::super::buffers::single_stream(&device.stream);
        let kernel = Kernel::for_device(&device, dtype, 5120).unwrap().expect("no kernel");
        Some(Self { device, kernel, dtype, held: Vec::new() })
    }

    fn round(&self, value: f64) -> f64 {
        match self.dtype {
            DType::BFloat16 => bf16::from_f64(value).to_f64(),
            _ => f16::from_f64(value).to_f64(),
        }
    }

    /// Largest relative error of a rounding.
    fn unit(&self) -> f64 {
        if self.dtype == DType::BFloat16 { 1.0 / 256.0 } else { 1.0 / 2048.0 }
    }

    fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let mut buffer = Buffer::new(&self.device.stream, bytes.len(), "a test").unwrap();
        buffer.upload(bytes).unwrap();
        self.held.push(buffer);
        self.held[self.held.len() - 1].address()
    }

    fn short(&mut self, values: &[f64]) -> u64 {
        let bits = |value: &f64| match self.dtype {
            DType::BFloat16 => bf16::from_f64(*value).to_bits(),
            _ => f16::from_f64(*value).to_bits(),
        };
        let bytes: Vec<u8> = values.iter().flat_map(|value| bits(value).to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    fn floats(&mut self, values: &[f64]) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    fn words(&mut self, values: &[usize]) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|value| u32::try_from(*value).unwrap().to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let buffer = self.held.iter().find(|buffer| buffer.address() == address).unwrap();
        let mut pinned = Pinned::new(&self.device.stream, bytes).unwrap();
        buffer.download(&mut pinned, bytes).unwrap();
        pinned.bytes().unwrap()[..bytes].to_vec()
    }

    fn read_short(&self, address: u64, count: usize) -> Vec<f64> {
        let bytes = self.read(address, 2 * count);
        let two = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match self.dtype {
            DType::BFloat16 => two.map(|b| bf16::from_le_bytes(b).to_f64()).collect(),
            _ => two.map(|b| f16::from_le_bytes(b).to_f64()).collect(),
        }
    }

    fn run(&mut self, phases: &[Phase], counters: usize, launch: Launch) {
        let list = List::new(&self.device.stream, phases, counters).unwrap();
        let (partial, attention) =
            (self.bytes(&vec![0xff; 2 * self.kernel.blocks * ROWS * WIDEST * 4]), self.bytes(&vec![0xff; 1 << 22]));
        self.kernel.launch(&self.device.stream, &list, Launch { partial, attention, ..launch }).unwrap();
        self.device.stream.synchronize().unwrap();
    }
}

#[test]
fn products_are_those_of_float64() {
    for dtype in [DType::Float16, DType::BFloat16] {
        let Some(mut bench) = Bench::open("products_are_those_of_float64", dtype) else { return };
        let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
        for case in 0..60 {
            bench.held.clear();
            one_product(&mut bench, &mut draw, case);
        }
    }
}

fn one_product(bench: &mut Bench, draw: &mut Draw, case: usize) {
    let bits = if bench.dtype == DType::Float16 { draw.of(&[16, 8, 4]) } else { 16 };
    let group = draw.of(&[32, 64, 128, 0]);
    let step = if bits == 16 || group == 0 { 8 } else { group };
    let inputs = step * (1 + draw.below(2400 / step));
    let (outputs, rows) = (8 * (1 + draw.below(120)), 1 + draw.below(ROWS));
    let [gated, normed, wide, bias, residual] = [0; 5].map(|_| draw.below(2) == 1);
    let x: Vec<f64> = (0..rows * inputs * if gated { 2 } else { 1 }).map(|_| bench.round(2.0 * draw.float())).collect();
    let stride = x.len() / rows;
    let mut weights = vec![0.0; inputs * outputs];
    let mut magnitudes = vec![0.0; inputs * outputs];
    let mut order: Option<Vec<usize>> = None;
    let matrix = if bits == 16 {
        weights.iter_mut().for_each(|w| *w = bench.round(0.1 * draw.float()));
        magnitudes.iter_mut().zip(&weights).for_each(|(m, w)| *m = w.abs());
        let address = bench.short(&weights);
        let buffer = bench.held.pop().unwrap();
        assert_eq!(buffer.address(), address);
        Matrix::Plain(buffer)
    } else {
        let size = if group == 0 { inputs } else { group };
        let second = draw.of(&[None, Some(Second::Zero), Some(Second::Minimum)]);
        let groups = inputs / size;
        if group > 0 && draw.below(2) == 1 {
            let mut shuffled: Vec<usize> = (0..inputs).collect();
            (1..inputs).for_each(|at| shuffled.swap(at, draw.below(at + 1)));
            order = Some(shuffled);
        }
        let quants: Vec<u8> = (0..inputs * outputs).map(|_| u8::try_from(draw.below(1 << bits)).unwrap()).collect();
        let middle = f64::from(1 << (bits - 1));
        let terms: Vec<(f64, f64)> = (0..groups * outputs)
            .map(|_| {
                let scale = f16::from_f64(0.1 / middle * (0.2 + draw.float().abs())).to_f64();
                let last = match second {
                    None => middle,
                    Some(Second::Zero) => draw.below((1 << bits) + 1) as f64,
                    Some(Second::Minimum) => f16::from_f64(0.1 * draw.float()).to_f64(),
                };
                (scale, last)
            })
            .collect();
        for place in 0..inputs {
            let input = order.as_ref().map_or(place, |order| order[place]);
            for output in 0..outputs {
                let (scale, last) = terms[place / size * outputs + output];
                let q = f64::from(quants[output * inputs + input]);
                let minimum = second == Some(Second::Minimum);
                weights[input * outputs + output] = if minimum { scale * q + last } else { scale * (q - last) };
                // The kernel adds q - middle and the rest apart.
                magnitudes[input * outputs + output] = scale * 3.0 * middle + if minimum { last.abs() } else { 0.0 };
            }
        }
        let deep = if bits == 4 { 128 } else { 64 };
        let shared = if group == 0 { deep } else { size.min(deep) };
        let layout = Layout { bits, group: shared, second: second.or(Some(Second::Zero)), inputs, outputs };
        let layout =
            if size.min(deep) == size || size.is_multiple_of(deep) { layout } else { Layout { group: deep, ..layout } };
        let read = |first: usize, out: &mut [u8]| out.copy_from_slice(&quants[first * inputs..][..out.len()]);
        let short = |output: usize, group: usize| {
            let (scale, last) = terms[group * outputs + output];
            (scale as f32, last as f32)
        };
        let tiled = tile_of(layout, (order.clone(), size), &read, &short).unwrap();
        assert_eq!(tiled.layout.second, second, "{case}");
        let mut tiles = Buffer::new(&bench.device.stream, tiled.bytes.len(), "a test").unwrap();
        tiles.upload(&tiled.bytes).unwrap();
        let order = tiled.order.map(|order| {
            bench.words(&order);
            bench.held.pop().unwrap()
        });
        Matrix::Packed { tiles, order, layout: tiled.layout }
    };
    let norm: Vec<f64> = (0..inputs).map(|_| f64::from((1.0 + 0.3 * draw.float()) as f32)).collect();
    let biases: Vec<f64> = (0..outputs).map(|_| bench.round(draw.float())).collect();
    let residuals: Vec<f64> = (0..rows * outputs).map(|_| bench.round(draw.float())).collect();
    let eps = 1e-5_f64;
    let out = bench.bytes(&vec![0xff; rows * outputs * 4]);
    let shape = product(&matrix, inputs, outputs, draw.of(&[2, 4, 8]));
    let strips = shape.strips as usize;
    let out_squares = bench.bytes(&vec![0xff; ROWS * strips * 4]);
    let phase = Phase {
        x: bench.short(&x),
        stride: u32::try_from(stride).unwrap(),
        norm: if normed { bench.floats(&norm) } else { 0 },
        bias: if bias && !wide { bench.short(&biases) } else { 0 },
        residual: if residual && !wide { bench.short(&residuals) } else { 0 },
        gated: u32::from(gated),
        wide: u32::from(wide),
        counters: 1,
        out,
        out_squares,
        ..shape
    };
    // Squares are summed over inputs, which gated ones have not.
    let phase = if gated { Phase { norm: 0, ..phase } } else { phase };
    let launch = Launch { rows: u32::try_from(rows).unwrap(), eps: eps as f32, ..Launch::default() };
    bench.run(&[phase], strips, launch);
    let have: Vec<f64> = match wide {
        true => bench
            .read(out, rows * outputs * 4)
            .chunks_exact(4)
            .map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])))
            .collect(),
        false => bench.read_short(out, rows * outputs),
    };
    let what = format!(
        "case {case}: {inputs}x{outputs}, {rows} rows, {bits} bits, group {group}, gated {gated}, norm {normed}, order {}",
        order.is_some()
    );
    let unit = bench.unit();
    let exact = phase.norm == 0 && !gated;
    for row in 0..rows {
        let from = &x[row * stride..][..stride];
        let mean = from[..inputs].iter().map(|x| x * x).sum::<f64>() / inputs as f64;
        let values: Vec<f64> = (0..inputs)
            .map(|k| {
                let mut value = from[k];
                if gated {
                    value = value / (1.0 + (-value).exp()) * from[inputs + k];
                }
                if phase.norm != 0 {
                    value *= norm[k] / (mean + eps).sqrt();
                }
                bench.round(value)
            })
            .collect();
        let mut square = 0.0;
        for n in 0..outputs {
            let (mut sum, mut size) = (0.0, 0.0);
            for (k, value) in values.iter().enumerate() {
                sum += value * weights[k * outputs + n];
                size += value.abs() * magnitudes[k * outputs + n];
            }
            // Sums in float32 are off by some units of 2^-24, roundings of inputs by one unit where they may differ.
            let mut bound = size * (32.0 / f64::from(1 << 24) + if exact { 0.0 } else { 2.0 * unit }) + 1e-7;
            if !wide {
                for extra in
                    [(phase.bias != 0).then(|| biases[n]), (phase.residual != 0).then(|| residuals[row * outputs + n])]
                {
                    if let Some(extra) = extra {
                        bound += sum.abs() * unit;
                        sum += extra;
                    }
                }
                bound += (sum.abs() + bound) * unit;
            }
            let got = have[row * outputs + n];
            assert!((got - sum).abs() <= bound, "{what}: [{row}, {n}] is {got}, not {sum} within {bound:e}");
            square += got * got;
        }
        if !wide {
            let kept = bench.read(out_squares, ROWS * strips * 4);
            let kept = kept.chunks_exact(4).skip(row * strips).take(strips);
            let kept: f64 = kept.map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).sum();
            assert!((kept - square).abs() <= 1e-5 * square, "{what}: squares of row {row} are {kept}, not {square}");
        }
    }
}

#[test]
fn attention_is_that_of_float64() {
    for dtype in [DType::Float16, DType::BFloat16] {
        let Some(mut bench) = Bench::open("attention_is_that_of_float64", dtype) else { return };
        let mut draw = Draw(0x2545_f491_4f6c_dd1d);
        for case in 0..40 {
            bench.held.clear();
            one_attention(&mut bench, &mut draw, case);
        }
    }
}

fn one_attention(bench: &mut Bench, draw: &mut Draw, case: usize) {
    let (kv_heads, group, dim) = (1 + draw.below(4), 1 + draw.below(16), draw.of(&[8, 16, 64, 80, 96, 128, 192, 256]));
    let (rows, capacity) = (1 + draw.below(ROWS), draw.of(&[64, 512, 1344]));
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
    bench.short(&weights);
    let matrix = Matrix::Plain(bench.held.pop().unwrap());
    let qkv = bench.bytes(&vec![0xff; rows * width * 2]);
    let out = bench.bytes(&vec![0xff; rows * heads * dim * 2]);
    let (kept_keys, kept_values) = (bench.short(&keys), bench.short(&values));
    let first = Phase { x: bench.short(&x), out: qkv, counters: 2, ..product(&matrix, inputs, width, 2) };
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
        splits: word((bench.kernel.blocks / (rows * kv_heads)).max(1)),
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
