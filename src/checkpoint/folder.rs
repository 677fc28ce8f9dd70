//! Chooses the files of a folder that are a model, by their names alone, so that it works before gigabytes are
//! downloaded: finds the weights among copies of them, and says what a folder contains instead of readable weights.

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::adapter::Adapter;
use super::gguf_beside::gguf_models;
use super::{Checkpoint, CheckpointError, read_json};
use crate::diagnostic::Diagnostic;

/// Parts of file names that mark a second copy of the weights in another type (`from_pretrained(variant=…)`).
const VARIANTS: &[&str] =
    &["fp16", "fp32", "bf16", "float16", "float32", "bfloat16", "int8", "8bit", "4bit", "ema", "non_ema"];

const END: &str = ".safetensors";
/// Hint for converting other formats.
const HELP: &str = "from_pretrained(…).save_pretrained(…) of transformers writes safetensors";

/// File name endings of other formats, and what a folder with such files is.
const OTHERS: &[(&str, &str)] = &[
    (
        ".bin",
        "PyTorch .bin checkpoints are not read; most repositories have a safetensors version, on another branch \
         (`revision: refs/pr/…`) or beside them",
    ),
    (".pth", "PyTorch checkpoints (.pth) are not read here"),
    (".pt", "PyTorch checkpoints (.pt) are not read here"),
    (".h5", "TensorFlow's checkpoints are not read"),
    (".msgpack", "Flax's checkpoints are not read"),
    (".ckpt", "training checkpoints are not read"),
    (".nemo", "NeMo's archives are not read"),
    (".npz", "MLX's and NumPy's archives are not read"),
    (".onnx", "ONNX files are no checkpoints: take the repository they were exported from"),
];

/// The file part of a name.
fn last(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// The folder part of a name.
fn folder_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Whether the name is an adapter's, which is no model.
fn is_adapter(name: &str) -> bool {
    last(name).starts_with("adapter_model")
}

/// Whether the name is that of weights under Mistral's own tensor names. If `model*.safetensors` exists as well, that
/// is the same model under transformers' names.
fn is_consolidated(name: &str) -> bool {
    last(name).starts_with("consolidated")
}

/// Splits off shard number and variant: "model" of "model-00001-of-00002.safetensors", and its variant.
fn stem_of(name: &str) -> (&str, Option<&str>) {
    let body = last(name).trim_end_matches(END);
    let without_number = |body: &str| -> Option<usize> {
        let (rest, count) = body.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        (is_number(count) && is_number(number)).then_some(stem.len())
    };
    let whole = without_number(body).map_or(body, |end| &body[..end]);
    match whole.rsplit_once('.') {
        Some((stem, variant)) if VARIANTS.contains(&variant) => (stem, Some(variant)),
        // Some write it last: "model-00001-of-00002.fp16.safetensors".
        _ => match body.rsplit_once('.') {
            Some((numbered, variant)) if VARIANTS.contains(&variant) => {
                (without_number(numbered).map_or(numbered, |end| &numbered[..end]), Some(variant))
            }
            _ => (whole, None),
        },
    }
}

/// The files among `names` that contain a model's weights as safetensors: those of the uppermost folder that has any,
/// without adapters, Mistral's second copy and copies in other types. If a folder has an index, that decides later
/// which of them count.
pub fn weight_files<'a>(names: &[&'a str]) -> Result<Vec<&'a str>, Diagnostic> {
    let all: Vec<&str> = names.iter().copied().filter(|name| name.ends_with(END) && !is_adapter(name)).collect();
    let depth = |name: &str| name.matches('/').count();
    let Some(least) = all.iter().map(|name| depth(name)).min() else { return Err(without(names)) };
    let all: Vec<&str> = all.into_iter().filter(|name| depth(name) == least).collect();
    let folder = folder_of(all[0]);
    if let Some(other) = all.iter().find(|name| folder_of(name) != folder) {
        return Err(which(all[0], other).with_help("name its files with `files:`, or its folder with `path:`"));
    }
    let all: Vec<&str> = all.into_iter().filter(|name| !is_consolidated(name)).collect();
    if all.is_empty() {
        let only = "only consolidated.safetensors: Mistral's own form, whose tensors have other names than transformers' and are \
                    not read";
        return Err(Diagnostic::new(only).with_help(
            "take a repository that has model*.safetensors too, or convert it with transformers' \
             convert_mistral_weights_to_hf.py",
        ));
    }
    // As from_pretrained chooses: the usual name first, then whatever is of no variant.
    let plain: Vec<&str> = all.iter().copied().filter(|name| stem_of(name).1.is_none()).collect();
    if !plain.is_empty() {
        let models: Vec<&str> = plain.iter().copied().filter(|name| stem_of(name).0.starts_with("model")).collect();
        return Ok(if models.is_empty() { plain } else { models });
    }
    let variant = stem_of(all[0]).1;
    match all.iter().find(|name| stem_of(name).1 != variant) {
        None => Ok(all),
        Some(other) => Err(which(all[0], other).with_help("name its files with `files:`")),
    }
}

