//! Products of every kind of weight, gated, normed, with bias and residual.

use super::super::super::packed_tiles::{PackedLayout, QuantSource, lay_out_whole};
use super::super::abi::{NORM_ADD, NORM_ADD_STRIP_N};
use super::super::matmul::matmul;
use super::*;
use crate::checkpoint::GroupOffset;

#[test]
fn products_are_those_of_float64() {
    for dtype in [DType::Float16, DType::BFloat16] {
        for mut bench in Bench::all("products_are_those_of_float64", dtype, 16) {
            let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
            for case in 0..if bench.is_fast() { 60 } else { 24 } {
                bench.clear();
                one_product(&mut bench, &mut draw, case);
            }
        }
    }
}

/// Eight narrow rows of a table, and up to 32 and 64 in wide strips.
#[test]
fn products_of_rows_of_a_table_are_those_of_float64() {
    for (class, dtype, kv_bits) in ROWS {
        for mut bench in Bench::of_class("products_of_rows_of_a_table_are_those_of_float64", dtype, kv_bits, class) {
            let mut draw = Draw(0x6a09_e667_f3bc_c909);
            for case in 0..if bench.is_fast() { 60 } else { 12 } {
                bench.clear();
                one_product(&mut bench, &mut draw, case);
            }
        }
    }
}

