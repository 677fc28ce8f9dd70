//! Splits an answer's text, as it is generated, into content, reasoning and tool calls.
//!
//! Calls have the form that [`super::tools::grammar`] enforces, so nothing is guessed: a marker begins a call, and its
//! name and the key of its arguments follow in this order.

use super::tools::{MISTRAL, OPEN, PYTHON, Style, THINK};

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// Content for the user.
    Content(String),
    /// Reasoning.
    Reasoning(String),
    /// A tool call begins.
    Call {
        /// Index of the call, from 0.
        index: usize,
        /// Name of the function.
        name: String,
    },
    /// More of a call's arguments, as JSON text.
    Arguments {
        /// Index of the call.
        index: usize,
        /// A piece of the JSON text.
        text: String,
        /// Whether it is the last piece.
        complete: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AnswerState {
    /// At the beginning, where reasoning may begin.
    Start,
    Thoughts,
    /// Between reasoning and content.
    Gap,
    Words,
    /// In a call's object, before its name and arguments key have been read.
    Head,
    Arguments {
        depth: usize,
        quoted: bool,
        escaped: bool,
    },
    /// After a call, where another may begin.
    Between,
}

/// Reads an answer's text incrementally.
#[derive(Debug, Clone)]
pub struct AnswerReader {
    /// Form of calls; `None` if the answer has none.
    style: Option<Style>,
    state: AnswerState,
    held: String,
    said: bool,
    calls: usize,
}

impl AnswerReader {
    /// `calls`: the form of calls, if there may be any. `thoughts`: whether there may be reasoning; `Some(true)` if the
    /// prompt ends inside of it.
    pub fn new(calls: Option<Style>, thoughts: Option<bool>) -> Self {
        let state = match thoughts {
            Some(true) => AnswerState::Thoughts,
            Some(false) => AnswerState::Start,
            None => AnswerState::Words,
        };
        Self { style: calls, state, held: String::new(), said: false, calls: 0 }
    }

    /// Adds text, and returns the parts that are certain.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        self.held.push_str(text);
        let mut deltas = Vec::new();
        while self.advance(&mut deltas) {}
        deltas
    }

    /// Returns the text that was held back, at the end of the answer.
    pub fn finish(&mut self) -> Vec<Delta> {
        let rest = std::mem::take(&mut self.held);
        match self.state {
            _ if rest.is_empty() => Vec::new(),
            AnswerState::Thoughts => vec![Delta::Reasoning(rest)],
            AnswerState::Start | AnswerState::Gap | AnswerState::Words => vec![Delta::Content(rest)],
            AnswerState::Head | AnswerState::Arguments { .. } | AnswerState::Between => Vec::new(),
        }
    }

    /// Makes one step; false if more text is needed.
    fn advance(&mut self, deltas: &mut Vec<Delta>) -> bool {
        match self.state {
            AnswerState::Start => {
                let begun = self.held.trim_start();
                if let Some(rest) = begun.strip_prefix(THINK.0) {
                    self.held = rest.to_owned();
                    self.state = AnswerState::Thoughts;
                } else if THINK.0.starts_with(begun) {
                    return false;
                } else {
                    self.state = AnswerState::Words;
                }
            }
            AnswerState::Thoughts => {
                if !self.said {
                    self.held = self.held.trim_start_matches('\n').to_owned();
                }
                let (thoughts, ended) = split(&mut self.held, THINK.1, true);
                if !thoughts.is_empty() {
                    self.said = true;
                    deltas.push(Delta::Reasoning(thoughts));
                }
                if !ended {
                    return false;
                }
                self.held = self.held.trim_start().to_owned();
                (self.state, self.said) = (AnswerState::Gap, false);
            }
            AnswerState::Gap => {
                self.held = self.held.trim_start().to_owned();
                if self.held.is_empty() {
                    return false;
                }
                self.state = AnswerState::Words;
            }
            AnswerState::Words => return self.words(deltas),
            AnswerState::Head => return self.head(deltas),
            AnswerState::Arguments { .. } => return self.arguments(deltas),
            AnswerState::Between => match self.held.find('{') {
                Some(at) => {
                    self.held.drain(..at);
                    self.state = AnswerState::Head;
                }
                None => {
                    self.held.clear();
                    return false;
                }
            },
        }
        true
    }

    fn words(&mut self, deltas: &mut Vec<Delta>) -> bool {
        let marker = match self.style {
            None => {
                if !self.held.is_empty() {
                    deltas.push(Delta::Content(std::mem::take(&mut self.held)));
                }
                return false;
            }
            Some(Style::Llama3) if !self.said => {
                let begun = self.held.trim_start();
                let begun = begun.strip_prefix(PYTHON).unwrap_or(begun);
                if begun.starts_with('{') {
                    self.held = begun.to_owned();
                    self.state = AnswerState::Head;
                    return true;
                }
                if begun.is_empty() || PYTHON.starts_with(begun) {
                    return false;
                }
                PYTHON
            }
            Some(Style::Llama3) => PYTHON,
            Some(Style::Mistral) => MISTRAL,
            Some(Style::Hermes | Style::Prompted) => OPEN,
        };
        let (words, called) = split(&mut self.held, marker, false);
        if called {
            self.state = AnswerState::Between;
        }
        // Space before a call is no words.
        let kept = words.trim_end().len();
        if !called {
            self.held.insert_str(0, &words[kept..]);
        }
        if kept > 0 {
            self.said = true;
            deltas.push(Delta::Content(words[..kept].to_owned()));
        }
        called
    }

    /// Reads `{"name": "…", "arguments": `.
    fn head(&mut self, deltas: &mut Vec<Delta>) -> bool {
        let key = format!("\", \"{}\": ", self.style.map_or("arguments", Style::arguments));
        let Some(at) = self.held.find(&key) else { return false };
        let name = self.held[..at].rsplit('"').next().unwrap_or_default().to_owned();
        self.held.drain(..at + key.len());
        deltas.push(Delta::Call { index: self.calls, name });
        self.state = AnswerState::Arguments { depth: 0, quoted: false, escaped: false };
        true
    }

    fn arguments(&mut self, deltas: &mut Vec<Delta>) -> bool {
        let AnswerState::Arguments { mut depth, mut quoted, mut escaped } = self.state else { return false };
        let mut end = None;
        for (at, byte) in self.held.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b'{' | b'[' if !quoted => depth += 1,
                b'}' | b']' if !quoted => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        end = Some(at + 1);
                        break;
                    }
                }
                _ => {}
            }
        }
        let rest = self.held.split_off(end.unwrap_or(self.held.len()));
        let text = std::mem::replace(&mut self.held, rest);
        let index = self.calls;
        let complete = end.is_some();
        if complete {
            self.calls += 1;
            // The brace that closes the call.
            self.state = AnswerState::Between;
        } else {
            self.state = AnswerState::Arguments { depth, quoted, escaped };
        }
        if !text.is_empty() {
            deltas.push(Delta::Arguments { index, text, complete });
        }
        complete
    }
}

