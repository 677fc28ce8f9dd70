//! Builds ONNX graphs: nodes of the standard operator set in order, with weights as constants or graph inputs.
//!
//! Names are checked when the model is parsed again ([`Model::parse`]), so that a converter's mistake is an error here
//! and not an obscure one in TensorRT.

use std::collections::HashMap;
use std::path::Path;

use onnx_protobuf::tensor_shape_proto::{Dimension, dimension::Value};
use onnx_protobuf::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataLocation,
    type_proto,
};

use super::{Model, OnnxError, elem_type};
use crate::tensor::{DType, Tensor};

/// A node attribute's value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Attribute {
    Int(i64),
    Float(f32),
    Ints(Vec<i64>),
    Text(String),
    /// A graph made by [`GraphBuilder::subgraph`].
    Graph(Box<GraphProto>),
}

impl From<i64> for Attribute {
    fn from(value: i64) -> Self {
        Attribute::Int(value)
    }
}

impl From<f32> for Attribute {
    fn from(value: f32) -> Self {
        Attribute::Float(value)
    }
}

impl<const N: usize> From<[i64; N]> for Attribute {
    fn from(value: [i64; N]) -> Self {
        Attribute::Ints(value.to_vec())
    }
}

impl From<&str> for Attribute {
    fn from(value: &str) -> Self {
        Attribute::Text(value.to_owned())
    }
}

/// A range of bytes in a file beside the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Path relative to the model.
    pub location: String,
    /// Offset in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// ONNX's number of an element type, for `Cast`.
pub fn type_number(dtype: DType) -> i64 {
    i64::from(elem_type(dtype) as i32)
}

/// A graph under construction.
#[derive(Debug)]
pub struct GraphBuilder {
    graph: GraphProto,
    opset: i64,
    fresh: usize,
    /// Prefix of node names; if empty, nodes are numbered.
    scope: String,
    /// Number of nodes with each name.
    named: HashMap<String, usize>,
    metadata: Vec<(String, String)>,
}

impl GraphBuilder {
    /// An empty graph for `opset` of the default domain.
    pub fn new(name: &str, opset: i64) -> Self {
        Self {
            graph: GraphProto { name: name.to_owned(), ..GraphProto::default() },
            opset,
            fresh: 0,
            scope: String::new(),
            named: HashMap::new(),
            metadata: Vec::new(),
        }
    }

    /// Sets the scope of the nodes that follow: they are called `SCOPE/Operator`, as torch's exporter calls those of a
    /// module.
    pub fn scope(&mut self, scope: &str) {
        scope.clone_into(&mut self.scope);
    }

    /// Adds an entry to the model's metadata.
    pub fn metadata(&mut self, key: &str, value: &str) {
        self.metadata.push((key.to_owned(), value.to_owned()));
    }

    /// Declares an input; `None` is a dynamic dimension.
    pub fn input(&mut self, name: &str, dtype: DType, shape: &[Option<usize>]) -> String {
        self.graph.input.push(value_info(name, dtype, shape));
        name.to_owned()
    }

    /// Declares an output.
    pub fn output(&mut self, name: &str, dtype: DType, shape: &[Option<usize>]) {
        self.graph.output.push(value_info(name, dtype, shape));
    }

    /// Adds a constant tensor.
    pub fn initializer(&mut self, name: &str, tensor: &Tensor) -> String {
        self.graph.initializer.push(TensorProto {
            name: name.to_owned(),
            dims: tensor.shape().iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect(),
            data_type: elem_type(tensor.dtype()) as i32,
            // ONNX raw data is little endian, as are the machines we run on.
            raw_data: tensor.bytes().to_vec(),
            ..TensorProto::default()
        });
        name.to_owned()
    }

    /// Adds a constant tensor whose data is in another file.
    pub fn external_initializer(&mut self, name: &str, dtype: DType, shape: &[usize], data: &External) {
        self.graph.initializer.push(TensorProto {
            name: name.to_owned(),
            dims: shape.iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect(),
            data_type: elem_type(dtype) as i32,
            data_location: DataLocation::EXTERNAL.into(),
            external_data: vec![
                entry("location", data.location.clone()),
                entry("offset", data.offset.to_string()),
                entry("length", data.length.to_string()),
            ],
            ..TensorProto::default()
        });
    }

    /// Whether a constant with this name exists.
    pub fn has_initializer(&self, name: &str) -> bool {
        self.graph.initializer.iter().any(|tensor| tensor.name == name)
    }

    /// Adds a one-dimensional int64 constant: shapes, axes, slice bounds.
    pub fn integers(&mut self, values: &[i64]) -> String {
        let name = self.fresh("constant");
        let data = crate::tensor::TensorData::I64(values.to_vec());
        let tensor = Tensor::new(vec![values.len()], data).expect("one dimension as long as the values");
        self.initializer(&name, &tensor)
    }

    /// Adds a float32 scalar constant.
    pub fn scalar(&mut self, value: f32) -> String {
        let name = self.fresh("constant");
        let tensor = Tensor::from_f32(vec![], vec![value]).expect("a scalar has one element");
        self.initializer(&name, &tensor)
    }

    /// Adds a node with one output, named after the operator, and returns that output.
    pub fn node(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        self.node_outputs(op, inputs, 1, attributes).remove(0)
    }

    /// Adds a node with `count` outputs and returns them.
    pub fn node_outputs(
        &mut self,
        op: &str,
        inputs: &[&str],
        count: usize,
        attributes: &[(&str, Attribute)],
    ) -> Vec<String> {
        let node = self.node_name(op);
        let scoped = !self.scope.is_empty();
        let mut output = |index| if scoped { format!("{node}_output_{index}") } else { self.fresh(op) };
        let outputs: Vec<String> = (0..count).map(&mut output).collect();
        let names: Vec<&str> = outputs.iter().map(String::as_str).collect();
        self.push_node(node, op, inputs, &names, attributes);
        outputs
    }

