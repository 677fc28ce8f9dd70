//! A program that is not `watus-build` and uses the library: it is started again as a child only once it has said that it
//! answers. Without a test harness, whose `main` would not.
#![allow(clippy::unwrap_used)]

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use watus_build::backend::Backend as _;
use watus_build::backend::isolated::Isolated;
use watus_build::child_process::is_child;
use watus_build::onnx::GraphBuilder;
use watus_build::tensor::{DType, Tensor};

/// Set in a copy of this program, which does what [`replaced`] says.
const COPY: &str = "WATUS_TEST_COPY";

/// The children that this thread has.
fn children() -> Vec<String> {
    let process = std::process::id();
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    children.split_whitespace().map(str::to_owned).collect()
}

fn write_model(path: &Path) {
    let mut graph = GraphBuilder::new("negative", 17);
    graph.input("x", DType::Float32, &[Some(2)]);
    graph.node_named("Neg", &["x"], &["y"], &[]);
    graph.output("y", DType::Float32, &[Some(2)]);
    fs::write(path, graph.finish(path).unwrap().to_bytes().unwrap()).unwrap();
}

/// Computes in a child; its arguments' first and its name.
fn compute(model: &Path) -> (String, String) {
    let tensor = |values: [f32; 2]| Tensor::from_f32(vec![2], values.to_vec()).unwrap();
    let mut session = Isolated::of_this_program().unwrap().open(model).unwrap();
    assert_eq!(session.run(&[tensor([1.5, -2.0])]).unwrap(), [tensor([-1.5, 2.0])]);
    let found = children();
    let [child] = &found[..] else { panic!("one child computed, and not {found:?}") };
    let told = |file: &str| fs::read_to_string(format!("/proc/{child}/{file}")).unwrap();
    (told("cmdline").split('\0').next().unwrap().to_owned(), told("comm").trim().to_owned())
}

/// Computes before and after the file of this program, which is a copy, becomes another program and then is gone.
fn replaced(model: &Path) {
    let program = env::current_exe().unwrap();
    let name = (program.to_str().unwrap().to_owned(), "program".to_owned());
    assert_eq!(compute(model), name);
    let other = program.with_extension("new");
    fs::copy("/bin/false", &other).unwrap();
    fs::rename(&other, &program).unwrap();
    assert_eq!(compute(model), name, "the program that runs, and not the one in its place");
    fs::remove_file(&program).unwrap();
    assert_eq!(compute(model), name);
}

fn main() {
    if !is_child() {
        let refused = Isolated::of_this_program().unwrap_err().to_string();
        assert!(refused.contains("enable_child_processes"), "{refused}");
    }
    watus_build::enable_child_processes();
    assert!(!is_child(), "a child does not come here");

    if let Some(model) = env::var_os(COPY) {
        return replaced(model.as_ref());
    }
    let scratch = tempfile::tempdir().unwrap();
    let model = scratch.path().join("negative.onnx");
    write_model(&model);
    compute(&model);
    assert_eq!(children(), Vec::<String>::new(), "a child ends with its session");

    let (running, copy) = (env::current_exe().unwrap(), scratch.path().join("program"));
    // On another file system there are no links to it.
    fs::hard_link(&running, &copy).or_else(|_| fs::copy(&running, &copy).map(drop)).unwrap();
    assert!(Command::new(&copy).env(COPY, &model).status().unwrap().success());
}
