//! The command as a user meets it: recipes in, engines, answers, messages and exit codes out.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{leftovers, onnx_recipe, output, repository, skip, tensorrt_or_skip, watus};
use watus_build::backend::tensorrt::{Family, TensorRt};
use watus_build::manifest::Manifest;
use watus_build::onnx::GraphBuilder;
use watus_build::tensor::{DType, Tensor, read_npy, write_npy};

/// A classifier recipe around a small graph in `folder`: mean colour over two classes.
fn tiny_recipe(folder: &Path, extra: &str) -> PathBuf {
    let mut graph = GraphBuilder::new("tiny", 17);
    graph.input("pixels", DType::Float32, &[None, Some(3), Some(8), Some(8)]);
    let pooled = graph.node("GlobalAveragePool", &["pixels"], &[]);
    let flat = graph.node("Flatten", &[&pooled], &[("axis", 1.into())]);
    graph.initializer("w", &Tensor::from_f32(vec![3, 2], vec![1.0, 0.0, 0.0, 0.0, 0.0, 1.0]).unwrap());
    graph.node_named("MatMul", &[&flat, "w"], &["scores"], &[]);
    graph.output("scores", DType::Float32, &[None, Some(2)]);
    let model = graph.finish(&folder.join("tiny.onnx")).unwrap();
    fs::write(folder.join("tiny.onnx"), model.to_bytes().unwrap()).unwrap();
    fs::copy(repository().join("recipes/images/face.png"), folder.join("face.png")).unwrap();
    let recipe = folder.join("tiny.yaml");
    let text = "version: 1\nname: tiny\nkind: classifier\nsource: { path: tiny.onnx }\n\
                preprocess: { mean: [0, 0, 0], std: [25.5, 25.5, 25.5] }\nlabels: [red, blue]\n\
                verify: { images: [face.png] }\n";
    fs::write(&recipe, format!("{text}{extra}")).unwrap();
    recipe
}

/// The official libraries of ONNX Runtime identify the machine to Microsoft, in files below the home, unless they are told not to.
#[test]
fn nothing_is_written_to_the_home_unasked() {
    if !support::onnxruntime_or_skip("nothing_is_written_to_the_home_unasked") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    use watus_build::backend::onnxruntime::{OnnxRuntime, library::Found};
    let Found::Ready(library) = OnnxRuntime::look() else { panic!("it was there") };
    let mut command = watus(home.path());
    command.env("WATUS_ONNXRUNTIME_LIB", &library.path).env("HOME", home.path()).env_remove("XDG_CACHE_HOME");
    let (_, stdout, stderr) = output(command.arg("doctor"));
    assert!(stdout.contains("verifies engines"), "{stdout}{stderr}");
    assert_eq!(support::tree(home.path()), Vec::<String>::new());
}

/// Machines of tests/data/roots: the exit code of `doctor`, and whether they are fit for "build", "vision" and "llm".
const MACHINES: [(&str, i32, [bool; 3]); 10] = [
    ("jetpack-5.1.2", 0, [true, true, true]),
    ("jetpack-6.0", 0, [true, true, false]),   // no NVRTC
    ("jetpack-6.2.1", 8, [false, true, true]), // no parser
    ("jetpack-7.0", 0, [true, true, true]),    // Thor
    ("jetpack-7.2", 0, [true, true, true]),
    ("sbsa", 0, [true, true, true]),
    ("x86-desktop", 8, [false, false, false]), // no TensorRT
    ("container", 8, [false, false, false]),   // without NVIDIA's runtime
    ("container-runtime", 0, [true, true, true]),
    ("tensorrt-8.5.3-wheel", 0, [false, false, false]), // whole, and nothing says where it is
];

