//! Answers with and without speculation are the same: drafts, predictions, tokens that a grammar forces, prompts beside
//! other answers' steps. The model is a function of all tokens before, so that a row too many or too few is seen.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;
use watus_build::backend::BackendInfo;
use watus_build::executor::{Executor, HostLogits, LlmError, MemoryUse, Rows, Step, StepLogits, WantedLogits};
use watus_build::generation::{Choice, Finish, Generator, Grammar, Grammars, Request, Usage};
use watus_build::text::{Sampling, Text};

const MAX_LEN: usize = 300;
const VOCABULARY: usize = 257;
const END: u32 = 256;

/// What an executor was asked for.
#[derive(Debug, Default)]
struct Record {
    launches: Vec<Vec<Step>>,
    /// (slot, tokens) of each prefill.
    prefills: Vec<(usize, usize)>,
}

/// A model that mostly says a round of sixteen letters, and sometimes what depends on all tokens before.
struct Scripted {
    slots: Vec<Vec<u32>>,
    launched: Vec<Step>,
    record: Arc<Mutex<Record>>,
    /// Rows of a launch; as many as slots if they are computed one after another.
    rows: usize,
}

fn logits(before: &[u32]) -> Vec<f32> {
    let mut hash = before.iter().fold(7_u64, |hash, token| (hash ^ u64::from(*token)).wrapping_mul(0x0100_0000_01b3));
    let mut noise = || {
        hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (hash >> 40) as f32 / (1_u64 << 24) as f32
    };
    let last = before.last().copied().unwrap_or(0);
    let next = 97 + (last * 5 + 1) % 16;
    (0..VOCABULARY as u32).map(|token| 8.0 * noise() + if token == next { 7.7 } else { 0.0 }).collect()
}

impl Scripted {
    fn read(&mut self, slot: usize, position: usize, token: u32) -> Vec<f32> {
        let held = &mut self.slots[slot];
        assert!(position <= held.len(), "slot {slot}: {position} follows {}", held.len());
        held.truncate(position);
        held.push(token);
        logits(held)
    }
}

impl Executor for Scripted {
    fn info(&self) -> BackendInfo {
        BackendInfo { name: "scripted".to_owned(), device: "none".to_owned() }
    }
    fn slots(&self) -> usize {
        self.slots.len()
    }
    fn max_len(&self) -> usize {
        MAX_LEN
    }
    fn vocab_size(&self) -> usize {
        VOCABULARY
    }
    fn pass(&self, _: usize, remaining: usize) -> usize {
        remaining.min(64)
    }
    fn prefill(&mut self, slot: usize, position: usize, tokens: &[u32], rows: Rows) -> Result<Vec<f32>, LlmError> {
        self.record.lock().unwrap().prefills.push((slot, tokens.len()));
        let mut last = Vec::new();
        for (token, position) in tokens.iter().zip(position..) {
            last = self.read(slot, position, *token);
        }
        Ok(if rows == Rows::Last { last } else { Vec::new() })
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn launch_cost(&self, rows: usize) -> f64 {
        if self.rows == self.slots.len() { rows as f64 } else { 1.0 + 0.05 * rows as f64 }
    }
    fn prefill_cost(&self, _: usize, _: usize) -> f64 {
        if self.rows == self.slots.len() { 0.0 } else { 2.0 }
    }
    fn launch(&mut self, steps: &[Step]) -> Result<(), LlmError> {
        assert!(!steps.is_empty() && steps.len() <= self.rows && self.launched.is_empty());
        self.launched = steps.to_vec();
        self.record.lock().unwrap().launches.push(steps.to_vec());
        Ok(())
    }
    fn collect(&mut self) -> Result<Box<dyn StepLogits + '_>, LlmError> {
        let mut all = Vec::new();
        for step in std::mem::take(&mut self.launched) {
            let logits = self.read(step.slot, step.position, step.token);
            all.push(if step.wanted == WantedLogits::None { Vec::new() } else { logits });
        }
        Ok(Box::new(HostLogits(all)))
    }
    fn copy(&mut self, from: usize, to: usize, positions: usize) -> Result<(), LlmError> {
        self.slots[to] = self.slots[from][..positions].to_vec();
        Ok(())
    }
    fn release(&mut self, slot: usize) {
        self.slots[slot].clear();
    }
    fn memory(&self) -> MemoryUse {
        MemoryUse::default()
    }
    fn bandwidth(&mut self) -> Result<f64, LlmError> {
        Ok(1.0)
    }
    fn bytes_per_step(&self) -> u64 {
        1
    }
}

