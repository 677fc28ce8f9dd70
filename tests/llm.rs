//! Language models against `transformers`: tiny checkpoints of every family (tests/data/llm, made by make.py).
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use watus_build::backend::tensorrt::device::Device;
use watus_build::backend::tensorrt::{BuildOptions, Family, TensorRt};
use watus_build::checkpoint::Checkpoint;
use watus_build::convert::{self, LayerShape, LayerTypes};
use watus_build::cuda_executor::{GpuExecutor, GpuOptions};
use watus_build::executor::{CpuExecutor, Executor, Rows, Step, WantedLogits, head_name, layer_name};
use watus_build::fetch::{Fetcher, Lock};
use watus_build::generation::{Generator, Request, argmax};
use watus_build::progress::Silent;
use watus_build::recipe;
use watus_build::spec::{KvCache, Shapes};
use watus_build::tensor::{DType, read_npy};
use watus_build::text::{Message, Text, text_files};
use watus_build::verify;

const TOKENS: usize = 40;

fn families() -> PathBuf {
    support::repository().join("tests/data/llm")
}

fn cases() -> Vec<String> {
    let entries = std::fs::read_dir(families()).unwrap().flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect()
}

fn executor(folder: &Path, slots: usize) -> CpuExecutor {
    let (model, checkpoint) = load(folder);
    CpuExecutor::new(model, checkpoint, slots, TOKENS).unwrap()
}

fn tokens(vocabulary: usize) -> Vec<u32> {
    (0..TOKENS).map(|i| u32::try_from((7 * i + 3) % vocabulary).unwrap()).collect()
}

