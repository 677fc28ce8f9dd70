//! docs/formats.md: what can be read, rendered from the tables by which the program reads it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use watus_build::backend::tensorrt::{Family, Version};
use watus_build::checkpoint::{ARCHITECTURES, Encoding, Packings};
use watus_build::convert::families;
use watus_build::convert::vision::{YOLO_HEADS, classifier_families, yolo_blocks, yolo_by_onnx};
use watus_build::onnx::{INTEGER_OPERATORS, NEWEST_OPSET};
use watus_build::text::{refused_vocabularies, vocabulary_names};
use watus_build::vision::FORMATS;

/// Names as code, between commas.
fn code<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Rows of a table of two columns.
fn rows(of: impl IntoIterator<Item = (String, String)>) -> String {
    of.into_iter().map(|(left, right)| format!("| {left} | {right} |\n")).collect()
}

fn encodings() -> String {
    rows(Encoding::of_gguf().map(|encoding| {
        let (elements, bytes) = encoding.block();
        let kept = match (encoding.dtype(), encoding.stays_packed()) {
            (Some(_), _) => "floats",
            (None, true) => "stays packed",
            (None, false) => "widened to floats",
        };
        (format!("`{encoding}`, {} bits", 8.0 * bytes as f64 / elements as f64), kept.to_owned())
    }))
}

