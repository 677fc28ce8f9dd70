//! Parts of grammars as texts, in llguidance's dialect of Lark (its docs/syntax.md), with JSON schemas inline.

use serde_json::{Map, Value, json};

/// A rule for JSON of a schema, in the form in which models write it: one space after colons and commas, no other.
///
/// If a schema does not say whether an object may have additional keys, it may not: small models would never end.
/// What a grammar cannot enforce and is accepted is lenient: `oneOf` is `anyOf`, and a `format` that is not known is any text.
pub fn json_rule(name: &str, schema: &Value) -> String {
    let mut schema = match schema {
        Value::Object(_) => schema.clone(),
        // `true` is any value.
        _ => json!({}),
    };
    close(&mut schema, 0);
    schema["x-guidance"] =
        json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ", "lenient": true});
    format!("{name}: %json {schema}\n")
}

/// Deepest nesting of a schema.
const DEPTH: usize = 64;

fn close(schema: &mut Value, depth: usize) {
    match schema {
        Value::Object(object) if depth < DEPTH => {
            if object.get("properties").is_some_and(Value::is_object) && !has_open_end(object) {
                object.insert("additionalProperties".to_owned(), false.into());
            }
            for (key, value) in object {
                // Their values are data, not schemas.
                if !matches!(key.as_str(), "const" | "enum" | "default" | "examples") {
                    close(value, depth + 1);
                }
            }
        }
        Value::Array(list) if depth < DEPTH => list.iter_mut().for_each(|value| close(value, depth + 1)),
        _ => {}
    }
}

/// Whether an object's schema decides about additional keys, or is only part of a schema.
fn has_open_end(object: &Map<String, Value>) -> bool {
    ["additionalProperties", "unevaluatedProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"]
        .iter()
        .any(|key| object.contains_key(*key))
}

/// A text as a literal of the grammar.
pub fn literal(text: &str) -> String {
    Value::from(text).to_string()
}
