//! Answers: batching, reuse of what is cached, limits, stop strings, characters that span tokens.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use watus_build::checkpoint::Checkpoint;
use watus_build::convert;
use watus_build::executor::CpuExecutor;
use watus_build::generation::{Finish, Generator, Request};
use watus_build::text::{Sampling, Text, TextStream, text_files};

const MAX_LEN: usize = 64;

/// The tiny GGUF Llama with `slots` slots.
fn generator(slots: usize) -> (Generator, tempfile::TempDir) {
    let scratch = tempfile::tempdir().unwrap();
    let path = support::repository().join("tests/data/gguf/llama.gguf");
    let checkpoint = Arc::new(Checkpoint::open(&[path]).unwrap());
    let gguf = checkpoint.gguf.as_ref().unwrap();
    for (name, content) in text_files(&checkpoint.config_path, gguf, &checkpoint.config).unwrap() {
        std::fs::write(scratch.path().join(name), content).unwrap();
    }
    let text = Arc::new(Text::open(scratch.path()).unwrap());
    let mut model = convert::describe(&checkpoint.config_path, &checkpoint.config, MAX_LEN).unwrap();
    model.locate(&checkpoint).unwrap();
    let executor = CpuExecutor::new(model, checkpoint, slots, MAX_LEN).unwrap();
    (Generator::new(Box::new(executor), text, 40), scratch)
}

fn request(prompt: &[u32], max_tokens: usize) -> Request {
    Request { prompt: prompt.to_vec(), max_tokens, ignore_end: true, ..Request::default() }
}

/// Tokens and end of one answer.
fn answer(generator: &mut Generator, request: Request) -> (Vec<u32>, String, Option<Finish>) {
    let (mut tokens, mut text, mut finish) = (Vec::new(), String::new(), None);
    generator
        .answer(request, |piece| {
            tokens.push(piece.choice.token);
            text.push_str(&piece.text);
            finish = piece.finish;
            true
        })
        .unwrap();
    (tokens, text, finish)
}

#[test]
fn sequences_decoded_together_are_what_they_are_alone() {
    let prompts: [&[u32]; 4] = [&[5, 6, 7], &[9; 20], &[3, 60, 1, 33, 8], &[5, 6, 7, 8]];
    let alone: Vec<Vec<u32>> = prompts.map(|prompt| answer(&mut generator(1).0, request(prompt, 12)).0).to_vec();
    let (mut together, _scratch) = generator(2);
    let numbers = prompts.map(|prompt| together.submit(request(prompt, 12)).unwrap());
    let mut answers: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    let mut taken = BTreeMap::new();
    while !together.is_idle() {
        for piece in together.step().unwrap() {
            taken.insert(piece.request, piece.usage.answer);
            answers.entry(piece.request).or_default().push(piece.choice.token);
        }
    }
    for ((number, alone), prompt) in numbers.iter().zip(&alone).zip(prompts) {
        assert_eq!(&answers[number], alone, "after {prompt:?}");
        assert_eq!(alone.len(), 12);
        assert_eq!(taken[number], 12);
    }
}

#[test]
fn what_a_slot_holds_is_not_computed_again() {
    let first: Vec<u32> = (3..30).collect();
    let (mut generator, _scratch) = generator(2);
    let (tokens, ..) = answer(&mut generator, request(&first, 5));
    // The conversation goes on: prompt, answer, more.
    let mut longer = first.clone();
    longer.extend(&tokens);
    longer.extend([7, 7]);
    let usage = generator.answer(request(&longer, 5), |_| true).unwrap();
    // The last token of the answer was never fed.
    assert_eq!((usage.prompt, usage.reused), (longer.len(), first.len() + tokens.len() - 1));
    let usage = generator.answer(request(&[60, 61], 2), |_| true).unwrap();
    assert_eq!(usage.reused, 0);
    // The other slot was taken for that, so this is still there; the same prompt computes its last token alone.
    let reused = answer(&mut generator, request(&longer, 5)).0;
    assert_eq!(reused, answer(&mut self::generator(1).0, request(&longer, 5)).0);
}

