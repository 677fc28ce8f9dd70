//! Language models against `transformers`: tiny checkpoints of every family (tests/data/llm, made by make.py).
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use watus_build::backend::tensorrt::device::Device;
use watus_build::backend::tensorrt::{BuildOptions, TensorRt};
use watus_build::checkpoint::Checkpoint;
use watus_build::convert::{self, LayerShape};
use watus_build::llm::{CpuExecutor, Executor, GpuExecutor, GpuOptions, Rows, Shapes, Step, head_name, layer_name};
use watus_build::progress::Silent;
use watus_build::tensor::{DType, read_npy};

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
            stepwise.extend(executor.decode(&[Step { slot: 1, token: *token, position }]).unwrap());
        }
        let step = relative_error(&stepwise, expected);
        assert!(step < 1e-4, "{name}: step by step is off by {step}");
        let last = executor.prefill(0, 0, &tokens, Rows::Last).unwrap();
        assert!(relative_error(&last, &expected[expected.len() - width..]) < 1e-4, "{name}: last row");
        println!("{name}: prefill {error:.1e}, step by step {step:.1e}");
    }
}

/// Builds the engines of `shapes` for a model into `folder`.
fn build_engines(folder: &Path, model: &convert::Transformer, layers: &[LayerShape], heads: &[usize], dtype: DType) {
    let tensorrt = TensorRt::open().unwrap();
    let options = BuildOptions { clear_flags: vec!["tf32".to_owned()], ..BuildOptions::default() };
    let build = |name: String, graph: watus_build::onnx::Model| {
        let onnx = folder.join(format!("{name}.onnx"));
        std::fs::write(&onnx, graph.to_bytes().unwrap()).unwrap();
        let built = tensorrt.build(&onnx, &options, Vec::new(), Arc::new(Silent), Arc::default());
        let built = built.unwrap_or_else(|error| panic!("{name}: {error}"));
        std::fs::write(folder.join(format!("{name}.engine")), built.bytes()).unwrap();
    };
    for shape in layers {
        build(layer_name(*shape), convert::layer_graph(model, *shape, dtype).unwrap());
    }
    for rows in heads {
        build(head_name(*rows), convert::head_graph(model, *rows, dtype).unwrap());
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
    for name in cases() {
        let (model, _) = load(&families().join(name));
        for dtype in [DType::Float32, DType::Float16, DType::BFloat16] {
            let shape = LayerShape { batch: 2, chunk: 16, cache: 64 };
            build_engines(scratch.path(), &model, &[shape], &[2], dtype);
        }
    }
}

#[test]
fn every_family_agrees_on_the_gpu() {
    if !support::tensorrt_or_skip("every_family_agrees_on_the_gpu") {
        return;
    }
    if let Err(error) = Device::open() {
        eprintln!("SKIPPED every_family_agrees_on_the_gpu: {error}");
        return;
    }
    for name in cases() {
        let folder = families().join(&name);
        let expected = read_npy(std::fs::File::open(folder.join("expected.npy")).unwrap()).unwrap();
        let expected = expected.as_f32().unwrap();
        for (dtype, limit) in [(DType::Float32, 1e-4), (DType::Float16, 2e-2), (DType::BFloat16, 2e-1)] {
            let scratch = tempfile::tempdir().unwrap();
            let loaded = load(&folder);
            let shapes = Shapes::new(2, TOKENS, TOKENS);
            build_engines(scratch.path(), &loaded.0, &shapes.layers(), &shapes.heads(), dtype);
            let options = GpuOptions { shapes, dtype, tf32: false };
            let mut executor = GpuExecutor::new(scratch.path(), loaded, options, &mut |_, _| {}).unwrap();
            let width = executor.vocab_size();
            let tokens = tokens(width);
            let whole = executor.prefill(0, 0, &tokens, Rows::All).unwrap();
            let error = relative_error(&whole, expected);
            // Both slots, at different positions, alone and together.
            let mut stepwise = executor.prefill(1, 0, &tokens[..5], Rows::All).unwrap();
            stepwise.extend(executor.prefill(1, 5, &tokens[5..18], Rows::All).unwrap());
            executor.prefill(0, 0, &tokens[..3], Rows::Last).unwrap();
            for (position, token) in tokens.iter().enumerate().skip(18) {
                let step = Step { slot: 1, token: *token, position };
                let other = Step { slot: 0, token: tokens[position - 15], position: position - 15 };
                if position % 2 == 0 {
                    stepwise.extend(executor.decode(&[step]).unwrap());
                    executor.decode(&[other]).unwrap();
                } else {
                    let both = executor.decode(&[step, other]).unwrap();
                    stepwise.extend(&both[..width]);
                    let want = &expected[other.position * width..][..width];
                    assert!(relative_error(&both[width..], want) < limit, "{name}: slot 0 at {}", other.position);
                }
            }
            let step = relative_error(&stepwise, expected);
            println!("{name} {dtype}: prefill {error:.1e}, step by step {step:.1e}");
            assert!(error < limit, "{name} in {dtype}: prefill is off by {error}");
            assert!(step < limit, "{name} in {dtype}: step by step is off by {step}");
        }
    }
}
