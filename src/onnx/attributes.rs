//! Access to a node's attributes, inputs, outputs and subgraphs, and its name for messages.

use onnx_protobuf::{AttributeProto, GraphProto, NodeProto};

/// Reads attributes by name; a missing attribute, or one of another type, has the default value.
pub(super) trait Attributes {
    /// The attribute with this name.
    fn get(&self, name: &str) -> Option<&AttributeProto>;
    /// Operator and name for messages, "Conv 'layer1/Conv'"; without a name the first output's.
    fn label(&self) -> String;
    /// Whether the operator belongs to ONNX's own domain.
    fn is_standard(&self) -> bool;

    /// An integer attribute.
    fn int(&self, name: &str, default: i64) -> i64 {
        self.get(name).map_or(default, |attribute| attribute.i)
    }

    /// A float attribute.
    fn float(&self, name: &str, default: f32) -> f32 {
        self.get(name).map_or(default, |attribute| attribute.f)
    }

    /// A list of integers.
    fn ints(&self, name: &str) -> Option<&[i64]> {
        self.get(name).map(|attribute| attribute.ints.as_slice())
    }

    /// A string attribute.
    fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|attribute| std::str::from_utf8(&attribute.s).ok())
    }
}

impl Attributes for NodeProto {
    fn get(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|attribute| attribute.name == name)
    }

    fn label(&self) -> String {
        let output = self.output.iter().find(|output| !output.is_empty());
        match (self.name.is_empty(), output) {
            (false, _) => format!("node '{}' ({})", self.name, self.op_type),
            (true, Some(output)) => format!("the node that makes `{output}` ({})", self.op_type),
            (true, None) => format!("a node without a name ({})", self.op_type),
        }
    }

    fn is_standard(&self) -> bool {
        matches!(self.domain.as_str(), "" | "ai.onnx")
    }
}

/// The input at `index`; `None` if it is omitted.
pub(super) fn input(node: &NodeProto, index: usize) -> Option<&str> {
    node.input.get(index).map(String::as_str).filter(|name| !name.is_empty())
}

/// Whether the node has an output at `index`.
pub(super) fn has_output(node: &NodeProto, index: usize) -> bool {
    node.output.get(index).is_some_and(|name| !name.is_empty())
}

/// The subgraphs of a node.
pub(super) fn graphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|attribute| attribute.g.as_ref().into_iter().chain(&attribute.graphs))
}

/// The subgraphs of a node, mutable.
pub(super) fn graphs_mut(node: &mut NodeProto) -> impl Iterator<Item = &mut GraphProto> {
    node.attribute.iter_mut().flat_map(|attribute| attribute.g.as_mut().into_iter().chain(&mut attribute.graphs))
}
