//! What a checkpoint says is computed or refused: no tensor, no field of config.json or `quantization_config` is passed over,
//! and a folder's copies, adapters and foreign formats are told apart; before the download where names and small files tell.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use support::hub::Hub;
use support::{output, watus};
use watus_build::checkpoint::{Checkpoint, Packings};
use watus_build::convert::{self, Transformer};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn data(name: &str) -> PathBuf {
    support::repository().join("tests/data/llm").join(name)
}

fn config(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(data(name).join("config.json")).unwrap()).unwrap()
}

/// A tiny checkpoint's configuration and tensors.
fn tiny(name: &str) -> (Value, Tensors) {
    let config = config(name);
    let bytes = fs::read(data(name).join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let plain = |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    (config, file.tensors().into_iter().map(|(name, view)| (name, plain(view))).collect())
}

fn safetensors_of(tensors: &Tensors) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn floats(values: &[f32]) -> (Dtype, Vec<usize>, Vec<u8>) {
    (Dtype::F32, vec![values.len()], values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// The model of what a folder holds, or why not.
fn open(folder: &Path) -> Result<Transformer, String> {
    let mut pending = vec![folder.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = pending.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() { pending.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    let checkpoint = Checkpoint::open(&files).map_err(|error| error.to_string())?;
    let mut model = convert::describe(&checkpoint.config_path, &checkpoint.config, 64).map_err(|e| e.to_string())?;
    model.locate(&checkpoint).map_err(|error| error.to_string())?;
    model.notes.extend(checkpoint.notes.iter().cloned());
    Ok(model)
}

fn opened(config: &Value, tensors: &Tensors) -> Result<Transformer, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    fs::write(folder.path().join("model.safetensors"), safetensors_of(tensors)).unwrap();
    open(folder.path())
}

#[test]
fn tensors_that_nobody_reads_are_errors() {
    let zeros = || floats(&[0.0; 32]);
    let ones = || floats(&[1.0; 32]);
    // Family, name, tensor, part of the error; or none where it changes nothing.
    let cases: [(&str, &str, _, Option<&str>); 17] = [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", ones(), None),
        ("llama", "model.layers.1.attn.masked_bias", ones(), None),
        ("llama", "v_head.summary.weight", ones(), None),
        ("llama", "model.layers.0.self_attn.k_scale", ones(), None),
        ("llama", "model.layers.0.self_attn.o_proj.bias", zeros(), None),
        ("llama", "model.layers.0.self_attn.o_proj.bias", ones(), Some("`model.layers.0.self_attn.o_proj.bias`")),
        ("llama", "model.layers.0.mlp.down_proj.bias", ones(), Some("`model.layers.0.mlp.down_proj.bias`")),
        ("llama", "model.layers.0.self_attn.sinks", zeros(), Some("`model.layers.0.self_attn.sinks`")),
        (
            "llama",
            "model.layers.0.self_attn.q_norm.weight",
            ones(),
            Some("self_attn.q_norm.weight` is not part of `llama`"),
        ),
        ("llama", "model.layers.0.input_layernorm.bias", ones(), Some("input_layernorm.bias")),
        ("llama", "model.layers.0.self_attn.q_proj.lora_A.weight", ones(), Some("lora_A")),
        ("llama", "lm_head.bias", ones(), Some("`lm_head.bias`")),
        ("llama", "model.embed_positions.weight", ones(), Some("embed_positions")),
        ("llama", "vision_tower.blocks.0.weight", ones(), Some("vision_tower")),
        ("gemma3", "vision_tower.blocks.0.weight", ones(), None),
        ("gemma3", "multi_modal_projector.mm_input_projection_weight", ones(), None),
        ("gemma3", "model.layers.0.self_attn.sinks", ones(), Some("sinks")),
    ];
    for (family, name, tensor, expected) in cases {
        let (config, mut tensors) = tiny(family);
        tensors.insert(name.to_owned(), tensor);
        match (opened(&config, &tensors), expected) {
            (Ok(model), None) => assert_eq!(!model.notes.is_empty(), name.ends_with("k_scale"), "{name}"),
            (Err(error), Some(part)) => {
                assert!(error.contains(part) && error.contains("config.json") && error.contains("hint:"), "{error}");
            }
            (have, _) => panic!("{family}, {name}: {have:?}"),
        }
    }
}

#[test]
fn a_tied_model_keeps_a_head_of_its_own() {
    let (config, tensors) = tiny("llama-own-head");
    let model = opened(&config, &tensors).unwrap();
    assert!(!model.tied && model.output_matrix().tensor == "lm_head.weight");
    assert!(model.notes[0].contains("`lm_head.weight` differs from the embedding"), "{:?}", model.notes);
    // The same values, in another type too: tied, as transformers finds them equal.
    let mut same = tensors.clone();
    same.insert("lm_head.weight".to_owned(), tensors["model.embed_tokens.weight"].clone());
    assert!(opened(&config, &same).is_ok_and(|model| model.tied && model.notes.is_empty()));
    let (_, shape, bytes) = &tensors["model.embed_tokens.weight"];
    let wide = bytes.chunks_exact(2).flat_map(|b| [0, 0, b[0], b[1]]).collect();
    same.insert("lm_head.weight".to_owned(), (Dtype::F32, shape.clone(), wide));
    assert!(opened(&config, &same).is_ok_and(|model| model.tied));
}

/// A description of `name`'s configuration with other fields.
fn described(name: &str, change: &Value) -> Result<Transformer, String> {
    let mut config = config(name);
    config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    convert::describe(Path::new("config.json"), &config, 64).map_err(|error| error.to_string())
}

#[test]
fn fields_that_change_what_is_computed_are_read_or_refused() {
    let refused = [
        ("llama", json!({"logits_scaling": 8.0}), "`logits_scaling: 8.0`"),
        ("llama", json!({"embedding_multiplier": 12.0}), "`embedding_multiplier: 12.0`"),
        ("llama", json!({"residual_multiplier": 0.22}), "`residual_multiplier"),
        ("llama", json!({"attention_multiplier": 0.0078125}), "`attention_multiplier"),
        ("llama", json!({"no_rope_layers": [1, 1, 0]}), "`no_rope_layers: [1,1,0]`"),
        ("llama", json!({"clip_qkv": 8.0}), "`clip_qkv"),
        ("llama", json!({"qk_layernorm": true}), "`qk_layernorm: true`"),
        ("llama", json!({"num_local_experts": 8}), "`num_local_experts: 8`"),
        ("llama", json!({"is_causal": false}), "`is_causal: false`"),
        ("llama", json!({"sliding_window": 4096}), "`sliding_window: 4096`"),
        ("llama", json!({"layer_types": ["full_attention", "linear_attention"]}), "`layer_types"),
        ("llama", json!({"rope_interleaved": true}), "`rope_interleaved"),
        ("mistral", json!({"attention_bias": true}), "`attention_bias: true` changes what the model computes"),
        (
            "mistral",
            json!({"layer_types": ["full_attention", "sliding_attention"]}),
            "`layer_types` has layers that do not",
        ),
        ("qwen2", json!({"mlp_bias": true}), "`mlp_bias: true`"),
        ("qwen3", json!({"attn_logit_softcapping": 30.0}), "`attn_logit_softcapping"),
        ("qwen2", json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor: 0.5` is not supported for `qwen2`"),
        (
            "llama",
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
            "`partial_rotary_factor: 0.5` is not supported for `llama`",
        ),
        ("gemma2", json!({"norm_weight_offset": 0.5}), "`norm_weight_offset"),
        ("llama", json!({"rotary_dim": 8}), "`rotary_dim"),
        ("gemma2", json!({"query_pre_attn_scalar": 24, "mlp_bias": true}), "not supported for `gemma2`"),
        ("gemma3", json!({"text_config": {"quantization_config": {"bits": 4}}}), "within `text_config`"),
        ("gemma3", json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}), "`rope_theta: 1000000.0`"),
        ("llama", json!({"rope_scaling": "yarn"}), "`rope_scaling` is \"yarn\""),
        ("llama", json!({"rope_parameters": {"rope_type": "default", "factor": 8.0}}), "`factor: 8.0` of the rotary"),
        ("llama", json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta_fast": 9}}), "`beta_fast: 9`"),
        (
            "llama",
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_scaling": {"type": "linear", "factor": 2.0}}),
            "`rope_theta: 500000.0` of the second would be lost",
        ),
        // The kind of model is said before what it is quantised with.
        (
            "llama",
            json!({"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}),
            "`gpt_oss` is not",
        ),
        ("llama", json!({"model_type": "qwen3_5", "quantization_config": {"quant_method": "fp8"}}), "`qwen3_5` is not"),
    ];
    for (name, change, expected) in refused {
        let error = described(name, &change).map(|_| ()).expect_err(&change.to_string());
        assert!(
            error.contains(expected) && error.contains("hint:") || error.contains("text_config"),
            "{change}: {error}"
        );
    }
    // What says nothing, or what is done anyway, and what fine-tuners write.
    let accepted = [
        ("llama", json!({"logits_scaling": 1.0, "embedding_multiplier": 1, "num_experts": 0, "clip_qkv": null})),
        (
            "llama",
            json!({"is_causal": true, "layer_types": ["full_attention", "full_attention"], "sliding_window": null}),
        ),
        (
            "llama",
            json!({"unsloth_version": "2025.3", "_name_or_path": "x", "pretraining_tp": 2, "attention_dropout": 0.1}),
        ),
        ("llama", json!({"partial_rotary_factor": 1.0, "rope_theta": 1e4, "architectures": ["LlamaForCausalLM"]})),
        ("qwen2", json!({"attention_bias": true, "use_sliding_window": false, "max_window_layers": 28})),
        ("gemma2", json!({"hidden_act": "gelu", "cache_implementation": "hybrid"})),
        ("phi3", json!({"lm_head_bias": false, "full_attn_mod": 1, "interpolate_factor": 1, "resid_pdrop": 0.1})),
    ];
    for (name, change) in accepted {
        let model = described(name, &change).unwrap();
        assert!(model.notes.is_empty(), "{change}: {:?}", model.notes);
    }
    let model = described("llama", &json!({"favourite_colour": "blue", "x": 0})).unwrap();
    assert!(model.notes.len() == 1 && model.notes[0].contains("`favourite_colour: \"blue\"`"), "{:?}", model.notes);
}

/// `fields.json` lists what transformers 5.24 may read of each configuration.
#[test]
fn every_field_that_transformers_reads_is_read_harmless_or_refused() {
    let fields: BTreeMap<String, Vec<String>> =
        serde_json::from_str(&fs::read_to_string(data("fields.json")).unwrap()).unwrap();
    let base = |kind: &str| if kind == "gemma3_text" { "gemma3".to_owned() } else { kind.to_owned() };
    assert_eq!(fields.len(), 7);
    for (kind, fields) in fields {
        assert!(fields.len() > 30, "{kind}: {fields:?}");
        for field in fields {
            // No field's usual value: what is read may refuse it.
            let model = described(&base(&kind), &json!({(field.as_str()): "something else"}));
            let notes = model.map(|model| model.notes).unwrap_or_default();
            assert!(!notes.iter().any(|note| note.contains("nobody here knows")), "{kind}: {notes:?}");
        }
    }
}

/// With `trust_remote_code` transformers runs what `auto_map` names; without, the class of the `model_type`.
#[test]
fn code_of_the_repository_s_own_is_said_or_refused() {
    let with = |name: &str, map: Value| described(name, &json!({"auto_map": map})).map(|model| model.notes.clone());
    let phi =
        json!({"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"});
    let said = [
        ("phi3", phi, "modeling_phi3.Phi3ForCausalLM"),
        (
            "qwen2",
            json!({"AutoModelForCausalLM": "org/code--modeling_qwen.Qwen2ForCausalLM"}),
            "org/code--modeling_qwen",
        ),
        (
            "llama",
            json!({"AutoModelForSequenceClassification": "m.Reward"}),
            "`AutoModelForSequenceClassification: m.Reward`",
        ),
        ("llama", json!({"AutoTokenizer": ["tokenization_x.X", null]}), "`AutoTokenizer: [\"tokenization_x.X\",null]`"),
    ];
    for (name, map, expected) in said {
        let notes = with(name, map).unwrap();
        assert!(notes.len() == 1 && notes[0].contains(expected) && notes[0].contains("is not run"), "{notes:?}");
        assert!(notes[0].contains(&format!("computed as the `{name}` of transformers")), "{notes:?}");
    }
    assert!(with("llama", json!({})).unwrap().is_empty());
    for class in ["modeling_bitnet.BitnetForCausalLM", "m.Qwen2ForCausalLM", "LlamaForCausalLM.x\nerror: y"] {
        let error = with("llama", json!({"AutoModelForCausalLM": class})).unwrap_err();
        let named = error.contains(&class.replace('\n', "\\n")) && error.contains("the repository's own code");
        assert!(named && error.contains("hint: take a release"), "{error}");
    }
}

#[test]
fn a_mixture_is_called_one() {
    let cases = [
        (
            "llama",
            json!({"model_type": "mixtral", "num_local_experts": 8}),
            "model_type `mixtral`, `num_local_experts: 8`",
        ),
        ("qwen3", json!({"model_type": "qwen3_moe"}), "model_type `qwen3_moe`)"),
        ("qwen2", json!({"num_experts": 60}), "model_type `qwen2`, `num_experts: 60`"),
        ("llama", json!({"model_type": "x", "text_config": {"n_routed_experts": 64}}), "`n_routed_experts: 64`"),
    ];
    for (name, change, expected) in cases {
        let error = described(name, &change).map(|_| ()).expect_err(expected);
        assert!(error.contains("mixture of experts is not supported") && error.contains(expected), "{error}");
        assert!(error.contains("hint: take a dense model"), "{error}");
    }
}

/// Right values: `configuration_*.py` of transformers 5.24; the longest sequence as Qwen's cards say.
#[test]
fn what_is_left_out_is_transformers_default_and_yarn_reaches_its_factor() {
    let without = |name: &str, fields: &[&str]| {
        let mut config = config(name);
        fields.iter().for_each(|field| drop(config.as_object_mut().unwrap().remove(*field)));
        convert::describe(Path::new("config.json"), &config, 64).unwrap()
    };
    assert!(without("mistral", &["sliding_window"]).layers.iter().all(|layer| layer.window == Some(4096)));
    assert_eq!(without("gemma2", &["sliding_window"]).layers[0].window, Some(4096));
    assert_eq!(without("phi3-partial", &["rms_norm_eps"]).norm_eps, 1e-5);
    assert_eq!(without("qwen3", &["head_dim"]).head_dim, 128);
    assert_eq!(without("qwen2", &["max_position_embeddings"]).max_position, 32_768);
    let yarn =
        |original: usize| json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": original});
    let reaches = |name: &str, change: Value| described(name, &change).unwrap().max_position;
    assert_eq!(reaches("qwen3", json!({"max_position_embeddings": 40_960, "rope_scaling": yarn(32_768)})), 131_072);
    assert_eq!(reaches("qwen2", json!({"max_position_embeddings": 32_768, "rope_scaling": yarn(32_768)})), 131_072);
    assert_eq!(reaches("qwen2", json!({"max_position_embeddings": 131_072, "rope_scaling": yarn(32_768)})), 131_072);
    let scaling = json!({"type": "yarn", "factor": 4.0});
    assert_eq!(
        reaches("qwen2", json!({"max_position_embeddings": 160, "rope_parameters": null, "rope_scaling": scaling})),
        640
    );
    assert_eq!(reaches("qwen2-yarn", json!({})), 64);
}

#[test]
fn every_field_of_a_quantization_config_is_known() {
    let with = |base: Value, more: Value| {
        let mut config = base;
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Packings::read(&config)
    };
    let gptq = || json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true, "sym": true});
    let awq = || json!({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "gemm"});
    let tensors = |group: Value, weights: Value| {
        let mut all = json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": true});
        all.as_object_mut().unwrap().extend(weights.as_object().unwrap().clone());
        let mut one = json!({"targets": ["Linear"], "weights": all, "input_activations": null});
        one.as_object_mut().unwrap().extend(group.as_object().unwrap().clone());
        json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": one}})
    };
    let plain = || tensors(json!({}), json!({}));
    let refused = [
        (gptq(), json!({"checkpoint_format": "marlin"}), "checkpoint_format: \"marlin\""),
        (gptq(), json!({"is_marlin_format": true}), "is_marlin_format"),
        (gptq(), json!({"pack_dtype": "int16"}), "pack_dtype"),
        (gptq(), json!({"adapter": {"name": "eora"}}), "adapter"),
        (gptq(), json!({"rotation": "hadamard"}), "rotation: \"hadamard\""),
        (gptq(), json!({"act_bits": 8}), "act_bits: 8"),
        (gptq(), json!({"extra_config": {"model.layers.0": {"bits": 8}}}), "extra_config"),
        (awq(), json!({"version": "gemv"}), "layout `gemv`"),
        (awq(), json!({"zero_point": false}), "without zero points"),
        (awq(), json!({"something_new": 1}), "something_new: 1"),
        (plain(), json!({"sparsity_config": {"format": "sparse-24-bitmask"}}), "sparse"),
        (plain(), json!({"transform_config": {"config_groups": {"R1": {}}}}), "transform_config"),
        (plain(), json!({"something_new": [1]}), "something_new: [1]"),
        (tensors(json!({"output_activations": {"num_bits": 8}}), json!({})), json!({}), "quantised activations"),
        (tensors(json!({"something_new": 1}), json!({})), json!({}), "something_new"),
        (tensors(json!({}), json!({"block_structure": "2x4"})), json!({}), "block_structure"),
        (tensors(json!({}), json!({"dynamic": true})), json!({}), "dynamic"),
        (plain(), json!({"config_groups": {}}), "without a scheme"),
    ];
    for (base, more, expected) in refused {
        let error = with(base, more.clone()).expect_err(expected);
        assert!(error.contains(expected), "{more}: {error}");
    }
    // As packages write them.
    let accepted = [
        (
            gptq(),
            json!({"damp_percent": 0.1, "true_sequential": true, "static_groups": false, "model_name_or_path": "x",
                        "model_file_base_name": "model", "lm_head": false, "checkpoint_format": "gptq", "pack_dtype": "int32",
                        "meta": {"quantizer": ["gptqmodel:2.0"], "damp_auto_increment": 0.0025}, "dynamic": {}}),
        ),
        (
            gptq(),
            json!({"provider": "auto-round", "autoround_version": "0.4", "iters": 200, "data_type": "int", "act_bits": 16}),
        ),
        (
            awq(),
            json!({"modules_to_not_convert": ["visual"], "backend": "autoawq", "do_fuse": false, "exllama_config": null}),
        ),
        (
            plain(),
            json!({"ignore": ["lm_head"], "quantization_status": "compressed", "global_compression_ratio": 1.9,
                         "kv_cache_scheme": null, "sparsity_config": {}, "transform_config": {}, "version": "0.12"}),
        ),
        (plain(), json!({"sparsity_config": {"format": "dense", "global_sparsity": 0.1}})),
        (
            tensors(
                json!({"output_activations": null, "format": "pack-quantized"}),
                json!({"actorder": "weight",
            "observer": "mse", "observer_kwargs": {"a": 1}, "dynamic": false, "block_structure": null}),
            ),
            json!({}),
        ),
    ];
    for (base, more) in accepted {
        with(base, more.clone()).map_err(|error| format!("{more}: {error}")).unwrap();
    }
}

#[test]
fn infinities_as_python_writes_them_are_read() {
    let (config, tensors) = tiny("llama");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.safetensors"), safetensors_of(&tensors)).unwrap();
    let text = config.to_string();
    let with = |more: &str| {
        fs::write(folder.path().join("config.json"), format!("{},{more}}}", text.trim_end_matches('}'))).unwrap();
        open(folder.path())
    };
    let error = with(r#""model_type": "nemotron_h", "time_step_limit": [0.0, Infinity]"#).unwrap_err();
    assert!(error.contains("model_type `nemotron_h` is not supported"), "{error}");
    assert!(with(r#""note": "NaN, -Infinity", "attention_dropout": NaN"#).is_ok());
    let error = with(r#""rms_norm_eps": NaN"#).unwrap_err();
    assert!(error.contains("`rms_norm_eps` is \"NaN\", which is no number"), "{error}");
}

#[test]
fn folders_are_told_apart() {
    type Change = fn(&Path);
    let accepted: [(&str, Change); 6] = [
        ("GPTQ's name", |folder| {
            fs::rename(folder.join("model.safetensors"), folder.join("gptq_model-4bit-128g.safetensors")).unwrap();
        }),
        ("a variant beside it", |folder| {
            fs::write(folder.join("model.fp16.safetensors"), "damaged").unwrap();
        }),
        ("a variant alone", |folder| {
            fs::rename(folder.join("model.safetensors"), folder.join("model.bf16.safetensors")).unwrap();
        }),
        ("Mistral's copy", |folder| fs::write(folder.join("consolidated.safetensors"), "damaged").unwrap()),
        ("another model within", |folder| {
            fs::create_dir(folder.join("1_Pooling")).unwrap();
            fs::write(folder.join("1_Pooling/config.json"), r#"{"pooling_mode_cls_token": true}"#).unwrap();
            fs::write(folder.join("1_Pooling/model.safetensors"), "damaged").unwrap();
        }),
        ("an adapter beside it", |folder| {
            fs::write(folder.join("adapter_config.json"), r#"{"base_model_name_or_path": "org/base"}"#).unwrap();
            fs::write(folder.join("adapter_model.safetensors"), "damaged").unwrap();
        }),
    ];
    let (config, tensors) = tiny("llama");
    let make = || {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        fs::write(folder.path().join("model.safetensors"), safetensors_of(&tensors)).unwrap();
        folder
    };
    for (what, change) in accepted {
        let folder = make();
        change(folder.path());
        let model = open(folder.path()).map_err(|error| format!("{what}: {error}")).unwrap();
        assert_eq!(model.notes.iter().any(|note| note.contains("org/base")), what.contains("adapter"), "{what}");
    }
    let refused: [(&str, Change, &[&str]); 5] = [
        (
            "a LoRA",
            |folder| {
                fs::remove_file(folder.join("config.json")).unwrap();
                fs::rename(folder.join("model.safetensors"), folder.join("adapter_model.safetensors")).unwrap();
                let text = r#"{"peft_type": "LORA", "base_model_name_or_path": "speakleash/Bielik-11B-v2", "lora_alpha": NaN}"#;
                fs::write(folder.join("adapter_config.json"), text).unwrap();
            },
            &["adapter_config.json", "an adapter (LoRA) for `speakleash/Bielik-11B-v2`", "merge"],
        ),
        (
            "Mistral's form alone",
            |folder| {
                fs::rename(folder.join("model.safetensors"), folder.join("consolidated.safetensors")).unwrap();
            },
            &["Mistral's own form"],
        ),
        (
            "two variants",
            |folder| {
                fs::copy(folder.join("model.safetensors"), folder.join("model.fp16.safetensors")).unwrap();
                fs::rename(folder.join("model.safetensors"), folder.join("model.bf16.safetensors")).unwrap();
            },
            &["which of these", "model.fp16.safetensors", "model.bf16.safetensors"],
        ),
        (
            "TensorFlow's",
            |folder| fs::rename(folder.join("model.safetensors"), folder.join("tf_model.h5")).unwrap(),
            &["TensorFlow's checkpoints are not read", "save_pretrained"],
        ),
        (
            "a configuration in another folder alone",
            |folder| {
                fs::create_dir(folder.join("1_Pooling")).unwrap();
                fs::rename(folder.join("config.json"), folder.join("1_Pooling/config.json")).unwrap();
            },
            &["config.json is missing"],
        ),
    ];
    for (what, change, expected) in refused {
        let folder = make();
        change(folder.path());
        let error = open(folder.path()).map(|_| ()).expect_err(what);
        assert!(expected.iter().all(|part| error.contains(part)), "{what}: {error}");
    }
}

#[test]
fn a_repository_is_judged_before_its_weights_come() {
    let (config, tensors) = tiny("llama");
    let (config, weights) = (config.to_string().into_bytes(), safetensors_of(&tensors));
    let base = || -> BTreeMap<&'static str, Vec<u8>> {
        BTreeMap::from([
            ("config.json", config.clone()),
            ("model.safetensors", weights.clone()),
            ("tokenizer.json", support::tokenizer().into_bytes()),
            ("1_Pooling/config.json", b"{\"word_embedding_dimension\": 1024}".to_vec()),
        ])
    };
    type Change<'a> = &'a dyn Fn(&mut BTreeMap<&str, Vec<u8>>);
    let set = |config: &Value, field: &str, value: Value| {
        let mut config = config.clone();
        config[field] = value;
        config.to_string().into_bytes()
    };
    let (plain, _) = tiny("llama");
    // What is changed, the recipe's own lines, and what is said.
    let cases: [(Change<'_>, &str, &[&str]); 10] = [
        (
            &|files| {
                files.remove("tokenizer.json");
                files.insert("tokenizer.model", b"x".to_vec());
            },
            "",
            &["no tokenizer.json, only tokenizer.model", "save_pretrained"],
        ),
        (&|files| drop(files.insert("tokenizer.json", b"{}".to_vec())), "", &["tokenizer.json:"]),
        (
            &|files| drop(files.insert("chat_template.jinja", b"{% for %}".to_vec())),
            "",
            &["chat_template.jinja: chat template"],
        ),
        (
            &|files| {
                files.remove("model.safetensors");
                files.remove("config.json");
                let text = br#"{"peft_type": "PREFIX_TUNING", "base_model_name_or_path": "org/base"}"#;
                files.insert("adapter_config.json", text.to_vec());
                files.insert("adapter_model.safetensors", weights.clone());
            },
            "",
            &["an adapter (PREFIX_TUNING) for `org/base`", "hint: build `org/base` itself"],
        ),
        (
            &|files| {
                let mut config = plain.clone();
                config["model_type"] = json!("mixtral");
                config["num_local_experts"] = json!(8);
                files.insert("config.json", config.to_string().into_bytes());
            },
            "",
            &["mixture of experts is not supported (model_type `mixtral`, `num_local_experts: 8`)", "dense"],
        ),
        (
            &|files| {
                files.remove("model.safetensors");
                files.insert("pytorch_model.bin", weights.clone());
            },
            "",
            &[".bin checkpoints are not read"],
        ),
        (
            &|files| {
                files.remove("model.safetensors");
                files.insert("a-Q4_K_M.gguf", weights.clone());
            },
            "",
            &["there are a-Q4_K_M.gguf", "`file:`"],
        ),
        (
            &|files| drop(files.insert("config.json", set(&plain, "logits_scaling", json!(8.0)))),
            "",
            &["`logits_scaling: 8.0`"],
        ),
        (&|_| {}, "max_input_len: 300\n", &["300 prompt and", "more than the 256 positions"]),
        (
            &|files| {
                let config = set(&plain, "model_type", json!("gpt_oss"));
                files.insert("config.json", config);
                files.remove("tokenizer.json");
                files.remove("model.safetensors");
            },
            "",
            &["model_type `gpt_oss` is not supported"],
        ),
    ];
    let fetch = |files: &BTreeMap<&str, Vec<u8>>, more: &str| {
        let scratch = tempfile::tempdir().unwrap();
        let files: Vec<(&str, Vec<u8>, bool)> =
            files.iter().map(|(name, bytes)| (*name, bytes.clone(), name.ends_with("safetensors"))).collect();
        let hub = Hub::start(&files);
        let lengths = if more.is_empty() { "max_input_len: 24\n" } else { more };
        let text =
            format!("version: 1\nname: m\nkind: llm\nsource: {{ hub: org/model }}\nmax_output_len: 8\n{lengths}");
        fs::write(scratch.path().join("m.yaml"), text).unwrap();
        let (code, _, stderr) =
            output(watus(scratch.path()).env("HF_ENDPOINT", &hub.endpoint).args(["fetch", "m.yaml"]));
        (code, stderr, support::tree(scratch.path()))
    };
    for (change, more, expected) in cases {
        let mut files = base();
        change(&mut files);
        let (code, stderr, tree) = fetch(&files, more);
        assert!(code != 0 && expected.iter().all(|part| stderr.contains(part)), "{expected:?}: {stderr}");
        assert!(!tree.iter().any(|name| name.ends_with("safetensors")), "{tree:?}");
    }
    // One of several copies comes, and no other folder's files.
    let mut files = base();
    files.insert("model.fp16.safetensors", weights.clone());
    files.insert("consolidated.safetensors", weights.clone());
    let (code, stderr, tree) = fetch(&files, "");
    assert_eq!(code, 0, "{stderr}");
    let has = |name: &str| tree.iter().any(|path| path.contains("snapshots") && path.ends_with(name));
    assert!(has("/model.safetensors") && has("/tokenizer.json"), "{tree:?}");
    assert!(!has("fp16.safetensors") && !has("consolidated.safetensors") && !has("1_Pooling/config.json"), "{tree:?}");
}

#[test]
fn the_whole_model_as_onnx_is_judged_as_a_build_is() {
    let tokenizer = support::tokenizer();
    let template = "{{ messages[0]['content'] }}";
    // tokenizer.json, chat_template.jinja, and what is said.
    let cases: [(Option<&str>, Option<&str>, &str); 5] = [
        (Some(&tokenizer), Some(template), ""),
        (Some(&tokenizer), None, "warning: m: the model has no chat template"),
        (Some(&tokenizer), Some("{% for %}"), "chat_template.jinja: chat template"),
        (Some("{}"), Some(template), "tokenizer.json:"),
        (None, Some(template), "no tokenizer.json"),
    ];
    for (tokenizer, template, said) in cases {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("source");
        fs::create_dir(&folder).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(data("llama").join(name), folder.join(name)).unwrap();
        }
        for (name, text) in [("tokenizer.json", tokenizer), ("chat_template.jinja", template)] {
            if let Some(text) = text {
                fs::write(folder.join(name), text).unwrap();
            }
        }
        let recipe = "version: 1\nname: m\nkind: llm\nsource: { path: source }\nmax_input_len: 24\nmax_output_len: 8\n";
        fs::write(scratch.path().join("m.yaml"), recipe).unwrap();
        let (code, _, stderr) = output(watus(scratch.path()).args(["build", "--emit", "onnx", "m.yaml"]));
        let is_refused = !said.is_empty() && !said.starts_with("warning");
        assert_eq!(code != 0, is_refused, "{said}: {stderr}");
        assert!(
            stderr.contains(said) && stderr.contains("warning:") == said.starts_with("warning"),
            "{said}: {stderr}"
        );
        assert_eq!(scratch.path().join("engines/m-onnx/model.onnx").exists(), !is_refused, "{said}: {stderr}");
    }
}
