//! Writes quantised weights as compressed-tensors has them (`pack-quantized`): a whole checkpoint whose layers' matrices are
//! quantised, with the output matrix (LM head) if that is wanted, or the output matrix alone, beside a checkpoint that stays as it
//! is. The embedding and vectors keep their precision: where output matrix and embedding are tied, the packed one is a copy.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::calibrate::Scales;
use super::weight_file::{RoundingLoss, WeightFile, WeightFiller};
use super::{OriginalModel, Scheme, Schemes};
use crate::artifact::about;
use crate::checkpoint::{read_json, write_safetensors};
use crate::progress::{Event, Progress};

/// Name of the file with the quantised weights.
const FILE: &str = "model.safetensors";

/// Fills and writes a file; returns the rounding losses by the matrices' names.
fn write_file(
    original: OriginalModel<'_>,
    (file, scales): (&WeightFile, &Scales),
    path: &Path,
    (phase, progress): (&str, &dyn Progress),
) -> anyhow::Result<Vec<(String, RoundingLoss)>> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(about(path))?);
    progress.event(Event::Phase { name: phase, steps: file.planned.len() as u64 });
    let mut filler = WeightFiller::new(original, scales);
    let written = write_safetensors(&mut out, &file.planned, |index, out| {
        progress.event(Event::Step { phase, done: index as u64 });
        filler.fill(file, index, out)
    });
    progress.event(Event::PhaseDone { name: phase });
    written.with_context(|| format!("cannot write {}", path.display()))?;
    out.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    Ok(filler.losses)
}

/// A scheme and what rounding by it has lost, for the user.
fn said(what: &str, scheme: Scheme, loss: RoundingLoss) -> String {
    let Scheme { bits, group, .. } = scheme;
    let percent = loss.percent();
    format!("{what} in {bits} bits, groups of {group}; rounding error {percent:.1} % of the weights (root mean square)")
}

/// Writes a checkpoint with quantised weights into `folder`; returns its file's name.
pub fn write(
    original: OriginalModel<'_>,
    schemes: Schemes,
    scales: &Scales,
    folder: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<String> {
    fs::create_dir_all(folder).map_err(about(folder))?;
    let model = original.model;
    let (mut file, head) = (WeightFile::default(), model.output_matrix());
    for part in original.others() {
        file.keep(original, &part, scales)?;
    }
    for part in original.matrices() {
        match schemes.layers {
            Some(scheme) => file.pack(&part.tensor, &part, scheme),
            None => file.keep(original, &part, scales)?,
        }
    }
    match schemes.head {
        Some(scheme) => file.pack(&model.output, &head, scheme),
        None if model.tied => {}
        None => file.keep(original, &head, scales)?,
    }
    let bits = schemes.layers.or(schemes.head).map_or(0, |scheme| scheme.bits);
    let phase = format!("quantising to {bits} bits");
    let losses = write_file(original, (&file, scales), &folder.join(FILE), (phase.as_str(), progress))?;
    let mut of_layers = RoundingLoss::default();
    let of_head = losses.iter().rfind(|(tensor, _)| *tensor == head.tensor).map(|(_, loss)| *loss);
    losses.iter().filter(|(tensor, _)| *tensor != head.tensor).for_each(|(_, loss)| of_layers.add(*loss));
    let layers = schemes.layers.map(|scheme| said("layers", scheme, of_layers));
    let head = schemes.head.zip(of_head).map(|(scheme, loss)| said("output matrix", scheme, loss));
    for text in layers.into_iter().chain(head) {
        progress.event(Event::Stage(&format!("{}: {text}", original.name)));
    }
    Ok(FILE.to_owned())
}

/// Writes the quantised output matrix alone into the file `path`.
pub fn write_head(
    original: OriginalModel<'_>,
    scheme: Scheme,
    path: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    let (mut file, scales) = (WeightFile::default(), Scales::default());
    file.pack(&original.model.output, &original.model.output_matrix(), scheme);
    let phase = format!("quantising the output matrix to {} bits", scheme.bits);
    let losses = write_file(original, (&file, &scales), path, (phase.as_str(), progress))?;
    for (_, loss) in losses {
        progress.event(Event::Stage(&format!("{}: {}", original.name, said("output matrix", scheme, loss))));
    }
    Ok(())
}

/// What compressed-tensors says of a scheme, and of the modules that it is for.
fn config_group(targets: &str, scheme: Scheme) -> Value {
    let weights = json!({
        "num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric,
        "strategy": "group", "group_size": scheme.group,
    });
    json!({ "targets": [targets], "weights": weights, "input_activations": null })
}

/// Adds the packing format to a folder's config.json.
pub fn describe(schemes: Schemes, folder: &Path) -> anyhow::Result<()> {
    let path = folder.join("config.json");
    let mut config = read_json(&path)?;
    let mut groups = serde_json::Map::new();
    if let Some(scheme) = schemes.layers {
        groups.insert("group_0".to_owned(), config_group("Linear", scheme));
    }
    // A name counts before a class of modules.
    if let Some(scheme) = schemes.head.filter(|_| schemes.head != schemes.layers) {
        groups.insert("group_1".to_owned(), config_group("re:.*lm_head$", scheme));
    }
    let ignore: &[&str] = if schemes.head.is_some() { &[] } else { &["lm_head"] };
    config["quantization_config"] = json!({
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": groups, "ignore": ignore,
    });
    if schemes.head.is_some() {
        // A packed one is its own, whatever it was made from.
        config["tie_word_embeddings"] = json!(false);
        if let Some(text) = config.get_mut("text_config").and_then(Value::as_object_mut) {
            text.insert("tie_word_embeddings".to_owned(), json!(false));
        }
    }
    // Its number tells transformers how the floats are to be read, which stayed as they were.
    if config.get("torch_dtype").is_none_or(Value::is_null) {
        config["torch_dtype"] = json!("float16");
    }
    let mut text = serde_json::to_string_pretty(&config)?;
    text.push('\n');
    Ok(fs::write(&path, text).map_err(about(&path))?)
}
