//! ONNX models: reading hostile files, description, fixing shapes, rewriting, writing.
//!
//! The only user of onnx-protobuf. `wire.rs` protects the parser, `external_data.rs` checks file references,
//! `tensors.rs` visits every tensor, `check.rs` finds what TensorRT would compute wrongly, `depth.rs` what would
//! overflow the CPU reference's stack, `ending.rs` the meaning of an output, `shapes.rs` fixes dynamic dimensions,
//! `graph.rs` builds graphs. `facts.rs` infers types, shapes and small values, `simplify.rs` folds constants,
//! `reference.rs` rewrites a graph for the CPU reference, `parser.rs` for TensorRT's parser, `unbuilt.rs` explains
//! failed builds.

mod attributes;
mod check;
mod depth;
mod editor;
mod ending;
mod external_data;
mod facts;
mod given;
mod graph;
mod half;
mod opset;
mod parser;
mod reference;
mod shapes;
mod simplify;
mod tensors;
mod unbuilt;
mod wire;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use onnx_protobuf::{Message, ModelProto, TensorProto, ValueInfoProto, tensor_proto, tensor_shape_proto, type_proto};

pub use check::{INTEGER as INTEGER_OPERATORS, Parser};
pub use depth::Depth;
pub use ending::Ending;
pub use given::Given;
pub use graph::{Attribute, External, GraphBuilder, type_number};
pub use half::Half;
pub use opset::NEWEST as NEWEST_OPSET;
pub use reference::{GUARD_LIMIT, Guard};

use crate::diagnostic::{Diagnose, Diagnostic};
use crate::tensor::{DType, TensorSpec};

/// Largest model file in bytes, a limit of protobuf; larger models have weights in external files.
const SIZE_LIMIT: u64 = (1 << 31) - 1;

/// An error in an ONNX file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct OnnxError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, with the tensor or node.
    pub message: Diagnostic,
}

impl Diagnose for OnnxError {
    fn diagnostic(&self) -> Diagnostic {
        self.message.clone().at(self.path.display())
    }
}

impl OnnxError {
    /// Sets the hint.
    fn with_help(self, help: impl Into<String>) -> Self {
        Self { message: self.message.with_help(help), ..self }
    }
}

/// A parsed ONNX model and its path.
#[derive(Debug, Clone)]
pub struct Model {
    path: PathBuf,
    proto: ModelProto,
}

/// Description of a model for `inspect`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Summary {
    /// Version of the file format.
    pub ir_version: i64,
    /// Opset version by domain; "" is ai.onnx.
    pub opsets: BTreeMap<String, i64>,
    /// Program that wrote the file.
    pub producer: String,
    /// Graph inputs that are not initializers.
    pub inputs: Vec<TensorSpec>,
    /// Graph outputs.
    pub outputs: Vec<TensorSpec>,
    /// Number of nodes by operator.
    pub operators: BTreeMap<String, usize>,
    /// Number of elements in all initializers.
    pub parameters: u64,
    /// Bytes of all initializers.
    pub parameter_bytes: u64,
    /// Names of external data files, relative to the model.
    pub external_data: Vec<String>,
}

impl Model {
    /// Reads and checks a model and its external data: regular files beside or below it that are long enough for every
    /// tensor. (Links into one `blobs` folder, as in the Hugging Face cache, count as beside.)
    pub fn load(path: &Path) -> Result<Self, OnnxError> {
        let model = Self::read(path)?;
        external_data::check_files(&model.proto, path).map_err(|message| model.fail(message))?;
        Ok(model)
    }

