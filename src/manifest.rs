//! `manifest.json`: what an engine directory contains, how it was built, and the hash of every file in it.
//!
//! A document type without a runtime; [`crate::engine_dir`] opens and runs what it describes. `kind` decides which
//! fields exist (`contents.rs`); `layout.rs` has the file names. Format 1, in which these fields were optional, is
//! still read.

mod contents;
pub mod layout;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::artifact::{about, is_contained, sha256, write_file};
use crate::diagnostic::{Diagnose, Diagnostic};
use crate::spec::{DeviceInfo, Precision, Task, Version};
use layout::{FILE, REPORT_FILE};

pub use contents::{EngineContents, GraphEngine};

/// Format of the manifests that are written.
pub const FORMAT: u32 = 2;
/// Oldest format that is read.
const OLDEST_FORMAT: u32 = 1;
/// Largest manifest in bytes; anything larger is something else.
const SIZE_LIMIT: u64 = 4 << 20;

/// Why a directory is not a valid engine directory.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct ManifestError {
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong, and the hint.
    pub message: Diagnostic,
}

impl Diagnose for ManifestError {
    fn diagnostic(&self) -> Diagnostic {
        self.message.clone().at(self.path.display())
    }
}

/// Returns a file's SHA-256 in hexadecimal, by reading the file or from remembered hashes.
pub type Hasher<'a> = &'a mut dyn FnMut(&Path) -> io::Result<String>;

/// Hash and length of one file of the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct FileRecord {
    /// SHA-256 in hexadecimal.
    pub sha256: String,
    /// Length in bytes.
    pub bytes: u64,
}

/// Measurements of the build.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct BuildRecord {
    /// Wall time of TensorRT's build in seconds.
    pub seconds: f64,
    /// Largest resident memory of the build process in bytes.
    pub peak_memory_bytes: u64,
    /// Number of tactics that TensorRT skipped, mostly for lack of memory.
    pub skipped_tactics: u64,
    /// TensorRT's warnings, without repetitions.
    pub warnings: Vec<String>,
}

/// How the engine is verified.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct VerifyRecord {
    /// Number of random inputs.
    pub seeds: u32,
    /// Images to compare on, relative to the directory.
    pub images: Vec<String>,
    /// Tensors to compare on: for each item a `.npy` file per input, relative to the directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Vec<String>>,
    /// Prompts to compare on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
    /// Largest allowed max|engine - reference| / max|reference|; for a language model the largest mean Kullback-Leibler
    /// divergence in nats per token.
    pub tolerance: f64,
    /// The reference that the engine was compared with when it was built; `None` if nothing could execute it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<String>,
}

/// Quality loss of a quantised language model; measured by `verify::quality`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct Quality {
    /// Number of tokens compared.
    pub tokens: usize,
    /// Mean KL(checkpoint || quantised) in nats per token.
    pub divergence: f64,
    /// Largest allowed divergence in nats per token.
    pub divergence_limit: f64,
    /// Perplexity of the quantised model: exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Perplexity of the checkpoint on the same text.
    pub reference_perplexity: f64,
    /// Largest allowed ratio of the quantised model's perplexity to the checkpoint's.
    pub ratio_limit: f64,
}

/// The content of manifest.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct Manifest {
    /// Format of the manifest.
    pub format: u32,
    /// Name of the engine directory.
    pub name: String,
    /// The models and engines in the directory, by its kind.
    #[serde(flatten)]
    pub contents: EngineContents,
    /// Program that built it: "watus-build VERSION".
    pub tool: String,
    /// Everything the engine depends on; a difference in any part means a rebuild.
    pub key: Key,
    /// TensorRT version that built it.
    pub tensorrt: Version,
    /// GPU that it was built on, if there was one.
    pub device: Option<DeviceInfo>,
    /// Jetson Linux release, on a Jetson.
    pub l4t: Option<String>,
    /// Arithmetic of the engine.
    pub precision: Precision,
    /// Whether fp32 layers may use TF32.
    pub tf32: bool,
    /// Where the model came from.
    pub source: String,
    /// Path of the recipe file on the machine that built it; `None` for recipes made in code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
    /// How it is verified.
    pub verify: VerifyRecord,
    /// Measurements of the build.
    pub build: BuildRecord,
    /// Every file except the manifest and `verify.json`, which `verify` rewrites.
    pub files: BTreeMap<String, FileRecord>,
}

/// The one field that manifests of every format have.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct ManifestFormat {
    format: u64,
}

