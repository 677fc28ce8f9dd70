//! The text files of a GGUF: its vocabulary, merges and template as the files a hub repository would have.
//!
//! Keys are those of ggml's docs/gguf.md. What a vocabulary's name stands for (`tokenizer.ggml.pre`) is the
//! pre-tokenizer of the model's own tokenizer.json.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};

use super::defaults::recommended;
use crate::checkpoint::{CheckpointError, Gguf, Texts};

/// Token types.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Llama 3's split, with `digits` as the pattern of a number.
fn llama3_split(digits: &str) -> Value {
    let pattern = format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    json!([
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ])
}

/// The pre-tokenizers of a byte-level vocabulary.
fn byte_level(name: &str) -> Option<Value> {
    let gpt2 = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    Some(match name {
        "default" | "gpt-2" => json!([gpt2]),
        "smollm" => json!([{"type": "Digits", "individual_digits": true}, gpt2]),
        "llama-bpe" | "llama3" | "llama-v3" => llama3_split(r"\p{N}{1,3}"),
        "qwen2" | "deepseek-r1-qwen" => llama3_split(r"\p{N}"),
        _ => return None,
    })
}

/// (file name, content) of config.json, tokenizer.json, tokenizer_config.json and generation_config.json.
pub fn text_files(path: &Path, gguf: &Gguf, config: &Value) -> Result<Vec<(String, String)>, CheckpointError> {
    let fail = |message: String| CheckpointError::new(path, message);
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let tokens = gguf.texts(&key("tokens")).ok_or_else(|| fail("the file has no vocabulary".to_owned()))?;
    // Ollama's converter leaves Gemma 3's tokens for pictures in, for which the embedding has no rows.
    let rows = config.get("vocab_size").and_then(Value::as_u64).and_then(|rows| usize::try_from(rows).ok());
    let tokens: &[Cow<'_, str>] = &tokens.iter().take(rows.unwrap_or(usize::MAX)).collect::<Vec<_>>();
    let model = gguf.text(&key("model")).unwrap_or_default();
    let id =
        |name: &str| gguf.integer(&key(name)).and_then(|id| usize::try_from(id).ok()).filter(|id| *id < tokens.len());
    let spelled = |name: &str| id(name).map(|id| &*tokens[id]);
    let kinds = gguf.numbers(&key("token_type"));
    let kind = |id: usize| kinds.and_then(|kinds| kinds.integer(id));
    let added: Vec<Value> = tokens
        .iter()
        .enumerate()
        .filter_map(|(id, content)| Some((id, content, kind(id)?)))
        .filter(|(_, _, kind)| matches!(*kind, CONTROL | USER_DEFINED))
        .map(|(id, content, kind)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": kind == CONTROL})
        })
        .collect();
    let mut tokenizer = match model {
        "gpt2" => {
            let name = gguf.text(&key("pre")).unwrap_or("default");
            let pre = byte_level(name).ok_or_else(|| {
                fail(format!("vocabulary `{name}` is not known\n  hint: use the model's safetensors repository"))
            })?;
            let merges: Vec<Cow<'_, str>> = gguf.texts(&key("merges")).into_iter().flat_map(Texts::iter).collect();
            bpe(tokens, &merges, &pre, name)
        }
        "llama" => {
            let scores = gguf.numbers(&key("scores"));
            let score = |id: usize| scores.and_then(|scores| scores.float(id));
            let scores: Vec<f64> = (0..tokens.len()).map_while(score).collect();
            if scores.len() != tokens.len() {
                return Err(fail("the vocabulary's scores do not match its tokens".to_owned()));
            }
            // Absent means yes: the key came later than the first Llamas.
            sentence_piece(
                tokens,
                &scores,
                gguf.flag(&key("add_space_prefix")).unwrap_or(true),
                spelled("unknown_token_id"),
            )
        }
        other => {
            return Err(fail(format!(
                "tokenizer `{other}` is not known\n  hint: use the model's safetensors repository"
            )));
        }
    };
    tokenizer["added_tokens"] = Value::Array(added);
    let adds_bos =
        gguf.flag(&key("add_bos_token")).unwrap_or(model == "llama" || gguf.text(&key("pre")) == Some("llama-bpe"));
    if let Some(bos) = spelled("bos_token_id").filter(|_| adds_bos) {
        let number = id("bos_token_id");
        tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
        });
    }
    let settings = json!({
        "bos_token": spelled("bos_token_id"),
        "eos_token": spelled("eos_token_id"),
        "chat_template": gguf.text("tokenizer.chat_template"),
    });
    // Some files name only the end of a text and not the end of a turn; its usual spellings tell.
    let turns = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eom_id|>"];
    let mut ends: Vec<usize> = ["eos_token_id", "eot_token_id", "eom_token_id"].into_iter().filter_map(id).collect();
    let special = |at: usize| kind(at) == Some(CONTROL);
    ends.extend(tokens.iter().enumerate().filter(|(at, t)| special(*at) && turns.contains(&&***t)).map(|(at, _)| at));
    ends.sort_unstable();
    ends.dedup();
    let mut generation = recommended(gguf);
    generation.insert("eos_token_id".to_owned(), json!(ends));
    let print = |value: &Value| serde_json::to_string(value).map_err(|error| fail(error.to_string()));
    Ok(vec![
        ("config.json".to_owned(), print(config)?),
        ("tokenizer.json".to_owned(), print(&tokenizer)?),
        ("tokenizer_config.json".to_owned(), print(&settings)?),
        ("generation_config.json".to_owned(), print(&Value::Object(generation))?),
    ])
}

fn vocabulary(tokens: &[Cow<'_, str>]) -> serde_json::Map<String, Value> {
    tokens.iter().enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect()
}

fn bpe(tokens: &[Cow<'_, str>], merges: &[Cow<'_, str>], pre: &Value, name: &str) -> Value {
    json!({
        "version": "1.0",
        "normalizer": if name == "qwen2" { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": name.starts_with("llama"),
            "vocab": vocabulary(tokens), "merges": merges,
        },
    })
}

/// Bytes of the longest token that is made of others.
const LONGEST_PIECE: usize = 1024;

/// SentencePiece's BPE: the best-scored piece is merged first, so merges are all ways to split a piece, best first.
fn sentence_piece(tokens: &[Cow<'_, str>], scores: &[f64], prefix: bool, unknown: Option<&str>) -> Value {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (&**token, id)).collect();
    let mut merges: Vec<(f64, usize, usize, &str, &str)> = Vec::new();
    // A longer token is no word, and trying every way to part it would take for ever.
    for (token, score) in tokens.iter().zip(scores).filter(|(token, _)| token.len() <= LONGEST_PIECE) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                merges.push((*score, *l, *r, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    let merges: Vec<[&str; 2]> = merges.into_iter().map(|(_, _, _, left, right)| [left, right]).collect();
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let mut normalizers = vec![replace];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown.unwrap_or("<unk>"), "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary(tokens), "merges": merges,
        },
    })
}