fn one_product(bench: &mut Bench, draw: &mut Draw, case: usize) {
    let bits = if bench.dtype == DType::Float16 { draw.of(&[16, 8, 4]) } else { 16 };
    let group = draw.of(&[32, 64, 128, 0]);
    let step = if bits == 16 || group == 0 { 8 } else { group };
    // Some have so many inputs that they come in chunks.
    let most = if bench.is_fast() { 2400 } else { 420 };
    let (most, long) = if case.is_multiple_of(3) { (most / 3, 4 * most) } else { (most, most) };
    let inputs = step * (1 + draw.below(long / step));
    let (columns, rows) = (8 * (1 + draw.below(most / 20)), 1 + draw.below(bench.class.most()));
    let [gated, normed, wide, bias, residual] = [0; 5].map(|_| draw.below(2) == 1);
    // Half of the weights' outputs are gates, in strips of their own.
    let (wide, residual) = (wide && !gated, residual && !gated);
    let (made, outputs) = if gated { (2 * columns, 4 * columns) } else { (columns, columns) };
    let x: Vec<f64> = (0..rows * inputs).map(|_| bench.round(2.0 * draw.float())).collect();
    let mut weights = vec![0.0; inputs * outputs];
    let mut magnitudes = vec![0.0; inputs * outputs];
    let mut order: Option<Vec<usize>> = None;
    let matrix = if bits == 16 {
        weights.iter_mut().for_each(|w| *w = bench.round(0.1 * draw.float()));
        magnitudes.iter_mut().zip(&weights).for_each(|(m, w)| *m = w.abs());
        WeightsAt::Plain(bench.short(&weights))
    } else {
        let size = if group == 0 { inputs } else { group };
        let offset = draw.of(&[GroupOffset::ZeroPoint, GroupOffset::Minimum]);
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
                let last = match offset {
                    GroupOffset::ZeroPoint => draw.below((1 << bits) + 1) as f64,
                    GroupOffset::Minimum => f16::from_f64(0.1 * draw.float()).to_f64(),
                };
                (scale, last)
            })
            .collect();
        for place in 0..inputs {
            let input = order.as_ref().map_or(place, |order| order[place]);
            for output in 0..outputs {
                let (scale, last) = terms[place / size * outputs + output];
                let q = f64::from(quants[output * inputs + input]);
                let minimum = offset == GroupOffset::Minimum;
                weights[input * outputs + output] = if minimum { scale * q + last } else { scale * (q - last) };
                // The kernel adds q + 2^8 or 2^10 and the rest apart.
                let base = if bits == 4 { 256.0 } else { 1024.0 };
                magnitudes[input * outputs + output] = scale * 2.0 * base + if minimum { last.abs() } else { 0.0 };
            }
        }
        let tile_k = if bits == 4 { 128 } else { 64 };
        let shared = if group == 0 { tile_k } else { size.min(tile_k) };
        let layout = PackedLayout { bits, group: shared, offset, inputs, outputs };
        let read = |first: usize, out: &mut [u8]| out.copy_from_slice(&quants[first * inputs..][..out.len()]);
        let short = |output: usize, group: usize| {
            let (scale, last) = terms[group * outputs + output];
            (scale as f32, last as f32)
        };
        let source = QuantSource { order: order.as_deref(), group: size, read: &read, terms: &short };
        let tiles = lay_out_whole(layout, source).unwrap();
        let input_order = order.as_ref().map_or(0, |order| bench.words(order));
        WeightsAt::Packed(PackedMatrix { tiles: bench.bytes(&tiles), input_order, layout })
    };
    let norm: Vec<f64> = (0..inputs).map(|_| f64::from((1.0 + 0.3 * draw.float()) as f32)).collect();
    let biases: Vec<f64> = (0..outputs).map(|_| bench.round(draw.float())).collect();
    let residuals: Vec<f64> = (0..rows * made).map(|_| bench.round(draw.float())).collect();
    let eps = 1e-5_f64;
    let out = bench.bytes(&vec![0xff; rows * made * 4]);
    // Few blocks make wide strips of packed weights.
    let is_wide = bench.class.finishers() > 0;
    let width = StripWidth { plain_tiles: draw.of(&[2, 4, 8]), blocks: draw.of(&[0, 1000]), is_wide };
    let shape = matmul(matrix, MatrixSize { inputs, outputs }, gated, width);
    let strips = shape.strips as usize;
    let out_squares = bench.bytes(&vec![0xff; MOST_ROWS * strips * 4]);
    // The sums of squares come from the phase before, in some parts, or nobody has made them.
    let parts = if draw.below(2) == 1 { 1 + draw.below(40) } else { 0 };
    let share = |row: usize| x[row * inputs..][..inputs].iter().map(|x| x * x).sum::<f64>() / parts.max(1) as f64;
    let squares: Vec<f64> =
        (0..MOST_ROWS * parts).map(|at| if at / parts < rows { share(at / parts) } else { f64::NAN }).collect();
    let phase = PhaseDescriptor {
        x_squares: if parts > 0 { bench.floats(&squares) } else { 0 },
        x_square_parts: u32::try_from(parts).unwrap(),
        x: bench.short(&x),
        norm_weight: if normed { bench.floats(&norm) } else { 0 },
        bias: if bias && !wide { bench.short(&biases) } else { 0 },
        residual: if residual && !wide { bench.short(&residuals) } else { 0 },
        out_is_float32: u32::from(wide),
        // As the LM head of Gemma 2, of whatever kind its weights are.
        logit_softcap: if wide && case.is_multiple_of(2) { 3.0 } else { 0.0 },
        first_counter: 1,
        out,
        out_squares,
        ..shape
    };
    // Blocks take shares by number, or by a table that knows no, some or all multiprocessors of the emulator's blocks, of
    // which two are on one.
    let sm_count = case % 4;
    // Of a table's rows, logits (float32) are made for those that want them.
    let shared = bench.class != RowClass::Apart;
    let wants = |row: usize| !(shared && wide) || row % 3 != 1;
    let wanted: Vec<usize> = (0..rows).filter(|row| wants(*row)).collect();
    let table: Vec<TableRow> = (0..rows).map(|slot| TableRow { slot, position: 0, is_wanted: wants(slot) }).collect();
    let params = DecodeParams {
        rows: u32::try_from(rows).unwrap(),
        table: if shared { bench.table(&table, (1, 1), 1) } else { 0 },
        norm_eps: eps as f32,
        sm_count: u32::try_from(sm_count).unwrap(),
        block_of_sm: if sm_count > 0 { bench.words(&[2, 0, 1][..sm_count]) } else { 0 },
        ..DecodeParams::default()
    };
    bench.run(&[phase], strips, params);
    let have = match wide {
        true => bench.read_floats(out, wanted.len() * made),
        false => bench.read_short(out, rows * made),
    };
    let what = format!(
        "case {case}: {inputs}x{outputs}, {rows} rows, {bits} bits, group {group}, gated {gated}, norm {normed}, order {}",
        order.is_some()
    );
    let unit = bench.unit();
    let exact = phase.norm_weight == 0;
    for (row, source) in wanted.into_iter().enumerate() {
        let from = &x[source * inputs..][..inputs];
        let mean = from[..inputs].iter().map(|x| x * x).sum::<f64>() / inputs as f64;
        let values: Vec<f64> = (0..inputs)
            .map(|k| {
                let mut value = from[k];
                if phase.norm_weight != 0 {
                    value *= norm[k] / (mean + eps).sqrt();
                }
                bench.round(value)
            })
            .collect();
        let mut square = 0.0;
        // A sum with its bias, and by how much it may be off: float32 by some units of 2^-24, roundings of inputs by one
        // unit where they may differ.
        let column = |n: usize| {
            let (mut sum, mut size) = (0.0, 0.0);
            for (k, value) in values.iter().enumerate() {
                sum += value * weights[k * outputs + n];
                size += value.abs() * magnitudes[k * outputs + n];
            }
            let mut bound = size * 32.0 / f64::from(1 << 24) + 1e-7;
            // Of wide strips packed weights are rounded to float16.
            let roundings = if exact { 0.0 } else { 2.0 } + if is_wide && bits < 16 { 1.0 } else { 0.0 };
            if roundings > 0.0 {
                let terms = values.iter().enumerate().map(|(k, value)| (value * weights[k * outputs + n]).abs());
                bound += roundings * unit * terms.sum::<f64>();
            }
            if phase.bias != 0 {
                bound += sum.abs() * unit;
                sum += biases[n];
            }
            (sum, bound)
        };
        for n in 0..made {
            let (mut sum, mut bound) = column(if gated { made + n } else { n });
            if gated {
                let (gate, off) = column(n);
                let (off, through) = (off + gate.abs() * unit, bound + sum.abs() * unit);
                // SiLU's slope is 1.1 at most.
                let active = gate / (1.0 + (-gate).exp());
                bound = (active.abs() + 1.1 * off) * through + 1.1 * off * sum.abs() + 1e-6;
                sum *= active;
            }
            if phase.logit_softcap > 0.0 {
                let cap = f64::from(phase.logit_softcap);
                sum = cap * (sum / cap).tanh();
                bound += 1e-6 * cap;
            }
            if !wide {
                if phase.residual != 0 {
                    bound += sum.abs() * unit;
                    sum += residuals[row * made + n];
                }
                bound += (sum.abs() + bound) * unit;
            }
            let got = have[row * made + n];
            assert!((got - sum).abs() <= bound, "{what}: [{row}, {n}] is {got}, not {sum} within {bound:e}");
            square += got * got;
        }
        if !wide {
            let kept = bench.read_floats(out_squares, rows * strips);
            let kept: f64 = kept.iter().skip(row * strips).take(strips).sum();
            assert!((kept - square).abs() <= 1e-5 * square, "{what}: squares of row {row} are {kept}, not {square}");
        }
    }
}