    /// Reads a model for inspection, without requiring its external data.
    pub fn read(path: &Path) -> Result<Self, OnnxError> {
        let fail = |message: String| OnnxError { path: path.to_owned(), message: message.into() };
        let metadata = fs::metadata(path).map_err(|error| fail(error.to_string()))?;
        // A pipe would wait for its writer, and a device need not end.
        if !metadata.is_file() {
            return Err(fail("is not a regular file".to_owned()).with_help("name the .onnx file itself"));
        }
        if metadata.len() > SIZE_LIMIT {
            return Err(fail("larger than protobuf's 2 GiB: store the weights as external data".to_owned()));
        }
        let bytes = fs::read(path).map_err(|error| fail(error.to_string()))?;
        Self::parse(path, &bytes)
    }

    /// Parses and checks a model in memory; `path` is for messages and external data, whose files are not accessed.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, OnnxError> {
        let fail = |message: String| OnnxError { path: path.to_owned(), message: message.into() };
        wire::check_model(bytes).map_err(|message| fail(format!("not an ONNX model: {message}")))?;
        let proto = ModelProto::parse_from_bytes(bytes).map_err(|error| fail(format!("not an ONNX model: {error}")))?;
        if proto.graph.is_none() || proto.opset_import.is_empty() {
            return Err(fail("not an ONNX model: it has no graph or names no opset".to_owned()));
        }
        let model = Self { path: path.to_owned(), proto };
        external_data::check(&model.proto).map_err(|message| model.fail(message))?;
        model.check_names().map_err(fail)?;
        Ok(model)
    }

    /// Checks that every node input is produced before it is used (ONNX IR, "graphs are topologically sorted").
    fn check_names(&self) -> Result<(), String> {
        let graph = &self.proto.graph;
        // They stand in messages, which are lines.
        let nodes = graph.node.iter().flat_map(|node| {
            let ends = node.input.iter().chain(&node.output);
            [&node.name, &node.op_type].into_iter().chain(ends)
        });
        let ends = graph.input.iter().chain(&graph.output).map(|value| &value.name);
        let tensors = graph.initializer.iter().map(|tensor| &tensor.name);
        if let Some(name) = nodes.chain(ends).chain(tensors).find(|name| name.chars().any(char::is_control)) {
            return Err(format!("the name {name:?} holds a control character"));
        }
        let mut known: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        known.extend(graph.sparse_initializer.iter().map(|tensor| tensor.values.name.as_str()));
        known.extend(graph.input.iter().map(|input| input.name.as_str()));
        for (index, node) in graph.node.iter().enumerate() {
            for input in node.input.iter().filter(|input| !input.is_empty()) {
                if !known.contains(input.as_str()) {
                    let name = node.name.as_str();
                    return Err(format!(
                        "node #{index} '{name}' ({}) reads `{input}`, which nothing produces",
                        node.op_type
                    ));
                }
            }
            known.extend(node.output.iter().map(String::as_str));
        }
        match graph.output.iter().find(|output| !known.contains(output.name.as_str())) {
            Some(output) => Err(format!("output `{}` is produced by no node", output.name.as_str())),
            None => Ok(()),
        }
    }

    /// Path of the model file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serialises the model.
    pub fn to_bytes(&self) -> Result<Vec<u8>, OnnxError> {
        self.proto.write_to_bytes().map_err(|error| self.fail(error.to_string()))
    }

    fn fail(&self, message: impl Into<Diagnostic>) -> OnnxError {
        OnnxError { path: self.path.clone(), message: message.into() }
    }

    /// Version of the default operator set.
    pub fn opset(&self) -> i64 {
        let default = self.proto.opset_import.iter().find(|opset| matches!(opset.domain.as_str(), "" | "ai.onnx"));
        default.map_or(0, |opset| opset.version)
    }

    /// Inputs that the caller must supply.
    pub fn inputs(&self) -> Result<Vec<TensorSpec>, OnnxError> {
        let graph = &self.proto.graph;
        let initialized: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        let inputs = graph.input.iter().filter(|input| !initialized.contains(input.name.as_str()));
        inputs.map(|input| self.spec(input)).collect()
    }

    /// Outputs of the model.
    pub fn outputs(&self) -> Result<Vec<TensorSpec>, OnnxError> {
        self.proto.graph.output.iter().map(|output| self.spec(output)).collect()
    }

    /// A metadata entry of the model.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.proto.metadata_props.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
    }

    /// Names of external data files, relative to the model, without repetitions.
    pub fn external_files(&self) -> Vec<String> {
        external_data::files(&self.proto)
    }

    /// Replaces "node #7" in a message by the node's name and operator: TensorRT before 9.1 reports only the index.
    pub fn name_nodes(&self, message: &str) -> String {
        let mut parts = message.split("node #");
        let mut named = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (index, rest) = part.split_at(digits);
            let node = index.parse().ok().and_then(|index: usize| self.proto.graph.node.get(index));
            match node {
                Some(node) => named.push_str(&format!("node '{}' ({}){rest}", node.name, node.op_type)),
                None => named.push_str(&format!("node #{part}")),
            }
        }
        named
    }

    /// Renames external data files to names without folders, returned as pairs (old, new), and writes offsets and
    /// lengths explicitly. The caller must copy the files.
    pub fn flatten_external(&mut self) -> Vec<(String, String)> {
        external_data::flatten(&mut self.proto)
    }

    /// Sets the shapes of the named inputs, where `None` stays dynamic. A symbolic dimension gets the same value
    /// everywhere in the model.
    pub fn fix_shapes(&mut self, shapes: &BTreeMap<String, Vec<Option<usize>>>) -> Result<(), OnnxError> {
        shapes::fix(&mut self.proto, shapes)
            .map_err(|message| OnnxError { path: self.path.clone(), message: message.into() })
    }

    /// Makes the named inputs, which are matrices, expect transposed values; the rest of the graph is unaffected.
    pub fn transpose_inputs(&mut self, names: &[&str]) {
        shapes::transpose_inputs(&mut self.proto, names);
    }

    /// The first fault that a TensorRT with this parser would not report; `None` if there is none.
    pub fn parser_fault(&self, parser: Parser) -> Option<String> {
        check::parser_fault(self, parser)
    }

    /// Why `tensorrt` did not build the model, if the graph reveals more than the error `said`: a node, and a hint.
    pub fn not_built(&self, tensorrt: &str, said: &str) -> Option<Diagnostic> {
        unbuilt::explain(self, tensorrt, said)
    }

    /// Why an already quantised model cannot be built, in half precision if `half`; `None` if it can.
    pub fn quantised(&self, half: bool) -> Option<Diagnostic> {
        check::quantised(self, half)
    }

    /// Names nodes without a name: messages and precisions refer to names.
    pub fn name_nameless(&mut self) {
        let Some(graph) = self.proto.graph.as_mut() else { return };
        for node in graph.node.iter_mut().filter(|node| node.name.is_empty()) {
            let output = node.output.iter().find(|output| !output.is_empty());
            node.name = format!("{}/{}", node.op_type, output.map_or("nothing", String::as_str));
        }
    }

    /// Writes optional attributes and offsets that some runtimes cannot infer; returns whether any was missing.
    pub fn make_explicit(&mut self) -> bool {
        let places = external_data::make_explicit(&mut self.proto);
        shapes::make_kernel_shapes_explicit(&mut self.proto) || places
    }

    /// Removes what needs no computation: constant shape arithmetic, `If` with a constant condition, Identity, Dropout
    /// at inference, unused nodes. Returns whether anything changed.
    pub fn simplify(&mut self) -> bool {
        let opset = self.opset();
        simplify::simplify(&mut self.proto, opset)
    }

    /// The first node that ONNX Runtime would compute differently from ONNX's specification; `None` if there is none.
    pub fn beyond_runtime(&self) -> Option<String> {
        check::beyond_runtime(self)
    }

    /// Lengths of the longest chains of dependent nodes.
    pub fn depth(&self) -> Depth {
        depth::of(&self.proto)
    }

    fn spec(&self, value: &ValueInfoProto) -> Result<TensorSpec, OnnxError> {
        let name = value.name.as_str().to_owned();
        let Some(type_proto::Value::TensorType(tensor)) = &value.type_.value else {
            return Err(self.fail(format!("`{name}` is not a tensor")));
        };
        let dtype = dtype(tensor.elem_type).ok_or_else(|| {
            self.fail(format!("`{name}` has element type {}, which is not supported", tensor.elem_type))
        })?;
        let shape = tensor.shape.dim.iter().map(dimension).collect();
        Ok(TensorSpec { name, dtype, shape })
    }

    /// Description for `inspect`.
    pub fn summary(&self) -> Result<Summary, OnnxError> {
        let graph = &self.proto.graph;
        let mut operators = BTreeMap::new();
        for node in &graph.node {
            let domain = if node.domain.is_empty() { String::new() } else { format!("{}::", node.domain) };
            *operators.entry(format!("{domain}{}", node.op_type.as_str())).or_insert(0) += 1;
        }
        let (mut parameters, mut parameter_bytes) = (0u64, 0u64);
        for tensor in &graph.initializer {
            let elements =
                elements(tensor).ok_or_else(|| self.fail(format!("initializer `{}` has no size", tensor.name)))?;
            parameters = parameters.saturating_add(elements);
            let bits = element_bits(tensor.data_type).unwrap_or(8);
            parameter_bytes = parameter_bytes.saturating_add(elements.saturating_mul(bits).div_ceil(8));
        }
        Ok(Summary {
            ir_version: self.proto.ir_version,
            opsets: self
                .proto
                .opset_import
                .iter()
                .map(|opset| (opset.domain.as_str().to_owned(), opset.version))
                .collect(),
            producer: format!("{} {}", self.proto.producer_name, self.proto.producer_version).trim().to_owned(),
            inputs: self.inputs()?,
            outputs: self.outputs()?,
            operators,
            parameters,
            parameter_bytes,
            external_data: self.external_files(),
        })
    }
}

