//! Constrained decoding: enforces tool calls and JSON by allowing only tokens that a grammar accepts next.
//!
//! Grammars are in llguidance's dialect of Lark (its docs/syntax.md), with JSON schemas inline.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory, regex_to_lark};
use serde_json::Value;

use super::drafter::DraftWalk;
use super::schema;
use crate::diagnostic::Diagnostic;
use crate::executor::LlmError;
use crate::log::printable;
use crate::text::SPECIAL;

const _: () = assert!(SPECIAL == TokTrie::SPECIAL_TOKEN_MARKER, "vocabularies mark special tokens as llguidance does");

/// Compiles grammars for a vocabulary.
pub struct Grammars(ParserFactory);

/// Tokenises a part of a text.
pub type Tokenize = Box<dyn Fn(&str) -> Vec<u32> + Send + Sync>;

/// A vocabulary with its tokenizer.
struct GrammarTokens {
    trie: TokTrie,
    tokenize: Tokenize,
}

impl TokenizerEnv for GrammarTokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// What the tokenizer normalises away, or has no token for, is spelled by the vocabulary.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let part = |part: &str| {
            let tokens = (self.tokenize)(part);
            let known = tokens.iter().all(|token| (*token as usize) < self.trie.vocab_size());
            let same = known && self.trie.decode_raw(&tokens) == part.as_bytes();
            if same { tokens } else { self.trie.greedy_tokenize(part.as_bytes()) }
        };
        self.trie.tokenize_with_greedy_fallback(bytes, part)
    }
}

impl Grammars {
    /// For tokens with the bytes `words` (empty for numbers without a token), of which `ends` end an answer. What a grammar
    /// leaves no choice about may be spelled with any of them.
    pub fn new(words: &[Vec<u8>], ends: &BTreeSet<u32>) -> Result<Self, LlmError> {
        Self::of(words, ends, |trie| Arc::new(ApproximateTokEnv::new(trie)))
    }

    /// For tokens as in [`Grammars::new`]. What a grammar leaves no choice about is spelled as `tokenize` spells it, as in
    /// the texts that models learn from; see [`Grammar::forced`].
    pub fn with_tokenizer(words: &[Vec<u8>], ends: &BTreeSet<u32>, tokenize: Tokenize) -> Result<Self, LlmError> {
        // Without all bytes of UTF-8 not everything can be spelled.
        let single = |word: &Vec<u8>| if let [byte] = word[..] { Some(byte) } else { None };
        let bytes: BTreeSet<u8> = words.iter().filter_map(single).collect();
        let spells = (0..0xc0).chain(0xc2..0xf5).all(|byte| bytes.contains(&byte));
        match spells {
            true => Self::of(words, ends, |trie| Arc::new(GrammarTokens { trie, tokenize })),
            false => Self::new(words, ends),
        }
    }

