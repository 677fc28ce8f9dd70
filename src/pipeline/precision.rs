//! Half precision that is right: the first try follows the rules of [`crate::onnx::Half`]; where the engine's answers
//! then fail their proof, a search finds the stretch of products that has to stay in float32.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Context, MODEL, Prepared, attempt, settings};
use crate::artifact::about;
use crate::backend::tensorrt::{self, BuildOptions};
use crate::onnx::Half;
use crate::progress::Event;
use crate::recipe::Precision;
use crate::tensor::DType;
use crate::verify::Report;

/// The simplified model, while it is built from.
const LEAN_MODEL: &str = "lean.onnx";
/// The model in half precision, while it is built from.
const HALF_MODEL: &str = "half.onnx";

fn half(prepared: &Prepared, full: &[String]) -> Option<Half> {
    let dtype = match prepared.plan.build.precision {
        Precision::Fp32 | Precision::Int8 | Precision::Int4 => return None,
        Precision::Fp16 => DType::Float16,
        Precision::Bf16 => DType::BFloat16,
    };
    Some(Half { dtype, keep: full.iter().cloned().collect::<HashSet<_>>() })
}

/// What TensorRT builds from: options and ONNX file.
pub(super) fn source(prepared: &Prepared, staged: &Path, full: &[String]) -> anyhow::Result<(BuildOptions, PathBuf)> {
    let mut options = prepared.options.clone();
    let Some(half) = half(prepared, full) else { return Ok((options, floats(prepared, staged)?)) };
    if settings::typed(prepared.tensorrt) {
        let path = staged.join(HALF_MODEL);
        fs::write(&path, prepared.built().to_half(&half)?.to_bytes()?).map_err(about(&path))?;
        return Ok((options, path));
    }
    options.full_layers = prepared.built().full_nodes(&half)?;
    Ok((options, floats(prepared, staged)?))
}

/// The file of the float32 model that is built from.
fn floats(prepared: &Prepared, staged: &Path) -> anyhow::Result<PathBuf> {
    let Some(lean) = &prepared.lean else { return Ok(staged.join(MODEL)) };
    let path = staged.join(LEAN_MODEL);
    let bytes = if lean.external_files().is_empty() {
        lean.to_bytes()?
    } else {
        // Data files have the names that they were staged under.
        let mut staged_model = prepared.model.clone();
        staged_model.flatten_external();
        let lean = tensorrt::source::lean(&staged_model, prepared.tensorrt, true)?;
        lean.as_ref().unwrap_or(&staged_model).to_bytes()?
    };
    fs::write(&path, bytes).map_err(about(&path))?;
    Ok(path)
}

/// Builds and proves the engine; in half precision with as many products in float32 as it takes.
pub(super) fn build_right(prepared: &Prepared, staged: &Path, context: &Context) -> anyhow::Result<Report> {
    let first = attempt(prepared, staged, &[], context)?;
    let Some(half) = half(prepared, &[]) else { return Ok(first) };
    if !first.wrong_answers() {
        return Ok(first);
    }
    let name = &prepared.plan.name;
    let products = prepared.built().half_products(&half)?;
    context.progress.event(Event::Warning(&format!(
        "{name}: half precision does not pass: looking for the products that need float32, a build for each try"
    )));
    let mut last = None;
    let found = narrow(products.len(), |from, to| {
        let report = attempt(prepared, staged, &products[from..to], context)?;
        let passed = !report.failed();
        last = Some(((from, to), report));
        Ok(passed)
    })?;
    let (from, to) = found.unwrap_or((0, products.len()));
    // The last try may have been the right one: what it left is staged.
    let report = match last {
        Some((range, report)) if range == (from, to) => report,
        _ => attempt(prepared, staged, &products[from..to], context)?,
    };
    if found.is_none() {
        return Ok(report); // as wrong in float32, which the report says and refuses
    }
    context.progress.event(Event::Warning(&format!(
        "{name}: {} of {} products stay in float32, from {} to {}",
        to - from,
        products.len(),
        products[from],
        products[to - 1]
    )));
    Ok(report)
}

/// The shortest stretch `from..to` that passes, supposing that a stretch that holds one that passes does too; `None` if
/// not even `0..count` passes.
fn narrow(
    count: usize,
    mut passes: impl FnMut(usize, usize) -> anyhow::Result<bool>,
) -> anyhow::Result<Option<(usize, usize)>> {
    if count == 0 || !passes(0, count)? {
        return Ok(None);
    }
    // The largest start that passes up to the end, then the smallest end from there.
    let (mut from, mut beyond) = (0, count);
    while beyond - from > 1 {
        let middle = from.midpoint(beyond);
        if passes(middle, count)? { from = middle } else { beyond = middle }
    }
    let (mut short, mut to) = (from, count);
    while to - short > 1 {
        let middle = short.midpoint(to);
        if passes(from, middle)? { to = middle } else { short = middle }
    }
    Ok(Some((from, to)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_stretch_is_found() {
        for count in [1, 2, 7, 100] {
            for from in 0..count {
                for to in from + 1..=count {
                    let mut tries = 0;
                    let found = narrow(count, |a, b| {
                        tries += 1;
                        Ok(a <= from && to <= b)
                    });
                    assert_eq!(found.unwrap(), Some((from, to)));
                    assert!(tries <= 16, "{tries}");
                }
            }
        }
        assert_eq!(narrow(5, |_, _| Ok(false)).unwrap(), None);
        assert_eq!(narrow(0, |_, _| Ok(true)).unwrap(), None);
    }
}
