//! Finds what TensorRT's parser accepts but computes wrongly, or not at all: it has no upper bound on the opset, and
//! reads some inputs without using them.

use std::collections::HashSet;

use onnx_protobuf::{GraphProto, NodeProto, tensor_proto};

use super::Model;
use super::attributes::{Attributes, graphs, input};
use super::facts::Facts;
use super::parser::pooling;
use crate::diagnostic::Diagnostic;

/// Properties of TensorRT's ONNX parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parser {
    /// Newest opset that it supports.
    pub newest: i64,
    /// TensorRT-RTX's major and minor version; `None` for TensorRT.
    pub rtx: Option<(u32, u32)>,
}

/// Major and minor version of TensorRT-RTX.
type Rtx = (u32, u32);

/// Refused operators: name, the TensorRT-RTX concerned (`None`: every TensorRT), and the reason with a hint.
const REFUSED: &[(&str, Option<Rtx>, &str)] = &[
    // Seen with 1.6.1: "terminate called without an active exception".
    (
        "RoiAlign",
        Some((1, 6)),
        "TensorRT-RTX 1.6 ends the process that loads it: build with TensorRT, or cut the model before it",
    ),
    (
        "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike",
        None,
        "its numbers are other ones each time and in each runtime, so that no engine can be verified: make the random tensor an \
         input of the model",
    ),
];

/// The first fault in a model for a TensorRT with this parser.
pub(super) fn parser_fault(model: &Model, parser: Parser) -> Option<String> {
    let (opset, newest) = (model.opset(), parser.newest);
    if opset > newest {
        return Some(format!(
            "opset {opset} is newer than this TensorRT's parser knows ({newest}), which does not check it: export with \
             opset {newest} or below"
        ));
    }
    misread(&model.proto.graph, None, opset, parser)
}

/// The first node of a graph or its subgraphs that would be computed wrongly.
fn misread(graph: &GraphProto, outer: Option<&Facts<'_>>, opset: i64, parser: Parser) -> Option<String> {
    let mut facts = Facts::new(graph, outer, opset);
    for node in &graph.node {
        if let Some(inner) = graphs(node).find_map(|inner| misread(inner, Some(&facts), opset, parser)) {
            return Some(inner);
        }
        if let Some(why) = why(node, &facts, parser).filter(|_| node.is_standard()) {
            return Some(format!("{}: {why}", node.label()));
        }
        facts.follow(node);
    }
    None
}

