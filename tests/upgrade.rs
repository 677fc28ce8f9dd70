//! Engine directories of another TensorRT, GPU or version of this tool: `serve` says so and how to build them again, `build`
//! builds just those, `serve --rebuild` builds and serves, and a power cut amid that leaves the old one.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::server::Server;
use support::{leftovers, onnx_recipe, output, repository, tensorrt_or_skip, watus};
use watus_build::onnx::GraphBuilder;
use watus_build::tensor::DType;

const TOOL: &str = concat!("watus-build ", env!("CARGO_PKG_VERSION"));

/// The tiny GGUF Llama as an engine directory, and an ONNX model's beside it.
fn engines(scratch: &Path) -> PathBuf {
    fs::copy(repository().join("tests/data/gguf/llama.gguf"), scratch.join("tiny.gguf")).unwrap();
    let recipe = "version: 1\nname: tiny\nkind: llm\nsource: { path: tiny.gguf }\nmax_batch_size: 1\nmax_input_len: 24\n\
                  max_output_len: 16\n";
    fs::write(scratch.join("tiny.yaml"), recipe).unwrap();
    let mut graph = GraphBuilder::new("g", 17);
    graph.input("x", DType::Float32, &[Some(2)]);
    graph.node_named("Relu", &["x"], &["y"], &[]);
    graph.output("y", DType::Float32, &[Some(2)]);
    onnx_recipe(scratch, "m", &graph.finish(&scratch.join("g.onnx")).unwrap());
    let (code, _, stderr) = output(watus(scratch).args(["build", "m.yaml", "tiny.yaml"]));
    assert_eq!(code, 0, "{stderr}");
    scratch.join("engines/tiny")
}

fn manifest(engine: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(engine.join("manifest.json")).unwrap()).unwrap()
}

fn edit(engine: &Path, change: fn(&mut Value)) {
    let mut document = manifest(engine);
    change(&mut document);
    fs::write(engine.join("manifest.json"), document.to_string()).unwrap();
}

/// What an older tool, and another TensorRT, would have written.
fn of_older_tool(document: &mut Value) {
    document["tool"] = "watus-build 0.0.9".into();
    document["key"]["tool"] = "0.0.9".into();
}

fn of_other_tensorrt(document: &mut Value) {
    document["tensorrt"]["patch"] = 99.into();
    document["key"]["tensorrt"] = "TensorRT-RTX 1.0.99".into();
}

fn of_other_gpu(document: &mut Value) {
    document["device"] = json!({"name": "Orin", "compute_capability": "8.7", "memory": 1});
    document["key"]["gpu"] = "Orin 8.7".into();
}

#[test]
fn what_was_built_elsewhere_is_refused_and_built_alone() {
    if !tensorrt_or_skip("what_was_built_elsewhere_is_refused_and_built_alone") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = engines(scratch.path());
    let run = |arguments: &[&str]| output(watus(scratch.path()).args(arguments));
    let recipe = scratch.path().join("tiny.yaml").canonicalize().unwrap();
    assert_eq!(manifest(&engine)["recipe"], recipe.to_str().unwrap());
    let has_gpu = watus_build::backend::tensorrt::device::Device::open().is_ok();
    type Case<'a> = (fn(&mut Value), &'a str, &'a str, bool);
    let cases: [Case<'_>; 3] = [
        (of_older_tool, "cpu", "tiny was built by watus-build 0.0.9, this is ", true),
        (of_other_tensorrt, "tensorrt", ".99, this machine has TensorRT", true),
        // Without a GPU there is none to differ from.
        (of_other_gpu, "tensorrt", "was built on Orin (8.7), this GPU is ", has_gpu),
    ];
    for (change, backend, said, refused) in cases {
        edit(&engine, change);
        if refused {
            let (code, _, stderr) = run(&["serve", "engines/tiny", "--backend", backend, "--port", "0"]);
            assert_eq!((code, stderr.contains(said)), (6, true), "{stderr}");
            let command = format!("`watus-build build {}`, or let `serve --rebuild`", recipe.display());
            assert!(stderr.contains(&command), "{command}: {stderr}");
        }
        // The command builds this one, and leaves the other.
        let (code, stdout, stderr) = run(&["build", "m.yaml", recipe.to_str().unwrap()]);
        assert_eq!(code, 0, "{stderr}");
        assert!(stdout.contains("m: current") && stdout.contains("tiny: built"), "{stdout}");
        assert_eq!(manifest(&engine)["tool"], TOOL);
    }
    // From elsewhere the command says where it is.
    edit(&engine, of_older_tool);
    let mut elsewhere = watus(scratch.path());
    elsewhere.current_dir("/").arg("serve").arg(&engine).args(["--backend", "cpu", "--port", "0"]);
    let (code, _, stderr) = output(&mut elsewhere);
    let command = format!("build {} -o {}`", recipe.display(), engine.parent().unwrap().display());
    assert_eq!((code, stderr.contains(&command)), (6, true), "{command}: {stderr}");
}

