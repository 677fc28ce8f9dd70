//! Attributes of a node by name, and what a node is called in messages.

use onnx_protobuf::{AttributeProto, GraphProto, NodeProto};

/// Reads attributes; what is missing or of another kind is the default.
pub(super) trait Attributes {
    /// The attribute itself.
    fn get(&self, name: &str) -> Option<&AttributeProto>;
    /// "Conv 'layer1/Conv'", or by its first output where it has no name.
    fn label(&self) -> String;
    /// Whether the operator is of ONNX's own set.
    fn is_standard(&self) -> bool;

    /// An integer.
    fn int(&self, name: &str, default: i64) -> i64 {
        self.get(name).map_or(default, |attribute| attribute.i)
    }

    /// A float.
    fn float(&self, name: &str, default: f32) -> f32 {
        self.get(name).map_or(default, |attribute| attribute.f)
    }

    /// A list of integers.
    fn ints(&self, name: &str) -> Option<&[i64]> {
        self.get(name).map(|attribute| attribute.ints.as_slice())
    }

    /// A text.
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

/// The input at `index`; `None` for one that is left out.
pub(super) fn input(node: &NodeProto, index: usize) -> Option<&str> {
    node.input.get(index).map(String::as_str).filter(|name| !name.is_empty())
}

/// Whether the node's output at `index` is asked for.
pub(super) fn has_output(node: &NodeProto, index: usize) -> bool {
    node.output.get(index).is_some_and(|name| !name.is_empty())
}

/// The graphs inside a node.
pub(super) fn graphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|attribute| attribute.g.as_ref().into_iter().chain(&attribute.graphs))
}

/// The graphs inside a node, to be changed.
pub(super) fn graphs_mut(node: &mut NodeProto) -> impl Iterator<Item = &mut GraphProto> {
    node.attribute.iter_mut().flat_map(|attribute| attribute.g.as_mut().into_iter().chain(&mut attribute.graphs))
}
