//! Graphs that make the CPU reference panic, overflow its stack, take all memory or never end: each is an error, of the
//! library and of the command, and never the end of this process.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::{output, watus};
use watus_build::backend::cpu::Cpu;
use watus_build::backend::isolated::Isolated;
use watus_build::backend::onnxruntime::OnnxRuntime;
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
fn isolated(scratch: &Path, time: u64) -> Vec<(&'static str, Isolated)> {
    let limits = Limits { memory: 512 << 20, time: Duration::from_secs(time) };
    let child = |engine: &'static str| {
        let executable = scratch.join(format!("watus-{engine}"));
        if !executable.exists() {
            let program = env!("CARGO_BIN_EXE_watus-build");
            let script = format!("#!/bin/sh\nWATUS_CPU_ENGINE={engine} exec '{program}' \"$@\"\n");
            fs::write(&executable, script).unwrap();
            fs::set_permissions(&executable, fs::Permissions::from_mode(0o755)).unwrap();
        }
        (engine, Isolated { limits, ..Isolated::new(executable) })
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

/// What the library's users ask it for first.
const BASE: &str = "typedef struct { const void *(*GetApi)(unsigned); const char *(*GetVersionString)(void); } Base;\n";
const CRASH: &str = "volatile int *volatile nowhere = 0; *nowhere = 1; return 0;";
const LIBRARY: &str = "libonnxruntime.so.1.99.0";

/// A library of C as the set-up script would have put it into the data folder `name`.
fn library(scratch: &Path, name: &str, source: &str) -> PathBuf {
    let folder = scratch.join(name).join("watus-build/onnxruntime-1.99.0");
    fs::create_dir_all(folder.join("lib")).unwrap();
    fs::write(folder.join(".complete"), "").unwrap();
    let (code, library) = (folder.join("library.c"), folder.join("lib").join(LIBRARY));
    fs::write(&code, source).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-w", "-o"]).arg(&library).arg(&code).arg("-ldl");
    assert!(compiler.status().unwrap().success());
    library
}

/// One that says it is `version`, and gives its functions so.
fn of_version(version: &str, functions: &str) -> String {
    format!(
        "{BASE}static const void *api(unsigned version) {{ {functions} }}\n\
         static const char *version(void) {{ return \"{version}\"; }}\n\
         const Base *OrtGetApiBase(void) {{ static const Base base = {{ api, version }}; return &base; }}\n"
    )
}

/// Libraries that cannot be used, by their data folders, and why.
fn broken_libraries(scratch: &Path) -> Vec<(&'static str, PathBuf, &'static str)> {
    let at_once =
        |what: &str| format!("#include <unistd.h>\n__attribute__((constructor)) static int begin(void) {{ {what} }}");
    let sound = of_version("1.99.0", "return 0;");
    let mut libraries = vec![
        ("other", library(scratch, "other", "int other;"), "it is another library: it has no OrtGetApiBase"),
        (
            "old",
            library(scratch, "old", &of_version("1.16.3", CRASH)),
            "it is version 1.16.3, 1.17 is the oldest that is taken",
        ),
        ("nothing", library(scratch, "nothing", &sound), "it is not what it says"),
        (
            "crash",
            library(scratch, "crash", &format!("{}\n{sound}", at_once(CRASH))),
            "opening it failed: it crashed (signal 11)",
        ),
        (
            "functions",
            library(scratch, "functions", &of_version("1.99.0", CRASH)),
            "opening it failed: it crashed (signal 11)",
        ),
        ("end", library(scratch, "end", &at_once("_exit(3);")), "it ended without an answer (exit status: 3)"),
    ];
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change, &str); 3] = [
        ("text", |bytes| *bytes = b"<!DOCTYPE html>".to_vec(), "it is no ELF file"),
        ("cut", |bytes| bytes.truncate(bytes.len() / 2), "it is cut off: it has"),
        ("foreign", |bytes| bytes[18] = 243, "it is for riscv64, this machine is"),
    ];
    for (name, change, why) in changes {
        let path = library(scratch, name, &sound);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        libraries.push((name, path, why));
    }
    libraries
}

