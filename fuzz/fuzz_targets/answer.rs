//! An answer's text, in every style: words, thoughts and calls are the same however it is cut into pieces, none of it is told
//! twice, calls follow each other, and where there are none to look for it is all words.
#![no_main]

use libfuzzer_sys::fuzz_target;
use watus_build::text::tools::Style;
use watus_build::text::{AnswerReader, Delta};

#[derive(Debug, Default, PartialEq)]
struct Parts {
    words: String,
    thoughts: String,
    /// Name, arguments, whether they are complete.
    calls: Vec<(String, String, bool)>,
}

fn read<'a>(mut reader: AnswerReader, pieces: impl Iterator<Item = &'a str>) -> Parts {
    let mut parts = Parts::default();
    let mut deltas: Vec<Delta> = pieces.flat_map(|piece| reader.push(piece)).collect();
    deltas.extend(reader.finish());
    for delta in deltas {
        match delta {
            Delta::Content(text) => parts.words.push_str(&text),
            Delta::Reasoning(text) => parts.thoughts.push_str(&text),
            Delta::Call { index, name } => {
                assert_eq!(index, parts.calls.len(), "calls count up");
                parts.calls.push((name, String::new(), false));
            }
            Delta::Arguments { index, text, complete } => {
                assert_eq!(index + 1, parts.calls.len(), "arguments are the last call's");
                let call = &mut parts.calls[index];
                assert!(!call.2, "what is complete has no more");
                call.1.push_str(&text);
                call.2 = complete;
            }
        }
    }
    parts
}

/// Pieces of one to seven characters, as the text itself has it.
fn pieces(text: &str) -> Vec<&str> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while let Some(first) = rest.bytes().next() {
        let end = rest.char_indices().nth(usize::from(first % 7) + 1).map_or(rest.len(), |(at, _)| at);
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let styles = [Style::Hermes, Style::Llama3, Style::Mistral, Style::Prompted].map(Some);
    for style in styles.into_iter().chain([None]) {
        for thoughts in [None, Some(false), Some(true)] {
            let reader = AnswerReader::new(style, thoughts);
            let whole = read(reader.clone(), [text].into_iter());
            let characters = text.char_indices().map(|(at, letter)| &text[at..at + letter.len_utf8()]);
            assert_eq!(read(reader.clone(), characters), whole, "{style:?} {thoughts:?}, a character at a time");
            assert_eq!(read(reader, pieces(text).into_iter()), whole, "{style:?} {thoughts:?}, in pieces");
            let called: usize = whole.calls.iter().map(|(name, arguments, _)| name.len() + arguments.len()).sum();
            assert!(whole.words.len() + whole.thoughts.len() + called <= text.len(), "{whole:?}");
            assert!(style.is_some() || whole.calls.is_empty(), "{whole:?}");
            assert!(thoughts.is_some() || whole.thoughts.is_empty(), "{whole:?}");
            assert!(style.is_some() || thoughts.is_some() || whole.words == text, "{whole:?}");
        }
    }
});