    fn of(
        words: &[Vec<u8>],
        ends: &BTreeSet<u32>,
        environment: impl FnOnce(TokTrie) -> TokEnv,
    ) -> Result<Self, LlmError> {
        let ends: Vec<u32> = ends.iter().copied().filter(|end| (*end as usize) < words.len()).collect();
        let Some(first) = ends.first() else {
            let what = Diagnostic::new("the model has no token that ends an answer");
            return Err(LlmError::internal(what.with_help("its generation_config.json should name eos_token_id")));
        };
        let size = u32::try_from(words.len()).unwrap_or(u32::MAX);
        let trie = TokTrie::from(&TokRxInfo::new(size, *first), words).with_eos_tokens(&ends);
        let factory = ParserFactory::new_simple(&environment(trie));
        let mut factory = factory.map_err(|error| LlmError::internal(format!("grammars: {error:#}")))?;
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
        let mut parser = parser.map_err(|error| refused(&error, lark))?;
        // What llguidance leaves out it says in a warning, and goes on.
        if parser.grammar_warnings().iter().any(|warning| warning.starts_with(BOUNDS_LEFT_OUT)) {
            return Err(LlmError::request(BOUNDS_NOT_ENFORCED));
        }
        let mut matcher = Matcher::new(Ok(parser));
        try_out(matcher.deep_clone()).map_err(|error| refused(&error, lark))?;
        let mask = matcher.compute_mask_or_eos().map_err(|error| refused(&error, lark))?;
        Ok(Grammar { matcher, masks: VecDeque::from([mask]), ahead: VecDeque::new() })
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

/// How llguidance's warning begins where it leaves out the number of an object's properties (`gen_json_object` in its
/// src/json/compiler.rs).
const BOUNDS_LEFT_OUT: &str = "min/maxProperties only supported";
/// What is said then.
const BOUNDS_NOT_ENFORCED: &str =
    "`minProperties` and `maxProperties` cannot be enforced beside properties that are not `required`";

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

/// An error as one line, without the grammar that some errors repeat. What is wrong with a pattern is told with its place in the
/// schema.
fn refused(error: &anyhow::Error, lark: &str) -> LlmError {
    let text = format!("{error:#}");
    let line = text.lines().next().unwrap_or_default();
    // Before it stands where in our own grammar the schema is.
    let line = line.split_once("failed to compile JSON schema: ").map_or(line, |(_, line)| line);
    let told = match line {
        line if line.contains("NoExtensionBias") => "no token of the model spells what would have to follow".to_owned(),
        // It counts those that are required.
        line if line.starts_with("Unsatisfiable schema: minProperties") => BOUNDS_NOT_ENFORCED.to_owned(),
        // The library's own words about itself.
        line if line.contains("panic") || line.contains("assertion") => {
            tracing::warn!("compiling a grammar: {line}");
            "it is beyond what the grammar's compiler can do".to_owned()
        }
        line => of_pattern(line, &text, lark).unwrap_or_else(|| line.to_owned()),
    };
    LlmError::request(brief(&told, LONGEST))
}

/// A text, or its beginning if it has more bytes than `most`.
fn brief(text: &str, most: usize) -> String {
    let end = text.floor_char_boundary(most);
    format!("{}{}", &text[..end], if end < text.len() { "…" } else { "" })
}

/// What is wrong with a pattern of a schema, and where it stands there; `None` if the error is about something else.
///
/// The errors are those of regex-syntax, which show the pattern in their second line and give the reason in a later one, and those of
/// derivre (its src/syntax.rs), which end in the pattern. Both have the pattern as llguidance rewrites it.
fn of_pattern(line: &str, text: &str, lark: &str) -> Option<String> {
    const OF_SYNTAX: &str = "regex parse error:";
    const OF_LOOKAROUNDS: &str = "lookarounds not supported yet";
    let is_syntax = line.ends_with(OF_SYNTAX);
    if !is_syntax && !line.starts_with(OF_LOOKAROUNDS) {
        return None;
    }
    let after = text.lines().skip_while(|line| !line.ends_with(OF_SYNTAX)).skip(1);
    let shown = after.clone().next().unwrap_or_default().strip_prefix("    ");
    let is_it = |rewritten: &str| match is_syntax {
        true => shown == Some(rewritten),
        false => line.ends_with(&format!(" in regex /{rewritten}/")),
    };
    let reason = match is_syntax {
        true => after.clone().find_map(|line| line.strip_prefix("error: ")).unwrap_or("it is no regular expression"),
        false => "`^` and `$` may only stand at its ends, and `\\b` and `\\B` nowhere",
    };
    let mut schemas =
        lark.lines().filter_map(|rule| serde_json::from_str::<Value>(rule.split_once(": %json ")?.1).ok());
    let place = |schema: Value| {
        let mut patterns = schema::patterns(&schema).into_iter();
        let (path, pattern) = patterns.find(|(_, pattern)| is_it(&regex_to_lark(pattern, "dw")))?;
        let (path, pattern) = (brief(&printable(&path), LONGEST_PLACE), printable(pattern));
        Some(format!("{path}: the pattern cannot be enforced: {reason}: `{pattern}`"))
    };
    Some(schemas.find_map(place).unwrap_or_else(|| format!("a pattern cannot be enforced: {reason}")))
}

/// Most bytes of an error's text.
const LONGEST: usize = 400;
/// Most bytes of a place in a schema: names of properties may be long.
const LONGEST_PLACE: usize = 150;

/// A compiled grammar, and the state of an answer in it.
#[derive(Clone)]
pub struct Grammar {
    matcher: Matcher,
    /// What was computed in advance: the tokens that are allowed next, and after each of the tokens `ahead`.
    masks: VecDeque<SimpleVob>,
    ahead: VecDeque<u32>,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammar")
    }
}

impl Grammar {
    /// Computes in advance, while the device is busy, which tokens are allowed next, and after each token of a draft.
    pub fn prepare(&mut self, draft: &[u32]) -> Result<(), LlmError> {
        self.masks = VecDeque::from([self.matcher.compute_mask_or_eos().map_err(|error| failed(&error))?]);
        self.ahead.clear();
        if draft.is_empty() {
            return Ok(());
        }
        // A copy, since what fails on the way to a draft that nobody accepts is no error of the answer, and grammars with
        // lookahead cannot be rolled back.
        let mut matcher = self.matcher.clone();
        for token in draft {
            let mask = matcher.consume_token(*token).and_then(|()| matcher.compute_mask_or_eos());
            let Ok(mask) = mask else { break };
            self.masks.push_back(mask);
            self.ahead.push_back(*token);
        }
        Ok(())
    }