#[test]
fn doctor_on_every_fixture() {
    let scratch = tempfile::tempdir().unwrap();
    let roots = repository().join("tests/data/roots");
    assert_eq!(fs::read_dir(&roots).unwrap().count(), MACHINES.len());
    for (name, expected, able) in MACHINES {
        let root = roots.join(name);
        let (code, stdout, stderr) = output(watus(scratch.path()).args(["doctor", "--root"]).arg(&root));
        assert_eq!((code, stderr.as_str()), (expected, ""), "{name}");
        insta::assert_snapshot!(format!("doctor-{name}"), stdout);
        let (_, json, _) = output(watus(scratch.path()).args(["doctor", "--json", "--root"]).arg(&root));
        let report: serde_json::Value = serde_json::from_str(&json).unwrap();
        let findings = report["findings"].as_array().unwrap();
        let verdicts = report["verdicts"].as_array().unwrap();
        let fit: Vec<bool> = verdicts.iter().map(|verdict| verdict["able"].as_bool().unwrap()).collect();
        assert_eq!(fit, able, "{name}");
        // The verdicts follow from the findings.
        let blocks = |finding: &serde_json::Value, job: &serde_json::Value| {
            finding["blocks"].as_array().is_some_and(|blocks| blocks.contains(job))
        };
        for verdict in verdicts {
            let (job, reason) = (&verdict["job"], verdict["reason"].as_str().unwrap());
            let blocking: Vec<&serde_json::Value> = findings.iter().filter(|finding| blocks(finding, job)).collect();
            assert_eq!(verdict["able"], blocking.is_empty(), "{name}: {verdict} {blocking:?}");
            for finding in blocking {
                assert!(reason.contains(finding["id"].as_str().unwrap()), "{name}: {verdict}");
            }
        }
        for finding in findings {
            let prevents = finding["blocks"].is_array();
            match finding["level"].as_str().unwrap() {
                "ok" => assert!(!prevents && finding["mend"].is_null(), "{name}: {finding}"),
                "fail" => assert!(prevents, "{name}: a failure prevents something: {finding}"),
                _ => {}
            }
        }
        assert_eq!(findings.iter().any(|finding| finding["level"] == "fail"), expected == 8, "{name}");
    }
    let (code, _, stderr) = output(watus(scratch.path()).args(["doctor", "--root", "/nowhere"]));
    assert_eq!(code, 1);
    assert!(stderr.contains("/nowhere: not a folder"));
}

#[test]
fn recipe_check_names_line_and_remedy() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(scratch.path(), "lables: [a, b]\n");
    let (code, _, stderr) = output(watus(scratch.path()).args(["recipe", "check"]).arg(&recipe));
    assert_eq!(code, 3);
    assert!(stderr.contains("tiny.yaml:8: unknown field `lables`"), "{stderr}");
    assert!(stderr.contains("did you mean `labels`?"), "{stderr}");
}

#[test]
fn errors_name_the_path_they_are_about() {
    let scratch = tempfile::tempdir().unwrap();
    let long = "x".repeat(300);
    let (model, tensor, recipe) = (format!("{long}.onnx"), format!("x={long}.npy"), format!("{long}.yaml"));
    let cases: [(&[&str], i32); 9] = [
        (&["run", &long, "face.png"], 6),
        (&["run", &model, "--backend", "cpu", "--input", &tensor], 1),
        (&["inspect", &long], 6),
        (&["inspect", &model], 1),
        (&["strip", &long], 6),
        (&["verify", &long], 6),
        (&["recipe", "check", &recipe], 3),
        (&["build", &recipe], 3),
        (&["fetch", &recipe], 3),
    ];
    for (arguments, expected) in cases {
        let (code, _, stderr) = output(watus(scratch.path()).args(arguments));
        assert_eq!((code, stderr.contains(&long)), (expected, true), "{arguments:?}: {stderr}");
    }
    let text = format!("version: 1\nname: m\nkind: onnx\nsource: {{ path: {model} }}\n");
    fs::write(scratch.path().join("long.yaml"), text).unwrap();
    let (code, _, stderr) = output(watus(scratch.path()).args(["build", "long.yaml"]));
    assert_eq!((code, stderr.contains(&long)), (4, true), "{stderr}");
}

#[test]
fn fetch_pins_and_then_needs_no_network() {
    let scratch = tempfile::tempdir().unwrap();
    let hub = support::hub::Hub::start(&[("m.onnx", vec![7; 1000], true), ("big.bin", vec![8; 1000], true)]);
    let recipe = "version: 1\nname: m\nkind: onnx\nsource: { hub: org/model, file: m.onnx }\n";
    fs::write(scratch.path().join("m.yaml"), recipe).unwrap();
    let fetch = |arguments: &[&str], endpoint: &str| {
        output(watus(scratch.path()).env("HF_ENDPOINT", endpoint).arg("fetch").args(arguments).arg("m.yaml"))
    };
    let (code, _, stderr) = fetch(&["--offline"], &hub.endpoint);
    assert_eq!((code, stderr.contains("--offline forbids")), (4, true), "{stderr}");
    let (code, stdout, stderr) = fetch(&[], &hub.endpoint);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains(&format!("m: commit {}", support::hub::COMMIT)), "{stdout}");
    assert!(stdout.contains("snapshots") && !stdout.contains("big.bin"), "{stdout}");
    assert!(stderr.contains("fetching m.onnx (1 MB)"), "{stderr}");
    let lock = fs::read_to_string(scratch.path().join("watus.lock")).unwrap();
    assert!(lock.contains("org/model@main") && lock.contains(support::hub::COMMIT), "{lock}");
    // Nobody listens there.
    assert_eq!(fetch(&[], "http://127.0.0.1:9").0, 0);
}

