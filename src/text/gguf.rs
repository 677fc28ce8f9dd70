//! Converts the vocabulary, merges and template of a GGUF to the files of a hub repository.
//!
//! Keys are those of ggml's docs/gguf.md; defaults of missing keys are llama.cpp's (src/llama-vocab.cpp).

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};

use super::defaults::recommended;
use super::pretokenizers::{self, PreTokenizer};
use crate::checkpoint::{CheckpointError, Gguf, Texts};
use crate::diagnostic::Diagnostic;

/// Type of tokens that are merged from others.
const NORMAL: i64 = 1;
/// Type of special tokens.
const CONTROL: i64 = 3;
/// Type of tokens that are matched before a text is split.
const USER_DEFINED: i64 = 4;

/// Usual end-of-turn tokens. They are control tokens whatever a file says, as in llama.cpp, since some converters knew
/// no types.
const TURN_ENDS: [&str; 5] = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eom_id|>"];

/// Kinds of tokenizers that llama.cpp supports and this program does not.
const OTHER_KINDS: [(&str, &str); 9] = [
    ("t5", "SentencePiece's unigrams"),
    ("bert", "WordPiece"),
    ("rwkv", "RWKV's"),
    ("plamo2", "PLaMo 2's"),
    ("gemma4", "Gemma 4's"),
    ("hybriddna", "of DNA"),
    ("whitespace", "of words between spaces"),
    ("no_vocab", "none"),
    ("none", "none"),
];

const OTHER_FORM: &str = "use the model's safetensors repository";

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

/// Kinds of vocabularies.
enum VocabularyKind {
    /// Byte-level BPE, with merges.
    Bytes(&'static PreTokenizer),
    /// SentencePiece's BPE: pieces of characters, with scores.
    Pieces,
}

/// The kinds of GGUF vocabularies that are refused: name and description.
pub fn refused_vocabularies() -> &'static [(&'static str, &'static str)] {
    &OTHER_KINDS
}

/// The kind of a GGUF's vocabulary; an error if it is not supported.
fn kind(path: &Path, gguf: &Gguf) -> Result<VocabularyKind, CheckpointError> {
    let fail = |message: String| CheckpointError::new(path, message).with_help(OTHER_FORM);
    let count = gguf.texts(&key("tokens")).map_or(0, Texts::len);
    let model = gguf.text(&key("model")).unwrap_or_default();
    let found = match model {
        "gpt2" => {
            let name = gguf.text(&key("pre")).filter(|name| !name.is_empty()).unwrap_or("default");
            VocabularyKind::Bytes(pretokenizers::find(name).map_err(fail)?)
        }
        "llama" => VocabularyKind::Pieces,
        "" => return Err(fail("the file does not say what tokenizer it has (tokenizer.ggml.model)".to_owned())),
        other => {
            let known = OTHER_KINDS.iter().find(|(kind, _)| *kind == other);
            let what = known.map_or("is not known".to_owned(), |(_, what)| format!("({what}) is not supported"));
            return Err(fail(format!("tokenizer `{other}` {what}: `gpt2` and `llama` are")));
        }
    };
    if count == 0 {
        return Err(fail("the file has no vocabulary (tokenizer.ggml.tokens)".to_owned()));
    }
    match found {
        VocabularyKind::Bytes(_) if gguf.texts(&key("merges")).is_none() => {
            Err(fail("the vocabulary has no merges (tokenizer.ggml.merges)".to_owned()))
        }
        VocabularyKind::Pieces if gguf.numbers(&key("scores")).is_none_or(|scores| scores.len() != count) => {
            Err(fail("the vocabulary's scores do not match its tokens (tokenizer.ggml.scores)".to_owned()))
        }
        found => Ok(found),
    }
}

/// Checks whether the vocabulary is supported, by its metadata, before anything large is hashed or built. Returns a
/// warning if the file does not name its pre-tokenizer, so that it had to be guessed.
pub fn check_vocabulary(path: &Path, gguf: &Gguf) -> Result<Option<String>, CheckpointError> {
    let kind = kind(path, gguf)?;
    let guessed = matches!(kind, VocabularyKind::Bytes(_)) && gguf.text(&key("pre")).is_none_or(str::is_empty);
    Ok(guessed.then(|| {
        Diagnostic::new(format!(
            "{}: the file does not say how its vocabulary cuts a text (tokenizer.ggml.pre): it is cut as `default`, as \
             llama.cpp does, and answers may be worse than the model's",
            path.display()
        ))
        .with_help("use a file of a newer converter")
        .to_string()
    }))
}

