//! GGUF files as llama.cpp's and Ollama's converters write them (tests/data/gguf/models, made by its make_models.py) against
//! `transformers`, what is refused in them, models in parts, and what an Ollama store says besides weights.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use support::{output, repository, tensorrt_or_skip, watus};
use watus_build::checkpoint::Checkpoint;
use watus_build::convert;
use watus_build::executor::{CpuExecutor, Executor, Rows, Step, WantedLogits};
use watus_build::tensor::read_npy;
use watus_build::text::text_files;

const TOKENS: usize = 40;

fn models() -> PathBuf {
    repository().join("tests/data/gguf/models")
}

/// The file of a case, or its parts.
fn files(name: &str) -> Vec<PathBuf> {
    let is_of = |file: &str| file == format!("{name}.gguf") || file.starts_with(&format!("{name}-0"));
    let mut files: Vec<PathBuf> = fs::read_dir(models()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().unwrap() == "gguf" && is_of(&path.file_name().unwrap().to_string_lossy()));
    files.sort();
    files
}

fn load(files: &[PathBuf]) -> Result<(convert::Transformer, Arc<Checkpoint>), String> {
    let checkpoint = Arc::new(Checkpoint::open(files).map_err(|error| error.to_string())?);
    let mut model =
        convert::describe(&checkpoint.config_path, &checkpoint.config, TOKENS).map_err(|e| e.to_string())?;
    model.locate(&checkpoint).map_err(|error| error.to_string())?;
    Ok((model, checkpoint))
}

fn expected(name: &str) -> Vec<f32> {
    let tensor = read_npy(fs::File::open(models().join(format!("{name}.npy"))).unwrap()).unwrap();
    tensor.as_f32().unwrap().to_vec()
}

/// max|have - want| / max|want|.
fn relative_error(have: &[f32], want: &[f32]) -> f32 {
    assert_eq!(have.len(), want.len());
    let largest = want.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    have.iter().zip(want).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

/// The worst error of a model read at once, and step by step.
fn error_of(files: &[PathBuf], want: &[f32]) -> f32 {
    let (model, checkpoint) = load(files).unwrap();
    let vocabulary = model.vocab_size;
    let mut executor = CpuExecutor::new(model, checkpoint, 2, TOKENS).unwrap();
    let tokens: Vec<u32> = (0..TOKENS).map(|i| u32::try_from((7 * i + 3) % vocabulary).unwrap()).collect();
    let whole = executor.prefill(0, 0, &tokens, Rows::All).unwrap();
    let mut stepwise = executor.prefill(1, 0, &tokens[..18], Rows::All).unwrap();
    for (position, token) in tokens.iter().enumerate().skip(18) {
        stepwise
            .extend(executor.decode(&[Step { slot: 1, token: *token, position, wanted: WantedLogits::All }]).unwrap());
    }
    relative_error(&whole, want).max(relative_error(&stepwise, want))
}

#[test]
fn every_file_is_the_model_that_transformers_has() {
    let names: Vec<String> = fs::read_dir(models())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().unwrap() == "npy")
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names.len(), 13, "{names:?}");
    for name in names {
        let error = error_of(&files(&name), &expected(&name));
        println!("{name}: {error:.1e}");
        assert!(error < 1e-4, "{name}: off by {error}");
    }
}

#[test]
fn what_ollama_corrects_is_said() {
    let notes = |name: &str| load(&files(name)).unwrap().1.notes.clone();
    assert!(notes("gemma3-4b")[0].contains("Gemma 3 of 34 layers has a factor of 8"), "{:?}", notes("gemma3-4b"));
    assert!(notes("gemma3-1b")[0].contains("`final_logit_softcapping` is not applied"), "{:?}", notes("gemma3-1b"));
    assert!(notes("gemma3").is_empty() && notes("bielik").is_empty());
}

/// Sliding windows, rotated dimensions and biases as the metadata and tensors say them.
#[test]
fn zero_is_none_and_biases_are_what_is_there() {
    let model = |name: &str| load(&files(name)).unwrap().0;
    let phi4 = model("phi4");
    assert!(phi4.layers.iter().all(|layer| layer.window.is_none()));
    assert_eq!(model("phi4-mini").ropes[0].dimension(), 8, "of heads of 16");
    assert!(model("mistral").layers.iter().all(|layer| layer.window == Some(10)));
    let biases = |name: &str| {
        let model = model(name);
        (model.qkv_bias, model.output_bias, model.mlp_bias)
    };
    assert_eq!(biases("bielik"), (true, true, true));
    assert_eq!(biases("llamafied"), (true, false, false));
    assert_eq!(biases("llama3"), (false, false, false));
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A key in a file's header: its number of a type, and its value.
fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(name)[..], &kind.to_le_bytes()[..], value].concat()
}