#[test]
fn with_the_switch_it_is_built_again_and_served() {
    if !tensorrt_or_skip("with_the_switch_it_is_built_again_and_served") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = engines(scratch.path());
    for change in [of_older_tool, of_other_tensorrt] {
        edit(&engine, change);
        let server = Server::start(scratch.path(), &engine, &["--rebuild"]);
        assert!(server.log().contains("it is built again from "), "{}", server.log());
        assert_eq!(server.complete("AB", 2)["usage"]["completion_tokens"], 2);
        assert_eq!(
            (&manifest(&engine)["tool"], &manifest(&engine)["key"]["tool"]),
            (&json!(TOOL), &json!(&TOOL[12..]))
        );
        drop(server);
        // Nothing is built that fits.
        let written = fs::metadata(engine.join("manifest.json")).unwrap().modified().unwrap();
        let server = Server::start(scratch.path(), &engine, &["--rebuild"]);
        assert!(!server.log().contains("built again"), "{}", server.log());
        assert_eq!(fs::metadata(engine.join("manifest.json")).unwrap().modified().unwrap(), written);
    }
    // A layout that nobody here reads, with a recipe that is named.
    fs::rename(scratch.path().join("tiny.yaml"), scratch.path().join("moved.yaml")).unwrap();
    let old = manifest(&engine);
    let path = engine.join("manifest.json");
    fs::write(&path, fs::read_to_string(&path).unwrap().replacen("\"format\": 2", "\"format\": 99", 1)).unwrap();
    let server = Server::start(scratch.path(), &engine, &["--rebuild", "--recipe", "moved.yaml"]);
    assert!(server.log().contains("format 99 is not supported: it is built again from moved.yaml"), "{}", server.log());
    drop(server);
    assert_eq!(manifest(&engine)["format"], old["format"]);
    let run = |more: &[&str]| {
        let arguments = ["serve", "engines/tiny", "--backend", "cpu", "--port", "0", "--rebuild"];
        output(watus(scratch.path()).args(arguments).args(more))
    };
    fs::remove_file(scratch.path().join("tiny.gguf")).unwrap();
    edit(&engine, of_older_tool);
    let before = fs::read(engine.join("manifest.json")).unwrap();
    fs::rename(scratch.path().join("moved.yaml"), scratch.path().join("tiny.yaml")).unwrap();
    let cases: [(&[&str], i32, &str); 3] = [
        // Its source is gone, the recipe is another's, and the recorded one is not there.
        (&["--recipe", "tiny.yaml"], 4, "tiny.gguf"),
        (&["--recipe", "m.yaml"], 1, "makes `m`, not "),
        (&[], 6, "its recipe is not known here"),
    ];
    for (more, expected, said) in cases {
        if more.is_empty() {
            fs::remove_file(scratch.path().join("tiny.yaml")).unwrap();
        }
        let (code, _, stderr) = run(more);
        assert_eq!((code, stderr.contains(said)), (expected, true), "{more:?}: {stderr}");
        assert_eq!(fs::read(engine.join("manifest.json")).unwrap(), before, "what is there stays");
    }
    assert_eq!(leftovers(scratch.path()), Vec::<String>::new());
    let (code, stdout, stderr) =
        output(watus(scratch.path()).args(["run", "engines/tiny", "--backend", "cpu"]).args([
            "--raw",
            "--max-tokens",
            "1",
            "AB",
        ]));
    assert_eq!(code, 0, "{stdout}{stderr}");
}

