//! Parses class names in an export's metadata: Python's `repr` of a dict or a list, read like `ast.literal_eval` (The
//! Python Language Reference, 2.4.1). Returns the names in the order of their numbers, as Ultralytics does
//! (`nn/autobackend.py`, `check_class_names`).

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

use crate::log::printable;

/// The names in order; the error describes what is wrong with the text.
pub(super) fn python_names(text: &str) -> Result<Vec<String>, String> {
    let mut reader = LiteralReader { rest: text.trim().chars().peekable() };
    let names = match reader.rest.next() {
        Some('{') => reader.entries()?,
        Some('[') => reader.elements(']')?,
        Some('(') => reader.elements(')')?,
        _ => return Err("no dict or list".to_owned()),
    };
    if reader.rest.next().is_some() {
        return Err("something follows the names".to_owned());
    }
    if names.is_empty() || !names.keys().copied().eq(0..names.len()) {
        return Err("the numbers do not run from 0".to_owned());
    }
    Ok(names.into_values().collect())
}

struct LiteralReader<'a> {
    rest: Peekable<Chars<'a>>,
}

impl LiteralReader<'_> {
    /// Skips spaces and peeks at the next character.
    fn ahead(&mut self) -> Option<char> {
        while self.rest.next_if(|letter| letter.is_ascii_whitespace()).is_some() {}
        self.rest.peek().copied()
    }

    fn take(&mut self, wanted: char) -> Result<(), String> {
        match self.ahead() {
            Some(found) if found == wanted => {
                self.rest.next();
                Ok(())
            }
            Some(found) => Err(format!("`{}` where `{wanted}` was expected", printable(&found.to_string()))),
            None => Err(format!("it ends where `{wanted}` was expected")),
        }
    }

    /// Reads a comma or the end of a list; returns whether another element follows.
    fn goes_on(&mut self, end: char) -> Result<bool, String> {
        if self.ahead() != Some(end) {
            self.take(',')?;
        }
        if self.ahead() != Some(end) {
            return Ok(true);
        }
        self.rest.next();
        Ok(false)
    }

    /// Reads a dict after its brace. The last of equal keys wins.
    fn entries(&mut self) -> Result<BTreeMap<usize, String>, String> {
        let mut names = BTreeMap::new();
        if self.ahead() == Some('}') {
            self.rest.next();
            return Ok(names);
        }
        loop {
            let number = self.value()?;
            let number = number.parse().map_err(|_| format!("`{}` is no number of a class", printable(&number)))?;
            self.take(':')?;
            names.insert(number, self.value()?);
            if !self.goes_on('}')? {
                return Ok(names);
            }
        }
    }

    /// Reads a list after its bracket.
    fn elements(&mut self, end: char) -> Result<BTreeMap<usize, String>, String> {
        let mut names = BTreeMap::new();
        if self.ahead() == Some(end) {
            self.rest.next();
            return Ok(names);
        }
        loop {
            names.insert(names.len(), self.value()?);
            if !self.goes_on(end)? {
                return Ok(names);
            }
        }
    }

    /// Reads a string, or the text of a number or of True, False and None. Adjacent strings are joined.
    fn value(&mut self) -> Result<String, String> {
        let mut text: Option<String> = None;
        while let Some(letter) = self.ahead() {
            let word = match letter {
                '\'' | '"' => String::new(),
                letter if letter.is_ascii_alphanumeric() || letter == '-' => self.word(),
                _ => break,
            };
            match (self.rest.peek().copied(), word.to_ascii_lowercase().as_str()) {
                (Some('\'' | '"'), prefix @ ("" | "r" | "u")) => {
                    let piece = self.string(prefix == "r")?;
                    text.get_or_insert_default().push_str(&piece);
                }
                (_, _) if text.is_none() && is_plain(&word) => return Ok(word),
                _ => return Err(format!("`{}` is no text", printable(&word))),
            }
        }
        text.ok_or_else(|| "a name is missing".to_owned())
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(letter) = self.rest.next_if(|letter| letter.is_ascii_alphanumeric() || *letter == '-') {
            word.push(letter);
        }
        word
    }

    /// Reads a quoted string.
    fn string(&mut self, raw: bool) -> Result<String, String> {
        let quote = self.rest.next().unwrap_or('\'');
        let mut text = String::new();
        loop {
            match self.rest.next() {
                None | Some('\n') => return Err("a text does not end".to_owned()),
                Some('\\') if raw => {
                    text.push('\\');
                    text.extend(self.rest.next());
                }
                Some('\\') => self.escape(&mut text)?,
                Some(letter) if letter == quote => break,
                Some(letter) => text.push(letter),
            }
        }
        if text.is_empty() && self.rest.peek() == Some(&quote) {
            return Err("texts in three quotes are not read".to_owned());
        }
        Ok(text)
    }

    /// Reads an escape after its backslash. An unknown escape stays as it is.
    fn escape(&mut self, text: &mut String) -> Result<(), String> {
        let letter = self.rest.next().ok_or("a text does not end")?;
        let meant = match letter {
            '\n' => return Ok(()),
            '\\' | '\'' | '"' => letter,
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            'x' => self.character(2)?,
            'u' => self.character(4)?,
            'U' => self.character(8)?,
            'N' => return Err("`\\N` names a character, which is not read".to_owned()),
            '0'..='7' => {
                let mut code = letter.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = self.rest.next_if(|letter| letter.is_digit(8)) else { break };
                    code = code * 8 + digit.to_digit(8).unwrap_or(0);
                }
                char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER) // at most 0o777
            }
            other => {
                text.push('\\');
                other
            }
        };
        text.push(meant);
        Ok(())
    }

    /// Reads a character given by `digits` hexadecimal digits.
    fn character(&mut self, digits: usize) -> Result<char, String> {
        let mut code = 0u32;
        for _ in 0..digits {
            let digit = self.rest.next().and_then(|letter| letter.to_digit(16));
            // Eight digits fill 32 bits.
            code = (code << 4) | digit.ok_or("an escape ends too early")?;
        }
        char::from_u32(code).ok_or_else(|| format!("\\u{code:x} is no character"))
    }
}

