//! Depth of a graph: rten plans recursively from the outputs to the inputs, so that the longest chain of nodes
//! determines its stack.

use std::collections::HashMap;

use onnx_protobuf::{GraphProto, ModelProto, NodeProto};

use super::attributes::graphs;

/// Lengths of the longest chains of dependent nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Longest chain in the main graph.
    pub graph: usize,
    /// Longest chain in any subgraph.
    pub subgraph: usize,
}

/// The depths of a model's graphs.
pub(super) fn of(model: &ModelProto) -> Depth {
    let Some(graph) = model.graph.as_ref() else { return Depth::default() };
    let mut inner: Vec<&GraphProto> = subgraphs(graph).collect();
    let mut subgraph = 0;
    while let Some(graph) = inner.pop() {
        subgraph = subgraph.max(longest(graph));
        inner.extend(subgraphs(graph));
    }
    Depth { graph: longest(graph), subgraph }
}

fn subgraphs(graph: &GraphProto) -> impl Iterator<Item = &GraphProto> {
    graph.node.iter().flat_map(graphs)
}

/// All tensors that a node reads: its inputs, and what its subgraphs read and return of the outer graph.
pub(super) fn reads(node: &NodeProto) -> Vec<&str> {
    let mut names: Vec<&str> = node.input.iter().map(String::as_str).collect();
    let mut inner: Vec<&GraphProto> = graphs(node).collect();
    while let Some(graph) = inner.pop() {
        names.extend(graph.node.iter().flat_map(|node| &node.input).map(String::as_str));
        names.extend(graph.output.iter().map(|output| output.name.as_str()));
        inner.extend(subgraphs(graph));
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Length of the longest chain. In the main graph producers come before consumers ([`super::Model::parse`] checks
/// that); in a subgraph they may not, and a node that depends on a later one counts as depending on all.
fn longest(graph: &GraphProto) -> usize {
    let mut makers: HashMap<&str, usize> = HashMap::new();
    for (at, node) in graph.node.iter().enumerate() {
        makers.extend(node.output.iter().map(|name| (name.as_str(), at)));
    }
    let mut depths: HashMap<&str, usize> = HashMap::new();
    let mut longest = 0;
    for (at, node) in graph.node.iter().enumerate() {
        let reads = reads(node);
        let late = reads.iter().any(|name| makers.get(name).is_some_and(|maker| *maker >= at));
        let before = reads.iter().filter_map(|name| depths.get(name)).max().copied().unwrap_or(0);
        let depth = if late { graph.node.len() } else { before + 1 };
        longest = longest.max(depth);
        depths.extend(node.output.iter().map(|name| (name.as_str(), depth)));
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;
    use onnx_protobuf::AttributeProto;

    fn node(input: &str, output: &str) -> NodeProto {
        NodeProto { input: vec![input.to_owned()], output: vec![output.to_owned()], ..NodeProto::default() }
    }

    #[test]
    fn chains_are_measured_wherever_they_are() {
        let chain = |length: usize| GraphProto {
            node: (0..length).map(|at| node(&at.to_string(), &(at + 1).to_string())).collect(),
            ..GraphProto::default()
        };
        let mut backwards = chain(7);
        backwards.node.reverse();
        let holder = |graph: GraphProto| {
            let attribute = AttributeProto { g: Some(graph).into(), ..AttributeProto::default() };
            NodeProto { attribute: vec![attribute], ..node("0", "holder") }
        };
        let mut outer = chain(3);
        outer.node.push(holder(GraphProto { node: vec![holder(backwards)], ..GraphProto::default() }));
        let model = ModelProto { graph: Some(outer).into(), ..ModelProto::default() };
        // The holder waits for the `3` that is read inside it.
        assert_eq!(of(&model), Depth { graph: 4, subgraph: 7 });
    }
}
