//! Constrained decoding: enforces tool calls and JSON by allowing only tokens that a grammar accepts next.
//!
//! Grammars are in llguidance's dialect of Lark (its docs/syntax.md), with JSON schemas inline.

use std::collections::BTreeSet;
use std::sync::Arc;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use crate::diagnostic::Diagnostic;
use crate::executor::LlmError;
use crate::text::SPECIAL;

const _: () = assert!(SPECIAL == TokTrie::SPECIAL_TOKEN_MARKER, "vocabularies mark special tokens as llguidance does");

/// Compiles grammars for a vocabulary.
pub struct Grammars(ParserFactory);

impl Grammars {
    /// For tokens with the bytes `words` (empty for numbers without a token), of which `ends` end an answer.
    pub fn new(words: &[Vec<u8>], ends: &BTreeSet<u32>) -> Result<Self, LlmError> {
        let ends: Vec<u32> = ends.iter().copied().filter(|end| (*end as usize) < words.len()).collect();
        let Some(first) = ends.first() else {
            let what = Diagnostic::new("the model has no token that ends an answer");
            return Err(LlmError::Internal(what.with_help("its generation_config.json should name eos_token_id")));
        };
        let size = u32::try_from(words.len()).unwrap_or(u32::MAX);
        let trie = TokTrie::from(&TokRxInfo::new(size, *first), words).with_eos_tokens(&ends);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let factory = ParserFactory::new_simple(&environment);
        let mut factory = factory.map_err(|error| LlmError::Internal(format!("grammars: {error:#}").into()))?;
        factory.quiet();
        bound(factory.limits_mut());
        Ok(Self(factory))
    }

    /// For a vocabulary of single bytes, which suffices to measure the cost of compiling.
    pub fn of_bytes() -> Result<Self, LlmError> {
        let words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).chain([vec![SPECIAL, b'.']]).collect();
        Self::new(&words, &BTreeSet::from([256]))
    }

    /// Compiles a grammar and tries its first steps, so that an unusable one is refused before the answer begins.
    pub fn compile(&self, lark: &str) -> Result<Grammar, LlmError> {
        let parser = self.0.create_parser(TopLevelGrammar::from_lark(lark.to_owned()));
        let parser = parser.map_err(|error| refused(&error))?;
        let mut matcher = Matcher::new(Ok(parser));
        try_out(matcher.deep_clone()).map_err(|error| refused(&error))?;
        let mask = Some(matcher.compute_mask_or_eos().map_err(|error| refused(&error))?);
        Ok(Grammar { matcher, mask })
    }
}

/// Limits the cost of a grammar and of each step; llguidance documents 14,000 units of lexer fuel and 20,000 items per
/// millisecond.
fn bound(limits: &mut ParserLimits) {
    limits.verbose_errors = false;
    limits.initial_lexer_fuel = 1_000_000;
    limits.step_lexer_fuel = 200_000;
    limits.step_max_items = 50_000;
    // 1 to 2 KB each.
    limits.max_lexer_states = 25_000;
    // Symbols; every waiting request holds its grammar.
    limits.max_grammar_size = 100_000;
    // The whole vocabulary at once: a step's budget would not hold.
    limits.precompute_large_lexemes = false;
}

/// Steps that are tried before an answer begins: an object's brace, a key's quote and a little of the key.
const TRIED: usize = 6;

fn try_out(mut matcher: Matcher) -> anyhow::Result<()> {
    for _ in 0..TRIED {
        let mask = matcher.compute_mask_or_eos()?;
        let words = mask.as_slice().iter().zip(0u32..);
        let Some(token) =
            words.filter(|(word, _)| **word != 0).map(|(word, at)| at * 32 + word.trailing_zeros()).next()
        else {
            return Ok(());
        };
        matcher.consume_token(token)?;
        if matcher.is_stopped() {
            return Ok(());
        }
    }
    Ok(())
}

/// An error as one line, without the grammar that some errors repeat.
fn refused(error: &anyhow::Error) -> LlmError {
    let text = format!("{error:#}");
    let line = match text.lines().next().unwrap_or_default() {
        line if line.contains("NoExtensionBias") => "no token of the model spells what would have to follow",
        // The library's own words about itself.
        line if line.contains("panic") || line.contains("assertion") => {
            tracing::warn!("compiling a grammar: {line}");
            "it is beyond what the grammar's compiler can do"
        }
        line => line,
    };
    let end = line.floor_char_boundary(LONGEST);
    LlmError::Request(format!("{}{}", &line[..end], if end < line.len() { "…" } else { "" }))
}

/// Most bytes of an error's text.
const LONGEST: usize = 300;

/// A compiled grammar, and the state of an answer in it.
#[derive(Clone)]
pub struct Grammar {
    matcher: Matcher,
    /// The allowed next tokens, if they were computed in advance.
    mask: Option<SimpleVob>,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammar")
    }
}

impl Grammar {
    /// Computes the allowed next tokens in advance, while the device is busy.
    pub fn prepare(&mut self) -> Result<(), LlmError> {
        self.mask = Some(self.matcher.compute_mask_or_eos().map_err(|error| failed(&error))?);
        Ok(())
    }

