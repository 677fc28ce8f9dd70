//! Opens published checkpoints: safetensors folders and GGUF files, memory-mapped and never copied.
//!
//! From paths of fetched files to a [`Checkpoint`]: tensors by `transformers`' names, and the configuration in the
//! fields of config.json. `gguf_names.rs` and `gguf_config.rs` translate GGUF's own names and keys, so that later
//! stages do not know the format. All input is hostile until checked.
#![deny(clippy::as_conversions)]

mod adapter;
mod encoding;
mod folder;
mod gguf;
mod gguf_beside;
mod gguf_config;
mod gguf_judge;
mod gguf_keys;
mod gguf_lists;
mod gguf_names;
mod gguf_reader;
mod gguf_split;
mod head;
mod integers;
mod json;
mod mapped;
mod packed;
mod packing;
mod safetensors;
pub mod torch;
mod words;
mod writer;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

pub use adapter::Adapter;
pub use encoding::Encoding;
pub use folder::weight_files;
pub use gguf::{Gguf, MetadataValue};
pub use gguf_beside::{gguf_models, gguf_set_aside};
pub use gguf_config::{NORM_OFFSET, ROTARY_DIM};
pub use gguf_judge::Judgement;
pub use gguf_keys::ARCHITECTURES;
pub use gguf_lists::{Numbers, Texts};
pub use gguf_split::PartName;
pub use integers::{GroupOffset, Integers};
pub use mapped::Mapped;
pub use packing::{Packings, says_nothing};
pub use words::WordGrid;
pub use writer::{Planned, write_safetensors};

use crate::diagnostic::{Diagnose, Diagnostic};
use crate::regular_file;

/// An error in a checkpoint, with the file.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct CheckpointError {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong, and the hint.
    pub message: Diagnostic,
}

impl Diagnose for CheckpointError {
    fn diagnostic(&self) -> Diagnostic {
        self.message.clone().at(self.path.display())
    }
}

impl CheckpointError {
    /// An error in `path`.
    pub fn new(path: &Path, message: impl Into<Diagnostic>) -> Self {
        Self { path: path.to_owned(), message: message.into() }
    }

    /// Sets the hint.
    pub fn with_help(self, help: impl Into<String>) -> Self {
        Self { message: self.message.with_help(help), ..self }
    }
}

/// Location and type of a tensor.
#[derive(Debug, Clone)]
struct Entry {
    file: usize,
    offset: usize,
    bytes: usize,
    /// Dimensions, outermost first, as in `transformers`.
    shape: Vec<usize>,
    /// The encoding, or the name of an unsupported one.
    encoding: Result<Encoding, String>,
    /// Number of heads whose rows are stored in interleaved rotary order, as GGUF stores Llama's q and k; see
    /// [`View::read_row`].
    interleaved_heads: Option<usize>,
}

/// A tensor in a mapped file.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Name, for messages.
    pub name: &'a str,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Storage of the elements.
    pub encoding: Encoding,
    /// All bytes of the tensor.
    pub bytes: &'a [u8],
    /// Index of its file in [`Checkpoint::files`].
    pub file: usize,
    /// Offset in the file in bytes.
    pub offset: usize,
    interleaved_heads: Option<usize>,
    packed: Option<packed::PackedView<'a>>,
}

impl View<'_> {
    /// Number of rows: the product of all dimensions but the last. A vector is one row.
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// Number of elements in a row.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Whether rows are stored in the order in which they are read.
    pub fn is_in_order(&self) -> bool {
        self.interleaved_heads.is_none()
    }

    /// Whether it consists of integers packed by a quantisation package.
    pub fn is_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// The stored row that is row `row` of the tensor (of a bias, the element). llama.cpp stores each head's rotary
    /// halves (i, i + d/2) as neighbours (2i, 2i + 1) (`convert_hf_to_gguf.py`, `LlamaModel.permute`); this is the
    /// inverse.
    fn source(&self, row: usize) -> usize {
        let Some(heads) = self.interleaved_heads else { return row };
        let size = if self.is_vector() { self.columns() / heads } else { self.rows() / heads };
        let (head, within) = (row / size, row % size);
        let (half, index) = (within / (size / 2), within % (size / 2));
        head * size + 2 * index + half
    }

    fn is_vector(&self) -> bool {
        self.shape.len() < 2
    }

    /// Bytes of a row. A vector's elements are in stored order.
    pub fn row(&self, row: usize) -> &[u8] {
        let size = self.bytes.len() / self.rows();
        let row = if self.is_vector() { row } else { self.source(row) };
        &self.bytes[row * size..][..size]
    }

    /// All bytes in the order in which rows are read, of a tensor whose elements are single floats.
    pub fn ordered(&self) -> Cow<'_, [u8]> {
        if self.is_in_order() {
            return Cow::Borrowed(self.bytes);
        }
        let pieces = if self.is_vector() { self.columns() } else { self.rows() };
        let size = self.bytes.len() / pieces.max(1);
        Cow::Owned((0..pieces).flat_map(|at| &self.bytes[self.source(at) * size..][..size]).copied().collect())
    }

    /// Decodes a row to float32.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        match self.packed {
            Some(packed) => return packed.read(row, out),
            None => self.encoding.decode(self.row(row), out),
        }
        if self.is_vector() && !self.is_in_order() {
            let stored = out.to_vec();
            out.iter_mut().enumerate().for_each(|(at, out)| *out = stored[self.source(at)]);
        }
    }

    /// Decodes rows `first..` to float32 into `out`, as many as fit, on all cores.
    pub fn read(&self, first: usize, out: &mut [f32]) {
        if let Some(packed) = self.packed {
            return packed.read(first, out);
        }
        let columns = self.columns();
        out.par_chunks_mut(columns)
            .enumerate()
            .with_min_len(16)
            .for_each(|(index, out)| self.read_row(first + index, out));
    }
}

