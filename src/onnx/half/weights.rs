//! Converts float32 constants to half precision.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use half::{bf16, f16};
use onnx_protobuf::{TensorProto, tensor_proto::DataLocation};

use crate::onnx::elem_type;
use crate::tensor::DType;

/// The values of a float32 constant, inside or outside the model file `model`.
pub(super) fn values(model: &Path, tensor: &TensorProto) -> Result<Vec<f32>, String> {
    let count = tensor.dims.iter().try_fold(1usize, |count, dim| count.checked_mul(usize::try_from(*dim).ok()?));
    let count = count.ok_or_else(|| format!("initializer `{}` has no size", tensor.name))?;
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect()
    };
    let values = if tensor.data_location.enum_value_or_default() == DataLocation::EXTERNAL {
        floats(&external(model, tensor, count)?)
    } else if tensor.raw_data.is_empty() {
        tensor.float_data.clone()
    } else {
        floats(&tensor.raw_data)
    };
    if values.len() == count {
        return Ok(values);
    }
    Err(format!("initializer `{}` holds {} values, its shape wants {count}", tensor.name, values.len()))
}

/// Reads external data. That the file is beside or below the model was checked when the model was read.
fn external(model: &Path, tensor: &TensorProto, count: usize) -> Result<Vec<u8>, String> {
    let entry =
        |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str());
    let offset: u64 = entry("offset").unwrap_or("0").parse().map_err(|_| "an external offset is no number")?;
    let path = model.with_file_name(entry("location").unwrap_or_default());
    let fail = |error: std::io::Error| format!("external data {}: {error}", path.display());
    let mut file = File::open(&path).map_err(fail)?;
    file.seek(SeekFrom::Start(offset)).map_err(fail)?;
    let mut bytes = Vec::new();
    file.take(4 * count as u64).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}

/// The constant rounded to `dtype`, with the new name `name`.
pub(super) fn narrow(model: &Path, tensor: &TensorProto, name: &str, dtype: DType) -> Result<TensorProto, String> {
    let values = values(model, tensor)?;
    let bytes: Vec<u8> = match dtype {
        DType::BFloat16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
    };
    Ok(TensorProto {
        name: name.to_owned(),
        dims: tensor.dims.clone(),
        data_type: elem_type(dtype) as i32,
        raw_data: bytes,
        ..TensorProto::default()
    })
}
