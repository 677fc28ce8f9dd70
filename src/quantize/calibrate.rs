//! Activation-aware weight quantisation (AWQ; Lin et al. 2023): each input channel j of a matrix is scaled by s_j =
//! rms(x_j)^α before rounding, so that weights of large activations are rounded more precisely. The inverse is folded
//! into the producer of x: the preceding norm, W_v for the attention's output matrix, W_up for the down matrix. α is
//! searched per matrix.

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

/// Candidates for the exponent α.
const EXPONENTS: [f32; 5] = [0.0, 0.2, 0.4, 0.6, 0.8];
/// Number of rows sampled from each matrix to score the candidate exponents.
const SAMPLED_ROWS: usize = 256;

/// Divisors of a tensor's rows, or of a vector's elements after `offset` is added to them.
pub(super) struct Divisor {
    pub(super) offset: f32,
    pub(super) by: Vec<f32>,
}

/// Scales by the names of tensors: factors and divisors before rounding. Empty without calibration.
#[derive(Default)]
pub struct Scales {
    /// Factors of a matrix' columns.
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

    /// Divides the rows of `weights`, counted through from the first weight, by `scales`, beginning with row `first`.
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

/// A matrix to scale, and the weights whose rows produce its inputs, from row `first` on.
struct ScaledMatrix {
    matrix: Role,
    producers: [Option<Role>; 2],
    first: usize,
    /// (group, head size): that many neighbouring query heads share one value head, so that their inputs share a
    /// producer.
    tie: (usize, usize),
}

/// The matrices of a layer in the order of execution.
fn scaled_matrices(model: &Transformer) -> [ScaledMatrix; 4] {
    let (queries, keys) = (model.heads * model.head_dim, model.kv_heads * model.head_dim);
    let pair = |matrix, producers, first, tie| ScaledMatrix { matrix, producers, first, tie };
    [
        pair(Role::Qkv, [Some(Role::AttentionNorm), None], 0, (1, 1)),
        pair(Role::Output, [Some(Role::Qkv), Some(Role::QkvBias)], queries + keys, (model.group(), model.head_dim)),
        pair(Role::GateUp, [Some(Role::MlpNorm), None], 0, (1, 1)),
        pair(Role::Down, [Some(Role::GateUp), Some(Role::GateUpBias)], model.intermediate_size, (1, 1)),
    ]
}

/// Index of the value row that produces input `input` of the attention's output matrix under grouped-query attention.
fn producer_row(input: usize, (group, dim): (usize, usize)) -> usize {
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

/// Runs the model on the calibration text, and chooses for each matrix the scales at which rounding changes its outputs
/// least.
pub fn search(original: OriginalModel<'_>, scheme: Scheme, text: &CalibrationText<'_>) -> anyhow::Result<Scales> {
    let OriginalModel { checkpoint, model, .. } = original;
    let mut found = Scales::default();
    for (index, squares) in text.observe(original)?.iter().enumerate() {
        let weights = model.layer_weights(index);
        let of = |role: Role| weights.iter().filter(move |weight| weight.role == role);
        for (pair, squares) in scaled_matrices(model).into_iter().zip(squares) {
            let mut rows = Vec::new();
            for part in of(pair.matrix).flat_map(|weight| &weight.parts) {
                let view = checkpoint.tensor(&part.tensor)?;
                for row in (0..view.rows()).step_by((view.rows() / SAMPLED_ROWS).max(1)) {
                    let mut values = vec![0.0; view.columns()];
                    view.read_row(row, &mut values);
                    rows.push(values);
                }
            }
            let scales = search_scales(&rows, squares, scheme, pair.tie);
            let columns: Vec<f32> = (0..squares.len()).map(|input| scales[producer_row(input, pair.tie)]).collect();
            let columns = Arc::new(columns);
            let parts = of(pair.matrix).flat_map(|weight| &weight.parts);
            found.columns.extend(parts.map(|part| (part.tensor.clone(), Arc::clone(&columns))));
            let producers: Vec<&Weight> = pair.producers.into_iter().flatten().flat_map(of).collect();
            found.divide(&producers, pair.first, &scales, model.norm_offset);
        }
    }
    Ok(found)
}

/// A scale for each producer: of the candidate exponents the one with the least squared error of the outputs, with
/// inputs taken as independent.
fn search_scales(rows: &[Vec<f32>], squares: &[f32], scheme: Scheme, tie: (usize, usize)) -> Vec<f32> {
    let mut means = vec![0.0; squares.len() / tie.0];
    for (input, square) in squares.iter().enumerate() {
        means[producer_row(input, tie)] += square / tie.0 as f32;
    }
    let candidates = EXPONENTS.map(|exponent| {
        let scales: Vec<f32> = means.iter().map(|square: &f32| square.sqrt().max(1e-6).powf(exponent)).collect();
        let (low, high) = scales.iter().fold((f32::MAX, 0.0_f32), |(low, high), s| (low.min(*s), high.max(*s)));
        let middle = (low * high).sqrt();
        scales.iter().map(|scale| scale / middle).collect::<Vec<f32>>()
    });
    let error = |scales: &Vec<f32>| -> f64 {
        let errors = rows.par_iter().map(|row| {
            let of = |input: usize| scales[producer_row(input, tie)];
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
        assert_eq!((0..8).map(|input| producer_row(input, (2, 2))).collect::<Vec<_>>(), [0, 1, 0, 1, 2, 3, 2, 3]);
    }
}
