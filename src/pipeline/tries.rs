//! The user's own tensors that an engine is verified with, besides seeded values and images.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::artifact::about;
use crate::diagnostic::Diagnostic;
use crate::manifest::layout::INPUTS;
use crate::onnx::Model;
use crate::recipe::Plan;
use crate::regular_file;
use crate::tensor::{Tensor, read_npy, unravel};

/// The user's tensors: per item a checked file for every input of the model, in its order.
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
            let path = files.get(&spec.name).ok_or_else(|| {
                Diagnostic::new(format!("{}: `verify: inputs` has no file for `{}`", plan.name, spec.name))
                    .with_help("name one in each try")
            })?;
            let tensor = regular_file::open(path).and_then(read_npy).map_err(about(path))?;
            if tensor.dtype() != spec.dtype || !spec.accepts(tensor.shape()) {
                bail!("{}: holds {}{:?}, the model wants {spec}", path.display(), tensor.dtype(), tensor.shape());
            }
            check_finite(path, &tensor)?;
            paths.push(path.clone());
        }
        tries.push(paths);
    }
    Ok(tries)
}

/// Refuses NaN and infinities: results computed from them are mostly NaN, in which two engines agree or differ by
/// chance.
fn check_finite(path: &Path, tensor: &Tensor) -> anyhow::Result<()> {
    let values = tensor.to_f64();
    let Some(index) = values.iter().position(|value| !value.is_finite()) else { return Ok(()) };
    let place = unravel(index, tensor.shape());
    let what = format!("{}: its value at {place:?} is {}, which verifies nothing", path.display(), values[index]);
    bail!(Diagnostic::new(what).with_help("give finite numbers; for what a mask hides, the lowest of the type"))
}

/// Names of the files in the engine directory, by item.
pub(super) fn names(tries: &[Vec<PathBuf>]) -> Vec<Vec<String>> {
    let name = |at: usize, index: usize| format!("{INPUTS}/{at}-{index}.npy");
    tries.iter().enumerate().map(|(at, files)| (0..files.len()).map(|index| name(at, index)).collect()).collect()
}

/// Copies the files to the engine directory.
pub(super) fn place(tries: &[Vec<PathBuf>], staged: &Path) -> anyhow::Result<()> {
    for (from, name) in tries.iter().flatten().zip(names(tries).iter().flatten()) {
        fs::create_dir_all(staged.join(INPUTS)).map_err(about(staged))?;
        fs::copy(from, staged.join(name)).map_err(about(from))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::GraphBuilder;
    use crate::recipe;
    use crate::tensor::{DType, TensorData, write_npy};

    #[test]
    fn inputs_that_prove_nothing_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = "version: 1\nname: m\nkind: onnx\nsource: { path: m.onnx }\nverify: { inputs: [{ x: x.npy }] }\n";
        let path = folder.path().join("m.yaml");
        let plan = Plan::new(&path, &recipe::parse(&path, recipe).unwrap());
        let half = half::f16::from_f32;
        let floats = |values: [f32; 4]| TensorData::F32(values.to_vec());
        for (data, said) in [
            (floats([0.5, f32::MIN, -0.0, 1e-40]), None),
            (floats([0.0, 1.0, f32::NAN, f32::INFINITY]), Some("x.npy: its value at [1, 0] is NaN")),
            (floats([0.0, f32::NEG_INFINITY, 0.0, 0.0]), Some("x.npy: its value at [0, 1] is -inf")),
            (
                TensorData::F16([1.0, 2.0, 3.0, f32::INFINITY].map(half).to_vec()),
                Some("x.npy: its value at [1, 1] is inf"),
            ),
        ] {
            let tensor = Tensor::new(vec![2, 2], data).unwrap();
            let mut graph = GraphBuilder::new("g", 17);
            graph.input("x", tensor.dtype(), &[None, Some(2)]);
            graph.node_named("Identity", &["x"], &["y"], &[]);
            graph.output("y", tensor.dtype(), &[None, Some(2)]);
            let model = graph.finish(Path::new("m.onnx")).unwrap();
            let file = folder.path().join("x.npy");
            write_npy(fs::File::create(&file).unwrap(), &tensor).unwrap();
            let found = own_inputs(&plan, &model).map_err(|error| error.to_string());
            match said {
                None => assert_eq!(found.unwrap(), [[file]]),
                Some(said) => {
                    let error = found.unwrap_err();
                    assert!(error.contains(said) && error.contains("hint: give finite numbers"), "{error}");
                }
            }
        }
        let mut graph = GraphBuilder::new("g", 17);
        graph.input("x", DType::Float32, &[Some(1)]);
        graph.node_named("Identity", &["x"], &["y"], &[]);
        graph.output("y", DType::Float32, &[Some(1)]);
        let model = graph.finish(Path::new("m.onnx")).unwrap();
        fs::write(folder.path().join("x.npy"), b"\x93NUMPY\x01").unwrap();
        let error = own_inputs(&plan, &model).unwrap_err().to_string();
        assert!(error.contains("x.npy: not a usable .npy file: it is cut off within its header"), "{error}");
    }
}
