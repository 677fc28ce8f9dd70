//! The command line on vision models: from a checkpoint to engine, answer and drawing, and what it says no to.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::{onnx_recipe, output, repository, skip, tensorrt_or_skip, watus};
use watus_build::onnx::{Attribute, GraphBuilder, Model};
use watus_build::tensor::{DType, Tensor, TensorData, write_npy};
use watus_build::vision::{RgbImage, save_picture};

/// A recipe for a tiny YOLO of the test data, proved on the shipped face.
fn yolo(scratch: &Path, name: &str, more: &str) {
    fs::copy(repository().join(format!("tests/data/vision/{name}.pt")), scratch.join(format!("{name}.pt"))).unwrap();
    fs::copy(repository().join("recipes/images/face.png"), scratch.join("face.png")).unwrap();
    let text = format!(
        "version: 1\nname: {name}\nkind: yolo\nsource: {{ path: {name}.pt }}\nimage_size: 64\nverify: {{ images: [face.png] \
         }}\n{more}"
    );
    fs::write(scratch.join(format!("{name}.yaml")), text).unwrap();
}

fn classifier(scratch: &Path, name: &str, more: &str) {
    let folder = repository().join("tests/data/vision").join(name);
    let text = format!("version: 1\nname: {name}\nkind: classifier\nsource: {{ path: {} }}\n{more}", folder.display());
    fs::write(scratch.join(format!("{name}.yaml")), text).unwrap();
    fs::copy(repository().join("recipes/images/face.png"), scratch.join("face.png")).unwrap();
}

