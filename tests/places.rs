//! What is not ours stays as it is: files and folders where results would go, and the files a recipe names by path.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use support::{leftovers, onnx_recipe, output, repository, tensorrt_or_skip, tree, watus};
use watus_build::artifact::sha256_file;
use watus_build::onnx::GraphBuilder;
use watus_build::tensor::DType;

/// Recipes `m` (an ONNX model) and `tiny` (a language model by path).
fn recipes(folder: &Path) {
    let mut graph = GraphBuilder::new("g", 17);
    graph.input("x", DType::Float32, &[Some(2)]);
    graph.node_named("Relu", &["x"], &["y"], &[]);
    graph.output("y", DType::Float32, &[Some(2)]);
    onnx_recipe(folder, "m", &graph.finish(&folder.join("g.onnx")).unwrap());
    fs::create_dir(folder.join("models")).unwrap();
    fs::copy(repository().join("tests/data/gguf/llama.gguf"), folder.join("models/tiny.gguf")).unwrap();
    llm_recipe(folder, "path: models/tiny.gguf");
}

fn llm_recipe(folder: &Path, source: &str) {
    let text = format!(
        "version: 1\nname: tiny\nkind: llm\nsource: {{ {source} }}\nmax_batch_size: 1\nmax_input_len: 24\nmax_output_len: 16\n"
    );
    fs::write(folder.join("tiny.yaml"), text).unwrap();
}

/// Every name below a folder with what it holds.
fn content(folder: &Path) -> Vec<(String, Option<String>)> {
    tree(folder).into_iter().map(|name| (name.clone(), sha256_file(&folder.join(&name)).ok())).collect()
}

#[test]
fn nothing_is_replaced_that_is_not_ours() {
    let scratch = tempfile::tempdir().unwrap();
    recipes(scratch.path());
    fs::create_dir(scratch.path().join("out")).unwrap();
    type Make = fn(&Path);
    // What is at the place of an engine, of an ONNX file, of a folder with one.
    let things: [(&str, Make); 4] = [
        ("a file", |place| fs::write(place, "mine").unwrap()),
        ("a folder", |place| {
            fs::create_dir(place).unwrap();
            fs::write(place.join("thesis.tex"), "mine").unwrap();
        }),
        ("a folder of engines", |place| {
            fs::create_dir_all(place.join("engines/other")).unwrap();
            fs::write(place.join("engines/other/manifest.json"), "{ \"tool\": \"watus-build 0.1.0\" }").unwrap();
        }),
        ("a link", |place| std::os::unix::fs::symlink("elsewhere", place).unwrap()),
    ];
    let builds: [(&str, &[&str]); 4] = [
        ("out/m", &["build", "m.yaml", "-o", "out"]),
        ("out/tiny", &["build", "tiny.yaml", "-o", "out"]),
        ("out/m.onnx", &["build", "m.yaml", "-o", "out", "--emit", "onnx"]),
        ("out/tiny-onnx", &["build", "tiny.yaml", "-o", "out", "--emit", "onnx"]),
    ];
    let mores: [&[&str]; 3] = [&[], &["--rebuild"], &["--dry-run"]];
    for (what, make) in things {
        for (place, arguments) in builds {
            let place = scratch.path().join(place);
            make(&place);
            let before = content(scratch.path());
            for more in mores {
                if more.contains(&"--dry-run") && arguments.contains(&"--emit") {
                    continue;
                }
                let (code, _, stderr) = output(watus(scratch.path()).args(arguments).args(more));
                assert_eq!((code, stderr.contains("left as it is")), (1, true), "{what}, {arguments:?}: {stderr}");
                assert!(stderr.contains(&*place.file_name().unwrap().to_string_lossy()), "{stderr}");
                assert_eq!(content(scratch.path()), before, "{what}, {arguments:?} {more:?}");
            }
            match place.is_dir() {
                true => fs::remove_dir_all(&place).unwrap(),
                false => fs::remove_file(&place).unwrap(),
            }
        }
    }
}