/// What is wrong with a manifest, and where. What depends on its kind is read last, from memory: mistakes in it are given the end
/// of the text for a place, which says nothing.
fn mistake(text: &str, error: &serde_json::Error) -> String {
    let read = text.trim_end();
    let (line, column) = (1 + read.matches('\n').count(), read.len() - read.rfind('\n').map_or(0, |at| at + 1));
    let told = error.to_string();
    if !error.is_data() || (error.line(), error.column()) != (line, column) {
        return told;
    }
    let alone = contents::mistake(text).map(|error| error.to_string());
    let end = format!(" at line {line} column {column}");
    alone.unwrap_or_else(|| told.strip_suffix(&end).unwrap_or(&told).to_owned())
}

/// The parts that an engine depends on, by name, each a short text or a hash.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(pub BTreeMap<String, String>);

impl Key {
    /// Adds a part as text.
    pub fn text(&mut self, part: &str, value: impl Into<String>) {
        self.0.insert(part.to_owned(), value.into());
    }

    /// Adds a part by its hash, if it is too long to print.
    pub fn hashed(&mut self, part: &str, value: &[u8]) {
        self.text(part, &sha256(value)[..16]);
    }

    /// The parts that changed since `old`, in words; `None` if none did.
    pub fn difference(&self, old: &Key) -> Option<String> {
        let parts: Vec<String> = self
            .0
            .iter()
            .filter(|(part, value)| old.0.get(*part) != Some(value))
            .map(|(part, value)| match old.0.get(part) {
                Some(before) if before.len() != 16 => format!("{part} changed ({before} -> {value})"),
                _ => format!("{part} changed"),
            })
            .collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

impl Manifest {
    /// Reads the manifest of an engine directory and checks its paths.
    pub fn load(folder: &Path) -> Result<Self, ManifestError> {
        let path = folder.join(FILE);
        let fail = |message: Diagnostic| ManifestError { path: path.clone(), message };
        let metadata = fs::metadata(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                fail("not found: this is no engine directory (`watus-build build` makes one)".into())
            }
            io::ErrorKind::NotADirectory => {
                let message = Diagnostic::new("not found: this is a file, and no engine directory");
                fail(message.with_help("give the folder that holds it"))
            }
            _ => fail(error.into()),
        })?;
        if metadata.len() > SIZE_LIMIT {
            return Err(fail("too long for a manifest".into()));
        }
        let text = crate::regular_file::read_text(&path, SIZE_LIMIT).map_err(|error| fail(error.into()))?;
        let damaged = |error: serde_json::Error| {
            fail(
                Diagnostic::new(format!("not a manifest: {}", mistake(&text, &error)))
                    .with_help("build the engine again: `watus-build build RECIPE`"),
            )
        };
        // First: another format need not have this one's fields.
        let ManifestFormat { format }: ManifestFormat = serde_json::from_str(&text).map_err(damaged)?;
        if !(u64::from(OLDEST_FORMAT)..=u64::from(FORMAT)).contains(&format) {
            let what = Diagnostic::new(format!("format {format} is not supported"));
            return Err(fail(what.with_help("build the engine again (or update watus-build)")));
        }
        let manifest: Self = serde_json::from_str(&text).map_err(damaged)?;
        match manifest.fault() {
            Some(fault) => Err(fail(fault.into())),
            None => Ok(manifest),
        }
    }

    /// The first inconsistency between fields, if there is one.
    fn fault(&self) -> Option<String> {
        // Names stand in lines that people read as what was proved.
        let graph = self.contents.graph();
        let tensors =
            graph.into_iter().flat_map(|graph| graph.inputs.iter().chain(&graph.outputs)).map(|spec| &spec.name);
        let device = self.device.iter().flat_map(|device| [&device.name, &device.compute_capability]);
        let told = [&self.name, &self.tool, &self.source].into_iter().chain(device).chain(&self.l4t);
        let told = told.chain(&self.recipe).chain(tensors);
        let controls = |text: &&String| text.chars().any(char::is_control);
        if let Some(text) = told.chain(self.files.keys()).find(controls) {
            return Some(format!("{text:?} holds a control character"));
        }
        if let EngineContents::Yolo { yolo, classifier, .. } = &self.contents
            && classifier.is_some() != (yolo.task == Task::Classify)
        {
            return Some("`classifier` belongs to a YOLO model that classifies, and to no other".to_owned());
        }
        let files = self.contents.files();
        let named = || files.iter().chain(&self.verify.images);
        if let Some(name) = named().chain(self.files.keys()).find(|name| !is_contained(name)) {
            return Some(format!("file name `{name}` leaves the directory"));
        }
        named().find(|name| !self.files.contains_key(*name)).map(|name| format!("`{name}` has no hash"))
    }