/// Puts keys before a file's own. A note fills them up, so that what follows keeps its alignment; `growth` is what the header
/// grew by before.
fn with_keys(bytes: &[u8], keys: &[Vec<u8>], growth: i64) -> Vec<u8> {
    let added = keys.concat();
    let note = key("general.note", 8, &text(""));
    let room = usize::try_from((-(growth + (added.len() + note.len()) as i64)).rem_euclid(32)).unwrap();
    let note = key("general.note", 8, &text(&" ".repeat(room)));
    let count = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) + keys.len() as u64 + 1;
    [&bytes[..16], &count.to_le_bytes()[..], &added[..], &note[..], &bytes[24..]].concat()
}

/// Another name for a tensor.
fn renamed(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let (old, new) = (text(from), text(to));
    let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
    let bytes = [&bytes[..at], &new[..], &bytes[at + old.len()..]].concat();
    with_keys(&bytes, &[], new.len() as i64 - old.len() as i64)
}

fn float(value: f32) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

fn integer(value: u32) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

#[test]
fn what_nobody_reads_is_named() {
    type Change = fn(&[u8]) -> Vec<u8>;
    let cases: [(&str, Change, &[&str]); 17] = [
        ("qwen3", |file| with_keys(file, &[], 0), &[]),
        (
            "bielik",
            |file| renamed(file, "blk.0.ffn_gate.bias", "blk.0.ffn_gate.scale"),
            &["tensor `blk.0.ffn_down.bias` (and 5 more) is not part of `llama`"],
        ),
        (
            "bielik",
            |file| renamed(file, "blk.1.attn_q.bias", "blk.1.attn_sinks"),
            &["tensor `model.layers.1.self_attn.q_proj.bias` is missing"],
        ),
        (
            "mistral",
            |file| renamed(file, "blk.1.attn_norm.weight", "rope_freqs.weight"),
            &["`factors` must have 4 numbers"],
        ),
        (
            "bielik",
            |file| renamed(file, "blk.1.ffn_gate.weight", "blk.1.ffn_gate_exps.weight"),
            &["mixture of experts is not supported", "dense"],
        ),
        (
            "bielik",
            |file| with_keys(file, &[key("llama.expert_count", 4, &integer(8))], 0),
            &["mixture of experts is not supported"],
        ),
        (
            "bielik",
            |file| with_keys(file, &[key("llama.logit_scale", 6, &float(0.0625))], 0),
            &["key `llama.logit_scale` is 0.0625", "nobody here reads it"],
        ),
        (
            "bielik",
            |file| {
                with_keys(
                    file,
                    &[key("llama.logit_scale", 6, &float(1.0)), key("llama.expert_count", 4, &integer(0))],
                    0,
                )
            },
            &[],
        ),
        (
            "bielik",
            |file| with_keys(file, &[key("llama.attention.causal", 7, &[0])], 0),
            &["key `llama.attention.causal` is false"],
        ),
        (
            "qwen3",
            |file| with_keys(file, &[key("qwen3.pooling_type", 4, &integer(3))], 0),
            &["key `qwen3.pooling_type` is 3"],
        ),
        (
            "qwen3",
            |file| with_keys(file, &[key("qwen3.attention.sliding_window", 4, &integer(16))], 0),
            &["key `qwen3.attention.sliding_window` is 16"],
        ),
        (
            "bielik",
            |file| {
                with_keys(
                    file,
                    &[
                        key("llama.attention.value_length", 4, &integer(4)),
                        key("llama.attention.key_length", 4, &integer(8)),
                    ],
                    0,
                )
            },
            &["keys of 8 dimensions and values of 4"],
        ),
        (
            "phi4-mini",
            |file| renamed(file, "rope_factors_long.weight", "rope_factors_else.weight"),
            &["rope_factors_long.weight", "only some are there"],
        ),
        (
            "qwen2-yarn",
            |file| with_keys(file, &[key("qwen2.rope.scaling.yarn_log_multiplier", 6, &float(0.1))], 0),
            &["key `qwen2.rope.scaling.yarn_log_multiplier` is 0.1"],
        ),
        (
            "qwen3",
            |file| with_keys(file, &[key("qwen3.rope.scaling.attn_factor", 6, &float(1.5))], 0),
            &["key `qwen3.rope.scaling.attn_factor` is 1.5"],
        ),
        (
            "bielik",
            |file| with_keys(file, &[key("general.type", 8, &text("adapter"))], 0),
            &["it is a LoRA adapter", "merge"],
        ),
        ("bielik", |file| with_keys(file, &[key("general.type", 8, &text("mmproj"))], 0), &["it is a `mmproj` file"]),
    ];
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("m.gguf");
    for (name, change, parts) in cases {
        fs::write(&path, change(&fs::read(&files(name)[0]).unwrap())).unwrap();
        match load(std::slice::from_ref(&path)) {
            Ok(_) => assert!(parts.is_empty(), "{name}: read, though {parts:?}"),
            Err(error) => {
                assert!(
                    !parts.is_empty() && parts.iter().all(|part| error.contains(part)),
                    "{name}: `{error}` {parts:?}"
                );
            }
        }
    }
}