#[test]
fn an_onnx_file_of_ours_is_replaced_and_a_source_never() {
    let scratch = tempfile::tempdir().unwrap();
    recipes(scratch.path());
    let emit = |recipe: &str, more: &[&str]| {
        output(watus(scratch.path()).args(["build", "--emit", "onnx", recipe]).args(more))
    };
    for recipe in ["m.yaml", "tiny.yaml"] {
        for _ in 0..2 {
            let (code, _, stderr) = emit(recipe, &["-o", "out"]);
            assert_eq!(code, 0, "{recipe}: {stderr}");
        }
    }
    // m.onnx is what the recipe `m` is made of.
    let source = fs::read(scratch.path().join("m.onnx")).unwrap();
    let (code, _, stderr) = emit("m.yaml", &["-o", ".", "--force"]);
    assert_eq!((code, stderr.contains("the source itself")), (1, true), "{stderr}");
    assert_eq!(fs::read(scratch.path().join("m.onnx")).unwrap(), source);
    fs::write(scratch.path().join("out/m.onnx"), "mine").unwrap();
    let (code, _, stderr) = emit("m.yaml", &["-o", "out"]);
    assert_eq!((code, stderr.contains("--force")), (1, true), "{stderr}");
    assert_eq!(emit("m.yaml", &["-o", "out", "--force"]).0, 0);
    // The weights beside it are a copy too.
    let (own, theirs) = (scratch.path().join("models/tiny.gguf"), scratch.path().join("out/tiny-onnx/tiny.gguf"));
    assert_ne!(fs::metadata(&own).unwrap().ino(), fs::metadata(theirs).unwrap().ino());
    assert_eq!(fs::metadata(own).unwrap().nlink(), 1);
}

#[test]
fn a_users_weights_are_copied_and_a_stores_are_linked() {
    if !tensorrt_or_skip("a_users_weights_are_copied_and_a_stores_are_linked") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    recipes(scratch.path());
    let own = scratch.path().join("models/tiny.gguf");
    let build = || {
        let mut build = watus(scratch.path());
        let (code, _, stderr) =
            output(build.env("OLLAMA_MODELS", scratch.path().join("store")).args(["build", "tiny.yaml"]));
        assert_eq!(code, 0, "{stderr}");
    };
    let verify = || output(watus(scratch.path()).args(["verify", "engines/tiny"])).0;
    // An empty folder is room enough.
    fs::create_dir_all(scratch.path().join("engines/tiny")).unwrap();
    build();
    assert_eq!(fs::metadata(&own).unwrap().nlink(), 1);
    // The user goes on with his file; the engine stays what was proved.
    let whole = fs::read(&own).unwrap();
    let mut changed = whole.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&own, changed).unwrap();
    assert_eq!(verify(), 0);

    let store = scratch.path().join("store");
    let digest = watus_build::artifact::sha256(&whole);
    let blob = store.join(format!("blobs/sha256-{digest}"));
    fs::create_dir_all(store.join("manifests/registry.ollama.ai/library/tiny")).unwrap();
    fs::create_dir_all(store.join("blobs")).unwrap();
    fs::write(&blob, whole).unwrap();
    let manifest = serde_json::json!({"layers": [
        {"mediaType": "application/vnd.ollama.image.model", "digest": format!("sha256:{digest}"), "size": 1},
    ]});
    fs::write(store.join("manifests/registry.ollama.ai/library/tiny/latest"), manifest.to_string()).unwrap();
    llm_recipe(scratch.path(), "ollama: tiny");
    build();
    let linked = fs::metadata(scratch.path().join("engines/tiny/weights/model.gguf")).unwrap();
    assert_eq!(linked.ino(), fs::metadata(blob).unwrap().ino());
    assert_eq!(verify(), 0);
    assert_eq!(leftovers(scratch.path()), Vec::<String>::new());
}
