//! The command line on language models: from a recipe to an answer, ONNX for other runtimes, and what it says no to.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::{output, repository, skip, tensorrt_or_skip, watus};

/// A recipe for the tiny GGUF Llama.
fn recipe(scratch: &Path, more: &str) {
    fs::copy(repository().join("tests/data/gguf/llama.gguf"), scratch.join("tiny.gguf")).unwrap();
    let text = format!(
        "version: 1\nname: tiny\nkind: llm\nsource: {{ path: tiny.gguf }}\nmax_batch_size: 2\nmax_input_len: 24\n\
         max_output_len: 16\n{more}"
    );
    fs::write(scratch.join("tiny.yaml"), text).unwrap();
}

#[test]
fn from_recipe_to_text() {
    if !tensorrt_or_skip("from_recipe_to_text") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    recipe(scratch.path(), "");
    let run = |arguments: &[&str]| output(watus(scratch.path()).args(arguments));
    let (code, stdout, stderr) = run(&["build", "--dry-run", "tiny.yaml"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(!stderr.contains("hashed"), "nobody waits for 1 MB: {stderr}");
    assert!(stdout.contains("never built here") && stdout.contains("keys and values"), "{stdout}");
    let (code, stdout, stderr) = run(&["build", "tiny.yaml"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.starts_with("tiny: built"), "{stdout}");
    assert!(stderr.contains("engines with TensorRT") && !stderr.contains("hashed"), "{stderr}");
    let (code, stdout, stderr) = run(&["build", "tiny.yaml"]);
    assert_eq!((code, stdout.starts_with("tiny: current"), stderr.contains("hashed")), (0, true, false), "{stderr}");
    // The weights are a copy: their file is the user's own, to write to and to delete.
    use std::os::unix::fs::MetadataExt;
    let weights = scratch.path().join("engines/tiny/weights/tiny.gguf");
    assert_eq!(fs::metadata(weights).unwrap().nlink(), 1);

    let greedy = ["run", "engines/tiny", "--backend", "cpu", "--raw", "--json", "--max-tokens", "5", "--logprobs", "2"];
    let (code, stdout, stderr) = run(&[&greedy[..], &["ABC"]].concat());
    assert_eq!(code, 0, "{stderr}");
    let answer: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(answer["completion_tokens"].as_u64().unwrap(), answer["tokens"].as_array().unwrap().len() as u64);
    let first = &answer["tokens"][0];
    assert_eq!(first["id"], first["top"][0]["id"], "greedy takes the likeliest: {first}");
    assert!(first["logprob"].as_f64().unwrap() < 0.0);
    assert_eq!(run(&[&greedy[..], &["ABC"]].concat()).1.lines().nth(1), stdout.lines().nth(1));
    let drawn = |seed: &str| run(&[&greedy[..], &["--temperature", "2", "--seed", seed, "ABC"]].concat()).1;
    let tokens = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["tokens"].clone();
    assert_eq!(tokens(&drawn("1")), tokens(&drawn("1")));

    let (code, _, stderr) = run(&["run", "engines/tiny", "--backend", "cpu", "--raw", &"ABC ".repeat(30)]);
    assert_eq!(code, 1);
    assert!(stderr.contains("longer than the 24") && stderr.contains("raise max_input_len"), "{stderr}");
    let (code, _, stderr) = run(&["run", "engines/tiny", "--backend", "cpu", "hello"]);
    assert_eq!((code, stderr.contains("no chat template")), (1, true), "{stderr}");
    let (code, _, stderr) = run(&["run", "engines/tiny", "--backend", "cpu", "--raw", "--top-p", "7", "AB"]);
    assert_eq!((code, stderr.contains("top_p is 7")), (1, true), "{stderr}");

    let bench = ["bench", "engines/tiny", "--backend", "cpu", "--lengths", "8,16", "--contexts", "8", "--json"];
    let (code, stdout, stderr) = run(&[&bench[..], &["--drafted", "1,4"]].concat());
    assert_eq!(code, 0, "{stderr}");
    let reports: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(reports[0]["prefill"].as_array().unwrap().len(), 2, "{stdout}");
    assert_eq!(reports[0]["decode"].as_array().unwrap().len(), 2, "batch 1 and 2: {stdout}");
    assert_eq!(reports[0]["drafted"].as_array().unwrap().len(), 2, "{stdout}");
    let last = &reports[0]["drafted"][1];
    assert!(last["drafted"] == 4 && last["context"] == 8, "{stdout}");
    let (code, _, stderr) = run(&[&bench[..], &["--drafted", "5000"]].concat());
    assert_eq!((code, stderr.contains("--drafted 5000: a launch has at most")), (1, true), "{stderr}");

    let (code, stdout, _) = run(&["inspect", "engines/tiny"]);
    assert!(
        code == 0 && stdout.contains("model   llama") && stdout.contains("24 prompt and 16 answer tokens"),
        "{stdout}"
    );
    let (code, stdout, _) = run(&["verify", "engines/tiny"]);
    assert!(code == 0 && stdout.contains("no chat template"), "{stdout}");

    // An engine of another TensorRT, and a damaged one.
    let manifest = scratch.path().join("engines/tiny/manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let mut foreign: serde_json::Value = serde_json::from_str(&text).unwrap();
    foreign["tensorrt"]["patch"] = 99.into();
    fs::write(&manifest, foreign.to_string()).unwrap();
    let (code, stdout, _) = run(&["verify", "engines/tiny"]);
    assert_eq!((code, stdout.contains("the plan was built by")), (6, true), "{stdout}");
    let (code, _, stderr) = run(&["run", "engines/tiny", "--backend", "tensorrt", "--raw", "AB"]);
    assert_eq!((code, stderr.contains("build it again here")), (6, true), "{stderr}");
    fs::write(&manifest, text).unwrap();
    fs::write(scratch.path().join("engines/tiny/engines/head-r1.engine"), "x").unwrap();
    let (code, stdout, _) = run(&["verify", "engines/tiny"]);
    assert_eq!((code, stdout.contains("head-r1.engine has 1 bytes")), (6, true), "{stdout}");
    let (code, stdout, _) = run(&["build", "tiny.yaml"]);
    assert_eq!((code, stdout.starts_with("tiny: built")), (0, true), "a damaged engine is built again: {stdout}");
}

#[test]
fn a_model_that_makes_no_sense_is_built_and_told_of() {
    if !tensorrt_or_skip("a_model_that_makes_no_sense_is_built_and_told_of") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    recipe(scratch.path(), "");
    // Long enough for the texts to tell.
    let path = scratch.path().join("tiny.yaml");
    let text = fs::read_to_string(&path).unwrap().replace("max_input_len: 24", "max_input_len: 120");
    fs::write(&path, text).unwrap();
    let run = |arguments: &[&str]| output(watus(scratch.path()).args(arguments));
    let (code, stdout, stderr) = run(&["build", "tiny.yaml"]);
    assert_eq!((code, stdout.starts_with("tiny: built")), (0, true), "{stdout}{stderr}");
    let told = "warning: tiny: sense: bits a byte";
    assert!(stderr.contains(told) && stderr.contains("hint: was it trained"), "{stderr}");
    let (code, stdout, stderr) = run(&["verify", "engines/tiny"]);
    assert_eq!((code, stdout.contains("warn tiny: sense: bits a byte")), (0, true), "{stdout}{stderr}");
    let (_, stdout, _) = run(&["verify", "--json", "engines/tiny"]);
    let reports: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let sense = reports[0]["sense"].as_array().unwrap();
    assert_eq!(sense.len(), 3, "{stdout}");
    for sense in sense {
        let number = |field: &str| sense[field].as_f64().unwrap();
        assert!(number("bits") > 0.9 * number("guessing"), "{sense}");
    }
    let checks = reports[0]["checks"].as_array().unwrap();
    assert!(checks.iter().any(|check| check["name"] == "sense" && check["status"] == "warned"), "{stdout}");
    let (_, stdout, _) = run(&["inspect", "engines/tiny"]);
    assert!(stdout.contains("verify  sense WARNED"), "{stdout}");
}

#[test]
fn limits_and_settings_that_cannot_be() {
    let scratch = tempfile::tempdir().unwrap();
    let cases = [
        ("max_output_len: 999\n", 1, "more than the 256 positions"),
        ("build: { batch: 2 }\n", 3, "use max_batch_size"),
        ("chat_template: nowhere.jinja\n", 1, "nowhere.jinja"),
    ];
    if !tensorrt_or_skip("limits_and_settings_that_cannot_be") {
        return;
    }
    for (more, expected, part) in cases {
        recipe(scratch.path(), more);
        let text = fs::read_to_string(scratch.path().join("tiny.yaml")).unwrap();
        let once = if more.starts_with("max_output") { text.replace("max_output_len: 16\n", "") } else { text };
        fs::write(scratch.path().join("tiny.yaml"), once).unwrap();
        let (code, _, stderr) = output(watus(scratch.path()).args(["build", "tiny.yaml"]));
        assert_eq!((code, stderr.contains(part)), (expected, true), "{more}: {stderr}");
        assert!(support::leftovers(scratch.path()).is_empty(), "{more}");
    }
}

#[test]
fn ollama_models_are_found() {
    let scratch = tempfile::tempdir().unwrap();
    let store = scratch.path().join("models");
    let gguf = fs::read(repository().join("tests/data/gguf/llama.gguf")).unwrap();
    let digest = watus_build::artifact::sha256(&gguf);
    fs::create_dir_all(store.join("manifests/registry.ollama.ai/library/tiny")).unwrap();
    fs::create_dir_all(store.join("blobs")).unwrap();
    let blob = store.join(format!("blobs/sha256-{digest}"));
    fs::write(&blob, gguf).unwrap();
    let manifest = serde_json::json!({"schemaVersion": 2, "layers": [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:00", "size": 1},
        {"mediaType": "application/vnd.ollama.image.model", "digest": format!("sha256:{digest}"), "size": 1},
    ]});
    fs::write(store.join("manifests/registry.ollama.ai/library/tiny/1b"), manifest.to_string()).unwrap();
    let fetch = |model: &str| {
        let text = format!("version: 1\nname: tiny\nkind: llm\nsource: {{ ollama: '{model}' }}\n");
        fs::write(scratch.path().join("tiny.yaml"), text).unwrap();
        output(watus(scratch.path()).env("OLLAMA_MODELS", &store).args(["fetch", "tiny.yaml"]))
    };
    let (code, stdout, stderr) = fetch("tiny:1b");
    assert_eq!((code, stdout.contains(&*blob.to_string_lossy())), (0, true), "{stderr}");
    let (code, _, stderr) = fetch("tiny");
    assert_eq!((code, stderr.contains("ollama pull tiny")), (4, true), "{stderr}");
    let (code, _, stderr) = fetch("../tiny");
    assert_eq!((code, stderr.contains("not an Ollama model")), (3, true), "{stderr}");
}

#[test]
fn an_architecture_is_refused_before_its_weights_are_fetched() {
    let scratch = tempfile::tempdir().unwrap();
    let config = br#"{"model_type": "mamba"}"#.to_vec();
    let hub = support::hub::Hub::start(&[
        ("config.json", config, false),
        ("tokenizer.json", b"{}".to_vec(), false),
        ("model.safetensors", vec![0; 5000], true),
    ]);
    let text = "version: 1\nname: m\nkind: llm\nsource: { hub: org/model }\n";
    fs::write(scratch.path().join("m.yaml"), text).unwrap();
    let (code, _, stderr) = output(watus(scratch.path()).env("HF_ENDPOINT", &hub.endpoint).args(["fetch", "m.yaml"]));
    assert_eq!((code, stderr.contains("`mamba` is not supported")), (1, true), "{stderr}");
    assert!(!support::tree(scratch.path()).iter().any(|name| name.ends_with("model.safetensors")), "{stderr}");
}

#[test]
fn a_gguf_is_judged_by_its_first_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let good = fs::read(repository().join("tests/data/gguf/llama.gguf")).unwrap();
    // The number of a tensor's type follows its name, its rank and two dimensions; 10 is Q2_K.
    let mut bad = good.clone();
    let name = b"blk.0.ffn_up.weight";
    let at = bad.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 16;
    assert_eq!(bad[at..at + 4], [0; 4], "float32");
    bad[at] = 10;
    // So long that the rest need not be here for the answer.
    bad.resize(12 << 20, 0);
    let hub = support::hub::Hub::start(&[("good.gguf", good, true), ("bad.gguf", bad, true)]);
    let fetch = |file: &str| {
        let text = format!("version: 1\nname: m\nkind: llm\nsource: {{ hub: org/model, file: {file} }}\n");
        fs::write(scratch.path().join("m.yaml"), text).unwrap();
        output(watus(scratch.path()).env("HF_ENDPOINT", &hub.endpoint).args(["fetch", "m.yaml"]))
    };
    let (code, _, stderr) = fetch("good.gguf");
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) = fetch("bad.gguf");
    assert_eq!((code, stderr.contains("tensor `blk.0.ffn_up.weight`: elements of type Q2_K")), (4, true), "{stderr}");
    let parts = support::leftovers(scratch.path());
    let part = scratch.path().join(parts.iter().find(|name| name.ends_with(".incomplete")).unwrap());
    assert!(fs::metadata(part).unwrap().len() < 8 << 20, "the rest was not downloaded");
}

#[test]
fn whole_models_run_in_onnxruntime() {
    let python = std::env::var_os("WATUS_ORACLE_PYTHON").filter(|python| Path::new(python).exists());
    let Some(python) = python else {
        return skip(
            "whole_models_run_in_onnxruntime",
            "set WATUS_ORACLE_PYTHON to what scripts/setup-oracles.sh prints",
        );
    };
    let scratch = tempfile::tempdir().unwrap();
    let data = repository().join("tests/data");
    // Every family's graph, and a GGUF whose rows are in rotary pairs.
    let families = fs::read_dir(data.join("llm")).unwrap().flatten().filter(|entry| entry.path().is_dir());
    let mut cases: Vec<(String, std::path::PathBuf, String)> = families
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name.clone(), entry.path().join("expected.npy"), format!("../{name}"))
        })
        .collect();
    assert!(cases.len() >= 14);
    cases.push(("gguf".to_owned(), data.join("llm/llama/expected.npy"), "../llama.gguf".to_owned()));
    // Its biases are in pairs too.
    cases.push(("bielik".to_owned(), data.join("gguf/models/bielik.npy"), "../bielik.gguf".to_owned()));
    for (name, expected, _) in &cases {
        let source = match name.as_str() {
            "gguf" => data.join("gguf/llama.gguf"),
            "bielik" => data.join("gguf/models/bielik.gguf"),
            name => data.join("llm").join(name),
        };
        // What is linked to must be on the same disk as a user's would be: inside the scratch folder.
        let local = scratch.path().join("source").join(name);
        fs::create_dir_all(&local).unwrap();
        if source.is_dir() {
            for entry in fs::read_dir(&source).unwrap().flatten() {
                fs::copy(entry.path(), local.join(entry.file_name())).unwrap();
            }
            // Not run, but judged as for a build.
            fs::write(local.join("tokenizer.json"), support::tokenizer()).unwrap();
        } else {
            fs::copy(&source, local.join("model.gguf")).unwrap();
        }
        let path = if source.is_dir() { format!("source/{name}") } else { format!("source/{name}/model.gguf") };
        // 40 tokens in all, as the expected values were made with.
        let text = format!(
            "version: 1\nname: {name}\nkind: llm\nsource: {{ path: {path} }}\nmax_input_len: 30\nmax_output_len: 10\n"
        );
        fs::write(scratch.path().join(format!("{name}.yaml")), text).unwrap();
        // Beside the weights, where onnx.checker accepts them, and in a folder of links.
        let own = format!("source/{name}");
        for (output_folder, model, check) in [
            (&*own, format!("{own}/{name}.onnx"), Some("--check")),
            ("engines", format!("engines/{name}-onnx/model.onnx"), None),
        ] {
            let arguments = ["build", "--emit", "onnx", &format!("{name}.yaml"), "-o", output_folder];
            let (code, stdout, stderr) = output(watus(scratch.path()).args(arguments));
            assert_eq!((code, stdout.contains(&model)), (0, true), "{name}: {stdout}{stderr}");
            let model = scratch.path().join(model);
            assert!(fs::metadata(&model).unwrap().len() < 200_000, "no weights inside");
            let mut script = Command::new(&python);
            script.arg(data.join("llm/check_onnx.py")).args(check).arg(&model).arg(expected);
            let (code, stdout, stderr) = output(&mut script);
            assert_eq!(code, 0, "{name}: {stdout}{stderr}");
            println!("{name}: {}", stdout.trim());
        }
    }
}