    /// Sets the logits of tokens that are not allowed to minus infinity.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), LlmError> {
        if self.masks.len() <= self.ahead.len() {
            self.prepare(&[])?;
        }
        let Some(mask) = self.masks.pop_front() else { return Ok(()) };
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
        if self.masks.len() > self.ahead.len() {
            self.masks.pop_front();
        }
        if self.ahead.pop_front() != Some(token) {
            self.masks.clear();
            self.ahead.clear();
        }
        self.matcher.consume_token(token).map_err(|error| failed(&error))?;
        Ok(self.matcher.is_stopped())
    }

    /// The next token, if the grammar leaves no choice about it. The mask allows no other then, so whoever samples gets it.
    pub fn forced(&mut self) -> Option<u32> {
        forced(&mut self.matcher)
    }

    /// Continues a draft to `most` tokens: with what the grammar forces, and what the texts say and the grammar allows.
    pub(super) fn draft(&self, walk: &mut DraftWalk<'_>, most: usize) {
        // As in `prepare`.
        let mut matcher = self.matcher.clone();
        while walk.len() < most && walk.is_likely() && !matcher.is_stopped() {
            let forced = forced(&mut matcher);
            let Some(token) = forced.or_else(|| walk.guess()) else { break };
            // The last token of an answer needs no row: nothing is asked after it.
            if !matches!(matcher.try_consume_tokens(&[token]), Ok(1)) || matcher.is_stopped() {
                break;
            }
            walk.take(token, forced.is_some());
        }
    }
}

fn forced(matcher: &mut Matcher) -> Option<u32> {
    // The first alone: how the others are spelled is asked again after it, as by the mask.
    matcher.compute_ff_tokens().first().copied()
}