/// max|have - want| / max|want|.
fn relative_error(have: &[f32], want: &[f32]) -> f32 {
    assert_eq!(have.len(), want.len());
    let largest = want.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    have.iter().zip(want).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

#[test]
fn every_family_agrees_with_transformers() {
    let names = cases();
    assert!(names.len() >= 14, "{names:?}");
    for name in names {
        let folder = families().join(&name);
        let expected = read_npy(std::fs::File::open(folder.join("expected.npy")).unwrap()).unwrap();
        let expected = expected.as_f32().unwrap();
        let mut executor = executor(&folder, 2);
        let (tokens, width) = (tokens(executor.vocab_size()), executor.vocab_size());
        let whole = executor.prefill(0, 0, &tokens, Rows::All).unwrap();
        let error = relative_error(&whole, expected);
        assert!(error < 1e-4, "{name}: prefill is off by {error}");
        // In another slot: a prefill in two parts, then one token at a time.
        let mut stepwise = executor.prefill(1, 0, &tokens[..5], Rows::All).unwrap();
        stepwise.extend(executor.prefill(1, 5, &tokens[5..18], Rows::All).unwrap());
        for (position, token) in tokens.iter().enumerate().skip(18) {
            stepwise.extend(
                executor.decode(&[Step { slot: 1, token: *token, position, wanted: WantedLogits::All }]).unwrap(),
            );
        }
        let step = relative_error(&stepwise, expected);
        assert!(step < 1e-4, "{name}: step by step is off by {step}");
        let last = executor.prefill(0, 0, &tokens, Rows::Last).unwrap();
        assert!(relative_error(&last, &expected[expected.len() - width..]) < 1e-4, "{name}: last row");
        println!("{name}: prefill {error:.1e}, step by step {step:.1e}");
    }
}

/// Rows of several sequences in one launch, several of each, after rows that were taken back.
#[test]
fn rows_of_any_sequence_are_what_they_are_alone() {
    for name in cases() {
        let folder = families().join(&name);
        let expected = read_npy(std::fs::File::open(folder.join("expected.npy")).unwrap()).unwrap();
        let expected = expected.as_f32().unwrap();
        let mut executor = executor(&folder, 3);
        let (tokens, width) = (tokens(executor.vocab_size()), executor.vocab_size());
        let step = |slot: usize, position: usize, wanted: WantedLogits| Step {
            slot,
            token: tokens[position],
            position,
            wanted,
        };
        executor.prefill(2, 0, &tokens[..9], Rows::None).unwrap();
        // (first position, rows) of each slot; slot 0 has nothing yet. Every second row is wanted, and every last.
        let mut done = [0, 0, 9];
        for rows in [[2, 0, 1], [1, 7, 3], [0, 1, 0], [5, 5, 5], [9, 20, 2]] {
            let mut wrong = Vec::new();
            let mut steps = Vec::new();
            for (slot, (rows, done)) in rows.into_iter().zip(&mut done).enumerate() {
                for row in 0..rows {
                    let wanted = (rows - row) % 2 == 1;
                    steps.push(step(slot, *done + row, if wanted { WantedLogits::All } else { WantedLogits::None }));
                    wrong.push(Step {
                        token: 1,
                        wanted: WantedLogits::None,
                        ..step(slot, *done + row, WantedLogits::All)
                    });
                }
                *done += rows;
            }
            // What was drafted and is wrong leaves nothing behind.
            assert!(executor.decode(&wrong).unwrap().is_empty());
            let have = executor.decode(&steps).unwrap();
            let wanted: Vec<&Step> = steps.iter().filter(|step| step.wanted == WantedLogits::All).collect();
            assert_eq!(have.len(), wanted.len() * width);
            for (have, step) in have.chunks_exact(width).zip(wanted) {
                let error = relative_error(have, &expected[step.position * width..][..width]);
                assert!(error < 1e-4, "{name}: slot {} at {} is off by {error}", step.slot, step.position);
            }
        }
        assert!(executor.rows() >= 64);
        let refused = |executor: &mut CpuExecutor, steps: &[Step], part: &str| {
            let error = executor.launch(steps).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        let all = WantedLogits::All;
        refused(&mut executor, &[], "0 rows");
        let many = vec![step(0, 0, all); executor.rows() + 1];
        refused(&mut executor, &many, "it has 1 to");
        refused(&mut executor, &[step(0, 3, all), step(1, 3, all), step(0, 4, all)], "slot 0");
        refused(&mut executor, &[step(0, 3, all), step(0, 3, all)], "slot 0");
        refused(&mut executor, &[step(3, 3, all)], "slot 3 of 3");
    }
}

/// Rounded alike by prefill and steps, so that it does not matter how a prompt was cut.
#[test]
fn a_cache_in_8_bits_costs_little_and_is_the_same_for_all_passes() {
    for name in cases() {
        let folder = families().join(&name);
        let expected = read_npy(std::fs::File::open(folder.join("expected.npy")).unwrap()).unwrap();
        let expected = expected.as_f32().unwrap();
        let (model, checkpoint) = load(&folder);
        let mut executor = CpuExecutor::new(model, checkpoint, 2, TOKENS).unwrap().with_kv_cache(KvCache::Int8);
        let tokens = tokens(executor.vocab_size());
        let whole = executor.prefill(0, 0, &tokens, Rows::All).unwrap();
        let error = relative_error(&whole, expected);
        assert!(error > 1e-5 && error < 6e-2, "{name}: off by {error}");
        let mut stepwise = executor.prefill(1, 0, &tokens[..18], Rows::All).unwrap();
        for (position, token) in tokens.iter().enumerate().skip(18) {
            stepwise.extend(
                executor.decode(&[Step { slot: 1, token: *token, position, wanted: WantedLogits::All }]).unwrap(),
            );
        }
        // Where sums end a hair's breadth apart a value may be rounded to its other neighbour.
        let step = relative_error(&stepwise, &whole);
        assert!(step < 5e-3, "{name}: step by step {step} from the whole");
        println!("{name}: off by {error:.1e}, step by step {step:.1e}");
    }
}

#[test]
fn gguf_blocks_decode_as_ggufpy_decodes_them() {
    let folder = support::repository().join("tests/data/gguf");
    let checkpoint = Checkpoint::open(&[folder.join("blocks.gguf")]).unwrap();
    let expected = read_npy(std::fs::File::open(folder.join("expected.npy")).unwrap()).unwrap();
    let names: Vec<&str> = checkpoint.names().collect();
    assert_eq!(names.len(), 11, "{names:?}");
    for (name, expected) in names.iter().zip(expected.as_f32().unwrap().chunks_exact(1024)) {
        let view = checkpoint.tensor(name).unwrap();
        assert_eq!(view.shape, [2, 512], "{name}");
        let mut values = vec![0.0; 1024];
        view.read(0, &mut values);
        let error = relative_error(&values, expected);
        assert!(error < 1e-6, "{name}: {error}");
    }
}

#[test]
fn a_gguf_is_the_model_it_was_made_from() {
    let folder = support::repository().join("tests/data");
    let checkpoint = Arc::new(Checkpoint::open(&[folder.join("gguf/llama.gguf")]).unwrap());
    let mut model = convert::describe(&checkpoint.config_path, &checkpoint.config, TOKENS).unwrap();
    model.locate(&checkpoint).unwrap();
    let mut executor = CpuExecutor::new(model, checkpoint, 1, TOKENS).unwrap();
    let logits = executor.prefill(0, 0, &tokens(64), Rows::All).unwrap();
    let expected = read_npy(std::fs::File::open(folder.join("llm/llama/expected.npy")).unwrap()).unwrap();
    let error = relative_error(&logits, expected.as_f32().unwrap());
    assert!(error < 1e-4, "{error}");
}

/// SmolLM2-135M-Instruct as the shipped recipe names it.
fn smollm2() -> PathBuf {
    let path = support::repository().join("recipes/smollm2-135m.yaml");
    let plan = recipe::Plan::new(&path, &recipe::load(&path).unwrap());
    let fetcher = Fetcher::from_env(Arc::new(Silent), Arc::default());
    let scratch = tempfile::tempdir().unwrap();
    let mut lock = Lock::open(&scratch.path().join("watus.lock")).unwrap();
    fetcher.fetch(&plan.source, &mut lock).unwrap().files[0].path.clone()
}

/// Greedy answers of `executor` against those of `transformers` (tests/data/smollm2); the first difference of each.
fn smollm2_differences(executor: &mut dyn Executor, text: &Text) -> Vec<Option<usize>> {
    let path = support::repository().join("tests/data/smollm2/expected.json");
    let expected: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let list = |value: &serde_json::Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let mut differences = Vec::new();
    for case in expected.as_array().unwrap() {
        let prompt = text.encode_chat(&[Message::new("user", case["prompt"].as_str().unwrap())]).unwrap();
        assert_eq!(prompt, list(&case["prompt_tokens"]), "tokens of {}", case["prompt"]);
        executor.release(0);
        let mut token = argmax(&executor.prefill(0, 0, &prompt, Rows::Last).unwrap());
        let mut answer = vec![token];
        for position in prompt.len()..prompt.len() + 127 {
            token = argmax(&executor.decode(&[Step { slot: 0, token, position, wanted: WantedLogits::All }]).unwrap());
            answer.push(token);
        }
        let want = list(&case["tokens"]);
        assert_eq!(want.len(), 128);
        let differs = |(have, want): (&u32, &u32)| have != want;
        differences.push(answer.iter().zip(&want).position(differs));
    }
    assert_eq!(differences.len(), 5);
    differences
}

fn smollm2_loaded(folder: &Path) -> (convert::Transformer, Arc<Checkpoint>, Text) {
    let checkpoint = Arc::new(Checkpoint::open(&[smollm2()]).unwrap());
    let mut model = convert::describe(&checkpoint.config_path, &checkpoint.config, 256).unwrap();
    model.locate(&checkpoint).unwrap();
    let gguf = checkpoint.gguf.as_ref().unwrap();
    for (name, content) in text_files(&checkpoint.config_path, gguf, &checkpoint.config).unwrap() {
        std::fs::write(folder.join(name), content).unwrap();
    }
    (model, checkpoint, Text::open(folder).unwrap())
}

#[test]
fn smollm2_says_what_transformers_says() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, checkpoint, text) = smollm2_loaded(scratch.path());
    let mut executor = CpuExecutor::new(model, checkpoint, 1, 256).unwrap();
    assert_eq!(smollm2_differences(&mut executor, &text), [None; 5]);
}

