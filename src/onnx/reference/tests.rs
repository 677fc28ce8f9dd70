//! Tests of what is refused, with which message; `tests/node_tests.rs` compares the results of what is rewritten.

use std::path::Path;

use super::super::{Attribute, GraphBuilder};
use super::*;
use crate::tensor::Tensor;

fn prepared(opset: i64, build: impl FnOnce(&mut GraphBuilder)) -> (Model, Result<(bool, Vec<Guard>), OnnxError>) {
    let mut graph = GraphBuilder::new("g", opset);
    graph.input("x", DType::Float32, &[Some(2), Some(3), Some(8), Some(8)]);
    graph.input("ids", DType::Int64, &[Some(4)]);
    build(&mut graph);
    graph.output("y", DType::Float32, &[None]);
    let mut model = graph.finish(Path::new("g.onnx")).unwrap();
    let result = model.prepare_for_reference();
    (model, result)
}

fn operators(model: &Model) -> Vec<&str> {
    model.proto.graph.node.iter().map(|node| node.op_type.as_str()).collect()
}

fn weights(graph: &mut GraphBuilder, name: &str, shape: &[usize]) -> String {
    graph.initializer(name, &Tensor::zeros(DType::Float32, shape.to_vec()).unwrap())
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    type Build = fn(&mut GraphBuilder);
    let refused: &[(i64, Build, &str)] = &[
        (17, |g| g.node_named("Det", &["x"], &["y"], &[]), "the operator Det is not computed"),
        (29, |g| g.node_named("Relu", &["x"], &["y"], &[]), "opset 29 is newer"),
        (6, |g| g.node_named("Upsample", &["x"], &["y"], &[]), "computed from opset 7 on"),
        (
            17,
            |g| {
                let (w, r) = (weights(g, "w", &[1, 12, 8]), weights(g, "r", &[1, 12, 4]));
                g.node_named("GRU", &["x", &w, &r], &["y"], &[("hidden_size", 4.into())]);
            },
            "node 'GRU_0' (GRU): its linear_before_reset 0",
        ),
        (
            17,
            |g| {
                let (w, r) = (weights(g, "w", &[1, 16, 8]), weights(g, "r", &[1, 16, 4]));
                g.input("lengths", DType::Int32, &[Some(2)]);
                g.node_named("LSTM", &["x", &w, &r, "", "lengths"], &["y"], &[("hidden_size", 4.into())]);
            },
            "sequence_lens",
        ),
        (
            17,
            |g| {
                let big = g.integers(&[(1 << 31) + 5]);
                g.node_named("Add", &["ids", &big], &["y"], &[]);
            },
            "node 'Add_0' (Add): int64 values of `constant_1`",
        ),
        (
            17,
            |g| {
                g.input("free", DType::Float32, &[Some(1), Some(1), None, None]);
                let sizes = g.initializer("scales", &Tensor::from_f32(vec![4], vec![1.0, 1.0, 1.5, 1.5]).unwrap());
                g.node_named("Resize", &["free", "", &sizes], &["y"], &[("mode", "cubic".into())]);
            },
            "the size before or after is not known",
        ),
        (
            17,
            |g| g.node_named("NonMaxSuppression", &["x", "ids"], &["y"], &[]),
            "the operator NonMaxSuppression is not computed",
        ),
    ];
    for (opset, build, wanted) in refused {
        let error = prepared(*opset, build).1.unwrap_err().to_string();
        assert!(error.starts_with("g.onnx: ") && error.contains(wanted), "{wanted}: {error}");
        assert!(error.contains("hint: ") && error.contains("onnxruntime"), "{error}");
    }
}

#[test]
fn what_is_right_stays_as_it_is() {
    let (model, result) = prepared(17, |g| {
        let w = weights(g, "w", &[5, 3, 3, 3]);
        let (kernel, ones): (Attribute, Attribute) = ([3, 3].into(), [1, 1].into());
        let attributes =
            [("kernel_shape", kernel), ("strides", ones.clone()), ("dilations", ones), ("pads", [0, 0, 0, 0].into())];
        let conv = g.node("Conv", &["x", &w], &attributes);
        let soft = g.node("Softmax", &[&conv], &[]);
        // To the end, as exporters say it.
        let (from, to) = (g.integers(&[1]), g.integers(&[i64::MAX]));
        g.node_named("Slice", &[&soft, &from, &to], &["y"], &[]);
    });
    assert_eq!(result.unwrap(), (false, Vec::new()));
    assert_eq!(operators(&model), ["Conv", "Softmax", "Slice"]);
}

#[test]
fn what_rten_does_otherwise_is_written_otherwise() {
    let (model, result) = prepared(11, |g| {
        let soft = g.node("Softmax", &["x"], &[]);
        g.node_named("ArgMax", &[&soft], &["y"], &[("keepdims", 0.into())]);
    });
    assert!(result.unwrap().0);
    assert_eq!(operators(&model), ["Shape", "Flatten", "Softmax", "Reshape", "TopK", "Squeeze"]);
    model.check_names().unwrap();
    assert_eq!(model.proto.graph.output[0].name, "y");
}

#[test]
fn subgraphs_are_looked_at_too() {
    let branch = |op: &str| {
        let mut graph = GraphBuilder::new("branch", 17);
        graph.node_named(op, &["x"], &["made"], &[]);
        graph.output("made", DType::Float32, &[None]);
        graph.subgraph()
    };
    let with = |op: &'static str| {
        prepared(17, |g| {
            g.input("which", DType::Bool, &[]);
            g.node_named("If", &["which"], &["y"], &[("then_branch", branch(op)), ("else_branch", branch("Neg"))]);
        })
    };
    let (model, result) = with("Sign");
    assert!(result.unwrap().0);
    let inner = super::super::attributes::graphs(&model.proto.graph.node[0]).next().unwrap();
    assert!(inner.node.len() > 1, "Sign is written otherwise");
    let error = with("Det").1.unwrap_err().to_string();
    assert!(error.contains("(Det)"), "{error}");
}

#[test]
fn int64_results_are_watched() {
    let (model, result) = prepared(17, |g| {
        let two = g.integers(&[2]);
        let doubled = g.node("Mul", &["ids", &two], &[]);
        // Shapes are bounded, whatever is reckoned with them.
        let shape = g.node("Shape", &["x"], &[]);
        let twice = g.node("Mul", &[&shape, &two], &[]);
        let all = g.node("Concat", &[&doubled, &twice], &[("axis", 0.into())]);
        g.node_named("Cast", &[&all], &["y"], &[("to", 1.into())]);
    });
    let (changed, guards) = result.unwrap();
    let nodes: Vec<&str> = guards.iter().map(|guard| guard.node.as_str()).collect();
    assert_eq!((changed, nodes), (true, vec!["node 'Mul_0' (Mul)"]));
    assert!(model.proto.graph.output.iter().any(|output| output.name == guards[0].output));
    model.check_names().unwrap();
}
