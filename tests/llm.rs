//! Language models against `transformers`: tiny checkpoints of every family (tests/data/llm, made by make.py).
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use watus_build::checkpoint::Checkpoint;
use watus_build::convert;
use watus_build::llm::{CpuExecutor, Executor, Rows, Step};
use watus_build::tensor::read_npy;

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
    let checkpoint = Arc::new(Checkpoint::open(&files(folder)).unwrap());
    let mut model = convert::describe(&checkpoint.config_path, &checkpoint.config, TOKENS).unwrap();
    model.locate(&checkpoint).unwrap();
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
