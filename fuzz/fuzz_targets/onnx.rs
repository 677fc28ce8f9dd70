//! An ONNX file that is anything at all: read, described, changed as a build changes it, and written without a panic. What
//! is written can be read.
#![no_main]

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use watus_build::onnx::{Half, Model, Parser};
use watus_build::tensor::DType;

fuzz_target!(|data: &[u8]| {
    let path = Path::new("folder/m.onnx");
    let Ok(mut model) = Model::parse(path, data) else { return };
    let _ = (
        model.summary(),
        model.outputs(),
        model.parser_fault(Parser { newest: 17, rtx: Some((1, 6)) }),
        model.name_nodes("node #0 and node #99"),
    );
    model.depth();
    if let Ok((_, guards)) = model.clone().prepare_for_reference() {
        assert!(guards.iter().all(|guard| !guard.output.is_empty()));
    }
    let mut lean = model.clone();
    lean.simplify();
    lean.prepare_for_tensorrt();
    let mut older = lean.clone();
    if older.to_opset(17).is_ok() {
        lean = older;
    }
    let bytes = lean.to_bytes().expect("a simplified model can be written");
    Model::parse(path, &bytes).expect("what is simplified can be read");
    model.make_explicit();
    let fixed = model.inputs().unwrap_or_default().into_iter().map(|input| {
        let shape: Vec<Option<usize>> =
            input.shape.iter().zip(0..).map(|(size, at)| size.or((at % 3 < 2).then_some(2))).collect();
        (input.name, shape)
    });
    let fixed: BTreeMap<String, Vec<Option<usize>>> = fixed.collect();
    let _ = model.fix_shapes(&fixed);
    model.flatten_external();
    assert!(model.external_files().iter().all(|file| !file.contains('/')), "{:?}", model.external_files());
    let bytes = model.to_bytes().expect("a model can be written");
    Model::parse(path, &bytes).expect("what is written can be read");
    for dtype in [DType::Float16, DType::BFloat16] {
        if let Ok(half) = model.to_half(&Half { dtype, keep: HashSet::new() }) {
            half.to_bytes().expect("a half-precision model can be written");
        }
    }
});
