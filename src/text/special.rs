//! Special tokens: those that files beside tokenizer.json add to its vocabulary, and those by name, as `transformers` collects them for templates: `bos_token`, `pad_token`, `image_token`, …
//!
//! They are read from tokenizer_config.json; if that does not list the vocabulary's added tokens,
//! special_tokens_map.json takes precedence (`_from_pretrained` in tokenization_utils_base.py of transformers 5.24,
//! which calls the second file a legacy).

use std::collections::BTreeMap;

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use crate::diagnostic::Diagnostic;

/// The special tokens of `settings` and, if it takes precedence, of `map`.
pub(super) fn tokens(settings: &Value, map: &Value) -> BTreeMap<String, String> {
    let mut tokens = BTreeMap::new();
    add(&mut tokens, settings);
    if settings.get("added_tokens_decoder").is_none() {
        add(&mut tokens, map);
    }
    tokens
}

fn add(tokens: &mut BTreeMap<String, String>, file: &Value) {
    let Some(fields) = file.as_object() else { return };
    for (name, value) in fields.iter().filter(|(name, _)| name.ends_with("_token")) {
        match spelling(value) {
            Some(text) => {
                tokens.insert(name.clone(), text);
            }
            // `null` takes back what the other file said.
            None if value.is_null() => {
                tokens.remove(name);
            }
            // `add_bos_token: true` is no token.
            None => {}
        }
    }
    // Tokens of a model's own, under names of its own.
    for name in ["extra_special_tokens", "model_specific_special_tokens"] {
        let named = fields.get(name).and_then(Value::as_object).into_iter().flatten();
        tokens.extend(named.filter_map(|(name, value)| Some((name.clone(), spelling(value)?))));
    }
}

/// A token's text, from a string or an object.
fn spelling(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// Adds tokens from files other than tokenizer.json to the vocabulary, like transformers: those of `settings` and
/// added_tokens.json (`added`) by number, those of `additional_special_tokens` at its end.
pub(super) fn add_missing(
    tokenizer: &mut Tokenizer,
    settings: &Value,
    map: &Value,
    added: &Value,
) -> Result<(), Diagnostic> {
    let flag = |token: &Value, name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
    let token = |content: &str, token: &Value, special: bool| {
        AddedToken::from(content, special)
            .lstrip(flag(token, "lstrip"))
            .rstrip(flag(token, "rstrip"))
            .single_word(flag(token, "single_word"))
            .normalized(flag(token, "normalized"))
    };
    let mut missing: Vec<(u64, AddedToken)> = Vec::new();
    for (id, value) in settings.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
        let (Ok(id), Some(content)) = (id.parse(), spelling(value)) else {
            return Err(format!("`added_tokens_decoder` has {value} as token {id}").into());
        };
        missing.push((id, token(&content, value, flag(value, "special"))));
    }
    for (content, id) in added.as_object().into_iter().flatten() {
        let id = id.as_u64().ok_or_else(|| format!("added_tokens.json has {id} as the number of `{content}`"))?;
        missing.push((id, token(content, &Value::Null, true)));
    }
    missing.sort_by_key(|(id, _)| *id);
    for file in [settings, map] {
        for value in file.get("additional_special_tokens").and_then(Value::as_array).into_iter().flatten() {
            missing.extend(spelling(value).map(|content| (u64::MAX, token(&content, value, true))));
        }
    }
    for (id, token) in missing {
        if tokenizer.token_to_id(&token.content).is_some() {
            continue;
        }
        let (content, special) = (token.content.clone(), token.special);
        let done = if special { tokenizer.add_special_tokens([token]) } else { tokenizer.add_tokens([token]) };
        done.map_err(|error| error.to_string())?;
        let have = tokenizer.token_to_id(&content).map(u64::from);
        if id != u64::MAX && have != Some(id) {
            let what =
                format!("`{content}` is to be token {id}, which does not follow the vocabulary of tokenizer.json");
            let help = "AutoTokenizer.from_pretrained(…).save_pretrained(…) writes one that has it";
            return Err(Diagnostic::new(what).with_help(help));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected is `special_tokens_map` of transformers' `PreTrainedTokenizerFast` for these files.
    #[test]
    fn tokens_are_those_of_transformers() {
        let cases = [
            ("{\"bos_token\": \"<s>\"}", "null", "bos_token=<s>"),
            (
                "{}",
                "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\", \"lstrip\": false}}",
                "bos_token=<s> eos_token=</s>",
            ),
            (
                "{\"bos_token\": \"<a>\", \"pad_token\": \"<p>\"}",
                "{\"bos_token\": \"<b>\"}",
                "bos_token=<b> pad_token=<p>",
            ),
            (
                "{\"bos_token\": \"<a>\", \"added_tokens_decoder\": {}}",
                "{\"bos_token\": \"<b>\", \"unk_token\": \"<u>\"}",
                "bos_token=<a>",
            ),
            ("{\"eos_token\": \"<a>\"}", "{\"eos_token\": null}", ""),
            ("{\"add_bos_token\": true, \"image_token\": \"<i>\", \"eos_token\": null}", "null", "image_token=<i>"),
            ("{\"extra_special_tokens\": {\"boi_token\": \"<boi>\"}}", "null", "boi_token=<boi>"),
            (
                "{\"extra_special_tokens\": [\"<x>\"], \"additional_special_tokens\": [\"<y>\"]}",
                "{\"additional_special_tokens\": [\"<z>\"]}",
                "",
            ),
        ];
        for (settings, map, expected) in cases {
            let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
            let found = tokens(&parse(settings), &parse(map));
            let said: Vec<String> = found.iter().map(|(name, token)| format!("{name}={token}")).collect();
            assert_eq!(said.join(" "), expected, "{settings} {map}");
        }
    }
}