/// With drafts from the conversation and, for every second answer, the answer as a prediction.
#[test]
fn smollm2_says_it_with_drafts_too() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, checkpoint, text) = smollm2_loaded(scratch.path());
    let executor = CpuExecutor::new(model, checkpoint, 1, 256).unwrap();
    let mut generator = Generator::new(Box::new(executor), Arc::new(text), 128);
    let path = support::repository().join("tests/data/smollm2/expected.json");
    let expected: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let list = |value: &serde_json::Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    for (index, case) in expected.as_array().unwrap().iter().enumerate() {
        let want = list(&case["tokens"]);
        let prediction = if index % 2 == 0 { want.clone() } else { Vec::new() };
        let prompt = list(&case["prompt_tokens"]);
        let request = Request { prompt, prediction, max_tokens: 128, ignore_end: true, ..Request::default() };
        let mut have = Vec::new();
        let usage = generator.answer(request, |piece| {
            have.push(piece.choice.token);
            true
        });
        assert_eq!(have, want, "{}", case["prompt"]);
        let speculation = usage.unwrap().speculation;
        println!("{}: {speculation:?}", case["prompt"]);
        assert!(index % 2 == 1 || speculation.accepted > 80, "{speculation:?}");
    }
}

#[test]
fn smollm2_makes_as_much_sense_as_in_transformers() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, checkpoint, text) = smollm2_loaded(scratch.path());
    let parameters = model.parameters() as u64;
    let mut executor = CpuExecutor::new(model, checkpoint, 1, 320).unwrap();
    let path = support::repository().join("tests/data/smollm2/sense.json");
    let expected: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let found = verify::sense(&mut executor, &text, parameters, 320).unwrap();
    assert_eq!(found.len(), 3);
    for sense in &found {
        let want = &expected[&sense.language];
        let (tokens, bytes) = (want["tokens"].as_u64().unwrap(), want["bytes"].as_u64().unwrap());
        assert_eq!((sense.tokens as u64, sense.bytes as u64), (tokens, bytes), "{}", sense.language);
        for (have, want) in [(sense.perplexity, &want["perplexity"]), (sense.bits, &want["bits"])] {
            assert!((have / want.as_f64().unwrap() - 1.0).abs() < 1e-3, "{sense:?}");
        }
    }
    // It was taught English and code alone.
    assert_eq!(found.iter().map(verify::Sense::is_far_off).collect::<Vec<_>>(), [false, false, true]);
    // A text of which too little is left tells nothing.
    assert!(verify::sense(&mut executor, &text, parameters, 40).unwrap().is_empty());
}