/// A tokenizer whose tokens are bytes, and an end.
fn text(folder: &Path) -> Text {
    // GPT-2's printable stand-ins for bytes: printable ones stand for themselves, the rest follow from U+0100 on.
    let mut next = 256;
    let mut vocabulary = serde_json::Map::new();
    for byte in 0..=255_u32 {
        let plain = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let letter = char::from_u32(if plain { byte } else { next }).unwrap();
        next += u32::from(!plain);
        vocabulary.insert(letter.to_string(), byte.into());
    }
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let end = json!({"id": END, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                     "normalized": false, "special": true});
    let document = json!({
        "version": "1.0", "added_tokens": [end], "normalizer": null, "pre_tokenizer": level, "post_processor": null,
        "decoder": level, "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    std::fs::write(folder.join("tokenizer.json"), document.to_string()).unwrap();
    std::fs::write(folder.join("generation_config.json"), json!({"eos_token_id": END}).to_string()).unwrap();
    Text::open(folder).unwrap()
}

#[derive(Clone, Copy)]
struct Way {
    slots: usize,
    rows: usize,
    speculation: bool,
}

/// A step for every token.
const PLAIN: Way = Way { slots: 1, rows: 32, speculation: false };
const FAST: Way = Way { slots: 1, rows: 32, speculation: true };
/// Rows of one slot cost as much as steps.
const ONE_BY_ONE: Way = Way { slots: 1, rows: 1, speculation: true };

fn generator(way: Way) -> (Generator, Arc<Mutex<Record>>) {
    let folder = tempfile::tempdir().unwrap();
    let record = Arc::new(Mutex::new(Record::default()));
    let slots = vec![Vec::new(); way.slots];
    let executor = Scripted { slots, launched: Vec::new(), record: Arc::clone(&record), rows: way.rows };
    let mut generator = Generator::new(Box::new(executor), Arc::new(text(folder.path())), MAX_LEN - 1);
    if !way.speculation {
        generator.without_speculation();
    }
    (generator, record)
}

/// An answer as its pieces told it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Told {
    choices: Vec<Choice>,
    text: String,
    finish: Option<Finish>,
    answer: usize,
}

impl Told {
    fn hear(&mut self, piece: &watus_build::generation::Piece) {
        assert!(piece.failure.is_none(), "{:?}", piece.failure);
        assert!(self.finish.is_none(), "nothing comes after the end");
        self.choices.push(piece.choice.clone());
        self.text.push_str(&piece.text);
        self.finish = piece.finish;
        self.answer = piece.usage.answer;
        assert_eq!(self.answer, self.choices.len());
    }

    fn tokens(&self) -> Vec<u32> {
        self.choices.iter().map(|choice| choice.token).collect()
    }
}

fn answer(generator: &mut Generator, request: Request) -> (Told, Usage) {
    let mut told = Told::default();
    let usage = generator
        .answer(request, |piece| {
            told.hear(piece);
            true
        })
        .unwrap();
    (told, usage)
}

/// An answer, what it took, and the number of launches.
fn alone(way: Way, request: &Request) -> (Told, Usage, usize) {
    let (mut generator, record) = generator(way);
    let (told, usage) = answer(&mut generator, request.clone());
    let launches = record.lock().unwrap().launches.len();
    (told, usage, launches)
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn request(prompt: &str, max_tokens: usize) -> Request {
    Request { prompt: bytes(prompt), max_tokens, ..Request::default() }
}

#[test]
fn every_answer_is_the_same() {
    let warm = |temperature: f32, seed: u64| Sampling { temperature, seed, ..Sampling::default() };
    let settings = [
        Sampling::default(),
        warm(0.4, 1),
        warm(1.0, 2),
        Sampling { top_k: 5, ..warm(0.9, 3) },
        Sampling { top_p: 0.7, min_p: 0.05, ..warm(1.2, 4) },
        Sampling { top_logprobs: Some(3), ..Sampling::default() },
        Sampling { top_logprobs: Some(0), ..warm(0.5, 5) },
        Sampling { repetition_penalty: 1.1, frequency_penalty: 0.05, ..warm(0.3, 6) },
        Sampling { logit_bias: vec![(u32::from(b'q'), 3.0)], ..Sampling::default() },
    ];
    let verse = "abcd, abcd, what follows abcd? ";
    let (mut drafted, mut accepted) = (0, 0);
    for (index, sampling) in settings.into_iter().enumerate() {
        for (prompt, max_tokens) in
            [(verse.repeat(4), 150), ("x".to_owned(), 60), (verse.repeat(8), 1000), ("y".into(), 1)]
        {
            let plain = Request { sampling: sampling.clone(), ..request(&prompt, max_tokens) };
            let (want, usage, launches) = alone(PLAIN, &plain);
            assert_eq!(usage.speculation, Default::default());
            assert!(launches + 1 >= want.answer, "a step for every token but the first");
            // No prediction, the right one, one that goes wrong and comes back, and nonsense.
            let right = want.tokens();
            let mut half = right.clone();
            half.iter_mut().skip(5).step_by(23).for_each(|token| *token = 33);
            for prediction in [Vec::new(), right, half, bytes("nothing of the kind"), vec![9999; 8]] {
                let asked = Request { prediction: prediction.clone(), ..plain.clone() };
                for way in [FAST, ONE_BY_ONE, Way { rows: 3, ..FAST }] {
                    let (have, usage, _) = alone(way, &asked);
                    assert_eq!(have, want, "settings {index}, {max_tokens} tokens, {} predicted", prediction.len());
                    drafted += usage.speculation.drafted;
                    accepted += usage.speculation.accepted;
                    let (predicted, right) = usage.speculation.predicted;
                    assert!(right <= predicted && predicted <= usage.speculation.drafted, "{usage:?}");
                    assert!(way.rows > 1 || usage.speculation.drafted == 0, "what does not pay is left");
                }
            }
        }
    }
    assert!(accepted > 2000 && drafted > accepted, "{accepted} of {drafted}");
}

#[test]
fn what_is_known_takes_few_steps() {
    let plain = request("Say it. ", 200);
    let (want, _, launches) = alone(PLAIN, &plain);
    let (have, usage, fewer) = alone(FAST, &Request { prediction: want.tokens(), ..plain.clone() });
    assert_eq!((have, launches), (want.clone(), 200));
    assert!(fewer < 40, "{fewer} launches");
    let (predicted, right) = usage.speculation.predicted;
    assert!(right > 150 && predicted == right, "{usage:?}");
    // The same from a text that all answers share, and from what a request may quote.
    let (mut shared, record) = generator(FAST);
    shared.draft_from(&want.tokens());
    assert_eq!(answer(&mut shared, plain.clone()).0, want);
    assert!(record.lock().unwrap().launches.len() < 60);
    let quotable = Request { quotable: want.tokens(), ..plain.clone() };
    assert!(alone(FAST, &quotable).2 < 60);
    // Without anything to repeat hardly a row is lost: eight tokens of noise.
    let noise = Sampling { temperature: 50.0, seed: 3, ..Sampling::default() };
    let usage = alone(FAST, &Request { sampling: noise, ignore_end: true, ..plain }).1;
    assert!(usage.speculation.drafted < 20, "{usage:?}");
}

#[test]
fn an_answer_ends_within_a_draft() {
    let plain = request("Once more. ", 120);
    let (long, ..) = alone(PLAIN, &plain);
    let predicted = |request: Request| Request { prediction: long.tokens(), ..request };
    for length in 1..40 {
        let short = Request { max_tokens: length, ..plain.clone() };
        let (want, ..) = alone(PLAIN, &short);
        let (have, usage, _) = alone(FAST, &predicted(short));
        assert_eq!((have.answer, have.finish), (length.min(long.answer), want.finish));
        assert_eq!(have, want);
        assert_eq!(usage.answer, have.answer);
    }
    for from in (0..long.text.len().min(90)).step_by(3) {
        let Some(stop) = long.text.get(from..from + 4) else { continue };
        let stopped = Request { stop: vec![stop.to_owned()], ..plain.clone() };
        let (want, ..) = alone(PLAIN, &stopped);
        assert_eq!(want.finish, Some(Finish::Stop));
        assert_eq!(alone(FAST, &predicted(stopped)).0, want, "stopped by {stop:?}");
    }
    // The model's own end is drafted too, and is no row.
    let biased = Sampling { logit_bias: vec![(END, 2.5)], ..Sampling::default() };
    let ends = Request { sampling: biased, ..plain };
    let (want, ..) = alone(PLAIN, &ends);
    assert!(want.finish == Some(Finish::Stop) && want.answer > 1, "{want:?}");
    let (have, ..) = alone(FAST, &Request { prediction: want.tokens(), ..ends });
    assert_eq!(have, want);
}

fn grammar(schema: &serde_json::Value) -> Grammar {
    let words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).chain([vec![0xff, b'.']]).collect();
    let tokenize = Box::new(|text: &str| text.bytes().map(u32::from).collect::<Vec<u32>>());
    let rule = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
    let mut schema = schema.clone();
    schema["x-guidance"] = rule;
    let lark = format!("start: value\nvalue: %json {schema}\n");
    Grammars::with_tokenizer(&words, &[END].into(), tokenize).unwrap().compile(&lark).unwrap()
}

#[test]
fn forced_json_is_the_same_and_takes_few_steps() {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["function", "arguments"],
        "properties": {
            "function": {"enum": ["drive_forward", "drive_backward", "stop"]},
            "arguments": {
                "type": "object", "additionalProperties": false, "required": ["distance_in_metres", "speed"],
                "properties": {
                    "distance_in_metres": {"type": "integer", "minimum": 0, "maximum": 99},
                    "speed": {"enum": ["slow", "fast"]},
                },
            },
        },
    });
    let grammar = grammar(&schema);
    let (mut steps, mut fewer) = (0, 0);
    for seed in 0..12 {
        let temperature = if seed < 2 { 0.0 } else { 1.0 };
        let top_logprobs = (seed % 3 == 1).then_some(2);
        let sampling = Sampling { temperature, seed, top_logprobs, ..Sampling::default() };
        let prompt = format!("call {seed}: ");
        let asked = Request { sampling, grammar: Some(grammar.clone()), ..request(&prompt, 150) };
        let (want, _, launches) = alone(PLAIN, &asked);
        assert!(want.finish == Some(Finish::Stop), "{want:?}");
        let said: serde_json::Value = serde_json::from_str(&want.text).unwrap();
        assert!(said["arguments"]["speed"].is_string(), "{said}");
        for way in [FAST, ONE_BY_ONE, Way { rows: 4, ..FAST }] {
            let (have, usage, fast) = alone(way, &asked);
            assert_eq!(have, want, "seed {seed}, {} rows", way.rows);
            if way.rows == FAST.rows {
                (steps, fewer) = (steps + launches, fewer + fast);
                let known = usage.speculation.forced + usage.speculation.accepted;
                assert!(known > want.answer / 2, "{usage:?}");
                assert_eq!(usage.speculation.forced == 0, top_logprobs.is_some(), "probabilities are of logits");
            }
        }
        // Cut off anywhere, within what is forced as well.
        for max_tokens in [1, 2, 9, 30] {
            let short = Request { max_tokens, ..asked.clone() };
            assert_eq!(alone(FAST, &short).0, alone(PLAIN, &short).0, "{max_tokens} tokens");
        }
        let predicted = Request { prediction: want.tokens(), ..asked };
        assert_eq!(alone(FAST, &predicted).0, want);
    }
    assert!(2 * fewer < steps, "{fewer} launches instead of {steps}");
}