/// Splits off the text before `marker`, and the marker itself if it is there; else the text that cannot be its
/// beginning (with `space`, nor the space before it).
fn split(held: &mut String, marker: &str, space: bool) -> (String, bool) {
    if let Some(at) = held.find(marker) {
        let rest = held.split_off(at + marker.len());
        let mut before = std::mem::replace(held, rest);
        before.truncate(at);
        if space {
            before.truncate(before.trim_end().len());
        }
        return (before, true);
    }
    let begins = |at: &usize| marker.starts_with(&held[*at..]);
    let mut keep = held.char_indices().map(|(at, _)| at).find(begins).unwrap_or(held.len());
    if space {
        keep = held[..keep].trim_end().len();
    }
    let rest = held.split_off(keep);
    (std::mem::replace(held, rest), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Content, reasoning and calls (name, arguments, complete) of a text that is read in pieces of `size` bytes.
    fn read(reader: AnswerReader, text: &str, size: usize) -> (String, String, Vec<(String, String, bool)>) {
        let (mut reader, mut words, mut thoughts, mut calls) = (reader, String::new(), String::new(), Vec::new());
        let characters: Vec<char> = text.chars().collect();
        let mut deltas: Vec<Delta> =
            characters.chunks(size).flat_map(|piece| reader.push(&piece.iter().collect::<String>())).collect();
        deltas.extend(reader.finish());
        for delta in deltas {
            match delta {
                Delta::Content(text) => words.push_str(&text),
                Delta::Reasoning(text) => thoughts.push_str(&text),
                Delta::Call { index, name } => {
                    assert_eq!(index, calls.len());
                    calls.push((name, String::new(), false));
                }
                Delta::Arguments { index, text, complete } => {
                    calls[index].1.push_str(&text);
                    calls[index].2 |= complete;
                }
            }
        }
        (words, thoughts, calls)
    }

    #[test]
    fn newlines_before_a_thought_are_no_part_of_it() {
        for size in 1..8 {
            let reader = AnswerReader::new(None, Some(true));
            let parted = read(reader, "\n\nHm.\n</think>\n\nYes.", size);
            assert_eq!(parted, ("Yes.".to_owned(), "Hm.".to_owned(), Vec::new()), "{size}");
        }
    }

    #[test]
    fn answers_are_parted_however_they_come() {
        let call = |name: &str, arguments: &str| (name.to_owned(), arguments.to_owned(), true);
        let hermes = "I look.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"}\\\"{\", \"n\": [{}]}}\n\
                      </tool_call>\n<tool_call>\n{\"name\": \"go\", \"arguments\": {}}\n</tool_call>";
        let both = vec![call("look", "{\"at\": \"}\\\"{\", \"n\": [{}]}"), call("go", "{}")];
        let mistral =
            "[TOOL_CALLS] [{\"name\": \"look\", \"arguments\": {\"a\": 1}}, {\"name\": \"go\", \"arguments\": {}}]";
        let llama = "<|python_tag|>{\"name\": \"look\", \"parameters\": {\"a\": 1}}";
        let thought = "<think>\nIs it < 3?\n</think>\n\nYes  & no\n";
        for size in [1, 2, 3, 7, 1000] {
            let reader = |style| AnswerReader::new(Some(style), None);
            let (words, _, calls) = read(reader(Style::Hermes), hermes, size);
            assert_eq!((words.as_str(), calls), ("I look.", both.clone()), "pieces of {size}");
            let (words, _, calls) = read(reader(Style::Mistral), mistral, size);
            assert_eq!((words.as_str(), calls), ("", vec![call("look", "{\"a\": 1}"), call("go", "{}")]));
            for text in [llama, &llama[PYTHON.len()..]] {
                let (words, _, calls) = read(reader(Style::Llama3), text, size);
                assert_eq!((words.as_str(), calls), ("", vec![call("look", "{\"a\": 1}")]));
            }
            let (words, ..) = read(reader(Style::Llama3), "A {b} <c> ", size);
            assert_eq!(words, "A {b} <c> ");
            let (words, thoughts, _) = read(AnswerReader::new(Some(Style::Hermes), Some(false)), thought, size);
            assert_eq!((words.as_str(), thoughts.as_str()), ("Yes  & no\n", "Is it < 3?"));
            let (words, thoughts, _) = read(AnswerReader::new(None, Some(true)), "deep\n</think>x", size);
            assert_eq!((words.as_str(), thoughts.as_str()), ("x", "deep"));
            let (words, ..) = read(AnswerReader::new(None, None), hermes, size);
            assert_eq!(words, hermes, "no functions, no calls");
            let cut = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"do";
            let (_, _, calls) = read(reader(Style::Prompted), cut, size);
            assert_eq!(calls, [("look".to_owned(), "{\"at\": \"do".to_owned(), false)]);
        }
    }
}
