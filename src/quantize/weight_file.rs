//! The tensors of a file of quantised weights: what each is made from, and its bytes, a block of rows in memory at a time.

use std::collections::BTreeMap;
use std::io::{self, Write};

use half::f16;
use rayon::prelude::*;

use super::calibrate::{Divisor, Scales};
use super::{OriginalModel, Scheme};
use crate::checkpoint::{CheckpointError, Planned, View, WordGrid};
use crate::convert::Part;
use crate::tensor::DType;

/// Rows that are rounded together on all cores, before they are written.
const BLOCK: usize = 4096;

/// What a tensor of the file is made from.
struct TensorOrigin {
    part: Part,
    /// Of a packed matrix's tensors.
    scheme: Option<Scheme>,
}

/// The tensors of a file, in its order.
#[derive(Default)]
pub(super) struct WeightFile {
    pub(super) planned: Vec<Planned>,
    origins: Vec<TensorOrigin>,
}

impl WeightFile {
    /// Adds a tensor that is not packed.
    pub(super) fn keep(
        &mut self,
        original: OriginalModel<'_>,
        part: &Part,
        scales: &Scales,
    ) -> Result<(), CheckpointError> {
        let view = original.checkpoint.tensor(&part.tensor)?;
        // What is divided keeps its digits.
        let dtype = if scales.rows(&part.tensor).is_some() { DType::Float32 } else { kept_type(&view) };
        let name = match dtype {
            DType::Float32 => "F32",
            DType::BFloat16 => "BF16",
            _ => "F16",
        };
        let bytes = part.shape.iter().product::<usize>() * dtype.size();
        self.planned.push(Planned { name: part.tensor.clone(), dtype: name, shape: part.shape.clone(), bytes });
        self.origins.push(TensorOrigin { part: part.clone(), scheme: None });
        Ok(())
    }

    /// Adds the tensors of a matrix that is packed under the name `name`, which ends in ".weight".
    pub(super) fn pack(&mut self, name: &str, part: &Part, scheme: Scheme) {
        let stem = name.trim_end_matches(".weight");
        let (rows, columns) = (part.shape[0], part.shape[1]);
        let groups = columns / scheme.group;
        let mut push = |end: &str, dtype, shape: &[usize], size: usize| {
            let bytes = shape.iter().product::<usize>() * size;
            self.planned.push(Planned { name: format!("{stem}.{end}"), dtype, shape: shape.to_vec(), bytes });
            self.origins.push(TensorOrigin { part: part.clone(), scheme: Some(scheme) });
        };
        push("weight_packed", "I32", &WordGrid::along_rows([rows, columns], scheme.bits).shape(), 4);
        push("weight_scale", "F16", &[rows, groups], 2);
        push("weight_shape", "I64", &[2], 8);
        if !scheme.symmetric {
            push("weight_zero_point", "I32", &WordGrid::along_columns([rows, groups], scheme.bits).shape(), 4);
        }
    }
}

/// Squares of rounding errors, and of the weights, as they add up.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RoundingLoss {
    lost: f64,
    whole: f64,
}

impl RoundingLoss {
    pub(super) fn add(&mut self, other: Self) {
        self.lost += other.lost;
        self.whole += other.whole;
    }

    /// Root mean square of the errors, in percent of that of the weights.
    pub(super) fn percent(self) -> f64 {
        100.0 * (self.lost / self.whole).sqrt()
    }
}

/// Makes the bytes of a file's tensors, in its order.
pub(super) struct WeightFiller<'a> {
    original: OriginalModel<'a>,
    scales: &'a Scales,
    /// Tensors of the matrix at hand that follow its integers, by the ends of their names.
    at_hand: BTreeMap<&'static str, Vec<u8>>,
    /// Of each matrix, by its name in the checkpoint.
    pub(super) losses: Vec<(String, RoundingLoss)>,
}

impl<'a> WeightFiller<'a> {
    pub(super) fn new(original: OriginalModel<'a>, scales: &'a Scales) -> Self {
        Self { original, scales, at_hand: BTreeMap::new(), losses: Vec::new() }
    }