/// A vocabulary, with the properties of its tokens.
struct Vocabulary<'a> {
    gguf: &'a Gguf,
    tokens: Vec<Cow<'a, str>>,
}

impl Vocabulary<'_> {
    fn flag(&self, name: &str) -> Option<bool> {
        self.gguf.flag(&key(name))
    }

    fn id(&self, name: &str) -> Option<usize> {
        let id = self.gguf.integer(&key(name))?;
        usize::try_from(id).ok().filter(|id| *id < self.tokens.len())
    }

    fn spelled(&self, name: &str) -> Option<&str> {
        self.id(name).map(|id| &*self.tokens[id])
    }

    /// A token's type; normal in a file without types.
    fn kind(&self, id: usize) -> i64 {
        if self.tokens.get(id).is_some_and(|token| TURN_ENDS.contains(&&**token)) {
            return CONTROL;
        }
        self.gguf.numbers(&key("token_type")).map_or(NORMAL, |kinds| kinds.integer(id).unwrap_or(NORMAL))
    }

    /// Tokens that are matched before a text is split.
    fn added(&self) -> Vec<Value> {
        let kinds = self.tokens.iter().enumerate().map(|(id, content)| (id, content, self.kind(id)));
        kinds
            .filter(|(_, _, kind)| matches!(*kind, CONTROL | USER_DEFINED))
            .map(|(id, content, kind)| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": kind == CONTROL})
            })
            .collect()
    }

    /// Tokens that end an answer. Some files only name the end of a text and not the end of a turn.
    fn ends(&self) -> Vec<usize> {
        let named = ["eos_token_id", "eot_token_id", "eom_token_id"].into_iter().filter_map(|name| self.id(name));
        let turns = self.tokens.iter().enumerate().filter(|(_, token)| TURN_ENDS.contains(&&***token));
        let mut ends: Vec<usize> = named.chain(turns.map(|(id, _)| id)).collect();
        ends.sort_unstable();
        ends.dedup();
        ends
    }

    /// The post-processor that adds the first and last token of a text, if the model has them.
    fn around(&self, begins: bool) -> Option<Value> {
        let begins = self.flag("add_bos_token").unwrap_or(begins);
        let first = self.spelled("bos_token_id").zip(self.id("bos_token_id")).filter(|_| begins);
        let ends = self.flag("add_eos_token").unwrap_or(false);
        let last = self.spelled("eos_token_id").zip(self.id("eos_token_id")).filter(|_| ends);
        if first.is_none() && last.is_none() {
            return None;
        }
        let piece =
            |token: Option<(&str, usize)>| token.map(|(token, _)| json!({"SpecialToken": {"id": token, "type_id": 0}}));
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let single: Vec<Value> = piece(first).into_iter().chain([text]).chain(piece(last)).collect();
        let special: serde_json::Map<String, Value> = first
            .into_iter()
            .chain(last)
            .map(|(token, id)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
            .collect();
        Some(json!({
            "type": "TemplateProcessing",
            "single": single,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": special,
        }))
    }
}

/// The chat template; if there is another for functions, the list that transformers makes of both (gguf-py,
/// `add_chat_template`: other templates have their name after the key).
fn templates(gguf: &Gguf) -> Value {
    let named = |name: &str, key: &str| gguf.text(key).map(|text| json!({"name": name, "template": text}));
    let plain = named("default", "tokenizer.chat_template");
    match (plain, named("tool_use", "tokenizer.chat_template.tool_use")) {
        (Some(plain), Some(functions)) => json!([plain, functions]),
        _ => json!(gguf.text("tokenizer.chat_template")),
    }
}

