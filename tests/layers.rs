//! Who may import whom. The table is ARCHITECTURE.md's; a module imports only from lines above its own.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

/// Lines from the bottom; modules on one line do not import each other.
const LINES: &[&[&str]] = &[
    &["address", "artifact", "confined", "diagnostic", "log", "memory", "progress", "regular_file", "tensor"],
    &["checkpoint", "onnx", "vision"],
    &["backend", "convert", "recipe"],
    &["fetch", "llm"],
    &["bench", "manifest"],
    &["doctor", "serve", "verify", "worker"],
    &["pipeline"],
    &["cli", "fuzzing"],
];

/// Crates with one owner: everything else goes through that module.
const OWNERS: &[(&str, &str)] = &[
    ("onnx_protobuf", "onnx/"),
    ("protobuf", "onnx/"),
    ("hf_hub", "fetch/hub.rs"),
    ("ureq", "fetch/ verify/endpoint.rs"),
    ("zip", "fetch/pypi.rs checkpoint/torch/"),
    ("watus_shim", "backend/tensorrt/"),
    ("cudarc", "backend/tensorrt/ llm/gpu/"),
    ("libloading", "llm/gpu/ backend/tensorrt/"),
    ("rten", "backend/cpu/"),
    ("ort", "backend/onnxruntime.rs"),
    ("image", "vision/"),
    ("gif", "vision/gif_frame.rs"),
    ("tiff", "vision/tiff_samples.rs"),
    ("fast_image_resize", "vision/picture.rs"),
    ("noto_sans_mono_bitmap", "vision/draw.rs"),
    ("safetensors", "checkpoint/"),
    ("memmap2", "checkpoint/mapped.rs"),
    ("tokenizers", "llm/text/"),
    ("minijinja", "llm/text/template.rs llm/text/jinja/"),
    ("llguidance", "llm/grammar.rs"),
    ("axum", "serve/"),
    ("hyper", "serve/connection.rs serve/crowd.rs"),
    ("tokio", "serve/"),
    ("tower", "serve/"),
    ("tower_http", "serve/"),
    ("prometheus_client", "serve/metrics.rs"),
    ("nvml_wrapper", "serve/metrics.rs"),
    ("tracing_subscriber", "log.rs"),
    ("sd_notify", "serve/systemd.rs"),
    ("plotters", "bench/chart.rs bench/llm_chart.rs"),
    ("clap", "cli/"),
    ("clap_complete", "cli/manual.rs"),
    ("clap_mangen", "cli/manual.rs"),
    ("indicatif", "cli/progress.rs"),
    ("ctrlc", "cli/signals.rs"),
    ("nix", "cli/signals.rs"),
    ("jiff", "llm/text/jinja/clock.rs pipeline/vision.rs"),
    ("serde_yaml", "recipe/ fetch/lock.rs"),
    ("schemars", "recipe/ vision/"),
];

fn line_of(module: &str) -> usize {
    let line = LINES.iter().position(|line| line.contains(&module));
    line.unwrap_or_else(|| panic!("module `{module}` is on no line of the table"))
}

/// One file of `src/`.
struct Source {
    /// Path below `src/`.
    name: String,
    /// As it is.
    text: String,
    /// Before the unit tests, comments cut off.
    code: String,
}

fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut pending) = (Vec::new(), vec![src.clone()]);
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
                let code = code.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n");
                let name = path.strip_prefix(&src).unwrap().to_string_lossy().into_owned();
                files.push(Source { name, text, code });
            }
        }
    }
    files
}

#[test]
fn modules_import_only_from_lines_above() {
    let mut wrong = Vec::new();
    for Source { name, code, .. } in sources() {
        if name == "lib.rs" || name == "main.rs" {
            continue;
        }
        let module = name.split(['/', '.']).next().unwrap();
        for (at, found) in code.match_indices("crate::") {
            let rest = &code[at + found.len()..];
            let target: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if target.is_empty() {
                wrong.push(format!("{name}: one module per `use crate::`, no groups"));
            } else if target != module && line_of(&target) >= line_of(module) {
                wrong.push(format!("{name} imports {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn heavy_crates_have_one_owner() {
    let mut wrong = Vec::new();
    for Source { name, code, .. } in sources() {
        for (owned, owners) in OWNERS {
            let uses = code
                .match_indices(&format!("{owned}::"))
                .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'));
            if uses && !owners.split(' ').any(|owner| name.starts_with(owner)) {
                wrong.push(format!("{name} uses {owned}, which belongs to {owners}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_stay_readable() {
    for Source { name, text, code } in sources() {
        let lines = code.lines().count();
        assert!(lines <= 400, "{name} has {lines} lines: split it");
        assert!(text.starts_with("//!"), "{name} does not say what it is for");
    }
}