#[test]
fn recipe_show_and_schema_are_json() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(scratch.path(), "");
    let (code, stdout, _) = output(watus(scratch.path()).args(["recipe", "show"]).arg(&recipe));
    let plan: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &plan["verify"]["seeds"]), (0, &serde_json::json!(3)));
    let (code, stdout, _) = output(watus(scratch.path()).args(["recipe", "schema"]));
    let schema: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &schema["$defs"]["LlmRecipe"]["properties"]["kind"]["const"]), (0, &serde_json::json!("llm")));
}

#[test]
fn from_recipe_to_answer() {
    if !tensorrt_or_skip("from_recipe_to_answer") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(scratch.path(), "");
    let engine = scratch.path().join("engines/tiny");
    let (code, stdout, _) = output(watus(scratch.path()).args(["build", "--dry-run"]).arg(&recipe));
    assert_eq!(code, 0);
    assert!(stdout.contains("because it was never built here") && !engine.exists(), "{stdout}");

    let (code, stdout, stderr) = output(watus(scratch.path()).arg("build").arg(&recipe));
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.starts_with("tiny: built"), "{stdout}");
    assert!(stderr.contains("tiny: building with TensorRT"), "{stderr}");
    let manifest: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(engine.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["inputs"][0]["shape"], serde_json::json!([1, 3, 8, 8]), "the batch is fixed");
    for (name, file) in manifest["files"].as_object().unwrap() {
        assert_eq!(file["sha256"], watus_build::artifact::sha256_file(&engine.join(name)).unwrap(), "{name}");
    }

    let (code, stdout, _) = output(watus(scratch.path()).arg("build").arg(&recipe));
    assert_eq!(code, 0);
    assert!(stdout.starts_with("tiny: current"), "{stdout}");

    let (code, stdout, _) =
        output(watus(scratch.path()).args(["run", "--backend", "cpu", "--json", "engines/tiny", "face.png"]));
    assert_eq!(code, 0);
    let answers: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(answers[0]["answer"]["label"], "red", "a face is redder than blue: {stdout}");

    let (code, stdout, _) = output(watus(scratch.path()).args(["inspect", "engines/tiny"]));
    assert_eq!(code, 0);
    assert!(stdout.contains("input   pixels float32[1, 3, 8, 8]"), "{stdout}");
    let (code, stdout, _) = output(watus(scratch.path()).args(["inspect", "engines/tiny/tiny.engine"]));
    assert_eq!((code, stdout.starts_with("plan by TensorRT")), (0, true), "{stdout}");

    let chart = scratch.path().join("chart.svg");
    let (code, stdout, _) = output(
        watus(scratch.path())
            .args(["bench", "--backend", "cpu", "-n", "20", "--warmup", "2", "engines/tiny", "--chart"])
            .arg(&chart),
    );
    assert_eq!(code, 0);
    assert!(stdout.contains("| tiny | CPU reference ("), "{stdout}");
    assert!(fs::read_to_string(&chart).unwrap().starts_with("<svg"));
    assert_eq!(leftovers(scratch.path()), Vec::<String>::new());
}

#[test]
fn a_change_is_told_and_rebuilt() {
    if !tensorrt_or_skip("a_change_is_told_and_rebuilt") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(scratch.path(), "");
    let build = |arguments: &[&str]| output(watus(scratch.path()).arg("build").args(arguments).arg(&recipe));
    assert_eq!(build(&[]).0, 0);
    tiny_recipe(scratch.path(), "build: { batch: 2 }\n");
    assert!(build(&["--dry-run"]).1.contains("because recipe changed"), "{:?}", build(&["--dry-run"]));
    assert!(build(&[]).1.starts_with("tiny: built"));
    fs::write(scratch.path().join("engines/tiny/model.onnx"), "x").unwrap();
    let (_, stdout, _) = build(&["--dry-run"]);
    assert!(stdout.contains("model.onnx has 1 bytes"), "{stdout}");
    assert!(build(&[]).1.starts_with("tiny: built"));
    assert!(build(&[]).1.starts_with("tiny: current"));
    assert!(build(&["--rebuild"]).1.starts_with("tiny: built"));
}

#[test]
fn a_dynamic_batch_keeps_its_range() {
    if !tensorrt_or_skip("a_dynamic_batch_keeps_its_range") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(scratch.path(), "build: { batch: 2, max_batch: 8 }\n");
    assert_eq!(output(watus(scratch.path()).arg("build").arg(&recipe)).0, 0);
    let (_, stdout, _) = output(watus(scratch.path()).args(["inspect", "--json", "engines/tiny"]));
    let document: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(document["manifest"]["profile"][0]["max"], serde_json::json!([8, 3, 8, 8]));
    assert_eq!(document["manifest"]["inputs"][0]["shape"], serde_json::json!([null, 3, 8, 8]));
}

