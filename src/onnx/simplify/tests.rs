//! Small graphs before and after.

use std::path::Path;

use super::*;
use crate::onnx::{Attribute, GraphBuilder, Model};
use crate::tensor::{DType, Tensor, TensorData};

fn model(build: impl FnOnce(&mut GraphBuilder)) -> Model {
    let mut graph = GraphBuilder::new("g", 17);
    graph.input("x", DType::Float32, &[Some(1), Some(4)]);
    build(&mut graph);
    graph.output("y", DType::Float32, &[None, None]);
    graph.finish(Path::new("g.onnx")).unwrap()
}

fn operators(model: &Model) -> Vec<&str> {
    model.proto.graph.node.iter().map(|node| node.op_type.as_str()).collect()
}

fn truth(graph: &mut GraphBuilder, name: &str, value: u8) -> String {
    graph.initializer(name, &Tensor::new(vec![], TensorData::Bool(vec![value])).unwrap())
}

/// A branch that computes `made` from the outer `x` and a constant of its own.
fn branch(op: &str) -> Attribute {
    let mut graph = GraphBuilder::new("branch", 17);
    graph.initializer("k", &Tensor::from_f32(vec![4], vec![2.0; 4]).unwrap());
    graph.node_named(op, &["x", "k"], &["made"], &[]);
    graph.output("made", DType::Float32, &[None, None]);
    graph.subgraph()
}

#[test]
fn shape_arithmetic_goes() {
    let mut model = model(|g| {
        let shape = g.node("Shape", &["x"], &[]);
        let (zero, last) = (g.integers(&[0]), g.integers(&[-1]));
        let batch = g.node("Gather", &[&shape, &zero], &[]);
        let target = g.node("Concat", &[&batch, &last], &[("axis", 0.into())]);
        g.node("Exp", &["x"], &[]); // nobody reads it
        g.node_named("Reshape", &["x", &target], &["y"], &[]);
    });
    assert!(model.simplify());
    assert_eq!(operators(&model), ["Reshape"]);
    let constants = &model.proto.graph.initializer;
    assert_eq!(constants.len(), 1, "what was added up is gone");
    assert_eq!(facts_of(&model, &constants[0].name), Some(vec![1, -1]));
    model.check_names().unwrap();
    assert!(!model.simplify(), "nothing is left to do");
}

fn facts_of(model: &Model, name: &str) -> Option<Vec<i64>> {
    Facts::new(&model.proto.graph, None, 17).get(name).ints()
}

#[test]
fn decided_branches_take_the_place_of_their_node() {
    for (value, op) in [(1, "Mul"), (0, "Add")] {
        let mut model = model(|g| {
            let condition = truth(g, "yes", value);
            // Both read the branches' names: they are given others.
            let branches = || [("then_branch", branch("Mul")), ("else_branch", branch("Add"))];
            let first = g.node("If", &[&condition], &branches());
            let second = g.node("If", &[&condition], &branches());
            g.node_named("Sub", &[&first, &second], &["y"], &[]);
        });
        assert!(model.simplify());
        assert_eq!(operators(&model), [op, op, "Sub"]);
        model.check_names().unwrap();
        let names: HashSet<&String> = model.proto.graph.node.iter().flat_map(|node| &node.output).collect();
        assert_eq!(names.len(), 3);
        assert_eq!(model.proto.graph.initializer.len(), 2);
    }
}

#[test]
fn branches_that_would_not_be_accepted_stay_where_they_are() {
    for (input, name) in [("nothing", "made"), ("x", "ma\nde")] {
        let mut inner = GraphBuilder::new("branch", 17);
        inner.node_named("Exp", &[input], &[name], &[]);
        inner.output(name, DType::Float32, &[None, None]);
        let inner = inner.subgraph();
        let mut model = model(|g| {
            let condition = truth(g, "yes", 1);
            g.node_named(
                "If",
                &[&condition],
                &["y"],
                &[("then_branch", inner.clone()), ("else_branch", inner.clone())],
            );
        });
        model.simplify();
        assert_eq!(operators(&model), ["If"]);
        model.check_names().unwrap();
    }
}

#[test]
fn undecided_branches_stay_and_are_simplified_inside() {
    let mut inner = GraphBuilder::new("branch", 17);
    let same = inner.node("Identity", &["hidden"], &[]);
    inner.node_named("Exp", &[&same], &["made"], &[]);
    inner.output("made", DType::Float32, &[None, None]);
    let inner = inner.subgraph();
    let mut model = model(|g| {
        g.input("condition", DType::Bool, &[]);
        g.node_named("Identity", &["x"], &["hidden"], &[]);
        g.node_named("If", &["condition"], &["y"], &[("then_branch", inner.clone()), ("else_branch", inner.clone())]);
    });
    assert!(model.simplify());
    assert_eq!(operators(&model), ["If"]);
    for graph in graphs(&model.proto.graph.node[0]) {
        assert_eq!(graph.node.len(), 1);
        assert_eq!(graph.node[0].input, ["x"], "through both identities");
    }
}

#[test]
fn dropout_at_inference_goes_and_outputs_keep_their_names() {
    let mut model = model(|g| {
        let ratio = g.scalar(0.5);
        let dropped = g.node_outputs("Dropout", &["x", &ratio], 2, &[]);
        g.node_named("Identity", &[&dropped[0]], &["y"], &[]);
    });
    assert!(model.simplify());
    assert_eq!(operators(&model), ["Identity"]);
    assert_eq!(model.proto.graph.node[0].input, ["x"]);
    // Asked to train, or asked for the mask: it stays.
    let mut training = self::model(|g| {
        let (ratio, train) = (g.scalar(0.5), truth(g, "train", 1));
        g.node_named("Dropout", &["x", &ratio, &train], &["y"], &[]);
    });
    training.simplify();
    assert_eq!(operators(&training), ["Dropout"]);
}

#[test]
fn names_used_twice_are_left_alone() {
    let mut model = model(|g| {
        g.node_named("Identity", &["x"], &["h"], &[]);
        g.node_named("Exp", &["h"], &["h"], &[]);
        g.node_named("Neg", &["h"], &["y"], &[]);
    });
    assert!(!model.simplify());
    assert_eq!(operators(&model), ["Identity", "Exp", "Neg"]);
}
