//! What an engine is proved on besides seeded values and pictures: inputs of the user's own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::artifact::about;
use crate::onnx::Model;
use crate::recipe::Plan;
use crate::regular_file;
use crate::tensor::read_npy;

/// The user's own inputs: for each try a file for every input of the model, in its order, looked at.
pub(super) fn own_inputs(plan: &Plan, model: &Model) -> anyhow::Result<Vec<Vec<PathBuf>>> {
    let mut tries = Vec::new();
    let inputs = model.inputs()?;
    for files in &plan.verify.inputs {
        if let Some(name) = files.keys().find(|name| inputs.iter().all(|input| input.name != **name)) {
            let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
            bail!("{}: `verify: inputs` has a file for `{name}`, the model's inputs are {names:?}", plan.name);
        }
        let mut paths = Vec::new();
        for spec in &inputs {
            let path = files.get(&spec.name).with_context(|| {
                format!("{}: `verify: inputs` has no file for `{}`\n  hint: name one in each try", plan.name, spec.name)
            })?;
            let tensor = regular_file::open(path).and_then(read_npy).map_err(about(path))?;
            if tensor.dtype() != spec.dtype || !spec.accepts(tensor.shape()) {
                bail!("{}: holds {}{:?}, the model wants {spec}", path.display(), tensor.dtype(), tensor.shape());
            }
            paths.push(path.clone());
        }
        tries.push(paths);
    }
    Ok(tries)
}

/// A try's files as the engine directory has them.
pub(super) fn names(tries: &[Vec<PathBuf>]) -> Vec<Vec<String>> {
    let name = |at: usize, index: usize| format!("inputs/{at}-{index}.npy");
    tries.iter().enumerate().map(|(at, files)| (0..files.len()).map(|index| name(at, index)).collect()).collect()
}

/// Copies them there.
pub(super) fn place(tries: &[Vec<PathBuf>], staged: &Path) -> anyhow::Result<()> {
    for (from, name) in tries.iter().flatten().zip(names(tries).iter().flatten()) {
        fs::create_dir_all(staged.join("inputs")).map_err(about(staged))?;
        fs::copy(from, staged.join(name)).map_err(about(from))?;
    }
    Ok(())
}
