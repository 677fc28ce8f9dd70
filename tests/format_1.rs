//! Engine directories of the format before this one's: they run, are proved, and are not rebuilt.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::BufWriter;
use std::path::Path;

use serde_json::Value;
use support::{output, repository, skip, tensorrt_or_skip, watus};
use watus_build::backend::tensorrt::TensorRt;
use watus_build::spec::Family;
use watus_build::tensor::{Tensor, write_npy};

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The manifest that 0.1.0 would have left in place of `written`: `old` (tests/data/engines/make.py), of this machine and these
/// engine files.
fn of_format_1(old: &Value, written: &Value) -> Value {
    let mut manifest = old.clone();
    for field in ["tensorrt", "device", "l4t", "source", "build", "files"] {
        manifest[field] = written[field].clone();
    }
    for part in ["tool", "tensorrt", "gpu"] {
        manifest["key"][part] = written["key"][part].clone();
    }
    manifest
}

#[test]
fn engines_of_format_1_run_and_are_not_rebuilt() {
    let test = "engines_of_format_1_run_and_are_not_rebuilt";
    if !tensorrt_or_skip(test) {
        return;
    }
    if TensorRt::open().unwrap().version.family != Family::Rtx {
        return skip(test, "the keys in tests/data/engines are of TensorRT-RTX");
    }
    let (data, scratch) = (repository().join("tests/data/engines"), tempfile::tempdir().unwrap());
    let face = repository().join("recipes/images/face.png");
    let face = face.to_str().unwrap();
    let input = Tensor::from_f32(vec![3, 4], (0..12_u8).map(f32::from).collect()).unwrap();
    write_npy(BufWriter::new(fs::File::create(scratch.path().join("x.npy")).unwrap()), &input).unwrap();
    let cases: [(&str, &[&str], &str); 5] = [
        ("onnx", &["--input", "x=x.npy"], "y float32[3, 3]: "),
        ("classifier", &[face], "classifier: "),
        ("yolo", &["--no-annotated", face], "yolo: "),
        ("yolo-cls", &[face], "yolo-cls: "),
        ("llm-int8", &["--raw", "--max-tokens", "2", "AB"], ""),
    ];
    for (name, arguments, said) in cases {
        let recipe = data.join(format!("{name}.yaml"));
        let engine = format!("engines/{name}");
        let run = |arguments: &[&str]| output(watus(scratch.path()).args(arguments));
        let build = |more: &[&str]| run(&[&["build", recipe.to_str().unwrap()][..], more].concat());
        let (code, stdout, stderr) = build(&[]);
        assert_eq!((code, stdout.starts_with(&format!("{name}: built"))), (0, true), "{stdout}{stderr}");
        let path = scratch.path().join(&engine).join("manifest.json");
        let (old, written) = (read(&data.join(format!("{name}.json"))), read(&path));
        assert_eq!((&old["format"], &written["format"]), (&1.into(), &2.into()));
        for part in ["source", "inputs", "options", "recipe"] {
            assert_eq!(written["key"][part], old["key"][part], "{name}: {part}");
        }
        fs::write(&path, of_format_1(&old, &written).to_string()).unwrap();
        let (code, stdout, stderr) = build(&["--dry-run"]);
        assert_eq!((code, stdout.contains("nothing to do")), (0, true), "{stdout}{stderr}");
        let (code, stdout, stderr) = build(&[]);
        assert_eq!((code, stdout.starts_with(&format!("{name}: current"))), (0, true), "{stdout}{stderr}");
        assert_eq!(read(&path)["format"], 1, "{name}: what is current is left as it is");
        let (code, stdout, stderr) = run(&[&["run", &engine, "--backend", "cpu"][..], arguments].concat());
        assert_eq!((code, stdout.contains(said)), (0, true), "{name}: {stdout}{stderr}");
        let (code, stdout, stderr) = run(&["verify", &engine]);
        assert_eq!((code, stdout.contains("ok   ")), (0, true), "{stdout}{stderr}");
        let (code, stdout, stderr) = run(&["inspect", &engine]);
        let kind = old["kind"].as_str().unwrap();
        assert_eq!((code, stdout.starts_with(&format!("{name}: {kind} engine, "))), (0, true), "{stdout}{stderr}");
    }
}