/// Tensors and configuration of a model.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<Mapped>,
    tensors: BTreeMap<String, Entry>,
    /// Packed matrices, by the name of the matrix they represent.
    packed: BTreeMap<String, packed::Packed>,
    /// Configuration in the fields of config.json, translated for a GGUF.
    pub config: Value,
    /// File that [`Checkpoint::config`] was read from.
    pub config_path: PathBuf,
    /// Metadata of a GGUF, which includes tokenizer and chat template.
    pub gguf: Option<Gguf>,
    /// A GGUF's own tensor names, by the translated ones.
    origins: BTreeMap<String, String>,
    /// Messages about the files for whoever builds the model.
    pub notes: Vec<String>,
}

/// Largest configuration in bytes.
const CONFIG_LIMIT: u64 = 16 << 20;

/// Reads a JSON file of at most 16 MB.
pub fn read_json(path: &Path) -> Result<Value, CheckpointError> {
    let text = regular_file::read_text(path, CONFIG_LIMIT).map_err(|error| CheckpointError::new(path, error))?;
    json::parse(&text).map_err(|error| CheckpointError::new(path, format!("not JSON: {error}")))
}

impl Checkpoint {
    /// Opens a checkpoint: one `.gguf` file or its parts, or `config.json` with `.safetensors` files.
    pub fn open(paths: &[PathBuf]) -> Result<Self, CheckpointError> {
        let with = |extension: &str| -> Vec<&PathBuf> {
            paths.iter().filter(|path| path.extension().is_some_and(|have| have == extension)).collect()
        };
        let folder = || paths.first().and_then(|path| path.parent()).unwrap_or(Path::new("."));
        // Blobs of an Ollama store have no extension; their first bytes tell.
        if let [path] = paths
            && (path.extension().is_none_or(|extension| extension != "safetensors") && Gguf::is_one(path))
        {
            return Self::open_gguf(&[path]);
        }
        let is_one = |files: &[&PathBuf]| files.len() == 1 || gguf_split::is_one_set(files);
        let (ggufs, aside) = gguf_beside::part(&with("gguf"), is_one);
        match (&ggufs[..], &with("safetensors")[..]) {
            (parts, []) if is_one(parts) => {
                let mut checkpoint = Self::open_gguf(parts)?;
                let names = aside.iter().filter_map(|path| path.file_name()?.to_str());
                checkpoint.notes.extend(gguf_set_aside(names));
                Ok(checkpoint)
            }
            ([], _) => Self::open_folder(paths),
            (several, _) => {
                let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
                let message = format!("which of these is the model? {}", names.join(", "));
                Err(CheckpointError::new(folder(), message).with_help("name one with `file:` or `files:`"))
            }
        }
    }

