//! Damaged, incomplete and hostile checkpoints: one clear error each, naming file, tensor and next step.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use watus_build::checkpoint::Checkpoint;
use watus_build::convert;
use watus_build::executor::{CpuExecutor, Executor, Rows};

/// The tiny Llama in a folder of its own.
fn llama() -> tempfile::TempDir {
    let scratch = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        let from = support::repository().join("tests/data/llm/llama").join(name);
        fs::copy(from, scratch.path().join(name)).unwrap();
    }
    scratch
}

/// Everything up to a first answer; the error's text.
fn run(folder: &Path) -> Result<Vec<f32>, String> {
    let files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let checkpoint = Arc::new(Checkpoint::open(&files).map_err(|error| error.to_string())?);
    let mut model = convert::describe(&checkpoint.config_path, &checkpoint.config, 64).map_err(|e| e.to_string())?;
    model.locate(&checkpoint).map_err(|error| error.to_string())?;
    let mut executor = CpuExecutor::new(model, checkpoint, 1, 64).map_err(|error| error.to_string())?;
    executor.prefill(0, 0, &[1, 2, 3], Rows::Last).map_err(|error| error.to_string())
}

/// Changes the safetensors header's text; lengths are kept right.
fn edit_header(folder: &Path, change: impl Fn(&str) -> String) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let mut header = change(std::str::from_utf8(&bytes[8..8 + length]).unwrap()).into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut new = (header.len() as u64).to_le_bytes().to_vec();
    new.extend(header);
    new.extend(&bytes[8 + length..]);
    fs::write(path, new).unwrap();
}

