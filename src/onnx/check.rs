//! What TensorRT's parser takes without a word and then computes wrongly: it checks no upper bound of the opset, and
//! reads some inputs it does not use.

use std::collections::HashSet;

use onnx_protobuf::{NodeProto, tensor_proto};

use super::Model;
use super::attributes::{Attributes, input};
use super::facts::Facts;

/// The first complaint about a model for a TensorRT whose parser knows opsets up to `newest`.
pub(super) fn complaint(model: &Model, newest: i64) -> Option<String> {
    let opset = model.opset();
    if opset > newest {
        return Some(format!(
            "opset {opset} is newer than this TensorRT's parser knows ({newest}), which does not check it: export with \
             opset {newest} or below"
        ));
    }
    // ONNX Attention-24: input 6 is nonpad_kv_seqlen. Seen with TensorRT-RTX 1.6.1: parsed, and used by no layer.
    let mut attention = model.proto.graph.node.iter().filter(|node| node.op_type == "Attention");
    let ignored = attention.find(|node| node.input.get(6).is_some_and(|input| !input.is_empty()))?;
    let name = &ignored.name;
    Some(format!("node '{name}' (Attention): TensorRT ignores its input nonpad_kv_seqlen: use a mask"))
}

/// What ONNX Runtime (1.32) computes otherwise than ONNX's node tests, or differently each time.
pub(super) fn beyond_runtime(model: &Model) -> Option<String> {
    let facts = Facts::new(&model.proto.graph, None, model.opset());
    let leaves_rest = |scales: &[f32]| scales.iter().any(|scale| scale.fract() != 0.0);
    let is_uneven =
        |node: &NodeProto| input(node, 2).is_some() && facts.input(node, 2).floats().is_none_or(leaves_rest);
    let why = |node: &NodeProto| match node.op_type.as_str() {
        "Dropout" if input(node, 2).is_some() && facts.input(node, 2).ints().is_none_or(|flags| flags != [0]) => {
            Some("it may be asked to train, which is random")
        }
        "MaxUnpool" if input(node, 2).is_some() => Some("its output_shape moves values to other places"),
        "Resize" if node.text("coordinate_transformation_mode") == Some("align_corners") && is_uneven(node) => Some(
            "with align_corners and scales that leave a rest, runtimes disagree on where the corners are: give sizes",
        ),
        _ => None,
    };
    let nodes = &model.proto.graph.node;
    nodes.iter().find_map(|node| Some(format!("{}: {}", node.label(), why(node)?)))
}

/// Operators that compute with integers of 8 or 4 bits, of ONNX and of onnxruntime's own domain
/// (onnxruntime, `docs/ContribOperators.md`).
pub const INTEGER: &[&str] = &[
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "QGemm",
    "QAttention",
    "QEmbedLayerNormalization",
    "QOrderedMatMul",
    "MatMulNBits",
];

/// Why a model that comes quantised is not built. TensorRT-RTX computes with no 8-bit activations, TensorRT wants INT8
/// settings that a build here does not make, neither knows the integer operators; and the pass to half precision would
/// take a DequantizeLinear's output for integers. Weights alone that are widened to float32 are TensorRT's to judge.
pub(super) fn quantised(model: &Model, half: bool) -> Option<String> {
    let is_quantised = |op: &str| op == "QuantizeLinear" || op.starts_with("QLinear") || INTEGER.contains(&op);
    let nodes = &model.proto.graph.node;
    let first = nodes.iter().find(|node| is_quantised(&node.op_type) || half && node.op_type == "DequantizeLinear")?;
    let count = nodes.iter().filter(|node| is_quantised(&node.op_type) || node.op_type == "DequantizeLinear").count();
    Some(format!(
        "it comes quantised: {count} of its {} nodes, the first of them '{}' ({}){}\n  hint: take the float model it was made \
         of, with `precision: fp16` where it should be small and fast",
        nodes.len(),
        first.name,
        first.op_type,
        if has_unsigned(model) { "; with uint8 values besides, where TensorRT takes symmetric int8 alone" } else { "" },
    ))
}

/// Whether a zero point is of uint8: an asymmetric quantisation, which onnxruntime makes by default.
fn has_unsigned(model: &Model) -> bool {
    let graph = &model.proto.graph;
    let zero_points: HashSet<&str> = graph
        .node
        .iter()
        .filter(|node| matches!(node.op_type.as_str(), "QuantizeLinear" | "DequantizeLinear"))
        .filter_map(|node| node.input.get(2).map(String::as_str))
        .collect();
    let unsigned = tensor_proto::DataType::UINT8 as i32;
    graph.initializer.iter().any(|tensor| tensor.data_type == unsigned && zero_points.contains(tensor.name.as_str()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::onnx::GraphBuilder;
    use crate::tensor::{DType, Tensor, TensorData};

    /// x, quantised and back, as exporters write it; or with weights alone in integers.
    fn model(zero_point: TensorData, weights_alone: bool) -> Model {
        let mut graph = GraphBuilder::new("g", 17);
        graph.input("x", DType::Float32, &[Some(1)]);
        let scale = graph.scalar(0.5);
        let zero = graph.initializer("zero", &Tensor::new(vec![], zero_point.clone()).unwrap());
        let integers = if weights_alone {
            graph.initializer("w", &Tensor::new(vec![], zero_point).unwrap())
        } else {
            graph.node("QuantizeLinear", &["x", &scale, &zero], &[])
        };
        let widened = graph.node("DequantizeLinear", &[&integers, &scale, &zero], &[]);
        graph.node_named("Mul", &["x", &widened], &["y"], &[]);
        graph.output("y", DType::Float32, &[Some(1)]);
        graph.finish(Path::new("g.onnx")).unwrap()
    }

    #[test]
    fn models_that_come_quantised_are_told_in_one_sentence() {
        let signed = || TensorData::I8(vec![0]);
        let told = model(signed(), false).quantised(false).unwrap();
        assert!(
            told.starts_with("it comes quantised: 2 of its 3 nodes, the first of them 'QuantizeLinear_0'"),
            "{told}"
        );
        assert!(told.contains("hint: take the float model") && !told.contains("uint8"), "{told}");
        let told = model(TensorData::U8(vec![128]), false).quantised(true).unwrap();
        assert!(told.contains("symmetric int8 alone"), "{told}");
        assert_eq!(model(signed(), true).quantised(false), None);
        let told = model(signed(), true).quantised(true).unwrap();
        assert!(told.contains("1 of its 2 nodes") && told.contains("(DequantizeLinear)"), "{told}");
    }

    #[test]
    fn nodes_without_a_name_get_one() {
        let mut nameless = model(TensorData::I8(vec![0]), false);
        let nodes = &mut nameless.proto.graph.as_mut().unwrap().node;
        nodes[0].name.clear();
        nodes[2].name.clear();
        nameless.name_nameless();
        let names: Vec<&str> = nameless.proto.graph.node.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["QuantizeLinear/QuantizeLinear_2", "DequantizeLinear_1", "Mul/y"]);
    }
}
