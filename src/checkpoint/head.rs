//! An output matrix (LM head) that a build packed into a file of its own, beside a checkpoint that stays as it is. It takes the
//! place of the checkpoint's own, whatever form that has, or of the embedding where they are tied.

use std::collections::BTreeMap;
use std::path::Path;

use super::mapped::Mapped;
use super::packing::Packings;
use super::{Checkpoint, CheckpointError, Entry, packed, safetensors};
use crate::spec::HeadRecord;

/// End of the matrix' name.
const HEAD: &str = "lm_head.weight";

impl Checkpoint {
    /// Puts the packed matrix of the safetensors file at `path` in the place of the output matrix.
    pub fn replace_head(&mut self, path: &Path, head: &HeadRecord) -> Result<(), CheckpointError> {
        let fail = |what: String| CheckpointError::new(path, what).with_help("build the engine again");
        let packings = Packings::of_head(head).map_err(fail)?;
        let file = Mapped::open(path)?;
        let tensors: BTreeMap<String, Entry> = safetensors::entries(&file, self.files.len())?.into_iter().collect();
        self.files.push(file);
        let found = packed::matrices(path, &packings, &tensors, &|entry: &Entry| self.part(entry))?;
        let mut found = found.into_iter();
        let (Some((name, matrix)), None) = (found.next(), found.next()) else {
            return Err(fail("it does not hold one packed matrix".to_owned()));
        };
        if !name.ends_with(HEAD) {
            return Err(fail(format!("`{name}` is no output matrix")));
        }
        self.tensors.remove(&name);
        self.packed.insert(name, matrix);
        Ok(())
    }
}
