//! Vocabularies of GGUF files against llama.cpp, the models' own tokenizers and SentencePiece (`tests/data/vocab/make.py`).
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::Value;
use tokenizers::Tokenizer;
use watus_build::checkpoint::{Checkpoint, Gguf, MetadataValue};
use watus_build::text::{check_vocabulary, text_files, vocabulary_names};

fn data(name: &str) -> PathBuf {
    support::repository().join("tests/data/vocab").join(name)
}

fn gguf(name: &str) -> Gguf {
    Checkpoint::open(&[data(name)]).unwrap().gguf.unwrap()
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(data("expected.json")).unwrap()).unwrap()
}

fn set(gguf: &mut Gguf, key: &str, value: MetadataValue) {
    gguf.metadata.insert(format!("tokenizer.ggml.{key}"), value);
}

fn tokenizer_json(gguf: &Gguf) -> String {
    let files = text_files(&data("model.gguf"), gguf, &Value::Null).unwrap();
    files.into_iter().find(|(name, _)| name == "tokenizer.json").unwrap().1
}

fn open(json: &str) -> Tokenizer {
    Tokenizer::from_bytes(json).unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str, around: bool) -> Vec<u32> {
    tokenizer.encode(text, around).unwrap().get_ids().to_vec()
}

/// As make.py writes tokens: long lists by their number and hash.
fn short(ids: &[u32]) -> Value {
    if ids.len() <= 40 {
        return ids.into();
    }
    let words: Vec<String> = ids.iter().map(u32::to_string).collect();
    let digest = watus_build::artifact::sha256(words.join(" ").as_bytes());
    format!("{} {}", ids.len(), &digest[..16]).into()
}

/// A text, or one that is repeated.
fn spelled(string: &Value) -> String {
    match string.as_str() {
        Some(text) => text.to_owned(),
        None => string[0].as_str().unwrap().repeat(usize::try_from(string[1].as_u64().unwrap()).unwrap()),
    }
}

#[test]
fn every_name_cuts_as_its_peer() {
    let expected = expected();
    let texts: Vec<String> = expected["strings"].as_array().unwrap().iter().map(spelled).collect();
    let mut gguf = gguf("bytes.gguf");
    let (mut made, mut wrong, mut names) = (HashMap::<String, Vec<Value>>::new(), Vec::new(), Vec::new());
    for group in expected["bytes"]["groups"].as_array().unwrap() {
        for name in group["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()) {
            set(&mut gguf, "pre", MetadataValue::Text(name.to_owned()));
            let json = tokenizer_json(&gguf);
            let begins = json.contains("TemplateProcessing");
            assert_eq!(begins, group["bos"], "{name}");
            let answers = made.entry(json.clone()).or_insert_with(|| {
                let tokenizer = open(&json);
                texts.iter().map(|text| short(&ids(&tokenizer, text, false))).collect()
            });
            for (at, answer) in answers.iter().enumerate() {
                let variant = usize::try_from(group["of"][at].as_u64().unwrap()).unwrap();
                let want = &expected["bytes"]["answers"][at][variant];
                if answer != want {
                    wrong.push(format!("{name}: {:?}: {answer}, not {want}", texts[at]));
                }
            }
            names.push(name.to_owned());
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    names.sort();
    let mut known = vocabulary_names();
    known.sort_unstable();
    assert_eq!(names, known);
}

#[test]
fn pieces_are_merged_as_sentencepiece_merges_them() {
    let expected = &expected()["pieces"];
    let texts: Vec<&str> = expected["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    for (name, prefix, extra) in [("prefix", true, false), ("plain", false, false), ("trimmed", true, true)] {
        let mut gguf = gguf("pieces.gguf");
        set(&mut gguf, "add_space_prefix", MetadataValue::Bool(prefix));
        set(&mut gguf, "remove_extra_whitespaces", MetadataValue::Bool(extra));
        let tokenizer = open(&tokenizer_json(&gguf));
        let want = expected[name].as_array().unwrap();
        assert!(want.len() > 80);
        for (text, want) in texts.iter().zip(want) {
            assert_eq!(&short(&ids(&tokenizer, text, false)), want, "{name}: {text:?}");
        }
        // A first token unless the file says otherwise.
        assert_eq!(ids(&tokenizer, "a", true)[0], 1);
    }
}

#[test]
fn what_surrounds_a_text_is_what_the_file_says() {
    let mut gguf = gguf("bytes.gguf");
    let plain = ids(&open(&tokenizer_json(&gguf)), "a", true);
    let (bos, eos) = (gguf.integer("tokenizer.ggml.bos_token_id"), gguf.integer("tokenizer.ggml.eos_token_id"));
    let token = |id: Option<i64>| u32::try_from(id.unwrap()).unwrap();
    set(&mut gguf, "add_eos_token", MetadataValue::Bool(true));
    assert_eq!(ids(&open(&tokenizer_json(&gguf)), "a", true), [&plain[..], &[token(eos)]].concat());
    set(&mut gguf, "add_bos_token", MetadataValue::Bool(true));
    assert_eq!(ids(&open(&tokenizer_json(&gguf)), "a", true), [&[token(bos)][..], &plain, &[token(eos)]].concat());
    set(&mut gguf, "pre", MetadataValue::Text("llama-bpe".to_owned()));
    set(&mut gguf, "add_eos_token", MetadataValue::Bool(false));
    set(&mut gguf, "add_bos_token", MetadataValue::Bool(false));
    assert_eq!(ids(&open(&tokenizer_json(&gguf)), "a", true), plain);
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let path = data("model.gguf");
    let refused = |key: &str, value: Option<&str>| {
        let mut gguf = gguf("bytes.gguf");
        match value {
            Some(value) => set(&mut gguf, key, MetadataValue::Text(value.to_owned())),
            None => _ = gguf.metadata.remove(&format!("tokenizer.ggml.{key}")),
        }
        let early = check_vocabulary(&path, &gguf).unwrap_err().to_string();
        assert_eq!(text_files(&path, &gguf, &Value::Null).unwrap_err().to_string(), early);
        assert!(early.contains("model.gguf") && early.contains("hint: "), "{early}");
        early
    };
    for (key, value, says) in [
        ("pre", Some("new-one"), "vocabulary `new-one` is not known"),
        ("pre", Some("gemma4"), "vocabulary `gemma4` is of characters"),
        ("model", Some("t5"), "tokenizer `t5` (SentencePiece's unigrams) is not supported"),
        ("model", Some("bert"), "tokenizer `bert` (WordPiece)"),
        ("model", Some("rwkv"), "tokenizer `rwkv`"),
        ("model", Some("plamo2"), "tokenizer `plamo2`"),
        ("model", Some("new-one"), "tokenizer `new-one` is not known: `gpt2` and `llama` are"),
        ("model", None, "does not say what tokenizer it has"),
        ("model", Some("llama"), "scores do not match"),
        ("tokens", None, "has no vocabulary"),
        ("merges", None, "has no merges"),
    ] {
        let message = refused(key, value);
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn a_missing_name_is_a_guess_and_said() {
    let path = data("model.gguf");
    let mut gguf = gguf("bytes.gguf");
    assert_eq!(check_vocabulary(&path, &gguf).unwrap(), None);
    let named = tokenizer_json(&gguf);
    gguf.metadata.remove("tokenizer.ggml.pre");
    let warning = check_vocabulary(&path, &gguf).unwrap().unwrap();
    assert!(warning.contains("tokenizer.ggml.pre") && warning.contains("`default`"), "{warning}");
    assert_eq!(tokenizer_json(&gguf), named);
}