#[test]
fn shapes_may_range() {
    if !tensorrt_or_skip("shapes_may_range") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let mut graph = GraphBuilder::new("sums", 17);
    graph.input("frames", DType::Float32, &[None, None, Some(4)]);
    let weights = Tensor::seeded(DType::Float32, vec![4, 3], 1).unwrap();
    let weights = graph.initializer("w", &weights);
    let product = graph.node("MatMul", &["frames", &weights], &[]);
    graph.node_named("Softmax", &[&product], &["y"], &[("axis", 1.into())]);
    graph.output("y", DType::Float32, &[None, None, Some(3)]);
    let path = scratch.path().join("sums.onnx");
    fs::write(&path, graph.finish(&path).unwrap().to_bytes().unwrap()).unwrap();
    let recipe = scratch.path().join("sums.yaml");
    let text = "version: 1\nname: sums\nkind: onnx\nsource: { path: sums.onnx }\n";
    let build = |range: &str| {
        fs::write(&recipe, format!("{text}build: {{ shapes: {{ frames: {range} }} }}\n")).unwrap();
        output(watus(scratch.path()).arg("build").arg(&recipe))
    };
    let (code, _, stderr) = build("{ min: [1, 2, 3], opt: [1, 8, 4], max: [1, 16, 5] }");
    assert!(code != 0 && stderr.contains("dimension 2 is 4 in the model, a range in the recipe"), "{stderr}");
    let (code, _, stderr) = build("{ min: [1, 2], opt: [1, 8], max: [1, 16] }");
    assert!(code != 0 && stderr.contains("`frames` has 3 dimensions, the recipe's range 2"), "{stderr}");
    // On a GPU it is proved at both ends besides.
    let (code, stdout, stderr) = build("{ min: [1, 2, 4], opt: [1, 8, 4], max: [1, 16, 4] }");
    assert_eq!(code, 0, "{stdout}{stderr}");
    let manifest = Manifest::load(&scratch.path().join("engines/sums")).unwrap();
    let graph = manifest.contents.graph().unwrap();
    assert_eq!(graph.inputs[0].shape, [Some(1), None, Some(4)]);
    assert_eq!((&graph.profile[0].min[..], &graph.profile[0].max[..]), (&[1, 2, 4][..], &[1, 16, 4][..]));
    assert_eq!(graph.input_shapes(|range| &range.opt), [[1, 8, 4]]);

    let run = |frames: usize| {
        let input = scratch.path().join("frames.npy");
        let tensor = Tensor::seeded(DType::Float32, vec![1, frames, 4], 7).unwrap();
        write_npy(fs::File::create(&input).unwrap(), &tensor).unwrap();
        let command = ["run", "engines/sums", "--input", "frames=frames.npy", "--save", "out"];
        output(watus(scratch.path()).args(command))
    };
    let (code, stdout, stderr) = run(5);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let written = read_npy(fs::File::open(scratch.path().join("out/y.npy")).unwrap()).unwrap();
    assert_eq!(written.shape(), [1, 5, 3]);
    let (code, _, stderr) = run(17);
    assert!(code != 0 && stderr.contains("frames"), "{stderr}");
    let (code, stdout, stderr) = output(watus(scratch.path()).args(["bench", "-n", "3", "engines/sums"]));
    assert_eq!(code, 0, "{stdout}{stderr}");
}

/// A graph of one node on `x`, which is float32[1, 6, 4].
fn one_node(folder: &Path, name: &str, operator: &str, make: impl FnOnce(&mut GraphBuilder) -> Vec<String>) {
    let mut graph = GraphBuilder::new(name, 17);
    graph.input("x", DType::Float32, &[Some(1), Some(6), Some(4)]);
    let inputs = make(&mut graph);
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let (outputs, dtype): (&[&str], _) =
        if operator == "TopK" { (&["y", "places"], DType::Float32) } else { (&["y"], DType::Int64) };
    graph.node_named(operator, &inputs, outputs, &[]);
    graph.output("y", dtype, &[None, None, None][..if operator == "TopK" { 3 } else { 2 }]);
    onnx_recipe(folder, name, &graph.finish(&folder.join(name)).unwrap());
}

