//! Builder settings and input shapes from a recipe's plan.

use std::collections::BTreeMap;

use anyhow::bail;

use crate::backend::BackendError;
use crate::backend::isolated::{Isolated, ProofProcess};
use crate::backend::tensorrt::{BuildOptions, BuilderFlags};
use crate::diagnostic::Diagnostic;
use crate::onnx::{Given, Model};
use crate::recipe::{BuildPlan, InputRange, InputShape, InputValue, ModelPlan, Plan};
use crate::spec::{Family, ShapeRange, Version};
use crate::tensor::{DType, TensorSpec};
use crate::vision::pixel_axes;
use crate::worker::Isolation;

/// The process in which an engine and the CPU reference run: child processes, if the builder uses one too.
pub(super) fn runner(isolation: &Isolation) -> Result<ProofProcess, BackendError> {
    Ok(match isolation {
        Isolation::InProcess => ProofProcess::InProcess,
        Isolation::Child => ProofProcess::Isolated(Isolated::of_this_program()?),
    })
}

/// Replaces inputs by the constants that the recipe gives them.
pub(super) fn give_values(plan: &Plan, model: &mut Model) -> anyhow::Result<()> {
    let given = |value: &InputValue| match value {
        InputValue::Truth(value) => Given::Wholes(vec![i64::from(*value)]),
        InputValue::Whole(value) => Given::Wholes(vec![*value]),
        InputValue::Float(value) => Given::Floats(vec![*value]),
        InputValue::Wholes(values) => Given::Wholes(values.clone()),
        InputValue::Floats(values) => Given::Floats(values.clone()),
    };
    let ModelPlan::Onnx { inputs } = &plan.model else { return Ok(()) };
    let values: BTreeMap<String, Given> = inputs.iter().map(|(name, value)| (name.clone(), given(value))).collect();
    Ok(model.give_values(&values)?)
}

/// Fixes the model's shapes, with images of `size`; returns the profile of what stays dynamic.
pub(super) fn resolve_shapes(
    plan: &Plan,
    size: Option<[u32; 2]>,
    model: &mut Model,
) -> anyhow::Result<Vec<ShapeRange>> {
    let build = &plan.build;
    let (mut fixed, mut profile) = (BTreeMap::new(), Vec::new());
    for input in model.inputs()? {
        if let Some(InputShape::Range(range)) = build.shapes.get(&input.name) {
            let (kept, range) = input_range(&plan.name, &input, range)?;
            fixed.insert(input.name, kept);
            profile.extend(range);
            continue;
        }
        let shape = input_shape(plan, size, &input)?;
        let mut kept: Vec<Option<usize>> = shape.iter().copied().map(Some).collect();
        if build.max_batch > build.batch && input.shape.first() == Some(&None) {
            let dims = |batch: usize| -> Vec<i64> {
                let dims = std::iter::once(batch).chain(shape.iter().skip(1).copied());
                dims.map(|dim| i64::try_from(dim).unwrap_or(i64::MAX)).collect()
            };
            let (min, opt, max) = (dims(1), dims(build.batch), dims(build.max_batch));
            profile.push(ShapeRange { name: input.name.clone(), min, opt, max });
            kept[0] = None;
        }
        fixed.insert(input.name, kept);
    }
    if let Some(name) = build.shapes.keys().find(|name| !fixed.contains_key(*name)) {
        let names: Vec<&String> = fixed.keys().collect();
        bail!("{}: the recipe fixes the shape of `{name}`, the model's inputs are {names:?}", plan.name);
    }
    model.fix_shapes(&fixed)?;
    Ok(profile)
}

/// The fixed shape of an input: from the recipe or the model, with the recipe's batch and the images' `size`.
fn input_shape(plan: &Plan, size: Option<[u32; 2]>, input: &TensorSpec) -> anyhow::Result<Vec<usize>> {
    let given = match plan.build.shapes.get(&input.name) {
        Some(InputShape::Fixed(dims)) => dims.as_slice(),
        _ => &[],
    };
    let mut shape = Vec::new();
    let [rows, columns] = pixel_axes(&input.shape).unwrap_or([2, 3]);
    for (axis, dim) in input.shape.iter().enumerate() {
        let given = given.get(axis).and_then(|dim| usize::try_from(*dim).ok());
        let pixels = size.and_then(|[height, width]| match axis {
            axis if axis == rows => usize::try_from(height).ok(),
            axis if axis == columns => usize::try_from(width).ok(),
            _ => None,
        });
        let Some(size) = given.or(*dim).or(if axis == 0 { Some(plan.build.batch) } else { pixels }) else {
            let shape = vec!["1"; input.shape.len()].join(", ");
            bail!(
                Diagnostic::new(format!("{}: dimension {axis} of input `{}` is dynamic", plan.name, input.name))
                    .with_help(format!(
                        "fix it in the recipe, e.g. build: {{ shapes: {{ {}: [{shape}] }} }}",
                        input.name
                    ))
            );
        };
        shape.push(size);
    }
    Ok(shape)
}