    /// The next node's name: numbered, or within the scope.
    fn node_name(&mut self, op: &str) -> String {
        if self.scope.is_empty() {
            return format!("{op}_{}", self.graph.node.len());
        }
        let name = format!("{}/{op}", self.scope);
        let count = self.named.entry(name.clone()).or_insert(0);
        *count += 1;
        if *count == 1 { name } else { format!("{name}_{}", *count - 1) }
    }

    /// Adds a node with chosen output names.
    pub fn node_named(&mut self, op: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, Attribute)]) {
        let name = self.node_name(op);
        self.push_node(name, op, inputs, outputs, attributes);
    }

    fn push_node(
        &mut self,
        name: String,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) {
        self.graph.node.push(node(name, op, inputs, outputs, attributes));
    }

    /// The graph as an attribute: a branch of `If`, or the body of `Loop`. It may read tensors of the outer graph.
    pub fn subgraph(self) -> Attribute {
        Attribute::Graph(Box::new(self.graph))
    }

    /// The finished model, checked; `path` is where it will be written.
    pub fn finish(self, path: &Path) -> Result<Model, OnnxError> {
        let proto = ModelProto {
            // IR 8 goes with opset 15 to 18, IR 10 with 21 (onnx/docs/Versioning.md).
            ir_version: if self.opset <= 18 { 8 } else { 10 },
            producer_name: "watus-build".to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            opset_import: vec![OperatorSetIdProto {
                domain: String::new(),
                version: self.opset,
                ..OperatorSetIdProto::default()
            }],
            graph: Some(self.graph).into(),
            metadata_props: self.metadata.into_iter().map(|(key, value)| entry(&key, value)).collect(),
            ..ModelProto::default()
        };
        let model = Model { path: path.to_owned(), proto };
        model.check_names().map_err(|message| model.fail(message))?;
        Ok(model)
    }

    /// A name that is not used yet.
    pub fn fresh(&mut self, stem: &str) -> String {
        self.fresh += 1;
        format!("{stem}_{}", self.fresh)
    }
}

pub(super) fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto { key: key.to_owned(), value, ..StringStringEntryProto::default() }
}

pub(super) fn value_info(name: &str, dtype: DType, shape: &[Option<usize>]) -> ValueInfoProto {
    let dim = |(axis, dim): (usize, &Option<usize>)| Dimension {
        value: Some(match dim {
            Some(size) => Value::DimValue(i64::try_from(*size).unwrap_or(i64::MAX)),
            None => Value::DimParam(if axis == 0 { "N".to_owned() } else { format!("{name}_{axis}") }),
        }),
        ..Dimension::default()
    };
    let shape = TensorShapeProto { dim: shape.iter().enumerate().map(dim).collect(), ..TensorShapeProto::default() };
    let tensor = type_proto::Tensor {
        elem_type: elem_type(dtype) as i32,
        shape: Some(shape).into(),
        ..type_proto::Tensor::default()
    };
    ValueInfoProto {
        name: name.to_owned(),
        type_: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() }).into(),
        ..ValueInfoProto::default()
    }
}

/// Makes a node.
pub(super) fn node(
    name: String,
    op: &str,
    inputs: &[&str],
    outputs: &[&str],
    attributes: &[(&str, Attribute)],
) -> NodeProto {
    NodeProto {
        name,
        op_type: op.to_owned(),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: outputs.iter().map(|name| (*name).to_owned()).collect(),
        attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
        ..NodeProto::default()
    }
}

pub(super) fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut proto = AttributeProto { name: name.to_owned(), ..AttributeProto::default() };
    let kind = match value {
        Attribute::Int(value) => {
            proto.i = *value;
            AttributeType::INT
        }
        Attribute::Float(value) => {
            proto.f = *value;
            AttributeType::FLOAT
        }
        Attribute::Ints(values) => {
            proto.ints.clone_from(values);
            AttributeType::INTS
        }
        Attribute::Text(value) => {
            proto.s = value.clone().into_bytes();
            AttributeType::STRING
        }
        Attribute::Graph(graph) => {
            proto.g = Some((**graph).clone()).into();
            AttributeType::GRAPH
        }
    };
    proto.type_ = kind.into();
    proto
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_numbers_become_names() {
        let mut graph = GraphBuilder::new("g", 17);
        graph.input("x", DType::Float32, &[Some(1)]);
        let y = graph.node("Relu", &["x"], &[]);
        let z = graph.node("Exp", &[&y], &[]);
        graph.output(&z, DType::Float32, &[Some(1)]);
        let model = graph.finish(Path::new("g.onnx")).unwrap();
        assert_eq!(model.name_nodes("bad\n  node #1: no"), "bad\n  node 'Exp_1' (Exp): no");
        assert_eq!(model.name_nodes("node #0, node #9, node #"), "node 'Relu_0' (Relu), node #9, node #");
        assert_eq!(model.name_nodes("nothing"), "nothing");
    }

    #[test]
    fn mistakes_of_a_converter_are_told() {
        let mut graph = GraphBuilder::new("g", 17);
        let y = graph.node("Relu", &["missing"], &[]);
        graph.output(&y, DType::Float32, &[Some(1)]);
        let error = graph.finish(Path::new("g.onnx")).unwrap_err().to_string();
        assert!(error.contains("'Relu_0' (Relu) reads `missing`, which nothing produces"), "{error}");
    }
}