/// Whether Python's `str` of the value is the word itself.
fn is_plain(word: &str) -> bool {
    let digits = word.strip_prefix('-').unwrap_or(word);
    let number = digits == "0" || (!digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit()));
    matches!(word, "True" | "False" | "None") || (!digits.is_empty() && number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_python_reads_them() {
        // The names are what Python 3.11's ast.literal_eval gives, values by str().
        let cases: [(&str, &[&str]); 12] = [
            (r#"{0: 'person', 1: "driver's", 2: 'a\'b'}"#, &["person", "driver's", "a'b"]),
            (
                r"{0: 'tab\tx zero\u200bwidth', 1: 'nb\xa0sp', 2: 'nl\nx', 3: 'back\\slash'}",
                &["tab\tx zero\u{200b}width", "nb\u{a0}sp", "nl\nx", "back\\slash"],
            ),
            ("{1: 'b', 0: 'a'}", &["a", "b"]),
            ("['a', 'b',]", &["a", "b"]),
            ("('a', 'b')", &["a", "b"]),
            ("{'0': 'a', '1': 7, 2: True}", &["a", "7", "True"]),
            (r#"{0: '\101\0\x41\u0142\U0001F989\q', 1: 'a' 'b' "c"}"#, &["A\0Ał🦉\\q", "abc"]),
            (r"{0: r'a\tb', 1: u'ó'}", &["a\\tb", "ó"]),
            ("{0: 'a\\\nb'}", &["ab"]),
            ("{0: 'a', 0: 'b'}", &["b"]),
            (r"{0: '\a\b\f\v\r'}", &["\u{7}\u{8}\u{c}\u{b}\r"]),
            ("  {0: 'żółw', 1: '🦉'} ", &["żółw", "🦉"]),
        ];
        for (text, names) in cases {
            assert_eq!(python_names(text).unwrap(), names, "{text}");
        }
    }

    #[test]
    fn what_python_or_ultralytics_does_not_take_is_refused() {
        for bad in [
            "",
            "{}",
            "[]",
            "{1: 'a'}",
            "{-1: 'a', 0: 'b'}",
            "{0: a}",
            "{0: 'a}",
            "{0: 'a'",
            "{0: 'a'} x",
            "{0 'a'}",
            "{0: b'a'}",
            "{0: 'a\nb'}",
            r"{0: '\xg1'}",
            r"{0: '\u12'}",
            r"{0: '\U00110000'}",
            // Python takes these; no Rust text holds half a surrogate pair, and Ultralytics writes none of them.
            r"{0: '\ud800'}",
            r"{0: '\N{OWL}'}",
            "{0: '''a'''}",
        ] {
            assert!(python_names(bad).is_err(), "{bad}");
        }
    }
}
