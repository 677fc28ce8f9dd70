//! Quantises a language model's layers: matrices of floats become integers of 4 or 8 bits.
//!
//! In: a model located in its checkpoint, a [`Scheme`], and a text to calibrate by, if there is one. Out: a safetensors file as
//! compressed-tensors has it (`pack-quantized`), which the runtime reads and other servers do too, and what config.json says of
//! it. `scheme.rs` rounds, `calibrate.rs` searches the scales that matrices are multiplied with before (AWQ), `write.rs` writes.
//! What it has cost `verify` measures.

mod calibrate;
mod scheme;
mod write;

use std::sync::Arc;

pub use calibrate::{CalibrationText, Scales, search};
pub use scheme::{QuantisedRow, Scheme};
pub use write::{describe, write};

use crate::checkpoint::Checkpoint;
use crate::convert::{Part, Transformer};

/// A model that is to be quantised, located in its checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct OriginalModel<'a> {
    /// Name for messages.
    pub name: &'a str,
    /// Its weights.
    pub checkpoint: &'a Arc<Checkpoint>,
    /// Its description.
    pub model: &'a Transformer,
}

impl OriginalModel<'_> {
    /// Parts of the layers' matrices.
    fn matrices(&self) -> impl Iterator<Item = Part> {
        let model = self.model;
        let weights = (0..model.layers.len()).flat_map(|index| model.layer_weights(index));
        weights.filter(|weight| weight.role.is_matrix()).flat_map(|weight| weight.parts)
    }

    /// Everything else the model is made of.
    fn others(&self) -> Vec<Part> {
        let model = self.model;
        let weights = (0..model.layers.len()).flat_map(|index| model.layer_weights(index));
        let vectors = weights.filter(|weight| !weight.role.is_matrix()).flat_map(|weight| weight.parts);
        let mut parts: Vec<Part> = vectors.chain([model.embedding(), model.final_norm()]).collect();
        if !model.tied {
            parts.push(model.output_matrix());
        }
        parts
    }
}