#[test]
fn what_tensorrt_does_not_build_is_told_with_the_way_out() {
    if !tensorrt_or_skip("what_tensorrt_does_not_build_is_told_with_the_way_out") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    one_node(scratch.path(), "choose", "NonMaxSuppression", |graph| {
        graph.input("scores", DType::Float32, &[Some(1), Some(2), Some(6)]);
        let most = graph.integers(&[3]);
        let bounds = [0.5, 0.1]
            .map(|value| graph.initializer(&format!("at_{value}"), &Tensor::from_f32(vec![1], vec![value]).unwrap()));
        let [overlap, score] = bounds;
        vec!["x".to_owned(), "scores".to_owned(), most, overlap, score]
    });
    one_node(scratch.path(), "places", "NonZero", |_| vec!["x".to_owned()]);
    one_node(scratch.path(), "best", "TopK", |graph| {
        graph.input("k", DType::Int64, &[Some(1)]);
        vec!["x".to_owned(), "k".to_owned()]
    });
    let build = |name: &str| output(watus(scratch.path()).args(["build", &format!("{name}.yaml")]));
    let rtx = TensorRt::open().unwrap().version.family == Family::Rtx;
    let cases = [
        ("choose", "choose.onnx: node 'NonMaxSuppression_0' (NonMaxSuppression): TensorRT-RTX", "`nms=False`"),
        ("places", "places.onnx: node 'NonZero_0' (NonZero): TensorRT-RTX", "torch.where"),
        ("best", "best.onnx: node 'TopK_0' (TopK): TensorRT", "in the recipe, `inputs: { k: VALUE }`"),
    ];
    for (name, begin, way) in cases {
        // TensorRT builds the first two.
        if name != "best" && !rtx {
            continue;
        }
        let (code, _, stderr) = build(name);
        assert_eq!(code, 5, "{stderr}");
        assert!(stderr.contains(&format!("error: {begin}")), "{stderr}");
        let (_, hint) = stderr.split_once("\n  hint: ").unwrap();
        assert!(hint.contains(way) && hint.contains("\n  TensorRT c"), "{stderr}");
    }
    // The way out is one.
    let recipe = scratch.path().join("best.yaml");
    let text = fs::read_to_string(&recipe).unwrap();
    fs::write(&recipe, format!("{text}inputs: {{ k: 3 }}\n")).unwrap();
    let (code, _, stderr) = build("best");
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn verify_finds_damage_and_tells_unproved_from_proved() {
    if !tensorrt_or_skip("verify_finds_damage") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(scratch.path(), "");
    assert_eq!(output(watus(scratch.path()).arg("build").arg(&recipe)).0, 0);
    let engine = scratch.path().join("engines/tiny");
    let verify = |arguments: &[&str]| output(watus(scratch.path()).arg("verify").args(arguments).arg(&engine));
    let gpu = watus_build::backend::tensorrt::device::Device::open().is_ok();
    let (code, stdout, _) = verify(&[]);
    assert_eq!((code, stdout.contains("not verified: its execution was not checked")), (0, !gpu), "{stdout}");
    assert_eq!(verify(&["--require-execution"]).0, if gpu { 0 } else { 7 });
    if !gpu {
        let (code, _, stderr) =
            output(watus(scratch.path()).args(["run", "--backend", "tensorrt"]).arg(&engine).arg("face.png"));
        assert_eq!((code, stderr.contains("hint: `watus-build doctor` tells why")), (8, true), "{stderr}");
    }

    let plan = engine.join("tiny.engine");
    let intact = fs::read(&plan).unwrap();
    let mut damaged = intact.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&plan, &damaged).unwrap();
    let (code, stdout, _) = verify(&[]);
    assert_eq!(code, 6);
    assert!(stdout.contains("tiny.engine does not match its sha256"), "{stdout}");

    // A plan of another version whose hash someone has made right.
    let mut foreign = intact;
    foreign[25] = 9;
    fs::write(&plan, &foreign).unwrap();
    let manifest = fs::read_to_string(engine.join("manifest.json")).unwrap();
    let mut document: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    document["files"]["tiny.engine"]["sha256"] = watus_build::artifact::sha256(&foreign).into();
    fs::write(engine.join("manifest.json"), document.to_string()).unwrap();
    let (code, stdout, _) = verify(&[]);
    assert_eq!(code, 6);
    assert!(stdout.contains("the plan was built by TensorRT-RTX 1.9"), "{stdout}");

    document["engine"] = "../../../etc/passwd".into();
    fs::write(engine.join("manifest.json"), document.to_string()).unwrap();
    let (code, _, stderr) = verify(&[]);
    assert_eq!((code, stderr.contains("leaves the directory")), (6, true), "{stderr}");
}

#[test]
fn verify_says_what_it_found_where_it_cannot_keep_it() {
    if !tensorrt_or_skip("verify_says_what_it_found_where_it_cannot_keep_it") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(scratch.path(), "");
    assert_eq!(output(watus(scratch.path()).arg("build").arg(&recipe)).0, 0);
    let engine = scratch.path().join("engines/tiny");
    // Whoever runs the tests may write everywhere, but over no folder.
    fs::remove_file(engine.join("verify.json")).unwrap();
    fs::create_dir(engine.join("verify.json")).unwrap();
    let verify = || output(watus(scratch.path()).args(["verify", "engines/tiny"]));
    let (code, stdout, stderr) = verify();
    assert_eq!((code, stdout.contains("ok   tiny: signature")), (0, true), "{stdout}{stderr}");
    let warned =
        |stderr: &str| stderr.contains("warning: the report is not kept: cannot write engines/tiny/verify.json");
    assert!(warned(&stderr), "{stderr}");
    fs::write(engine.join("model.onnx"), "x").unwrap();
    let (code, stdout, stderr) = verify();
    assert_eq!((code, stdout.contains("FAIL tiny: hashes"), warned(&stderr)), (6, true, true), "{stdout}{stderr}");
    assert_eq!(leftovers(scratch.path()), Vec::<String>::new());
}

