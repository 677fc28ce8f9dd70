//! Activation-aware scales (Lin et al. 2023, "AWQ"): what large inputs are multiplied with is rounded with more care. Columns
//! of a matrix are multiplied before they are rounded, and what makes its inputs is divided by the same: the norm before it,
//! the rows of values before the attention's output, the rows of what gates let through.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rayon::prelude::*;

use super::{OriginalModel, Scheme};
use crate::convert::{Role, Transformer, Weight};
use crate::executor::{CpuExecutor, Squares};
use crate::spec::KvCache;
use crate::text::Text;

/// Powers of the inputs' root mean squares that are tried.
const POWERS: [f32; 5] = [0.0, 0.2, 0.4, 0.6, 0.8];
/// Rows of a matrix on which they are.
const SAMPLE: usize = 256;

/// What a tensor's rows, or a vector's elements added to `offset`, are divided by.
pub(super) struct Divisor {
    pub(super) offset: f32,
    pub(super) by: Vec<f32>,
}

/// What tensors are multiplied with and divided by before they are rounded, by their names. Without a calibration nothing is.
#[derive(Default)]
pub struct Scales {
    /// What a matrix' columns are multiplied with.
    columns: BTreeMap<String, Arc<Vec<f32>>>,
    rows: BTreeMap<String, Divisor>,
}

impl Scales {
    pub(super) fn columns(&self, tensor: &str) -> Option<&[f32]> {
        self.columns.get(tensor).map(|scales| scales.as_slice())
    }

    pub(super) fn rows(&self, tensor: &str) -> Option<&Divisor> {
        self.rows.get(tensor)
    }

    /// Divides rows from `first` on of what these weights are together.
    fn divide(&mut self, weights: &[&Weight], first: usize, scales: &[f32], norm_offset: f32) {
        for weight in weights {
            let offset = if weight.role.is_norm() { norm_offset } else { 0.0 };
            let mut start = 0;
            for part in &weight.parts {
                let by: Vec<f32> = (start..start + part.shape[0])
                    .map(|row| row.checked_sub(first).and_then(|at| scales.get(at)).copied().unwrap_or(1.0))
                    .collect();
                start += part.shape[0];
                if start > first {
                    self.rows.insert(part.tensor.clone(), Divisor { offset, by });
                }
            }
        }
    }
}

/// A matrix, and what makes its inputs: rows of these from one on.
struct Pair {
    matrix: Role,
    makers: [Option<Role>; 2],
    first: usize,
    /// How many neighbouring heads of so many inputs have the same maker.
    tie: (usize, usize),
}

/// The matrices of a layer, in the order in which they read.
fn pairs(model: &Transformer) -> [Pair; 4] {
    let (queries, keys) = (model.heads * model.head_dim, model.kv_heads * model.head_dim);
    let pair = |matrix, makers, first, tie| Pair { matrix, makers, first, tie };
    [
        pair(Role::Qkv, [Some(Role::AttentionNorm), None], 0, (1, 1)),
        pair(Role::Output, [Some(Role::Qkv), Some(Role::QkvBias)], queries + keys, (model.group(), model.head_dim)),
        pair(Role::GateUp, [Some(Role::MlpNorm), None], 0, (1, 1)),
        pair(Role::Down, [Some(Role::GateUp), Some(Role::GateUpBias)], model.intermediate_size, (1, 1)),
    ]
}

/// Where an input's maker is, of heads of which `tie` says how many share one.
fn maker(input: usize, (group, dim): (usize, usize)) -> usize {
    input / (group * dim) * dim + input % dim
}

/// A text that a model reads to be calibrated, and how it reads.
#[derive(Debug, Clone, Copy)]
pub struct CalibrationText<'a> {
    /// The text.
    pub path: &'a Path,
    /// The folder of the model's tokenizer.
    pub tokenizer: &'a Path,
    /// Tokens of the text at most.
    pub longest: usize,
    /// How keys and values will be kept.
    pub kv_cache: KvCache,
}

impl CalibrationText<'_> {
    /// Mean squares of what each layer's matrices read.
    fn observe(&self, OriginalModel { checkpoint, model, .. }: OriginalModel<'_>) -> anyhow::Result<Vec<Squares>> {
        let path = self.path;
        let content = fs::read_to_string(path).with_context(|| format!("calibration {}", path.display()))?;
        let mut tokens = Text::open(self.tokenizer)?.encode_text(&content)?;
        tokens.truncate(self.longest);
        let executor = CpuExecutor::new(model.clone(), Arc::clone(checkpoint), 1, self.longest)?;
        Ok(executor.with_kv_cache(self.kv_cache).observe(&tokens)?)
    }
}

