//! `manifest.json`: what an engine directory holds, how it came to be, and the hash of every file in it.

mod check;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::artifact::{about, is_contained, sha256, write_file};
use crate::backend::tensorrt::device::DeviceInfo;
use crate::backend::tensorrt::{ShapeRange, Version};
use crate::llm;
use crate::tensor::TensorSpec;
use crate::vision::{Classifier, Preprocess, Yolo};

pub use check::Damage;

/// Layout version of the directory.
pub const FORMAT: u32 = 1;
/// The manifest's file name.
pub const FILE: &str = "manifest.json";
/// The verification report's file name; see [`crate::verify`].
pub const REPORT_FILE: &str = "verify.json";
/// A manifest is a page; larger files are something else.
const SIZE_LIMIT: u64 = 4 << 20;

/// Why a directory is not an engine directory.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct ManifestError {
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong, and what to do.
    pub message: String,
}

/// Gives a file's SHA-256: by reading it, or by remembering that it did.
pub type Hasher<'a> = &'a mut dyn FnMut(&Path) -> io::Result<String>;

/// One file of the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// SHA-256 in hexadecimal.
    pub sha256: String,
    /// Length.
    pub bytes: u64,
}

/// What the build itself was like.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BuildRecord {
    /// Wall time of TensorRT's build.
    pub seconds: f64,
    /// Largest resident memory of the build process.
    pub peak_memory_bytes: u64,
    /// Tactics TensorRT left out, mostly for lack of memory.
    pub skipped_tactics: u64,
    /// TensorRT's warnings, each once.
    pub warnings: Vec<String>,
}

/// How the engine is to be proved.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyRecord {
    /// Random inputs.
    pub seeds: u32,
    /// Pictures, relative to the directory.
    pub images: Vec<String>,
    /// Own inputs: for each try a `.npy` file for every input, relative to the directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Vec<String>>,
    /// Prompts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
    /// Allowed max|engine - reference| / max|reference|; of a language model, mean divergence.
    pub tolerance: f64,
    /// Which reference judged its numbers when it was built; `None` where nothing could execute it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<String>,
}

/// What quantising a language model has cost; see `verify::quality`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Tokens compared.
    pub tokens: usize,
    /// Mean KL(checkpoint || quantised) in nats a token.
    pub divergence: f64,
    /// The largest that passes.
    pub divergence_limit: f64,
    /// exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// The checkpoint's own.
    pub reference_perplexity: f64,
    /// The largest ratio of the two that passes.
    pub ratio_limit: f64,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout version.
    pub format: u32,
    /// The recipe's name.
    pub name: String,
    /// The recipe's kind.
    pub kind: String,
    /// "watus-build VERSION".
    pub tool: String,
    /// What the engine depends on; a difference in any part means a rebuild.
    pub key: Key,
    /// Who built it.
    pub tensorrt: Version,
    /// The GPU it was built on, if there was one.
    pub device: Option<DeviceInfo>,
    /// Jetson Linux release, on a Jetson.
    pub l4t: Option<String>,
    /// Arithmetic.
    pub precision: String,
    /// FP32 layers may round to TF32.
    pub tf32: bool,
    /// Engine file; empty for a language model, which has many.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub engine: String,
    /// ONNX model it was built from, with its final shapes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model: String,
    /// Where the model came from.
    pub source: String,
    /// Inputs in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<TensorSpec>,
    /// Outputs in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<TensorSpec>,
    /// Ranges of dynamic inputs; empty for static shapes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<ShapeRange>,
    /// For a classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classifier: Option<Classifier>,
    /// For a YOLO model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yolo: Option<Yolo>,
    /// Products that stay in float32 because the engine was not right without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub full_products: Vec<String>,
    /// For a language model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub llm: Option<llm::Record>,
    /// For a language model quantised by the build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
    /// How it is proved.
    pub verify: VerifyRecord,
    /// How the build went.
    pub build: BuildRecord,
    /// Every file but this one and `verify.json`, which `verify` rewrites.
    pub files: BTreeMap<String, FileRecord>,
}

/// What a manifest of any layout says.
#[derive(Deserialize)]
struct ManifestFormat {
    format: u64,
}

/// The parts an engine depends on, each a short text or a hash.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(pub BTreeMap<String, String>);

impl Key {
    /// Adds a part as it is.
    pub fn text(&mut self, part: &str, value: impl Into<String>) {
        self.0.insert(part.to_owned(), value.into());
    }

    /// Adds a part too long to print, by its hash.
    pub fn hashed(&mut self, part: &str, value: &[u8]) {
        self.text(part, &sha256(value)[..16]);
    }

