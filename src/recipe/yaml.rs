//! Refuses YAML on which the parser would take time or memory quadratic in the length of the text: libyaml looks at
//! every open bracket for every token, and at every `%TAG` for each of them; serde_norway bounds how often an alias is
//! followed, but not how much each one stands for. Nesting in block style costs nothing of the kind, and serde_norway
//! refuses 128 levels of it.
//!
//! Guesses about what is quoted and what is a comment can be fooled, so everything that could be YAML syntax is
//! counted.

/// Limit of brackets times bytes of text: half a second at worst. A page of text may have thousands of brackets, 1 MiB
/// 128.
const BRACKETS_LIMIT: usize = 1 << 27;
/// Limit of aliases: twelve, expanded one within the other, stand for 81 times the text.
const ALIASES_LIMIT: usize = 12;
/// Limit of directives; a document needs one `%YAML` line at most.
const DIRECTIVES_LIMIT: usize = 16;

/// Why `text` must not be parsed, and the hint; `None` if it may be.
pub(crate) fn danger(text: &str) -> Option<(&'static str, &'static str)> {
    if brackets(text).saturating_mul(text.len()) > BRACKETS_LIMIT {
        return Some(("too many brackets for a text of its length", "write long lists as lines that begin with `-`"));
    }
    if aliases(text) > ALIASES_LIMIT {
        return Some(("too many aliases (`*name`)", "write out what they stand for"));
    }
    if text.lines().filter(|line| line.starts_with('%')).count() > DIRECTIVES_LIMIT {
        return Some(("too many directives (`%TAG`)", "leave them out"));
    }
    None
}

/// Counts brackets that may open a list or a map. A bracket right after a letter or a quote is part of a text, or a
/// mistake that ends the parsing.
fn brackets(text: &str) -> usize {
    let opens = |at: usize| !text[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '"' | '\''));
    text.match_indices(['[', '{']).filter(|(at, _)| opens(*at)).count()
}

/// Counts aliases, `*name`, whose anchor `&name` exists.
fn aliases(text: &str) -> usize {
    let names = |mark: char| {
        text.match_indices(mark).map(move |(at, _)| {
            let rest = &text[at + 1..];
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-')));
            &rest[..end.unwrap_or(rest.len())]
        })
    };
    let anchors: std::collections::BTreeSet<&str> = names('&').filter(|name| !name.is_empty()).collect();
    names('*').filter(|name| anchors.contains(name)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_would_take_minutes_are_refused_and_others_are_not() {
        let labels: String = (0..30_000).map(|number| format!("  - \"[{number}] don't # *a\"\n")).collect();
        let flow = format!("labels: [{}]\n", "\"a label\", ".repeat(60_000));
        let cases = [
            ("[".repeat(40_000), Some("brackets")),
            ("[ {a: ".repeat(20_000), Some("brackets")),
            (format!("a: {}{}", "[\"]\", ".repeat(20_000), "1, ".repeat(20_000)), Some("brackets")),
            (format!("# {}\n'#': {}", "x".repeat(900_000), "[".repeat(200)), Some("brackets")),
            (format!("a: &a [1]\nb: {}", "*a ".repeat(13)), Some("aliases")),
            ("%TAG !a! b\n".repeat(17), Some("directives")),
            ("a: {b: [1, 2], c: {d: [[3]]}}\n".repeat(100), None),
            ("- - - - - x\n".to_owned(), None),
            (flow, None),
            (labels[..labels.len() / 8].to_owned(), None),
            ("p: |\n  *bold* and *bold*\n".repeat(20), None),
            ("files: ['*.json', \"*.pt\"]\n".repeat(20), None),
            ("a: &a {x: 1}\nb: *a\nc: *a\n".to_owned(), None),
            ("%YAML 1.2\n---\na: 1\n".to_owned(), None),
        ];
        for (text, expected) in cases {
            let found = danger(&text).map(|(what, _)| what);
            let start: String = text.chars().take(40).collect();
            assert_eq!(found.is_some(), expected.is_some(), "{start}: {found:?}");
            assert!(expected.is_none_or(|part| found.is_some_and(|found| found.contains(part))), "{start}: {found:?}");
        }
    }
}
