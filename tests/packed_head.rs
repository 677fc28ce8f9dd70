//! Output matrices (LM heads) in 8 or 4 bits: as compressed-tensors writes them, against `transformers` (tests/data/packed, made by
//! its make.py), and as a build packs them, with the layers or beside a checkpoint that stays as it is.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::f16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use support::{output, tensorrt_or_skip, watus};
use watus_build::checkpoint::Checkpoint;
use watus_build::convert::{self, Transformer};
use watus_build::executor::{CpuExecutor, Executor, Rows};
use watus_build::progress::Silent;
use watus_build::quantize::{OriginalModel, QuantisedBits, Schemes, write_head};
use watus_build::spec::HeadRecord;
use watus_build::tensor::read_npy;

const TOKENS: usize = 40;
const HEAD: &str = "lm_head.weight";

/// A tensor to be written.
type Plain = (Dtype, Vec<usize>, Vec<u8>);

fn data(path: &str) -> PathBuf {
    support::repository().join("tests/data").join(path)
}

/// Paths of a checkpoint in a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    ["config.json", "model.safetensors"].iter().map(|name| folder.join(name)).collect()
}

fn config_of(folder: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap()
}

fn tensors_of(path: &Path) -> BTreeMap<String, Plain> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let plain = |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.tensors().into_iter().map(|(name, view)| (name, plain(view))).collect()
}

fn write(folder: &Path, config: &Value, tensors: &BTreeMap<String, Plain>) -> Vec<PathBuf> {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    files(folder)
}

fn float_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn located(checkpoint: &Checkpoint, tied: bool) -> Transformer {
    let mut model = convert::describe(&checkpoint.config_path, &checkpoint.config, 64).unwrap();
    model.tied &= tied;
    model.locate(checkpoint).unwrap();
    model
}

fn logits(model: Transformer, checkpoint: Checkpoint) -> Vec<f32> {
    let vocabulary = model.vocab_size;
    let tokens: Vec<u32> = (0..TOKENS).map(|i| u32::try_from((7 * i + 3) % vocabulary).unwrap()).collect();
    CpuExecutor::new(model, Arc::new(checkpoint), 1, 64).unwrap().prefill(0, 0, &tokens, Rows::All).unwrap()
}