/// Takes a step; adds what each request was told.
fn step(generator: &mut Generator, told: &mut BTreeMap<u64, Told>) {
    for piece in generator.step().unwrap() {
        told.entry(piece.request).or_default().hear(&piece);
    }
}

fn finish(generator: &mut Generator, told: &mut BTreeMap<u64, Told>) {
    while !generator.is_idle() {
        step(generator, told);
    }
}

#[test]
fn answers_made_together_are_what_they_are_alone() {
    let grammar =
        grammar(&json!({"type": "array", "items": {"enum": ["left", "right"]}, "minItems": 3, "maxItems": 5}));
    let requests: Vec<Request> = (0..9)
        .map(|index| {
            let temperature = [0.0, 0.7, 1.0][index % 3];
            let prompt = "turn and turn and ".repeat(1 + index * 2 % 5);
            Request {
                sampling: Sampling { temperature, seed: index as u64, ..Sampling::default() },
                grammar: (index % 4 == 3).then(|| grammar.clone()),
                prediction: if index % 2 == 0 { bytes("ahead, and turn, and turn") } else { Vec::new() },
                client: index as u64 % 2,
                ..request(&prompt, 20 + 9 * index)
            }
        })
        .collect();
    let want: Vec<Told> = requests.iter().map(|request| alone(PLAIN, request).0).collect();
    for (slots, rows) in [(1, 32), (3, 32), (3, 5), (4, 4), (9, 16)] {
        let (mut generator, record) = generator(Way { slots, rows, speculation: true });
        for request in &requests {
            generator.submit(request.clone()).unwrap();
        }
        let mut told = BTreeMap::new();
        finish(&mut generator, &mut told);
        let told: Vec<Told> = told.into_values().collect();
        assert_eq!(told, want, "{slots} slots, {rows} rows");
        assert!(record.lock().unwrap().launches.iter().all(|launch| launch.len() <= rows));
    }
}