#[test]
fn smollm2_says_it_on_the_gpu_too() {
    if !support::tensorrt_or_skip("smollm2_says_it_on_the_gpu_too") || no_gpu("smollm2_says_it_on_the_gpu_too") {
        return;
    }
    for dtype in [DType::Float32, DType::Float16] {
        let scratch = tempfile::tempdir().unwrap();
        let (model, checkpoint, text) = smollm2_loaded(scratch.path());
        let shapes = Shapes::new(1, (128, 256), Family::Rtx);
        let types = LayerTypes::new(dtype);
        build_engines(scratch.path(), &model, &shapes.layers(), &shapes.heads(), types);
        let options = GpuOptions { shapes, types, tf32: false };
        let mut executor = GpuExecutor::new(scratch.path(), model, checkpoint, options, &mut |_, _| {}).unwrap();
        let differences = smollm2_differences(&mut executor, &text);
        println!("{dtype}: first differences {differences:?}");
        if dtype == DType::Float32 {
            assert_eq!(differences, [None; 5]);
        }
    }
}

/// Without a GPU nothing can execute: said, and allowed in CI too.
fn no_gpu(test: &str) -> bool {
    Device::open().inspect_err(|error| eprintln!("SKIPPED {test}: {error}")).is_err()
}

/// Builds the engines of `shapes` for a model into `folder`.
fn build_engines(
    folder: &Path,
    model: &convert::Transformer,
    layers: &[LayerShape],
    heads: &[usize],
    types: LayerTypes,
) {
    let tensorrt = TensorRt::open().unwrap();
    let options = BuildOptions::default();
    let build = |name: String, graph: watus_build::onnx::Model| {
        let onnx = folder.join(format!("{name}.onnx"));
        std::fs::write(&onnx, graph.to_bytes().unwrap()).unwrap();
        let built = tensorrt.build(&onnx, &options, &[], Arc::new(Silent), Arc::default());
        let built = built.unwrap_or_else(|error| panic!("{name}: {error}"));
        std::fs::write(folder.join(format!("{name}.engine")), built.bytes()).unwrap();
    };
    for shape in layers {
        build(layer_name(*shape), convert::layer_graph(model, *shape, types).unwrap());
    }
    for rows in heads {
        build(head_name(*rows), convert::head_graph(model, *rows, types.dtype).unwrap());
    }
}

