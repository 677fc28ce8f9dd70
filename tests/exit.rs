//! Exit codes: every code by every command that can meet it, on a machine with TensorRT; and that the worst of several wins.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;

use support::{onnx_recipe, output, repository, tensorrt_or_skip, watus};
use watus_build::backend::tensorrt::device::Device;
use watus_build::onnx::{GraphBuilder, Model};
use watus_build::tensor::{DType, Tensor, write_npy};

/// `y = OPERATOR(x)` on two numbers.
fn graph(folder: &Path, operator: &str) -> Model {
    let mut graph = GraphBuilder::new("g", 17);
    graph.input("x", DType::Float32, &[Some(2)]);
    graph.node_named(operator, &["x"], &["y"], &[]);
    graph.output("y", DType::Float32, &[Some(2)]);
    graph.finish(&folder.join("g.onnx")).unwrap()
}

/// Recipes `m` (an ONNX model), `tiny` (a language model), `odd` (an operator nobody has), `gone` and `bad`; an input.
fn recipes(folder: &Path) {
    onnx_recipe(folder, "m", &graph(folder, "Relu"));
    onnx_recipe(folder, "odd", &graph(folder, "FancyOp"));
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    write("gone.yaml", "version: 1\nname: gone\nkind: onnx\nsource: { path: nowhere.onnx }\n");
    write("bad.yaml", "version: 1\nname: bad\nkind: onnx\nsauce: { path: m.onnx }\n");
    fs::copy(repository().join("tests/data/gguf/llama.gguf"), folder.join("tiny.gguf")).unwrap();
    let text = "version: 1\nname: tiny\nkind: llm\nsource: { path: tiny.gguf }\nmax_batch_size: 1\nmax_input_len: 24\n\
                max_output_len: 16\n";
    write("tiny.yaml", text);
    let x = Tensor::seeded(DType::Float32, vec![2], 1).unwrap();
    write_npy(fs::File::create(folder.join("x.npy")).unwrap(), &x).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Makes the manifest one of a TensorRT that is not here.
fn make_foreign(folder: &Path) {
    let path = folder.join("manifest.json");
    let mut document: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    document["tensorrt"]["patch"] = 99.into();
    fs::write(path, document.to_string()).unwrap();
}

/// Commands that run what is in an engine directory, that look at its files, and that read its manifest.
const RUNS: &[&str] = &["run", "bench", "serve", "verify"];
const LOOKS: &[&str] = &["run", "bench", "serve", "verify", "strip"];
const READS: &[&str] = &["run", "bench", "serve", "verify", "strip", "inspect", "service"];

/// The arguments of `command` on `engine`; `None` where it is not for such engines.
fn arguments<'a>(command: &'a str, engine: &'a str, llm: bool, backend: &'a str) -> Option<Vec<&'a str>> {
    Some(match command {
        "run" if llm => vec!["run", engine, "--backend", backend, "--raw", "--max-tokens", "1", "AB"],
        "run" => vec!["run", engine, "--backend", backend, "--input", "x=x.npy"],
        "bench" if llm => vec!["bench", engine, "--backend", backend, "--lengths", "8", "--contexts", "8"],
        "bench" => vec!["bench", engine, "--backend", backend, "-n", "1", "--warmup", "0"],
        "serve" if llm => vec!["serve", engine, "--backend", backend, "--port", "0"],
        "service" if llm => vec!["service", "install", engine, "--print", "--user", "robot"],
        "serve" | "service" => return None,
        other => vec![other, engine],
    })
}

