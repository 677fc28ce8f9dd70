//! Who may import whom. The table is ARCHITECTURE.md's; a module imports only from lines above its own.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Lines from the bottom; modules on one line do not import each other.
const LINES: &[&[&str]] = &[
    &["artifact", "memory", "progress", "tensor"],
    &["onnx", "vision"],
    &["backend", "recipe"],
    &["bench", "fetch", "manifest"],
    &["doctor", "verify", "worker"],
    &["pipeline"],
    &["cli"],
];

/// Crates with one owner: everything else goes through that module.
const OWNERS: &[(&str, &str)] = &[
    ("onnx_protobuf", "onnx/"),
    ("protobuf", "onnx/"),
    ("hf_hub", "fetch/hub.rs"),
    ("ureq", "fetch/"),
    ("zip", "fetch/pypi.rs"),
    ("cxx", "backend/tensorrt/"),
    ("cudarc", "backend/tensorrt/"),
    ("rten", "backend/cpu.rs"),
    ("image", "vision.rs"),
    ("plotters", "bench/chart.rs"),
    ("clap", "cli/"),
    ("indicatif", "cli/progress.rs"),
    ("ctrlc", "cli/"),
    ("serde_yaml", "recipe/ fetch/lock.rs"),
    ("schemars", "recipe/ vision.rs"),
];

fn line_of(module: &str) -> usize {
    let line = LINES.iter().position(|line| line.contains(&module));
    line.unwrap_or_else(|| panic!("module `{module}` is on no line of the table"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Code before the unit tests, comments cut off.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

#[test]
fn modules_import_only_from_lines_above() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for path in sources(&src) {
        let name = path.strip_prefix(&src).unwrap().to_string_lossy().into_owned();
        if name == "lib.rs" || name == "main.rs" {
            continue;
        }
        let module = name.split(['/', '.']).next().unwrap();
        for (at, _) in code(&path).match_indices("crate::") {
            let rest = &code(&path)[at + "crate::".len()..];
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
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for path in sources(&src) {
        let name = path.strip_prefix(&src).unwrap().to_string_lossy().into_owned();
        let code = code(&path);
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
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in sources(&src) {
        let lines = code(&path).lines().count();
        assert!(lines <= 400, "{} has {lines} lines: split it", path.display());
        assert!(
            fs::read_to_string(&path).unwrap().starts_with("//!"),
            "{} does not say what it is for",
            path.display()
        );
    }
}
