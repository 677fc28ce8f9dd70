//! Dense tensors in host memory: element types, shapes, seeded values, `.npy` files.
//!
//! Backends take and return these, row-major and contiguous.

mod batch;

use std::fmt;
use std::io::{self, Read, Write};

use half::f16;
use serde::{Deserialize, Serialize};

/// Element type, by ONNX's and NumPy's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum DType {
    Float32,
    Float16,
    BFloat16,
    Int8,
    UInt8,
    Int32,
    Int64,
    Bool,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            DType::Int64 => 8,
            DType::Float32 | DType::Int32 => 4,
            DType::Float16 | DType::BFloat16 => 2,
            DType::Int8 | DType::UInt8 | DType::Bool => 1,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::Float32 => "float32",
            DType::Float16 => "float16",
            DType::BFloat16 => "bfloat16",
            DType::Int8 => "int8",
            DType::UInt8 => "uint8",
            DType::Int32 => "int32",
            DType::Int64 => "int64",
            DType::Bool => "bool",
        })
    }
}

/// Name, type and shape of a model's input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct TensorSpec {
    /// Tensor name in the graph.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first; `None` is dynamic.
    pub shape: Vec<Option<usize>>,
}

impl TensorSpec {
    /// The shape with every dynamic dimension set to `value`.
    pub fn shape_with(&self, value: usize) -> Vec<usize> {
        self.shape.iter().map(|dim| dim.unwrap_or(value)).collect()
    }

    /// Whether `shape` has the right rank and agrees in every fixed dimension.
    pub fn accepts(&self, shape: &[usize]) -> bool {
        self.shape.len() == shape.len()
            && self.shape.iter().zip(shape).all(|(want, have)| want.is_none_or(|want| want == *have))
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> =
            self.shape.iter().map(|dim| dim.map_or_else(|| "?".to_owned(), |dim| dim.to_string())).collect();
        write!(f, "{} {}[{}]", self.name, self.dtype, dims.join(", "))
    }
}

/// Number of elements of `shape`, or `None` if it overflows.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |count, dim| count.checked_mul(*dim))
}

/// Coordinates in `shape` of the element at `index` in row-major order.
pub fn unravel(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut position = vec![0; shape.len()];
    for (axis, dim) in shape.iter().enumerate().rev() {
        position[axis] = index % dim;
        index /= dim;
    }
    position
}

/// The elements of a [`Tensor`].
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum TensorData {
    F32(Vec<f32>),
    F16(Vec<f16>),
    I8(Vec<i8>),
    U8(Vec<u8>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    /// 0 or 1.
    Bool(Vec<u8>),
}

impl TensorData {
    /// The elements repeated `count` times.
    pub fn repeated(&self, count: usize) -> Self {
        match self {
            TensorData::F32(values) => TensorData::F32(values.repeat(count)),
            TensorData::F16(values) => TensorData::F16(values.repeat(count)),
            TensorData::I8(values) => TensorData::I8(values.repeat(count)),
            TensorData::U8(values) => TensorData::U8(values.repeat(count)),
            TensorData::I32(values) => TensorData::I32(values.repeat(count)),
            TensorData::I64(values) => TensorData::I64(values.repeat(count)),
            TensorData::Bool(values) => TensorData::Bool(values.repeat(count)),
        }
    }
}

/// A dense row-major tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: TensorData,
}

macro_rules! for_data {
    ($data:expr, $values:ident => $body:expr) => {
        match $data {
            TensorData::F32($values) => $body,
            TensorData::F16($values) => $body,
            TensorData::I8($values) => $body,
            TensorData::U8($values) => $body,
            TensorData::I32($values) => $body,
            TensorData::I64($values) => $body,
            TensorData::Bool($values) => $body,
        }
    };
}

/// `count` copies of a value; `None` if memory does not suffice.
fn filled<T: Clone>(value: T, count: usize) -> Option<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).ok()?;
    values.resize(count, value);
    Some(values)
}

