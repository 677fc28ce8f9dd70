//! safetensors files: the `safetensors` crate checks the header (bounds, overlaps, holes), the bytes stay mapped.

use safetensors::{Dtype, SafeTensors};

use super::encoding::Encoding;
use super::mapped::Mapped;
use super::{CheckpointError, Entry};

/// The tensors of one mapped file.
pub(super) fn entries(file: &Mapped, index: usize) -> Result<Vec<(String, Entry)>, CheckpointError> {
    let fail = |message: String| CheckpointError::new(file.path(), message);
    let damaged = |error: safetensors::SafeTensorError| {
        fail(format!("not a whole safetensors file: {error}"))
            .with_help("fetch it again, `--rehash` finds damaged files")
    };
    let (header, metadata) = SafeTensors::read_metadata(file.bytes()).map_err(damaged)?;
    let data = header.checked_add(8).ok_or_else(|| fail("the header has no end".to_owned()))?;
    if data.checked_add(metadata.data_len()) != Some(file.bytes().len()) {
        let have = file.bytes().len().saturating_sub(data);
        return Err(fail(format!(
            "truncated: the header promises {} bytes of tensors, there are {have}",
            metadata.data_len()
        ))
        .with_help("fetch it again"));
    }
    let mut entries = Vec::new();
    for (name, info) in metadata.tensors() {
        let encoding = match info.dtype {
            Dtype::F32 => Some(Encoding::F32),
            Dtype::F16 => Some(Encoding::F16),
            Dtype::BF16 => Some(Encoding::BF16),
            _ => None,
        };
        let (start, end) = info.data_offsets;
        let entry = Entry {
            file: index,
            offset: data + start,
            bytes: end - start,
            shape: info.shape.clone(),
            encoding: encoding.ok_or_else(|| format!("{:?}", info.dtype)),
            interleaved_heads: None,
        };
        entries.push((name, entry));
    }
    Ok(entries)
}