fn load(folder: &Path) -> (convert::Transformer, Arc<Checkpoint>) {
    let checkpoint = Arc::new(Checkpoint::open(&files(folder)).unwrap());
    let mut model = convert::describe(&checkpoint.config_path, &checkpoint.config, TOKENS).unwrap();
    model.locate(&checkpoint).unwrap();
    (model, checkpoint)
}

#[test]
fn tensorrt_builds_every_family() {
    if !support::tensorrt_or_skip("tensorrt_builds_every_family") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    for (index, name) in cases().into_iter().enumerate() {
        let (model, _) = load(&families().join(name));
        let kv_cache = if index % 3 == 0 { KvCache::Int8 } else { KvCache::Auto };
        for dtype in [DType::Float32, DType::Float16, DType::BFloat16] {
            let shape = LayerShape { batch: 2, chunk: 16, cache: 64 };
            build_engines(scratch.path(), &model, &[shape], &[2], LayerTypes { dtype, kv_cache });
        }
    }
}

#[test]
fn every_family_agrees_on_the_gpu() {
    if !support::tensorrt_or_skip("every_family_agrees_on_the_gpu") || no_gpu("every_family_agrees_on_the_gpu") {
        return;
    }
    // WATUS_FAMILIES=phi3,=qwen2: those whose names begin with phi3, and qwen2 alone.
    let chosen = std::env::var("WATUS_FAMILIES").unwrap_or_default();
    let is_chosen = |name: &String| {
        let fits = |part: &str| part.strip_prefix('=').map_or(name.starts_with(part), |whole| name == whole);
        chosen.split(',').any(fits)
    };
    for name in cases().into_iter().filter(is_chosen) {
        let folder = families().join(&name);
        let expected = read_npy(std::fs::File::open(folder.join("expected.npy")).unwrap()).unwrap();
        let expected = expected.as_f32().unwrap();
        let plain = [(DType::Float32, 1e-4), (DType::Float16, 2e-2), (DType::BFloat16, 2e-1)];
        // What a float's rounding changes may be the next of 127 steps in 8 bits.
        let eight = plain.map(|(dtype, limit)| (dtype, limit + 5e-3, KvCache::Int8));
        for (dtype, limit, kept) in plain.map(|(dtype, limit)| (dtype, limit, KvCache::Auto)).into_iter().chain(eight) {
            let scratch = tempfile::tempdir().unwrap();
            let loaded = load(&folder);
            if kept == KvCache::Int8 && !loaded.0.head_dim.is_multiple_of(16) {
                continue;
            }
            let rounded = (kept == KvCache::Int8).then(|| {
                let executor = CpuExecutor::new(loaded.0.clone(), Arc::clone(&loaded.1), 1, TOKENS).unwrap();
                let mut executor = executor.with_kv_cache(kept);
                executor.prefill(0, 0, &tokens(executor.vocab_size()), Rows::All).unwrap()
            });
            let expected = rounded.as_deref().unwrap_or(expected);
            let shapes = Shapes::new(2, (TOKENS, TOKENS), Family::Rtx);
            let types = LayerTypes { dtype, kv_cache: kept };
            build_engines(scratch.path(), &loaded.0, &shapes.layers(), &shapes.heads(), types);
            let options = GpuOptions { shapes, types, tf32: false };
            let mut executor = GpuExecutor::new(scratch.path(), loaded.0, loaded.1, options, &mut |_, _| {}).unwrap();
            let width = executor.vocab_size();
            let tokens = tokens(width);
            let whole = executor.prefill(0, 0, &tokens, Rows::All).unwrap();
            let error = relative_error(&whole, expected);
            // Both slots, at different positions, alone and together.
            let mut stepwise = executor.prefill(1, 0, &tokens[..5], Rows::All).unwrap();
            stepwise.extend(executor.prefill(1, 5, &tokens[5..18], Rows::All).unwrap());
            executor.prefill(0, 0, &tokens[..3], Rows::Last).unwrap();
            for (position, token) in tokens.iter().enumerate().skip(18) {
                let step = Step { slot: 1, token: *token, position, wanted: WantedLogits::All };
                let other =
                    Step { slot: 0, token: tokens[position - 15], position: position - 15, wanted: WantedLogits::All };
                if position % 2 == 0 {
                    stepwise.extend(executor.decode(&[step]).unwrap());
                    executor.decode(&[other]).unwrap();
                } else {
                    let both = executor.decode(&[step, other]).unwrap();
                    stepwise.extend(&both[..width]);
                    let want = &expected[other.position * width..][..width];
                    let error = relative_error(&both[width..], want);
                    let what = format!("{name} in {dtype}, cache {kept:?}: slot 0 at {}", other.position);
                    assert!(error < limit, "{what} is off by {error}");
                }
            }
            check_rows(&mut executor, expected, limit, &format!("{name} in {dtype}, cache {kept:?}"));
            let step = relative_error(&stepwise, expected);
            println!("{name} {dtype} {kept:?}: prefill {error:.1e}, step by step {step:.1e}");
            assert!(error < limit, "{name} in {dtype}: prefill is off by {error}");
            assert!(step < limit, "{name} in {dtype}: step by step is off by {step}");
        }
    }
}

