//! From a recipe's plan to what TensorRT is asked for, and the key that says whether the answer is still good.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::Prepared;
use crate::artifact::sha256_file;
use crate::backend::BackendError;
use crate::backend::isolated::{Isolated, ProofProcess};
use crate::backend::tensorrt::source::explained;
use crate::backend::tensorrt::{BuildOptions, BuilderFlags, Family, ShapeRange, Version};
use crate::manifest::{Hasher, Key, Manifest};
use crate::onnx::{Given, Model};
use crate::recipe::{InputRange, InputShape, InputValue, Plan, Precision};
use crate::tensor::TensorSpec;
use crate::vision::pixel_axes;
use crate::worker::Isolation;

/// Where a built engine and its judge run: in children where TensorRT's builder is in one too.
pub(super) fn runner(isolation: &Isolation) -> ProofProcess {
    match isolation {
        Isolation::InProcess => ProofProcess::InProcess,
        Isolation::Child(executable) => ProofProcess::Isolated(Isolated::new(executable.clone())),
    }
}

/// An error as the user can follow it: of the file the model was read from, which `staged` is a copy of and soon gone, and
/// of nodes by their names; of what could not be built first the reason.
pub(super) fn named(prepared: &Prepared, staged: &Path, error: BackendError) -> BackendError {
    let source = prepared.sources.first().map_or(prepared.model.path(), |path| path.as_path());
    let name = |message: String| {
        let message = message.replace(&*staged.to_string_lossy(), &source.to_string_lossy());
        prepared.built().name_nodes(&message)
    };
    match error {
        BackendError::Build(message) => {
            BackendError::Build(explained(prepared.built(), source, prepared.tensorrt, name(message)))
        }
        BackendError::Load(message) => BackendError::Load(name(message)),
        BackendError::Run(message) => BackendError::Run(name(message)),
        other => other,
    }
}

/// Makes constants of the inputs that the recipe gives values.
pub(super) fn give_values(plan: &Plan, model: &mut Model) -> anyhow::Result<()> {
    let given = |value: &InputValue| match value {
        InputValue::Truth(value) => Given::Wholes(vec![i64::from(*value)]),
        InputValue::Whole(value) => Given::Wholes(vec![*value]),
        InputValue::Float(value) => Given::Floats(vec![*value]),
        InputValue::Wholes(values) => Given::Wholes(values.clone()),
        InputValue::Floats(values) => Given::Floats(values.clone()),
    };
    let values: BTreeMap<String, Given> =
        plan.inputs.iter().map(|(name, value)| (name.clone(), given(value))).collect();
    Ok(model.give_values(&values)?)
}

/// Fixes the model's shapes, pictures being of `size`; what must stay dynamic comes back as a profile.
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

/// The one shape of an input: as the recipe or the model says, with the recipe's batch and the pictures' `size`.
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
            bail!(
                "{}: dimension {axis} of input `{}` is dynamic\n  hint: fix it in the recipe, e.g. build: {{ shapes: \
                 {{ {}: [{}] }} }}",
                plan.name,
                input.name,
                input.name,
                vec!["1"; input.shape.len()].join(", ")
            );
        };
        shape.push(size);
    }
    Ok(shape)
}

/// What a recipe's range fixes of an input, and the profile of the rest, if any is left.
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

/// The plan's settings as this TensorRT wants them.
pub(super) fn builder_options(plan: &Plan, version: Version, profile: Vec<ShapeRange>) -> anyhow::Result<BuildOptions> {
    let build = &plan.build;
    let mut options = BuildOptions {
        workspace_bytes: build.workspace_mib.map(|mib| u64::from(mib) << 20),
        optimization_level: build.optimization_level,
        compute_capabilities: build.compute_capabilities.clone(),
        flags: BuilderFlags { tf32: build.tf32, ..BuilderFlags::default() },
        detailed_profiling: true,
        profile,
        ..BuildOptions::default()
    };
    match build.precision {
        Precision::Fp32 => return Ok(options),
        Precision::Fp16 | Precision::Bf16 => {}
        Precision::Int8 | Precision::Int4 => bail!("{}: int8 and int4 are for language models", plan.name),
    }
    if typed(version) {
        // The graph says which types; see precision.rs.
        options.strongly_typed = true;
    } else if build.precision == Precision::Bf16 {
        bail!(
            "{}: {version} knows no bfloat16
  hint: use `precision: fp16`",
            plan.name
        );
    } else {
        (options.flags.fp16, options.flags.obey_precision_constraints) = (true, true);
    }
    Ok(options)
}

/// Whether this TensorRT takes types from the graph. TensorRT 8 takes a flag and precisions by layer; 9 and 10 could
/// take either.
pub(super) fn typed(version: Version) -> bool {
    version.family == Family::Rtx || version.major >= 9
}

/// The parts the engine depends on.
pub(super) fn key(prepared: &Prepared) -> anyhow::Result<Key> {
    let Prepared { plan, options, device, .. } = prepared;
    let mut sources = String::new();
    for file in &prepared.sources {
        sources.push_str(&sha256_file(file).with_context(|| format!("source {}", file.display()))?);
    }
    for (name, picture) in &prepared.pictures {
        sources.push_str(name);
        sources.push_str(&sha256_file(picture).with_context(|| format!("picture {}", picture.display()))?);
    }
    for file in prepared.own_inputs.iter().flatten() {
        sources.push_str(&sha256_file(file).with_context(|| format!("input {}", file.display()))?);
    }
    let mut key = Key::default();
    key.text("tool", env!("CARGO_PKG_VERSION"));
    key.text("tensorrt", prepared.tensorrt.to_string());
    key.text(
        "gpu",
        device.as_ref().map_or("none".to_owned(), |device| format!("{} {}", device.name, device.compute_capability)),
    );
    key.hashed("source", sources.as_bytes());
    if !plan.inputs.is_empty() {
        key.hashed("inputs", &serde_json::to_vec(&plan.inputs)?);
    }
    key.hashed("options", &serde_json::to_vec(options)?);
    // The plan without paths: moving a recipe changes nothing.
    let verify = (plan.verify.seeds, plan.verify.tolerance);
    key.hashed(
        "recipe",
        &serde_json::to_vec(&(&plan.kind, &plan.build, &prepared.classifier, &prepared.yolo, verify))?,
    );
    Ok(key)
}

/// Why the engine directory must be built (again); `None` when it is current and undamaged.
pub(super) fn staleness(folder: &Path, key: &Key, hash: Hasher<'_>) -> Option<String> {
    if !folder.exists() {
        return Some("it was never built here".to_owned());
    }
    match Manifest::load(folder) {
        Err(error) => Some(error.to_string()),
        Ok(manifest) => key.difference(&manifest.key).or_else(|| manifest.damage(folder, hash)),
    }
}
