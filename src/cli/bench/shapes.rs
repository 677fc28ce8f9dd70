//! Input shapes of a bare ONNX file for `bench`: from the file, from `--shape`, and the batch. Any other dynamic
//! dimension is an error.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};

use crate::cli::named;
use crate::cli::session::Choice;
use crate::diagnostic::Diagnostic;
use crate::log::printable;
use crate::onnx::Model;
use crate::tensor::{TensorSpec, element_count};

/// Most elements of an input tensor, the same limit as in recipes.
const ELEMENTS_LIMIT: usize = 1 << 32;

/// The inputs of the model at `path`, with only the batch dimension left dynamic.
pub(super) fn fixed(path: &Path, given: &[String], choice: Choice) -> anyhow::Result<Vec<TensorSpec>> {
    let model = Model::load(path)?;
    let mut inputs = model.inputs()?;
    let names: Vec<String> = inputs.iter().map(|input| input.name.clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let open = |input: &TensorSpec, from: usize| {
        let axis = (from..input.shape.len()).find(|axis| input.shape[*axis].is_none())?;
        let symbol = model.symbol(&input.name, axis).map(|symbol| format!(" (`{}`)", printable(symbol)));
        let symbol = symbol.unwrap_or_default();
        Some(format!("{}: dimension {axis} of input `{}` is open{symbol}", path.display(), input.name))
    };
    if choice == Choice::Tensorrt
        && let Some(said) = inputs.iter().find_map(|input| open(input, 0))
    {
        bail!(
            Diagnostic::new(format!("{said}, and TensorRT builds a bare file for fixed shapes alone"))
                .with_help(format!("{RECIPE}, and bench that"))
        );
    }
    for (name, dims) in named::split_all("--shape", given, &names)? {
        let Some(input) = inputs.iter_mut().find(|input| input.name == name) else { continue };
        input.shape = shape(input, dims).with_context(|| format!("{}: --shape {name}={dims}", path.display()))?;
    }
    if let Some((said, input)) = inputs.iter().find_map(|input| Some((open(input, 1)?, input))) {
        let dims = input.shape.iter().enumerate().map(|(axis, dim)| match (dim, axis) {
            (Some(dim), _) => dim.to_string(),
            (None, 0) => "1".to_owned(),
            (None, _) => "N".to_owned(),
        });
        let dims = dims.collect::<Vec<String>>().join(",");
        bail!(
            Diagnostic::new(said)
                .with_help(format!("say it with --shape {}={dims}, a number for each N; or {RECIPE}", input.name))
        );
    }
    Ok(inputs)
}

const RECIPE: &str = "build an engine from a recipe, which fixes them with `build: { shapes: … }`";

/// Parses the dimensions of one `--shape` argument.
fn shape(input: &TensorSpec, dims: &str) -> anyhow::Result<Vec<Option<usize>>> {
    let read = |dim: &str| dim.trim().parse::<usize>().ok().filter(|dim| *dim > 0);
    let shape: Option<Vec<usize>> = dims.split(',').map(read).collect();
    let shape = shape.context("dimensions are whole numbers from 1, with commas between them")?;
    ensure!(input.accepts(&shape), "the model wants {input}");
    let fits = element_count(&shape).is_some_and(|count| count <= ELEMENTS_LIMIT);
    ensure!(fits, "it has more than {ELEMENTS_LIMIT} elements");
    Ok(shape.into_iter().map(Some).collect())
}
