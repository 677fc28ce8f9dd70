//! The front door on models whose answers can be worked out by hand (tests/data/front_door, made by its `make.py`), and on a
//! language model whose logits are `transformers`' (tests/data/llm).
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::{repository, tensorrt_or_skip, tokenizer};
use watus_build::artifact::sha256_file;
use watus_build::manifest::Manifest;
use watus_build::tensor::read_npy;
use watus_build::{
    BackendChoice, BoundingBox, Builder, ChatModel, ChatOptions, Classifier, Detection, Detector, Error, ErrorKind,
    Finish, Frame, Message, PixelFormat, RgbImage, draw,
};

fn data(name: &str) -> PathBuf {
    repository().join("tests/data/front_door").join(name)
}

fn detector() -> Detector {
    Detector::builder(data("detector")).backend(BackendChoice::Cpu).open().unwrap()
}

fn classifier(folder: &Path) -> Classifier {
    Classifier::builder(folder).backend(BackendChoice::Cpu).open().unwrap()
}

/// The picture that make.py draws, `scale` times as large: black, red and blue squares of 8 pixels each.
fn blobs(scale: u32) -> RgbImage {
    RgbImage::from_fn(64 * scale, 32 * scale, |x, y| match (x / scale, y / scale) {
        (8..16, 8..16) => [230_u8, 0, 0].into(),
        (40..48, 16..24) => [0_u8, 0, 153].into(),
        _ => [0_u8, 0, 0].into(),
    })
}

fn said(objects: &[Detection]) -> Vec<(&str, [f32; 4])> {
    objects.iter().map(|object| (object.label.as_str(), object.bbox.corners())).collect()
}

const RED: (&str, [f32; 4]) = ("red", [8.0, 8.0, 16.0, 16.0]);
const BLUE: (&str, [f32; 4]) = ("blue", [40.0, 16.0, 48.0, 24.0]);

#[test]
fn objects_of_every_kind_of_frame() {
    let mut detector = detector();
    assert_eq!((detector.name(), detector.labels()), ("detector", &["red".to_owned(), "blue".to_owned()][..]));
    assert!(detector.info().name.starts_with("CPU reference"));
    let picture = blobs(1);
    let rgb = picture.as_raw().clone();
    let bgr: Vec<u8> = rgb.chunks(3).flat_map(|pixel| [pixel[2], pixel[1], pixel[0]]).collect();
    let rgba: Vec<u8> = rgb.chunks(3).flat_map(|pixel| [pixel[0], pixel[1], pixel[2], 255]).collect();
    let path = data("blobs.png");
    let frames = [
        Frame::from(&picture),
        Frame::from(&path),
        Frame::from(path.to_str().unwrap()),
        Frame::rgb(&rgb, 64, 32).unwrap(),
        Frame::bgr(&bgr, 64, 32).unwrap(),
        Frame::new(&rgba, 64, 32, PixelFormat::Rgba8).unwrap(),
    ];
    for frame in &frames {
        let objects = detector.detect(frame).unwrap();
        assert_eq!(said(&objects), [RED, BLUE], "{frame:?}");
        // 230 and 153 of 255.
        assert!((objects[0].score - 0.901_961).abs() < 1e-5 && (objects[1].score - 0.6).abs() < 1e-5, "{objects:?}");
        assert_eq!((objects[0].class, objects[1].class, &objects[0].mask), (0, 1, &None));
    }
    // Red taken for blue: 153 red, 230 blue.
    let swapped = detector.detect(Frame::bgr(&rgb, 64, 32).unwrap()).unwrap();
    assert_eq!(said(&swapped), [("blue", RED.1), ("red", BLUE.1)]);
}

