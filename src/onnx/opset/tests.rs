//! Tests of the rewritten forms; `tests/node_tests.rs` compares their results in onnxruntime.

use std::path::Path;

use crate::onnx::{Attribute, GraphBuilder, Model};
use crate::tensor::{DType, Tensor};

fn model(opset: i64, build: impl FnOnce(&mut GraphBuilder)) -> Model {
    let mut graph = GraphBuilder::new("g", opset);
    graph.input("x", DType::Float32, &[Some(1), Some(4), Some(6), Some(7)]);
    build(&mut graph);
    graph.output("y", DType::Float32, &[None; 4]);
    graph.finish(Path::new("g.onnx")).unwrap()
}

#[test]
fn newer_forms_are_written_as_older_ones() {
    let mut model = model(21, |g| {
        let (pads, axes) = (g.integers(&[1, 2]), g.integers(&[-1]));
        let padded = g.node("Pad", &["x", &pads, "", &axes], &[]);
        let parts = g.node_outputs("Split", &[&padded], 3, &[("axis", 3.into()), ("num_outputs", 3.into())]);
        let spatial = g.integers(&[2]);
        let mean = g.node("ReduceMean", &[&parts[0], &spatial], &[]);
        let scales = g.initializer("scales", &Tensor::from_f32(vec![1], vec![2.0]).unwrap());
        g.node_named("Resize", &[&mean, "", &scales], &["y"], &[("axes", [3].into()), ("antialias", 0.into())]);
    });
    assert!(model.to_opset(17).unwrap());
    assert_eq!((model.opset(), model.proto.ir_version), (17, 8));
    model.check_names().unwrap();
    let nodes = &model.proto.graph.node;
    assert_eq!(
        nodes.iter().map(|node| node.op_type.as_str()).collect::<Vec<_>>(),
        ["Pad", "Split", "ReduceMean", "Resize"]
    );
    assert_eq!((nodes[0].input.len(), nodes[1].input.len(), nodes[2].input.len()), (3, 2, 1));
    let names = |at: usize| nodes[at].attribute.iter().map(|attribute| attribute.name.as_str()).collect::<Vec<_>>();
    assert_eq!((names(1), names(2), names(3)), (vec!["axis"], vec!["axes"], vec![]));
    assert!(!model.to_opset(17).unwrap(), "it is there already");
}

#[test]
fn opsets_that_only_add_are_renumbered() {
    let mut newest = model(28, |g| {
        let attributes: [(&str, Attribute); 2] = [("blocksize", 2.into()), ("mode", "DCR".into())];
        g.node_named("SpaceToDepth", &["x"], &["y"], &attributes);
    });
    newest.proto.ir_version = 14;
    assert!(newest.to_opset(24).unwrap());
    assert_eq!((newest.opset(), newest.proto.ir_version), (24, 12));
    assert_eq!(newest.proto.graph.node[0].attribute.len(), 1, "the usual mode needs no saying");
}

#[test]
fn what_has_no_older_form_is_refused_by_name() {
    type Build = fn(&mut GraphBuilder);
    let refused: [(i64, Build, &str); 6] = [
        (
            18,
            |g| g.node_named("Col2Im", &["x"], &["y"], &[]),
            "node 'Col2Im_0' (Col2Im): opset 17 has no such operator",
        ),
        (19, |g| g.node_named("Pad", &["x", "x"], &["y"], &[("mode", "wrap".into())]), "no mode `wrap`"),
        (
            18,
            |g| g.node_named("Resize", &["x", "", "x"], &["y"], &[("antialias", 1.into())]),
            "node 'Resize_0' (Resize): opset 17 has no antialias",
        ),
        (
            28,
            |g| g.node_named("SpaceToDepth", &["x"], &["y"], &[("blocksize", 2.into()), ("mode", "CRD".into())]),
            "node 'SpaceToDepth_0' (SpaceToDepth): opset 17 has no mode",
        ),
        (
            28,
            |g| g.node_named("Mod", &["x", "x"], &["y"], &[]),
            "(Mod): the older opset divides floats with `fmod` alone",
        ),
        (29, |g| g.node_named("Relu", &["x"], &["y"], &[]), "opset 29 is newer than this TensorRT's parser knows (17)"),
    ];
    for (opset, build, wanted) in refused {
        let error = model(opset, build).to_opset(17).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}