/// A factor without a type is linear to llama.cpp, and Ollama's tower of pictures stays where it is.
#[test]
fn other_spellings_of_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("m.gguf");
    let model = |name: &str, change: &dyn Fn(&[u8]) -> Vec<u8>| {
        fs::write(&path, change(&fs::read(&files(name)[0]).unwrap())).unwrap();
        let (model, checkpoint) = load(std::slice::from_ref(&path)).unwrap();
        (model, checkpoint.notes.clone())
    };
    let plain = model("qwen3", &|file| file.to_vec()).0;
    for name in ["qwen3.rope.scaling.factor", "qwen3.rope.scale_linear"] {
        let scaled = model("qwen3", &|file| with_keys(file, &[key(name, 6, &float(4.0))], 0)).0;
        let quarter: Vec<f32> = plain.ropes[0].frequencies.iter().map(|frequency| frequency / 4.0).collect();
        assert_eq!(scaled.ropes[0].frequencies, quarter, "{name}");
    }
    // Every second layer sees everything.
    let pattern = key("gemma3.attention.sliding_window_pattern", 4, &integer(2));
    let (every_second, _) = model("gemma3", &|file| with_keys(file, std::slice::from_ref(&pattern), 0));
    let slides: Vec<bool> = every_second.layers.iter().map(|layer| layer.window.is_some()).collect();
    assert_eq!(slides, [true, false, true, false, true, false]);
    let flags = [&7_u32.to_le_bytes()[..], &6_u64.to_le_bytes()[..], &[0, 1, 1, 1, 1, 0]].concat();
    let pattern = key("gemma3.attention.sliding_window_pattern", 9, &flags);
    let (by_list, _) = model("gemma3", &|file| with_keys(file, std::slice::from_ref(&pattern), 0));
    let slides: Vec<bool> = by_list.layers.iter().map(|layer| layer.window.is_some()).collect();
    assert_eq!(slides, [false, true, true, true, true, false]);
    // What is not of the text's model: a tensor of the tower, whose place in the file is nobody's.
    let picture = |file: &[u8]| {
        let (count, tensor) = (u64::from_le_bytes(file[8..16].try_into().unwrap()), text("token_embd.weight"));
        let at = file.windows(tensor.len()).position(|window| window == tensor).unwrap();
        let name = text("v.patch_embd.bias");
        let info = [&name[..], &1_u32.to_le_bytes()[..], &1_u64.to_le_bytes()[..], &[0; 12][..]].concat();
        let bytes = [&file[..8], &(count + 1).to_le_bytes()[..], &file[16..at], &info[..], &file[at..]].concat();
        with_keys(&bytes, &[key("gemma3.vision.block_count", 4, &integer(2))], info.len() as i64)
    };
    let (seeing, notes) = model("gemma3", &picture);
    assert_eq!(seeing, load(&files("gemma3")).unwrap().0);
    assert!(notes[0].contains("the model answers text alone"), "{notes:?}");
}

/// Copies the parts of `llama3`, some under other names.
fn parts(folder: &Path, names: &[(usize, &str)]) -> Vec<PathBuf> {
    let from = files("llama3");
    let put = |(index, name): &(usize, &str)| {
        let path = folder.join(name);
        fs::copy(&from[*index], &path).unwrap();
        path
    };
    names.iter().map(put).collect()
}