/// The command on a sound graph, with a library that was named or is found in a data folder.
fn with_library(scratch: &Path, subcommand: &[&str], named: Option<&Path>, data: &str) -> (i32, String, String) {
    let mut command = watus(scratch);
    command.env("XDG_DATA_HOME", scratch.join(data)).env_remove("WATUS_CPU_ENGINE").env_remove("WATUS_ONNXRUNTIME_LIB");
    if let Some(path) = named {
        command.env("WATUS_ONNXRUNTIME_LIB", path);
    }
    output(command.args(subcommand))
}

const RUN: [&str; 6] = ["run", "--backend", "cpu", "--input", "x=x.npy", "sound.onnx"];

/// A graph that any reference computes, and its input.
fn sound(scratch: &Path) {
    write(scratch, "sound", |graph| graph.node("Exp", &["x"], &[]));
    write_npy(fs::File::create(scratch.join("x.npy")).unwrap(), &x()).unwrap();
}

#[test]
fn a_broken_library_is_refused_if_it_was_named_and_else_told_of() {
    let scratch = tempfile::tempdir().unwrap();
    sound(scratch.path());
    for (name, path, why) in broken_libraries(scratch.path()) {
        let told = format!("ONNX Runtime ({}) cannot be used: ", path.display());
        // The file, or its folder.
        for named in [&*path, path.parent().unwrap()] {
            let (code, stdout, stderr) = with_library(scratch.path(), &RUN, Some(named), "none");
            assert_eq!((code, stdout.as_str()), (8, ""), "{name}: {stderr}");
            assert!(stderr.starts_with(&format!("error: {told}")) && stderr.contains(why), "{name}: {stderr}");
            let hint = "\n  hint: name another in WATUS_ONNXRUNTIME_LIB (scripts/setup-onnxruntime.sh brings one)";
            assert!(stderr.contains(hint), "{name}: {stderr}");
        }
        let (code, stdout, stderr) = with_library(scratch.path(), &RUN, None, name);
        assert_eq!(code, 0, "{name}: {stderr}");
        assert!(stdout.starts_with("y float32[1, 1, 2, 2]"), "{name}: {stdout}");
        assert!(stderr.starts_with(&format!("warning: {told}")) && stderr.contains(why), "{name}: {stderr}");
        let mend = "rten computes instead (scripts/setup-onnxruntime.sh brings it again";
        assert!(stderr.contains(mend) && stderr.matches("warning:").count() == 1, "{name}: {stderr}");
    }
    let nowhere = scratch.path().join("nowhere.so");
    let (code, _, stderr) = with_library(scratch.path(), &RUN, Some(nowhere.as_path()), "none");
    assert!(code == 8 && stderr.contains("nowhere.so) cannot be used: it cannot be read: No such file"), "{stderr}");
    let (code, _, stderr) = with_library(scratch.path(), &RUN, Some(Path::new("")), "crash");
    assert_eq!((code, stderr.as_str()), (0, ""), "none is to be used");
    // What crashed in a child is not opened here.
    let bench = ["bench", "--backend", "cpu", "-n", "1", "--warmup", "0", "sound.onnx"];
    let (code, _, stderr) = with_library(scratch.path(), &bench, None, "crash");
    assert_eq!((code, stderr.matches("warning: ONNX Runtime").count()), (0, 1), "{stderr}");
    // Asked for by hand it has no substitute.
    let mut command = watus(scratch.path());
    command.env("XDG_DATA_HOME", scratch.path().join("crash")).env_remove("WATUS_ONNXRUNTIME_LIB");
    let (code, _, stderr) = output(command.env("WATUS_CPU_ENGINE", "onnxruntime").args(RUN));
    assert!(code == 8 && stderr.contains("opening it failed: it crashed (signal 11)"), "{stderr}");
}