impl Tensor {
    /// A tensor of `shape` holding `data`; `None` when the counts disagree.
    pub fn new(shape: Vec<usize>, data: TensorData) -> Option<Self> {
        let have = for_data!(&data, values => values.len());
        (element_count(&shape)? == have).then_some(Self { shape, data })
    }

    /// A float32 tensor. See [`Tensor::new`].
    pub fn from_f32(shape: Vec<usize>, values: Vec<f32>) -> Option<Self> {
        Self::new(shape, TensorData::F32(values))
    }

    /// The tensor repeated `count` times along its first dimension.
    pub fn repeated(&self, count: usize) -> Self {
        let mut shape = self.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first *= count;
        }
        let data = self.data.repeated(count);
        Self { shape, data }
    }

    /// All zeros; `None` for a type the host does not compute with, or an overflowing shape.
    pub fn zeros(dtype: DType, shape: Vec<usize>) -> Option<Self> {
        let count = element_count(&shape)?;
        let data = match dtype {
            DType::Float32 => TensorData::F32(filled(0.0, count)?),
            DType::Float16 => TensorData::F16(filled(f16::ZERO, count)?),
            DType::Int8 => TensorData::I8(filled(0, count)?),
            DType::UInt8 => TensorData::U8(filled(0, count)?),
            DType::Int32 => TensorData::I32(filled(0, count)?),
            DType::Int64 => TensorData::I64(filled(0, count)?),
            DType::Bool => TensorData::Bool(filled(0, count)?),
            DType::BFloat16 => return None,
        };
        Some(Self { shape, data })
    }

    /// Reproducible values: uniform in [-1, 1) for floats, 0…7 for integers, coin flips for booleans.
    ///
    /// Never zeros: they hide unwritten outputs and wrong indexing.
    pub fn seeded(dtype: DType, shape: Vec<usize>, seed: u64) -> Option<Self> {
        let mut tensor = Self::zeros(dtype, shape)?;
        let mut random = SplitMix64(seed);
        match &mut tensor.data {
            TensorData::F32(values) => values.fill_with(|| random.symmetric()),
            TensorData::F16(values) => values.fill_with(|| f16::from_f32(random.symmetric())),
            TensorData::I8(values) => values.fill_with(|| random.below(8) as i8),
            TensorData::U8(values) => values.fill_with(|| random.below(8) as u8),
            TensorData::I32(values) => values.fill_with(|| random.below(8) as i32),
            TensorData::I64(values) => values.fill_with(|| random.below(8) as i64),
            TensorData::Bool(values) => values.fill_with(|| random.below(2) as u8),
        }
        Some(tensor)
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self.data {
            TensorData::F32(_) => DType::Float32,
            TensorData::F16(_) => DType::Float16,
            TensorData::I8(_) => DType::Int8,
            TensorData::U8(_) => DType::UInt8,
            TensorData::I32(_) => DType::Int32,
            TensorData::I64(_) => DType::Int64,
            TensorData::Bool(_) => DType::Bool,
        }
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &TensorData {
        &self.data
    }

    /// The elements as bytes in the machine's byte order.
    pub fn bytes(&self) -> &[u8] {
        for_data!(&self.data, values => bytemuck::cast_slice(values))
    }

    /// The elements as mutable bytes in the machine's byte order.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        for_data!(&mut self.data, values => bytemuck::cast_slice_mut(values))
    }

    /// The elements if they are float32.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            TensorData::F32(values) => Some(values),
            _ => None,
        }
    }

    /// The elements converted to f64, for comparisons.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            TensorData::F32(values) => values.iter().map(|v| f64::from(*v)).collect(),
            TensorData::F16(values) => values.iter().map(|v| f64::from(*v)).collect(),
            TensorData::I8(values) => values.iter().map(|v| f64::from(*v)).collect(),
            TensorData::U8(values) | TensorData::Bool(values) => values.iter().map(|v| f64::from(*v)).collect(),
            TensorData::I32(values) => values.iter().map(|v| f64::from(*v)).collect(),
            TensorData::I64(values) => values.iter().map(|v| *v as f64).collect(),
        }
    }
}

