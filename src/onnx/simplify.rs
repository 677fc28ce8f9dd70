//! Removes what needs no computation: constant shape arithmetic, `If` with a constant condition, Identity and Dropout
//! at inference, unused nodes.
//!
//! The network's own floats stay as they are; only the small tensors of `facts` are evaluated.

use std::collections::{HashMap, HashSet, VecDeque};

use onnx_protobuf::{GraphProto, ModelProto, NodeProto, TensorProto};

use super::attributes::{Attributes, graphs, graphs_mut, has_output, input};
use super::depth::reads;
use super::facts::{Facts, to_tensor};

/// Names in use, in a graph and its subgraphs.
#[derive(Debug)]
pub(super) struct Names {
    taken: HashSet<String>,
    next: usize,
}

impl Names {
    /// All names of a graph.
    pub(super) fn of(graph: &GraphProto) -> Self {
        let mut taken = HashSet::new();
        let mut pending = vec![graph];
        while let Some(graph) = pending.pop() {
            taken.extend(graph.initializer.iter().map(|tensor| tensor.name.clone()));
            taken.extend(graph.sparse_initializer.iter().map(|tensor| tensor.values.name.clone()));
            taken.extend(graph.input.iter().chain(&graph.output).map(|value| value.name.clone()));
            for node in &graph.node {
                taken.extend(node.input.iter().chain(&node.output).cloned());
                taken.insert(node.name.clone());
                pending.extend(graphs(node));
            }
        }
        Self { taken, next: 0 }
    }

    /// An unused name similar to `stem`.
    pub(super) fn fresh(&mut self, stem: &str) -> String {
        loop {
            let name = format!("{stem}.{}", self.next);
            self.next += 1;
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }
}

/// Simplifies a model in place; returns whether anything changed.
pub(super) fn simplify(model: &mut ModelProto, opset: i64) -> bool {
    let Some(graph) = model.graph.as_mut().filter(|graph| named_once(graph, &mut HashSet::new())) else { return false };
    let mut pass = Pass { names: Names::of(graph), opset };
    let changed = pass.graph(graph, None);
    if changed {
        detach_constants(model);
    }
    changed
}

/// Removes constants from the graph's inputs: before IR version 4 every constant had to be an input, and new ones are
/// not.
pub(super) fn detach_constants(model: &mut ModelProto) {
    let Some(graph) = model.graph.as_mut().filter(|_| model.ir_version < 4) else { return };
    let constants: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    graph.input.retain(|input| !constants.contains(input.name.as_str()));
    model.ir_version = 4;
}

/// Whether every tensor name is unique in its graph and the outer ones ("Names Within a Graph", ONNX's IR); otherwise
/// names would be confused.
fn named_once<'g>(graph: &'g GraphProto, seen: &mut HashSet<&'g str>) -> bool {
    let constants: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let inputs = graph.input.iter().map(|value| value.name.as_str()).filter(|name| !constants.contains(name));
    let outputs = graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str));
    let mut own = Vec::new();
    for name in inputs.chain(outputs).filter(|name| !name.is_empty()).chain(constants.iter().copied()) {
        if !seen.insert(name) {
            return false;
        }
        own.push(name);
    }
    let inner = graph.node.iter().flat_map(graphs).all(|inner| named_once(inner, seen));
    own.iter().for_each(|name| {
        seen.remove(name);
    });
    inner
}

/// Renames a node's inputs, also in its subgraphs.
fn rename(node: &mut NodeProto, names: &HashMap<String, String>) {
    if names.is_empty() {
        return;
    }
    let change = |name: &mut String| {
        if let Some(new) = names.get(name.as_str()) {
            name.clone_from(new);
        }
    };
    node.input.iter_mut().for_each(change);
    let mut pending: Vec<&mut GraphProto> = graphs_mut(node).collect();
    while let Some(graph) = pending.pop() {
        graph.output.iter_mut().for_each(|output| change(&mut output.name));
        for node in &mut graph.node {
            node.input.iter_mut().for_each(change);
            pending.extend(graphs_mut(node));
        }
    }
}