#[test]
fn tensorrt_errors_name_the_node() {
    if !tensorrt_or_skip("tensorrt_errors_name_the_node") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let mut graph = GraphBuilder::new("bad", 17);
    graph.input("x", DType::Float32, &[Some(2)]);
    let y = graph.node("FancyOp", &["x"], &[]);
    graph.output(&y, DType::Float32, &[Some(2)]);
    let model = graph.finish(&scratch.path().join("bad.onnx")).unwrap();
    onnx_recipe(scratch.path(), "bad", &model);
    let (code, _, stderr) = output(watus(scratch.path()).args(["build", "bad.yaml"]));
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("node 'FancyOp_0' (FancyOp)"), "{stderr}");
    assert!(!scratch.path().join("engines/bad").exists());
    assert_eq!(leftovers(scratch.path()), Vec::<String>::new());
}

#[test]
fn what_tensorrt_would_silently_get_wrong_is_refused() {
    if !tensorrt_or_skip("what_tensorrt_would_silently_get_wrong_is_refused") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let build = |opset: i64, lengths: bool| {
        let mut graph = GraphBuilder::new("m", opset);
        for name in ["q", "k", "v"] {
            graph.input(name, DType::Float32, &[Some(1), Some(2), Some(4), Some(8)]);
        }
        graph.input("n", DType::Int64, &[Some(1)]);
        let inputs = ["q", "k", "v", "", "", "", "n"];
        let y = graph.node("Attention", &inputs[..if lengths { 7 } else { 3 }], &[]);
        graph.output(&y, DType::Float32, &[Some(1), Some(2), Some(4), Some(8)]);
        let model = graph.finish(&scratch.path().join("m.onnx")).unwrap();
        onnx_recipe(scratch.path(), "m", &model);
        output(watus(scratch.path()).args(["build", "m.yaml"]))
    };
    let (code, _, stderr) = build(99, false);
    assert_eq!((code, stderr.contains("opset 99 is newer")), (5, true), "{stderr}");
    let (code, _, stderr) = build(24, true);
    assert_eq!((code, stderr.contains("'Attention_0' (Attention): TensorRT ignores")), (5, true), "{stderr}");
}

#[test]
fn yolov8n_becomes_an_engine_from_a_recipe() {
    if !tensorrt_or_skip("yolov8n_becomes_an_engine_from_a_recipe") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("yolov8n.onnx");
    let model = support::yolov8n::yolov8n(&path, 320, 8).unwrap();
    fs::write(&path, model.to_bytes().unwrap()).unwrap();
    fs::copy(repository().join("examples/yolov8n.yaml"), scratch.path().join("yolov8n.yaml")).unwrap();
    let (code, stdout, stderr) = output(watus(scratch.path()).args(["build", "yolov8n.yaml"]));
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.starts_with("yolov8n: built"), "{stdout}");
    let manifest = fs::read_to_string(scratch.path().join("engines/yolov8n/manifest.json")).unwrap();
    assert!(manifest.contains("\"output0\""));
}

#[test]
fn a_library_of_another_version_is_refused_before_it_is_used() {
    use watus_build::backend::tensorrt;
    let Some(shim) = tensorrt::shim::shims().found.first() else {
        return skip("the version check", "compiled without TensorRT's headers");
    };
    let headers = shim.headers;
    // Libraries that say they are RTX 1.4 and hold nothing else: any further call would end in a missing symbol.
    let scratch = tempfile::tempdir().unwrap();
    let (core, parser) = tensorrt::library::names(headers);
    let source = scratch.path().join("old.c");
    fs::write(&source, "int getInferLibVersion(void) { return 10400; }\n").unwrap();
    for name in [core, parser] {
        let mut compile = std::process::Command::new("cc");
        compile.args(["-shared", "-fPIC", "-o"]).arg(scratch.path().join(name)).arg(&source);
        assert_eq!(output(&mut compile).0, 0);
    }
    let recipe = tiny_recipe(scratch.path(), "");
    let mut build = watus(scratch.path());
    let (code, _, stderr) = output(build.env("WATUS_TENSORRT_LIB", scratch.path()).arg("build").arg(&recipe));
    assert_eq!(code, 8, "{stderr}");
    assert!(stderr.contains("is version 1.4.0, but this binary was compiled for"), "{stderr}");
}

