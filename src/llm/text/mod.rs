//! Text to tokens and back: tokenizer, chat template, and the defaults a model is published with.
//!
//! An engine directory keeps them as files under the hub's names; for a GGUF, `gguf.rs` writes those files from its
//! metadata, so that at run time there is one form.

mod gguf;
mod stream;
mod template;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use gguf::text_files;
pub use stream::{StopFinder, TextStream};
pub use template::{ChatTemplate, Message};

use super::executor::LlmError;
use crate::checkpoint::read_json;

/// The files an engine directory keeps, besides weights and engines.
pub const TEXT_FILES: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// How a model's makers want it sampled; `None` where they do not say.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Defaults {
    /// False asks for the likeliest token always.
    pub sample: bool,
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

/// A model's text side.
pub struct Text {
    tokenizer: tokenizers::Tokenizer,
    template: Option<ChatTemplate>,
    /// Tokens that end an answer.
    pub stop_tokens: BTreeSet<u32>,
    /// The makers' sampling.
    pub defaults: Defaults,
    folder: PathBuf,
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Text({})", self.folder.display())
    }
}

fn number(value: &Value, field: &str) -> Option<f32> {
    value.get(field).and_then(Value::as_f64).map(|number| number as f32)
}

impl Text {
    /// Reads the files of `folder`.
    pub fn open(folder: &Path) -> Result<Self, LlmError> {
        let path = folder.join("tokenizer.json");
        let fail = |message: String| LlmError::Text { path: path.clone(), message };
        let bytes = std::fs::read(&path).map_err(|error| {
            fail(format!(
                "{error}\n  hint: the model needs a tokenizer.json; `tokenizers` converts a tokenizer.model: \
                 AutoTokenizer.from_pretrained(…).save_pretrained(…)"
            ))
        })?;
        let tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| fail(error.to_string()))?;
        let optional = |name: &str| -> Result<Value, LlmError> {
            let path = folder.join(name);
            Ok(if path.exists() { read_json(&path)? } else { Value::Null })
        };
        let settings = optional("tokenizer_config.json")?;
        let generation = optional("generation_config.json")?;
        let config = optional("config.json")?;
        let mut stop_tokens = BTreeSet::new();
        let text_config = config.get("text_config").unwrap_or(&Value::Null);
        for source in [&generation, &config, text_config] {
            match source.get("eos_token_id") {
                Some(Value::Array(list)) => stop_tokens.extend(list.iter().filter_map(token_id)),
                Some(one) => stop_tokens.extend(token_id(one)),
                None => {}
            }
        }
        if let Some(eos) = template::token(&settings, "eos_token") {
            stop_tokens.extend(tokenizer.token_to_id(&eos));
        }
        let template = ChatTemplate::find(folder, &settings)?;
        let defaults = Defaults {
            sample: generation.get("do_sample").and_then(Value::as_bool).unwrap_or(false),
            temperature: number(&generation, "temperature"),
            top_k: generation.get("top_k").and_then(Value::as_u64).and_then(|k| usize::try_from(k).ok()),
            top_p: number(&generation, "top_p"),
            min_p: number(&generation, "min_p"),
            repetition_penalty: number(&generation, "repetition_penalty"),
        };
        Ok(Self { tokenizer, template, stop_tokens, defaults, folder: folder.to_owned() })
    }

    /// Tokens of a text as it is, with the tokens the model wants around one (usually a first one).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, LlmError> {
        self.tokens(text, true)
    }

    /// Tokens of a conversation, ready for the assistant's answer.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, LlmError> {
        let template = self.template.as_ref().ok_or_else(|| LlmError::Text {
            path: self.folder.clone(),
            message:
                "the model has no chat template: it completes texts, and may not converse\n  hint: use `--raw`, or \
                      give the recipe a `chat_template: FILE.jinja`"
                    .to_owned(),
        })?;
        // The template writes the special tokens itself.
        self.tokens(&template.render(messages)?, false)
    }

    /// Whether it can converse.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The text of some tokens.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String, LlmError> {
        self.tokenizer.decode(tokens, skip_special).map_err(|error| LlmError::Request(error.to_string()))
    }

    /// A token's own spelling.
    pub fn piece(&self, token: u32) -> Option<String> {
        self.tokenizer.id_to_token(token)
    }

    fn tokens(&self, text: &str, special: bool) -> Result<Vec<u32>, LlmError> {
        let encoding = self.tokenizer.encode_fast(text, special);
        Ok(encoding.map_err(|error| LlmError::Request(error.to_string()))?.get_ids().to_vec())
    }
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}