/// Passes of a prompt go through the layers together, while the cache grows; each sees those before it, however the prompt
/// comes in parts.
#[test]
fn passes_see_those_before_them_on_the_gpu() {
    const TEST: &str = "passes_see_those_before_them_on_the_gpu";
    const LONGEST: usize = 128;
    if !support::tensorrt_or_skip(TEST) || no_gpu(TEST) {
        return;
    }
    // In float32 there is no kernel of ours: all passes are the engines'.
    for (name, kv_cache) in [("llama", KvCache::Auto), ("gemma3", KvCache::Auto), ("gemma2", KvCache::Int8)] {
        let (scratch, folder) = (tempfile::tempdir().unwrap(), families().join(name));
        let checkpoint = Arc::new(Checkpoint::open(&files(&folder)).unwrap());
        let mut model = convert::describe(&checkpoint.config_path, &checkpoint.config, LONGEST).unwrap();
        model.locate(&checkpoint).unwrap();
        let tokens: Vec<u32> = (0..110).map(|i| u32::try_from((7 * i + 3) % model.vocab_size).unwrap()).collect();
        let reference = CpuExecutor::new(model.clone(), Arc::clone(&checkpoint), 1, LONGEST).unwrap();
        let expected = reference.with_kv_cache(kv_cache).prefill(0, 0, &tokens, Rows::All).unwrap();
        let (chunks, caches) = (vec![16], vec![64, LONGEST, 512]);
        let shapes = Shapes { slots: 2, max_len: LONGEST, chunks, caches, steps: vec![(1, 1), (2, 1)] };
        let types = LayerTypes { dtype: DType::Float32, kv_cache };
        build_engines(scratch.path(), &model, &shapes.layers(), &shapes.heads(), types);
        let options = GpuOptions { shapes, types, tf32: false };
        let mut executor = GpuExecutor::new(scratch.path(), model, checkpoint, options, &mut |_, _| {}).unwrap();
        assert_eq!(executor.pass(0, tokens.len()), 64, "{name}: four passes have room");
        let limit = if kv_cache == KvCache::Int8 { 5.1e-3 } else { 1e-4 };
        for parts in [&[110][..], &[33, 77], &[64, 46], &[7, 90, 13], &[110]] {
            let (mut have, mut done) = (Vec::new(), 0);
            for part in parts {
                have.extend(executor.prefill(1, done, &tokens[done..done + part], Rows::All).unwrap());
                done += part;
            }
            let error = relative_error(&have, &expected);
            assert!(error < limit, "{name} in parts {parts:?} is off by {error}");
            executor.release(1);
        }
        let last = executor.prefill(0, 0, &tokens, Rows::Last).unwrap();
        let error = relative_error(&last, &expected[expected.len() - last.len()..]);
        assert!(error < limit, "{name}: the last row is off by {error}");
    }
}

