//! Weights as float32 in host memory, for the CPU executor and for embeddings.

use std::borrow::Cow;
use std::sync::Arc;

use crate::checkpoint::{Checkpoint, CheckpointError, Encoding, View};
use crate::convert::{Part, Role, Transformer, Weight};

/// A weight in float32: `[rows, columns]`, stored as the checkpoint has it, borrowed where it is float32 there.
pub(super) struct Floats<'a> {
    pub(super) role: Role,
    /// The graph input's shape: `[columns, rows]` of a matrix.
    pub(super) shape: Vec<usize>,
    pub(super) values: Cow<'a, [f32]>,
}

/// A tensor's values, borrowed if they lie in the file as float32 in order.
pub(super) fn floats<'a>(checkpoint: &'a Checkpoint, part: &Part) -> Result<Cow<'a, [f32]>, CheckpointError> {
    let view = checkpoint.expect(&part.tensor, &part.shape)?;
    let mapped = match view.encoding {
        Encoding::F32 if view.is_in_order() => bytemuck::try_cast_slice::<u8, f32>(view.bytes).ok(),
        _ => None,
    };
    let values = match mapped {
        Some(values) => Cow::Borrowed(values),
        None => Cow::Owned(read(&view)),
    };
    check_finite(checkpoint, &view, &values)?;
    Ok(values)
}

fn read(view: &View) -> Vec<f32> {
    let mut values = vec![0.0; view.rows() * view.columns()];
    view.read(0, &mut values);
    values
}

fn check_finite(checkpoint: &Checkpoint, view: &View, values: &[f32]) -> Result<(), CheckpointError> {
    use rayon::prelude::*;
    match values.par_iter().position_any(|value| !value.is_finite()) {
        Some(at) => Err(not_finite(checkpoint, view, at, values[at])),
        None => Ok(()),
    }
}

pub(super) fn not_finite(checkpoint: &Checkpoint, view: &View, at: usize, value: f32) -> CheckpointError {
    let message = format!(
        "tensor `{}` holds {value} at element {at}\n  hint: the checkpoint is damaged, or its training failed",
        view.name
    );
    CheckpointError::new(checkpoint.files()[view.file].path(), message)
}

/// One of the layer's weights.
pub(super) fn weight<'a>(
    checkpoint: &'a Checkpoint,
    model: &Transformer,
    weight: &Weight,
) -> Result<Floats<'a>, CheckpointError> {
    let mut values = match &weight.parts[..] {
        [part] => floats(checkpoint, part)?,
        parts => {
            let mut joined = Vec::with_capacity(weight.rows * weight.columns);
            for part in parts {
                joined.extend_from_slice(&floats(checkpoint, part)?);
            }
            Cow::Owned(joined)
        }
    };
    if weight.role.is_norm() && model.norm_offset != 0.0 {
        values.to_mut().iter_mut().for_each(|value| *value += model.norm_offset);
    }
    let shape = if weight.role.is_matrix() { vec![weight.columns, weight.rows] } else { vec![weight.columns] };
    Ok(Floats { role: weight.role, shape, values })
}

/// Rows of the embedding, decoded when they are asked for: the matrix itself stays in the file.
#[derive(Debug, Clone)]
pub(super) struct Embedding {
    checkpoint: Arc<Checkpoint>,
    part: Part,
    scale: f32,
}

impl Embedding {
    pub(super) fn new(checkpoint: &Arc<Checkpoint>, model: &Transformer) -> Self {
        Self { checkpoint: Arc::clone(checkpoint), part: model.embedding(), scale: model.embedding_scale }
    }

    /// Writes `[tokens, hidden]` into `out`, one row per token; rows of `out` beyond stay as they are.
    pub(super) fn rows(&self, tokens: &[u32], out: &mut [f32]) -> Result<(), CheckpointError> {
        let view = self.checkpoint.expect(&self.part.tensor, &self.part.shape)?;
        let hidden = view.columns();
        for (token, out) in tokens.iter().zip(out.chunks_exact_mut(hidden)) {
            let token = *token as usize;
            view.encoding.decode(view.row(token), out);
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
