//! Float32 weights in host memory, for the CPU executor, and rows of the embedding.

use std::sync::Arc;

use crate::checkpoint::{Checkpoint, CheckpointError, View};
use crate::convert::{Part, Role, Transformer, Weight};

/// A weight in float32, `[rows, columns]` as in the checkpoint.
pub(super) struct Floats {
    pub(super) role: Role,
    /// Shape of the graph's input: `[columns, rows]` for a matrix.
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f32>,
}

/// The values of several tensors, concatenated.
pub(super) fn floats(checkpoint: &Checkpoint, parts: &[Part]) -> Result<Vec<f32>, CheckpointError> {
    use rayon::prelude::*;
    let mut values = vec![0.0; parts.iter().map(|part| part.shape.iter().product::<usize>()).sum()];
    let mut rest = &mut values[..];
    for part in parts {
        let view = checkpoint.expect(&part.tensor, &part.shape)?;
        let (these, after) = rest.split_at_mut(view.rows() * view.columns());
        view.read(0, these);
        if let Some(at) = these.par_iter().position_any(|value| !value.is_finite()) {
            return Err(not_finite(checkpoint, &view, at, these[at]));
        }
        rest = after;
    }
    Ok(values)
}

/// Releases the pages of tensors whose values were copied.
pub(super) fn release(checkpoint: &Checkpoint, parts: &[Part]) {
    for part in parts {
        if let Ok(view) = checkpoint.tensor(&part.tensor) {
            checkpoint.release(&view, 0..view.rows());
        }
    }
}

pub(crate) fn not_finite(checkpoint: &Checkpoint, view: &View, at: usize, value: f32) -> CheckpointError {
    let message = format!("tensor `{}` holds {value} at element {at}", view.name);
    CheckpointError::new(checkpoint.files()[view.file].path(), message)
        .with_help("the checkpoint is damaged, or its training failed")
}

/// Converts a weight of a layer to float32.
pub(super) fn weight(checkpoint: &Checkpoint, model: &Transformer, weight: &Weight) -> Result<Floats, CheckpointError> {
    let mut values = floats(checkpoint, &weight.parts)?;
    if weight.role.is_norm() {
        values.iter_mut().for_each(|value| *value += model.norm_offset);
    }
    let shape = if weight.role.is_matrix() { vec![weight.columns, weight.rows] } else { vec![weight.columns] };
    Ok(Floats { role: weight.role, shape, values })
}

/// Decodes rows of the embedding on demand; the matrix stays in the file.
#[derive(Debug, Clone)]
pub(crate) struct Embedding {
    checkpoint: Arc<Checkpoint>,
    part: Part,
    scale: f32,
}

impl Embedding {
    pub(crate) fn new(checkpoint: &Arc<Checkpoint>, model: &Transformer) -> Self {
        Self { checkpoint: Arc::clone(checkpoint), part: model.embedding(), scale: model.embedding_scale }
    }

    /// The matrix as stored.
    pub(crate) fn stored(&self) -> Result<View<'_>, CheckpointError> {
        self.checkpoint.expect(&self.part.tensor, &self.part.shape)
    }

    /// Writes the embeddings `[tokens, hidden]` into `out`; further rows of `out` are not changed.
    pub(crate) fn rows(&self, tokens: &[u32], out: &mut [f32]) -> Result<(), CheckpointError> {
        let view = self.stored()?;
        let hidden = view.columns();
        for (token, out) in tokens.iter().zip(out.chunks_exact_mut(hidden)) {
            let token = *token as usize;
            view.read_row(token, out);
            if let Some(at) = out.iter().position(|value| !value.is_finite()) {
                return Err(not_finite(&self.checkpoint, &view, token * hidden + at, out[at]));
            }
            if self.scale != 1.0 {
                out.iter_mut().for_each(|value| *value *= self.scale);
            }
        }
        Ok(())
    }
}
