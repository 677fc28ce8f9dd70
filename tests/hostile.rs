//! Whatever is read from files: damaged in any way it may be refused, but nothing panics and nothing hangs.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use proptest::prelude::*;
use watus_build::backend::tensorrt::plan::Header;
use watus_build::onnx::{GraphBuilder, Model, Parser};
use watus_build::tensor::{DType, Tensor, read_npy, write_npy};
use watus_build::vision::{
    Boxes, ClassifierOutput, ClassifierSpec, Detection, Mask, Preprocess, RgbImage, Task, VisionError, Yolo, annotate,
};

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

/// Any float32, and often one that decoders trip over.
fn float() -> BoxedStrategy<f32> {
    prop_oneof![
        8 => -100.0f32..100.0,
        2 => 0.0f32..1.0,
        1 => prop::sample::select(vec![0.0, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e30, -1e30]),
        1 => any::<u32>().prop_map(f32::from_bits),
    ]
    .boxed()
}

/// As [`float`], but finite: what is not ends most decoders early.
fn finite() -> BoxedStrategy<f32> {
    float().prop_map(|value| if value.is_finite() { value } else { 1.0 }).boxed()
}

/// A tensor of any small shape of `rank` dimensions.
fn tensor(rank: usize, value: BoxedStrategy<f32>) -> BoxedStrategy<Tensor> {
    let shapes = prop::collection::vec(0..9usize, rank);
    let of_shape = move |shape: Vec<usize>| {
        let count = shape.iter().product::<usize>();
        prop::collection::vec(value.clone(), count)
            .prop_map(move |values| Tensor::from_f32(shape.clone(), values).unwrap())
    };
    shapes.prop_flat_map(of_shape).boxed()
}

/// What an engine might answer for `classes` classes and `masks` prototypes: the right ranks, and mostly the right rows.
fn outputs(classes: usize, masks: usize) -> BoxedStrategy<Vec<Tensor>> {
    let values = prop_oneof![4 => finite(), 1 => float()].boxed();
    let right = (0..9usize, 1..9usize, 1..9usize).prop_flat_map(move |(anchors, height, width)| {
        let rows = 4 + classes + masks;
        let raw = prop::collection::vec(finite(), rows * anchors);
        let proto = prop::collection::vec(finite(), masks * height * width);
        (raw, proto).prop_map(move |(raw, proto)| {
            vec![
                Tensor::from_f32(vec![1, rows, anchors], raw).unwrap(),
                Tensor::from_f32(vec![1, masks, height, width], proto).unwrap(),
            ]
        })
    });
    let any = (tensor(3, values.clone()), tensor(4, values)).prop_map(|(raw, proto)| vec![raw, proto]);
    prop_oneof![3 => right, 1 => any].boxed()
}

/// The same with boxes as rows, as models have them that choose themselves, every other one of a class that there is.
fn turned(mut outputs: Vec<Tensor>, boxes: Boxes) -> Vec<Tensor> {
    let &[batch, columns, rows] = outputs[0].shape() else { return outputs };
    if boxes != Boxes::Anchors {
        let mut values = outputs[0].as_f32().unwrap().to_vec();
        values.chunks_mut(columns.max(1)).step_by(2).filter(|row| row.len() > 5).for_each(|row| row[5] = 1.0);
        outputs[0] = Tensor::from_f32(vec![batch, rows, columns], values).unwrap();
    }
    outputs
}

fn boxes() -> impl Strategy<Value = Boxes> {
    prop::sample::select(vec![Boxes::Anchors, Boxes::Final, Boxes::Queries])
}

fn yolo(task: Task, size: [u32; 2], boxes: Boxes) -> Yolo {
    Yolo {
        boxes,
        task,
        names: vec!["owl".to_owned(), "wąż".to_owned()],
        stride: 32,
        size,
        confidence: 0.25,
        iou: 0.7,
        max_detections: 20,
        metadata: false,
        about: Default::default(),
    }
}

