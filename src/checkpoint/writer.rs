//! Writes a safetensors file tensor by tensor, with only one in memory at a time.

use std::io::{self, Write};

use serde_json::{Value, json};

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Name of the tensor.
    pub name: String,
    /// Element type in safetensors' spelling: "F16", "I32", …
    pub dtype: &'static str,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Size in bytes.
    pub bytes: usize,
}

/// Writes the `planned` tensors in order. `fill` returns the bytes of each, which must have the planned size.
pub fn write_safetensors(
    out: &mut impl Write,
    planned: &[Planned],
    mut fill: impl FnMut(usize) -> io::Result<Vec<u8>>,
) -> io::Result<()> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut offset = 0;
    for Planned { name, dtype, shape, bytes } in planned {
        header
            .insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [offset, offset + bytes] }));
        offset += bytes;
    }
    let mut text = Value::Object(header).to_string();
    // The data begin at a multiple of eight.
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let length = u64::try_from(text.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(text.as_bytes())?;
    for (index, planned) in planned.iter().enumerate() {
        let bytes = fill(index)?;
        if bytes.len() != planned.bytes {
            return Err(io::Error::other(format!("{}: {} bytes, not {}", planned.name, bytes.len(), planned.bytes)));
        }
        out.write_all(&bytes)?;
    }
    out.flush()
}