fn which(one: &str, other: &str) -> Diagnostic {
    Diagnostic::new(format!("which of these is the model? {one}, {other}"))
}

/// Why files without weights are no model.
fn without(names: &[&str]) -> Diagnostic {
    let none = "no .safetensors and no .gguf file";
    if names.iter().any(|name| last(name) == "adapter_config.json" || is_adapter(name)) {
        return Adapter::default().message();
    }
    let ggufs: Vec<&str> = names.iter().copied().filter(|name| name.ends_with(".gguf")).collect();
    if !ggufs.is_empty() {
        let mut ggufs = gguf_models(&ggufs);
        ggufs.truncate(8);
        let there = Diagnostic::new(format!("{none} was asked for, but there are {}", ggufs.join(", ")));
        return there.with_help("name one with `file:`");
    }
    let found = OTHERS.iter().find(|(end, _)| names.iter().any(|name| name.ends_with(*end)));
    match found {
        Some((_, what)) => Diagnostic::new(format!("{none}: {what}")).with_help(HELP),
        None => Diagnostic::new(none).with_help("fetch the weights too; the whole repository makes a checkpoint"),
    }
}

impl Checkpoint {
    /// Opens the weights among a folder's files, with the configuration beside them.
    pub(super) fn open_folder(paths: &[PathBuf]) -> Result<Self, CheckpointError> {
        let adapter = paths.iter().find(|path| path.file_name().is_some_and(|name| name == "adapter_config.json"));
        let chosen = choose(paths).or_else(|error| match adapter {
            Some(path) => Err(CheckpointError::new(path, Adapter::read(path)?.message())),
            None => Err(error),
        })?;
        let folder = chosen.first().and_then(|path| path.parent()).unwrap_or(Path::new("."));
        let config = beside(paths, folder, "config.json")
            .ok_or_else(|| CheckpointError::new(folder, "config.json is missing: it says what the tensors mean"))?;
        let shards = match indexed(paths, folder)? {
            named if named.is_empty() => chosen.iter().map(|path| path.to_path_buf()).collect(),
            named => named,
        };
        let mut checkpoint = Self::open_files(config, &shards)?;
        if let Some(path) = adapter {
            let base = Adapter::read(path)?.base().map_or_else(String::new, |base| format!(" (for {base})"));
            checkpoint.notes.push(format!("{}: the adapter{base} beside the model is not applied", path.display()));
        }
        Ok(checkpoint)
    }
}

/// The files that an index in `folder` names; empty without an index. Other files are a second copy of the weights.
fn indexed(paths: &[PathBuf], folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let is_index = |path: &&PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        path.parent() == Some(folder) && name.ends_with(".safetensors.index.json") && !is_consolidated(&name)
    };
    // "model.safetensors.index.json" is the shortest; variants have their name in it.
    let index = paths.iter().filter(is_index).min_by_key(|path| path.as_os_str().len());
    let Some(index) = index.map(|path| read_json(path)).transpose()? else { return Ok(Vec::new()) };
    let map = index.get("weight_map").and_then(Value::as_object);
    let mut names: Vec<&str> = map.into_iter().flatten().filter_map(|(_, file)| file.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let found = names.iter().map(|name| {
        let here = paths.iter().find(|path| **path == folder.join(name)).cloned();
        here.ok_or_else(|| {
            let message = format!("the index names {name}, which is not here");
            CheckpointError::new(folder, message).with_help("fetch the whole checkpoint")
        })
    });
    found.collect()
}

