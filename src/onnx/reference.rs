//! Graphs as the CPU reference computes them rightly.
//!
//! rten leaves out, or does otherwise, parts of what ONNX describes, some without a word. `known` is what it is known to do
//! right: operators, opsets, attributes, made from ONNX's own node tests and from comparisons with onnxruntime. What it does
//! otherwise is written down in operators that it does right (`arithmetic`, `classes`, `layers`, …), and everything else is
//! refused by name. TensorRT and onnxruntime get the graph as it is.

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

/// What to do about what the reference does not compute.
const HELP: &str =
    "the embedded reference (rten) does not compute this; ONNX Runtime does: scripts/setup-onnxruntime.sh brings it";

/// What became of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// Other nodes were written in its place.
    Replaced,
    /// It stays, with something spelled out.
    Changed,
    /// It stays as it is.
    Kept,
}

/// What became of a node, or why it is refused.
pub(super) type Rewritten = Result<Done, String>;

impl Model {
    /// Makes the graph one that rten computes as ONNX describes it, or says which node it cannot. Tells whether anything
    /// changed, and what has to be looked at after a run.
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

/// Writes a node in operators that rten does right, where it does not do this one right.
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
        "Conv" | "ConvInteger" | "ConvTranspose" | "MaxPool" | "AveragePool" => windows::spell_out(edit, node),
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