/// Several tokens of slot 1 beside one of slot 0 in a launch, where the executor takes them; of two the logits are wanted.
fn check_rows(executor: &mut GpuExecutor, expected: &[f32], limit: f32, what: &str) {
    let width = executor.vocab_size();
    let tokens = tokens(width);
    let step =
        |slot: usize, position: usize, wanted: WantedLogits| Step { slot, token: tokens[position], position, wanted };
    for count in [3, 12, 33] {
        if executor.rows() <= count.max(executor.slots()) {
            continue;
        }
        executor.prefill(0, 0, &tokens[..4], Rows::None).unwrap();
        executor.prefill(1, 0, &tokens[..2], Rows::None).unwrap();
        let mut steps: Vec<Step> = (2..2 + count).map(|position| step(1, position, WantedLogits::None)).collect();
        steps[count - 1].wanted = WantedLogits::All;
        steps.insert(0, step(0, 4, WantedLogits::All));
        executor.launch(&steps).unwrap();
        let mut logits = executor.collect().unwrap();
        for (index, position) in [(0, 4), (count, count + 1)] {
            let error = relative_error(logits.all(index).unwrap(), &expected[position * width..][..width]);
            assert!(error < limit, "{what}: beside {count} rows of a slot position {position} is off by {error}");
        }
    }
}

/// Rows that pad a pass kept the last layer's output, and with some hundred passes grew until float16 had no number for
/// them: SmolLM2 on an H100 then answered nothing, for ever.
#[test]
fn short_prompts_leave_nothing_behind_on_the_gpu() {
    use watus_build::engine_dir::model::{Runner, open_executor};
    if !support::tensorrt_or_skip("short_prompts_leave_nothing_behind_on_the_gpu")
        || no_gpu("short_prompts_leave_nothing_behind_on_the_gpu")
    {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let mut build = support::watus(scratch.path());
    build.env_remove("WATUS_CACHE_DIR").arg("build").arg(support::repository().join("recipes/smollm2-135m.yaml"));
    let (code, _, stderr) = support::output(&mut build);
    assert_eq!(code, 0, "{stderr}");
    let engine = scratch.path().join("engines/smollm2-135m");
    let manifest = watus_build::manifest::Manifest::load(&engine).unwrap();
    let (record, runner) = (manifest.contents.llm().unwrap(), Runner::TensorRt { tf32: manifest.tf32 });
    let mut executor = open_executor(&engine, record, runner, &mut |_, _| {}).unwrap();
    // Some of these are padded, however passes are cut here.
    for length in [4, 13, 29, 61] {
        let prompt: Vec<u32> = (0..length).map(|at| 1 + at * 331 % 9000).collect();
        let first = executor.prefill(0, 0, &prompt, Rows::Last).unwrap();
        for round in 0..300 {
            let again = executor.prefill(round % 2, 0, &prompt, Rows::Last).unwrap();
            assert!(again.iter().all(|logit| logit.is_finite()), "{length} tokens, round {round}");
            assert!(relative_error(&again, &first) < 1e-3, "{length} tokens, round {round}");
        }
    }
}
