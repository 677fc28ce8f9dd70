//! Quantises a language model's layers and its output matrix (LM head): matrices of floats become integers of 4 or 8 bits.
//!
//! In: a model located in its checkpoint, [`Schemes`], and a text to calibrate by, if there is one. Out: a safetensors file as
//! compressed-tensors has it (`pack-quantized`), which the runtime reads and other servers do too, and what config.json says of
//! it; where the layers stay as they are, a file with the output matrix alone. `scheme.rs` rounds, `schemes.rs` chooses what is
//! rounded and how, `calibrate.rs` searches the scales that layers' matrices are multiplied with before (AWQ), `weight_file.rs`
//! and `write.rs` write. What it has cost `verify` measures.

mod calibrate;
mod scheme;
mod schemes;
mod weight_file;
mod write;

use std::sync::Arc;

pub use calibrate::{CalibrationText, Scales, search};
pub use scheme::{QuantisedRow, Scheme};
pub use schemes::{QuantisedBits, Schemes};
pub use write::{describe, write, write_head};

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

    /// Everything that the model is made of beside the layers' matrices and an output matrix of its own.
    fn others(&self) -> Vec<Part> {
        let model = self.model;
        let weights = (0..model.layers.len()).flat_map(|index| model.layer_weights(index));
        let vectors = weights.filter(|weight| !weight.role.is_matrix()).flat_map(|weight| weight.parts);
        vectors.chain([model.embedding(), model.final_norm()]).collect()
    }
}