#[test]
fn a_short_prompt_rides_with_the_others() {
    let (mut generator, record) = generator(Way { slots: 2, rows: 32, speculation: false });
    let mut told = BTreeMap::new();
    let requests =
        [request("A long story. ", 80), request("And this?", 10), request(&"Too long to ride. ".repeat(3), 4)];
    generator.submit(requests[0].clone()).unwrap();
    (0..5).for_each(|_| step(&mut generator, &mut told));
    generator.submit(requests[1].clone()).unwrap();
    generator.submit(requests[2].clone()).unwrap();
    let before = record.lock().unwrap().prefills.len();
    step(&mut generator, &mut told);
    {
        let record = record.lock().unwrap();
        let launch = record.launches.last().unwrap();
        assert_eq!(launch.len(), 1 + "And this?".len(), "{launch:?}");
        let wanted = launch.iter().filter(|step| step.wanted != WantedLogits::None).count();
        assert_eq!((wanted, record.prefills.len()), (2, before), "no pass of its own");
    }
    finish(&mut generator, &mut told);
    let want = requests.map(|request| alone(PLAIN, &request).0);
    assert_eq!(told.into_values().collect::<Vec<_>>(), want);
    // The third found no room among the rows.
    assert_eq!(record.lock().unwrap().prefills.iter().map(|(_, tokens)| *tokens).max(), Some(54));
}

#[test]
fn a_cancelled_answer_leaves_nothing_behind() {
    let verse = "one two one two one two ";
    let (mut generator, _) = generator(FAST);
    let prediction = alone(PLAIN, &request(verse, 100)).0.tokens();
    for steps in 1..12 {
        let running = generator.submit(Request { prediction: prediction.clone(), ..request(verse, 100) }).unwrap();
        for _ in 0..steps {
            generator.step().unwrap();
        }
        generator.cancel(running);
        // What is in the slot is used again, as far as it is the same.
        let longer = format!("{verse}and {steps}");
        let (told, usage) = answer(&mut generator, request(&longer, 30));
        assert_eq!(told, alone(PLAIN, &request(&longer, 30)).0, "after {steps} steps");
        assert!(usage.reused >= verse.len() - 1, "{usage:?}");
    }
}