#[test]
fn parts_belong_together_or_are_named() {
    static ALL: [(usize, &str); 3] =
        [(0, "m-00001-of-00003.gguf"), (1, "m-00002-of-00003.gguf"), (2, "m-00003-of-00003.gguf")];
    let scratch = tempfile::tempdir().unwrap();
    let mut backwards = parts(scratch.path(), &ALL);
    backwards.reverse();
    assert!(error_of(&backwards, &expected("llama3")) < 1e-4, "in any order");
    type Set = [(usize, &'static str)];
    let cases: [(&Set, &[&str]); 7] = [
        (&ALL[..1], &["one of 3 parts", "m-00002-of-00003.gguf, m-00003-of-00003.gguf"]),
        (&ALL[1..2], &["one of 3 parts", "m-00001-of-00003.gguf, m-00003-of-00003.gguf"]),
        (&[ALL[0], ALL[2]], &["these are missing: m-00002-of-00003.gguf"]),
        (&[ALL[0], ALL[1], (1, "m-00003-of-00003.gguf")], &["it is part 2 of 3, and so is"]),
        (&[ALL[0], ALL[1], (2, "n-00003-of-00003.gguf")], &["which of these is the model?", "n-00003"]),
        (&[ALL[0], ALL[1], (2, "other.gguf")], &["which of these is the model?", "other.gguf"]),
        (&[(0, "whole.gguf")], &["one of 3 parts", "part 2, part 3"]),
    ];
    for (names, wanted) in cases {
        let folder = tempfile::tempdir().unwrap();
        let error = load(&parts(folder.path(), names)).unwrap_err();
        assert!(wanted.iter().all(|part| error.contains(part)), "{names:?}: `{error}` lacks {wanted:?}");
    }
    // Another model's file, and a part of another version.
    let folder = tempfile::tempdir().unwrap();
    let paths = parts(folder.path(), &ALL);
    fs::copy(&files("bielik")[0], &paths[2]).unwrap();
    let error = load(&paths).unwrap_err();
    assert!(error.contains("m-00003-of-00003.gguf") && error.contains("no part of this model of 3 files"), "{error}");
    let paths = parts(folder.path(), &ALL);
    let mut last = fs::read(&paths[2]).unwrap();
    let count = text("split.tensors.count");
    let at = last.windows(count.len()).position(|window| window == count).unwrap() + count.len() + 4;
    last[at] += 1;
    fs::write(&paths[2], last).unwrap();
    let error = load(&paths).unwrap_err();
    assert!(error.contains("`split.tensors.count` is 23") && error.contains("have 22 tensors"), "{error}");
}

/// llama.cpp's names for what goes beside a model, and a projector that only its metadata tell.
#[test]
fn what_lies_beside_a_model_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let mut paths = parts(
        folder.path(),
        &[(0, "m-00001-of-00003.gguf"), (1, "m-00002-of-00003.gguf"), (2, "m-00003-of-00003.gguf")],
    );
    let mut put = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        paths.push(path);
        paths.clone()
    };
    let qwen = fs::read(&files("qwen3")[0]).unwrap();
    put("imatrix.dat", b"not looked at");
    let all = put("mmproj-F16.gguf", b"not looked at");
    let notes = load(&all).unwrap().1.notes.clone();
    assert!(notes.len() == 1 && notes[0].ends_with(": mmproj-F16.gguf"), "{notes:?}");
    put("mtp-m.gguf", b"not looked at");
    put("m.imatrix.gguf", b"not looked at");
    let projector = with_keys(&qwen, &[key("general.type", 8, &text("mmproj"))], 0);
    let all = put("eyes.gguf", &projector);
    let (model, checkpoint) = load(&all).unwrap();
    assert_eq!((model.family, checkpoint.files().len()), ("llama", 3));
    let note = &checkpoint.notes[0];
    assert!(
        ["mmproj-F16.gguf", "mtp-m.gguf", "m.imatrix.gguf", "eyes.gguf"].iter().all(|name| note.contains(name)),
        "{note}"
    );
    // Another model is no such thing.
    let error = load(&put("other.gguf", &qwen)).unwrap_err();
    assert!(error.contains("which of these is the model?") && error.contains("other.gguf"), "{error}");
    assert!(!error.contains("mmproj") && !error.contains("eyes.gguf"), "{error}");
}

