//! Expected values are numpy's and onnxruntime's, where they are not obvious.

use std::path::Path;

use super::*;
use crate::onnx::{Attribute, GraphBuilder, Model};
use crate::tensor::DType;

/// The facts about a graph that `build` makes of `x`, float32 [2, 3, 8, ?].
fn facts(build: impl FnOnce(&mut GraphBuilder)) -> (Model, Facts<'static>) {
    let mut graph = GraphBuilder::new("g", 17);
    graph.input("x", DType::Float32, &[Some(2), Some(3), Some(8), None]);
    build(&mut graph);
    let model = graph.finish(Path::new("g.onnx")).unwrap();
    let mut facts = Facts::new(&model.proto.graph, None, 17);
    model.proto.graph.node.iter().for_each(|node| facts.follow(node));
    (model, facts)
}

fn some(dims: &[i64]) -> Option<Shape> {
    Some(dims.iter().map(|dim| (*dim >= 0).then_some(*dim)).collect())
}

#[test]
fn shapes_follow_the_operators() {
    let (_, facts) = facts(|g| {
        let w = g.initializer("w", &crate::tensor::Tensor::zeros(DType::Float32, vec![5, 3, 3, 3]).unwrap());
        g.node_named("Conv", &["x", &w], &["conv"], &[("strides", [2, 2].into()), ("pads", [1, 1, 1, 1].into())]);
        g.node_named("Conv", &["x", &w], &["same"], &[("strides", [3, 3].into()), ("auto_pad", "SAME_LOWER".into())]);
        g.node_named("Transpose", &["x"], &["turned"], &[("perm", [0, 2, 3, 1].into())]);
        g.node_named("Flatten", &["x"], &["flat"], &[("axis", 2.into())]);
        let shape = g.integers(&[0, -1, 4]);
        g.node_named("Reshape", &["conv", &shape], &["reshaped"], &[]);
        g.node_named("ReduceMean", &["x"], &["mean"], &[("axes", [-1, 1].into()), ("keepdims", 0.into())]);
        let (from, to, axes, steps) = (g.integers(&[-2]), g.integers(&[i64::MIN]), g.integers(&[2]), g.integers(&[-3]));
        g.node_named("Slice", &["x", &from, &to, &axes, &steps], &["cut"], &[]);
        let parts = g.node_outputs("Split", &["x"], 3, &[("axis", 2.into())]);
        g.node_named("Concat", &[&parts[0], &parts[2]], &["joined"], &[("axis", (-2).into())]);
        g.node_named("MatMul", &["turned", "w"], &["product"], &[]);
        g.node_named("GlobalAveragePool", &["x"], &["pooled"], &[]);
        g.node_named("Mystery", &["x"], &["mystery"], &[]);
        g.node_named("Add", &["x", "mystery"], &["unknown"], &[]);
    });
    for (name, dims) in [
        ("conv", some(&[2, 5, 4, -1])),
        ("same", some(&[2, 5, 3, -1])),
        ("turned", some(&[2, 8, -1, 3])),
        ("flat", some(&[6, -1])),
        ("reshaped", some(&[2, -1, 4])),
        ("mean", some(&[2, 8])),
        ("cut", some(&[2, 3, 3, -1])),
        ("joined", some(&[2, 3, 5, -1])),
        ("pooled", some(&[2, 3, 1, 1])),
        ("mystery", None),
        ("unknown", None),
    ] {
        assert_eq!(facts.get(name).shape, dims, "{name}");
    }
    assert_eq!(facts.get("product").rank(), Some(4));
    assert_eq!(facts.get("conv").elem, Some(elem::FLOAT));
}

#[test]
fn shape_arithmetic_is_computed() {
    let (_, facts) = facts(|g| {
        let shape = g.node("Shape", &["x"], &[]);
        let place = g.integers(&[2]);
        g.node_named("Gather", &[&shape, &place], &["height"], &[]);
        let last = g.integers(&[-1]);
        let width = g.node("Gather", &[&shape, &last], &[]);
        let (two, seven) = (g.integers(&[-2]), g.integers(&[7]));
        g.node_named("Div", &["height", &two], &["half"], &[]);
        g.node_named("Mod", &["height", &seven], &["rest"], &[]);
        g.node_named("Concat", &["half", &width, &seven], &["sizes"], &[("axis", 0.into())]);
        let float = g.node("Cast", &["height"], &[("to", 1.into())]);
        let scale = g.scalar(0.7);
        let scaled = g.node("Mul", &[&float, &scale], &[]);
        let floor = g.node("Floor", &[&scaled], &[]);
        g.node_named("Cast", &[&floor], &["scaled"], &[("to", 7.into())]);
        g.node_named("Equal", &["height", &seven], &["is_seven"], &[]);
        g.node_named("Where", &["is_seven", &seven, &two], &["chosen"], &[]);
        let (from, to, step) = (g.integers(&[1]), g.integers(&[9]), g.integers(&[4]));
        let bounds = [&from, &to, &step].map(|name| g.node("Squeeze", &[name], &[]));
        g.node_named("Range", &[&bounds[0], &bounds[1], &bounds[2]], &["range"], &[]);
        let big = g.integers(&[i64::MAX]);
        g.node_named("Add", &[&big, &seven], &["beyond"], &[]);
    });
    for (name, values) in [
        ("height", vec![8]),
        ("half", vec![-4]),
        ("scaled", vec![5]),
        ("is_seven", vec![0]),
        ("chosen", vec![-2]),
        ("range", vec![1, 5]),
    ] {
        assert_eq!(facts.get(name).ints(), Some(values), "{name}");
    }
    let partial = Some(Values::Ints(vec![Some(-4), None, Some(7)]));
    assert_eq!(facts.get("sizes").values, partial, "one dimension is dynamic");
    assert_eq!((facts.get("rest").ints(), facts.get("beyond").ints()), (None, None));
}

#[test]
fn what_is_not_sound_is_not_known() {
    // A body's input changes from round to round; a negative size is none.
    let mut body = GraphBuilder::new("body", 17);
    body.input("state", DType::Float32, &[Some(1)]);
    let Attribute::Graph(body) = body.subgraph() else { unreachable!() };
    let (_, outer) = facts(|g| {
        let shape = g.integers(&[-7, 3]);
        g.node_named("ConstantOfShape", &[&shape], &["negative"], &[]);
        let (from, to, step) = (g.integers(&[0]), g.integers(&[2]), g.integers(&[0]));
        let axes = g.integers(&[0]);
        g.node_named("Slice", &["x", &from, &to, &axes, &step], &["stuck"], &[]);
    });
    assert_eq!(outer.get("negative").shape, Some(vec![None, Some(3)]));
    assert_eq!(outer.get("negative").values, None);
    assert_eq!(outer.get("stuck").dim(0), None);
    let inner = Facts::new(&body, Some(&outer), 17);
    assert_eq!((inner.get("state").shape.clone(), inner.get("state").elem), (None, Some(elem::FLOAT)));
    assert_eq!(inner.get("x").rank(), Some(4), "what is around it is seen");
}
