//! Graphs that make the CPU reference panic, overflow its stack, take all memory or never end: each is an error, of the
//! library and of the command, and never the end of this process.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::{output, watus};
use watus_build::backend::cpu::{Cpu, IsolatedCpu};
use watus_build::backend::{Backend, BackendError};
use watus_build::confined::Limits;
use watus_build::onnx::{Attribute, GraphBuilder};
use watus_build::tensor::{DType, Tensor, TensorData, write_npy};

/// Dimensions of `x`, which every graph here reads.
const SHAPE: [usize; 4] = [1, 1, 2, 2];
/// Elements along an axis of which two fit into no memory, and each into an int32.
const HUGE: i64 = 1 << 26;

fn x() -> Tensor {
    Tensor::from_f32(SHAPE.to_vec(), vec![1.0, -2.0, 3.0, -4.0]).unwrap()
}

/// Writes the graph that makes `y` of `x`.
fn write(folder: &Path, name: &str, make: impl FnOnce(&mut GraphBuilder) -> String) -> PathBuf {
    let path = folder.join(format!("{name}.onnx"));
    let mut graph = GraphBuilder::new(name, 17);
    graph.input("x", DType::Float32, &SHAPE.map(Some));
    let y = make(&mut graph);
    graph.node_named("Identity", &[&y], &["y"], &[]);
    graph.output("y", DType::Float32, &[None]);
    fs::write(&path, graph.finish(&path).unwrap().to_bytes().unwrap()).unwrap();
    path
}

fn scalar(graph: &mut GraphBuilder, name: &str, data: TensorData) -> String {
    graph.initializer(name, &Tensor::new(vec![], data).unwrap())
}

/// Both references, each in a child: a script names it.
fn isolated(scratch: &Path, time: u64) -> Vec<(&'static str, IsolatedCpu)> {
    let limits = Limits { memory: 512 << 20, time: Duration::from_secs(time) };
    let child = |engine: &'static str| {
        let executable = scratch.join(format!("watus-{engine}"));
        if !executable.exists() {
            let program = env!("CARGO_BIN_EXE_watus-build");
            let script = format!("#!/bin/sh\nWATUS_CPU_ENGINE={engine} exec '{program}' \"$@\"\n");
            fs::write(&executable, script).unwrap();
            fs::set_permissions(&executable, fs::Permissions::from_mode(0o755)).unwrap();
        }
        (engine, IsolatedCpu { executable, limits })
    };
    engines().into_iter().map(child).collect()
}

/// The references there are here.
fn engines() -> Vec<&'static str> {
    let library = support::onnxruntime_or_skip("the reference by ONNX Runtime");
    if library { vec!["rten", "onnxruntime"] } else { vec!["rten"] }
}

fn compute(backend: &dyn Backend, path: &Path) -> Result<Vec<Tensor>, BackendError> {
    backend.open(path)?.run(&[x()])
}

fn step_zero(graph: &mut GraphBuilder) -> String {
    let bounds = [0, 2, 2, 0].map(|value| graph.integers(&[value])); // from, to, axis, step
    graph.node("Slice", &["x", &bounds[0], &bounds[1], &bounds[2], &bounds[3]], &[])
}

fn chain(graph: &mut GraphBuilder, length: usize) -> String {
    (0..length).fold("x".to_owned(), |last, _| graph.node("Neg", &[&last], &[]))
}

fn constant_of_shape(graph: &mut GraphBuilder) -> String {
    let shape = graph.integers(&[HUGE, HUGE]);
    graph.node("ConstantOfShape", &[&shape], &[])
}

fn expand(graph: &mut GraphBuilder) -> String {
    let shape = graph.integers(&[HUGE, HUGE, 2, 2]);
    graph.node("Expand", &["x", &shape], &[])
}

fn tile(graph: &mut GraphBuilder) -> String {
    let repeats = graph.integers(&[HUGE, HUGE, 1, 1]);
    graph.node("Tile", &["x", &repeats], &[])
}

fn pad(graph: &mut GraphBuilder) -> String {
    let pads = graph.integers(&[0, 0, 0, 0, HUGE, HUGE, 0, 0]);
    graph.node("Pad", &["x", &pads], &[])
}