#[test]
fn a_power_cut_amid_a_rebuild_leaves_the_old_engine() {
    if !tensorrt_or_skip("a_power_cut_amid_a_rebuild_leaves_the_old_engine") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = engines(scratch.path());
    edit(&engine, of_older_tool);
    let files = || -> Vec<(String, Vec<u8>)> {
        let names = support::tree(&engine).into_iter().filter(|name| engine.join(name).is_file());
        names.map(|name| (name.clone(), fs::read(engine.join(&name)).unwrap())).collect()
    };
    let before = files();
    for stage in ["preparing the model", "building"] {
        let mut command = watus(scratch.path());
        command.args(["serve", "engines/tiny", "--backend", "cpu", "--port", "0", "--rebuild"]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let reached = lines.by_ref().map_while(Result::ok).any(|line| line.contains(&format!("tiny: {stage}")));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        assert!(reached, "it never came to {stage}");
        assert!(files() == before, "{stage}: the old engine is as it was");
    }
    let server = Server::start(scratch.path(), &engine, &["--rebuild"]);
    assert_eq!(server.complete("AB", 2)["usage"]["completion_tokens"], 2);
    assert_eq!(leftovers(scratch.path()), Vec::<String>::new());
}

#[test]
fn a_service_may_build_again_and_then_writes_where_the_engine_is() {
    if !tensorrt_or_skip("a_service_may_build_again_and_then_writes_where_the_engine_is") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = engines(scratch.path()).canonicalize().unwrap();
    let unit = |more: &[&str]| {
        let mut command = watus(scratch.path());
        command.args(["service", "install", "engines/tiny", "--print", "--user", "robot"]).args(more);
        let (code, unit, stderr) = output(&mut command);
        assert_eq!(code, 0, "{stderr}");
        unit
    };
    let plain = unit(&[]);
    assert!(!plain.contains("--rebuild ") && !plain.contains("ReadWritePaths"), "{plain}");
    assert!(plain.contains("RestartPreventExitStatus=2 3 6 7 9\n") && plain.contains("TimeoutStartSec=15min\n"));
    let rebuilding = unit(&["--rebuild", "--recipe", "tiny.yaml"]);
    let recipe = scratch.path().join("tiny.yaml").canonicalize().unwrap();
    for line in [
        format!("ReadWritePaths={}", engine.parent().unwrap().display()),
        format!("Environment=HF_HOME={}", scratch.path().join("hf").display()),
        "RestartPreventExitStatus=2 3 5 6 7 9".to_owned(),
        "TimeoutStartSec=3h".to_owned(),
        "ProtectSystem=strict".to_owned(),
    ] {
        assert!(rebuilding.lines().any(|have| have == line), "no {line} in\n{rebuilding}");
    }
    assert!(rebuilding.contains(&format!(" --rebuild --recipe={} ", recipe.display())), "{rebuilding}");
    let path = scratch.path().join("watus-build.service");
    fs::write(&path, &rebuilding).unwrap();
    if let Ok(checked) = Command::new("systemd-analyze").arg("verify").arg(&path).output() {
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
    // What could not be built again is said now, and not at a boot.
    fs::remove_file(scratch.path().join("tiny.yaml")).unwrap();
    let mut command = watus(scratch.path());
    command.args(["service", "install", "engines/tiny", "--print", "--user", "robot", "--rebuild"]);
    let (code, _, stderr) = output(&mut command);
    assert_eq!((code, stderr.contains("its recipe is not known here")), (6, true), "{stderr}");
}