    /// Sets the logits of tokens that are not allowed to minus infinity.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), LlmError> {
        if self.mask.is_none() {
            self.prepare()?;
        }
        let Some(mask) = self.mask.take() else { return Ok(()) };
        let words = mask.as_slice();
        for (logits, word) in logits.chunks_mut(32).zip(words.iter().copied().chain(std::iter::repeat(0))) {
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        Ok(())
    }

    /// Advances by a token; returns true if only the end may follow.
    pub fn accept(&mut self, token: u32) -> Result<bool, LlmError> {
        self.matcher.consume_token(token).map_err(|error| failed(&error))?;
        Ok(self.matcher.is_stopped())
    }
}

fn failed(error: &anyhow::Error) -> LlmError {
    LlmError::Request(format!("the answer cannot go on as its schema or functions demand: {}", refused(error)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::text::lark::json_rule;

    /// A vocabulary of bytes, a few longer tokens, a special token and the end.
    fn words() -> Vec<Vec<u8>> {
        let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        words.extend([
            b"<tool_call>".to_vec(),
            b"{\"".to_vec(),
            b"true".to_vec(),
            [&[SPECIAL][..], b"[CALL]"].concat(),
        ]);
        words.push(vec![]);
        words.push([&[SPECIAL][..], b"</s>"].concat());
        words
    }

    const END: u32 = 261;

    /// Feeds a text by bytes, then special tokens; returns where it was refused, or whether it was complete.
    fn feed(lark: &str, text: &[u8], more: &[u32]) -> Result<bool, usize> {
        let grammars = Grammars::new(&words(), &[END].into()).unwrap();
        let mut grammar = grammars.compile(lark).unwrap();
        let mut complete = false;
        for (at, token) in text.iter().map(|byte| u32::from(*byte)).chain(more.iter().copied()).enumerate() {
            let mut logits = vec![0.0; words().len()];
            grammar.mask(&mut logits).unwrap();
            if logits[token as usize] != 0.0 {
                return Err(at);
            }
            complete = grammar.accept(token).unwrap();
        }
        Ok(complete)
    }

    #[test]
    fn schemas_are_enforced() {
        let schema = json!({
            "type": "object", "required": ["name", "home"], "title": "Robot",
            "properties": {"name": {"type": "string"}, "home": {"$ref": "#/$defs/Place"}},
            "$defs": {"Place": {"type": "object", "properties": {"room": {"enum": ["hall", "lab"]},
                                "floor": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["room"]}},
        });
        let lark = format!("start: value\n{}", json_rule("value", &schema));
        assert_eq!(feed(&lark, br#"{"name": "W", "home": {"room": "lab", "floor": 3}}"#, &[]), Ok(true));
        assert_eq!(feed(&lark, br#"{"name": "W", "home": {"room": "lab"}}"#, &[]), Ok(true));
        assert_eq!(feed(&lark, br#"{"name": 1"#, &[]), Err(9));
        assert_eq!(feed(&lark, br#"{"name": "W", "home": {"room": "attic"}}"#, &[]), Err(32));
        assert_eq!(feed(&lark, br#"{"name": "W", "age": 1"#, &[]), Err(15), "keys nobody asked for");
        assert_eq!(feed(&lark, b"{ ", &[]), Err(1), "spaces without end");
    }

    #[test]
    fn a_text_is_free_until_it_calls() {
        let lark = format!(
            "start: TEXT | head call \"\\n</tool_call>\"\nTEXT: /(.|\\n)*/\nhead[lazy]: /(.|\\n)*<tool_call>\\n/\ncall: \"[\" \
             value \"]\"\n{}",
            json_rule("value", &json!({"enum": ["yes", "no"]}))
        );
        assert_eq!(feed(&lark, b"Anything <b>at</b> all", &[END]), Ok(true));
        assert_eq!(feed(&lark, b"I call: <tool_call>\n[\"no\"]\n</tool_call>", &[]), Ok(true));
        assert_eq!(feed(&lark, b"<tool_call>\n{", &[]), Err(12));
        assert_eq!(feed(&lark, b"<tool_call>\n[\"no\"]\n</tool_call>x", &[]), Err(31));
        // A special token cannot be spelled, and a text cannot hold one.
        let lark = "start: /(.|\\n)*/ | <[259]> \"!\"";
        assert_eq!(feed(lark, b"[CALL]?", &[END]), Ok(true));
        assert_eq!(feed(lark, b"", &[259, 33]), Ok(true));
        assert_eq!(feed(lark, b"a", &[259]), Err(1));
    }

    #[test]
    fn a_grammar_that_makes_no_sense_is_refused() {
        let grammars = Grammars::new(&words(), &[END].into()).unwrap();
        let error = grammars.compile(&format!("start: v\n{}", json_rule("v", &json!({"type": "robot"})))).unwrap_err();
        assert!(error.to_string().contains("robot"), "{error}");
        assert!(Grammars::new(&words(), &BTreeSet::new()).is_err());
    }
}