fn why(node: &NodeProto, facts: &Facts<'_>, parser: Parser) -> Option<&'static str> {
    let op = node.op_type.as_str();
    let here = |rtx: &Option<(u32, u32)>| rtx.is_none() || *rtx == parser.rtx;
    let refused = REFUSED.iter().find(|(names, rtx, _)| here(rtx) && names.split(' ').any(|name| name == op));
    if let Some((_, _, why)) = refused {
        return Some(*why);
    }
    match op {
        // ONNX Attention-24: input 6 is nonpad_kv_seqlen. Seen with TensorRT-RTX 1.6.1: parsed, and used by no layer.
        "Attention" if input(node, 6).is_some() => Some("TensorRT ignores its input nonpad_kv_seqlen: use a mask"),
        "MaxPool" | "AveragePool" if pooling::is_doubtful(node, facts) => Some(
            "TensorRT has other windows at the end for its ceil_mode, and the size of its input is not known: give shapes, or \
             export it with ceil_mode 0 and pads",
        ),
        _ => None,
    }
}

/// The first node that ONNX Runtime (1.32) computes differently from ONNX's node tests, or differently each time.
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

/// Operators with 8- or 4-bit integer arithmetic, of ONNX and of onnxruntime's own domain (onnxruntime,
/// `docs/ContribOperators.md`).
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

/// Why an already quantised model cannot be built. TensorRT-RTX has no 8-bit activations, TensorRT needs INT8 settings
/// that our builds do not make, neither supports the integer operators; and the conversion to half precision would take
/// a DequantizeLinear's output for integers. Weights that are only dequantised to float32 are left to TensorRT.
pub(super) fn quantised(model: &Model, half: bool) -> Option<Diagnostic> {
    let is_quantised = |op: &str| op == "QuantizeLinear" || op.starts_with("QLinear") || INTEGER.contains(&op);
    let nodes = &model.proto.graph.node;
    let first = nodes.iter().find(|node| is_quantised(&node.op_type) || half && node.op_type == "DequantizeLinear")?;
    let count = nodes.iter().filter(|node| is_quantised(&node.op_type) || node.op_type == "DequantizeLinear").count();
    let what = format!(
        "it comes quantised: {count} of its {} nodes, the first of them '{}' ({}){}",
        nodes.len(),
        first.name,
        first.op_type,
        if has_unsigned(model) { "; with uint8 values besides, where TensorRT takes symmetric int8 alone" } else { "" },
    );
    let help = "take the float model it was made of, with `precision: fp16` where it should be small and fast";
    Some(Diagnostic::new(what).with_help(help))
}

/// Whether a zero point is uint8: asymmetric quantisation, onnxruntime's default.
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
    use crate::onnx::{Attribute, GraphBuilder};
    use crate::tensor::{DType, Tensor, TensorData};

    fn one(op: &str, shape: &[Option<usize>], inputs: &[&str], attributes: &[(&str, Attribute)]) -> Model {
        let mut graph = GraphBuilder::new("g", 17);
        graph.input("x", DType::Float32, shape);
        graph.node_named(op, inputs, &["y"], attributes);
        graph.output("y", DType::Float32, &[None]);
        graph.finish(Path::new("g.onnx")).unwrap()
    }

    #[test]
    fn what_a_parser_misreads_is_told_by_name() {
        let trt = Parser { newest: 17, rtx: None };
        let rtx = |minor| Parser { newest: 24, rtx: Some((1, minor)) };
        let roi = one("RoiAlign", &[Some(1)], &["x", "x", "x"], &[]);
        let told = roi.parser_fault(rtx(6)).unwrap();
        assert!(told.starts_with("node 'RoiAlign_0' (RoiAlign): TensorRT-RTX 1.6 ends the process"), "{told}");
        assert_eq!((roi.parser_fault(rtx(7)), roi.parser_fault(trt)), (None, None));
        for parser in [trt, rtx(6)] {
            let told = one("RandomNormalLike", &[Some(1)], &["x"], &[]).parser_fault(parser).unwrap();
            assert!(told.contains("(RandomNormalLike): its numbers are other ones each time"), "{told}");
            assert_eq!(one("Relu", &[Some(1)], &["x"], &[]).parser_fault(parser), None);
        }
        let told = one("Relu", &[Some(1)], &["x"], &[]).parser_fault(Parser { newest: 16, rtx: None }).unwrap();
        assert!(told.starts_with("opset 17 is newer than this TensorRT's parser knows (16)"), "{told}");
        // Inside of other nodes too.
        let mut branch = GraphBuilder::new("branch", 17);
        branch.node_named("Bernoulli", &["x"], &["made"], &[]);
        branch.output("made", DType::Float32, &[None]);
        let told = one("If", &[], &["x"], &[("then_branch", branch.subgraph())]).parser_fault(trt).unwrap();
        assert!(told.contains("(Bernoulli)"), "{told}");
    }

    #[test]
    fn windows_of_unknown_sizes_are_told_where_they_may_be_others() {
        let parser = Parser { newest: 17, rtx: None };
        let unknown = [Some(1), Some(3), None, None];
        let pool = |op: &str, shape: &[Option<usize>], kernel: i64, stride: i64, end: i64, count: i64| {
            let attributes: [(&str, Attribute); 5] = [
                ("kernel_shape", [kernel, kernel].into()),
                ("strides", [stride, stride].into()),
                ("pads", [0, 0, end, end].into()),
                ("ceil_mode", 1.into()),
                ("count_include_pad", count.into()),
            ];
            one(op, shape, &["x"], &attributes).parser_fault(parser).is_some()
        };
        assert!(!pool("MaxPool", &unknown, 3, 2, 0, 0), "a window begins in what the one before left");
        assert!(pool("MaxPool", &unknown, 3, 3, 1, 0));
        assert!(pool("AveragePool", &unknown, 3, 2, 0, 1));
        assert!(!pool("AveragePool", &[Some(1), Some(3), Some(7), Some(8)], 3, 2, 0, 1), "it is written otherwise");
    }

    /// A graph that quantises and dequantises x, as exporters write it, or with only the weights quantised.
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
        let told = model(signed(), false).quantised(false).unwrap().to_string();
        assert!(
            told.starts_with("it comes quantised: 2 of its 3 nodes, the first of them 'QuantizeLinear_0'"),
            "{told}"
        );
        assert!(told.contains("hint: take the float model") && !told.contains("uint8"), "{told}");
        let told = model(TensorData::U8(vec![128]), false).quantised(true).unwrap().to_string();
        assert!(told.contains("symmetric int8 alone"), "{told}");
        assert_eq!(model(signed(), true).quantised(false), None);
        let told = model(signed(), true).quantised(true).unwrap().to_string();
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