    /// Hashes every file below `folder` but the manifest and the verification report.
    pub fn record_files(&mut self, folder: &Path, hash: Hasher<'_>) -> io::Result<()> {
        self.files.clear();
        let mut pending = vec![folder.to_owned()];
        while let Some(current) = pending.pop() {
            for entry in fs::read_dir(&current).map_err(about(&current))? {
                let path = entry.map_err(about(&current))?.path();
                if path.is_dir() {
                    pending.push(path);
                    continue;
                }
                let name = path.strip_prefix(folder).map_err(io::Error::other)?.to_string_lossy().into_owned();
                if name != FILE && name != REPORT_FILE {
                    let sha256 = hash(&path).map_err(about(&path))?;
                    let bytes = fs::metadata(&path).map_err(about(&path))?.len();
                    let record = FileRecord { sha256, bytes };
                    self.files.insert(name, record);
                }
            }
        }
        Ok(())
    }

    /// Writes the manifest into `folder`.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        text.push('\n');
        let path = folder.join(FILE);
        write_file(&path, text.as_bytes()).map(drop).map_err(about(&path))
    }

    /// What is wrong with the first file that is missing or differs from its hash. Missing files for which `forgives` is
    /// true are passed over.
    pub fn damaged_file(
        &self,
        folder: &Path,
        hash: Hasher<'_>,
        forgives: &mut dyn FnMut(&str) -> bool,
    ) -> Option<String> {
        self.files.iter().find_map(|(name, record)| {
            let path = folder.join(name);
            match fs::metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && forgives(name) => None,
                Err(error) => Some(format!("{name}: {error}")),
                Ok(metadata) if metadata.len() != record.bytes => {
                    Some(format!("{name} has {} bytes, the manifest says {}", metadata.len(), record.bytes))
                }
                Ok(_) => match hash(&path) {
                    Ok(found) if found == record.sha256 => None,
                    Ok(_) => Some(format!("{name} does not match its sha256")),
                    Err(error) => Some(format!("{name}: {error}")),
                },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Kind;

    #[test]
    fn broken_manifests_say_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        for (text, said) in [
            ("{\"format\": 99}", "format 99 is not supported"),
            ("{\"format\": 99, \"name\": []}", "format 99 is not supported"),
            ("{}", "missing field `format`"),
            ("{\"format\": 0}", "format 0 is not supported"),
            ("{\"format\": 3}", "format 3 is not supported"),
            ("{\"format\": 1}", "missing field"),
            ("{\"format\": 2}", "missing field"),
            ("", "not a manifest"),
            ("[]", "invalid length 0, expected an object"),
            ("5", "invalid type: integer `5`, expected an object"),
            ("null", "invalid type: null, expected an object"),
            ("[2]", "invalid type: sequence, expected an object"),
        ] {
            fs::write(folder.path().join(FILE), text).unwrap();
            let error = Manifest::load(folder.path()).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("build the engine again"), "{text}: {error}");
        }
        let file = Manifest::load(&folder.path().join(FILE)).unwrap_err().to_string();
        assert!(file.contains("this is a file") && file.contains("give the folder that holds it"), "{file}");
    }

    /// A manifest of format 1 as version 0.1.0 wrote it (tests/data/engines/make.py).
    fn of_format_1(name: &str) -> serde_json::Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/engines/{name}.json"));
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    fn load(document: &serde_json::Value) -> Result<Manifest, ManifestError> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), document.to_string()).unwrap();
        Manifest::load(folder.path())
    }

    #[test]
    fn manifests_of_format_1_say_what_they_said() {
        for (name, kind, precision, files) in [
            ("onnx", Kind::Onnx, Precision::Fp32, &["onnx.engine", "model.onnx"][..]),
            ("classifier", Kind::Classifier, Precision::Fp32, &["classifier.engine", "model.onnx"]),
            ("yolo", Kind::Yolo, Precision::Fp16, &["yolo.engine", "model.onnx"]),
            ("yolo-cls", Kind::Yolo, Precision::Fp32, &["yolo-cls.engine", "model.onnx"]),
            ("llm", Kind::Llm, Precision::Fp16, &["weights/llama.gguf"]),
            ("llm-int8", Kind::Llm, Precision::Fp16, &["weights/qwen3.gguf"]),
        ] {
            let mut document = of_format_1(name);
            if name == "llm-int8" {
                // serde_json may miss the last of 17 digits.
                document["quality"]["perplexity"] = 189.5.into();
            }
            let manifest = load(&document).unwrap();
            assert_eq!((manifest.format, manifest.contents.kind(), manifest.precision), (1, kind, precision), "{name}");
            assert_eq!(manifest.contents.files(), files, "{name}");
            let contents = &manifest.contents;
            let found = (contents.graph().is_some(), contents.classifier().is_some(), contents.yolo().is_some());
            let expected = (kind != Kind::Llm, ["classifier", "yolo-cls"].contains(&name), kind == Kind::Yolo);
            assert_eq!(found, expected, "{name}");
            assert_eq!(contents.llm().is_some(), kind == Kind::Llm, "{name}");
            assert_eq!(contents.preprocess().is_some(), !["onnx", "llm", "llm-int8"].contains(&name), "{name}");
            // Nothing is lost on the way.
            let folder = tempfile::tempdir().unwrap();
            manifest.save(folder.path()).unwrap();
            let saved: serde_json::Value =
                serde_json::from_str(&fs::read_to_string(folder.path().join(FILE)).unwrap()).unwrap();
            assert_eq!(saved, document, "{name}");
            // Format 2 has the same fields.
            let mut written = document;
            written["format"] = FORMAT.into();
            assert_eq!(load(&written).unwrap(), Manifest { format: FORMAT, ..manifest }, "{name}");
        }
        let onnx = load(&of_format_1("onnx")).unwrap();
        let graph = onnx.contents.graph().unwrap();
        assert_eq!((graph.input_shapes(|range| &range.max), graph.tuned_batch()), (vec![vec![4, 4]], 2));
        let quality = load(&of_format_1("llm-int8")).unwrap().contents;
        assert!(matches!(quality, EngineContents::Llm { quality: Some(quality), .. } if quality.tokens > 0));
    }

    #[test]
    fn what_belongs_to_another_kind_is_told() {
        type Change = fn(&mut serde_json::Value);
        let cases: [(&str, Change, &str); 9] = [
            ("onnx", |manifest| manifest["kind"] = "owl".into(), "unknown variant `owl`"),
            ("onnx", |manifest| manifest["kind"] = "llm".into(), "missing field `llm`"),
            ("onnx", |manifest| manifest["precision"] = "fp8".into(), "unknown variant `fp8`"),
            ("llm", |manifest| manifest["llm"]["kv_type"] = "float16".into(), "unknown variant `float16`"),
            ("llm", |manifest| manifest["kind"] = "onnx".into(), "missing field `engine`"),
            ("yolo-cls", |manifest| manifest["classifier"] = serde_json::Value::Null, "that classifies"),
            ("yolo", |manifest| manifest["yolo"]["task"] = "classify".into(), "that classifies"),
            ("onnx", |manifest| manifest["model"] = "../model.onnx".into(), "leaves the directory"),
            ("llm", |manifest| manifest["llm"]["weights"][0] = "b.gguf".into(), "`weights/b.gguf` has no hash"),
        ];
        for (name, change, said) in cases {
            let mut document = of_format_1(name);
            change(&mut document);
            for format in [1, 2] {
                document["format"] = format.into();
                let error = load(&document).unwrap_err().to_string();
                assert!(error.contains(said), "{name}: {error}");
            }
        }
    }

    #[test]
    fn mistakes_are_told_with_their_line_or_without_any() {
        type Change = fn(&mut serde_json::Value);
        let cases: [(&str, Change, &str, &str); 7] = [
            ("yolo", |manifest| manifest["yolo"]["task"] = "owl".into(), "unknown variant `owl`", "\"task\": "),
            ("llm", |manifest| manifest["llm"]["max_input_len"] = "x".into(), "expected usize", "\"max_input_len\": "),
            ("onnx", |manifest| manifest["profile"] = "wide".into(), "expected a sequence", "\"profile\": "),
            ("onnx", |manifest| manifest["kind"] = "owl".into(), "unknown variant `owl`", "\"kind\": "),
            ("onnx", |manifest| manifest["tf32"] = "no".into(), "expected a boolean", "\"tf32\": "),
            ("yolo", |manifest| manifest["yolo"] = 5.into(), "integer `5`, expected an object", "\"yolo\": "),
            ("onnx", |manifest| manifest["kind"] = "llm".into(), "missing field `llm`", ""),
        ];
        for (name, change, said, field) in cases {
            let mut document = of_format_1(name);
            change(&mut document);
            let text = format!("{document:#}\n");
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(FILE), &text).unwrap();
            let error = Manifest::load(folder.path()).unwrap_err().message.message;
            let line = (1..).zip(text.lines()).find(|(_, line)| line.trim_start().starts_with(field));
            let place = format!(" at line {} ", line.unwrap().0);
            assert!(error.contains(said), "{name}: {error}");
            assert_eq!(error.contains(" at line "), !field.is_empty(), "{name}: {error}");
            assert!(field.is_empty() || error.contains(&place), "{name}: {error}, not{place}");
        }
    }

    #[test]
    fn key_differences_are_told() {
        let mut old = Key::default();
        old.text("tensorrt", "TensorRT 10.3.0");
        old.hashed("recipe", b"a");
        let mut new = old.clone();
        assert_eq!(new.difference(&old), None);
        new.text("tensorrt", "TensorRT 10.16.2");
        new.hashed("recipe", b"b");
        let told = new.difference(&old).unwrap();
        assert_eq!(told, "recipe changed, tensorrt changed (TensorRT 10.3.0 -> TensorRT 10.16.2)");
    }
}