    /// What changed since `old`, in words; `None` when nothing did.
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
        let fail = |message: String| ManifestError { path: path.clone(), message };
        let metadata = fs::metadata(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                fail("not found: this is no engine directory (`watus-build build` makes one)".to_owned())
            }
            _ => fail(error.to_string()),
        })?;
        if metadata.len() > SIZE_LIMIT {
            return Err(fail("too long for a manifest".to_owned()));
        }
        let text = crate::regular_file::read_text(&path, SIZE_LIMIT).map_err(|error| fail(error.to_string()))?;
        let damaged = |error: serde_json::Error| {
            fail(format!("not a manifest: {error}\n  hint: build the engine again: `watus-build build RECIPE`"))
        };
        // First: another layout need not have this one's fields.
        let ManifestFormat { format }: ManifestFormat = serde_json::from_str(&text).map_err(damaged)?;
        if format != u64::from(FORMAT) {
            return Err(fail(format!(
                "layout {format} is not supported\n  hint: build the engine again (or update watus-build)"
            )));
        }
        let manifest: Self = serde_json::from_str(&text).map_err(damaged)?;
        // Names stand in lines that people read as what was proved.
        let controls = |text: &&String| text.chars().any(char::is_control);
        let told = [&manifest.name, &manifest.kind, &manifest.tool, &manifest.source, &manifest.precision];
        let device = manifest.device.iter().flat_map(|device| [&device.name, &device.compute_capability]);
        let tensors = manifest.inputs.iter().chain(&manifest.outputs).map(|spec| &spec.name);
        let told = told.into_iter().chain(device).chain(&manifest.l4t).chain(tensors);
        if let Some(text) = told.chain(manifest.files.keys()).find(controls) {
            return Err(fail(format!("{text:?} holds a control character")));
        }
        let names = [&manifest.engine, &manifest.model].into_iter().filter(|name| !name.is_empty());
        if manifest.llm.is_none() && names.clone().count() != 2 {
            return Err(fail("engine or model is missing".to_owned()));
        }
        let weights = manifest.llm.iter().flat_map(|llm| &llm.weights);
        let weights: Vec<String> = weights.map(|name| format!("{}/{name}", llm::model::WEIGHTS)).collect();
        let names = names.chain(&manifest.verify.images).chain(&weights);
        for name in names.clone().chain(manifest.files.keys()) {
            if !is_contained(name) {
                return Err(fail(format!("file name `{name}` leaves the directory")));
            }
        }
        for name in names {
            if !manifest.files.contains_key(name) {
                return Err(fail(format!("`{name}` has no hash")));
            }
        }
        Ok(manifest)
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

    /// How pictures become this engine's input, if it takes pictures.
    pub fn preprocess(&self) -> Option<Preprocess> {
        let classifier = self.classifier.as_ref().map(|classifier| classifier.preprocess.clone());
        classifier.or_else(|| self.yolo.as_ref().map(Yolo::preprocess))
    }

    /// Shapes of the inputs, in their order: what the engine is tuned for, or an end of what it takes.
    pub fn input_shapes(&self, end: impl Fn(&ShapeRange) -> &[i64]) -> Vec<Vec<usize>> {
        let shape = |spec: &TensorSpec| match self.profile.iter().find(|range| range.name == spec.name) {
            Some(range) => end(range).iter().map(|dim| usize::try_from(*dim).unwrap_or(1)).collect(),
            None => spec.shape_with(1),
        };
        self.inputs.iter().map(shape).collect()
    }

    /// The batch it is tuned for, where the first dimension is the batch.
    pub fn tuned_batch(&self) -> usize {
        let tuned = self.profile.first().and_then(|range| range.opt.first().copied());
        tuned.and_then(|batch| usize::try_from(batch).ok()).unwrap_or(1)
    }

    /// Writes the manifest into `folder`.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        text.push('\n');
        let path = folder.join(FILE);
        write_file(&path, text.as_bytes()).map(drop).map_err(about(&path))
    }

    /// The first file that is missing, differs from its hash, or would be read though nobody proved it.
    pub fn damage(&self, folder: &Path, hash: Hasher<'_>) -> Option<String> {
        self.stranger(folder).or_else(|| self.damage_of(folder, hash, &mut |_| false))
    }

    /// The same, but for files whose absence `forgives`.
    fn damage_of(&self, folder: &Path, hash: Hasher<'_>, forgives: &mut dyn FnMut(&str) -> bool) -> Option<String> {
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

    #[test]
    fn broken_manifests_say_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        for (text, said) in [
            ("{\"format\": 99}", "layout 99 is not supported"),
            ("{\"format\": 99, \"name\": []}", "layout 99 is not supported"),
            ("{}", "missing field `format`"),
            ("{\"format\": 1}", "missing field"),
            ("", "not a manifest"),
        ] {
            fs::write(folder.path().join(FILE), text).unwrap();
            let error = Manifest::load(folder.path()).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("build the engine again"), "{text}: {error}");
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