struct Pass {
    names: Names,
    opset: i64,
}

impl Pass {
    fn graph(&mut self, graph: &mut GraphProto, outer: Option<&Facts<'_>>) -> bool {
        let mut facts = Facts::new(graph, outer, self.opset);
        let results: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
        let mut read: HashSet<String> = graph.node.iter().flat_map(reads).map(str::to_owned).collect();
        let mut work: VecDeque<NodeProto> = std::mem::take(&mut graph.node).into();
        let (mut written, mut aliases) = (Vec::new(), HashMap::new());
        let mut changed = false;
        while let Some(mut node) = work.pop_front() {
            rename(&mut node, &aliases);
            if let Some(branch) = decided(&node, &facts) {
                let (nodes, constants) = self.inlined(&node, branch);
                constants.iter().for_each(|tensor| facts.constant(tensor));
                graph.initializer.extend(constants);
                read.extend(nodes.iter().flat_map(reads).map(str::to_owned));
                nodes.into_iter().rev().for_each(|inner| work.push_front(inner));
                changed = true;
                continue;
            }
            let is_read = |name: &str| read.contains(name) || results.contains(name);
            if passes_on(&node, &facts, &is_read) {
                changed |= node.op_type != "Identity";
                if let (Some(from), Some(to)) = (node.input.first(), node.output.first())
                    && !results.contains(to)
                {
                    aliases.insert(to.clone(), from.clone());
                    changed = true;
                    continue;
                }
                "Identity".clone_into(&mut node.op_type);
                node.input.truncate(1);
                node.output.truncate(1);
                node.attribute.clear();
            }
            for inner in graphs_mut(&mut node) {
                changed |= self.graph(inner, Some(&facts));
            }
            facts.follow(&node);
            match constants(&node, &facts).filter(|_| !node.output.iter().any(|name| results.contains(name))) {
                Some(tensors) => {
                    tensors.iter().for_each(|tensor| facts.constant(tensor));
                    graph.initializer.extend(tensors);
                    changed = true;
                }
                None => written.push(node),
            }
        }
        graph.node = written;
        sweep(graph) || changed
    }

    /// Inlines a branch: its nodes and constants, renamed.
    fn inlined(&mut self, node: &NodeProto, branch: GraphProto) -> (Vec<NodeProto>, Vec<TensorProto>) {
        let mut names: HashMap<String, String> = HashMap::new();
        let made = branch.node.iter().flat_map(|inner| &inner.output).filter(|name| !name.is_empty());
        for name in made.chain(branch.initializer.iter().map(|tensor| &tensor.name)) {
            names.insert(name.clone(), self.names.fresh(name));
        }
        let renamed = |name: &String| names.get(name).cloned().unwrap_or_else(|| name.clone());
        let mut constants = branch.initializer;
        constants.iter_mut().for_each(|tensor| tensor.name = renamed(&tensor.name));
        let mut nodes = branch.node;
        for inner in &mut nodes {
            rename(inner, &names);
            inner.output.iter_mut().for_each(|name| *name = renamed(name));
        }
        for (result, output) in branch.output.iter().zip(&node.output).filter(|(_, output)| !output.is_empty()) {
            nodes.push(NodeProto {
                name: self.names.fresh(&node.name),
                op_type: "Identity".to_owned(),
                input: vec![renamed(&result.name)],
                output: vec![output.clone()],
                ..NodeProto::default()
            });
        }
        (nodes, constants)
    }
}

/// The branch that an `If` takes, if that is certain.
fn decided(node: &NodeProto, facts: &Facts<'_>) -> Option<GraphProto> {
    if node.op_type != "If" || !node.is_standard() {
        return None;
    }
    let condition = *facts.input(node, 0).ints()?.first()?;
    let branch = node.get(if condition != 0 { "then_branch" } else { "else_branch" })?.g.as_ref()?;
    let whole = branch.sparse_initializer.is_empty() && branch.input.is_empty();
    (whole && branch.output.len() >= node.output.len() && is_sound(branch, facts)).then(|| branch.clone())
}

