//! Rewrites graphs so that the CPU reference rten computes them correctly.
//!
//! rten lacks parts of ONNX or computes them differently, some silently. `known` lists what it computes correctly
//! (operators, opsets, attributes), by ONNX's own node tests and comparisons with onnxruntime. What it computes
//! differently is rewritten with operators from that list (`arithmetic`, `classes`, `layers`, …), and everything else
//! is refused by name. TensorRT and onnxruntime get the original graph.

mod activations;
mod arithmetic;
mod classes;
mod integers;
mod known;
mod layers;
mod layout;
mod quantised;
mod resize;
mod windows;

use std::cell::RefCell;

use onnx_protobuf::{GraphProto, NodeProto};

use super::attributes::{Attributes, graphs_mut};
use super::editor::Editor;
use super::facts::Facts;
use super::graph::value_info;
use super::simplify::Names;
use super::{Model, OnnxError};
use crate::tensor::DType;
pub(super) use activations::mish;
pub(super) use arithmetic::empty_axes;
pub use integers::{GUARD_LIMIT, Guard};
pub(super) use layers::group_norm;
pub(super) use resize::nearest;

/// Hint for graphs that the reference does not support.
const HELP: &str =
    "the embedded reference (rten) does not compute this; ONNX Runtime does: scripts/setup-onnxruntime.sh brings it";

/// Result of rewriting a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// Other nodes were written in its place.
    Replaced,
    /// The node is kept with changes.
    Changed,
    /// The node is kept unchanged.
    Kept,
}

/// Result of rewriting a node, or why it is refused.
pub(super) type Rewritten = Result<Done, String>;

impl Model {
    /// Rewrites the graph so that rten computes it by ONNX's specification, or fails at a node that cannot be
    /// rewritten. Returns whether anything changed, and what must be checked after a run.
    pub fn prepare_for_reference(&mut self) -> Result<(bool, Vec<Guard>), OnnxError> {
        let refuse = |model: &Model, message: String| model.fail(message).with_help(HELP);
        known::check_model(&self.proto).map_err(|message| refuse(self, message))?;
        let simplified = self.simplify();
        let opset = self.opset();
        let Some(graph) = self.proto.graph.as_mut() else { return Ok((simplified, Vec::new())) };
        let names = RefCell::new(Names::of(graph));
        let mut work =
            Work { names: &names, opset, wide: integers::Wide::default(), guards: Vec::new(), changed: simplified };
        let done = work.graph(graph, None);
        let Work { guards, changed, .. } = work;
        done.map_err(|message| refuse(self, message))?;
        Ok((changed, guards))
    }
}

struct Work<'w> {
    names: &'w RefCell<Names>,
    opset: i64,
    wide: integers::Wide,
    guards: Vec<Guard>,
    changed: bool,
}

impl Work<'_> {
    fn graph(&mut self, graph: &mut GraphProto, outer: Option<&Facts<'_>>) -> Result<(), String> {
        self.wide.add(&graph.initializer);
        let nodes = std::mem::take(&mut graph.node);
        let mut edit = Editor::new(Facts::new(graph, outer, self.opset), self.names);
        for mut node in nodes {
            let label = node.label();
            let about = |message: String| format!("{label}: {message}");
            known::check(&node, edit.facts()).map_err(about)?;
            self.wide.check(&node).map_err(about)?;
            for inner in graphs_mut(&mut node) {
                self.graph(inner, Some(edit.facts()))?;
            }
            edit.start(&node);
            // Only the graph itself can give back more than it did.
            let watched = (outer.is_none() && integers::may_overflow(&node, edit.facts())).then(|| node.clone());
            let done = rewrite(&mut edit, &mut node).map_err(about)?;
            self.changed |= done != Done::Kept;
            if done != Done::Replaced {
                edit.push(node);
            }
            if let Some(node) = watched {
                let output = integers::watch(&mut edit, &node);
                graph.output.push(value_info(&output, DType::Float32, &[]));
                self.guards.push(Guard { output, node: label });
                self.changed = true;
            }
        }
        let (nodes, constants) = edit.finish();
        graph.node = nodes;
        graph.initializer.extend(constants);
        Ok(())
    }
}

/// Rewrites a node that rten would compute differently.
fn rewrite(edit: &mut Editor<'_>, node: &mut NodeProto) -> Rewritten {
    if node.domain == "com.microsoft" && node.op_type == "DynamicQuantizeLSTM" {
        return layers::recurrent(edit, node);
    }
    if !node.is_standard() {
        return Ok(Done::Kept);
    }
    match node.op_type.as_str() {
        "Softmax" | "LogSoftmax" => classes::softmax(edit, node),
        "Hardmax" => classes::hardmax(edit, node),
        "ArgMax" | "ArgMin" => classes::arg(edit, node),
        "OneHot" => classes::one_hot(edit, node),
        "Sign" => arithmetic::sign(edit, node),
        "Cast" => arithmetic::cast(edit, node),
        "CastLike" => arithmetic::cast_like(edit, node),
        "MatMul" => arithmetic::product(edit, node),
        "Pow" => arithmetic::power(edit, node),
        "IsInf" => arithmetic::is_infinite(edit, node),
        "ReduceMean" | "ReduceMax" | "ReduceMin" => arithmetic::reduce(edit, node),
        "ReduceL2" => empty_axes(edit, node, "Abs"),
        "Softplus" => activations::softplus(edit, node),
        "Mish" => activations::mish(edit, node),
        "Celu" => activations::celu(edit, node),
        "Selu" => activations::selu(edit, node),
        "ThresholdedRelu" => activations::thresholded(edit, node),
        "Shrink" => activations::shrink(edit, node),
        "QuantizeLinear" => quantised::quantize(edit, node),
        "DynamicQuantizeLinear" => quantised::quantize_dynamically(edit, node),
        "Conv" | "ConvInteger" | "ConvTranspose" | "MaxPool" | "AveragePool" => windows::make_explicit(edit, node),
        "LRN" => layers::local_response(edit, node),
        "GroupNormalization" => layers::group_norm(edit, node),
        "LayerNormalization" => layers::layer_norm(edit, node),
        "MeanVarianceNormalization" => layers::mean_variance(edit, node),
        "LSTM" | "GRU" => layers::recurrent(edit, node),
        "Dropout" => layout::dropout(edit, node),
        "Pad" => layout::pad(edit, node),
        "SpaceToDepth" => layout::space_to_depth(edit, node),
        "Resize" => resize::resize(edit, node),
        _ => Ok(Done::Kept),
    }
}

#[cfg(test)]
mod tests;