    /// Writes the bytes of tensor `index`.
    pub(super) fn fill(&mut self, file: &WeightFile, index: usize, out: &mut dyn Write) -> io::Result<()> {
        let TensorOrigin { part, scheme } = &file.origins[index];
        let view = self.original.checkpoint.tensor(&part.tensor).map_err(io::Error::other)?;
        let Some(scheme) = *scheme else {
            let bytes = match self.scales.rows(&part.tensor) {
                Some(divisor) => divided(&view, divisor),
                None => return keep(&view, out),
            };
            return out.write_all(&bytes);
        };
        let end = file.planned[index].name.rsplit('.').next().unwrap_or_default();
        if end != "weight_packed" {
            // The integers were written before, and this was made with them.
            return out.write_all(&self.at_hand.remove(end).unwrap_or_default());
        }
        let rows_by = self.scales.rows(&part.tensor).map(|divisor| divisor.by.as_slice());
        let matrix = PackedMatrixSource { view, scheme, columns_by: self.scales.columns(&part.tensor), rows_by };
        let packed = matrix.write(out)?;
        self.losses.push((part.tensor.clone(), packed.loss));
        let shape = part.shape.iter().flat_map(|size| (*size as u64).to_le_bytes()).collect();
        self.at_hand = BTreeMap::from([
            ("weight_scale", packed.scales),
            ("weight_shape", shape),
            ("weight_zero_point", packed.zeros),
        ]);
        Ok(())
    }
}

/// A matrix to quantise, after its columns are multiplied and its rows divided by the AWQ scales, if there are any.
struct PackedMatrixSource<'a> {
    view: View<'a>,
    scheme: Scheme,
    columns_by: Option<&'a [f32]>,
    rows_by: Option<&'a [f32]>,
}

/// What follows a matrix's integers.
struct PackedTerms {
    scales: Vec<u8>,
    zeros: Vec<u8>,
    loss: RoundingLoss,
}

/// A quantised row, its integers in words.
struct PackedRow {
    words: Vec<u8>,
    scales: Vec<f16>,
    zeros: Vec<u8>,
    loss: RoundingLoss,
}

impl PackedMatrixSource<'_> {
    fn row(&self, row: usize) -> PackedRow {
        let columns = self.view.columns();
        let mut values = vec![0.0; columns];
        self.view.read_row(row, &mut values);
        let of_row = self.rows_by.map_or(1.0, |by| by[row]);
        let by = |at: usize| self.columns_by.map_or(1.0, |by| by[at]) / of_row;
        values.iter_mut().enumerate().for_each(|(at, value)| *value *= by(at));
        let rounded = self.scheme.row(&values);
        let mut loss = RoundingLoss::default();
        for (at, value) in values.iter().enumerate() {
            let by = f64::from(by(at));
            let error = f64::from(rounded.value(at) - value) / by;
            loss.lost += error * error;
            loss.whole += f64::from(*value) / by * f64::from(*value) / by;
        }
        let words = WordGrid::along_rows([1, columns], self.scheme.bits).pack(|_, column| rounded.quants[column]);
        PackedRow { words, scales: rounded.scales, zeros: rounded.zeros, loss }
    }

    /// Writes the words of integers, and returns what follows them.
    fn write(&self, out: &mut dyn Write) -> io::Result<PackedTerms> {
        let (rows, groups) = (self.view.rows(), self.view.columns() / self.scheme.group);
        let mut scales = Vec::with_capacity(2 * rows * groups);
        let mut zeros = Vec::with_capacity(rows * groups);
        let mut loss = RoundingLoss::default();
        for first in (0..rows).step_by(BLOCK) {
            let block = first..rows.min(first + BLOCK);
            let block: Vec<PackedRow> = block.into_par_iter().map(|row| self.row(row)).collect();
            for row in block {
                out.write_all(&row.words)?;
                scales.extend(row.scales.iter().flat_map(|scale| scale.to_le_bytes()));
                zeros.extend(row.zeros);
                loss.add(row.loss);
            }
        }
        // Words of zero points run down the outputs.
        let grid = WordGrid::along_columns([rows, groups], self.scheme.bits);
        Ok(PackedTerms { scales, zeros: grid.pack(|row, group| zeros[row * groups + group]), loss })
    }
}

/// Type of a tensor that is not quantised: its own, or float16 for integers.
fn kept_type(view: &View<'_>) -> DType {
    view.encoding.dtype().unwrap_or(DType::Float16)
}

/// Writes a tensor that is not quantised, in [`kept_type`].
fn keep(view: &View<'_>, out: &mut dyn Write) -> io::Result<()> {
    if view.encoding.dtype().is_some() {
        return out.write_all(&view.ordered());
    }
    let columns = view.columns();
    for first in (0..view.rows()).step_by(BLOCK) {
        let mut values = vec![0.0; columns * BLOCK.min(view.rows() - first)];
        view.read(first, &mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// The bytes of a vector divided by AWQ scales, in float32.
fn divided(view: &View<'_>, divisor: &Divisor) -> Vec<u8> {
    let mut values = vec![0.0; view.columns()];
    view.read(0, &mut values);
    let values = values.iter().zip(&divisor.by).map(|(value, by)| (value + divisor.offset) / by - divisor.offset);
    values.flat_map(f32::to_le_bytes).collect()
}