/// Boxes in the picture, masks as large as they say.
fn check_detections(found: Result<Vec<Detection>, VisionError>, [height, width]: [u32; 2]) {
    let found = found.unwrap_or_default();
    for detection in &found {
        let [left, top, right, bottom] = detection.bbox.corners();
        assert!(0.0 <= left && left <= right && right <= width as f32, "{detection:?}");
        assert!(0.0 <= top && top <= bottom && bottom <= height as f32, "{detection:?}");
        let Some(mask) = &detection.mask else { continue };
        let [columns, rows] = [right.round() - left.round(), bottom.round() - top.round()];
        assert_eq!((mask.width, mask.inside.len()), (columns as u32, (columns * rows) as usize), "{detection:?}");
        assert!(mask.pixels().all(|(x, y)| x < width && y < height), "{detection:?}");
        assert_eq!(mask.pixels().count(), mask.area());
        assert_eq!(mask.overlap(mask), 1.0);
        serde_json::to_string(mask).unwrap();
        for other in &found {
            let overlap = mask.overlap(other.mask.as_ref().unwrap());
            assert!((0.0..=1.0).contains(&overlap), "{overlap}");
        }
    }
    annotate(&RgbImage::new(width, height), &found);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn answers_of_detectors(
        given in outputs(2, 0),
        layout in boxes(),
        picture in [0..70u32, 0..70u32],
        size in [0..3u32, 0..3u32],
    ) {
        let model = yolo(Task::Detect, size.map(|side| 32 * side), layout);
        check_detections(model.detections(&turned(given, layout)[..1], picture), picture);
    }

    #[test]
    fn answers_of_segmenting_detectors(
        given in outputs(2, 3),
        layout in boxes(),
        picture in [0..70u32, 0..70u32],
        size in [0..3u32, 0..3u32],
    ) {
        let model = yolo(Task::Segment, size.map(|side| 32 * side), layout);
        check_detections(model.detections(&turned(given, layout), picture), picture);
    }

    #[test]
    fn answers_of_classifiers(
        output in prop_oneof![tensor(2, float()), tensor(2, finite()), tensor(3, finite())],
        kind in prop::sample::select(vec![
            ClassifierOutput::Logits,
            ClassifierOutput::Probabilities,
            ClassifierOutput::Expectation,
            ClassifierOutput::Multilabel,
            ClassifierOutput::MultilabelProbabilities,
            ClassifierOutput::Values,
        ]),
        labels in prop::option::of(0..9usize),
        values in prop::option::of(prop::collection::vec(finite(), 0..9)),
    ) {
        let preprocess = Preprocess {
            size: None, fit: None, resize: None, resample: None, color: None, mean: [0.0; 3], std: [1.0; 3],
        };
        let labels = labels.map(|count| (0..count).map(|class| class.to_string()).collect());
        let classifier = ClassifierSpec { preprocess, labels, output: kind, class_values: values };
        if let Ok(answer) = classifier.answer(&output) {
            let numbers = [answer.probability, answer.value];
            assert!(numbers.iter().flatten().all(|number| number.is_finite()), "{answer:?}");
            assert_eq!(answer.probability.is_none(), kind == ClassifierOutput::Values, "{answer:?}");
            let classes = output.shape()[1];
            let most = if kind == ClassifierOutput::Values { classes } else { 5 };
            assert!(answer.class < classes && !answer.top.is_empty() && answer.top.len() <= most, "{answer:?}");
        }
    }

    #[test]
    fn drawings(
        bbox in [float(), float(), float(), float()],
        origin in any::<[u32; 2]>(),
        width in 0..9u32,
        inside in prop::collection::vec(any::<bool>(), 0..70),
        picture in [0..50u32, 0..50u32],
    ) {
        let mask = Some(Mask { origin, width, inside });
        let detection = Detection { label: "wąż".to_owned(), class: 7, score: bbox[0], bbox: bbox.into(), mask };
        let picture = RgbImage::new(picture[0], picture[1]);
        assert_eq!(annotate(&picture, std::slice::from_ref(&detection)).dimensions(), picture.dimensions());
        serde_json::to_string(&detection).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn onnx_models(bytes in damaged(onnx())) {
        if let Ok(mut model) = Model::parse(Path::new("m.onnx"), &bytes) {
            let _ = model.summary();
            let _ = model.clone().prepare_for_reference();
            let mut lean = model.clone();
            lean.simplify();
            lean.prepare_for_tensorrt();
            let _ = lean.to_opset(17);
            prop_assert!(Model::parse(Path::new("m.onnx"), &lean.to_bytes().unwrap()).is_ok());
            model.make_explicit();
            let _ = model.parser_fault(Parser { newest: 17, rtx: Some((1, 6)) });
            let _ = model.quantised(true);
            model.name_nameless();
            let _ = model.fix_shapes(&[("x".to_owned(), vec![Some(1), Some(4)])].into());
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