fn failed(error: &anyhow::Error) -> LlmError {
    LlmError::request(format!("the answer cannot go on as its schema or functions demand: {}", refused(error, "")))
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

    /// With a tokenizer that takes the longest token.
    fn with_tokenizer() -> Grammars {
        let tokenize = |text: &str| {
            let (mut rest, mut tokens) = (text.as_bytes(), Vec::<u32>::new());
            while !rest.is_empty() {
                let fits = words().into_iter().zip(0..).filter(|(word, _)| !word.is_empty() && rest.starts_with(word));
                let (word, token) = fits.max_by_key(|(word, _)| word.len()).unwrap();
                rest = &rest[word.len()..];
                tokens.push(token);
            }
            tokens
        };
        Grammars::with_tokenizer(&words(), &[END].into(), Box::new(tokenize)).unwrap()
    }

    /// Feeds what `say` chooses where there is a choice; returns all tokens, and which of them were forced.
    fn run(mut grammar: Grammar, mut say: impl FnMut(&[f32]) -> u32) -> (Vec<u32>, Vec<bool>) {
        let (mut tokens, mut forced) = (Vec::new(), Vec::new());
        loop {
            let known = grammar.forced();
            let mut logits = vec![0.0; words().len()];
            grammar.mask(&mut logits).unwrap();
            let allowed: Vec<u32> = (0..).zip(&logits).filter(|(_, logit)| **logit == 0.0).map(|(at, _)| at).collect();
            if let Some(token) = known {
                assert_eq!(allowed, [token], "the mask allows what is forced and nothing else");
            }
            let token = known.unwrap_or_else(|| say(&logits));
            assert!(allowed.contains(&token), "{token} after {tokens:?}");
            tokens.push(token);
            forced.push(known.is_some());
            if grammar.accept(token).unwrap() {
                return (tokens, forced);
            }
        }
    }

    #[test]
    fn what_is_forced_is_what_the_mask_allows() {
        let schema = json!({"type": "object", "required": ["a", "b"], "properties":
            {"a": {"enum": ["yes", "no"]}, "b": {"const": true}}});
        let lark = format!("start: value\n{}", json_rule("value", &schema));
        let grammars = with_tokenizer();
        let (tokens, forced) = run(grammars.compile(&lark).unwrap(), |logits| {
            if logits[usize::from(b'n')] == 0.0 { u32::from(b'n') } else { u32::from(b'o') }
        });
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| words()[*token as usize].clone()).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), r#"{"a": "no", "b": true}"#);
        assert!(tokens.contains(&257) && tokens.contains(&258), "as the tokenizer spells it: {tokens:?}");
        let chosen = forced.iter().filter(|forced| !**forced).count();
        assert!(chosen <= 2, "`no` alone is a choice: {forced:?}");
        // Any spelling goes where there is no tokenizer.
        let mut free = Grammars::new(&words(), &[END].into()).unwrap().compile(&lark).unwrap();
        assert_eq!(free.forced(), None);
    }

    #[test]
    fn masks_in_advance_are_those_on_the_way() {
        let lark =
            format!("start: value\n{}", json_rule("value", &json!({"type": "array", "items": {"type": "integer"}})));
        let grammars = with_tokenizer();
        let tokens: Vec<u32> = b"[12, 3]".iter().map(|byte| u32::from(*byte)).collect();
        let masked = |grammar: &mut Grammar| {
            let mut logits = vec![0.0; words().len()];
            grammar.mask(&mut logits).unwrap();
            logits
        };
        // Drafts that are right, that end too early, that go wrong, and that no grammar allows.
        for draft in [&tokens[..6], &tokens[..3], &[91, 49, 44, 32], &[91, 91], &[]] {
            let (mut ahead, mut plain) = (grammars.compile(&lark).unwrap(), grammars.compile(&lark).unwrap());
            ahead.prepare(draft).unwrap();
            for token in &tokens {
                assert_eq!(masked(&mut ahead), masked(&mut plain), "{draft:?} before {token}");
                assert_eq!(ahead.accept(*token).unwrap(), plain.accept(*token).unwrap());
            }
        }
        // A token that was forced passes its mask over.
        let mut skipped = grammars.compile(&lark).unwrap();
        skipped.prepare(&tokens[..3]).unwrap();
        skipped.accept(tokens[0]).unwrap();
        let mut plain = grammars.compile(&lark).unwrap();
        plain.accept(tokens[0]).unwrap();
        assert_eq!(masked(&mut skipped), masked(&mut plain));
    }

    #[test]
    fn drafts_keep_to_the_grammar() {
        use super::super::drafter::{DraftTexts, Drafter};
        let lark = format!("start: value\n{}", json_rule("value", &json!({"enum": ["north", "south"]})));
        let grammar = with_tokenizer().compile(&lark).unwrap();
        let bytes = |text: &str| -> Vec<u32> { text.bytes().map(u32::from).collect() };
        let draft = |prediction: &str| {
            let mut drafter = Drafter::new(DraftTexts { prediction: bytes(prediction), ..DraftTexts::default() }, 300);
            drafter.learn();
            let mut walk = DraftWalk::new(&drafter);
            grammar.draft(&mut walk, 20);
            walk.finish().iter().map(|draft| (draft.token, draft.chance)).collect::<Vec<_>>()
        };
        // The quote is forced; the closing one ends the answer, and is no row.
        let tokens = |draft: Vec<(u32, f64)>| draft.into_iter().map(|(token, _)| token).collect::<Vec<_>>();
        assert_eq!(tokens(draft("\"south\"")), bytes("\"south"));
        assert_eq!(tokens(draft("\"east\"")), bytes("\""), "what is not allowed is not drafted");
        assert_eq!(draft("")[0].1, 1.0, "what is forced is certain");
    }

    /// The cases in which llguidance enforces them, and those in which it leaves them out.
    #[test]
    fn numbers_of_properties_are_enforced_or_refused() {
        let lark = |schema: Value| format!("start: value\n{}", json_rule("value", &schema));
        let named = json!({"a": {"const": 1}, "b": {"const": 2}});
        let one = lark(json!({"type": "object", "properties": named, "minProperties": 1}));
        assert_eq!((feed(&one, b"{}", &[]), feed(&one, br#"{"b": 2}"#, &[])), (Err(1), Ok(true)));
        let at_most_one = lark(json!({"type": "object", "properties": named, "maxProperties": 1}));
        assert_eq!(feed(&at_most_one, br#"{"a": 1, "#, &[]), Err(7));
        let open = lark(json!({"type": "object", "maxProperties": 1, "additionalProperties": {"const": 1}}));
        assert_eq!(feed(&open, br#"{"x": 1, "#, &[]), Err(7));
        let grammars = Grammars::new(&words(), &[END].into()).unwrap();
        for schema in [
            json!({"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "minProperties": 2}),
            json!({"type": "object", "properties": named, "additionalProperties": true, "maxProperties": 1}),
        ] {
            let error = grammars.compile(&lark(schema)).unwrap_err().to_string();
            assert!(error.contains("`minProperties` and `maxProperties` cannot be enforced"), "{error}");
        }
    }

    #[test]
    fn a_grammar_that_makes_no_sense_is_refused() {
        let grammars = Grammars::new(&words(), &[END].into()).unwrap();
        let error = grammars.compile(&format!("start: v\n{}", json_rule("v", &json!({"type": "robot"})))).unwrap_err();
        assert_eq!(error.to_string(), "Invalid type: robot");
        assert!(Grammars::new(&words(), &BTreeSet::new()).is_err());
    }

    /// The reasons are regex-syntax's, for patterns that Python's `re` or ECMAScript may know.
    #[test]
    fn a_pattern_that_cannot_be_enforced_is_told_with_its_place() {
        let grammars = Grammars::new(&words(), &[END].into()).unwrap();
        let of = |pattern: &str| json!({"properties": {"kod": {"anyOf": [{"type": "string", "pattern": pattern}]}}});
        let at = "#/properties/kod/anyOf/0/pattern";
        let cases = [
            (of("a("), at, "unclosed group: `a(`"),
            (of("[\n/"), at, "unclosed character class: `["),
            (of("ąę**("), at, ": `ąę**(`"),
            (of("a(?=b)"), at, "look-around, including look-ahead and look-behind, is not supported: `a(?=b)`"),
            (of(r"\d(\w)\1"), at, r"backreferences are not supported: `\d(\w)\1`"),
            (of("a$b/"), at, "`^` and `$` may only stand at its ends"),
            (of(r"\bkod"), at, r"`\b` and `\B` nowhere: `\bkod`"),
            (json!({"patternProperties": {"^ok": {}, "x(": {}}}), "#/patternProperties", "unclosed group: `x(`"),
            (json!({"$ref": "#/$defs/P", "$defs": {"P": {"pattern": "(x"}}}), "#/$defs/P/pattern", "unclosed group"),
        ];
        for (schema, place, reason) in cases {
            let lark =
                format!("start: a | b\n{}{}", json_rule("a", &json!({"pattern": "fine"})), json_rule("b", &schema));
            let told = grammars.compile(&lark).unwrap_err().to_string();
            assert!(told.starts_with(&format!("{place}: the pattern cannot be enforced: ")), "{schema}: {told}");
            assert!(told.contains(reason) && told.lines().count() == 1, "{schema}: {told}");
        }
        let long = grammars
            .compile(&format!("start: a\n{}", json_rule("a", &of(&format!("{}(", "ż".repeat(400))))))
            .unwrap_err();
        assert!(long.to_string().contains("unclosed group") && long.to_string().len() < 420, "{long}");
    }
}