#[test]
fn what_is_wrong_with_an_engine_is_code_6_for_every_command() {
    if !tensorrt_or_skip("what_is_wrong_with_an_engine_is_code_6_for_every_command") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    recipes(scratch.path());
    let (code, _, stderr) = output(watus(scratch.path()).args(["build", "m.yaml", "tiny.yaml"]));
    assert_eq!(code, 0, "{stderr}");
    type Fault = fn(&Path);
    // What is done to the engine, which commands notice, and what they say.
    let faults: [(Fault, &[&str], &str); 8] = [
        (|folder| fs::remove_file(folder.join("manifest.json")).unwrap(), READS, "this is no engine directory"),
        (|folder| fs::write(folder.join("manifest.json"), "{").unwrap(), READS, "not a manifest"),
        (
            |folder| fs::write(folder.join("manifest.json"), "{\"format\": 99}").unwrap(),
            READS,
            "format 99 is not supported",
        ),
        (|folder| flip(&folder.join("model.onnx")), LOOKS, "model.onnx does not match its sha256"),
        (|folder| flip(&folder.join("tokenizer.json")), LOOKS, "tokenizer.json does not match its sha256"),
        (|folder| flip(&folder.join("engines/head-r1.engine")), LOOKS, "head-r1.engine does not match its sha256"),
        (|folder| flip(&folder.join("weights/tiny.gguf")), LOOKS, "weights/tiny.gguf does not match its sha256"),
        (|folder| fs::write(folder.join("chat_template.jinja"), "x").unwrap(), LOOKS, "is not in the manifest"),
    ];
    for (index, (fault, commands, said)) in faults.iter().enumerate() {
        for (name, llm) in [("m", false), ("tiny", true)] {
            let vision = *said == "model.onnx does not match its sha256";
            if index >= 3 && llm == vision {
                continue; // the other kind has no such file
            }
            let engine = format!("broken/{name}-{index}");
            let folder = scratch.path().join(&engine);
            copy(&scratch.path().join("engines").join(name), &folder);
            fault(&folder);
            for command in *commands {
                let Some(arguments) = arguments(command, &engine, llm, "cpu") else { continue };
                let (code, stdout, stderr) = output(watus(scratch.path()).args(&arguments));
                let text = format!("{stdout}{stderr}");
                assert_eq!((code, text.contains(said)), (6, true), "{arguments:?}: {text}");
                assert!(!LOOKS.contains(command) || index < 1 || text.contains("again"), "{arguments:?}: {text}");
            }
        }
    }
    for (name, llm) in [("m", false), ("tiny", true)] {
        let engine = format!("broken/{name}-foreign");
        copy(&scratch.path().join("engines").join(name), &scratch.path().join(&engine));
        make_foreign(&scratch.path().join(&engine));
        for command in RUNS {
            let Some(arguments) = arguments(command, &engine, llm, "tensorrt") else { continue };
            let (code, stdout, stderr) = output(watus(scratch.path()).args(&arguments));
            let text = format!("{stdout}{stderr}");
            assert_eq!((code, text.contains("was built by")), (6, true), "{arguments:?}: {text}");
        }
    }
    // What only `verify` and people look at may be missing.
    fs::remove_file(scratch.path().join("engines/tiny/engines/head-r1.onnx")).unwrap();
    let arguments = arguments("run", "engines/tiny", true, "cpu").unwrap();
    let (code, _, stderr) = output(watus(scratch.path()).args(&arguments).arg("--verify"));
    assert_eq!((code, stderr.contains("head-r1.onnx is missing")), (0, true), "{stderr}");
}

