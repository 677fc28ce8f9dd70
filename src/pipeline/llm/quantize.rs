//! Quantises a checkpoint's layers into the engine directory, in the format of compressed-tensors (`pack-quantized`),
//! which the runtime and other servers read. Embedding, output matrix and vectors keep their precision.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use half::f16;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::calibrate::{self, Divisor, Scales};
use super::{LlmTarget, OpenedSource};
use crate::artifact::about;
use crate::checkpoint::{Checkpoint, Planned, View, read_json, write_safetensors};
use crate::convert::{Part, Scheme, Transformer};
use crate::diagnostic::Diagnostic;
use crate::llm::CpuExecutor;
use crate::llm::text::Text;
use crate::manifest::Quality;
use crate::manifest::layout::WEIGHTS;
use crate::pipeline::Context;
use crate::progress::Event;
use crate::recipe::Plan;
use crate::spec::LlmRecord;
use crate::tensor::DType;
use crate::verify;

/// Group sizes that the runtime supports for packed weights, largest first.
const GROUPS: [usize; 3] = [128, 64, 32];
/// Name of the file with the quantised weights.
const FILE: &str = "model.safetensors";

/// The scheme that a plan asks for, with a group size that divides the inputs of every matrix.
pub(super) fn scheme(plan: &Plan, source: &OpenedSource) -> anyhow::Result<Option<Scheme>> {
    let model = &source.model;
    let Some(bits) = plan.build.precision.bits() else { return Ok(None) };
    for part in matrices(model) {
        if source.checkpoint.tensor(&part.tensor)?.is_packed() {
            bail!(
                Diagnostic::new(format!("{}: `{}` is quantised already", plan.name, part.tensor))
                    .with_help("leave out `precision`, or take a checkpoint in float16 or bfloat16")
            );
        }
    }
    let fits = |group: usize| matrices(model).all(|part| part.shape[1].is_multiple_of(group));
    let group = match plan.build.group_size {
        Some(group) if fits(group) => Some(group),
        Some(_) => None,
        None => GROUPS.into_iter().find(|group| fits(*group)),
    };
    let Some(group) = group else {
        let sizes: BTreeSet<usize> = matrices(model).map(|part| part.shape[1]).collect();
        let sizes = sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let (wanted, help) = match plan.build.group_size {
            Some(group) => (format!("group_size {group} does not divide"), "leave out `group_size`, or use fp16"),
            None => ("none of the group sizes 128, 64 and 32 divides".to_owned(), "use fp16"),
        };
        let message = format!("{}: {wanted} all of the model's input sizes ({sizes})", plan.name);
        bail!(Diagnostic::new(message).with_help(help))
    };
    // A zero point saves four bits much error and eight bits none.
    Ok(Some(Scheme { bits, group, symmetric: bits == 8 }))
}

/// The matrices of the layers.
fn matrices(model: &Transformer) -> impl Iterator<Item = Part> {
    let weights = (0..model.layers.len()).flat_map(|index| model.layer_weights(index));
    weights.filter(|weight| weight.role.is_matrix()).flat_map(|weight| weight.parts)
}

/// All other tensors of the model.
fn others(model: &Transformer) -> Vec<Part> {
    let weights = (0..model.layers.len()).flat_map(|index| model.layer_weights(index));
    let vectors = weights.filter(|weight| !weight.role.is_matrix()).flat_map(|weight| weight.parts);
    let mut parts: Vec<Part> = vectors.chain([model.embedding(), model.final_norm()]).collect();
    if !model.tied {
        parts.push(model.output_matrix());
    }
    parts
}

/// A quantised matrix.
struct QuantisedMatrix {
    words: Vec<u8>,
    scales: Vec<u8>,
    zeros: Vec<u8>,
    /// Sum of squares of the rounding errors, and of the weights.
    lost: f64,
    whole: f64,
}

/// Number of integers of `bits` in a 32-bit word.
fn in_word(bits: u32) -> usize {
    (32 / bits) as usize
}

/// Packs integers of `bits` into 32-bit words, the first in the lowest bits.
fn pack(quants: &[u8], bits: u32) -> Vec<u8> {
    let word = |some: &[u8]| some.iter().rev().fold(0_u32, |word, q| word << bits | u32::from(*q));
    quants.chunks(in_word(bits)).flat_map(|some| word(some).to_le_bytes()).collect()
}