/// As gguf-py's writer makes it with `endianess=GGUFEndian.BIG`: the letters as ever, the numbers turned.
#[test]
fn a_big_endian_file_is_called_one() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("m.gguf");
    let mut bytes = [&b"GGUF"[..], &3_u32.to_be_bytes()[..], &0_u64.to_be_bytes(), &1_u64.to_be_bytes()].concat();
    bytes.extend([&20_u64.to_be_bytes()[..], b"general.architecture", &8_u32.to_be_bytes()].concat());
    bytes.extend([&5_u64.to_be_bytes()[..], b"llama"].concat());
    fs::write(&path, &bytes).unwrap();
    let error = load(std::slice::from_ref(&path)).unwrap_err();
    assert!(
        error.contains("it is big-endian") && error.contains("hint: ") && !error.contains("not a whole"),
        "{error}"
    );
    bytes.resize(6 << 20, 0);
    let hub = support::hub::Hub::start(&[("m.gguf", bytes, true)]);
    recipe(scratch.path(), "hub: org/model, file: m.gguf");
    let (code, _, stderr) = output(watus(scratch.path()).env("HF_ENDPOINT", &hub.endpoint).args(["fetch", "m.yaml"]));
    let named = stderr.contains("it is big-endian") && stderr.contains("`gguf-convert-endian FILE little`");
    assert_eq!((code, named, stderr.matches("hint:").count()), (4, true, 1), "{stderr}");
}

/// Mixtures are known by the first bytes of the first part, and then the others end, too.
#[test]
fn a_mixture_is_refused_before_its_weights_come() {
    let scratch = tempfile::tempdir().unwrap();
    let first = fs::read(&files("llama3")[0]).unwrap();
    let mut first = with_keys(&first, &[key("llama.expert_count", 4, &integer(8))], 0);
    let later: Vec<Vec<u8>> = files("llama3")[1..]
        .iter()
        .map(|path| {
            let mut bytes = fs::read(path).unwrap();
            bytes.resize(24 << 20, 0);
            bytes
        })
        .collect();
    first.resize(12 << 20, 0);
    let hub = support::hub::Hub::start(&[
        ("m-00001-of-00003.gguf", first, true),
        ("m-00002-of-00003.gguf", later[0].clone(), true),
        ("m-00003-of-00003.gguf", later[1].clone(), true),
    ]);
    hub.pace(std::time::Duration::from_millis(1));
    for source in ["hub: org/model, file: m-00002-of-00003.gguf", "hub: org/model, files: ['*.gguf']"] {
        recipe(scratch.path(), source);
        let (code, _, stderr) =
            output(watus(scratch.path()).env("HF_ENDPOINT", &hub.endpoint).args(["fetch", "m.yaml"]));
        let named = stderr.contains("m-00001-of-00003.gguf: mixture of experts is not supported");
        assert_eq!((code, named, stderr.matches("hint:").count()), (4, true, 1), "{stderr}");
        assert!(stderr.contains("hint: take a dense model"), "{stderr}");
        let whole = support::tree(scratch.path())
            .into_iter()
            .filter(|name| name.contains("snapshots") && name.ends_with("gguf"));
        assert_eq!(whole.count(), 0);
        for part in support::leftovers(scratch.path()) {
            let length = fs::metadata(scratch.path().join(&part)).unwrap().len();
            assert!(length < 20 << 20, "{part} has {length} bytes");
        }
    }
}

/// A recipe for a language model of 40 tokens.
fn recipe(folder: &Path, source: &str) {
    let text = format!(
        "version: 1\nname: m\nkind: llm\nsource: {{ {source} }}\nmax_batch_size: 1\nmax_input_len: 30\nmax_output_len: 10\n"
    );
    fs::write(folder.join("m.yaml"), text).unwrap();
}

