//! Pre-tokenizers of byte-level vocabularies in GGUF files: how a text is split before merges are applied, by the name
//! in `tokenizer.ggml.pre`.
//!
//! The names, and what goes with them, are those of llama.cpp's src/llama-vocab.cpp (b11549). The table is
//! `pretokenizers.json`, which the tests' scripts read too; a row is
//!
//! - `names`: one way of cutting goes by several names;
//! - `split`: one after the other: regular expressions whose matches stand alone, steps of `tokenizers`, `"bytes"`
//!   (to the byte alphabet) or `"gpt-2 words"` (to words by GPT-2's expression, then to that alphabet);
//! - `nfc`: the text is composed first (Unicode's NFC);
//! - `ignore_merges`: a piece that is a token is that token, whatever its merges would make of it;
//! - `add_bos`: a text begins with the first token, if the file does not say.
//!
//! Where the model's own tokenizer is known it stands here, and llama.cpp, which comes close to it, differs: NFC (Qwen,
//! Command R, StableLM 2, and MPT and OLMo, which cut as GPT-NeoX) is not done there; capitals and small letters, and marks, are
//! told apart in ASCII alone (tekken, gpt-4o, kimi-k2, youtu); Falcon looks for digits in the byte alphabet; DeepSeek LLM takes
//! digits one by one; Pixtral's vocabulary is Mistral's tekken, which mistral-common cuts so. `tests/data/vocab/make.py` holds
//! each to its source.

use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::{Value, json};

/// A pre-tokenizer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PreTokenizer {
    names: Vec<String>,
    split: Vec<Value>,
    #[serde(default)]
    nfc: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    #[serde(default)]
    pub(super) add_bos: bool,
}

/// llama.cpp's names of vocabularies whose tokens do not consist of bytes.
const OF_CHARACTERS: [&str; 4] = ["gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace"];

fn table() -> &'static [PreTokenizer] {
    static TABLE: OnceLock<Vec<PreTokenizer>> = OnceLock::new();
    TABLE.get_or_init(|| serde_json::from_str(include_str!("pretokenizers.json")).unwrap_or_default())
}

/// All supported names.
pub fn vocabulary_names() -> Vec<&'static str> {
    table().iter().flat_map(|row| &row.names).map(String::as_str).collect()
}

/// The pre-tokenizer with this name, or why it is not supported.
pub(super) fn find(name: &str) -> Result<&'static PreTokenizer, String> {
    let found = table().iter().find(|row| row.names.iter().any(|known| known == name));
    found.ok_or_else(|| match OF_CHARACTERS.contains(&name) {
        true => format!("vocabulary `{name}` is of characters, which is not supported: those of bytes are"),
        false => format!("vocabulary `{name}` is not known"),
    })
}

fn byte_level(words: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": words})
}

impl PreTokenizer {
    /// The `normalizer` of tokenizer.json.
    pub(super) fn normalizer(&self) -> Value {
        if self.nfc { json!({"type": "NFC"}) } else { Value::Null }
    }

    /// The `pre_tokenizer` of tokenizer.json.
    pub(super) fn steps(&self) -> Value {
        let step = |step: &Value| match step.as_str() {
            Some("bytes") => byte_level(false),
            Some("gpt-2 words") => byte_level(true),
            Some(pattern) => {
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
            }
            None => step.clone(),
        };
        json!({"type": "Sequence", "pretokenizers": self.split.iter().map(step).collect::<Vec<_>>()})
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokenizers::pre_tokenizers::PreTokenizerWrapper;

    use super::*;

    #[test]
    fn every_row_is_a_pre_tokenizer() {
        let names = vocabulary_names();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(names.len() >= 86, "{}", names.len());
        for row in table() {
            let read = serde_json::from_value::<PreTokenizerWrapper>(row.steps());
            assert!(read.is_ok(), "{:?}: {}", row.names, read.unwrap_err());
            assert!(row.steps().to_string().contains("ByteLevel"), "{:?}", row.names);
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        assert!(find("tekken").unwrap().add_bos && find("tekken").unwrap().ignore_merges);
        assert_eq!(find("qwen2").unwrap().normalizer()["type"], "NFC");
        assert!(find("gemma4").unwrap_err().contains("`gemma4` is of characters"));
        assert_eq!(find("new-one").unwrap_err(), "vocabulary `new-one` is not known");
    }
}
