//! Whatever is read from files: damaged in any way it may be refused, but nothing panics and nothing hangs.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use proptest::prelude::*;
use watus_build::backend::tensorrt::plan::Header;
use watus_build::onnx::{GraphBuilder, Model};
use watus_build::tensor::{DType, Tensor, read_npy, write_npy};

fn onnx() -> Vec<u8> {
    let mut graph = GraphBuilder::new("g", 17);
    graph.input("x", DType::Float32, &[None, Some(4)]);
    graph.initializer("w", &Tensor::seeded(DType::Float32, vec![4, 3], 1).unwrap());
    let y = graph.node("MatMul", &["x", "w"], &[]);
    let y = graph.node("Softmax", &[&y], &[("axis", 1.into())]);
    graph.output(&y, DType::Float32, &[None, Some(3)]);
    graph.finish(Path::new("g.onnx")).unwrap().to_bytes().unwrap()
}

fn npy() -> Vec<u8> {
    let mut file = Vec::new();
    write_npy(&mut file, &Tensor::seeded(DType::Float32, vec![3, 5], 1).unwrap()).unwrap();
    file
}

const RECIPE: &str = include_str!("../recipes/gender.yaml");

/// A few bytes changed, the end cut off or repeated.
fn damaged(original: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = original.len();
    (prop::collection::vec((0..length, any::<u8>()), 0..8), 0..=length, 0..3usize).prop_map(
        move |(edits, keep, repeat)| {
            let mut bytes = original.clone();
            for (at, value) in edits {
                bytes[at] = value;
            }
            bytes.truncate(keep);
            bytes.repeat(repeat + 1)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn onnx_models(bytes in damaged(onnx())) {
        if let Ok(mut model) = Model::parse(Path::new("m.onnx"), &bytes) {
            let _ = model.summary();
            model.spell_out();
            let _ = model.complaint(17);
            let _ = model.fix_shapes(&[("x".to_owned(), vec![1, 4])].into());
            model.flatten_external();
            let _ = model.to_bytes();
        }
    }

    #[test]
    fn npy_files(bytes in damaged(npy())) {
        let _ = read_npy(bytes.as_slice());
    }

    #[test]
    fn plan_headers(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = Header::parse(&bytes);
    }

    #[test]
    fn recipes(bytes in damaged(RECIPE.as_bytes().to_vec())) {
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(recipe) = watus_build::recipe::parse(Path::new("r.yaml"), &text) {
            let _ = watus_build::recipe::Plan::new(Path::new("r.yaml"), &recipe);
        }
    }
}
