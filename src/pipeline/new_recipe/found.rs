//! Finds the model among the files of a folder or repository, by their names and its configuration.

use serde_json::Value;

use crate::checkpoint::{PartName, gguf_models};
use crate::convert;
use crate::convert::vision::classifier_families;
use crate::diagnostic::Diagnostic;
use crate::memory::format_bytes;
use crate::spec::Kind;

/// What files are a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LocatedModel {
    /// All of them: a checkpoint of transformers.
    Whole(Kind),
    /// One of them; of a GGUF in parts the first.
    One(Kind, String),
}

/// A file's name, and its size where somebody asks before it is here.
#[derive(Debug, Clone, Copy)]
pub(super) struct NamedFile<'a> {
    pub(super) name: &'a str,
    pub(super) size: Option<u64>,
}

/// Kind of a model in one file, by the file's name. An ONNX file may be a YOLO's.
pub(super) fn kind_of(name: &str) -> Option<Kind> {
    let (_, end) = name.rsplit_once('.')?;
    match end.to_ascii_lowercase().as_str() {
        "gguf" => Some(Kind::Llm),
        "pt" => Some(Kind::Yolo),
        "onnx" => Some(Kind::Onnx),
        _ => None,
    }
}

/// Finds the model among `files`. `config` reads the config.json, if there is one, and `budget` is the memory that one of several
/// GGUFs may take; `None` takes none of several.
pub(super) fn find(
    files: &[NamedFile<'_>],
    config: impl FnOnce() -> anyhow::Result<Value>,
    budget: Option<u64>,
) -> anyhow::Result<LocatedModel> {
    let ends =
        |end: &str| files.iter().filter(|file| file.name.ends_with(end)).map(|file| file.name).collect::<Vec<_>>();
    let weights = ends(".safetensors");
    if !weights.is_empty() && files.iter().any(|file| file.name == "config.json") {
        return Ok(LocatedModel::Whole(checkpoint_kind(&config()?)?));
    }
    let ggufs = ends(".gguf");
    if !ggufs.is_empty() {
        return Ok(LocatedModel::One(Kind::Llm, gguf(files, &gguf_models(&ggufs), budget)?));
    }
    for (end, kind) in [(".pt", Kind::Yolo), (".onnx", Kind::Onnx)] {
        match &ends(end)[..] {
            [] => {}
            [one] => return Ok(LocatedModel::One(kind, (*one).to_owned())),
            several => return Err(which(several).into()),
        }
    }
    // Weights of other formats, adapters and the like: those who read checkpoints know what to say of them.
    const KNOWN: [&str; 9] =
        [".safetensors", ".bin", ".pth", ".h5", ".msgpack", ".ckpt", ".nemo", ".npz", "config.json"];
    if KNOWN.iter().any(|end| !ends(end).is_empty()) {
        return Ok(LocatedModel::Whole(Kind::Llm));
    }
    let what = Diagnostic::new("holds no model: no .safetensors with a config.json, no .gguf, .pt or .onnx file");
    Err(what.with_help("name the file or folder that is the model").into())
}

/// The kind of a checkpoint of transformers, by its config.json.
fn checkpoint_kind(config: &Value) -> Result<Kind, Diagnostic> {
    let model = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let made = config.get("architectures").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let classifies = made.into_iter().any(|name| name.contains("ImageClassification"));
    let families = classifier_families();
    if families.contains(&model) {
        return Ok(Kind::Classifier);
    }
    if classifies {
        let what = Diagnostic::new(format!("model_type `{}` is not supported as a classifier", shown(model)));
        let these = families.join(", ");
        return Err(
            what.with_help(format!("these are: {these}; anything else can be exported to ONNX and built from that"))
        );
    }
    if !model.is_empty() && convert::families().iter().all(|(name, _)| *name != model) {
        let what = Diagnostic::new(format!("model_type `{}` is not supported", shown(model)));
        let llms: Vec<&str> = convert::families().into_iter().map(|(name, _)| name).collect();
        let (llms, families) = (llms.join(", "), families.join(", "));
        return Err(what.with_help(format!("these are: {llms} as language models, {families} as classifiers")));
    }
    Ok(Kind::Llm)
}

/// A word of a stranger's file.
fn shown(word: &str) -> String {
    crate::log::printable(&word.chars().take(60).collect::<String>()).into_owned()
}

fn which(names: &[&str]) -> Diagnostic {
    let some = names.iter().take(16).copied().collect::<Vec<_>>().join(", ");
    let more = if names.len() > 16 { ", …" } else { "" };
    let what = Diagnostic::new(format!("which of these is the model? {some}{more}"));
    what.with_help(format!(
        "name it: FOLDER/{0}, or of a hub hub:OWNER/NAME/{0}",
        names.first().copied().unwrap_or("FILE")
    ))
}

/// Encodings in the names of GGUF files, in the order in which they are taken: what llama.cpp and Ollama take by default, then
/// its neighbours, then floats. Those with fewer than 4 bits are not read.
const ENCODINGS: [&str; 12] =
    ["Q4_K_M", "Q4_K_S", "Q4_K", "Q5_K_M", "Q5_K_S", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "BF16", "F16"];

/// The GGUF to take of `models`: the only one, or the first by its encoding that fits `budget`.
fn gguf(files: &[NamedFile<'_>], models: &[&str], budget: Option<u64>) -> Result<String, Diagnostic> {
    let is_one = |name: &str, other: &str| {
        let parts = PartName::of(name).zip(PartName::of(other));
        name == other || parts.is_some_and(|(part, other)| part.is_beside(&other))
    };
    let first = models.first().copied().unwrap_or_default();
    let size = |name: &str| {
        let of = files.iter().filter(|file| is_one(file.name, name)).filter_map(|file| file.size);
        of.fold(0, u64::saturating_add)
    };
    if models.iter().all(|name| is_one(name, first)) {
        return match budget.filter(|budget| size(first) > *budget) {
            Some(budget) => Err(too_large(first, size(first), budget)),
            None => Ok(first_part(first)),
        };
    }
    let Some(budget) = budget else { return Err(which(models)) };
    let of = |encoding: &str| models.iter().copied().find(|name| has_word(name, encoding));
    let known: Vec<&str> = ENCODINGS.iter().filter_map(|encoding| of(encoding)).collect();
    if known.is_empty() {
        return Err(which(models));
    }
    match known.iter().find(|name| size(name) <= budget) {
        Some(name) => Ok(first_part(name)),
        None => {
            let least = known.iter().copied().min_by_key(|name| size(name)).unwrap_or_default();
            Err(too_large(least, size(least), budget))
        }
    }
}

/// Whether a name has these letters between others that are none of a word.
fn has_word(name: &str, word: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let is_apart = |c: Option<char>| c.is_none_or(|c| !(c.is_ascii_alphanumeric() || c == '_'));
    name.match_indices(word)
        .any(|(at, _)| is_apart(name[..at].chars().next_back()) && is_apart(name[at + word.len()..].chars().next()))
}

fn first_part(name: &str) -> String {
    PartName::of(name).and_then(|part| part.all().next()).unwrap_or_else(|| name.to_owned())
}

fn too_large(name: &str, size: u64, budget: u64) -> Diagnostic {
    let what = format!(
        "{name} is too large for this machine: it has {}, and {} of memory may be taken",
        format_bytes(size),
        format_bytes(budget)
    );
    Diagnostic::new(what).with_help("take a smaller model, or end what else takes memory, and try again")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(names: &[(&str, u64)], config: Value, budget: Option<u64>) -> Result<LocatedModel, String> {
        let files: Vec<NamedFile<'_>> =
            names.iter().map(|(name, size)| NamedFile { name, size: Some(*size) }).collect();
        find(&files, || Ok(config), budget).map_err(|error| error.to_string())
    }

    fn one(kind: Kind, name: &str) -> LocatedModel {
        LocatedModel::One(kind, name.to_owned())
    }

    #[test]
    fn names_tell_the_model() {
        let weights = ("model.safetensors", 9);
        let config = ("config.json", 1);
        let whole = |values: Value| found(&[weights, config, ("README.md", 1)], values, None);
        assert_eq!(whole(json!({"model_type": "qwen3"})), Ok(LocatedModel::Whole(Kind::Llm)));
        let vit = json!({"model_type": "vit", "architectures": ["ViTForImageClassification"]});
        assert_eq!(whole(vit), Ok(LocatedModel::Whole(Kind::Classifier)));
        let llama = || json!({"model_type": "llama"});
        for (names, want) in [
            (&[("yolo12s.pt", 9), ("README.md", 1)][..], one(Kind::Yolo, "yolo12s.pt")),
            (&[("m.onnx", 9), ("m.onnx_data", 9)], one(Kind::Onnx, "m.onnx")),
            (&[("m-Q2_K.gguf", 1)], one(Kind::Llm, "m-Q2_K.gguf")),
            (&[("m.gguf", 9), ("mmproj-m.gguf", 9), config], one(Kind::Llm, "m.gguf")),
            (&[("m-00002-of-00002.gguf", 1), ("m-00001-of-00002.gguf", 1)], one(Kind::Llm, "m-00001-of-00002.gguf")),
            (&[weights, config, ("m.gguf", 9), ("best.pt", 9)], LocatedModel::Whole(Kind::Llm)),
            // What others say of it is better.
            (&[("pytorch_model.bin", 9), config], LocatedModel::Whole(Kind::Llm)),
            (&[("adapter_model.safetensors", 9), ("adapter_config.json", 1)], LocatedModel::Whole(Kind::Llm)),
        ] {
            assert_eq!(found(names, llama(), None), Ok(want), "{names:?}");
        }
    }

    #[test]
    fn what_cannot_be_told_is_asked() {
        let weights = [("model.safetensors", 9), ("config.json", 1)];
        for (names, config, said) in [
            (&[][..], json!({}), "holds no model"),
            (&[("README.md", 1), (".gitattributes", 1)], json!({}), "holds no model"),
            (
                &[("a.pt", 1), ("b.pt", 1)],
                json!({}),
                "which of these is the model? a.pt, b.pt\n  hint: name it: FOLDER/a.pt",
            ),
            (&[("a.onnx", 1), ("b.onnx", 1)], json!({}), "hub:OWNER/NAME/a.onnx"),
            (&[("a-Q4_0.gguf", 1), ("a-Q8_0.gguf", 1)], json!({}), "which of these"),
            (&weights, json!({"model_type": "mamba"}), "`mamba` is not supported\n  hint: these are: llama, mistral,"),
            (
                &weights,
                json!({"model_type": "mobilevit", "architectures": ["MobileViTForImageClassification"]}),
                "`mobilevit` is not supported as a classifier\n  hint: these are: vit,",
            ),
        ] {
            let told = found(names, config, None).unwrap_err();
            assert!(told.contains(said), "{names:?}: {told}");
        }
    }

    #[test]
    fn one_gguf_of_several_fits() {
        let names = [
            ("Bielik-Q2_K.gguf", 2),
            ("Bielik-IQ4_XS.gguf", 3),
            ("Bielik-Q4_K_M.gguf", 4),
            ("Bielik.Q6_K.gguf", 6),
            ("Bielik-Q8_0.gguf", 8),
            ("q4_0/Bielik-00001-of-00002.gguf", 9),
            ("q4_0/Bielik-00002-of-00002.gguf", 9),
            ("imatrix.gguf", 1),
        ];
        for (from, budget, want) in [
            (0, 100, Ok("Bielik-Q4_K_M.gguf")),
            (3, 100, Ok("Bielik.Q6_K.gguf")),
            (4, 100, Ok("q4_0/Bielik-00001-of-00002.gguf")),
            (4, 17, Ok("Bielik-Q8_0.gguf")),
            (0, 3, Err("Bielik-Q4_K_M.gguf is too large for this machine")),
        ] {
            let found = found(&names[from..], json!({}), Some(budget));
            match (found, want) {
                (Ok(found), Ok(want)) => assert_eq!(found, one(Kind::Llm, want), "{from} {budget}"),
                (Err(told), Err(said)) => assert!(told.contains(said), "{told}"),
                (found, want) => panic!("{found:?} instead of {want:?}"),
            }
        }
        // The only one is taken whatever it is called, or refused by its size.
        let only = [("model.gguf", 5)];
        assert_eq!(found(&only, json!({}), Some(5)), Ok(one(Kind::Llm, "model.gguf")));
        assert!(found(&only, json!({}), Some(4)).unwrap_err().contains("too large"));
    }
}