/// Names and contents of config.json, tokenizer.json, tokenizer_config.json and generation_config.json.
pub fn text_files(path: &Path, gguf: &Gguf, config: &Value) -> Result<Vec<(String, String)>, CheckpointError> {
    let kind = kind(path, gguf)?;
    // Ollama's converter leaves Gemma 3's tokens for pictures in, for which the embedding has no rows.
    let rows = config.get("vocab_size").and_then(Value::as_u64).and_then(|rows| usize::try_from(rows).ok());
    let tokens = gguf.texts(&key("tokens")).into_iter().flat_map(Texts::iter);
    let tokens = tokens.take(rows.unwrap_or(usize::MAX)).collect();
    let vocabulary = Vocabulary { gguf, tokens };
    let (mut tokenizer, begins) = match kind {
        VocabularyKind::Bytes(pre) => (bpe(&vocabulary, pre), pre.add_bos),
        VocabularyKind::Pieces => (sentence_piece(&vocabulary), true),
    };
    tokenizer["added_tokens"] = Value::Array(vocabulary.added());
    if let Some(around) = vocabulary.around(begins) {
        tokenizer["post_processor"] = around;
    }
    let settings = json!({
        "bos_token": vocabulary.spelled("bos_token_id"),
        "eos_token": vocabulary.spelled("eos_token_id"),
        "unk_token": vocabulary.spelled("unknown_token_id"),
        "pad_token": vocabulary.spelled("padding_token_id"),
        "chat_template": templates(gguf),
    });
    let mut generation = recommended(gguf);
    generation.insert("eos_token_id".to_owned(), json!(vocabulary.ends()));
    let print =
        |value: &Value| serde_json::to_string(value).map_err(|error| CheckpointError::new(path, error.to_string()));
    Ok(vec![
        ("config.json".to_owned(), print(config)?),
        ("tokenizer.json".to_owned(), print(&tokenizer)?),
        ("tokenizer_config.json".to_owned(), print(&settings)?),
        ("generation_config.json".to_owned(), print(&Value::Object(generation))?),
    ])
}

fn numbered(tokens: &[Cow<'_, str>]) -> serde_json::Map<String, Value> {
    tokens.iter().enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect()
}

fn bpe(vocabulary: &Vocabulary<'_>, pre: &PreTokenizer) -> Value {
    let merges = vocabulary.gguf.texts(&key("merges")).into_iter().flat_map(Texts::iter);
    json!({
        "version": "1.0",
        "normalizer": pre.normalizer(),
        "pre_tokenizer": pre.steps(),
        "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": pre.ignore_merges,
            "vocab": numbered(&vocabulary.tokens), "merges": merges.collect::<Vec<_>>(),
        },
    })
}

/// Most bytes of a token that is merged from others.
const LONGEST_PIECE: usize = 1024;

/// All splits of each piece into two pieces, the best piece first.
///
/// SentencePiece merges the neighbours whose piece has the best score, and of equal ones the first in the text. Equal
/// scores occur: the runs of spaces in Mistral's vocabularies all have -1e9, so that the first run grows until nothing
/// longer is a piece. Here each pair has a rank of its own; with the longest left part first the result is the same.
/// Tokens that are not normal (control, bytes, user-defined) are never merged from others.
fn merges<'a>(vocabulary: &'a Vocabulary<'_>) -> Vec<[&'a str; 2]> {
    let scores = vocabulary.gguf.numbers(&key("scores"));
    let score = |id: usize| scores.and_then(|scores| scores.float(id)).unwrap_or(f64::NEG_INFINITY);
    let pieces = || {
        let numbered = vocabulary.tokens.iter().enumerate();
        numbered.filter(move |(id, _)| vocabulary.kind(*id) == NORMAL).map(|(id, token)| (id, &**token))
    };
    let ids: HashMap<&str, usize> = pieces().map(|(id, token)| (token, id)).collect();
    // (score, characters of the left part, both parts' numbers, both parts)
    let mut merges: Vec<(f64, usize, [usize; 2], [&str; 2])> = Vec::new();
    // A longer token is no word, and trying every way to part it would take for ever.
    for (id, token) in pieces().filter(|(_, token)| token.len() <= LONGEST_PIECE) {
        for (length, (at, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                merges.push((score(id), length, [*l, *r], [left, right]));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2)));
    merges.into_iter().map(|(_, _, _, parts)| parts).collect()
}

/// The tokenizer.json of SentencePiece's BPE.
fn sentence_piece(vocabulary: &Vocabulary<'_>) -> Value {
    let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let mut normalizers = Vec::new();
    let mut decoders =
        vec![replace(json!({"String": "▁"}), " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    // Spaces alone: SentencePiece leaves lines and tabs as they are.
    if vocabulary.flag("remove_extra_whitespaces").unwrap_or(false) {
        normalizers.push(replace(json!({"Regex": r"\A +| +\z"}), ""));
        normalizers.push(replace(json!({"Regex": " {2,}"}), " "));
    }
    // Absent means yes: the key came later than the first Llamas.
    if vocabulary.flag("add_space_prefix").unwrap_or(true) {
        normalizers.push(json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    normalizers.push(replace(json!({"String": " "}), "▁"));
    json!({
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": vocabulary.spelled("unknown_token_id").unwrap_or("<unk>"),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "ignore_merges": false, "vocab": numbered(&vocabulary.tokens), "merges": merges(vocabulary),
        },
    })
}