#[test]
fn any_part_brings_all() {
    let scratch = tempfile::tempdir().unwrap();
    let all = parts(
        scratch.path(),
        &[(0, "m-00001-of-00003.gguf"), (1, "m-00002-of-00003.gguf"), (2, "m-00003-of-00003.gguf")],
    );
    recipe(scratch.path(), "path: m-00002-of-00003.gguf");
    let (code, stdout, stderr) = output(watus(scratch.path()).args(["fetch", "m.yaml"]));
    let named = |text: &str| all.iter().all(|path| text.contains(&*path.file_name().unwrap().to_string_lossy()));
    assert_eq!((code, named(&stdout)), (0, true), "{stdout}{stderr}");
    let read = |path: &PathBuf| fs::read(path).unwrap();
    let hub = support::hub::Hub::start(&[
        ("q4/m-00001-of-00003.gguf", read(&all[0]), true),
        ("q4/m-00002-of-00003.gguf", read(&all[1]), true),
        ("q4/m-00003-of-00003.gguf", read(&all[2]), true),
        ("m-Q8_0.gguf", read(&files("bielik")[0]), true),
        ("m-Q6_K.gguf", read(&files("qwen3")[0]), true),
        ("mmproj-Q8_0.gguf", b"never fetched".to_vec(), true),
    ]);
    for (source, code, wanted) in [
        ("hub: org/model, file: q4/m-00003-of-00003.gguf", 0, "m-00001-of-00003.gguf"),
        ("hub: org/model, files: ['q4/*']", 0, "m-00001-of-00003.gguf"),
        ("hub: org/model, files: ['*Q8_0*']", 0, "m-Q8_0.gguf"),
        ("hub: org/model, files: ['*Q8_0*']", 0, "set aside, since they go beside a model"),
        ("hub: org/model, files: ['*Q*']", 1, "matches several models of org/model: m-Q6_K.gguf, m-Q8_0.gguf\n"),
        ("hub: org/model", 4, "m-Q6_K.gguf, m-Q8_0.gguf, q4/m-00001-of-00003.gguf"),
    ] {
        recipe(scratch.path(), source);
        let (have, stdout, stderr) =
            output(watus(scratch.path()).env("HF_ENDPOINT", &hub.endpoint).args(["fetch", "m.yaml"]));
        assert_eq!((have, format!("{stdout}{stderr}").contains(wanted)), (code, true), "{source}: {stdout}{stderr}");
    }
}

#[test]
fn a_model_in_parts_is_built() {
    if !tensorrt_or_skip("a_model_in_parts_is_built") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("model");
    fs::create_dir(&folder).unwrap();
    parts(&folder, &[(0, "m-00001-of-00003.gguf"), (1, "m-00002-of-00003.gguf"), (2, "m-00003-of-00003.gguf")]);
    recipe(scratch.path(), "path: model");
    let (code, stdout, stderr) = output(watus(scratch.path()).args(["build", "m.yaml"]));
    assert_eq!(code, 0, "{stdout}{stderr}");
    let run = ["run", "engines/m", "--backend", "cpu", "--raw", "--max-tokens", "3", "ABC"];
    let (code, _, stderr) = output(watus(scratch.path()).args(run));
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn a_vocabulary_ends_with_the_embedding() {
    let (_, checkpoint) = load(&files("bielik")).unwrap();
    let mut config = checkpoint.config.clone();
    config["vocab_size"] = 60.into();
    let files = text_files(&checkpoint.config_path, checkpoint.gguf.as_ref().unwrap(), &config).unwrap();
    let (_, tokenizer) = files.iter().find(|(name, _)| name == "tokenizer.json").unwrap();
    let tokenizer: serde_json::Value = serde_json::from_str(tokenizer).unwrap();
    assert_eq!(tokenizer["model"]["vocab"].as_object().unwrap().len(), 60);
}

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}X{{ m.content }}Y{% endfor %}";

/// An Ollama store with a model of these layers, besides the weights; a recipe for it.
fn store(scratch: &Path, gguf: &[u8], layers: &[(&str, &str)]) {
    let store = scratch.join("store");
    fs::create_dir_all(store.join("manifests/registry.ollama.ai/library/robot")).unwrap();
    fs::create_dir_all(store.join("blobs")).unwrap();
    let put = |kind: &str, bytes: &[u8]| {
        let digest = watus_build::artifact::sha256(bytes);
        let blob = store.join(format!("blobs/sha256-{digest}"));
        // What is there may be linked to.
        if !blob.exists() {
            fs::write(blob, bytes).unwrap();
        }
        serde_json::json!({
            "mediaType": format!("application/vnd.ollama.image.{kind}"), "digest": format!("sha256:{digest}"), "size": bytes.len(),
        })
    };
    let layers = layers.iter().map(|(kind, text)| put(kind, text.as_bytes()));
    let layers: Vec<serde_json::Value> = layers.chain([put("model", gguf)]).collect();
    let manifest = serde_json::json!({ "schemaVersion": 2, "layers": layers });
    fs::write(store.join("manifests/registry.ollama.ai/library/robot/latest"), manifest.to_string()).unwrap();
    recipe(scratch, "ollama: robot");
}