/// What configurations of quantised checkpoints say, tried on who reads them.
fn packings() -> String {
    let gptq = |bits: u32, more: Value| {
        let mut config = json!({"quant_method": "gptq", "bits": bits, "group_size": 128, "sym": true});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let awq = |bits: u32, version: &str| json!({"quant_method": "awq", "bits": bits, "group_size": 128, "zero_point": true, "version": version});
    let tensors = |format: &str, bits: u32, strategy: &str| {
        let group = (strategy == "group").then_some(128);
        let weights =
            json!({"num_bits": bits, "type": "int", "strategy": strategy, "group_size": group, "symmetric": true});
        let groups = json!({"group_0": {"targets": ["Linear"], "weights": weights}});
        json!({"quant_method": "compressed-tensors", "format": format, "config_groups": groups})
    };
    let mut cases = vec![
        ("GPTQ, 4 bits", gptq(4, json!({}))),
        ("GPTQ, 8 bits", gptq(8, json!({}))),
        ("GPTQ, act-order", gptq(4, json!({"desc_act": true}))),
        ("GPTQ, second version", gptq(4, json!({"checkpoint_format": "gptq_v2"}))),
        ("GPTQ, Marlin's layout", gptq(4, json!({"checkpoint_format": "marlin"}))),
        ("GPTQ, 2 bits", gptq(2, json!({}))),
        ("GPTQ, 3 bits", gptq(3, json!({}))),
        ("AWQ, GEMM, 4 bits", awq(4, "gemm")),
        ("AWQ, GEMM, 8 bits", awq(8, "gemm")),
        ("AWQ, GEMV", awq(4, "gemv")),
        ("compressed-tensors, 4 bits in groups (W4A16)", tensors("pack-quantized", 4, "group")),
        ("compressed-tensors, 8 bits in groups (W8A16)", tensors("pack-quantized", 8, "group")),
        ("compressed-tensors, a scale for each output", tensors("pack-quantized", 8, "channel")),
        ("compressed-tensors, another scheme for some matrices", {
            let mut config = tensors("pack-quantized", 4, "group");
            let weights = json!({"num_bits": 8, "type": "int", "strategy": "group", "group_size": 128});
            config["config_groups"]["group_1"] = json!({"targets": ["re:.*lm_head$"], "weights": weights});
            config
        }),
        ("compressed-tensors, 8-bit activations (W8A8)", tensors("int-quantized", 8, "channel")),
        ("compressed-tensors, FP8", tensors("float-quantized", 8, "channel")),
    ];
    let others = ["bitsandbytes", "fp8", "mxfp4", "aqlm", "hqq", "quark", "torchao"];
    cases.extend(others.map(|method| (method, json!({"quant_method": method, "bits": 4}))));
    rows(cases.into_iter().map(|(name, config)| {
        let read = Packings::read(&config);
        (name.to_owned(), read.map_or_else(|why| format!("refused: {why}"), |_| "read".to_owned()))
    }))
}

fn language_models() -> String {
    let families = rows(families().into_iter().map(|(kind, models)| (format!("`{kind}`"), models.to_owned())));
    let architectures = code(ARCHITECTURES);
    let mut names = vocabulary_names();
    names.sort_unstable();
    let refused = refused_vocabularies().iter().map(|(kind, what)| format!("`{kind}` ({what})"));
    let refused = refused.collect::<Vec<_>>().join(", ");
    format!(
        "## Language models\n\n\
         From safetensors, by config.json's `model_type`; mixtures of experts are refused:\n\n\
         | `model_type` | |\n|---|---|\n{families}\n\
         From GGUF, in one file or in parts, by `general.architecture`: {architectures}.\n\n\
         Weights in GGUF, with bits a weight and what they are in device memory:\n\n\
         | encoding | |\n|---|---|\n{}\n\
         Weights in safetensors are floats (float32, float16, bfloat16) or what a `quantization_config` says, and those \
         stay packed where a layer's matrices are alike ([design](design/language-models.md)):\n\n\
         | | |\n|---|---|\n{}\n\
         Vocabularies: any tokenizer.json. In GGUF pieces of characters (`tokenizer.ggml.model` of `llama`, SentencePiece's BPE), \
         and pieces of bytes (`gpt2`) by these {} names in `tokenizer.ggml.pre`: {}.\n\n\
         Refused by name, in GGUF: {refused}.\n\n",
        encodings(),
        packings(),
        names.len(),
        code(names.iter().copied())
    )
}

fn pictures() -> String {
    let heads = code(YOLO_HEADS.map(|(class, _)| class));
    let exported = |wanted: bool| {
        let of = yolo_by_onnx().iter().filter(move |(.., read)| *read == wanted);
        of.map(|(class, what, _)| format!("`{class}` ({what})")).collect::<Vec<_>>().join(", ")
    };
    format!(
        "## Pictures\n\n\
         Classifiers from Hugging Face folders, by `model_type`: {}.\n\n\
         YOLO from Ultralytics' `.pt` files: models that end in {heads}, of these modules and `Concat`: {}.\n\n\
         Exported to ONNX by Ultralytics and built with `kind: yolo`: {}.\n\n\
         Exported to ONNX and built with `kind: onnx`: {}.\n\n\
         Files: {FORMATS}.\n\n",
        code(classifier_families()),
        code(yolo_blocks()),
        exported(true),
        exported(false)
    )
}

fn onnx() -> String {
    let enterprise = [(8, 5), (8, 6), (10, 3), (10, 13), (10, 16), (11, 4)].map(|(a, b)| (Family::Enterprise, a, b));
    let rtx = [(1, 4), (1, 7)].map(|(a, b)| (Family::Rtx, a, b));
    let versions = enterprise.into_iter().chain(rtx).map(|(family, major, minor)| {
        let name = if family == Family::Rtx { "TensorRT-RTX" } else { "TensorRT" };
        let version = Version { family, major, minor, patch: 0 };
        (format!("{name} {major}.{minor}"), version.parser().newest.to_string())
    });
    format!(
        "## ONNX\n\n\
         Float models with their data inside or beside. Opsets up to {NEWEST_OPSET}: what is newer than the parser knows is \
         written in its newest, or refused by the node that has no such form.\n\n\
         | | newest opset of its parser |\n|---|---|\n{}\n\
         Models that come quantised are refused: those with `QuantizeLinear`, `QLinear…` or {}.\n",
        rows(versions),
        code(INTEGER_OPERATORS.iter().copied())
    )
}

#[test]
fn the_list_of_formats_is_current() {
    let current = format!(
        "# What can be read\n\n\
         Written by `UPDATE_DOCS=1 cargo test --test formats` from the tables by which the program reads it. What is not here is \
         refused by name.\n\n{}{}{}",
        language_models(),
        pictures(),
        onnx()
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/formats.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &current).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let differs = kept.lines().zip(current.lines()).find(|(kept, current)| kept != current);
    assert!(kept == current, "run UPDATE_DOCS=1 cargo test --test formats; first difference: {differs:?}");
}
