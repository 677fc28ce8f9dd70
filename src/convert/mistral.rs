//! Mistral 7B and Nemo: Llama with a sliding window on every layer (Jiang et al. 2023), none from v0.2 on.

use super::config::Config;
use super::{Transformer, family};
use crate::checkpoint::CheckpointError;

pub(super) fn describe(config: &Config, length: usize) -> Result<Transformer, CheckpointError> {
    let mut transformer = family::common(config, "mistral", length)?;
    family::slide_all(config, &mut transformer)?;
    Ok(transformer)
}
