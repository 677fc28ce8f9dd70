//! Keeps text of users, tools and documents plain: a special token in it would end its message and begin one of the
//! system.
//!
//! A tokenizer finds special tokens anywhere in a prompt, in the template's own text and in contents alike. So special
//! tokens in contents are split by a mark character before the template is rendered, and the prompt is cut at the marks
//! before it is tokenised: neither half is special.

use aho_corasick::AhoCorasick;
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::error::TextError;
use super::message::{Chat, Message};
use super::tools::{CLOSE, MISTRAL, OPEN, PYTHON, THINK};

/// Texts that must be split in contents.
#[derive(Debug)]
pub(super) struct Plain {
    /// The tokenizer's special tokens.
    special: AhoCorasick,
    /// The special tokens, and further markers of templates and answers that are not special to the tokenizer.
    marks: AhoCorasick,
}

/// Candidates for the mark, of which one is chosen that does not occur: private-use characters.
const MARKS: std::ops::RangeInclusive<char> = '\u{e000}'..='\u{e0ff}';

impl Plain {
    /// For a tokenizer; `template` is the source of the chat template.
    pub(super) fn new(tokenizer: &Tokenizer, template: &str) -> Result<Self, TextError> {
        let added = tokenizer.get_added_tokens_decoder();
        let spelled = |special: bool| {
            added.values().filter(move |token| token.special == special).map(|token| token.content.clone())
        };
        let special: Vec<String> = spelled(true).filter(|text| !text.is_empty()).collect();
        let used = [OPEN, CLOSE, MISTRAL, PYTHON, THINK.0, THINK.1, "<tool_response>", "</tool_response>"];
        let used = used.map(str::to_owned).into_iter();
        // Runs of spaces are added tokens, too.
        let named = spelled(false).filter(|text| !text.trim().is_empty() && template.contains(text.as_str()));
        let marks: Vec<String> = special.iter().cloned().chain(used).chain(named).collect();
        let build =
            |list: &[String]| AhoCorasick::new(list).map_err(|error| TextError::Internal(error.to_string().into()));
        Ok(Self { special: build(&special)?, marks: build(&marks)? })
    }

    /// Splits every marker in the contents of a conversation; returns the mark, if there was one to split.
    pub(super) fn protect(&self, chat: &mut Chat) -> Option<char> {
        let mut says = false;
        visit(chat, &mut |_, text| says |= self.marks.is_match(text.as_str()));
        if !says {
            return None;
        }
        let mut free: Vec<char> = MARKS.collect();
        visit(chat, &mut |_, text| {
            // Neither the mark nor what JSON in ASCII makes of it.
            if !text.is_ascii() || text.contains("\\u") {
                free.retain(|mark| !text.contains(*mark) && !text.contains(&escaped(*mark)));
            }
        });
        // Who says all of them gets none through.
        let mark = free.first().copied().unwrap_or('\u{fffd}');
        visit(chat, &mut |role, text| {
            // An assistant's own turns come back with its thoughts and calls, which templates look for.
            let spellings = if role == "assistant" { &self.special } else { &self.marks };
            if let Some(broken) = break_up(text, spellings, mark) {
                *text = broken;
            }
        });
        Some(mark)
    }

    /// The parts of a prompt between marks.
    pub(super) fn parts(prompt: &str, mark: char) -> Vec<String> {
        // Templates may write JSON in ASCII.
        prompt.replace(&escaped(mark), &mark.to_string()).split(mark).map(str::to_owned).collect()
    }
}

fn escaped(mark: char) -> String {
    format!("\\u{:04x}", u32::from(mark))
}

/// A text with the mark after the first character of every marker; `None` if there is none.
fn break_up(text: &str, spellings: &AhoCorasick, mark: char) -> Option<String> {
    let found = spellings.find_overlapping_iter(text);
    let mut starts: Vec<(usize, usize)> = found.map(|spelling| (spelling.start(), spelling.end())).collect();
    if starts.is_empty() {
        return None;
    }
    starts.sort_unstable();
    // Of those that begin in one place the shortest.
    starts.dedup_by_key(|(start, _)| *start);
    let mut broken = String::with_capacity(text.len() + starts.len() * mark.len_utf8());
    let mut done = 0;
    for (start, end) in starts {
        let Some(first) = text[start..].chars().next() else { continue };
        broken.push_str(&text[done..start]);
        // A single character has no halves.
        broken.push(if start + first.len_utf8() == end { '\u{fffd}' } else { first });
        broken.push(mark);
        done = start + first.len_utf8();
    }
    broken.push_str(&text[done..]);
    Some(broken)
}

/// Visits every text that is not the template's own, with the role of its message.
fn visit(chat: &mut Chat, see: &mut dyn FnMut(&str, &mut String)) {
    for Message { role, content, tool_calls, tool_call_id, name } in &mut chat.messages {
        see(role, content);
        tool_call_id.iter_mut().chain(name.iter_mut()).for_each(|text| see("", text));
        for call in tool_calls {
            see("", &mut call.id);
            see("", &mut call.function.name);
            values(&mut call.function.arguments, see);
        }
    }
    chat.tools.iter_mut().for_each(|tool| values(tool, see));
    object(&mut chat.options, see);
}

fn values(value: &mut Value, see: &mut dyn FnMut(&str, &mut String)) {
    match value {
        Value::String(text) => see("", text),
        Value::Array(list) => list.iter_mut().for_each(|value| values(value, see)),
        Value::Object(map) => object(map, see),
        _ => {}
    }
}

fn object(map: &mut Map<String, Value>, see: &mut dyn FnMut(&str, &mut String)) {
    map.values_mut().for_each(|value| values(value, see));
    let mut changed = false;
    let renamed: Vec<(String, String)> = map
        .keys()
        .map(|key| {
            let mut new = key.clone();
            see("", &mut new);
            changed |= new != *key;
            (key.clone(), new)
        })
        .collect();
    if changed {
        // In their order, which templates show.
        let mut old = std::mem::take(map);
        map.extend(renamed.into_iter().filter_map(|(key, new)| Some((new, old.swap_remove(&key)?))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_half_of_a_broken_spelling_is_one() {
        let spellings = ["<|im_end|>", "<|im", "a<", "<b", "\u{2603}"];
        let found = AhoCorasick::new(spellings).unwrap();
        for text in
            ["<|im_end|>", "x<|im_end|><|im_end|>", "a<b", "a<|im_end|>b", "<<|im_end|>>", "\u{2603}", "za<", "<|im"]
        {
            let broken = break_up(text, &found, '\u{e000}').unwrap();
            for part in Plain::parts(&broken, '\u{e000}') {
                assert!(!found.is_match(part.as_str()), "{text}: {part}");
            }
            if !text.contains('\u{2603}') {
                assert_eq!(broken.replace('\u{e000}', ""), text);
            }
        }
        assert_eq!(break_up("<| im_end |>", &found, '\u{e000}'), None);
    }
}