#[test]
fn sums_after_a_norm_are_those_of_float64() {
    let apart = [DType::Float16, DType::BFloat16].map(|dtype| (RowClass::Apart, dtype, 16));
    for (class, dtype, kv_bits) in apart.into_iter().chain(ROWS) {
        for mut bench in Bench::of_class("sums_after_a_norm_are_those_of_float64", dtype, kv_bits, class) {
            let mut draw = Draw(0x1234_5678_9abc_def1);
            for _ in 0..8 {
                bench.clear();
                one_sum(&mut bench, &mut draw);
            }
        }
    }
}

/// residual + norm(x · weights), whose squares the product made.
fn one_sum(bench: &mut Bench, draw: &mut Draw) {
    let (inputs, outputs, rows) = (8, 8 * (1 + draw.below(60)), 1 + draw.below(bench.class.most()));
    let numbers = |bench: &Bench, draw: &mut Draw, count: usize| -> Vec<f64> {
        (0..count).map(|_| bench.round(draw.float())).collect()
    };
    let (x, weights) = (numbers(bench, draw, rows * inputs), numbers(bench, draw, inputs * outputs));
    let residual = numbers(bench, draw, rows * outputs);
    let norm: Vec<f64> = (0..outputs).map(|_| f64::from((1.0 + 0.3 * draw.float()) as f32)).collect();
    let apart = bench.bytes(&vec![0xff; rows * outputs * 2]);
    let (out, squares, out_squares) = (
        bench.bytes(&vec![0xff; rows * outputs * 2]),
        bench.bytes(&vec![0xff; MOST_ROWS * 64 * 4]),
        bench.bytes(&vec![0xff; MOST_ROWS * 64 * 4]),
    );
    let weights = bench.short(&weights);
    let is_wide = bench.class.finishers() > 0;
    let width = StripWidth { plain_tiles: draw.of(&[2, 4]), blocks: 1, is_wide };
    let first = PhaseDescriptor {
        x: bench.short(&x),
        out: apart,
        out_squares: squares,
        first_counter: 2,
        ..matmul(WeightsAt::Plain(weights), MatrixSize { inputs, outputs }, false, width)
    };
    let strips = outputs.div_ceil(NORM_ADD_STRIP_N);
    let add = PhaseDescriptor {
        kind: NORM_ADD,
        x: apart,
        x_squares: squares,
        x_square_parts: first.strips,
        norm_weight: bench.floats(&norm),
        residual: bench.short(&residual),
        out,
        out_squares,
        outputs: first.outputs,
        strips: u32::try_from(strips).unwrap(),
        ..PhaseDescriptor::default()
    };
    let table: Vec<TableRow> = (0..rows).map(|slot| TableRow { slot, position: 0, is_wanted: true }).collect();
    let table = if bench.class == RowClass::Apart { 0 } else { bench.table(&table, (1, 1), 1) };
    let params = DecodeParams { rows: u32::try_from(rows).unwrap(), norm_eps: 1e-5, table, ..DecodeParams::default() };
    bench.run(&[first, add], first.strips as usize, params);
    let (apart, have) = (bench.read_short(apart, rows * outputs), bench.read_short(out, rows * outputs));
    let kept = bench.read_floats(out_squares, rows * strips);
    for row in 0..rows {
        let x = &apart[row * outputs..][..outputs];
        let factor = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / outputs as f64 + 1e-5).sqrt();
        let mut square = 0.0;
        for n in 0..outputs {
            let at = row * outputs + n;
            let want = bench.round(x[n] * factor * norm[n]) + residual[at];
            let bound = bench.unit() * (2.0 * (x[n] * factor * norm[n]).abs() + want.abs()) + 1e-6;
            assert!((have[at] - want).abs() <= bound, "{outputs} outputs: [{row}, {n}] is {}, not {want}", have[at]);
            square += have[at] * have[at];
        }
        let kept: f64 = kept[row * strips..][..strips].iter().sum();
        assert!((kept - square).abs() <= 1e-5 * square, "squares of row {row} are {kept}, not {square}");
    }
}