/// Lets the model read the calibration text, and chooses for each matrix the scales with which rounding changes its outputs
/// least.
pub fn search(original: OriginalModel<'_>, scheme: Scheme, text: &CalibrationText<'_>) -> anyhow::Result<Scales> {
    let OriginalModel { checkpoint, model, .. } = original;
    let mut found = Scales::default();
    for (index, squares) in text.observe(original)?.iter().enumerate() {
        let weights = model.layer_weights(index);
        let of = |role: Role| weights.iter().filter(move |weight| weight.role == role);
        for (pair, squares) in pairs(model).into_iter().zip(squares) {
            let mut rows = Vec::new();
            for part in of(pair.matrix).flat_map(|weight| &weight.parts) {
                let view = checkpoint.tensor(&part.tensor)?;
                for row in (0..view.rows()).step_by((view.rows() / SAMPLE).max(1)) {
                    let mut values = vec![0.0; view.columns()];
                    view.read_row(row, &mut values);
                    rows.push(values);
                }
            }
            let scales = best(&rows, squares, scheme, pair.tie);
            let columns: Vec<f32> = (0..squares.len()).map(|input| scales[maker(input, pair.tie)]).collect();
            let columns = Arc::new(columns);
            let parts = of(pair.matrix).flat_map(|weight| &weight.parts);
            found.columns.extend(parts.map(|part| (part.tensor.clone(), Arc::clone(&columns))));
            let makers: Vec<&Weight> = pair.makers.into_iter().flatten().flat_map(of).collect();
            found.divide(&makers, pair.first, &scales, model.norm_offset);
        }
    }
    Ok(found)
}

/// A scale for each maker of inputs: of the powers the one with the least squared error of the outputs, taking inputs as
/// independent.
fn best(rows: &[Vec<f32>], squares: &[f32], scheme: Scheme, tie: (usize, usize)) -> Vec<f32> {
    let mut means = vec![0.0; squares.len() / tie.0];
    for (input, square) in squares.iter().enumerate() {
        means[maker(input, tie)] += square / tie.0 as f32;
    }
    let candidates = POWERS.map(|power| {
        let scales: Vec<f32> = means.iter().map(|square: &f32| square.sqrt().max(1e-6).powf(power)).collect();
        let (low, high) = scales.iter().fold((f32::MAX, 0.0_f32), |(low, high), s| (low.min(*s), high.max(*s)));
        let middle = (low * high).sqrt();
        scales.iter().map(|scale| scale / middle).collect::<Vec<f32>>()
    });
    let error = |scales: &Vec<f32>| -> f64 {
        let errors = rows.par_iter().map(|row| {
            let of = |input: usize| scales[maker(input, tie)];
            let values: Vec<f32> = row.iter().enumerate().map(|(input, value)| value * of(input)).collect();
            let rounded = scheme.row(&values);
            let errors = row.iter().enumerate().map(|(input, value)| {
                let have = rounded.value(input) / of(input);
                f64::from((have - value) * (have - value) * squares[input])
            });
            errors.sum::<f64>()
        });
        errors.sum()
    };
    let mut best = (f64::INFINITY, Vec::new());
    for scales in candidates {
        let error = error(&scales);
        if error < best.0 {
            best = (error, scales);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::Part;

    #[test]
    fn rows_are_divided_where_they_are() {
        let part = |tensor: &str, rows: usize| Part { tensor: tensor.to_owned(), shape: vec![rows, 4] };
        let weight = |parts: Vec<Part>| Weight { role: Role::Qkv, rows: 6, columns: 4, parts };
        let mut scales = Scales::default();
        let (apart, fused) = (weight(vec![part("q", 2), part("k", 2), part("v", 2)]), weight(vec![part("qkv", 6)]));
        scales.divide(&[&apart, &fused], 4, &[2.0, 3.0], 1.0);
        assert!(scales.rows("q").is_none() && scales.rows("k").is_none());
        assert_eq!(scales.rows("v").unwrap().by, [2.0, 3.0]);
        assert_eq!(scales.rows("qkv").unwrap().by, [1.0, 1.0, 1.0, 1.0, 2.0, 3.0]);
        // Four heads of two inputs on two heads of values.
        assert_eq!((0..8).map(|input| maker(input, (2, 2))).collect::<Vec<_>>(), [0, 1, 0, 1, 2, 3, 2, 3]);
    }
}