fn edit_config(folder: &Path, change: impl Fn(&mut serde_json::Value)) {
    let path = folder.join("config.json");
    let mut config = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn mistakes_are_told_one_by_one() {
    type Change = fn(&Path);
    let cases: [(&str, Change, &[&str]); 14] = [
        (
            "truncated",
            |folder| {
                let path = folder.join("model.safetensors");
                let bytes = fs::read(&path).unwrap();
                fs::write(path, &bytes[..bytes.len() - 10]).unwrap();
            },
            &["model.safetensors", "fetch it again"],
        ),
        ("empty", |folder| fs::write(folder.join("model.safetensors"), "").unwrap(), &["not a whole safetensors file"]),
        (
            "missing tensor",
            |folder| edit_header(folder, |text| text.replace("layers.1.mlp.up_proj", "layers.1.mlp.xx_proj")),
            &["tensor `model.layers.1.mlp.up_proj.weight` is missing", "incomplete"],
        ),
        (
            "wrong shape",
            |folder| edit_config(folder, |config| config["intermediate_size"] = 40.into()),
            &["model.layers.0.mlp.gate_proj.weight", "[48, 32]", "[40, 32]"],
        ),
        (
            "more layers than configured",
            |folder| edit_config(folder, |config| config["num_hidden_layers"] = 1.into()),
            &["model.layers.1.", "a layer the configuration does not have"],
        ),
        (
            "NaN",
            |folder| {
                let path = folder.join("model.safetensors");
                let mut bytes = fs::read(&path).unwrap();
                let end = bytes.len();
                bytes[end - 8..end - 4].copy_from_slice(&f32::NAN.to_le_bytes());
                fs::write(path, bytes).unwrap();
            },
            &["model.safetensors", "holds NaN at element", "damaged"],
        ),
        ("no config", |folder| fs::remove_file(folder.join("config.json")).unwrap(), &["config.json is missing"]),
        (
            "unknown architecture",
            |folder| edit_config(folder, |config| config["model_type"] = "mamba".into()),
            &["config.json", "`mamba` is not supported", "these are: llama, mistral"],
        ),
        (
            "quantised",
            |folder| {
                edit_config(folder, |config| {
                    config["quantization_config"] = serde_json::json!({"quant_method": "bitsandbytes"})
                })
            },
            &["`bitsandbytes`", "not supported", "float16"],
        ),
        (
            "a size that is none",
            |folder| edit_config(folder, |config| config["hidden_size"] = (-3).into()),
            &["`hidden_size` is -3"],
        ),
        (
            "heads that do not divide",
            |folder| edit_config(folder, |config| config["num_key_value_heads"] = 3.into()),
            &["4 query heads cannot share 3 key heads"],
        ),
        (
            "unknown rotary scaling",
            |folder| {
                edit_config(folder, |config| {
                    config["rope_parameters"] = serde_json::json!({"rope_type": "spiral", "factor": 2.0});
                });
            },
            &["rotary scaling `spiral`", "these are: linear"],
        ),
        (
            "a shard of the index is not there",
            |folder| {
                let index = r#"{"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}"#;
                fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
            },
            &["model-00002-of-00002.safetensors", "not here"],
        ),
        (
            "only PyTorch files",
            |folder| {
                fs::remove_file(folder.join("model.safetensors")).unwrap();
                fs::write(folder.join("pytorch_model.bin"), "x").unwrap();
            },
            &["no .safetensors and no .gguf", ".bin checkpoints are not read"],
        ),
    ];
    assert!(run(llama().path()).is_ok());
    for (name, change, expected) in cases {
        let folder = llama();
        change(folder.path());
        let error = run(folder.path()).expect_err(name);
        for part in expected {
            assert!(error.contains(part), "{name}: `{error}` lacks `{part}`");
        }
        assert!(!error.contains("panicked"), "{error}");
    }
}

#[test]
fn numbers_have_ranges() {
    use serde_json::json;
    let scaled = |fields: serde_json::Value| {
        let mut all = json!({"factor": 8.0, "original_max_position_embeddings": 32});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({ "rope_scaling": all, "rope_parameters": null })
    };
    let gemma = |field: &str, value: f64| json!({"model_type": "gemma2", "head_dim": 16, field: value});
    let llama3 =
        |low: f64, high: f64| scaled(json!({"rope_type": "llama3", "low_freq_factor": low, "high_freq_factor": high}));
    let cases = [
        (json!({"rms_norm_eps": -1e-5}), "`rms_norm_eps` is -0.00001; it must be 0 or more"),
        (json!({"rms_norm_eps": 1e300}), "`rms_norm_eps` is 1e"),
        (json!({"rope_theta": 0.0, "rope_parameters": null}), "rope_theta 0"),
        (json!({"rope_theta": -10000.0, "rope_parameters": null}), "rope_theta -10000"),
        (json!({"gguf.rotary_dim": 1 << 27}), "rotary dimensions makes no sense"),
        (json!({"num_attention_heads": 0}), "`num_attention_heads` is 0"),
        (json!({"num_attention_heads": 1 << 20}), "`num_attention_heads` is 1048576; it must be from 1 to 4096"),
        (json!({"num_key_value_heads": 1 << 20}), "`num_key_value_heads` is 1048576"),
        (json!({"num_hidden_layers": 200_000_000}), "`num_hidden_layers` is 200000000; it must be from 1 to 4096"),
        (json!({"hidden_size": 0}), "`hidden_size` is 0"),
        (json!({"head_dim": 200_000_000}), "`head_dim` is 200000000"),
        (json!({"vocab_size": 0}), "`vocab_size` is 0"),
        (json!({"vocab_size": -1}), "`vocab_size` is -1"),
        (json!({"vocab_size": 200_000_000, "hidden_size": 200_000_000, "head_dim": 16}), "10^12 parameters"),
        (json!({"intermediate_size": 200_000_000, "hidden_size": 200_000_000, "head_dim": 16}), "10^12 parameters"),
        (scaled(json!({"rope_type": "linear", "factor": 0.0})), "`factor` is 0; it must be above 0"),
        (scaled(json!({"rope_type": "linear", "factor": -2.0})), "`factor` is -2"),
        (scaled(json!({"rope_type": "dynamic", "factor": -2.0})), "`factor` is -2"),
        (scaled(json!({"rope_type": "yarn", "factor": 0.0})), "`factor` is 0"),
        (scaled(json!({"rope_type": "yarn", "beta_fast": -1.0})), "`beta_fast` is -1"),
        (scaled(json!({"rope_type": "yarn", "attention_factor": 0.0})), "`attention_factor` is 0"),
        (
            scaled(json!({"rope_type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [1, -1, 1, 1]})),
            "numbers above 0",
        ),
        (llama3(0.0, 4.0), "`low_freq_factor` is 0"),
        (llama3(4.0, 4.0), "`high_freq_factor` is 4; it must be above"),
        (gemma("attn_logit_softcapping", 0.0), "`attn_logit_softcapping` is 0; it must be above 0"),
        (gemma("final_logit_softcapping", -30.0), "`final_logit_softcapping` is -30"),
        (gemma("query_pre_attn_scalar", 0.0), "`query_pre_attn_scalar` is 0"),
        (json!({"use_bidirectional_attention": true}), "makes embeddings"),
        (
            json!({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128,
                                           "dynamic": {"+:.*down.*": {"bits": 8}}}}),
            "module to module (`dynamic`)",
        ),
        (
            json!({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized",
                   "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "strategy": "channel"}}},
                   "transform_config": {"config_groups": {"R4": {"apply": [{"location": "input"}]}}}}}),
            "`transform_config`",
        ),
    ];
    let folder = llama();
    let path = folder.path().join("config.json");
    let good: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    convert::describe(&path, &good, 64).unwrap();
    for (change, expected) in cases {
        let mut config = good.clone();
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let error = convert::describe(&path, &config, 64).expect_err(&change.to_string()).to_string();
        assert!(error.contains("config.json") && error.contains(expected), "{change}: `{error}` lacks `{expected}`");
    }
}

#[test]
fn null_and_zero_are_none_where_producers_mean_it() {
    use serde_json::json;
    let folder = llama();
    let path = folder.path().join("config.json");
    let good: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let describe = |change: serde_json::Value| {
        let mut config = good.clone();
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        convert::describe(&path, &config, 64).unwrap()
    };
    let gemma = json!({"model_type": "gemma2", "head_dim": 16});
    let caps = |model: convert::Transformer| (model.attention_softcap, model.logit_softcap);
    assert_eq!(caps(describe(gemma.clone())), (Some(50.0), Some(30.0)), "transformers' defaults");
    let mut null = gemma;
    null["attn_logit_softcapping"] = json!(null);
    null["final_logit_softcapping"] = json!(null);
    assert_eq!(caps(describe(null)), (None, None));
    // As llama.cpp's converter writes Phi-4.
    for window in [json!(0), json!(null)] {
        let model = describe(json!({"model_type": "mistral", "sliding_window": window}));
        assert!(model.layers.iter().all(|layer| layer.window.is_none()));
    }
    // Nothing that says nothing is refused.
    describe(json!({"use_bidirectional_attention": false, "quantization_config": null}));
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    for name in ["config.json", "model.safetensors"] {
        let folder = llama();
        let path = folder.path().join(name);
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        let error = run(folder.path()).unwrap_err();
        assert!(error.contains(name) && error.contains("it is a pipe, not a file"), "{error}");
        let other = folder.path().join("m.gguf");
        fs::rename(&path, &other).unwrap();
        let error = Checkpoint::open(&[other]).unwrap_err().to_string();
        assert!(error.contains("it is a pipe, not a file"), "{error}");
    }
}

#[test]
fn sequences_beyond_the_limit_are_refused() {
    let folder = llama();
    let files: Vec<PathBuf> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let checkpoint = Arc::new(Checkpoint::open(&files).unwrap());
    let mut model = convert::describe(&checkpoint.config_path, &checkpoint.config, 8).unwrap();
    model.locate(&checkpoint).unwrap();
    let mut executor = CpuExecutor::new(model, checkpoint, 1, 8).unwrap();
    let error = executor.prefill(0, 0, &[1; 9], Rows::Last).unwrap_err().to_string();
    assert!(error.contains("9 tokens") && error.contains('8') && error.contains("raise max_input_len"), "{error}");
    let error = executor.prefill(0, 0, &[64], Rows::Last).unwrap_err().to_string();
    assert!(error.contains("token 64 is not in the vocabulary"), "{error}");
    assert!(executor.prefill(1, 0, &[1], Rows::Last).is_err());
    assert!(executor.prefill(0, 0, &[], Rows::Last).is_err());
}

/// Opens a file and reads all it says is there.
fn read_all(path: &Path) {
    if let Ok(checkpoint) = Checkpoint::open(&[path.to_owned(), path.with_file_name("config.json")]) {
        for name in checkpoint.names() {
            if let Ok(view) = checkpoint.tensor(name) {
                let mut values = vec![0.0; view.rows() * view.columns()];
                view.read(0, &mut values);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_files_never_panic(gguf in any::<bool>(), hits in prop::collection::vec((any::<u32>(), any::<u8>()), 1..6), cut in any::<u32>()) {
        let folder = tempfile::tempdir().unwrap();
        let data = support::repository().join("tests/data");
        let (from, name) = if gguf { ("gguf/llama.gguf", "m.gguf") } else { ("llm/qwen3/model.safetensors", "m.safetensors") };
        let mut bytes = fs::read(data.join(from)).unwrap();
        // Most of the file is weights, which may be anything: aim at the header.
        let header = bytes.len().min(4096);
        for (at, value) in hits {
            bytes[at as usize % header] = value;
        }
        if cut % 4 == 0 {
            bytes.truncate(cut as usize % bytes.len());
        }
        fs::copy(data.join("llm/qwen3/config.json"), folder.path().join("config.json")).unwrap();
        fs::write(folder.path().join(name), bytes).unwrap();
        read_all(&folder.path().join(name));
    }
}
