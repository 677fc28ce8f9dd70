//! Refuses control characters in a recipe: its texts are printed in lines about what was fetched, built and verified,
//! and a line break in one would forge a line. Prompts alone may contain them, since the model reads those.

use serde_json::Value;

use super::kinds::Recipe;
use super::{Document, RecipeError};

/// Refuses a recipe if one of its texts has a control character.
pub(super) fn check(document: &Document, recipe: &Recipe) -> Result<(), RecipeError> {
    // What is not a number (`.nan`) becomes null here, and is refused by its own check.
    let Ok(value) = serde_json::to_value(recipe) else { return Ok(()) };
    let mut field = Vec::new();
    let Some(character) = find(&value, &mut field) else { return Ok(()) };
    // The text itself is left out: an address may hold a password.
    let message = format!("`{}` holds a control character (U+{:04X})", field.join("."), u32::from(character));
    let keys: Vec<&str> = field.iter().map(String::as_str).collect();
    Err(document.error(&keys, &message, Some("write names and addresses in one line, without tabs")))
}

/// Finds the first control character below `value`, and leaves the keys that lead to it in `field`.
fn find(value: &Value, field: &mut Vec<String>) -> Option<char> {
    match value {
        Value::String(text) => text.chars().find(|character| character.is_control()),
        Value::Array(entries) => entries.iter().find_map(|entry| find(entry, field)),
        Value::Object(entries) => entries.iter().filter(|(key, _)| *key != "prompts").find_map(|(key, entry)| {
            field.push(key.clone());
            let found = key.chars().find(|character| character.is_control()).or_else(|| find(entry, field));
            if found.is_none() {
                field.pop();
            }
            found
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}
