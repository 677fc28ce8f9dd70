//! [`Editor`], which writes a graph: nodes in order, constants as needed, and the facts of all tensors so far.

use std::cell::RefCell;

use onnx_protobuf::{NodeProto, TensorProto};

use super::attributes::input;
use super::facts::{Facts, elem};
use super::graph::{Attribute, attribute, node};
use super::simplify::Names;

/// The nodes and constants written so far.
pub(super) struct Editor<'a> {
    facts: Facts<'a>,
    names: &'a RefCell<Names>,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    /// Name prefix for added nodes: the name of the node being rewritten.
    stem: String,
}

impl<'a> Editor<'a> {
    /// An empty editor.
    pub(super) fn new(facts: Facts<'a>, names: &'a RefCell<Names>) -> Self {
        Self { facts, names, nodes: Vec::new(), constants: Vec::new(), stem: String::new() }
    }

    /// Facts about the tensors written so far.
    pub(super) fn facts(&self) -> &Facts<'a> {
        &self.facts
    }

    /// Returns nodes and constants.
    pub(super) fn finish(self) -> (Vec<NodeProto>, Vec<TensorProto>) {
        (self.nodes, self.constants)
    }

    /// Starts the rewriting of a node, whose name prefixes those of added nodes.
    pub(super) fn start(&mut self, node: &NodeProto) {
        let output = node.output.first().map_or("", String::as_str);
        self.stem = if node.name.is_empty() { output.to_owned() } else { node.name.clone() };
    }

    /// Adds a node unchanged.
    pub(super) fn push(&mut self, node: NodeProto) {
        self.facts.follow(&node);
        self.nodes.push(node);
    }

    /// Adds a node with these outputs.
    pub(super) fn make(&mut self, op: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, Attribute)]) {
        let name = self.names.borrow_mut().fresh(&format!("{}/{op}", self.stem));
        self.push(node(name, op, inputs, outputs, attributes));
    }

    /// Adds a node with one output and returns the output's name.
    pub(super) fn op(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        let output = self.fresh(op);
        self.make(op, inputs, &[&output], attributes);
        output
    }

    /// A new name for a tensor.
    pub(super) fn fresh(&mut self, what: &str) -> String {
        self.names.borrow_mut().fresh(&format!("{}/{what}", self.stem))
    }

    /// Adds a Cast.
    pub(super) fn cast(&mut self, name: &str, to: i32) -> String {
        self.op("Cast", &[name], &[("to", i64::from(to).into())])
    }

    /// Adds a Shape: the dimensions of a tensor.
    pub(super) fn shape(&mut self, name: &str) -> String {
        self.op("Shape", &[name], &[])
    }

    /// Adds nodes for one dimension of a tensor, as a list of one element.
    pub(super) fn dim(&mut self, name: &str, axis: i64) -> String {
        // An end of 0 would be before the last one.
        let mut range: Vec<(&str, Attribute)> = vec![("start", axis.into())];
        if axis != -1 {
            range.push(("end", axis.saturating_add(1).into()));
        }
        self.op("Shape", &[name], &range)
    }

    /// Adds a constant list of integers.
    pub(super) fn ints(&mut self, values: &[i64]) -> String {
        self.constant(elem::INT64, vec![values.len()], values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Adds a constant float scalar.
    pub(super) fn float(&mut self, value: f32) -> String {
        self.constant(elem::FLOAT, Vec::new(), value.to_le_bytes().to_vec())
    }

    /// Adds a constant float tensor.
    pub(super) fn floats(&mut self, shape: Vec<usize>, values: &[f32]) -> String {
        self.constant(elem::FLOAT, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Adds a constant boolean.
    pub(super) fn truth(&mut self, value: bool) -> String {
        self.constant(elem::BOOL, Vec::new(), vec![u8::from(value)])
    }

    fn constant(&mut self, data_type: i32, shape: Vec<usize>, raw_data: Vec<u8>) -> String {
        let name = self.fresh("constant");
        let dims = shape.into_iter().map(|dim| i64::try_from(dim).unwrap_or(i64::MAX)).collect();
        let tensor = TensorProto { name: name.clone(), dims, data_type, raw_data, ..TensorProto::default() };
        self.facts.constant(&tensor);
        self.constants.push(tensor);
        name
    }
}

/// The input at `index`; an error if it is omitted.
pub(super) fn wanted(node: &NodeProto, index: usize) -> Result<String, String> {
    input(node, index).map(str::to_owned).ok_or_else(|| format!("has no input {index}"))
}

/// The output at `index`; an error if there is none.
pub(super) fn output(node: &NodeProto, index: usize) -> Result<String, String> {
    let name = node.output.get(index).filter(|name| !name.is_empty());
    name.cloned().ok_or_else(|| format!("has no output {index}"))
}

/// Sets an attribute of a node.
pub(super) fn set(node: &mut NodeProto, name: &str, value: impl Into<Attribute>) {
    unset(node, name);
    node.attribute.push(attribute(name, &value.into()));
}

/// Removes an attribute of a node.
pub(super) fn unset(node: &mut NodeProto, name: &str) {
    node.attribute.retain(|attribute| attribute.name != name);
}
