//! GGUF files: header, metadata, tensor directory (ggml, docs/gguf.md, versions 2 and 3, little endian).

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use super::encoding::Encoding;
use super::gguf_lists::{Numbers, Texts};
use super::gguf_reader::{Parsed, Reader, Scalar};
use super::mapped::Mapped;
use super::{CheckpointError, Entry};
use crate::diagnostic::Diagnostic;
use crate::regular_file;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum MetadataValue {
    Integer(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Numbers(Numbers),
    Texts(Texts),
}

/// Metadata of a GGUF file.
#[derive(Debug, Clone, Default)]
pub struct Gguf {
    /// Values by key, e.g. "llama.block_count".
    pub metadata: BTreeMap<String, MetadataValue>,
}

const MAGIC: &[u8; 4] = b"GGUF";
/// Part of every message about a truncated header.
pub(super) const SHORT: &str = "truncated";
/// Most tensors or keys; no model has more.
const COUNT_LIMIT: u64 = 1 << 16;
/// Largest header in bytes, metadata and tensor directory; vocabularies take 10 MB.
const HEADER_LIMIT: usize = 256 << 20;
/// The error for a big-endian file.
pub(super) fn big_endian() -> Diagnostic {
    Diagnostic::new("it is big-endian, made for machines like the s390x, and is not read").with_help(
        "take the little-endian file; or turn a copy of this one: `pip install gguf`, then `gguf-convert-endian FILE \
         little`",
    )
}
/// ggml's type number for strings in metadata (docs/gguf.md).
const TEXT: u32 = 8;
/// ggml's type number for lists in metadata (docs/gguf.md).
const LIST: u32 = 9;

impl Gguf {
    /// Whether a file begins with GGUF's magic.
    pub fn is_one(path: &Path) -> bool {
        let mut magic = [0; 4];
        regular_file::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && &magic == MAGIC
    }

    /// A string value.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key)? {
            MetadataValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// An integer value.
    pub fn integer(&self, key: &str) -> Option<i64> {
        match self.metadata.get(key)? {
            MetadataValue::Integer(value) => Some(*value),
            _ => None,
        }
    }

    /// A number value.
    pub fn float(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key)? {
            MetadataValue::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// A boolean value.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key)? {
            MetadataValue::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// A list of strings.
    pub fn texts(&self, key: &str) -> Option<&Texts> {
        match self.metadata.get(key)? {
            MetadataValue::Texts(values) => Some(values),
            _ => None,
        }
    }

    /// A list of numbers.
    pub fn numbers(&self, key: &str) -> Option<&Numbers> {
        match self.metadata.get(key)? {
            MetadataValue::Numbers(values) => Some(values),
            _ => None,
        }
    }
}

/// Reads a metadata value of any type.
fn value(reader: &mut Reader) -> Parsed<MetadataValue> {
    let kind = reader.u32()?;
    if kind == TEXT {
        return Ok(MetadataValue::Text(reader.text()?));
    }
    if kind != LIST {
        return Ok(match reader.scalar(kind)? {
            Scalar::Integer(value) => MetadataValue::Integer(value),
            Scalar::Float(value) => MetadataValue::Float(value),
            Scalar::Bool(value) => MetadataValue::Bool(value),
        });
    }
    let (kind, count) = (reader.u32()?, reader.size()?);
    match kind {
        TEXT => Ok(MetadataValue::Texts(Texts::read(reader, count)?)),
        LIST => Err("a list of lists".to_owned()),
        kind => Ok(MetadataValue::Numbers(Numbers::read(reader, kind, count)?)),
    }
}

/// Parses metadata and tensors, under the file's own names.
pub(super) fn parse(file: &Mapped) -> Result<(Gguf, Vec<(String, Entry)>), CheckpointError> {
    if is_big_endian(file.bytes()) {
        return Err(CheckpointError::new(file.path(), big_endian()));
    }
    parse_bytes(file.bytes(), file.bytes().len())
        .map_err(|message| CheckpointError::new(file.path(), format!("not a whole GGUF file: {message}")))
}

/// Whether the header's numbers are big-endian, told by the version, which is a small number. The magic before it is
/// the same in both orders (gguf-py, `gguf_writer.py`).
pub(super) fn is_big_endian(bytes: &[u8]) -> bool {
    matches!(bytes, [b'G', b'G', b'U', b'F', 0, 0, 0, 1..=9, ..])
}

/// Parses the header in `bytes`, which may be the beginning of a file of `total` bytes.
pub(super) fn parse_bytes(bytes: &[u8], total: usize) -> Parsed<(Gguf, Vec<(String, Entry)>)> {
    let header = &bytes[..bytes.len().min(HEADER_LIMIT)];
    let end = if header.len() < bytes.len() {
        "a header of more than 256 MiB makes no sense"
    } else {
        "truncated: the header ends beyond the file; fetch it again"
    };
    let mut reader = Reader { rest: header, end };
    if reader.take(4)? != MAGIC {
        return Err("it does not begin with `GGUF`".to_owned());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("version {version} is not supported (2 and 3 are)"));
    }
    let (tensor_count, key_count) = (reader.u64()?, reader.u64()?);
    if tensor_count > COUNT_LIMIT || key_count > COUNT_LIMIT {
        return Err(format!("{tensor_count} tensors and {key_count} keys make no sense"));
    }
    let mut gguf = Gguf::default();
    for _ in 0..key_count {
        let key = reader.name()?;
        let value = value(&mut reader).map_err(|message| format!("key `{key}`: {message}"))?;
        gguf.metadata.insert(key, value);
    }
    let mut tensors = Vec::new();
    for _ in 0..tensor_count {
        let name = reader.name()?;
        let rank = reader.u32()?;
        if rank > 4 {
            return Err(format!("tensor `{name}` has {rank} dimensions"));
        }
        // GGUF lists the innermost dimension first.
        let mut shape = (0..rank).map(|_| reader.size()).collect::<Parsed<Vec<usize>>>()?;
        shape.reverse();
        let number = reader.u32()?;
        let encoding = Encoding::from_ggml(number).ok_or_else(|| ggml_name(number));
        let offset = reader.size()?;
        let columns = shape.last().copied().unwrap_or(1);
        let rows = crate::tensor::element_count(&shape).map(|count| count / columns.max(1));
        let row = encoding.as_ref().map_or(Some(0), |encoding| encoding.row_bytes(columns));
        let size = rows.zip(row).and_then(|(rows, row)| rows.checked_mul(row));
        let size = size.ok_or_else(|| format!("tensor `{name}`: shape {shape:?} does not fit its type"))?;
        tensors.push((name, Entry { file: 0, offset, bytes: size, shape, encoding, interleaved_heads: None }));
    }
    let alignment = gguf.integer("general.alignment").unwrap_or(32);
    let alignment = usize::try_from(alignment).ok().filter(|alignment| alignment.is_power_of_two());
    let alignment = alignment.ok_or("general.alignment is not a power of two")?;
    let data = (header.len() - reader.rest.len()).next_multiple_of(alignment);
    for (name, entry) in &mut tensors {
        let start = data.checked_add(entry.offset);
        let end = start.and_then(|start| start.checked_add(entry.bytes)).filter(|end| *end <= total);
        let (Some(start), Some(_)) = (start, end) else {
            return Err(format!("truncated: tensor `{name}` ends beyond the file; fetch it again"));
        };
        entry.offset = start;
    }
    Ok((gguf, tensors))
}

/// ggml's name of an unsupported type.
fn ggml_name(number: u32) -> String {
    let name = match number {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        39 => "MXFP4",
        _ => return format!("ggml {number}"),
    };
    format!("{name} (read are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K)")
}
