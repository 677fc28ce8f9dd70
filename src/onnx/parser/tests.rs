//! Tests of the rewritten forms; `tests/node_tests.rs` compares their results in onnxruntime.

use std::path::Path;

use crate::onnx::{Attribute, GraphBuilder, Model};
use crate::tensor::{DType, Tensor};

/// A model of one node from `x` (and constants `more`) to its outputs, rewritten for the parser.
fn prepared(opset: i64, shape: &[usize], op: &str, more: &[&str], attributes: &[(&str, Attribute)]) -> (bool, Model) {
    let mut graph = GraphBuilder::new("g", opset);
    let dims: Vec<Option<usize>> = shape.iter().copied().map(Some).collect();
    graph.input("x", DType::Float32, &dims);
    let scales = Tensor::from_f32(vec![4], vec![1.0, 1.0, 3.0, 1.7]).unwrap();
    graph.initializer("scales", &scales);
    graph.initializer("row", &Tensor::from_f32(vec![2], vec![0.0, 1.0]).unwrap());
    let inputs: Vec<&str> = std::iter::once("x").chain(more.iter().copied()).collect();
    let outputs: &[&str] = if matches!(op, "LSTM" | "Dropout") { &["y", "z"] } else { &["y"] };
    graph.node_named(op, &inputs, outputs, attributes);
    for output in outputs {
        graph.output(output, DType::Float32, &[None]);
    }
    let mut model = graph.finish(Path::new("g.onnx")).unwrap();
    let changed = model.prepare_for_tensorrt();
    model.check_names().unwrap();
    let mut again = model.clone();
    assert!(!again.prepare_for_tensorrt(), "what was written is read rightly");
    (changed, model)
}

fn operators(model: &Model) -> Vec<&str> {
    model.proto.graph.node.iter().map(|node| node.op_type.as_str()).collect()
}

fn ints(model: &Model, node: usize, name: &str) -> Option<Vec<i64>> {
    let attribute = model.proto.graph.node[node].attribute.iter().find(|attribute| attribute.name == name)?;
    Some(if attribute.ints.is_empty() { vec![attribute.i] } else { attribute.ints.clone() })
}

#[test]
fn what_the_parser_would_take_for_something_else_is_written_otherwise() {
    let (changed, model) = prepared(14, &[2, 2], "Trilu", &[], &[]);
    assert!(changed && ints(&model, 0, "upper") == Some(vec![1]));
    assert!(!prepared(14, &[2, 2], "Trilu", &[], &[("upper", 0.into())]).0);

    let layout: [(&str, Attribute); 2] = [("hidden_size", 4.into()), ("layout", 1.into())];
    let (_, model) = prepared(17, &[2, 5, 3], "LSTM", &["row", "row", "", "", "row"], &layout);
    assert_eq!(operators(&model), ["Transpose", "Transpose", "LSTM", "Transpose", "Transpose"]);
    assert_eq!((ints(&model, 2, "layout"), ints(&model, 3, "perm")), (None, Some(vec![2, 0, 1, 3])));
    assert_eq!(ints(&model, 4, "perm"), Some(vec![1, 0, 2]));
    assert!(!prepared(17, &[2, 5, 3], "LSTM", &["row", "row"], &layout[..1]).0);

    for (op, written) in [("ReduceLogSum", "Log"), ("ReduceL1", "Abs"), ("ReduceL2", "Abs"), ("ReduceSumSquare", "Mul")]
    {
        let (_, model) = prepared(18, &[2, 2], op, &[], &[("noop_with_empty_axes", 1.into())]);
        assert_eq!(operators(&model), [written]);
        assert!(!prepared(18, &[2, 2], op, &[], &[]).0, "{op} over all axes");
    }

    let (_, model) = prepared(17, &[3, 2], "GreaterOrEqual", &["row"], &[]);
    assert_eq!(operators(&model), ["Greater", "Equal", "Or"]);
    assert!(!prepared(17, &[3, 2], "GreaterOrEqual", &["x"], &[]).0);

    let dropouts: [(i64, &[&str]); 3] =
        [(7, &["Less", "Cast", "Identity"]), (10, &["Less", "Identity"]), (13, &["Less", "Not", "Identity"])];
    for (opset, written) in dropouts {
        assert_eq!(operators(&prepared(opset, &[3], "Dropout", &[], &[]).1), written, "opset {opset}");
    }
}

#[test]
fn windows_have_the_padding_they_need() {
    type Case<'a> = (&'a str, [i64; 2], [i64; 2], [i64; 4], i64, &'a [&'a str], Option<Vec<i64>>);
    let cases: [Case<'_>; 6] = [
        // Nothing to do: no window too many, or none that counts.
        ("MaxPool", [3, 3], [2, 2], [0, 0, 0, 0], 0, &["MaxPool"], None),
        ("AveragePool", [2, 3], [2, 3], [0, 0, 0, 0], 0, &["AveragePool"], None),
        // Along the first axis a sixth window would begin in the padding; along the second two columns are missing.
        ("MaxPool", [2, 3], [2, 3], [1, 0, 1, 1], 0, &["MaxPool"], Some(vec![1, 0, 0, 2])),
        ("AveragePool", [2, 3], [2, 3], [1, 0, 1, 1], 1, &["Pad", "AveragePool"], Some(vec![0, 0, 0, 1])),
        ("AveragePool", [2, 3], [2, 3], [0, 0, 0, 0], 1, &["AveragePool"], Some(vec![0, 0, 1, 2])),
        ("MaxPool", [1, 1], [2, 6], [0, 0, 0, 0], 0, &["MaxPool"], None),
    ];
    for (op, kernel, stride, pads, count, written, needed) in cases {
        let attributes: [(&str, Attribute); 5] = [
            ("kernel_shape", kernel.into()),
            ("strides", stride.into()),
            ("pads", pads.into()),
            ("ceil_mode", 1.into()),
            ("count_include_pad", count.into()),
        ];
        let (changed, model) = prepared(19, &[1, 3, 9, 7], op, &[], &attributes);
        assert_eq!((operators(&model), changed), (written.to_vec(), needed.is_some()), "{op} {kernel:?} {stride:?}");
        if let Some(needed) = needed {
            let at = written.len() - 1;
            assert_eq!((ints(&model, at, "pads"), ints(&model, at, "ceil_mode")), (Some(needed), None), "{op}");
        }
    }
    // [1, 1] by steps of 2 from 2 pixels: a second window would begin behind them.
    let attributes: [(&str, Attribute); 3] =
        [("kernel_shape", [1, 1].into()), ("strides", [2, 2].into()), ("ceil_mode", 1.into())];
    let (changed, model) = prepared(22, &[1, 1, 2, 2], "MaxPool", &[], &attributes);
    assert!(changed && ints(&model, 0, "pads") == Some(vec![0; 4]));
}

#[test]
fn pixels_that_hang_on_the_last_bit_are_listed() {
    let written = |kind: &str, mode: &str| {
        let attributes: [(&str, Attribute); 2] =
            [("coordinate_transformation_mode", kind.into()), ("nearest_mode", mode.into())];
        let (_, model) = prepared(13, &[1, 2, 5, 9], "Resize", &["", "scales"], &attributes);
        operators(&model).len()
    };
    // Scales of 3 and 1.7: a third is a little more than it should be, and 8.5 / 1.7 lies between two pixels.
    assert_eq!(written("half_pixel", "ceil"), 2);
    assert_eq!(written("pytorch_half_pixel", "round_prefer_ceil"), 2);
    assert_eq!(written("half_pixel", "round_prefer_floor"), 1);
    assert_eq!(written("asymmetric", "floor"), 1);
}