#[test]
fn a_folder_of_tensorrt_that_is_not_there_is_told_with_what_to_do() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(scratch.path(), "");
    let mut build = watus(scratch.path());
    let (code, _, stderr) = output(build.env("WATUS_TENSORRT_LIB", "/nope").arg("build").arg(&recipe));
    assert_eq!(code, 8, "{stderr}");
    assert!(stderr.contains("WATUS_TENSORRT_LIB=/nope is not there"), "{stderr}");
    assert!(stderr.contains("hint: set WATUS_TENSORRT_LIB to the folder that has TensorRT, or unset it"), "{stderr}");
}

#[test]
fn external_data_comes_along_and_never_from_elsewhere() {
    if !tensorrt_or_skip("external_data_comes_along") {
        return;
    }
    use onnx_protobuf::{Message, ModelProto, StringStringEntryProto, tensor_proto::DataLocation};
    let scratch = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(scratch.path(), "");
    let path = scratch.path().join("tiny.onnx");
    let model = ModelProto::parse_from_bytes(&fs::read(&path).unwrap()).unwrap();
    let externalise = |location: &str| {
        let mut model = model.clone();
        let weight = &mut model.graph.as_mut().unwrap().initializer[0];
        let entry = |key: &str, value: &str| StringStringEntryProto {
            key: key.into(),
            value: value.into(),
            ..StringStringEntryProto::default()
        };
        weight.external_data = vec![entry("location", location), entry("offset", "4"), entry("length", "24")];
        weight.data_location = DataLocation::EXTERNAL.into();
        let bytes = std::mem::take(&mut weight.raw_data);
        fs::write(&path, model.write_to_bytes().unwrap()).unwrap();
        [vec![0; 4], bytes].concat()
    };
    let data = externalise("below/weights.bin");
    fs::create_dir(scratch.path().join("below")).unwrap();
    fs::write(scratch.path().join("below/weights.bin"), data).unwrap();
    let (code, _, stderr) = output(watus(scratch.path()).arg("build").arg(&recipe));
    assert_eq!(code, 0, "{stderr}");
    for engine in ["engines/tiny", "tiny.onnx"] {
        let input = scratch.path().join("x.npy");
        let x = watus_build::tensor::Tensor::seeded(watus_build::tensor::DType::Float32, vec![1, 3, 8, 8], 1).unwrap();
        watus_build::tensor::write_npy(fs::File::create(&input).unwrap(), &x).unwrap();
        let mut run = watus(scratch.path());
        let (code, stdout, stderr) =
            output(run.args(["run", "--backend", "cpu", engine, "--input"]).arg(format!("pixels={}", input.display())));
        assert_eq!((code, stdout.starts_with("scores float32[1, 2]")), (0, true), "{stdout}{stderr}");
    }

    externalise("../weights.bin");
    let (code, _, stderr) = output(watus(scratch.path()).arg("build").arg(&recipe));
    assert_eq!(code, 1);
    assert!(stderr.contains("tensor `w` keeps its data in `../weights.bin`, outside the model's folder"), "{stderr}");
}

/// x and `a=b` added, over windows of 7 pixels.
fn windows(folder: &Path) {
    let mut graph = GraphBuilder::new("windows", 17);
    let shape = [None, Some(1), None, None];
    graph.input("x", DType::Float32, &shape);
    graph.input("a=b", DType::Float32, &shape);
    let sum = graph.node("Add", &["x", "a=b"], &[]);
    graph.node_named("MaxPool", &[&sum], &["y"], &[("kernel_shape", [7, 7].into())]);
    graph.output("y", DType::Float32, &shape);
    fs::write(folder.join("w.onnx"), graph.finish(&folder.join("w.onnx")).unwrap().to_bytes().unwrap()).unwrap();
}

#[test]
fn inputs_are_named_once_and_read_whole() {
    let scratch = tempfile::tempdir().unwrap();
    windows(scratch.path());
    let ones = Tensor::from_f32(vec![1, 1, 7, 7], vec![1.0; 49]).unwrap();
    write_npy(fs::File::create(scratch.path().join("f=.npy")).unwrap(), &ones).unwrap();
    fs::write(scratch.path().join("cut.npy"), b"\x93NUMPY\x01\0v").unwrap();
    for (inputs, code, said) in [
        (&["x=f=.npy", "a=b=f=.npy"][..], 0, "y float32[1, 1, 1, 1]: min 2.000000"),
        (&["x=f=.npy", "x=f=.npy", "a=b=f=.npy"], 1, "--input gives `x` twice: f=.npy and f=.npy"),
        (&["x=f=.npy", "a=f=.npy"], 1, "the model has no input `a`; it has x, a=b"),
        (&["x=f=.npy"], 1, "input a=b float32[?, 1, ?, ?] is missing: give --input a=b=FILE.npy"),
        (
            &["x=cut.npy", "a=b=f=.npy"],
            1,
            "cannot read cut.npy: not a usable .npy file: it is cut off within its header",
        ),
    ] {
        let options = inputs.iter().flat_map(|input| ["--input", *input]);
        let mut run = watus(scratch.path());
        let (found, stdout, stderr) = output(run.args(["run", "w.onnx", "--backend", "cpu"]).args(options));
        assert_eq!((found, format!("{stdout}{stderr}").contains(said)), (code, true), "{inputs:?}: {stdout}{stderr}");
    }
}

