//! Shims beside the program (`WATUS_TEST_SHIMS`, made by scripts/build-shims.sh): the one that fits the library it finds is used,
//! and what none fits is told. Libraries that stand in for TensorRT say a version and make nothing.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{onnx_recipe, output, skip, watus};
use watus_build::onnx::GraphBuilder;
use watus_build::tensor::DType;

/// A folder of shims with that name alone.
fn shim(scratch: &Path, name: &str) -> Option<PathBuf> {
    let made = std::env::var_os("WATUS_TEST_SHIMS").map(PathBuf::from);
    let Some(file) = made.map(|folder| folder.join(format!("libwatus_shim-{name}.so"))).filter(|file| file.exists())
    else {
        skip(&format!("the shim {name}"), "set WATUS_TEST_SHIMS to what scripts/build-shims.sh filled");
        return None;
    };
    let folder = scratch.join("shims");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
    Some(folder)
}

/// Libraries of this major that say they are `version`.
fn stand_in(scratch: &Path, major: u32, version: u32) -> PathBuf {
    let folder = scratch.join(format!("tensorrt-{version}"));
    fs::create_dir_all(&folder).unwrap();
    let source = folder.join("stand_in.c");
    let functions = "void *createInferBuilder_INTERNAL(void *l, int v) { return 0; }\n\
                     void *createInferRuntime_INTERNAL(void *l, int v) { return 0; }\n\
                     void *createNvOnnxParser_INTERNAL(void *n, void *l, int v) { return 0; }\n";
    fs::write(&source, format!("int getInferLibVersion(void) {{ return {version}; }}\n{functions}")).unwrap();
    for name in ["libnvinfer", "libnvonnxparser"] {
        let mut compile = Command::new("cc");
        let library = folder.join(format!("{name}.so.{major}"));
        assert_eq!(output(compile.args(["-shared", "-fPIC", "-o"]).arg(library).arg(&source)).0, 0);
    }
    folder
}

#[test]
fn the_shim_that_fits_is_used_and_misfits_are_told() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(shims) = shim(scratch.path(), "trt11") else { return };
    let mut graph = GraphBuilder::new("g", 17);
    graph.input("x", DType::Float32, &[Some(4)]);
    graph.node_named("Relu", &["x"], &["y"], &[]);
    graph.output("y", DType::Float32, &[Some(4)]);
    onnx_recipe(scratch.path(), "g", &graph.finish(&scratch.path().join("g.onnx")).unwrap());
    let run = |libraries: &Path, shims: &Path, arguments: &[&str]| {
        let mut command = watus(scratch.path());
        command.env("WATUS_TENSORRT_LIB", libraries).env("WATUS_SHIMS", shims).args(arguments);
        if arguments == ["build"] {
            command.arg("g.yaml");
        }
        output(&mut command)
    };
    // It opens this library, and a newer one of the same major.
    for version in [110_400, 110_900] {
        let libraries = stand_in(scratch.path(), 11, version);
        let (_, stdout, _) = run(&libraries, &shims, &["doctor"]);
        let line = stdout.lines().find(|line| line.contains("compiled for TensorRT 11.4")).unwrap_or(&stdout);
        let opens = format!("libwatus_shim-trt11.so), opens TensorRT 11.{}.0", version / 100 % 100);
        assert!(line.contains(&opens), "{line}");
        let (code, _, stderr) = run(&libraries, &shims, &["build"]);
        assert_eq!(code, 5, "{stderr}");
        assert!(stderr.contains("TensorRT cannot create a builder (is the GPU usable by this user?)"), "{stderr}");
    }
    // An older one may lack what the headers promise.
    let (code, _, stderr) = run(&stand_in(scratch.path(), 11, 110_000), &shims, &["build"]);
    assert_eq!(code, 8, "{stderr}");
    assert!(stderr.contains("is version 11.0.0, but this binary was compiled for TensorRT 11.4"), "{stderr}");
    // One that nothing here fits.
    let old = stand_in(scratch.path(), 10, 100_300);
    let (code, _, stderr) = run(&old, &shims, &["build"]);
    assert_eq!(code, 8, "{stderr}");
    assert!(stderr.contains("libnvinfer.so.10 is installed, but there is no shim for it (there are: "), "{stderr}");
    assert!(stderr.contains("TensorRT 11.4"), "{stderr}");
    // A file that is no shim, and one of another version of this program.
    let broken = scratch.path().join("broken");
    fs::create_dir_all(&broken).unwrap();
    fs::write(broken.join("libwatus_shim-a.so"), "no library").unwrap();
    let whole = fs::read(shims.join("libwatus_shim-trt11.so")).unwrap();
    fs::write(broken.join("libwatus_shim-c.so"), &whole[..whole.len() / 3]).unwrap();
    let source = scratch.path().join("other.c");
    fs::write(&source, "static long table[64]; void *watus_shim(void) { return table; }\n").unwrap();
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-o"]).arg(broken.join("libwatus_shim-b.so")).arg(&source);
    assert_eq!(output(&mut compile).0, 0);
    let (code, _, stderr) = run(&old, &broken, &["build"]);
    assert_eq!(code, 8, "{stderr}");
    for part in [
        "libwatus_shim-a.so: ",
        "libwatus_shim-c.so: ",
        "libwatus_shim-b.so: it belongs to another version of watus-build",
    ] {
        assert!(stderr.contains(part), "{stderr}");
    }
}