/// The file `wanted` that belongs to weights in `folder`: the one in the same folder, or in the nearest folder above.
pub(super) fn beside<'a>(paths: &'a [PathBuf], folder: &Path, wanted: &str) -> Option<&'a PathBuf> {
    let normal = |path: &Path| path.components().filter(|part| *part != Component::CurDir).count();
    let named = paths.iter().filter(|path| path.file_name().is_some_and(|name| name == wanted));
    let above = named.filter(|path| path.parent().is_some_and(|parent| folder.starts_with(parent)));
    above.max_by_key(|path| normal(path))
}

/// Applies [`weight_files`] to paths.
pub(super) fn choose(paths: &[PathBuf]) -> Result<Vec<&PathBuf>, CheckpointError> {
    let folder = || paths.first().and_then(|path| path.parent()).unwrap_or(Path::new("."));
    // A name that is no text cannot be one of those that count.
    let named: Vec<(&str, &PathBuf)> = paths.iter().filter_map(|path| Some((path.to_str()?, path))).collect();
    let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
    let chosen = weight_files(&names).map_err(|message| CheckpointError::new(folder(), message))?;
    Ok(named.into_iter().filter(|(name, _)| chosen.contains(name)).map(|(_, path)| path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_are_told_from_their_copies() {
        type Case<'a> = (&'a [&'a str], Result<&'a [&'a str], &'a str>);
        let cases: [Case<'_>; 18] = [
            (&["config.json", "model.safetensors"], Ok(&["model.safetensors"])),
            (&["model.safetensors", "model.fp16.safetensors"], Ok(&["model.safetensors"])),
            (&["model.fp16.safetensors", "config.json"], Ok(&["model.fp16.safetensors"])),
            (&["model.fp16.safetensors", "model.bf16.safetensors"], Err("which of these")),
            (
                &[
                    "model.bf16-00001-of-00002.safetensors",
                    "model-00001-of-00002.safetensors",
                    "model-00002-of-00002.safetensors",
                ],
                Ok(&["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
            ),
            (&["model-00001-of-00001.fp16.safetensors", "model.safetensors"], Ok(&["model.safetensors"])),
            (&["model.safetensors", "consolidated.safetensors"], Ok(&["model.safetensors"])),
            (&["consolidated.safetensors", "params.json"], Err("Mistral's own form")),
            (&["consolidated-00001-of-00002.safetensors"], Err("Mistral's own form")),
            (&["gptq_model-4bit-128g.safetensors", "config.json"], Ok(&["gptq_model-4bit-128g.safetensors"])),
            (&["gptq_model-4bit-128g.safetensors", "model.safetensors"], Ok(&["model.safetensors"])),
            (&["Bielik-v2.3.safetensors"], Ok(&["Bielik-v2.3.safetensors"])),
            (&["model.safetensors", "onnx/model.safetensors"], Ok(&["model.safetensors"])),
            (&["a/model.safetensors", "b/model.safetensors"], Err("which of these")),
            (&["model.safetensors", "adapter_model.safetensors", "adapter_config.json"], Ok(&["model.safetensors"])),
            (&["adapter_model.safetensors", "adapter_config.json"], Err("an adapter for a model")),
            (&["pytorch_model-00001-of-00002.bin", "config.json"], Err(".bin checkpoints are not read")),
            (&["tf_model.h5", "config.json"], Err("TensorFlow's")),
        ];
        for (names, expected) in cases {
            match (weight_files(names), expected) {
                (Ok(have), Ok(want)) => assert_eq!(have, want, "{names:?}"),
                (Err(have), Err(want)) => {
                    assert!(have.message.contains(want) && have.help.is_some(), "{names:?}: {have}")
                }
                (have, want) => panic!("{names:?}: {have:?}, not {want:?}"),
            }
        }
    }

    #[test]
    fn a_configuration_belongs_to_the_weights_beside_it() {
        let paths = ["m/1_Pooling/config.json", "m/config.json", "m/weights/model.safetensors"].map(PathBuf::from);
        assert_eq!(beside(&paths, Path::new("m"), "config.json"), Some(&paths[1]));
        assert_eq!(beside(&paths, Path::new("m/weights"), "config.json"), Some(&paths[1]));
        assert_eq!(beside(&paths, Path::new("m/1_Pooling"), "config.json"), Some(&paths[0]));
        assert_eq!(beside(&paths, Path::new("n"), "config.json"), None);
    }
}