#[test]
fn a_library_that_crashes_at_work_is_named() {
    if !support::onnxruntime_or_skip("a_library_that_crashes_at_work_is_named") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    sound(scratch.path());
    let real = &OnnxRuntime::find().unwrap().unwrap().library().path;
    // ONNX Runtime, but for its tenth function, Run; version 17 has 276 (ort-sys, `OrtApi`).
    let source = format!(
        "#include <dlfcn.h>\n#include <string.h>\n{BASE}static void *table[276];\n\
         static void *crash(void) {{ {CRASH} }}\n\
         static const Base *real(void) {{\n\
         const Base *(*base)(void) = dlsym(dlopen(\"{real}\", RTLD_NOW), \"OrtGetApiBase\");\nreturn base();\n}}\n\
         static const void *api(unsigned version) {{\n\
         memcpy(table, real()->GetApi(version), sizeof table);\ntable[9] = crash;\nreturn table;\n}}\n\
         static const char *version(void) {{ return real()->GetVersionString(); }}\n\
         const Base *OrtGetApiBase(void) {{ static const Base base = {{ api, version }}; return &base; }}\n"
    );
    let path = library(scratch.path(), "run", &source);
    for named in [Some(&*path), None] {
        let (code, stdout, stderr) = with_library(scratch.path(), &RUN, named, "run");
        assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
        let told = format!("sound.onnx: ONNX Runtime 1.99.0 ({}): it crashed (signal 11)", path.display());
        assert!(stderr.contains(&told), "{stderr}");
        let hint = "scripts/setup-onnxruntime.sh brings it again, and `WATUS_ONNXRUNTIME_LIB=` computes with rten";
        assert!(stderr.contains(hint), "{stderr}");
    }
}

#[test]
fn doctor_says_who_judges() {
    let scratch = tempfile::tempdir().unwrap();
    let broken = broken_libraries(scratch.path());
    let judge = |named: Option<&Path>, data: &str| {
        let (_, stdout, _) = with_library(scratch.path(), &["doctor", "--json"], named, data);
        let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        let findings = report["findings"].as_array().unwrap().iter();
        let judge: Vec<_> = findings.filter(|finding| finding["id"] == "reference").cloned().collect();
        assert_eq!(judge.len(), 1);
        let text = |key: &str| judge[0][key].as_str().unwrap_or_default().to_owned();
        (text("level"), text("seen"), judge[0]["mend"].to_string())
    };
    // Each kind once: by its headers, by what it says, by what it does.
    for (name, path, why) in broken.iter().filter(|(name, ..)| ["old", "crash", "cut"].contains(name)) {
        let (level, seen, mend) = judge(Some(path.as_path()), "none");
        assert_eq!(level, "fail", "{name}: {seen}");
        assert!(seen.contains(&*path.to_string_lossy()) && seen.contains(why), "{name}: {seen}");
        assert!(mend.contains("name another in WATUS_ONNXRUNTIME_LIB"), "{name}: {mend}");
        let (level, seen, mend) = judge(None, name);
        assert_eq!(level, "warn", "{name}: {seen}");
        assert!(seen.contains(why) && seen.ends_with("rten verifies engines instead"), "{name}: {seen}");
        assert!(mend.contains("scripts/setup-onnxruntime.sh brings it again"), "{name}: {mend}");
    }
    let (level, seen, _) = judge(Some(Path::new("")), "none");
    assert_eq!(level, "ok");
    assert!(seen.contains("rten") && seen.ends_with("as WATUS_ONNXRUNTIME_LIB says"), "{seen}");
    if let Some(runtime) = OnnxRuntime::find().unwrap() {
        let path = Path::new(&runtime.library().path);
        let (level, seen, _) = judge(Some(path), "none");
        assert_eq!((level.as_str(), seen), ("ok", format!("{} verifies engines", runtime.library())));
    }
}
