//! Writes a safetensors file tensor by tensor, as their bytes are made: none need be in memory as a whole.

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

/// Passes bytes on, and counts them.
struct Counted<'a> {
    out: &'a mut dyn Write,
    bytes: usize,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes the `planned` tensors in order. `fill` writes the bytes of each, which must be as many as planned.
pub fn write_safetensors(
    out: &mut impl Write,
    planned: &[Planned],
    mut fill: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
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
        let mut counted = Counted { out: &mut *out, bytes: 0 };
        fill(index, &mut counted)?;
        let have = counted.bytes;
        if have != planned.bytes {
            return Err(io::Error::other(format!("{}: {have} bytes, not {}", planned.name, planned.bytes)));
        }
    }
    out.flush()
}