#[test]
fn open_dimensions_are_not_guessed() {
    let scratch = tempfile::tempdir().unwrap();
    windows(scratch.path());
    let bench = |arguments: &[&str]| {
        let mut command = watus(scratch.path());
        output(command.args(["bench", "w.onnx", "-n", "1", "--warmup", "0"]).args(arguments))
    };
    for (arguments, said) in [
        (
            &[][..],
            "w.onnx: dimension 2 of input `x` is open (`x_2`)\n  hint: say it with --shape x=1,1,N,N, a number for each N",
        ),
        (
            &["--shape", "x=1,1,9,9"],
            "dimension 2 of input `a=b` is open (`a=b_2`)\n  hint: say it with --shape a=b=1,1,N,N",
        ),
        (&["--shape", "x=1,1,9"], "--shape x=1,1,9: the model wants x float32[?, 1, ?, ?]"),
        (&["--shape", "x=1,1,9,0"], "whole numbers from 1"),
        (&["--shape", "y=1,1,9,9"], "the model has no input `y`; it has x, a=b"),
        (&["--shape", "x=1,1,9,9", "--shape", "x=1,1,8,8"], "--shape gives `x` twice"),
        (
            &["--backend", "tensorrt"],
            "dimension 0 of input `x` is open (`N`), and TensorRT builds a bare file for fixed",
        ),
    ] {
        let backend: &[&str] = if arguments.contains(&"--backend") { &[] } else { &["--backend", "cpu"] };
        let (code, stdout, stderr) = bench(&[backend, arguments].concat());
        assert_eq!((code, stdout.as_str(), stderr.contains(said)), (1, "", true), "{arguments:?}: {stderr}");
    }
    let shapes = ["--backend", "cpu", "--shape", "x=2,1,9,8", "--shape", "a=b=2,1,9,8"];
    let (code, stdout, stderr) = bench(&shapes);
    assert!(code == 0 && stdout.contains("| w | "), "{stdout}{stderr}");
    assert_eq!(bench(&[&shapes[..], &["--batch", "2"]].concat()).0, 2);
}

#[test]
fn hostile_models_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let inspect = |bytes: &[u8]| {
        fs::write(scratch.path().join("m.onnx"), bytes).unwrap();
        output(watus(scratch.path()).args(["inspect", "m.onnx"]))
    };
    for bytes in [&b"not an onnx file"[..], b"", b"\xe3\x03", &[0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f]] {
        let (code, _, stderr) = inspect(bytes);
        assert_eq!(code, 1);
        assert!(stderr.contains("m.onnx: not an ONNX model"), "{stderr}");
    }
}

#[test]
fn the_real_classifiers_agree_with_onnxruntime() {
    let Some(python) = oracle() else { return };
    if !tensorrt_or_skip("the_real_classifiers_agree_with_onnxruntime") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let recipes = ["gender", "age"].map(|name| repository().join(format!("recipes/{name}.yaml")));
    let (code, _, stderr) = output(watus(scratch.path()).arg("build").args(&recipes));
    assert_eq!(code, 0, "{stderr}");
    let mut script = std::process::Command::new(python);
    script.arg(repository().join("benches/cpu_vs_onnxruntime.py")).args(["--check", "--watus"]);
    script.arg(env!("CARGO_BIN_EXE_watus-build")).args(["engines/gender/model.onnx", "engines/age/model.onnx"]);
    let (code, stdout, stderr) = output(script.current_dir(scratch.path()));
    assert_eq!(code, 0, "{stdout}{stderr}");
}

/// A Python with onnxruntime, as scripts/setup-oracles.sh makes it.
fn oracle() -> Option<PathBuf> {
    let python = std::env::var_os("WATUS_ORACLE_PYTHON").map(PathBuf::from).filter(|python| python.exists());
    if python.is_none() {
        skip("the comparison with onnxruntime", "set WATUS_ORACLE_PYTHON to what scripts/setup-oracles.sh prints");
    }
    python
}
