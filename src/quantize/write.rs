//! Writes a checkpoint whose layers' matrices are quantised, as compressed-tensors has them (`pack-quantized`): matrix by matrix, so
//! that one is in memory. Embedding, output matrix and vectors keep their precision.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use anyhow::Context as _;
use half::f16;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::calibrate::{Divisor, Scales};
use super::{OriginalModel, Scheme};
use crate::artifact::about;
use crate::checkpoint::{Planned, View, WordGrid, read_json, write_safetensors};
use crate::convert::Part;
use crate::progress::{Event, Progress};
use crate::tensor::DType;

/// Name of the file with the quantised weights.
const FILE: &str = "model.safetensors";

/// A quantised matrix.
struct QuantisedMatrix {
    words: Vec<u8>,
    scales: Vec<u8>,
    zeros: Vec<u8>,
    /// Sum of squares of the rounding errors, and of the weights.
    lost: f64,
    whole: f64,
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
            let words = WordGrid::along_rows([1, columns], scheme.bits).pack(|_, column| rounded.quants[column]);
            (words, rounded, lost, whole)
        })
        .collect();
    QuantisedMatrix {
        // Words of zero points run down the outputs.
        zeros: WordGrid::along_columns([rows, groups], scheme.bits).pack(|row, group| done[row].1.zeros[group]),
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
fn planned(original: OriginalModel<'_>, scheme: Scheme, scales: &Scales) -> anyhow::Result<(Vec<Planned>, Vec<Part>)> {
    let (mut planned, mut filled) = (Vec::new(), Vec::new());
    let mut plan = |part: &Part, name: String, dtype, shape: &[usize], size: usize| {
        let bytes = shape.iter().product::<usize>() * size;
        planned.push(Planned { name, dtype, shape: shape.to_vec(), bytes });
        filled.push(part.clone());
    };
    for part in original.others() {
        let view = original.checkpoint.tensor(&part.tensor)?;
        // What is divided keeps its digits.
        let dtype = if scales.rows(&part.tensor).is_some() { DType::Float32 } else { kept_type(&view) };
        let name = match dtype {
            DType::Float32 => "F32",
            DType::BFloat16 => "BF16",
            _ => "F16",
        };
        plan(&part, part.tensor.clone(), name, &part.shape, dtype.size());
    }
    for part in original.matrices() {
        let stem = part.tensor.trim_end_matches(".weight");
        let (rows, columns) = (part.shape[0], part.shape[1]);
        let groups = columns / scheme.group;
        let words = WordGrid::along_rows([rows, columns], scheme.bits).shape();
        plan(&part, format!("{stem}.weight_packed"), "I32", &words, 4);
        plan(&part, format!("{stem}.weight_scale"), "F16", &[rows, groups], 2);
        plan(&part, format!("{stem}.weight_shape"), "I64", &[2], 8);
        if !scheme.symmetric {
            let words = WordGrid::along_columns([rows, groups], scheme.bits).shape();
            plan(&part, format!("{stem}.weight_zero_point"), "I32", &words, 4);
        }
    }
    Ok((planned, filled))
}

/// Writes the quantised weights into `folder`; returns their file's name.
pub fn write(
    original: OriginalModel<'_>,
    scheme: Scheme,
    scales: &Scales,
    folder: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<String> {
    fs::create_dir_all(folder).map_err(about(folder))?;
    let (planned, filled) = planned(original, scheme, scales)?;
    let path = folder.join(FILE);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&path)?);
    let name = format!("quantising to {} bits", scheme.bits);
    let total = planned.len() as u64;
    progress.event(Event::Phase { name: &name, steps: total });
    let (mut lost, mut whole) = (0.0, 0.0);
    // The parts of the matrix at hand, by the ends of their names.
    let mut at_hand: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    let written = write_safetensors(&mut out, &planned, |index| {
        progress.event(Event::Step { phase: &name, done: index as u64 });
        let view = original.checkpoint.tensor(&filled[index].tensor).map_err(std::io::Error::other)?;
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
    progress.event(Event::PhaseDone { name: &name });
    written.with_context(|| format!("cannot write {}", path.display()))?;
    out.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    let text = format!(
        "{}: layers in {} bits, groups of {}; rounding error {:.1} % of the weights (root mean square)",
        original.name,
        scheme.bits,
        scheme.group,
        100.0 * (lost / whole).sqrt()
    );
    progress.event(Event::Stage(&text));
    Ok(FILE.to_owned())
}

/// Adds the packing format to a folder's config.json.
pub fn describe(scheme: Scheme, folder: &Path) -> anyhow::Result<()> {
    let path = folder.join("config.json");
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