#[test]
fn answers_end_where_they_should() {
    let (mut generator, _scratch) = generator(1);
    let (tokens, text, finish) = answer(&mut generator, request(&[5, 6, 7], 10));
    assert_eq!((tokens.len(), finish), (10, Some(Finish::Length)));
    // No room for more than MAX_LEN positions.
    let (tokens, _, finish) = answer(&mut generator, request(&[9; 40], 1000));
    assert_eq!((40 + tokens.len(), finish), (MAX_LEN, Some(Finish::Length)));
    let stop: String = text.chars().skip(3).take(2).collect();
    assert!(!stop.is_empty(), "{text:?}");
    let stopped = Request { stop: vec![stop.clone()], ..request(&[5, 6, 7], 10) };
    let (_, shown, finish) = answer(&mut generator, stopped);
    assert_eq!((shown.as_str(), finish), (&text[..text.find(&stop).unwrap()], Some(Finish::Stop)));
    for (wrong, part) in [
        (request(&[], 5), "empty"),
        (request(&[5], 0), "max_tokens"),
        (request(&[5; 41], 5), "longer than the 40"),
        (Request { sampling: Sampling { min_p: 2.0, ..Sampling::default() }, ..request(&[5], 5) }, "min_p is 2"),
    ] {
        let error = generator.submit(wrong).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_forgotten_answer_is_cancelled_by_the_next() {
    let (mut generator, _scratch) = generator(1);
    let expected = answer(&mut generator, request(&[5, 6, 7], 4));
    let mut left = generator.begin(request(&[9; 20], 30)).unwrap();
    left.next().unwrap().unwrap();
    std::mem::forget(left);
    assert_eq!(generator.load(), (0, 1));
    let mut next = generator.begin(request(&[5, 6, 7], 4)).unwrap();
    let first = next.next().unwrap().unwrap();
    drop(next);
    assert_eq!(first.choice.token, expected.0[0]);
    assert_eq!(generator.load(), (0, 0));
    // One that waits alone.
    std::mem::forget(generator.begin(request(&[9; 20], 30)).unwrap());
    assert_eq!(generator.load(), (1, 0));
    assert_eq!(answer(&mut generator, request(&[5, 6, 7], 4)), expected);
    assert!(generator.is_idle());
}

#[test]
fn cancelled_requests_free_their_slot() {
    let (mut generator, _scratch) = generator(1);
    let running = generator.submit(request(&[5, 6], 30)).unwrap();
    let waiting = generator.submit(request(&[7, 8], 3)).unwrap();
    generator.step().unwrap();
    generator.cancel(running);
    let mut tokens = 0;
    while !generator.is_idle() {
        tokens += generator.step().unwrap().iter().filter(|piece| piece.request == waiting).count();
    }
    assert_eq!(tokens, 3);
}

/// A byte-level vocabulary without merges: every byte is a token, so most characters are several.
fn byte_tokenizer(folder: &std::path::Path) -> Text {
    // GPT-2's printable stand-ins for bytes: printable ones stand for themselves, the rest follow from U+0100 on.
    let mut next = 256;
    let letters: Vec<char> = (0..=255_u32)
        .map(|byte| {
            let plain = matches!(byte, 33..=126 | 161..=172 | 174..=255);
            let code = if plain { byte } else { next };
            next += u32::from(!plain);
            char::from_u32(code).unwrap()
        })
        .collect();
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        letters.iter().enumerate().map(|(id, letter)| (letter.to_string(), id.into())).collect();
    let level =
        serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let document = serde_json::json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": level, "post_processor": null,
        "decoder": level, "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    std::fs::write(folder.join("tokenizer.json"), document.to_string()).unwrap();
    Text::open(folder).unwrap()
}

#[test]
fn characters_are_never_split() {
    let scratch = tempfile::tempdir().unwrap();
    let text = byte_tokenizer(scratch.path());
    for words in ["Zażółć gęślą jaźń", "robot 🤖 says 你好", "plain", "é"] {
        let tokens = text.encode_text(words).unwrap();
        assert_eq!(tokens.len(), words.len(), "a token a byte");
        let mut stream = TextStream::default();
        let pieces: Vec<String> = tokens.iter().map(|token| stream.push(&text, *token).unwrap()).collect();
        assert_eq!(pieces.concat(), words);
        assert_eq!(stream.finish(&text).unwrap(), "");
        let whole = |piece: &String| piece.chars().count() <= 1;
        assert!(pieces.iter().all(whole), "{pieces:?}");
    }
    // Cut in the middle of a character.
    let mut stream = TextStream::default();
    let tokens = text.encode_text("aż").unwrap();
    let shown: String = tokens[..2].iter().map(|token| stream.push(&text, *token).unwrap()).collect();
    assert_eq!((shown.as_str(), stream.finish(&text).unwrap().as_str()), ("a", "\u{fffd}"));
}

#[test]
fn what_is_cached_is_for_the_same_scope() {
    let (mut generator, _scratch) = generator(2);
    let prompt: Vec<u32> = (5..35).collect();
    let mut reused = |scope: u64, prompt: &[u32]| {
        generator.answer(Request { scope, ..request(prompt, 2) }, |_| true).unwrap().reused
    };
    assert_eq!((reused(1, &prompt), reused(1, &prompt)), (0, 29), "one's own");
    assert_eq!((reused(2, &prompt), reused(2, &prompt)), (0, 29), "another's, then one's own");
    // What is nobody's secret is everybody's.
    let (mut generator, _scratch) = self::generator(2);
    generator.share(prompt[..20].to_vec());
    let mut reused = |scope: u64, prompt: &[u32]| {
        generator.answer(Request { scope, ..request(prompt, 2) }, |_| true).unwrap().reused
    };
    assert_eq!((reused(1, &prompt), reused(2, &prompt)), (0, 20));
    // The answers are the same either way.
    let alone = answer(&mut self::generator(1).0, request(&prompt, 8)).0;
    let (mut generator, _scratch) = self::generator(2);
    generator.share(prompt[..20].to_vec());
    for scope in [1, 2, 1] {
        assert_eq!(answer(&mut generator, Request { scope, ..request(&prompt, 8) }).0, alone, "{scope}");
    }
}

#[test]
fn a_request_is_looked_at_once_and_everywhere() {
    let (mut generator, _scratch) = generator(1);
    let vocabulary = u32::try_from(generator.limits().vocabulary).unwrap();
    let sampling = |token: u32| Sampling { logit_bias: vec![(token, 1.0)], ..Sampling::default() };
    for (bad, why) in [
        (request(&[], 1), "empty"),
        (request(&[5, vocabulary], 1), "the model knows"),
        (request(&[5; 41], 1), "longer than the 40"),
        (request(&[5], 0), "max_tokens"),
        (Request { sampling: sampling(vocabulary), ..request(&[5], 1) }, "logit_bias"),
        (Request { sampling: Sampling { top_p: f32::NAN, ..Sampling::default() }, ..request(&[5], 1) }, "top_p"),
    ] {
        let error = generator.submit(bad).unwrap_err();
        assert!(error.to_string().contains(why) && !error.is_fatal(), "{error}");
    }
    assert!(
        generator.submit(Request { sampling: sampling(vocabulary - 1), ..request(&[5, vocabulary - 1], 1) }).is_ok()
    );
}
