//! Half precision that is accurate enough: the first attempt follows the rules of [`crate::onnx::Half`]; if the engine
//! then fails verification, a search finds the range of matrix products that must stay in float32.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::artifact::about;
use crate::backend::tensorrt::{self, BuildOptions};
use crate::manifest::layout::MODEL;
use crate::onnx::{Half, Model};
use crate::spec::{Precision, Version};
use crate::tensor::DType;
use crate::verify::Report;

/// Name of the simplified model during a build.
pub(super) const LEAN_MODEL: &str = "lean.onnx";
/// Name of the half-precision model during a build.
pub(super) const HALF_MODEL: &str = "half.onnx";

/// The conversion to half precision, except for the products `full`; `None` for other precisions.
pub(super) fn half(precision: Precision, full: &[String]) -> Option<Half> {
    let dtype = match precision {
        Precision::Fp32 | Precision::Int8 | Precision::Int4 => return None,
        Precision::Fp16 => DType::Float16,
        Precision::Bf16 => DType::BFloat16,
    };
    Some(Half { dtype, keep: full.iter().cloned().collect::<HashSet<_>>() })
}

/// A float32 model with fixed shapes.
pub(super) struct FloatModel {
    /// The original, for the CPU reference.
    pub(super) model: Model,
    /// The simplified model for TensorRT, if it differs from the original.
    pub(super) lean: Option<Model>,
    pub(super) tensorrt: Version,
}

impl FloatModel {
    /// The model that TensorRT builds from.
    pub(super) fn built(&self) -> &Model {
        self.lean.as_ref().unwrap_or(&self.model)
    }

    /// Writes the model that TensorRT builds from, converted to half precision if asked for; returns builder options
    /// and path.
    pub(super) fn write(
        &self,
        mut options: BuildOptions,
        half: Option<&Half>,
        staged: &Path,
    ) -> anyhow::Result<(BuildOptions, PathBuf)> {
        let Some(half) = half else { return Ok((options, self.write_floats(staged)?)) };
        if options.strongly_typed {
            let path = staged.join(HALF_MODEL);
            fs::write(&path, self.built().to_half(half)?.to_bytes()?).map_err(about(&path))?;
            return Ok((options, path));
        }
        options.full_layers = self.built().full_nodes(half)?;
        Ok((options, self.write_floats(staged)?))
    }

    fn write_floats(&self, staged: &Path) -> anyhow::Result<PathBuf> {
        let Some(lean) = &self.lean else { return Ok(staged.join(MODEL)) };
        let path = staged.join(LEAN_MODEL);
        let bytes = if lean.external_files().is_empty() {
            lean.to_bytes()?
        } else {
            // Data files have the names that they were staged under.
            let mut staged_model = self.model.clone();
            staged_model.flatten_external();
            let lean = tensorrt::source::lean(&staged_model, self.tensorrt, true)?;
            lean.as_ref().unwrap_or(&staged_model).to_bytes()?
        };
        fs::write(&path, bytes).map_err(about(&path))?;
        Ok(path)
    }
}

/// Builds and verifies by `attempt`, with as few of `products` in float32 as pass; reports the attempts.
pub(super) fn search(
    products: &[String],
    tell: &dyn Fn(&str),
    mut attempt: impl FnMut(&[String]) -> anyhow::Result<Report>,
) -> anyhow::Result<Report> {
    tell("half precision does not pass: looking for the products that need float32, a build for each try");
    let mut last = None;
    let found = narrow(products.len(), |from, to| {
        let report = attempt(&products[from..to])?;
        let passed = !report.failed();
        last = Some(((from, to), report));
        Ok(passed)
    })?;
    let (from, to) = found.unwrap_or((0, products.len()));
    // The last try may have been the right one: what it left is staged.
    let report = match last {
        Some((range, report)) if range == (from, to) => report,
        _ => attempt(&products[from..to])?,
    };
    if found.is_none() {
        return Ok(report); // as wrong in float32, which the report says and refuses
    }
    let (count, all, first, last) = (to - from, products.len(), &products[from], &products[to - 1]);
    tell(&format!("{count} of {all} matrix products stay in float32, from {first} to {last}"));
    Ok(report)
}

/// The shortest range `from..to` that passes, assuming that every range around a passing one passes too; `None` if not
/// even `0..count` passes.
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