#[test]
fn boxes_are_in_pixels_of_the_frame() {
    let objects = detector().detect(&blobs(3)).unwrap();
    let tripled = |(label, corners): (&'static str, [f32; 4])| (label, corners.map(|side| 3.0 * side));
    assert_eq!(said(&objects), [tripled(RED), tripled(BLUE)]);
    assert_eq!(objects[0].bbox, BoundingBox { left: 24.0, top: 24.0, right: 48.0, bottom: 48.0 });
    let drawn = draw(&blobs(3), &objects).unwrap();
    assert_eq!(drawn.dimensions(), (192, 96));
    // The lower edge has the colour of the class, what is inside its own.
    assert_ne!(drawn.get_pixel(36, 47), blobs(3).get_pixel(36, 47));
    assert_eq!(drawn.get_pixel(36, 40).0, [230, 0, 0]);
}

#[test]
fn a_batch_is_as_its_pictures_alone() {
    let mut detector = detector();
    let (both, none) = (blobs(1), RgbImage::new(64, 32));
    let mut red = blobs(2);
    red.enumerate_pixels_mut().filter(|(x, ..)| *x > 64).for_each(|(.., pixel)| pixel.0 = [0; 3]);
    // The engine takes two at once: three are a batch, and one that is filled up.
    let found = detector.detect_batch([&both, &red, &none, &both, &red]).unwrap();
    let found: Vec<usize> = found.iter().map(Vec::len).collect();
    assert_eq!(found, [2, 1, 0, 2, 1]);
    let boxes = detector.detect_batch([&both, &red]).unwrap();
    assert_eq!((said(&boxes[0]), said(&boxes[1])), (vec![RED, BLUE], vec![("red", [16.0, 16.0, 32.0, 32.0])]));
    assert_eq!(detector.detect_batch(Vec::<Frame<'_>>::new()).unwrap(), Vec::<Vec<Detection>>::new());
    // Frames are taken as they are needed: two batches, and of the third the one that cannot be read.
    let (path, missing) = (data("blobs.png"), data("none.png"));
    let taken = std::cell::Cell::new(0);
    let frames = [&path, &path, &path, &path, &missing, &path];
    let error = detector.detect_batch(frames.into_iter().inspect(|_| taken.set(taken.get() + 1))).unwrap_err();
    assert_eq!((error.kind(), taken.get()), (ErrorKind::Image, 5), "{error}");
    assert!(error.message().contains("none.png"), "{error}");
}

#[test]
fn settings_of_a_detector() {
    let builder = || Detector::builder(data("detector")).backend(BackendChoice::Cpu);
    let count = |detector: Result<Detector, Error>| detector.unwrap().detect(&blobs(1)).unwrap().len();
    assert_eq!(count(builder().open()), 2);
    assert_eq!(count(builder().confidence(0.7).open()), 1);
    assert_eq!(count(builder().confidence(0.95).open()), 0);
    assert_eq!(count(builder().max_detections(1).open()), 1);
    assert_eq!(count(builder().iou(0.1).hash_all_files(true).open()), 2);
    let error = builder().confidence(1.5).open().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Request);
    assert!(error.message().contains("confidence is 1.5") && error.help().is_some(), "{error}");
}

#[test]
fn classes_with_their_probabilities() {
    let mut classifier = classifier(&data("classifier"));
    let picture = RgbImage::from_pixel(8, 8, [51_u8, 102, 204].into());
    let answer = classifier.classify(&picture).unwrap();
    // Logits are eight times 0.2, 0.4 and 0.8; softmax by numpy.
    let want = [("blue", 0.953_296), ("green", 0.038_858), ("red", 0.007_845)];
    assert_eq!((answer.label.as_str(), answer.class, answer.value, &answer.present), ("blue", 2, None, &None));
    assert!((answer.score.unwrap() - want[0].1).abs() < 1e-5, "{answer:?}");
    assert_eq!(answer.ranked.len(), 3);
    for (have, (label, score)) in answer.ranked.iter().zip(want) {
        assert_eq!(have.label, label);
        assert!((have.score - score).abs() < 1e-5, "{answer:?}");
    }
    // The engine takes up to three at once; sizes may differ.
    let colors = [[250_u8, 0, 0], [0, 250, 0], [0, 0, 250], [250, 9, 9]];
    let pictures: Vec<RgbImage> =
        (1..).zip(colors).map(|(side, color)| RgbImage::from_pixel(8 * side, 8, color.into())).collect();
    let answers = classifier.classify_batch(&pictures).unwrap();
    let labels: Vec<&str> = answers.iter().map(|answer| answer.label.as_str()).collect();
    assert_eq!(labels, ["red", "green", "blue", "red"]);
    let top = Classifier::builder(data("classifier")).backend(BackendChoice::Cpu).top(1).open();
    assert_eq!(top.unwrap().classify(&picture).unwrap().ranked.len(), 1);
}

/// A copy of an engine directory with another manifest.
fn changed(name: &str, scratch: &Path, change: impl Fn(&mut Value)) -> PathBuf {
    let folder = scratch.join(name);
    fs::create_dir_all(&folder).unwrap();
    for entry in fs::read_dir(data(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.join("manifest.json");
    let mut manifest: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(&path, manifest.to_string()).unwrap();
    folder
}

#[test]
fn labels_beside_each_other_and_values() {
    let scratch = tempfile::tempdir().unwrap();
    let output =
        |word: &str| changed("classifier", scratch.path(), |manifest| manifest["classifier"]["output"] = word.into());
    let picture = RgbImage::from_pixel(8, 8, [0_u8, 102, 204].into());
    let answer = classifier(&output("multilabel")).classify(&picture).unwrap();
    // Sigmoids of 0, 3.2 and 6.4: the first is not above one half.
    assert_eq!(answer.present, Some(vec!["blue".to_owned(), "green".to_owned()]));
    assert!((answer.ranked[1].score - 0.960_834).abs() < 1e-5 && (answer.ranked[2].score - 0.5).abs() < 1e-6);
    let answer = classifier(&output("values")).classify(&picture).unwrap();
    assert_eq!((answer.label.as_str(), answer.score), ("red", None));
    let values: Vec<f32> = answer.ranked.iter().map(|value| value.score).collect();
    assert!(values.iter().zip([0.0, 3.2, 6.4]).all(|(have, want)| (have - want).abs() < 1e-5), "{values:?}");
    assert_eq!(answer.value, Some(values[0]));
}

#[test]
fn what_cannot_be_opened_says_why_and_what_to_do() {
    let scratch = tempfile::tempdir().unwrap();
    let refused = |error: Option<Error>, kind: ErrorKind, message: &str, help: &str| {
        let error = error.unwrap();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(message) && error.help().unwrap_or_default().contains(help), "{error}");
        assert!(error.help().is_some() || help.is_empty(), "{error}");
    };
    let detector = |folder: PathBuf| Detector::builder(folder).backend(BackendChoice::Cpu).open().err();
    refused(detector(data("classifier")), ErrorKind::NotAnEngine, "is an image classifier", "`Classifier`");
    refused(detector(data("nothing")), ErrorKind::NotAnEngine, "manifest.json: not found", "");
    refused(Classifier::open(data("detector")).err(), ErrorKind::NotAnEngine, "is a detector", "`Detector`");
    refused(ChatModel::open(data("detector")).err(), ErrorKind::NotAnEngine, "is a detector", "`Detector`");
    let damaged = changed("detector", scratch.path(), |_| {});
    let path = damaged.join("model.onnx");
    let mut model = fs::read(&path).unwrap();
    *model.last_mut().unwrap() ^= 1;
    fs::write(&path, model).unwrap();
    refused(detector(damaged), ErrorKind::Damaged, "model.onnx", "build it again");
}

/// Words of the tokens that tests/data/llm's logits are of.
fn words(count: usize) -> String {
    (0..count).map(|index| format!("w{} ", (7 * index + 3) % 64)).collect()
}

/// The tiny Llama of tests/data/llm as an engine directory for the CPU, with a tokenizer of words and a template that says
/// nothing of turns.
fn llama(scratch: &Path) -> PathBuf {
    let (folder, from) = (scratch.join("llama"), repository().join("tests/data/llm/llama"));
    fs::create_dir_all(folder.join("weights")).unwrap();
    fs::copy(from.join("config.json"), folder.join("config.json")).unwrap();
    fs::copy(from.join("model.safetensors"), folder.join("weights/model.safetensors")).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer()).unwrap();
    fs::write(folder.join("chat_template.jinja"), "{% for m in messages %}{{ m.content }} {% endfor %}").unwrap();
    let mut manifest: Manifest = serde_json::from_value(json!({
        "format": 2, "name": "llama", "kind": "llm", "tool": "watus-build 0", "key": {},
        "tensorrt": { "family": "rtx", "major": 1, "minor": 6, "patch": 1 }, "device": null, "l4t": null,
        "precision": "fp32", "tf32": false, "source": "path:llama",
        "llm": {
            "family": "llama", "parameters": 0, "dtype": "float32", "max_input_len": 24, "max_output_len": 4,
            "shapes": { "slots": 1, "max_len": 40, "chunks": [16, 32], "caches": [64], "steps": [[1, 1]] },
            "weights": ["model.safetensors"],
        },
        "verify": { "seeds": 0, "images": [], "tolerance": 1e-2 },
        "build": { "seconds": 0.0, "peak_memory_bytes": 0, "skipped_tactics": 0, "warnings": [] }, "files": {},
    }))
    .unwrap();
    manifest.record_files(&folder, &mut sha256_file).unwrap();
    manifest.save(&folder).unwrap();
    folder
}

#[test]
fn a_language_model_says_what_transformers_computes() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = llama(scratch.path());
    let mut model = ChatModel::builder(&folder).backend(BackendChoice::Cpu).open().unwrap();
    let expected = fs::File::open(repository().join("tests/data/llm/llama/expected.npy")).unwrap();
    let expected = read_npy(expected).unwrap();
    // What transformers' generate says, greedily.
    for (count, tokens) in [(9, [37_u32, 57, 26]), (12, [32, 37, 49]), (17, [26, 27, 51])] {
        let row = &expected.as_f32().unwrap()[64 * (count - 1)..64 * count];
        let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
        let likelihood = f64::from(row[tokens[0] as usize]) - sum.ln();
        let options = ChatOptions::new().max_tokens(3).top_logprobs(2);
        let mut stream = model.complete(&words(count), &options).unwrap();
        let pieces: Vec<_> = stream.by_ref().map(Result::unwrap).collect();
        assert_eq!(pieces.iter().map(|piece| piece.choice.token).collect::<Vec<_>>(), tokens);
        let first = &pieces[0];
        assert_eq!((first.choice.top.len(), first.choice.top[0].0), (2, tokens[0]));
        assert!((f64::from(first.choice.logprob.unwrap()) - likelihood).abs() < 1e-3, "{first:?}, {likelihood}");
        assert_eq!((first.text.as_str(), first.finish_reason), (format!("w{}", tokens[0]).as_str(), None));
        assert_eq!(pieces[2].finish_reason, Some(Finish::Length));
        assert_eq!((stream.usage().prompt, stream.usage().answer), (count, 3));
    }
    assert_eq!(model.token_text(37).as_deref(), Some("w37"));
}

#[test]
fn conversations_streams_and_their_ends() {
    let scratch = tempfile::tempdir().unwrap();
    let mut model = ChatModel::builder(llama(scratch.path())).backend(BackendChoice::Cpu).open().unwrap();
    // The template adds nothing, so a conversation is its words; answers are as long as the directory says.
    let question = words(9);
    let answer = model.ask(&question).unwrap();
    assert_eq!(answer, "w37 w57 w26 w37", "what transformers' generate says, greedily");
    let (first, second) = question.split_at(11);
    let messages = [Message::user(first), Message::assistant(second)];
    let mut told = String::new();
    for piece in model.chat(&messages).unwrap() {
        told.push_str(&piece.unwrap().text);
    }
    assert_eq!(told, answer);
    let whole = model.chat(&messages).unwrap().answer().unwrap();
    assert_eq!((whole.text.as_str(), whole.finish_reason), (answer.as_str(), Some(Finish::Length)));
    assert_eq!((whole.usage.prompt, whole.usage.reused), (9, 8), "what was computed is kept");
    // Dropped after a piece: the next answer is not in its way.
    drop(model.chat(&messages).unwrap().next());
    std::mem::forget(model.chat(&messages).unwrap());
    let stopped = ChatOptions::new().stop("w57");
    let stopped = model.chat_with(&messages, &stopped).unwrap().answer().unwrap();
    assert_eq!((stopped.text.trim(), stopped.finish_reason), ("w37", Some(Finish::Stop)));

    let kind = |model: &mut ChatModel, question: &str, options: ChatOptions| {
        let error = model.chat_with(&[Message::user(question)], &options).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Request, "{error}");
        error.to_string()
    };
    let options = ChatOptions::new;
    assert!(kind(&mut model, &words(25), options()).contains("longer than the 24"));
    assert!(kind(&mut model, &question, options().top_p(7.0)).contains("top_p is 7"));
    assert!(kind(&mut model, &question, options().max_tokens(0)).contains("max_tokens is 0"));
    let huge = json!({ "type": "object", "description": "x".repeat(300 << 10) });
    assert!(kind(&mut model, &question, options().json_schema(huge)).contains("KiB of text"));
    assert!(kind(&mut model, &question, options().json_schema("{")).contains("no JSON"));
    let unique = r#"{"type": "array", "items": {"type": "string"}, "uniqueItems": true}"#;
    assert!(kind(&mut model, &question, options().json_schema(unique)).contains("#: `uniqueItems` cannot be enforced"));
    assert_eq!(model.chat(&[]).err().unwrap().kind(), ErrorKind::Request);
    assert_eq!(model.ask(&question).unwrap(), answer, "errors leave nothing behind");
}

#[test]
fn a_recipe_in_code_is_built_once() {
    if !tensorrt_or_skip("a_recipe_in_code_is_built_once") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let source = format!("path:{}", repository().join("tests/data/vision/resnet").display());
    let builder =
        Builder::classifier(&source).name("signs").verify_seeds(1).relative_to(scratch.path()).in_process(true);
    let built = builder.clone().build(scratch.path().join("engines")).unwrap();
    assert_eq!((built.was_current, built.folder.clone()), (false, scratch.path().join("engines/signs")));
    let again = builder.clone().build(scratch.path().join("engines")).unwrap();
    assert_eq!((again.was_current, again.folder.clone()), (true, built.folder));
    let mut classifier = classifier(&again.folder);
    let picture = repository().join("recipes/images/face.png");
    assert_eq!(classifier.classify(&picture).unwrap().ranked.len(), 5);
    assert_eq!(classifier.labels().unwrap()[2], "owl");
    let error = builder.labels(["one"]).build(scratch.path().join("engines")).unwrap_err();
    assert!(error.message().contains("signs") || error.message().contains("labels"), "{error}");
}