    /// Opens exactly these `.safetensors` files with the configuration `config`.
    pub fn open_files(config: &Path, shards: &[PathBuf]) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self {
            files: Vec::new(),
            tensors: BTreeMap::new(),
            packed: BTreeMap::new(),
            config: read_json(config)?,
            config_path: config.to_owned(),
            gguf: None,
            origins: BTreeMap::new(),
            notes: Vec::new(),
        };
        for shard in shards {
            let file = Mapped::open(shard)?;
            for (name, entry) in safetensors::entries(&file, checkpoint.files.len())? {
                if checkpoint.tensors.insert(name.clone(), entry).is_some() {
                    let error = CheckpointError::new(shard, format!("tensor `{name}` is in another file too"));
                    return Err(error.with_help("which of them is the model? Name its files with `files:`"));
                }
            }
            checkpoint.files.push(file);
        }
        let part = |entry: &Entry| checkpoint.part(entry);
        checkpoint.packed = packed::find(config, &checkpoint.config, &checkpoint.tensors, &part)?;
        Ok(checkpoint)
    }

    fn open_gguf(paths: &[&PathBuf]) -> Result<Self, CheckpointError> {
        let gguf_split::Parts { files, gguf, entries } = gguf_split::open(paths)?;
        let config_path = files.first().map(|file| file.path().to_owned()).unwrap_or_default();
        let translated = gguf_names::translate(&files, &gguf, entries)?;
        Ok(Self {
            files,
            tensors: translated.tensors,
            packed: BTreeMap::new(),
            config: translated.config,
            config_path,
            gguf: Some(gguf),
            origins: translated.origins,
            notes: translated.notes,
        })
    }

    /// The mapped files.
    pub fn files(&self) -> &[Mapped] {
        &self.files
    }

    /// Whether there is a tensor with this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.packed.contains_key(name)
    }

    /// Names of all tensors; for packed matrices those of the parts and of the matrix.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().chain(self.packed.keys()).map(String::as_str)
    }

    /// A tensor's name in the file itself.
    pub fn spelled<'a>(&'a self, name: &'a str) -> &'a str {
        self.origins.get(name).map_or(name, String::as_str)
    }

    /// Tensors in the files that are neither in `taken` nor parts of a packed matrix in it.
    pub fn others(&self, taken: &HashSet<String>) -> Vec<&str> {
        let matrices = self.packed.keys().filter(|name| taken.contains(*name));
        let parts = |name: &String| {
            let stem = name.trim_end_matches(".weight").to_owned();
            packed::PARTS.iter().map(move |part| format!("{stem}.{part}"))
        };
        let parts: HashSet<String> = matrices.flat_map(parts).collect();
        let names = self.tensors.keys().filter(|name| !taken.contains(*name) && !parts.contains(*name));
        names.map(String::as_str).collect()
    }

    /// Bytes of a tensor; `None` if they extend beyond the file.
    fn part(&self, entry: &Entry) -> Option<&[u8]> {
        self.files[entry.file].bytes().get(entry.offset..entry.offset.checked_add(entry.bytes)?)
    }

    /// A tensor; an error if its encoding is not supported.
    pub fn tensor(&self, name: &str) -> Result<View<'_>, CheckpointError> {
        if let Some((name, packed)) = self.packed.get_key_value(name) {
            let entry = packed.words();
            let view = packed.view(&|entry| self.part(entry)).ok_or_else(|| {
                let message = format!("tensor `{name}`: a part of it does not fill its shape; fetch it again");
                CheckpointError::new(self.files[entry.file].path(), message)
            })?;
            return Ok(View {
                name,
                shape: &packed.shape,
                encoding: packed.encoding(),
                bytes: self.part(entry).unwrap_or_default(),
                file: entry.file,
                offset: entry.offset,
                interleaved_heads: None,
                packed: Some(view),
            });
        }
        let Some((name, entry)) = self.tensors.get_key_value(name) else {
            let path = self.config_path.parent().filter(|_| self.gguf.is_none()).unwrap_or(&self.config_path);
            let error = CheckpointError::new(path, format!("tensor `{name}` is missing"));
            return Err(error.with_help("the checkpoint is incomplete or of another kind"));
        };
        let file = &self.files[entry.file];
        let fail = |message: String| CheckpointError::new(file.path(), format!("tensor `{name}`: {message}"));
        let encoding = entry.encoding.as_ref().map_err(|encoding| {
            fail(format!("elements of type {encoding} are not supported"))
                .with_help("take a version in float16 or bfloat16")
        })?;
        let bytes = self.part(entry).ok_or_else(|| fail("its data ends beyond the file; fetch it again".to_owned()))?;
        let elements = crate::tensor::element_count(&entry.shape).filter(|count| *count > 0);
        let columns = entry.shape.last().copied().unwrap_or(1);
        let expected = elements.and_then(|count| encoding.row_bytes(columns)?.checked_mul(count / columns));
        if expected != Some(bytes.len()) {
            return Err(fail(format!("shape {:?} of {encoding} does not fill {} bytes", entry.shape, bytes.len())));
        }
        Ok(View {
            name,
            shape: &entry.shape,
            encoding: *encoding,
            bytes,
            file: entry.file,
            offset: entry.offset,
            interleaved_heads: entry.interleaved_heads,
            packed: None,
        })
    }

    /// Number of heads whose rows the file stores in interleaved rotary order; see [`View`].
    pub fn interleaved_heads(&self, name: &str) -> Option<usize> {
        self.tensors.get(name)?.interleaved_heads
    }

    /// A tensor, which must have this shape.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<View<'_>, CheckpointError> {
        let view = self.tensor(name)?;
        if view.shape != shape {
            let file = self.files[view.file].path();
            let message = format!("tensor `{name}` has shape {:?}, the configuration asks for {shape:?}", view.shape);
            return Err(CheckpointError::new(file, message));
        }
        Ok(view)
    }
}