fn resize(graph: &mut GraphBuilder) -> String {
    let scales = Tensor::from_f32(vec![4], vec![1.0, 1.0, 3e7, 3e7]).unwrap();
    graph.initializer("scales", &scales);
    graph.node("Resize", &["x", "", "scales"], &[("mode", "nearest".into())])
}

fn range(graph: &mut GraphBuilder) -> String {
    let [from, to, step] = [0.0, 1e12, 1.0].map(|value| graph.scalar(value));
    graph.node("Range", &[&from, &to, &step], &[])
}

fn endless(graph: &mut GraphBuilder) -> String {
    let mut body = GraphBuilder::new("body", 17);
    body.input("round", DType::Int64, &[]);
    body.input("go_on", DType::Bool, &[]);
    body.input("value", DType::Float32, &SHAPE.map(Some));
    body.node_named("Identity", &["go_on"], &["going_on"], &[]);
    body.node_named("Neg", &["value"], &["changed"], &[]);
    body.output("going_on", DType::Bool, &[]);
    body.output("changed", DType::Float32, &SHAPE.map(Some));
    let rounds = scalar(graph, "rounds", TensorData::I64(vec![1 << 62]));
    let go = scalar(graph, "go", TensorData::Bool(vec![1]));
    graph.node("Loop", &[&rounds, &go, "x"], &[("body", body.subgraph())])
}