fn values(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Vec<f32> {
    let mut values = vec![0.0; shape.iter().product()];
    checkpoint.expect(name, shape).unwrap().read(0, &mut values);
    values
}

/// Root mean square of the differences by that of the values.
fn error(have: &[f32], want: &[f32]) -> f32 {
    let squares = have.iter().zip(want).fold((0.0, 0.0), |(lost, all), (a, b)| (lost + (a - b).powi(2), all + b * b));
    (squares.0 / squares.1).sqrt()
}

/// The fixture with its layers' matrices packed as they are, and floats for the output matrix.
fn float_head(folder: &Path) -> Vec<PathBuf> {
    let from = data("packed/head-8-bits");
    let head = values(&Checkpoint::open(&files(&from)).unwrap(), HEAD, &[64, 64]);
    // Values that 8 bits cannot say exactly.
    let head: Vec<f32> = head.iter().enumerate().map(|(at, value)| value + 1e-3 * (at % 7) as f32).collect();
    let (mut config, mut tensors) = (config_of(&from), tensors_of(&from.join("model.safetensors")));
    tensors.retain(|name, _| !name.starts_with("lm_head."));
    tensors.insert(HEAD.to_owned(), (Dtype::F32, vec![64, 64], float_bytes(&head)));
    config["quantization_config"]["config_groups"].as_object_mut().unwrap().remove("group_1");
    config["quantization_config"]["ignore"] = json!(["lm_head"]);
    write(folder, &config, &tensors)
}

/// The fixture in floats; tied, its embedding is its output matrix.
fn all_floats(folder: &Path, tied: bool) -> Vec<PathBuf> {
    let from = data("packed/head-8-bits");
    let checkpoint = Checkpoint::open(&files(&from)).unwrap();
    let parts: Vec<_> = located(&checkpoint, false).parts().filter(|part| !(tied && part.tensor == HEAD)).collect();
    let tensors = parts.into_iter().map(|part| {
        let bytes = float_bytes(&values(&checkpoint, &part.tensor, &part.shape));
        (part.tensor, (Dtype::F32, part.shape, bytes))
    });
    let mut config = config_of(&from);
    config.as_object_mut().unwrap().remove("quantization_config");
    config["tie_word_embeddings"] = json!(tied);
    write(folder, &config, &tensors.collect())
}

#[test]
fn a_head_of_another_scheme_agrees_with_transformers() {
    let folder = data("packed/head-8-bits");
    let expected = read_npy(fs::File::open(folder.join("expected.npy")).unwrap()).unwrap();
    let expected = expected.as_f32().unwrap();
    let checkpoint = Checkpoint::open(&files(&folder)).unwrap();
    let have = logits(located(&checkpoint, false), checkpoint);
    assert_eq!(have.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let worst = have.iter().zip(expected).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst < 1e-4 * largest, "off by {worst} of {largest}");
}

#[test]
fn schemes_that_do_not_fit_are_one_error() {
    let folder = data("packed/head-8-bits");
    let tensors = tensors_of(&folder.join("model.safetensors"));
    type Change = fn(&mut Value);
    let cases: [(Change, &[&str]); 5] = [
        (
            |groups| groups["group_1"]["targets"] = json!(["re:(lm|my)_head"]),
            &["target `re:(lm|my)_head`: not supported", "hint: "],
        ),
        (|groups| groups["group_0"]["targets"] = json!(["re:.*mlp.*"]), &["self_attn", "no scheme of `config_groups`"]),
        (|groups| groups["group_1"]["targets"] = json!(["Linear"]), &["two schemes for one target"]),
        (|groups| groups["group_1"]["weights"]["num_bits"] = json!(4), &["lm_head.weight_packed", "do not hold"]),
        (|groups| groups["group_1"]["input_activations"] = json!({"num_bits": 8}), &["quantised activations"]),
    ];
    for (change, expected) in cases {
        let scratch = tempfile::tempdir().unwrap();
        let mut config = config_of(&folder);
        change(&mut config["quantization_config"]["config_groups"]);
        let paths = write(scratch.path(), &config, &tensors);
        let opened = Checkpoint::open(&paths);
        let described = opened.and_then(|checkpoint| {
            convert::describe(&checkpoint.config_path, &checkpoint.config, 64)
                .and_then(|mut model| model.locate(&checkpoint))
        });
        let message = described.unwrap_err().to_string();
        assert!(expected.iter().all(|part| message.contains(part)), "{message} lacks one of {expected:?}");
    }
}

/// The output matrix in a file, by compressed-tensors' formula: (q - zero) · scale.
fn unpacked(path: &Path, head: &HeadRecord) -> Vec<f32> {
    let tensors = tensors_of(path);
    let bytes = |end: &str| &tensors[&format!("lm_head.{end}")].2;
    let words = |end: &str| -> Vec<u32> {
        bytes(end).chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    };
    let size = |at: usize| i64::from_le_bytes(bytes("weight_shape")[8 * at..][..8].try_into().unwrap()) as usize;
    let (rows, columns, per) = (size(0), size(1), 32 / head.bits as usize);
    let (groups, mask) = (columns / head.group_size, (1_u32 << head.bits) - 1);
    let scales: Vec<f16> =
        bytes("weight_scale").chunks_exact(2).map(|scale| f16::from_le_bytes(scale.try_into().unwrap())).collect();
    let (integers, zeros) = (words("weight_packed"), (!head.symmetric).then(|| words("weight_zero_point")));
    let integer = |words: &[u32], word: usize, within: usize| (words[word] >> (head.bits as usize * within)) & mask;
    let value = |row: usize, column: usize| {
        let group = column / head.group_size;
        let q = integer(&integers, row * columns.div_ceil(per) + column / per, column % per);
        let middle = 1 << (head.bits - 1);
        let zero = zeros.as_ref().map_or(middle, |zeros| integer(zeros, row / per * groups + group, row % per));
        (q as f32 - zero as f32) * scales[row * groups + group].to_f32()
    };
    (0..rows)
        .flat_map(|row| (0..columns).map(move |column| (row, column)))
        .map(|(row, column)| value(row, column))
        .collect()
}

#[test]
fn a_head_is_packed_beside_any_checkpoint() {
    let scratch = tempfile::tempdir().unwrap();
    let gguf = |name: &str| vec![data(&format!("gguf/models/{name}.gguf"))];
    let sources = [
        ("floats", files(&data("llm/llama"))),
        ("floats, tied", files(&data("llm/qwen3"))),
        ("layers in 4 bits", float_head(&scratch.path().join("float-head"))),
        ("GGUF", gguf("mistral")),
        ("GGUF, tied", gguf("qwen3")),
    ];
    for ((what, paths), bits) in sources.iter().flat_map(|source| [8, 4].map(|bits| (source, bits))) {
        let what = format!("{what}, {bits} bits");
        let checkpoint = Arc::new(Checkpoint::open(paths).unwrap());
        let model = located(&checkpoint, true);
        let original = OriginalModel { name: "m", checkpoint: &checkpoint, model: &model };
        let bits_of = QuantisedBits { layers: None, head: Some(bits) };
        let scheme = Schemes::choose(original, bits_of, None).unwrap().head.unwrap();
        let file = scratch.path().join("lm_head.safetensors");
        write_head(original, scheme, &file, &Silent).unwrap();
        let (group_size, symmetric) = (scheme.group, scheme.symmetric);
        let record = HeadRecord { file: String::new(), bits, group_size, symmetric };
        let (part, tied) = (model.output_matrix(), model.tied);
        let was = values(&checkpoint, &part.tensor, &part.shape);
        let mut with = Checkpoint::open(paths).unwrap();
        with.replace_head(&file, &record).unwrap();
        let packed = located(&with, false);
        assert_eq!((packed.tied, packed.output_matrix().tensor.as_str()), (false, HEAD), "{what}");
        let (is, formula) = (values(&with, HEAD, &part.shape), unpacked(&file, &record));
        assert!(is == formula, "{what}: the matrix is not its formula");
        let lost = error(&is, &was);
        assert!(lost > 0.0 && lost < if bits == 8 { 0.008 } else { 0.11 }, "{what}: off by {lost}");
        // The embedding stays as it was.
        let embedding = model.embedding();
        assert!(
            values(&with, &embedding.tensor, &embedding.shape)
                == values(&checkpoint, &embedding.tensor, &embedding.shape),
            "{what}"
        );
        let have = logits(packed, with);
        let Some(folder) = paths[0].parent().filter(|_| paths.len() > 1) else {
            let before = logits(located(&checkpoint, true), Checkpoint::open(paths).unwrap());
            let lost = error(&have, &before);
            assert!(lost > 0.0 && lost < 0.2, "{what}: logits are off by {lost}");
            continue;
        };
        // The same checkpoint with these values as plain floats.
        let (mut config, mut tensors) = (config_of(folder), tensors_of(&folder.join("model.safetensors")));
        tensors.insert(HEAD.to_owned(), (Dtype::F32, part.shape.clone(), float_bytes(&formula)));
        config["tie_word_embeddings"] = json!(false);
        let plain = Checkpoint::open(&write(&scratch.path().join("plain"), &config, &tensors)).unwrap();
        assert!(have == logits(located(&plain, false), plain), "{what} (tied: {tied})");
    }
}

#[test]
fn damaged_head_files_are_one_error() {
    let scratch = tempfile::tempdir().unwrap();
    let paths = float_head(&scratch.path().join("source"));
    let checkpoint = Arc::new(Checkpoint::open(&paths).unwrap());
    let model = located(&checkpoint, true);
    let original = OriginalModel { name: "m", checkpoint: &checkpoint, model: &model };
    let scheme = Schemes::choose(original, QuantisedBits { layers: None, head: Some(8) }, None).unwrap().head.unwrap();
    let file = scratch.path().join("lm_head.safetensors");
    write_head(original, scheme, &file, &Silent).unwrap();
    let good = tensors_of(&file);
    let record = HeadRecord { file: String::new(), bits: 8, group_size: scheme.group, symmetric: true };
    type Change = fn(&mut BTreeMap<String, Plain>, &mut HeadRecord);
    let cases: [(Change, &str); 6] = [
        (|_, record| record.bits = 4, "do not hold"),
        (|_, record| record.bits = 3, "weights of 3 bits"),
        (|_, record| record.group_size = 0, "groups of 0 inputs"),
        (|_, record| record.symmetric = false, "weight_zero_point is missing"),
        (|tensors, _| tensors.retain(|name, _| name.ends_with("scale")), "does not hold one packed matrix"),
        (
            |tensors, _| {
                let others = std::mem::take(tensors).into_iter();
                tensors.extend(others.map(|(name, tensor)| (name.replace("lm_head", "model.embed_tokens"), tensor)));
            },
            "`model.embed_tokens.weight` is no output matrix",
        ),
    ];
    for (change, expected) in cases {
        let (mut tensors, mut record) = (good.clone(), record.clone());
        change(&mut tensors, &mut record);
        write(&scratch.path().join("damaged"), &json!({}), &tensors);
        let mut opened = Checkpoint::open(&paths).unwrap();
        let told = opened.replace_head(&scratch.path().join("damaged/model.safetensors"), &record);
        let message = told.unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("model.safetensors"), "{message} lacks {expected}");
    }
}