#[test]
fn from_a_yolo_checkpoint_to_a_drawing() {
    if !tensorrt_or_skip("from_a_yolo_checkpoint_to_a_drawing") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    yolo(scratch.path(), "yolo11-seg", "confidence: 0.05\nbuild: { precision: fp16 }\n");
    let run = |arguments: &[&str]| output(watus(scratch.path()).args(arguments));
    let (code, stdout, stderr) = run(&["build", "yolo11-seg.yaml"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.starts_with("yolo11-seg: built"), "{stdout}");
    assert!(run(&["build", "yolo11-seg.yaml"]).1.starts_with("yolo11-seg: current"));
    // What belongs to the build alone is gone.
    let left = support::tree(&scratch.path().join("engines/yolo11-seg"));
    assert_eq!(left, ["images", "images/face.png", "manifest.json", "model.onnx", "verify.json", "yolo11-seg.engine"]);

    let (code, stdout, stderr) =
        run(&["run", "engines/yolo11-seg", "face.png", "--backend", "cpu", "--annotated", "drawn", "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let answers: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let found = answers[0]["detections"].as_array().unwrap();
    assert!(!found.is_empty() && found.iter().all(|one| one["score"].as_f64().unwrap() > 0.05), "{stdout}");
    assert!(found[0]["mask"]["runs"].is_array(), "{stdout}");
    let drawn = image_size(&scratch.path().join("drawn/face-objects.png"));
    assert_eq!(drawn, image_size(&scratch.path().join("face.png")));
    let (code, stdout, _) =
        run(&["run", "engines/yolo11-seg", "engines/yolo11-seg/images", "--backend", "cpu", "--no-annotated"]);
    assert!(code == 0 && stdout.starts_with("yolo11-seg: ") && !stdout.contains("drawn in"), "{stdout}");

    // A drawing never takes the place of a picture that is read.
    let (face, same) = (scratch.path().join("face.png"), scratch.path().join("face-objects.png"));
    fs::copy(&face, &same).unwrap();
    let both = ["face.png", "face-objects.png", "--backend", "cpu", "--annotated", "."];
    let (code, _, stderr) = run(&[&["run", "engines/yolo11-seg"][..], &both].concat());
    assert_eq!((code, stderr.contains("face-objects.png would be replaced")), (1, true), "{stderr}");
    assert_eq!(fs::read(&same).unwrap(), fs::read(&face).unwrap());

    // The engine file: Ultralytics' metadata, and without.
    let engine = "engines/yolo11-seg/yolo11-seg.engine";
    let (_, stdout, _) = run(&["inspect", engine]);
    assert!(stdout.contains("task         \"segment\"") && stdout.contains("\"2\":\"tram\""), "{stdout}");
    let (code, stdout, _) = run(&["strip", engine, "-o", "plain.plan"]);
    assert!(code == 0 && stdout.contains("without its metadata"), "{stdout}");
    assert!(fs::read(scratch.path().join("plain.plan")).unwrap()[1..].starts_with(b"trt"));
    let (_, stdout, _) = run(&["inspect", "plain.plan"]);
    assert!(stdout.starts_with("plan by TensorRT") && !stdout.contains("metadata"), "{stdout}");
    assert_eq!(run(&["strip", "face.png"]).0, 6);

    yolo(scratch.path(), "yolov8", "raw: true\nbuild: { max_batch: 4 }\n");
    let (code, _, stderr) = run(&["build", "yolov8.yaml"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(fs::read(scratch.path().join("engines/yolov8/yolov8.engine")).unwrap()[1..].starts_with(b"trt"));
    let (_, stdout, _) = run(&["inspect", "engines/yolov8"]);
    assert!(stdout.contains("images float32[?, 3, 64, 64]") && stdout.contains("3 classes"), "{stdout}");
    let (code, stdout, stderr) = run(&[
        "bench",
        "engines/yolov8",
        "--backend",
        "cpu",
        "-n",
        "2",
        "--warmup",
        "0",
        "--batch",
        "1,3",
        "--chart",
        "b.svg",
    ]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("| 3 | picture to answer |") && stdout.contains("| 1 | preprocess |"), "{stdout}");
    assert!(fs::read_to_string(scratch.path().join("b.svg")).unwrap().contains("picture to answer"));
}

/// Width and height of a PNG.
fn image_size(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()[16..24].to_vec()
}

#[test]
fn from_a_classifier_checkpoint_to_an_answer() {
    if !tensorrt_or_skip("from_a_classifier_checkpoint_to_an_answer") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| output(watus(scratch.path()).args(arguments));
    for (name, precision) in
        [("vit", "fp16"), ("swin", "bf16"), ("resnet", "fp32"), ("beit", "fp16"), ("convnext", "bf16")]
    {
        classifier(
            scratch.path(),
            name,
            &format!("build: {{ precision: {precision} }}\nverify: {{ images: [face.png] }}\n"),
        );
        let (code, _, stderr) = run(&["build", &format!("{name}.yaml")]);
        assert_eq!(code, 0, "{name}: {stderr}");
        let folder = format!("engines/{name}");
        let (code, stdout, stderr) = run(&["run", &folder, "face.png", "--backend", "cpu"]);
        assert_eq!(code, 0, "{name}: {stderr}");
        let labels = ["cat", "dog", "owl", "robot", "tram"];
        assert!(labels.iter().any(|label| stdout.starts_with(&format!("{name}: {label} ("))), "{stdout}");
        let manifest = fs::read_to_string(scratch.path().join(folder).join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        assert_eq!((&manifest["precision"], &manifest["inputs"][0]["dtype"]), (&precision.into(), &"float32".into()));
    }
    let (code, stdout, stderr) = run(&["build", "vit.yaml", "--emit", "onnx", "-o", "out"]);
    assert!(code == 0 && stdout.contains("out/vit.onnx"), "{stderr}");
    let (_, stdout, _) = run(&["inspect", "out/vit.onnx"]);
    assert!(stdout.contains("pixel_values float32[1, 3, 32, 32]"), "{stdout}");
    yolo(scratch.path(), "yolo26", "");
    let (code, _, stderr) = run(&["build", "yolo26.yaml", "--emit", "onnx", "-o", "out"]);
    assert!(code == 0 && stderr.contains("warning: yolo26: an end-to-end model"), "{stderr}");
}

#[test]
fn what_cannot_be_built_is_told() {
    if !tensorrt_or_skip("what_cannot_be_built_is_told") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let fails = |recipe: &str| {
        let (code, _, stderr) = output(watus(scratch.path()).args(["build", recipe]));
        assert_ne!(code, 0);
        assert!(support::leftovers(scratch.path()).is_empty() && !scratch.path().join("engines").join("x").exists());
        stderr
    };
    yolo(scratch.path(), "yolo12", "");
    let whole = fs::read(scratch.path().join("yolo12.pt")).unwrap();
    fs::write(scratch.path().join("yolo12.pt"), &whole[..whole.len() / 2]).unwrap();
    let error = fails("yolo12.yaml");
    assert!(error.contains("yolo12.pt") && error.contains("not a whole .pt file"), "{error}");
    fs::write(scratch.path().join("yolo12.pt"), whole).unwrap();
    let recipe = fs::read_to_string(scratch.path().join("yolo12.yaml")).unwrap();
    fs::write(scratch.path().join("yolo12.yaml"), recipe.replace("image_size: 64", "image_size: 60")).unwrap();
    assert!(fails("yolo12.yaml").contains("yolo12.yaml:5: image_size 60 is not a multiple of 32"));
    classifier(scratch.path(), "vit", "preprocess: { size: [64, 64], mean: [0, 0, 0], std: [255, 255, 255] }\n");
    let error = fails("vit.yaml");
    assert!(error.contains("trained at that size") && error.contains("config.json"), "{error}");
    let onnx = "version: 1\nname: x\nkind: classifier\nsource: { path: x.onnx }\n";
    fs::write(scratch.path().join("x.yaml"), onnx).unwrap();
    fs::write(scratch.path().join("x.onnx"), "nothing").unwrap();
    let error = fails("x.yaml");
    assert!(
        error.contains("an ONNX file does not say how pictures become tensors") && error.contains("hint"),
        "{error}"
    );
    fs::write(scratch.path().join("x.yaml"), onnx.replace("classifier", "yolo")).unwrap();
    assert!(fails("x.yaml").contains("x.onnx: not an ONNX model"));
}

/// Mean colours of uint8 pictures with channels last, as TensorFlow's exports take them.
fn colours(folder: &Path) -> Model {
    let mut graph = GraphBuilder::new("colours", 17);
    graph.input("pixels", DType::UInt8, &[None, Some(8), Some(8), Some(3)]);
    let floats = graph.node("Cast", &["pixels"], &[("to", 1.into())]);
    let mean = [("axes", [1, 2].into()), ("keepdims", 0.into())];
    graph.node_named("ReduceMean", &[&floats], &["scores"], &mean);
    graph.output("scores", DType::Float32, &[None, Some(3)]);
    graph.finish(&folder.join("colours.onnx")).unwrap()
}

#[test]
fn what_could_never_answer_is_refused_and_what_cannot_be_read_is_told() {
    if !tensorrt_or_skip("what_could_never_answer_is_refused_and_what_cannot_be_read_is_told") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let run = |arguments: &[&str]| output(watus(scratch.path()).args(arguments));
    fs::write(path("colours.onnx"), colours(scratch.path()).to_bytes().unwrap()).unwrap();
    let recipe = |std: &str, labels: &str| {
        let text = format!(
            "version: 1\nname: colours\nkind: classifier\nsource: {{ path: colours.onnx }}\npreprocess: {{ mean: [0, 0, 0], \
             std: {std} }}\nlabels: {labels}\nbuild: {{ max_batch: 4 }}\n"
        );
        fs::write(path("colours.yaml"), text).unwrap();
        run(&["build", "colours.yaml"])
    };
    for (std, labels, said) in [
        ("[1, 1, 1]", "[red, green]", "there are 2 labels\n  hint: give one for each of the 3 classes"),
        ("[255, 255, 255]", "[red, green, blue]", "uint8 takes a picture's bytes as they are"),
    ] {
        let (code, _, stderr) = recipe(std, labels);
        assert!(code == 1 && stderr.contains(said) && stderr.contains("colours.onnx"), "{stderr}");
        assert!(!path("engines/colours").exists());
    }
    assert_eq!(recipe("[1, 1, 1]", "[red, green, blue]").0, 0);

    fs::create_dir(path("pictures")).unwrap();
    fs::copy(repository().join("recipes/images/face.png"), path("pictures/a.png")).unwrap();
    fs::copy(repository().join("recipes/images/face.png"), path("a.png")).unwrap();
    for (name, text) in [("b.jpg", "to nie jest obraz"), ("._a.png", "attributes"), ("c.heic", "x"), ("d.txt", "x")] {
        fs::write(path("pictures").join(name), text).unwrap();
    }
    let run_on = |more: &[&str]| run(&[&["run", "engines/colours", "--backend", "cpu"], more].concat());
    let (code, stdout, stderr) = run_on(&["pictures"]);
    assert!(code == 1 && stdout.starts_with("colours: red (") && stdout.lines().count() == 1, "{stdout}");
    assert!(stderr.contains("cannot read picture pictures/b.jpg") && stderr.contains("pictures/c.heic"), "{stderr}");
    assert!(!stderr.contains("._a.png") && !stderr.contains("d.txt"), "{stderr}");
    let (code, stdout, _) = run_on(&["pictures", "a.png", "--json", "--save", "out"]);
    let answers: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, answers.as_array().unwrap().len()), (1, 3), "{stdout}");
    assert_eq!(answers[0]["answer"]["label"], "red");
    assert!(answers[1]["error"].as_str().unwrap().contains("b.jpg") && answers[1]["answer"].is_null(), "{stdout}");
    assert_eq!(answers[2]["answer"], answers[0]["answer"]);
    assert_eq!(support::tree(&path("out")), ["a", "a-2", "a-2/scores.npy", "a/scores.npy"]);
    let (code, stdout, stderr) = run_on(&["gone.png"]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("gone.png: there is no such file") && !stderr.contains("hint: PNG"), "{stderr}");

    // The reference takes the engine's batches, and no larger ones.
    for (batch, expected) in [(4, 0), (5, 1)] {
        let pixels = Tensor::new(vec![batch, 8, 8, 3], TensorData::U8(vec![7; batch * 192])).unwrap();
        write_npy(&mut fs::File::create(path("x.npy")).unwrap(), &pixels).unwrap();
        let (code, _, stderr) = run_on(&["--input", "pixels=x.npy"]);
        assert_eq!((code, stderr.contains("the engine takes 1 to 4")), (expected, expected == 1), "{stderr}");
    }
}

#[test]
fn the_end_of_a_model_says_what_its_output_is() {
    if !tensorrt_or_skip("the_end_of_a_model_says_what_its_output_is") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let picture = RgbImage::from_raw(8, 8, [51, 102, 153].repeat(64)).unwrap();
    save_picture(&path("a.png"), &picture).unwrap();
    // Of the means 0.2, 0.4 and 0.6, as onnxruntime 1.32 computes these models.
    for (last, note, want) in [
        ("Softmax", Some("`output: probabilities`"), [0.26930752, 0.32893294, 0.40175956]),
        ("Sigmoid", Some("`output: multilabel_probabilities`"), [0.549834, 0.59868765, 0.6456563]),
        // The output is the logarithm of what is to be told.
        ("LogSoftmax", None, [0.26930752, 0.32893294, 0.40175956]),
    ] {
        let mut graph = GraphBuilder::new("ends", 17);
        graph.input("pixels", DType::Float32, &[Some(1), Some(3), Some(8), Some(8)]);
        let mean = graph.node("ReduceMean", &["pixels"], &[("axes", [2, 3].into()), ("keepdims", 0.into())]);
        let axis = [("axis", Attribute::Int(-1))];
        graph.node_named(last, &[&mean], &["y"], &axis[..usize::from(last != "Sigmoid")]);
        graph.output("y", DType::Float32, &[Some(1), Some(3)]);
        fs::write(path("ends.onnx"), graph.finish(&path("ends.onnx")).unwrap().to_bytes().unwrap()).unwrap();
        let recipe = "version: 1\nname: ends\nkind: classifier\nsource: { path: ends.onnx }\npreprocess: { mean: [0, 0, 0], \
                      std: [255, 255, 255] }\n";
        fs::write(path("ends.yaml"), recipe).unwrap();
        let (code, _, stderr) = output(watus(scratch.path()).args(["build", "ends.yaml"]));
        assert_eq!((code, stderr.contains("with which the model ends")), (0, note.is_some()), "{stderr}");
        assert!(note.is_none_or(|note| stderr.contains(note)), "{stderr}");
        let run = ["run", "engines/ends", "a.png", "--backend", "cpu", "--json"];
        let (code, stdout, stderr) = output(watus(scratch.path()).args(run));
        assert_eq!(code, 0, "{stderr}");
        let answers: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        let top = answers[0]["answer"]["top"].as_array().unwrap();
        for (found, (class, want)) in top.iter().zip(want.iter().enumerate().rev()) {
            assert_eq!(found[0], class.to_string(), "{stdout}");
            assert!((found[1].as_f64().unwrap() - want).abs() < 1e-6, "{last}: {stdout}");
        }
        let wrong = if last == "LogSoftmax" { "probabilities" } else { "logits" };
        fs::write(path("ends.yaml"), format!("{recipe}output: {wrong}\n")).unwrap();
        let (code, _, stderr) = output(watus(scratch.path()).args(["build", "ends.yaml"]));
        let said = format!("ends.onnx: the recipe says `output: {wrong}`, and node '");
        assert!(code == 1 && stderr.contains(&said) && stderr.contains("hint: "), "{stderr}");
    }
}

#[test]
fn models_that_come_quantised_are_refused_before_they_are_built() {
    if !tensorrt_or_skip("models_that_come_quantised_are_refused_before_they_are_built") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let mut graph = GraphBuilder::new("q", 17);
    graph.input("x", DType::Float32, &[Some(1), Some(4)]);
    let scale = graph.scalar(0.5);
    let zero = graph.initializer("zero", &Tensor::new(vec![], TensorData::U8(vec![128])).unwrap());
    let narrow = graph.node("QuantizeLinear", &["x", &scale, &zero], &[]);
    graph.node_named("DequantizeLinear", &[&narrow, &scale, &zero], &["y"], &[]);
    graph.output("y", DType::Float32, &[Some(1), Some(4)]);
    onnx_recipe(scratch.path(), "q", &graph.finish(Path::new("q.onnx")).unwrap());
    let (code, _, stderr) = output(watus(scratch.path()).args(["build", "q.yaml"]));
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("q.onnx: it comes quantised: 2 of its 2 nodes") && stderr.contains("uint8"), "{stderr}");
    assert!(stderr.contains("hint: take the float model") && !scratch.path().join("engines/q").exists(), "{stderr}");
}

/// The reader of the package itself, on an engine this tool built.
#[test]
fn ultralytics_reads_our_engine() {
    if !tensorrt_or_skip("ultralytics_reads_our_engine") {
        return;
    }
    let python = std::env::var_os("WATUS_ORACLE_PYTHON").filter(|python| Path::new(python).exists());
    let Some(python) = python else {
        return skip("ultralytics_reads_our_engine", "set WATUS_ORACLE_PYTHON to what scripts/setup-oracles.sh prints");
    };
    let scratch = tempfile::tempdir().unwrap();
    yolo(scratch.path(), "yolo11-seg", "");
    let (code, _, stderr) = output(watus(scratch.path()).args(["build", "yolo11-seg.yaml"]));
    assert_eq!(code, 0, "{stderr}");
    let script = repository().join("tests/data/vision/check_engine.py");
    let engine = scratch.path().join("engines/yolo11-seg/yolo11-seg.engine");
    let (code, stdout, stderr) = output(Command::new(python).arg(script).arg(engine).current_dir(scratch.path()));
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("segment {0: 'owl', 1: 'robot', 2: 'tram'} [64, 64] 16 1"), "{stdout}");
}