/// Quantises a matrix, after multiplying its columns and dividing its rows by the AWQ scales, if there are any.
fn quantize(view: &View<'_>, scheme: Scheme, columns_by: Option<&[f32]>, rows_by: Option<&[f32]>) -> QuantisedMatrix {
    let (rows, columns) = (view.rows(), view.columns());
    let groups = columns / scheme.group;
    let done: Vec<_> = (0..rows)
        .into_par_iter()
        .map(|row| {
            let mut values = vec![0.0; columns];
            view.read_row(row, &mut values);
            let of_row = rows_by.map_or(1.0, |by| by[row]);
            let by = |at: usize| columns_by.map_or(1.0, |by| by[at]) / of_row;
            values.iter_mut().enumerate().for_each(|(at, value)| *value *= by(at));
            let rounded = scheme.row(&values);
            let (mut lost, mut whole) = (0.0, 0.0);
            for (at, value) in values.iter().enumerate() {
                let by = f64::from(by(at));
                let error = f64::from(rounded.value(at) - value) / by;
                lost += error * error;
                whole += f64::from(*value) / by * f64::from(*value) / by;
            }
            (pack(&rounded.quants, scheme.bits), rounded, lost, whole)
        })
        .collect();
    let count = in_word(scheme.bits);
    // Words of zero points run down the outputs.
    let zeros = (0..rows.div_ceil(count)).flat_map(|word| (0..groups).map(move |group| (word, group)));
    let zeros = zeros.flat_map(|(word, group)| {
        let zeros: Vec<u8> = done[word * count..].iter().take(count).map(|row| row.1.zeros[group]).collect();
        pack(&zeros, scheme.bits)
    });
    QuantisedMatrix {
        zeros: zeros.collect(),
        words: done.iter().flat_map(|row| row.0.iter().copied()).collect(),
        scales: done.iter().flat_map(|row| &row.1.scales).flat_map(|scale| scale.to_le_bytes()).collect(),
        lost: done.iter().map(|row| row.2).sum(),
        whole: done.iter().map(|row| row.3).sum(),
    }
}

/// Type of a tensor that is not quantised: its own, or float16 for GGUF blocks.
fn kept_type(view: &View<'_>) -> DType {
    view.encoding.dtype().unwrap_or(DType::Float16)
}

/// The bytes of a tensor that is not quantised, in [`kept_type`].
fn kept(view: &View<'_>) -> Vec<u8> {
    if view.encoding.dtype().is_some() {
        return view.ordered().into_owned();
    }
    let mut values = vec![0.0; view.rows() * view.columns()];
    view.read(0, &mut values);
    values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()
}

/// The bytes of a vector divided by AWQ scales, in float32.
fn divided(view: &View<'_>, divisor: &Divisor) -> Vec<u8> {
    let mut values = vec![0.0; view.columns()];
    view.read(0, &mut values);
    let values = values.iter().zip(&divisor.by).map(|(value, by)| (value + divisor.offset) / by - divisor.offset);
    values.flat_map(f32::to_le_bytes).collect()
}

/// The tensors to write, and the part of the model that each is made from.
fn planned(
    checkpoint: &Checkpoint,
    model: &Transformer,
    scheme: Scheme,
    scales: &Scales,
) -> anyhow::Result<(Vec<Planned>, Vec<Part>)> {
    let (mut planned, mut filled) = (Vec::new(), Vec::new());
    let mut plan = |part: &Part, name: String, dtype, shape: &[usize], size: usize| {
        let bytes = shape.iter().product::<usize>() * size;
        planned.push(Planned { name, dtype, shape: shape.to_vec(), bytes });
        filled.push(part.clone());
    };
    let count = in_word(scheme.bits);
    for part in others(model) {
        let view = checkpoint.tensor(&part.tensor)?;
        // What is divided keeps its digits.
        let dtype = if scales.rows(&part.tensor).is_some() { DType::Float32 } else { kept_type(&view) };
        let name = match dtype {
            DType::Float32 => "F32",
            DType::BFloat16 => "BF16",
            _ => "F16",
        };
        plan(&part, part.tensor.clone(), name, &part.shape, dtype.size());
    }
    for part in matrices(model) {
        let stem = part.tensor.trim_end_matches(".weight");
        let (rows, columns) = (part.shape[0], part.shape[1]);
        let groups = columns / scheme.group;
        plan(&part, format!("{stem}.weight_packed"), "I32", &[rows, columns.div_ceil(count)], 4);
        plan(&part, format!("{stem}.weight_scale"), "F16", &[rows, groups], 2);
        plan(&part, format!("{stem}.weight_shape"), "I64", &[2], 8);
        if !scheme.symmetric {
            plan(&part, format!("{stem}.weight_zero_point"), "I32", &[rows.div_ceil(count), groups], 4);
        }
    }
    Ok((planned, filled))
}

