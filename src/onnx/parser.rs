//! Rewrites graphs so that TensorRT's parser interprets them correctly.
//!
//! The parser silently misinterprets some of ONNX: attributes it does not know or whose default it has differently,
//! windows that begin in the padding, outputs of another type. They are rewritten in a form with one meaning; what
//! cannot be rewritten is refused by `check`. Sources: onnx-tensorrt 10.1 (onnxOpImporters.cpp, importerUtils.cpp), and
//! results of TensorRT-RTX 1.6.1 on ONNX's own node tests. `tests/node_tests.rs` compares both versions in onnxruntime.

pub(super) mod pooling;

use std::cell::RefCell;

use onnx_protobuf::{GraphProto, NodeProto};

use super::Model;
use super::attributes::{Attributes, graphs_mut, has_output, input};
use super::editor::{Editor, output, set, unset, wanted};
use super::facts::Facts;
use super::graph::Attribute;
use super::reference::{Done, Rewritten, empty_axes, nearest};
use super::simplify::{Names, at_inference, detach_constants};

impl Model {
    /// Rewrites what TensorRT's parser would misinterpret; returns whether there was any.
    pub fn prepare_for_tensorrt(&mut self) -> bool {
        let opset = self.opset();
        let Some(graph) = self.proto.graph.as_mut() else { return false };
        let names = RefCell::new(Names::of(graph));
        let changed = ParserWork { names: &names, opset }.graph(graph, None);
        if changed {
            detach_constants(&mut self.proto);
        }
        changed
    }
}

struct ParserWork<'w> {
    names: &'w RefCell<Names>,
    opset: i64,
}

impl ParserWork<'_> {
    fn graph(&self, graph: &mut GraphProto, outer: Option<&Facts<'_>>) -> bool {
        let nodes = std::mem::take(&mut graph.node);
        let mut edit = Editor::new(Facts::new(graph, outer, self.opset), self.names);
        let mut changed = false;
        for mut node in nodes {
            for inner in graphs_mut(&mut node) {
                changed |= self.graph(inner, Some(edit.facts()));
            }
            edit.start(&node);
            // A node without its inputs is no valid one, which the parser says.
            let done = rewrite(&mut edit, &mut node).unwrap_or(Done::Kept);
            changed |= done != Done::Kept;
            if done != Done::Replaced {
                edit.push(node);
            }
        }
        let (nodes, constants) = edit.finish();
        graph.node = nodes;
        graph.initializer.extend(constants);
        changed
    }
}

/// Rewrites a node that the parser would misinterpret.
fn rewrite(edit: &mut Editor<'_>, node: &mut NodeProto) -> Rewritten {
    if !node.is_standard() {
        return Ok(Done::Kept);
    }
    match node.op_type.as_str() {
        "Trilu" => trilu(node),
        "RNN" | "LSTM" | "GRU" if node.int("layout", 0) != 0 => batch_first(edit, node),
        "ReduceLogSum" => empty_axes(edit, node, "Log"),
        "ReduceL1" | "ReduceL2" => empty_axes(edit, node, "Abs"),
        "ReduceSumSquare" => empty_axes(edit, node, "Mul"),
        "GreaterOrEqual" => greater_or_equal(edit, node),
        "Dropout" => mask(edit, node),
        "MaxPool" | "AveragePool" => pooling::write(edit, node),
        "Resize" => nearest::write(edit, node),
        _ => Ok(Done::Kept),
    }
}

/// Trilu: the parser's default of `upper` is 0, ONNX's is 1.
fn trilu(node: &mut NodeProto) -> Rewritten {
    if node.get("upper").is_some() {
        return Ok(Done::Kept);
    }
    set(node, "upper", 1_i64);
    Ok(Done::Changed)
}

/// Recurrent layers with `layout` 1 (batch first), which the parser does not know: transposes inputs and outputs.
fn batch_first(edit: &mut Editor<'_>, node: &mut NodeProto) -> Rewritten {
    // The sequence, and the states before it.
    for index in [0, 5, 6] {
        let Some(name) = input(node, index).map(str::to_owned) else { continue };
        let swapped = edit.op("Transpose", &[&name], &[("perm", [1, 0, 2].into())]);
        if let Some(slot) = node.input.get_mut(index) {
            *slot = swapped;
        }
    }
    unset(node, "layout");
    let mut results = Vec::new();
    for (index, name) in node.output.iter_mut().enumerate().filter(|(_, name)| !name.is_empty()) {
        let made = edit.fresh("sequence_first");
        results.push((index, made.clone(), std::mem::replace(name, made)));
    }
    edit.push(std::mem::take(node));
    for (index, made, result) in results {
        // Y is [sequence, directions, batch, hidden], the last states [directions, batch, hidden].
        let perm: Attribute = if index == 0 { [2, 0, 1, 3].into() } else { [1, 0, 2].into() };
        edit.make("Transpose", &[&made], &[&result], &[("perm", perm)]);
    }
    Ok(Done::Replaced)
}

/// GreaterOrEqual: TensorRT-RTX 1.6.1 never finishes compiling it on shapes (3, 4, 5) and (5), but compiles its
/// definition by other operators in a moment.
fn greater_or_equal(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (a, b, y) = (wanted(node, 0)?, wanted(node, 1)?, output(node, 0)?);
    let (left, right) = (edit.facts().get(&a), edit.facts().get(&b));
    if left.count().is_some() && left.shape == right.shape {
        return Ok(Done::Kept);
    }
    let greater = edit.op("Greater", &[&a, &b], &[]);
    let equal = edit.op("Equal", &[&a, &b], &[]);
    edit.make("Or", &[&greater, &equal], &[&y], &[]);
    Ok(Done::Replaced)
}

/// The mask output of a Dropout at inference. The parser compares the input with itself, which is false for NaN, and
/// returns booleans where floats are required (before opset 10). The mask is all false up to opset 11, as in
/// onnxruntime, and all true from then on.
fn mask(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let opset = edit.facts().opset();
    if opset < 7 || !has_output(node, 1) || !at_inference(node, edit.facts()) {
        return Ok(Done::Kept);
    }
    let (x, y, mask) = (wanted(node, 0)?, output(node, 0)?, output(node, 1)?);
    let type_of_x = edit.facts().get(&x).elem;
    match (opset, type_of_x) {
        (..=9, Some(elem)) => {
            let never = edit.op("Less", &[&x, &x], &[]);
            edit.make("Cast", &[&never], &[&mask], &[("to", i64::from(elem).into())]);
        }
        (..=9, None) => return Ok(Done::Kept),
        (10 | 11, _) => edit.make("Less", &[&x, &x], &[&mask], &[]),
        _ => {
            let never = edit.op("Less", &[&x, &x], &[]);
            edit.make("Not", &[&never], &[&mask], &[]);
        }
    }
    edit.make("Identity", &[&x], &[&y], &[]);
    Ok(Done::Replaced)
}

#[cfg(test)]
mod tests;
