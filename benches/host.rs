//! The host's hot paths: `cargo bench`, or one of them: `cargo bench -- sampler`.
//!
//! Sizes are those of models that people run: a vocabulary of 151,936 tokens (Qwen2), 8,400 anchors of 80 classes (YOLO at 640
//! pixels), pictures of 1920 x 1080. Values are the same in every run. Programs beside this one measure whole engines and servers.
// divan's attribute registers a function by a linker section.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use watus_build::checkpoint::Checkpoint;
use watus_build::generation::{Grammars, Sampler};
use watus_build::tensor::{SplitMix64, Tensor};
use watus_build::text::{Chat, Message, Sampling, Text, tool};
use watus_build::vision::{Boxes, Fit, Preprocess, Resample, RgbImage, Task, Yolo, to_tensor};

const VOCABULARY: u32 = 151_936;

fn main() {
    divan::main();
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A row of logits of which few are likely, as a language model's are.
fn logits() -> Vec<f32> {
    let mut random = SplitMix64(1);
    (0..VOCABULARY).map(|_| 12.0 * random.symmetric().powi(5)).collect()
}

#[divan::bench(args = ["greedy", "temperature", "top_k", "top_p", "min_p", "penalties", "logprobs"])]
fn sampler(bencher: Bencher, way: &str) {
    let warm = Sampling { temperature: 0.8, seed: 1, ..Sampling::default() };
    let settings = match way {
        "greedy" => Sampling::default(),
        "top_k" => Sampling { top_k: 40, ..warm },
        "top_p" => Sampling { top_p: 0.95, ..warm },
        "min_p" => Sampling { min_p: 0.05, ..warm },
        "penalties" => Sampling { repetition_penalty: 1.1, presence_penalty: 0.5, ..warm },
        "logprobs" => Sampling { top_logprobs: Some(5), ..warm },
        _ => warm,
    };
    let prompt: Vec<u32> = (0..512).map(|at| at * 97).collect();
    let mut sampler = Sampler::new(settings, &prompt);
    let row = logits();
    let bencher = bencher.counter(ItemsCount::new(row.len()));
    bencher.with_inputs(|| row.clone()).bench_local_refs(|row| sampler.choose(row, None));
}

/// A conversation of many turns, with functions.
fn conversation(turns: usize) -> Chat {
    let mut messages = vec![Message::new("system", "You are a robot in a museum. Answer in two sentences.")];
    for turn in 0..turns {
        messages.push(Message::new("user", format!("Gdzie jest sala {turn}, i co w niej wisi?")));
        messages
            .push(Message::new("assistant", format!("Sala {turn} jest na końcu korytarza. Wisi tam „Szał uniesień”.")));
    }
    messages.push(Message::new("user", "Zaprowadź mnie tam."));
    let parameters = serde_json::json!({
        "type": "object",
        "properties": {"room": {"type": "integer", "minimum": 0}, "speed": {"enum": ["slow", "fast"]}},
        "required": ["room"],
    });
    let tools = vec![tool("go_to_room", Some("Drives to a room and waits there."), &parameters)];
    Chat { messages, tools, ..Chat::default() }
}

/// From a conversation to tokens: the chat template, then the tokenizer.
#[divan::bench(args = [1, 32])]
fn template(bencher: Bencher, turns: usize) {
    let text = Text::open(&repository().join("fuzz/model")).expect("fuzz/model is a model's text files");
    let chat = conversation(turns);
    let tokens = text.encode(&chat).expect("its template takes functions").tokens.len();
    bencher.counter(ItemsCount::new(tokens)).bench_local(|| text.encode(&chat));
}

/// What an answer's tokens spell, the last of which ends it: single bytes, then made-up words.
fn words() -> (Vec<Vec<u8>>, BTreeSet<u32>) {
    let mut random = SplitMix64(2);
    let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let mut letter = |_: u32| b' ' + u8::try_from(random.below(95)).unwrap_or(0);
    let mut letters = |count: u32| -> Vec<u8> { (0..count).map(&mut letter).collect() };
    words.extend((256..VOCABULARY - 1).map(|at| letters(2 + at % 7)));
    // 255 begins the spelling of special tokens.
    words.push(b"\xff</s>".to_vec());
    (words, BTreeSet::from([VOCABULARY - 1]))
}

const LARK: &str = r#"start: value
value: %json {"type": "object", "properties": {"room": {"type": "integer"}, "words": {"type": "string"}}, "required": ["room", "words"], "additionalProperties": false}
"#;

#[divan::bench]
fn grammar_compile(bencher: Bencher) {
    let (words, ends) = words();
    let grammars = Grammars::new(&words, &ends).expect("the vocabulary has an end");
    bencher.bench_local(|| grammars.compile(LARK));
}

/// What may come next, and the logits of the rest: where little may (a key), and where nearly everything may (a text).
#[divan::bench(args = [r#"{"#, r#"{"room":1,"words":"A"#])]
fn grammar_mask(bencher: Bencher, beginning: &str) {
    let (words, ends) = words();
    let grammars = Grammars::new(&words, &ends).expect("the vocabulary has an end");
    let mut grammar = grammars.compile(LARK).expect("llguidance's own dialect");
    let mut row = logits();
    for byte in beginning.bytes() {
        grammar.mask(&mut row).expect("the beginning is one of the grammar's");
        grammar.accept(u32::from(byte)).expect("the beginning is one of the grammar's");
    }
    let bencher = bencher.counter(ItemsCount::new(row.len()));
    bencher.with_inputs(|| (grammar.clone(), row.clone())).bench_local_refs(|(grammar, row)| grammar.mask(row));
}

/// Rows of 512 elements to float32.
#[divan::bench(args = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])]
fn gguf_row(bencher: Bencher, encoding: &str) {
    let file = repository().join("tests/data/gguf/blocks.gguf");
    let checkpoint = Checkpoint::open(&[file]).expect("blocks.gguf is a GGUF file");
    let end = format!(".{encoding}");
    let name = checkpoint.names().find(|name| name.ends_with(&end)).expect("it has a tensor of every encoding");
    let view = checkpoint.tensor(name).expect("it fills its shape");
    let mut row = vec![0.0_f32; view.columns()];
    bencher.counter(BytesCount::of_slice(&row)).bench_local(|| view.read_row(0, &mut row));
}

fn yolo() -> Yolo {
    Yolo {
        task: Task::Detect,
        names: (0..80).map(|class| format!("class {class}")).collect(),
        stride: 32,
        size: [640, 640],
        boxes: Boxes::Anchors,
        confidence: 0.25,
        iou: 0.7,
        max_detections: 300,
        metadata: true,
        about: BTreeMap::new(),
    }
}

/// Decoding and non-maximum suppression of 8,400 anchors, so many of which see something.
#[divan::bench(args = [10, 300, 3000])]
fn nms(bencher: Bencher, candidates: usize) {
    const ANCHORS: usize = 8400;
    let yolo = yolo();
    let rows = 4 + yolo.names.len();
    let mut random = SplitMix64(3);
    let mut unit = || random.symmetric().abs();
    let mut values = vec![0.01; rows * ANCHORS];
    for anchor in 0..ANCHORS {
        for (row, (offset, size)) in
            [(20.0, 600.0), (20.0, 600.0), (10.0, 200.0), (10.0, 200.0)].into_iter().enumerate()
        {
            values[row * ANCHORS + anchor] = offset + size * unit();
        }
    }
    for candidate in 0..candidates {
        let (anchor, class) = (candidate * (ANCHORS / candidates), candidate % 8);
        values[(4 + class) * ANCHORS + anchor] = 0.3 + 0.6 * unit();
    }
    let output = [Tensor::from_f32(vec![1, rows, ANCHORS], values).expect("as many values as the shape says")];
    bencher.counter(ItemsCount::new(ANCHORS)).bench_local(|| yolo.detections(&output, [1080, 1920]));
}

/// From a picture of a camera to an input tensor.
#[divan::bench(args = ["yolo", "vit"])]
fn preprocessing(bencher: Bencher, model: &str) {
    let (width, height) = (1920, 1080);
    let mut random = SplitMix64(4);
    let bytes = (0..width * height * 3).map(|_| u8::try_from(random.below(256)).unwrap_or(0)).collect();
    let picture = RgbImage::from_raw(width, height, bytes).expect("three bytes a pixel");
    let preprocess = match model {
        "yolo" => yolo().preprocess(),
        _ => Preprocess {
            size: Some([224, 224]),
            fit: Some(Fit::Stretch),
            resize: None,
            resample: Some(Resample::Bilinear),
            color: None,
            mean: [127.5; 3],
            std: [127.5; 3],
        },
    };
    let size = preprocess.size.expect("both have one");
    bencher.counter(BytesCount::of_slice(picture.as_raw())).bench_local(|| to_tensor(&picture, &preprocess, size));
}
