//! The cache key of an engine: everything it depends on, and whether a published engine still matches.

use std::path::Path;

use super::target::{BuildHost, Target};
use crate::engine_dir::EngineDir;
use crate::hashes::Hashes;
use crate::manifest::{Hasher, Key};

/// The parts that an engine depends on.
pub(super) fn key(target: &dyn Target, hashes: &mut Hashes) -> anyhow::Result<Key> {
    let mut key = of_machine(target.machine());
    target.add_key_parts(&mut key, hashes)?;
    Ok(key)
}

fn of_machine(BuildHost { tensorrt, device, .. }: &BuildHost) -> Key {
    let mut key = Key::default();
    key.text("tool", env!("CARGO_PKG_VERSION"));
    key.text("tensorrt", tensorrt.to_string());
    let gpu = device.as_ref().map(|device| format!("{} {}", device.name, device.compute_capability));
    key.text("gpu", gpu.unwrap_or_else(|| "none".to_owned()));
    key
}

/// Why the engine directory must be built (again); `None` if it is up to date and undamaged.
pub(super) fn staleness(folder: &Path, key: &Key, hash: Hasher<'_>) -> Option<String> {
    if !folder.exists() {
        return Some("it was never built here".to_owned());
    }
    match EngineDir::load(folder) {
        Err(error) => Some(error.to_string()),
        Ok(engine) => key.difference(&engine.manifest.key).or_else(|| engine.damage(hash)),
    }
}
