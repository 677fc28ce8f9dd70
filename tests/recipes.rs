//! Every shipped recipe parses and plans, and the schema for editors is the one the code accepts.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use watus_build::recipe::{self, Plan, SourcePlan};

fn shipped() -> Vec<std::path::PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect()
}

#[test]
fn shipped_recipes_are_valid() {
    assert!(shipped().len() >= 2);
    for path in shipped() {
        let recipe = recipe::load(&path).unwrap_or_else(|error| panic!("{error}"));
        let plan = Plan::new(&path, &recipe);
        assert_eq!(Some(plan.name.as_str()), path.file_stem().and_then(|stem| stem.to_str()), "named as its file");
        for image in &plan.verify.images {
            if let SourcePlan::Path { path, .. } = image {
                assert!(path.exists(), "{}", path.display());
            }
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# yaml-language-server: $schema=recipe.schema.json"), "{}", path.display());
    }
}

#[test]
fn schema_file_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/recipe.schema.json");
    let current = recipe::json_schema();
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(&path, &current).unwrap();
    }
    assert!(fs::read_to_string(&path).unwrap() == current, "run UPDATE_SCHEMA=1 cargo test --test recipes");
}

#[test]
fn plans_are_complete_without_defaults_in_the_recipe() {
    let path = Path::new("folder/r.yaml");
    let text = "version: 1\nname: r\nkind: llm\nsource: { hub: o/n }\n";
    let plan = serde_json::to_value(Plan::new(path, &recipe::parse(path, text).unwrap())).unwrap();
    assert_eq!(plan["source"]["revision"], "main");
    assert_eq!(plan["build"]["precision"], "fp16");
    assert_eq!(plan["verify"]["tolerance"], 1e-2);
    // The limits of the TensorRT-LLM set-up this replaces.
    let limits = ["max_batch_size", "max_input_len", "max_output_len"].map(|field| plan["llm"][field].as_u64());
    assert_eq!(limits, [Some(4), Some(2048), Some(512)]);
    // The output matrix, and the limits of what is lost, go by the bits.
    let (close, wide) = (json!([0.02, 1.03]), json!([0.3, 1.3]));
    let cases = [
        ("precision: fp16", Value::Null, &wide),
        ("precision: int8", Value::Null, &close),
        ("precision: int4", json!("int8"), &wide),
        ("precision: int4, head: fp16", Value::Null, &wide),
        ("precision: int4, head: int4", json!("int4"), &wide),
        ("precision: int8, head: int4", json!("int4"), &wide),
        ("head: int8", json!("int8"), &close),
        ("head: int4", json!("int4"), &wide),
        ("head: fp16, kv_cache: int8", Value::Null, &close),
        ("precision: bf16, head: bf16", Value::Null, &wide),
    ];
    for (build, head, quality) in cases {
        let text = format!("version: 1\nname: r\nkind: llm\nsource: {{ hub: o/n }}\nbuild: {{ {build} }}\n");
        let plan = serde_json::to_value(Plan::new(path, &recipe::parse(path, &text).unwrap())).unwrap();
        assert_eq!((&plan["build"]["head"], &plan["verify"]["quality"]), (&head, quality), "{build}");
        // What is as it was before there was a choice has the key that it had.
        assert_eq!(plan["build"].as_object().unwrap().contains_key("head"), !head.is_null(), "{build}");
    }
    let text = "version: 1\nname: r\nkind: onnx\nsource: { hub: o/n }\n";
    let plan = serde_json::to_value(Plan::new(path, &recipe::parse(path, text).unwrap())).unwrap();
    assert_eq!((&plan["build"]["precision"], &plan["verify"]["tolerance"]), (&"fp32".into(), &1e-3.into()));
}