/// Applies a recipe's shape range to an input; returns the profile of its dynamic dimensions, if there are any.
fn input_range(
    recipe: &str,
    input: &TensorSpec,
    InputRange { min, opt, max }: &InputRange,
) -> anyhow::Result<(Vec<Option<usize>>, Option<ShapeRange>)> {
    let rank = input.shape.len();
    anyhow::ensure!(
        min.len() == rank,
        "{recipe}: input `{}` has {rank} dimensions, the recipe's range {}",
        input.name,
        min.len()
    );
    let fixed = |(least, most): (&u32, &u32)| (least == most).then(|| usize::try_from(*most).unwrap_or(usize::MAX));
    let kept: Vec<Option<usize>> = min.iter().zip(max).map(fixed).collect();
    let dims = |dims: &[u32]| dims.iter().copied().map(i64::from).collect();
    let range = ShapeRange { name: input.name.clone(), min: dims(min), opt: dims(opt), max: dims(max) };
    let is_open = kept.contains(&None);
    Ok((kept, is_open.then_some(range)))
}

/// The builder settings that do not depend on the kind of model.
pub(super) fn builder_options(build: &BuildPlan) -> BuildOptions {
    BuildOptions {
        workspace_bytes: build.workspace_mib.map(|mib| u64::from(mib) << 20),
        optimization_level: build.optimization_level,
        compute_capabilities: build.compute_capabilities.clone(),
        flags: BuilderFlags { tf32: build.tf32, ..BuilderFlags::default() },
        ..BuildOptions::default()
    }
}

/// How a TensorRT version chooses the types of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Typing {
    /// From the graph, strongly typed: TensorRT 9 and later, RTX. TensorRT 9 and 10 could also do without.
    Strong,
    /// By itself, if float16 is permitted, bound by precisions set on layers: TensorRT 8.
    Permitted { fp16: bool },
}

impl Typing {
    pub(super) fn new(plan: &Plan, version: Version, dtype: DType) -> anyhow::Result<Self> {
        match dtype {
            _ if version.family == Family::Rtx || version.major >= 9 => Ok(Typing::Strong),
            DType::Float16 => Ok(Typing::Permitted { fp16: true }),
            DType::BFloat16 => {
                let what = Diagnostic::new(format!("{}: {version} has no bfloat16", plan.name));
                bail!(what.with_help("use `precision: fp16`"))
            }
            _ => Ok(Typing::Permitted { fp16: false }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe;

    #[test]
    fn types_are_bound_from_tensorrt_9_on() {
        let text = "version: 1\nname: m\nkind: onnx\nsource: { path: m.onnx }\n";
        let path = Path::new("m.yaml");
        let plan = Plan::new(path, &recipe::parse(path, text).unwrap());
        let typing = |family, major, dtype| Typing::new(&plan, Version { family, major, minor: 5, patch: 0 }, dtype);
        for dtype in [DType::Float32, DType::Float16, DType::BFloat16] {
            for (family, major) in [(Family::Rtx, 1), (Family::Enterprise, 9), (Family::Enterprise, 10)] {
                assert_eq!(typing(family, major, dtype).unwrap(), Typing::Strong);
            }
        }
        let old = |dtype| typing(Family::Enterprise, 8, dtype);
        assert_eq!(old(DType::Float32).unwrap(), Typing::Permitted { fp16: false });
        assert_eq!(old(DType::Float16).unwrap(), Typing::Permitted { fp16: true });
        let error = old(DType::BFloat16).unwrap_err().to_string();
        assert_eq!(error, "m: TensorRT 8.5.0 has no bfloat16\n  hint: use `precision: fp16`");
    }
}