/// An `If` in an `If` in an `If`, each branch reading the outermost `x`.
fn nested(graph: &mut GraphBuilder) -> String {
    fn branch(depth: usize) -> Attribute {
        let mut graph = GraphBuilder::new("branch", 17);
        let name = format!("made_{depth}");
        match depth {
            0 => graph.node_named("Neg", &["x"], &[&name], &[]),
            _ => graph.node_named("If", &["yes"], &[&name], &branches(depth - 1)),
        }
        graph.output(&name, DType::Float32, &SHAPE.map(Some));
        graph.subgraph()
    }
    fn branches(depth: usize) -> [(&'static str, Attribute); 2] {
        [("then_branch", branch(depth)), ("else_branch", branch(depth))]
    }
    scalar(graph, "yes", TensorData::Bool(vec![1]));
    graph.node("If", &["yes"], &branches(2))
}

type Make = fn(&mut GraphBuilder) -> String;

#[test]
fn what_takes_all_memory_is_an_error() {
    let scratch = tempfile::tempdir().unwrap();
    let bombs: [(&str, Make); 5] = [
        ("constant_of_shape", constant_of_shape),
        ("expand", expand),
        ("tile", tile),
        ("pad", pad),
        ("resize", resize),
    ];
    for (name, make) in bombs {
        let path = write(scratch.path(), name, make);
        // Long enough for a slow machine: it is memory that ends it.
        for (engine, backend) in isolated(scratch.path(), 600) {
            let error = compute(&backend, &path).unwrap_err().to_string();
            assert!(error.contains("CPU reference"), "{engine}, {name}: {error}");
            assert!(!error.contains("it may take"), "{engine}, {name}: {error}");
        }
    }
    // After its death a session says the same again.
    for (engine, backend) in isolated(scratch.path(), 600) {
        let mut session = backend.open(&write(scratch.path(), "again", tile)).unwrap();
        let first = session.run(&[x()]).unwrap_err().to_string();
        // ONNX Runtime looks at sizes before it asks for them.
        let expected = if engine == "rten" { "more than the 0.5 GB of memory it may use" } else { "Tile" };
        assert!(first.contains(expected), "{first}");
        assert_eq!(session.run(&[x()]).unwrap_err().to_string(), first);
    }
}

#[test]
fn what_never_ends_is_an_error() {
    let scratch = tempfile::tempdir().unwrap();
    let endless: [(&str, Make); 2] = [("range", range), ("loop", endless)];
    for (name, make) in endless {
        let path = write(scratch.path(), name, make);
        for (engine, backend) in isolated(scratch.path(), 2) {
            let error = compute(&backend, &path).unwrap_err().to_string();
            assert!(error.contains("CPU reference"), "{engine}, {name}: {error}");
        }
    }
}

#[test]
fn what_panics_is_an_error() {
    let scratch = tempfile::tempdir().unwrap();
    let slice = write(scratch.path(), "slice", step_zero);
    let nested = write(scratch.path(), "nested", nested);
    let isolated = isolated(scratch.path(), 600);
    for backend in isolated.iter().map(|(_, backend)| backend as &dyn Backend).chain([&Cpu as &dyn Backend]) {
        let error = compute(backend, &slice).unwrap_err().to_string();
        assert!(error.contains("CPU reference"), "{error}");
        // rten computes some of these and panics on others.
        if let Err(error) = compute(backend, &nested) {
            assert!(error.to_string().contains("CPU reference"), "{error}");
        }
    }
}

#[test]
fn deep_graphs_compute_up_to_a_limit() {
    let scratch = tempfile::tempdir().unwrap();
    let deep = write(scratch.path(), "deep", |graph| chain(graph, 3000));
    let too_deep = write(scratch.path(), "too_deep", |graph| chain(graph, 100_000));
    let isolated = isolated(scratch.path(), 600);
    for backend in isolated.iter().map(|(_, backend)| backend as &dyn Backend).chain([&Cpu as &dyn Backend]) {
        assert_eq!(compute(backend, &deep).unwrap(), [x()]);
    }
    // ONNX Runtime computes it.
    for backend in [&isolated[0].1 as &dyn Backend, &Cpu] {
        let error = compute(backend, &too_deep).unwrap_err().to_string();
        assert!(error.contains("a chain of 100001 nodes, 50000 are computed at most"), "{error}");
    }
}

#[test]
fn a_sound_graph_computes_the_same_in_a_child() {
    let scratch = tempfile::tempdir().unwrap();
    let path = write(scratch.path(), "sound", |graph| graph.node("Exp", &["x"], &[]));
    for (engine, backend) in isolated(scratch.path(), 600) {
        let [here] = &compute(&Cpu, &path).unwrap()[..] else { panic!("one output") };
        let [there] = &compute(&backend, &path).unwrap()[..] else { panic!("one output") };
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * a.abs();
        assert!(here.as_f32().unwrap().iter().zip(there.as_f32().unwrap()).all(near), "{engine}");
        let mut session = backend.open(&path).unwrap();
        assert!(session.info().name.contains(engine), "{:?}", session.info());
        assert_eq!(session.inputs()[0].name, "x");
        let wrong = session.run(&[Tensor::from_f32(vec![1], vec![0.0]).unwrap()]).unwrap_err();
        assert!(matches!(wrong, BackendError::Input { .. }), "{wrong}");
        session.run(&[x()]).expect("a wrong input ends nothing");
        let missing = backend.open(&scratch.path().join("missing.onnx")).map(drop).unwrap_err().to_string();
        assert!(missing.contains("missing.onnx") && missing.contains("No such file"), "{missing}");
    }
}

/// The command with the built-in reference, which has the limits that are tried here.
fn command(scratch: &Path) -> std::process::Command {
    let mut command = watus(scratch);
    command.env("WATUS_CPU_ENGINE", "rten");
    command
}

#[test]
fn the_command_says_what_went_wrong() {
    let scratch = tempfile::tempdir().unwrap();
    write_npy(fs::File::create(scratch.path().join("x.npy")).unwrap(), &x()).unwrap();
    let strange: [(&str, Make); 3] = [("tile", tile), ("slice", step_zero), ("chain", |graph| chain(graph, 100_000))];
    for (name, make) in strange {
        let path = write(scratch.path(), name, make);
        let (code, stdout, stderr) =
            output(command(scratch.path()).args(["run", "--backend", "cpu", "--input", "x=x.npy"]).arg(&path));
        assert_eq!((code, stdout.as_str()), (1, ""), "{name}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains("CPU reference"), "{name}: {stderr}");
        let (code, _, stderr) =
            output(command(scratch.path()).args(["bench", "--backend", "cpu", "-n", "1", "--warmup", "0"]).arg(&path));
        assert_eq!(code, 1, "{name}: {stderr}");
        assert!(stderr.contains("error: "), "{name}: {stderr}");
    }
}