/// Writes the quantised weights into `staged`; returns the file's name below `weights/`.
pub(super) fn write(
    target: &LlmTarget,
    scheme: Scheme,
    staged: &Path,
    context: &Context,
) -> anyhow::Result<Vec<String>> {
    let (checkpoint, model): (&Checkpoint, _) = (&target.source.checkpoint, &target.source.model);
    let folder = staged.join(WEIGHTS);
    fs::create_dir_all(&folder).map_err(about(&folder))?;
    let scales = calibrate::scales(target, scheme, staged)?;
    let (planned, filled) = planned(checkpoint, model, scheme, &scales)?;
    let path = folder.join(FILE);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&path)?);
    let name = format!("quantising to {} bits", scheme.bits);
    let total = planned.len() as u64;
    context.progress.event(Event::Phase { name: &name, steps: total });
    let (mut lost, mut whole) = (0.0, 0.0);
    // The parts of the matrix at hand, by the ends of their names.
    let mut at_hand: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    let written = write_safetensors(&mut out, &planned, |index| {
        context.progress.event(Event::Step { phase: &name, done: index as u64 });
        let view = checkpoint.tensor(&filled[index].tensor).map_err(std::io::Error::other)?;
        let end = planned[index].name.rsplit('.').next().unwrap_or_default();
        if end == "weight_packed" {
            let tensor = &filled[index].tensor;
            let rows = scales.rows(tensor).map(|divisor| divisor.by.as_slice());
            let packed = quantize(&view, scheme, scales.columns(tensor), rows);
            lost += packed.lost;
            whole += packed.whole;
            let shape = filled[index].shape.iter().flat_map(|size| (*size as u64).to_le_bytes()).collect();
            at_hand = BTreeMap::from([
                ("weight_scale", packed.scales),
                ("weight_shape", shape),
                ("weight_zero_point", packed.zeros),
            ]);
            return Ok(packed.words);
        }
        if let Some(bytes) = at_hand.remove(end) {
            return Ok(bytes);
        }
        Ok(scales.rows(&filled[index].tensor).map_or_else(|| kept(&view), |divisor| divided(&view, divisor)))
    });
    context.progress.event(Event::PhaseDone { name: &name });
    written.with_context(|| format!("cannot write {}", path.display()))?;
    out.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    let text = format!(
        "{}: layers in {} bits, groups of {}; rounding error {:.1} % of the weights (root mean square)",
        target.plan.name,
        scheme.bits,
        scheme.group,
        100.0 * (lost / whole).sqrt()
    );
    context.progress.event(Event::Stage(&text));
    Ok(vec![FILE.to_owned()])
}

/// Adds the packing format to the directory's config.json.
pub(super) fn describe(scheme: Scheme, staged: &Path) -> anyhow::Result<()> {
    let path = staged.join("config.json");
    let mut config = read_json(&path)?;
    let weights = json!({
        "num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric,
        "strategy": "group", "group_size": scheme.group,
    });
    let group = json!({ "targets": ["Linear"], "weights": weights, "input_activations": null });
    config["quantization_config"] = json!({
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": { "group_0": group }, "ignore": ["lm_head"],
    });
    // Its number tells transformers how the floats are to be read, which stayed as they were.
    if config.get("torch_dtype").is_none_or(Value::is_null) {
        config["torch_dtype"] = json!("float16");
    }
    let mut text = serde_json::to_string_pretty(&config)?;
    text.push('\n');
    Ok(fs::write(&path, text).map_err(about(&path))?)
}

/// Measures the quality loss of weights that were quantised here or by others, against the float checkpoint.
pub(super) fn measure_quality(target: &LlmTarget, record: &LlmRecord, staged: &Path) -> anyhow::Result<Quality> {
    let OpenedSource { model, checkpoint, .. } = target.reference.as_ref().unwrap_or(&target.source);
    if model.vocab_size != target.source.model.vocab_size {
        let what = format!(
            "{}: the reference of `verify` has {} tokens, the model {}",
            target.plan.name, model.vocab_size, target.source.model.vocab_size
        );
        bail!(Diagnostic::new(what).with_help("it must be the checkpoint the model was made of"));
    }
    let text = Text::open(staged)?;
    let longest = record.shapes.max_len;
    let exact = Transformer { kv_type: None, ..model.clone() };
    let mut reference = CpuExecutor::new(exact, Arc::clone(checkpoint), 1, longest)?;
    let (model, checkpoint) = crate::llm::model::checkpoint(staged, record)?;
    let mut quantised = CpuExecutor::new(model, checkpoint, 1, longest)?;
    let (divergence_limit, ratio_limit) = target.plan.verify.quality;
    let found = verify::quality(&text, &mut reference, &mut quantised, longest)?;
    Ok(Quality { divergence_limit, ratio_limit, ..found })
}