/// Whether a branch could be part of the outer graph, whose names are checked when a file is read.
fn is_sound(branch: &GraphProto, facts: &Facts<'_>) -> bool {
    let mut made: HashSet<&str> = branch.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    for node in &branch.node {
        let mut inputs = node.input.iter().filter(|name| !name.is_empty());
        if !inputs.all(|name| made.contains(name.as_str()) || facts.has(name)) {
            return false;
        }
        made.extend(node.output.iter().map(String::as_str));
    }
    let texts = branch.node.iter().flat_map(|node| [&node.name, &node.op_type].into_iter().chain(&node.input));
    let mut texts = texts.map(String::as_str).chain(made.iter().copied());
    texts.all(|text| !text.chars().any(char::is_control))
        && branch.output.iter().all(|output| made.contains(output.name.as_str()) || facts.has(&output.name))
}

/// Whether a node's output equals its first input.
fn passes_on(node: &NodeProto, facts: &Facts<'_>, is_read: &dyn Fn(&str) -> bool) -> bool {
    if !node.is_standard() || input(node, 0).is_none() || !has_output(node, 0) {
        return false;
    }
    match node.op_type.as_str() {
        "Identity" => true,
        "Dropout" => {
            let read = node.output.get(1).is_some_and(|mask| !mask.is_empty() && is_read(mask));
            at_inference(node, facts) && !read
        }
        _ => false,
    }
}

/// Whether a Dropout certainly has no effect.
pub(super) fn at_inference(node: &NodeProto, facts: &Facts<'_>) -> bool {
    // Training was an attribute, then nothing, then an input (Dropout-6, -7, -12).
    match facts.opset() {
        ..=6 => node.int("is_test", 0) != 0,
        7..=11 => true,
        _ => input(node, 2).is_none() || facts.input(node, 2).ints().is_some_and(|flags| flags == [0]),
    }
}

/// A node's outputs as constants, if all are known.
fn constants(node: &NodeProto, facts: &Facts<'_>) -> Option<Vec<TensorProto>> {
    if !node.is_standard() || !has_output(node, 0) {
        return None;
    }
    if node.op_type == "Constant"
        && let Some(tensor) = node.get("value").and_then(|value| value.t.as_ref())
    {
        let name = node.output.first()?.clone();
        return Some(vec![TensorProto { name, ..tensor.clone() }]);
    }
    let outputs = node.output.iter().filter(|name| !name.is_empty());
    let constant =
        |name: &String| Some(facts.get(name)).filter(|fact| fact.is_constant()).and_then(|f| to_tensor(name, f));
    outputs.map(constant).collect()
}

/// Removes unused nodes and constants; returns whether there were any.
fn sweep(graph: &mut GraphProto) -> bool {
    let mut needed: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let before = graph.node.len() + graph.initializer.len();
    let mut kept = Vec::new();
    for node in std::mem::take(&mut graph.node).into_iter().rev() {
        if node.output.iter().any(|output| needed.contains(output)) {
            needed.extend(reads(&node).into_iter().map(str::to_owned));
            kept.push(node);
        }
    }
    kept.reverse();
    graph.node = kept;
    let unread: HashSet<String> =
        graph.initializer.iter().map(|tensor| tensor.name.clone()).filter(|name| !needed.contains(name)).collect();
    graph.initializer.retain(|tensor| !unread.contains(&tensor.name));
    graph.input.retain(|input| !unread.contains(&input.name));
    let made: HashSet<&str> = graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str)).collect();
    graph.value_info.retain(|value| made.contains(value.name.as_str()));
    before != graph.node.len() + graph.initializer.len()
}

#[cfg(test)]
mod tests;