#[test]
fn every_other_code_by_the_commands_that_meet_it() {
    if !tensorrt_or_skip("every_other_code_by_the_commands_that_meet_it") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    recipes(scratch.path());
    let run = |arguments: &[&str]| output(watus(scratch.path()).args(arguments));
    assert_eq!(run(&["build", "m.yaml", "tiny.yaml"]).0, 0);
    fs::create_dir(scratch.path().join("models")).unwrap();
    copy(&scratch.path().join("engines/m"), &scratch.path().join("engines/flipped"));
    flip(&scratch.path().join("engines/flipped/model.onnx"));
    let plan = fs::read(scratch.path().join("engines/m/m.engine")).unwrap();
    let header = watus_build::backend::tensorrt::plan::Header::parse(&plan).unwrap();
    // Where the header has no length, half an engine looks like one.
    let cut = if header.length.is_some() { plan.len() / 2 } else { 16 };
    fs::write(scratch.path().join("cut.engine"), &plan[..cut]).unwrap();
    let cases: &[(&[&str], i32)] = &[
        (&["recipe", "check", "m.yaml"], 0),
        (&["inspect", "engines/m/m.engine"], 0),
        (&["strip", "engines/m"], 1),
        (&["strip", "engines/tiny"], 1),
        (&["strip", "m.yaml"], 6),
        (&["strip", "nowhere.engine"], 6),
        (&["strip", "cut.engine"], 6),
        (&["strip", "engines/flipped"], 6),
        (&["inspect", "m.yaml"], 6),
        (&["inspect", "nowhere"], 6),
        (&["inspect", "cut.engine"], 6),
        (&["inspect", "--layers", "cut.engine"], 6),
        (&["inspect", "--layers", "engines/flipped"], 6),
        (&["inspect", "models"], 6),
        (&["run", "odd.onnx", "--backend", "cpu", "--input", "x=x.npy"], 1),
        (&["run", "engines/m", "--backend", "cpu"], 1),
        (&["run", "engines/m", "--backend", "cpu", "--save", ".", "--input", "x=y.npy"], 1),
        (&["bench", "engines/m", "--backend", "cpu", "--chart", "m.yaml"], 1),
        (&["strip", "engines/m/m.engine", "-o", "engines/m/m.engine"], 1),
        (&["strip", "engines/m/m.engine", "-o", "m.yaml"], 1),
        (&["run"], 2),
        (&["bench", "engines/m", "--batch", "0"], 2),
        (&["bench", "engines/m", "--batch", "1,65537"], 2),
        (&["bench", "engines/m", "-n", "0"], 2),
        (&["bench", "engines/tiny", "--lengths", "0"], 2),
        (&["recipe", "check", "bad.yaml", "m.yaml"], 3),
        (&["recipe", "check", "m.yaml", "bad.yaml", "m.yaml"], 3),
        (&["fetch", "bad.yaml"], 3),
        (&["build", "m.yaml", "bad.yaml"], 3),
        (&["fetch", "gone.yaml"], 4),
        (&["build", "gone.yaml"], 4),
        (&["build", "odd.yaml"], 5),
        (&["verify", "engines/flipped"], 6),
        // Of several the worst, in any order.
        (&["fetch", "bad.yaml", "gone.yaml", "m.yaml"], 3),
        (&["fetch", "gone.yaml", "bad.yaml", "m.yaml"], 3),
        (&["build", "odd.yaml", "gone.yaml", "m.yaml"], 5),
        (&["build", "m.yaml", "gone.yaml", "odd.yaml", "tiny.yaml"], 5),
        (&["verify", "engines/nowhere", "engines/m"], 6),
        (&["verify", "engines/flipped", "engines/m"], 6),
        (&["verify", "--require-execution", "engines/m", "engines/flipped"], 6),
        (&["verify", "--require-execution", "engines/flipped", "engines/m"], 6),
    ];
    fs::copy(scratch.path().join("x.npy"), scratch.path().join("y.npy")).unwrap();
    let files = || ["m.yaml", "y.npy", "engines/m/m.engine"].map(|name| fs::read(scratch.path().join(name)).unwrap());
    let before = files();
    for (arguments, expected) in cases {
        let (code, stdout, stderr) = run(arguments);
        assert_eq!(code, *expected, "{arguments:?}: {stdout}{stderr}");
        assert!(files() == before, "{arguments:?} changed a file of the user's");
    }
    // One that cannot be had stops no other.
    assert!(run(&["fetch", "gone.yaml", "bad.yaml", "m.yaml"]).1.contains("m: "), "fetch goes on");
    assert!(run(&["verify", "engines/nowhere", "engines/m"]).1.contains("ok   m: hashes"), "verify goes on");
    if Device::open().is_ok() {
        return;
    }
    let without: &[(&[&str], i32)] = &[
        (&["build", "--require-execution", "m.yaml"], 7),
        (&["build", "--require-execution", "gone.yaml", "m.yaml"], 4),
        (&["verify", "--require-execution", "engines/m"], 7),
        (&["run", "engines/m", "--backend", "tensorrt", "--input", "x=x.npy"], 8),
        (&["run", "engines/tiny", "--backend", "tensorrt", "--raw", "AB"], 8),
        (&["bench", "engines/m", "--backend", "tensorrt"], 8),
        (&["serve", "engines/tiny", "--port", "0"], 8),
    ];
    for (arguments, expected) in without {
        let (code, stdout, stderr) = run(arguments);
        assert_eq!(code, *expected, "{arguments:?}: {stdout}{stderr}");
    }
}
