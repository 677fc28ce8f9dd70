//! Parses JSON as Python writes it: `json.dumps` writes `Infinity`, `-Infinity` and `NaN`, which JSON lacks. They
//! become strings, so that an error about a wanted number can quote them.

use serde_json::Value;

const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Parses a document; errors name line and column of the original text.
pub(super) fn parse(text: &str) -> Result<Value, serde_json::Error> {
    let strict = serde_json::from_str(text);
    if strict.is_ok() || !(text.contains("Infinity") || text.contains("NaN")) {
        return strict;
    }
    // A number as long as the word keeps every place, and is an error where a number would be.
    let number = |word: &str| format!("{:<width$}", if word.starts_with('-') { "-1" } else { "1" }, width = word.len());
    serde_json::from_str::<Value>(&replaced(text, number))?;
    serde_json::from_str(&replaced(text, |word| format!("\"{word}\"")))
}

/// Replaces each of these words, where it is a value, by the result of `by`.
fn replaced(text: &str, by: impl Fn(&str) -> String) -> String {
    let (mut out, mut rest, mut before) = (String::with_capacity(text.len()), text, ' ');
    let (mut is_text, mut is_escaped) = (false, false);
    let is_word = |character: char| character.is_alphanumeric() || character == '_' || character == '.';
    while let Some(next) = rest.chars().next() {
        let apart = |word: &&&str| !rest[word.len()..].starts_with(is_word) && !is_word(before) && before != '-';
        let word = WORDS.iter().filter(|word| !is_text && rest.starts_with(**word)).find(apart);
        if let Some(&word) = word {
            out.push_str(&by(word));
            (rest, before) = (&rest[word.len()..], ' ');
            continue;
        }
        match next {
            _ if is_escaped => is_escaped = false,
            '\\' if is_text => is_escaped = true,
            '"' => is_text = !is_text,
            _ => {}
        }
        out.push(next);
        (rest, before) = (&rest[next.len_utf8()..], next);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The results of Python's json.loads, with repr for values that JSON lacks.
    #[test]
    fn pythons_numbers_are_read() {
        let cases = [
            ("{\"time_step_limit\": [0.0, Infinity]}", json!({"time_step_limit": [0.0, "Infinity"]})),
            ("[-Infinity,NaN , Infinity]", json!(["-Infinity", "NaN", "Infinity"])),
            ("NaN", json!("NaN")),
            (r#"{"Infinity": "NaN \" Infinity", "ż": NaN}"#, json!({"Infinity": "NaN \" Infinity", "ż": "NaN"})),
            (r#"["\\", NaN, "a\\\"NaN"]"#, json!(["\\", "NaN", "a\\\"NaN"])),
            ("[1e5]", json!([1e5])),
        ];
        for (text, value) in cases {
            assert_eq!(parse(text).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn other_mistakes_keep_their_place() {
        // Beside them what has a number as long in place of the word.
        let cases = [
            ("{\"a\": Infinity,\n  \"b\": [NaN, oops]}", "{\"a\": 12345678,\n  \"b\": [123, oops]}"),
            ("{\"a\": -Infinity, \"b\" 1}", "{\"a\": -12345678, \"b\" 1}"),
            ("{NaN: 1}", "{123: 1}"),
            ("[NaN", "[123"),
        ];
        for (text, plain) in cases {
            let (error, expected) = (parse(text).unwrap_err(), serde_json::from_str::<Value>(plain).unwrap_err());
            assert_eq!(error.to_string(), expected.to_string(), "{text}");
        }
        for text in ["[Infinity1]", "[xNaN]", "[--Infinity]", "[-NaN]", "[1.NaN]", "[\"NaN", "Infinit"] {
            parse(text).unwrap_err();
        }
    }
}