fn dimension(dim: &tensor_shape_proto::Dimension) -> Option<usize> {
    match &dim.value {
        Some(tensor_shape_proto::dimension::Value::DimValue(value)) => usize::try_from(*value).ok(),
        _ => None,
    }
}

/// Our type of an ONNX element type (onnx.proto, TensorProto.DataType).
fn dtype(elem_type: i32) -> Option<DType> {
    Some(match elem_type {
        1 => DType::Float32,
        2 => DType::UInt8,
        3 => DType::Int8,
        6 => DType::Int32,
        7 => DType::Int64,
        9 => DType::Bool,
        10 => DType::Float16,
        16 => DType::BFloat16,
        _ => return None,
    })
}

fn elem_type(dtype: DType) -> tensor_proto::DataType {
    use tensor_proto::DataType;
    match dtype {
        DType::Float32 => DataType::FLOAT,
        DType::UInt8 => DataType::UINT8,
        DType::Int8 => DataType::INT8,
        DType::Int32 => DataType::INT32,
        DType::Int64 => DataType::INT64,
        DType::Bool => DataType::BOOL,
        DType::Float16 => DataType::FLOAT16,
        DType::BFloat16 => DataType::BFLOAT16,
    }
}

/// Number of elements of a tensor; `None` for a negative dimension or on overflow.
fn elements(tensor: &TensorProto) -> Option<u64> {
    tensor.dims.iter().try_fold(1u64, |product, dim| product.checked_mul(u64::try_from(*dim).ok()?))
}

/// Bits per element of an ONNX element type; those of 2 and 4 bits are packed. Strings have no fixed size.
fn element_bits(elem_type: i32) -> Option<u64> {
    Some(match elem_type {
        7 | 11 | 13 | 14 => 64,
        15 => 128,
        1 | 6 | 12 => 32,
        4 | 5 | 10 | 16 => 16,
        2 | 3 | 9 | 17..=20 | 24 => 8,
        21..=23 => 4,
        25 | 26 => 2,
        _ => return None,
    })
}