/// Builds `name` from the folder of that name or another; exit code and what was said.
fn build(scratch: &Path, name: &str, source: &str, more: &str) -> (i32, String) {
    fs::write(scratch.join(source).join("tokenizer.json"), support::tokenizer()).unwrap();
    let recipe = format!(
        "version: 1\nname: {name}\nkind: llm\nsource: {{ path: {source} }}\nmax_input_len: 24\nmax_output_len: 16\n{more}"
    );
    fs::write(scratch.join(format!("{name}.yaml")), recipe).unwrap();
    let (code, _, stderr) = output(watus(scratch).args(["build", &format!("{name}.yaml")]));
    (code, stderr)
}

/// Where there is a GPU, each build proves the packed head: its answers against the CPU's.
#[test]
fn heads_are_packed_while_models_are_built() {
    if !tensorrt_or_skip("heads_are_packed_while_models_are_built") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let scratch = scratch.path();
    all_floats(&scratch.join("tied"), true);
    all_floats(&scratch.join("own"), false);
    float_head(&scratch.join("quantised"));
    let wide = "verify: { divergence: 2.0, perplexity: 10 }\n";
    // Name, source, recipe; bits of the head, and whether it has a file of its own.
    let cases = [
        ("default", "tied", "build: { precision: int4 }\n", Some(8), false),
        ("small", "own", "build: { precision: int4, head: int4 }\n", Some(4), false),
        ("kept", "own", "build: { precision: int4, head: fp16 }\n", None, false),
        ("alone", "tied", "build: { head: int8 }\n", Some(8), true),
        ("beside", "quantised", "build: { head: int4, group_size: 64 }\n", Some(4), true),
    ];
    for (name, source, more, bits, apart) in cases {
        let (code, said) = build(scratch, name, source, &format!("{more}{wide}"));
        assert_eq!(code, 0, "{name}: {said}");
        let folder = scratch.join("engines").join(name);
        let manifest: Value = serde_json::from_str(&fs::read_to_string(folder.join("manifest.json")).unwrap()).unwrap();
        let head = &manifest["llm"]["head"];
        let config = config_of(&folder);
        let groups = &config["quantization_config"]["config_groups"];
        match (bits, apart) {
            (Some(bits), true) => {
                assert_eq!((&head["bits"], &head["file"]), (&json!(bits), &json!("lm_head.safetensors")), "{name}");
                assert!(manifest["files"]["weights/lm_head.safetensors"].is_object(), "{name}: {manifest}");
                assert!(
                    fs::read(folder.join("weights/model.safetensors")).unwrap()
                        == fs::read(scratch.join(source).join("model.safetensors")).unwrap(),
                    "{name}: the checkpoint stays as it is"
                );
            }
            (Some(bits), false) => {
                assert!(head.is_null() && config["tie_word_embeddings"] == json!(false), "{name}: {config}");
                // One scheme for all where it is the same.
                let of = if bits == 4 { "group_0" } else { "group_1" };
                assert_eq!(groups[of]["weights"]["num_bits"], json!(bits), "{name}: {config}");
                assert_eq!(config["quantization_config"]["ignore"], json!([]), "{name}");
            }
            (None, _) => assert_eq!(config["quantization_config"]["ignore"], json!(["lm_head"]), "{name}"),
        }
        assert!(manifest["quality"]["tokens"].as_u64().unwrap() > 10, "{name}: {}", manifest["quality"]);
        let engine = format!("engines/{name}");
        let (code, answer, told) =
            output(watus(scratch).args(["run", &engine, "--backend", "cpu", "--raw", "--max-tokens", "4", "w3 w10"]));
        assert!(code == 0 && !answer.trim().is_empty(), "{name}: {told}");
    }
    // What is quantised already is refused; the gate is the layers'.
    for name in ["config.json", "model.safetensors"] {
        fs::create_dir_all(scratch.join("packed")).unwrap();
        fs::copy(data("packed/head-8-bits").join(name), scratch.join("packed").join(name)).unwrap();
    }
    let (code, said) = build(scratch, "again", "packed", "build: { head: int8 }\n");
    assert!(
        code != 0 && said.contains("the output matrix, is quantised already") && said.contains("head: fp16"),
        "{said}"
    );
    let strict = "build: { head: int4 }\nverify: { divergence: 1e-9 }\n";
    let (code, said) = build(scratch, "strict", "own", strict);
    assert!(code != 0 && said.contains("quantisation: on ") && !scratch.join("engines/strict").exists(), "{said}");
}
