//! A program that is not `watus-build` and uses the library: it is started again as a child only once it has said that it
//! answers. Without a test harness, whose `main` would not.
#![allow(clippy::unwrap_used)]

use std::fs;

use watus_build::backend::Backend as _;
use watus_build::backend::isolated::Isolated;
use watus_build::child_process::is_child;
use watus_build::onnx::GraphBuilder;
use watus_build::tensor::{DType, Tensor};

/// How many children this thread has.
fn children() -> usize {
    let process = std::process::id();
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    children.split_whitespace().count()
}

fn main() {
    if !is_child() {
        let refused = Isolated::of_this_program().unwrap_err().to_string();
        assert!(refused.contains("enable_child_processes"), "{refused}");
    }
    watus_build::enable_child_processes();
    assert!(!is_child(), "a child does not come here");

    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("negative.onnx");
    let mut graph = GraphBuilder::new("negative", 17);
    graph.input("x", DType::Float32, &[Some(2)]);
    graph.node_named("Neg", &["x"], &["y"], &[]);
    graph.output("y", DType::Float32, &[Some(2)]);
    fs::write(&path, graph.finish(&path).unwrap().to_bytes().unwrap()).unwrap();
    let tensor = |values: [f32; 2]| Tensor::from_f32(vec![2], values.to_vec()).unwrap();

    let mut session = Isolated::of_this_program().unwrap().open(&path).unwrap();
    assert_eq!(session.run(&[tensor([1.5, -2.0])]).unwrap(), [tensor([-1.5, 2.0])]);
    assert_eq!(children(), 1, "a child computed");
    drop(session);
    assert_eq!(children(), 0, "it ends with its session");
}