/// The crate's random generator, SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), which passes BigCrush. It samples
/// tokens, and makes the inputs that engines are verified with.
///
/// The numbers of a seed are fixed: tests/data keeps other programs' results for [`Tensor::seeded`], whose scripts
/// implement the same generator.
#[derive(Debug, Clone)]
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in 0…n-1 (n is small, so the bias does not matter).
    pub fn below(&mut self, n: u64) -> u64 {
        self.next_u64() % n
    }

    /// Uniform in [-1, 1), every value a multiple of 2^-23.
    pub fn symmetric(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Longest `.npy` header in bytes that is read (the format allows 4 GiB).
const NPY_HEADER_LIMIT: usize = 64 * 1024;

fn unusable(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a usable .npy file: {what}"))
}

/// Reads the header's text, a Python dictionary.
fn npy_header(reader: &mut impl Read) -> io::Result<String> {
    let cut = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => unusable("it is cut off within its header"),
        _ => error,
    };
    let mut start = [0u8; 8];
    reader.read_exact(&mut start).map_err(cut)?;
    if &start[..6] != b"\x93NUMPY" {
        return Err(unusable("wrong magic"));
    }
    let length = if start[6] == 1 {
        let mut bytes = [0u8; 2];
        reader.read_exact(&mut bytes).map_err(cut)?;
        usize::from(u16::from_le_bytes(bytes))
    } else {
        let mut bytes = [0u8; 4];
        reader.read_exact(&mut bytes).map_err(cut)?;
        u32::from_le_bytes(bytes) as usize
    };
    if length > NPY_HEADER_LIMIT {
        return Err(unusable("header too long"));
    }
    let mut header = vec![0u8; length];
    reader.read_exact(&mut header).map_err(cut)?;
    String::from_utf8(header).map_err(|_| unusable("header is not text"))
}

/// Reads a `.npy` file (NumPy enhancement proposal 1, versions 1 to 3; C order, little endian).
pub fn read_npy(mut reader: impl Read) -> io::Result<Tensor> {
    let header = npy_header(&mut reader)?;
    let after = |key: &str| header.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    if after("fortran_order").is_none_or(|rest| !rest.starts_with("False")) {
        return Err(unusable("Fortran order"));
    }
    let descr = after("descr").and_then(|rest| rest.split('\'').nth(1)).ok_or_else(|| unusable("no descr"))?;
    let dtype = match descr {
        "<f4" => DType::Float32,
        "<f2" => DType::Float16,
        "|i1" => DType::Int8,
        "|u1" => DType::UInt8,
        "<i4" => DType::Int32,
        "<i8" => DType::Int64,
        "|b1" => DType::Bool,
        other => return Err(unusable(&format!("element type {other}"))),
    };
    let dims = after("shape")
        .and_then(|rest| rest.strip_prefix('('))
        .and_then(|rest| rest.split(')').next())
        .ok_or_else(|| unusable("no shape"))?;
    let shape = dims
        .split(',')
        .map(str::trim)
        .filter(|dim| !dim.is_empty())
        .map(str::parse)
        .collect::<Result<Vec<usize>, _>>()
        .map_err(|_| unusable("shape"))?;
    let bytes =
        element_count(&shape).and_then(|count| count.checked_mul(dtype.size())).ok_or_else(|| unusable("shape"))?;
    // Read before allocating the tensor: a header may promise more than the file holds.
    let mut body = Vec::new();
    reader.take(bytes as u64).read_to_end(&mut body)?;
    if body.len() != bytes {
        return Err(unusable(&format!("it is cut off: {} bytes of data, the shape needs {bytes}", body.len())));
    }
    let mut tensor = Tensor::zeros(dtype, shape).ok_or_else(|| unusable("shape"))?;
    tensor.bytes_mut().copy_from_slice(&body);
    Ok(tensor)
}