#[test]
fn layers_of_an_ollama_model_are_applied_or_refused() {
    let plain = fs::read(&files("qwen3")[0]).unwrap();
    let refused: [(&[(&str, &str)], &str); 5] = [
        (&[("adapter", "GGUF")], "LoRA adapter over its weights, which is not applied"),
        (&[("messages", "[]")], "turns of a conversation"),
        (&[("tensor", "x")], "layer `tensor` is of a kind that nobody here reads"),
        (&[("hologram", "x")], "layer `hologram` is of a kind that nobody here reads"),
        (&[("model", "x")], "weights are in several layers"),
    ];
    for (layers, wanted) in refused {
        let scratch = tempfile::tempdir().unwrap();
        store(scratch.path(), &plain, layers);
        let store = scratch.path().join("store");
        let (code, _, stderr) = output(watus(scratch.path()).env("OLLAMA_MODELS", store).args(["fetch", "m.yaml"]));
        assert_eq!((code, stderr.contains(wanted)), (4, true), "{layers:?}: {stderr}");
    }
    // Before anything is built.
    let scratch = tempfile::tempdir().unwrap();
    let named = with_keys(&plain, &[key("general.name", 8, &text("Qwen3 Tiny"))], 0);
    store(scratch.path(), &named, &[("template", "{{ .Prompt }}")]);
    let emit = ["build", "--emit", "onnx", "m.yaml"];
    let (code, _, stderr) = output(watus(scratch.path()).env("OLLAMA_MODELS", scratch.path().join("store")).args(emit));
    let said =
        stderr.contains("in Ollama's own language (Go's) alone, which is not run") && stderr.contains("Qwen3 Tiny");
    assert_eq!((code, said), (1, true), "{stderr}");
    if !tensorrt_or_skip("layers_of_an_ollama_model_are_applied_or_refused") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let build = || {
        let store = scratch.path().join("store");
        output(watus(scratch.path()).env("OLLAMA_MODELS", store).args(["build", "m.yaml"]))
    };
    let system = ("system", "ABCDEFG");
    store(scratch.path(), &plain, &[system, ("params", r#"{"mirostat": 2}"#)]);
    let (code, _, stderr) = build();
    assert_eq!((code, stderr.contains("parameter `mirostat` (2) changes the answers")), (4, true), "{stderr}");
    let gguf = with_keys(&plain, &[key("tokenizer.chat_template", 8, &text(TEMPLATE))], 0);
    let params = ("params", r#"{"temperature": 0.5, "top_k": 3, "seed": 7, "stop": ["XYZ"], "num_ctx": 4096}"#);
    store(
        scratch.path(),
        &gguf,
        &[system, ("template", "{{ .Prompt }}"), params, ("projector", "x"), ("license", "x")],
    );
    let (code, stdout, stderr) = build();
    assert_eq!(code, 0, "{stdout}{stderr}");
    for said in
        ["in Go's language, is not applied", "left to the recipe and the machine: num_ctx", "answers text alone"]
    {
        assert!(stderr.contains(said), "`{stderr}` lacks `{said}`");
    }
    let text = watus_build::text::Text::open(&scratch.path().join("engines/m")).unwrap();
    let defaults = &text.defaults;
    assert_eq!((defaults.sample, defaults.wishes.temperature, defaults.wishes.top_k), (true, Some(0.5), Some(3)));
    assert_eq!((defaults.wishes.seed, &defaults.stops[..]), (Some(7), &["XYZ".to_owned()][..]));
    let message = |role: &str| watus_build::text::Message::new(role, "ABCDEFG");
    let user = text.encode_chat(&[message("user")]).unwrap();
    assert_eq!(user, text.encode_chat(&[message("system"), message("user")]).unwrap(), "told by default");
    let other = watus_build::text::Message::new("system", "HIJ");
    assert_ne!(user, text.encode_chat(&[other, message("user")]).unwrap(), "unless the conversation says otherwise");
    // What it is told is part of what was built.
    store(scratch.path(), &gguf, &[("system", "HIJ"), params]);
    let (code, stdout, _) = output(watus(scratch.path()).env("OLLAMA_MODELS", scratch.path().join("store")).args([
        "build",
        "--dry-run",
        "m.yaml",
    ]));
    assert_eq!((code, stdout.contains("source changed")), (0, true), "{stdout}");
}
