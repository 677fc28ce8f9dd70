//! Shared by the integration tests: the command, scratch folders, and what is skipped where TensorRT is missing.
#![allow(dead_code)]

pub mod hub;
pub mod server;
#[path = "../../examples/yolo_engine/yolov8n.rs"]
pub mod yolov8n;

use std::path::{Path, PathBuf};
use std::process::Command;

use watus_build::backend::tensorrt::TensorRt;

/// The binary under test, with caches and home in `scratch` and nothing of the caller's environment that matters.
pub fn watus(scratch: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_watus-build"));
    for name in ["HF_TOKEN", "HF_HOME", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "NO_COLOR"] {
        command.env_remove(name);
    }
    command.current_dir(scratch).env("WATUS_CACHE_DIR", scratch.join("cache")).env("HF_HOME", scratch.join("hf"));
    command
}

/// This repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command; (exit code, stdout, stderr).
pub fn output(command: &mut Command) -> (i32, String, String) {
    let output = command.output().expect("the binary starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Writes `NAME.onnx` and a recipe `NAME.yaml` that builds it.
pub fn onnx_recipe(folder: &Path, name: &str, model: &watus_build::onnx::Model) {
    std::fs::write(folder.join(format!("{name}.onnx")), model.to_bytes().expect("a model")).expect("a scratch folder");
    let recipe = format!("version: 1\nname: {name}\nkind: onnx\nsource: {{ path: {name}.onnx }}\n");
    std::fs::write(folder.join(format!("{name}.yaml")), recipe).expect("a scratch folder");
}

/// A tokenizer.json of 64 words.
pub fn tokenizer() -> String {
    let vocabulary: std::collections::BTreeMap<String, u32> =
        (0..64).map(|token| (format!("w{token}"), token)).collect();
    let model = serde_json::json!({"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"});
    serde_json::json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
           "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null, "model": model})
    .to_string()
}

/// Whether TensorRT can build here. Where it cannot, the test says that it was skipped; in CI that is a failure.
pub fn tensorrt_or_skip(test: &str) -> bool {
    match TensorRt::open() {
        Ok(_) => true,
        Err(error) => {
            skip(test, &error.to_string());
            false
        }
    }
}

/// Whether ONNX Runtime is here.
pub fn onnxruntime_or_skip(test: &str) -> bool {
    let found = watus_build::backend::onnxruntime::OnnxRuntime::find().expect("what is named can be used").is_some();
    if !found {
        skip(test, "no ONNX Runtime; scripts/setup-onnxruntime.sh brings it");
    }
    found
}

/// Prints a skip, or fails where CI=true.
pub fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} must not be skipped in CI: {why}");
}

/// Names below a folder, hidden ones included, sorted.
pub fn tree(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(current) = pending.pop() {
        for entry in std::fs::read_dir(&current).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.is_symlink() {
                pending.push(path.clone());
            }
            names.push(path.strip_prefix(folder).expect("below").to_string_lossy().into_owned());
        }
    }
    names.sort();
    names
}

/// What a crashed writer leaves: staged files and directories, part files.
pub fn leftovers(folder: &Path) -> Vec<String> {
    tree(folder).into_iter().filter(|name| name.contains(".staging-") || name.ends_with(".incomplete")).collect()
}