/// Writes a version 1 `.npy` file.
pub fn write_npy(mut writer: impl Write, tensor: &Tensor) -> io::Result<()> {
    let descr = match tensor.dtype() {
        DType::Float32 => "<f4",
        DType::Float16 => "<f2",
        DType::Int8 => "|i1",
        DType::UInt8 => "|u1",
        DType::Int32 => "<i4",
        DType::Int64 => "<i8",
        DType::Bool => "|b1",
        DType::BFloat16 => return Err(io::Error::other("NumPy has no bfloat16")),
    };
    let dims: String = tensor.shape().iter().map(|dim| format!("{dim}, ")).collect();
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", dims.trim_end());
    // Magic, version, length and header together are a multiple of 64.
    let padding = 63 - (10 + header.len()) % 64;
    header.push_str(&" ".repeat(padding));
    header.push('\n');
    let length = u16::try_from(header.len()).map_err(|_| io::Error::other("shape too long"))?;
    writer.write_all(b"\x93NUMPY\x01\x00")?;
    writer.write_all(&length.to_le_bytes())?;
    writer.write_all(header.as_bytes())?;
    writer.write_all(tensor.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn npy_round_trips_every_type() {
        for dtype in
            [DType::Float32, DType::Float16, DType::Int8, DType::UInt8, DType::Int32, DType::Int64, DType::Bool]
        {
            for shape in [vec![], vec![3], vec![2, 1, 5], vec![0, 4]] {
                let tensor = Tensor::seeded(dtype, shape, 7).unwrap();
                let mut file = Vec::new();
                write_npy(&mut file, &tensor).unwrap();
                assert_eq!((file.len() - tensor.bytes().len()) % 64, 0, "{dtype}: data is aligned");
                assert_eq!(read_npy(file.as_slice()).unwrap(), tensor);
            }
        }
    }

    #[test]
    fn npy_refuses_what_it_cannot_hold() {
        let mut file = Vec::new();
        write_npy(&mut file, &Tensor::seeded(DType::Float32, vec![4], 1).unwrap()).unwrap();
        let replaced = |from: &str, to: &str| {
            let text: Vec<u8> = file.clone();
            let at = text.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            [&text[..at], to.as_bytes(), &text[at + from.len()..]].concat()
        };
        let cases = [
            (file[..file.len() - 1].to_vec(), "15 bytes of data"),
            (replaced("False", "True "), "Fortran"),
            (replaced("<f4", ">f4"), "element type"),
            (replaced("(4,)", "(9,)"), "the shape needs 36"),
            (b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(), "header too long"),
            (b"nonsense".to_vec(), "magic"),
            (Vec::new(), "it is cut off within its header"),
            (file[..7].to_vec(), "it is cut off within its header"),
            (file[..9].to_vec(), "it is cut off within its header"),
            (file[..100].to_vec(), "it is cut off within its header"),
        ];
        for (bytes, expected) in cases {
            let error = read_npy(bytes.as_slice()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should contain {expected}");
        }
    }

    #[test]
    fn seeded_values_are_reproducible_and_not_zero() {
        let a = Tensor::seeded(DType::Float32, vec![1000], 42).unwrap();
        assert_eq!(a, Tensor::seeded(DType::Float32, vec![1000], 42).unwrap());
        assert_ne!(a, Tensor::seeded(DType::Float32, vec![1000], 43).unwrap());
        let values = a.as_f32().unwrap();
        assert!(values.iter().all(|v| (-1.0..1.0).contains(v)));
        assert!(values.iter().filter(|v| **v == 0.0).count() < 2);
        let mean = values.iter().sum::<f32>() / 1000.0;
        assert!(mean.abs() < 0.1, "{mean}");
    }
}
