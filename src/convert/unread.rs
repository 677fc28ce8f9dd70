//! Nothing of a GGUF is left unread: a tensor that no layer reads would change what the model computes.

use std::collections::BTreeSet;

use super::Transformer;
use crate::checkpoint::{Checkpoint, CheckpointError};

/// Frequencies that old converters wrote for every layer; they follow from the base.
const HARMLESS: &str = ".attn_rot_embd.";

impl Transformer {
    /// Fails if a GGUF has a tensor that none of the parts is.
    pub(super) fn check_unread(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        if checkpoint.gguf.is_none() {
            return Ok(());
        }
        let layers = (0..self.layers.len()).flat_map(|index| self.layer_weights(index)).flat_map(|weight| weight.parts);
        let outer = [self.embedding(), self.final_norm(), self.output_matrix()];
        let read: BTreeSet<String> = layers.chain(outer).map(|part| part.tensor).collect();
        let unread = checkpoint.names().filter(|name| !read.contains(*name)).map(|name| checkpoint.spelled(name));
        match unread.filter(|name| !name.contains(HARMLESS)).min() {
            None => Ok(()),
            Some(name) => Err(CheckpointError::new(
                &checkpoint.config_path,
                format!(
                    "tensor `{name}` is one that nobody here reads, and without it other answers would come out\n  hint: use \
                     the model's safetensors repository, if its model_type is supported"
                ),
            )),
        }
    }
}
