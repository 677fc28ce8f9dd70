//! Vision checkpoints against the libraries they come from: tiny ones in `tests/data/vision`, made by its scripts.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use watus_build::backend::Backend;
use watus_build::backend::cpu::Cpu;
use watus_build::checkpoint::torch::TorchFile;
use watus_build::checkpoint::{Checkpoint, read_json};
use watus_build::convert::{Config, vision};
use watus_build::fetch::{Fetcher, Lock};
use watus_build::onnx::Model;
use watus_build::pipeline;
use watus_build::progress::Silent;
use watus_build::recipe::{self, Plan};
use watus_build::tensor::{DType, Tensor, read_npy};
use watus_build::vision::{Boxes, ClassifierSpec, Task, Yolo, annotate, read_picture, to_tensor};

use support::repository;

fn data() -> PathBuf {
    repository().join("tests/data/vision")
}

fn npy(path: &Path) -> Tensor {
    read_npy(fs::File::open(path).unwrap()).unwrap()
}

/// max|have - want| / max|want|.
fn relative_error(have: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(have.shape(), want.shape());
    let (have, want) = (have.to_f64(), want.to_f64());
    let largest = want.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    let worst = have.iter().zip(&want).fold(0.0f64, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst.is_finite() && largest > 0.0);
    worst / largest
}

fn run(model: &Model, input: Tensor) -> Vec<Tensor> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    fs::write(&path, model.to_bytes().unwrap()).unwrap();
    Cpu.open(&path).unwrap().run(&[input]).unwrap()
}

fn checkpoint(folder: &Path) -> Checkpoint {
    let files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    Checkpoint::open(&files).unwrap()
}

/// Folders of classifiers.
fn classifiers() -> Vec<PathBuf> {
    let entries = fs::read_dir(data()).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.join("config.json").exists()).collect();
    folders.sort();
    folders
}

#[test]
fn classifiers_compute_what_transformers_does() {
    let folders = classifiers();
    assert!(folders.len() >= 11, "{folders:?}");
    for folder in folders {
        let checkpoint = checkpoint(&folder);
        let size = vision::trained_size(&checkpoint).unwrap_or([32, 32]);
        let want = npy(&folder.join("expected.npy"));
        let pixels = Tensor::seeded(DType::Float32, vec![2, 3, size[0], size[1]], 7).unwrap();
        for batch in [Some(2), None] {
            let model = vision::classifier_model(&checkpoint, size, batch).unwrap();
            let error = relative_error(&run(&model, pixels.clone())[0], &want);
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            println!("{name}: {error:.1e}");
            assert!(error < 1e-5, "{name}, batch {batch:?}: {error:.1e}");
        }
        assert_eq!(vision::labels(&checkpoint).unwrap().unwrap()[3], "robot");
    }
}

#[test]
fn yolos_compute_what_ultralytics_does() {
    for (name, task) in [
        ("yolov8", Task::Detect),
        ("yolo11-seg", Task::Segment),
        ("yolo12", Task::Detect),
        ("yolo12-qk", Task::Detect),
        ("yolo11-cls", Task::Classify),
        ("yolo26", Task::Detect),
    ] {
        let file = TorchFile::open(&data().join(format!("{name}.pt"))).unwrap();
        let values = Tensor::seeded(DType::Float32, vec![1, 3, 64, 64], 7).unwrap();
        let values: Vec<f32> = values.as_f32().unwrap().iter().map(|value| value / 2.0 + 0.5).collect();
        let picture = Tensor::from_f32(vec![1, 3, 64, 64], values).unwrap();
        for batch in [Some(1), None] {
            let converted = vision::yolo_model(&file, [64, 64], batch).unwrap();
            assert_eq!((converted.task, converted.names.join(" ").as_str()), (task, "owl robot tram"), "{name}");
            assert_eq!(converted.stride, if task == Task::Classify { 1 } else { 16 }, "{name}");
            assert_eq!(converted.notes.len(), usize::from(name == "yolo26"), "{:?}", converted.notes);
            for (index, have) in run(&converted.model, picture.clone()).iter().enumerate() {
                let file = if index == 0 { format!("{name}.npy") } else { format!("{name}.1.npy") };
                let error = relative_error(have, &npy(&data().join(file)));
                println!("{name} output{index}: {error:.1e}");
                assert!(error < 1e-5, "{name} output{index}, batch {batch:?}: {error:.1e}");
            }
        }
    }
}

/// Brings what a shipped recipe names: its model and its pictures.
fn shipped(name: &str) -> (PathBuf, Vec<PathBuf>) {
    let path = repository().join(format!("recipes/{name}.yaml"));
    let plan = Plan::new(&path, &recipe::load(&path).unwrap());
    let fetcher = Fetcher::from_env(Arc::new(Silent), Arc::default());
    let scratch = tempfile::tempdir().unwrap();
    let mut lock = Lock::open(&scratch.path().join("watus.lock")).unwrap();
    let model = fetcher.fetch(&plan.source, &mut lock).unwrap().files[0].path.clone();
    let pictures = pipeline::fetch_pictures(&plan, &fetcher, &mut lock).unwrap();
    (model, pictures.into_iter().map(|(_, path)| path).collect())
}

/// Every n-th value, as the scripts keep large tensors.
fn sampled(tensor: &Tensor, step: usize) -> Tensor {
    let values: Vec<f32> = tensor.as_f32().unwrap().iter().copied().step_by(step).collect();
    Tensor::from_f32(vec![values.len()], values).unwrap()
}

#[test]
fn pictures_become_what_the_processors_make_of_them() {
    let picture = read_picture(&shipped("yolo11n-seg").1[0]).unwrap();
    for folder in classifiers() {
        let path = folder.join("preprocessor_config.json");
        let config = read_json(&path).unwrap();
        let trained = vision::trained_size(&checkpoint(&folder)).map(|size| size.map(|side| side as u32));
        let preprocess = vision::preprocess(&Config::new(&path, &config), trained).unwrap();
        let size = preprocess.size.unwrap();
        let want = npy(&folder.join("pixels.npy"));
        let values = 3 * (size[0] * size[1]) as usize;
        let have = sampled(&to_tensor(&picture, &preprocess, size), values.div_ceil(3072));
        assert_eq!(have.shape(), want.shape(), "{}", folder.display());
        // In steps of the byte the value came from; channels have different deviations, so the widest counts.
        let bytes = preprocess.std.iter().fold(0.0f32, |widest, std| widest.max(*std));
        let worst = have.to_f64().iter().zip(want.to_f64()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let steps = worst * f64::from(bytes);
        println!("{}: {steps:.2} of a byte's steps", folder.display());
        // Rounding in resizing. At almost full size single pixels show that JPEG decoders differ by 2 too.
        let allowed = if size[0] > 224 { 2.05 } else { 1.03 };
        assert!(steps <= allowed, "{}: {steps}", folder.display());
    }
}

#[test]
fn the_published_model_computes_what_ultralytics_does() {
    let (model, pictures) = shipped("yolo11n-seg");
    let file = TorchFile::open(&model).unwrap();
    let converted = vision::yolo_model(&file, [640, 640], Some(1)).unwrap();
    let values = Tensor::seeded(DType::Float32, vec![1, 3, 640, 640], 7).unwrap();
    let values: Vec<f32> = values.as_f32().unwrap().iter().map(|value| value / 2.0 + 0.5).collect();
    let input = Tensor::from_f32(vec![1, 3, 640, 640], values).unwrap();
    let outputs = run(&converted.model, input);
    for (output, name) in outputs.iter().zip(["yolo11n-seg.npy", "yolo11n-seg.1.npy"]) {
        let error = relative_error(&sampled(output, 97), &npy(&data().join(name)));
        println!("{name}: {error:.1e}");
        assert!(error < 1e-5, "{name}: {error:.1e}");
    }

    // What Ultralytics finds on bus.jpg with its own export of the model, letterboxed to 640 x 640.
    let yolo = Yolo {
        task: Task::Segment,
        names: converted.names,
        stride: 32,
        size: [640, 640],
        boxes: Default::default(),
        confidence: 0.25,
        iou: 0.7,
        max_detections: 300,
        metadata: true,
        about: Default::default(),
    };
    let picture = read_picture(&pictures[0]).unwrap();
    let input = to_tensor(&picture, &yolo.preprocess(), yolo.size);
    let found = yolo.detections(&run(&converted.model, input), [picture.height(), picture.width()]).unwrap();
    let want = [
        ("person", 0.87368, [51.377, 394.997, 243.061, 903.952]),
        ("bus", 0.86512, [9.74, 227.584, 799.998, 738.795]),
        ("person", 0.84264, [667.645, 385.758, 810.0, 877.411]),
        ("person", 0.82845, [220.728, 404.559, 345.202, 859.373]),
        ("person", 0.39553, [1.691, 553.301, 81.302, 874.235]),
    ];
    assert_eq!(found.len(), want.len(), "{found:?}");
    for (found, (label, score, bbox)) in found.iter().zip(want) {
        assert_eq!(found.label, label);
        assert!((found.score - score).abs() < 0.005, "{found:?}");
        assert!(found.bbox.corners().iter().zip(bbox).all(|(have, want)| (have - want).abs() < 1.5), "{found:?}");
        assert!(found.mask.as_ref().unwrap().area() > 10_000);
    }
    let drawn = annotate(&picture, &found);
    assert_ne!(drawn.get_pixel(60, 396), picture.get_pixel(60, 396), "the first person's upper edge");
}

/// Committed JSON.
fn json(name: &str) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(data().join(name)).unwrap()).unwrap()
}

fn floats(value: &serde_json::Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

#[test]
fn pictures_are_what_pil_reads() {
    let folder = data().join("pictures");
    for (name, want) in json("pictures/expected.json").as_object().unwrap() {
        let read = read_picture(&folder.join(name));
        let Some(hex) = want["rgb"].as_str() else {
            let error = read.expect_err(name).to_string();
            assert!(error.contains(name.as_str()), "{error}");
            continue;
        };
        let have = read.unwrap();
        let size = [have.width(), have.height()].map(u64::from);
        assert_eq!(size, ["width", "height"].map(|side| want[side].as_u64().unwrap()), "{name}");
        let digits: Vec<u8> = hex.chars().map(|digit| digit.to_digit(16).unwrap() as u8).collect();
        let differences =
            have.as_raw().iter().zip(digits.chunks(2)).map(|(have, want)| have.abs_diff(want[0] * 16 + want[1]));
        let worst = differences.max().unwrap();
        // Decoders of lossy formats round in their own ways.
        let allowed = match name.as_str() {
            "lossy.webp" | "jpeg.tif" => 10,
            "ycbcr.tif" => 1,
            name if name.ends_with(".jpg") => 10,
            _ => 0,
        };
        println!("{name}: {worst}");
        assert!(worst <= allowed, "{name}: {worst}");
    }
    let told = |name: &str| read_picture(&folder.join(name)).unwrap_err().to_string();
    for name in ["cut.jpg", "cut.webp", "cut.gif", "cut.tif", "cut-palette.tif"] {
        assert!(told(name).contains("the file is cut off"), "{}", told(name));
    }
    assert!(told("words.jpg").contains("hint: PNG, JPEG, WebP, BMP, TIFF and GIF are read"), "{}", told("words.jpg"));
    for (name, said) in [
        (
            "floats.tif",
            "its samples are floating-point numbers, of which none is known to be white\n  hint: TIFFs of 8 or 16",
        ),
        ("integers.tif", "its samples are signed integers"),
        ("lab.tif", "its colours are CIE L*a*b*\n  hint: TIFFs of 8 or 16 bits"),
        ("zstd.tif", ": compression method ZSTD is unsupported\n  hint: TIFFs without compression, or with LZW"),
    ] {
        assert!(told(name).contains(said), "{}", told(name));
    }
    let gone = told("gone.jpg");
    assert!(gone.contains("there is no such file") && !gone.contains("hint"), "{gone}");
}

#[test]
fn heads_say_what_the_pipeline_of_transformers_says() {
    let scratch = tempfile::tempdir().unwrap();
    fs::copy(data().join("vit/model.safetensors"), scratch.path().join("model.safetensors")).unwrap();
    let mut config = json("vit/config.json");
    let mut head = |problem: &serde_json::Value, labels: &serde_json::Value| {
        config["problem_type"] = problem.clone();
        let labels = labels.as_array().unwrap().iter().enumerate();
        config["id2label"] = labels.map(|(index, label)| (index.to_string(), label.clone())).collect();
        fs::write(scratch.path().join("config.json"), config.to_string()).unwrap();
        let checkpoint = checkpoint(scratch.path());
        vision::answers(&checkpoint).map(|output| (output, vision::labels(&checkpoint).unwrap()))
    };
    for case in json("answers.json").as_array().unwrap() {
        let (output, labels) = head(&case["problem_type"], &case["labels"]).unwrap();
        let preprocess = yolo(Boxes::Anchors, 1).preprocess();
        let classifier = ClassifierSpec { preprocess, labels, output, class_values: None };
        let logits = floats(&case["logits"]);
        let answer = classifier.answer(&Tensor::from_f32(vec![1, logits.len()], logits).unwrap()).unwrap();
        let mut have = answer.top.clone();
        have.sort_by(|a, b| b.1.total_cmp(&a.1));
        let want = case["answer"].as_array().unwrap();
        assert_eq!(have.len(), want.len(), "{case}");
        for ((label, score), want) in have.iter().zip(want) {
            assert_eq!(label, want[0].as_str().unwrap(), "{case}");
            assert!((f64::from(*score) - want[1].as_f64().unwrap()).abs() < 1e-6, "{case}: {score}");
        }
        assert_eq!(answer.probability.is_none(), case["problem_type"] == "regression", "{case}");
        let present = want.iter().filter(|one| one[1].as_f64().unwrap() > 0.5).count();
        assert!(answer.present.is_none_or(|labels| labels.len() == present), "{case}");
    }
    for (problem, labels, said) in [
        ("ranking", vec!["a", "b"], "`problem_type: \"ranking\"` is not supported"),
        ("single_label_classification", vec!["a"], "of one label says nothing"),
    ] {
        let error = head(&problem.into(), &labels.into()).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

fn yolo(boxes: Boxes, classes: usize) -> Yolo {
    Yolo {
        task: Task::Detect,
        names: (0..classes).map(|class| class.to_string()).collect(),
        stride: 32,
        size: [64, 64],
        boxes,
        confidence: 0.25,
        iou: 0.7,
        max_detections: 300,
        metadata: true,
        about: Default::default(),
    }
}

#[test]
fn boxes_that_models_chose_are_what_ultralytics_makes_of_them() {
    let cases = json("detections.json");
    for case in cases.as_array().unwrap() {
        let boxes: Boxes = serde_json::from_value(case["boxes"].clone()).unwrap();
        let rows: Vec<Vec<f32>> = case["output"].as_array().unwrap().iter().map(floats).collect();
        let output = Tensor::from_f32(vec![1, rows.len(), rows[0].len()], rows.concat()).unwrap();
        let picture = [0, 1].map(|axis| case["picture"][axis].as_u64().unwrap() as u32);
        let classes = case["classes"].as_u64().unwrap() as usize;
        let found = yolo(boxes, classes).detections(&[output], picture).unwrap();
        let want = case["found"].as_array().unwrap();
        assert_eq!(found.len(), want.len(), "{case}: {found:?}");
        for (found, want) in found.iter().zip(want) {
            assert_eq!(found.class as u64, want[0].as_u64().unwrap(), "{case}");
            assert!((f64::from(found.score) - want[1].as_f64().unwrap()).abs() < 1e-6, "{case}");
            for ((have, want), side) in found.bbox.corners().iter().zip(floats(&want[2])).zip(0..) {
                // Ultralytics leaves RT-DETR's boxes beyond the picture's edge.
                let edge = picture[1 - side % 2] as f32;
                assert!((have - want.clamp(0.0, edge)).abs() < 2e-3, "{case}: {found:?}");
            }
        }
    }
}

/// A checkpoint of the test data with its pickle changed.
fn changed(name: &str, target: &Path, change: impl Fn(Vec<u8>) -> Vec<u8>) {
    let mut archive = zip::ZipArchive::new(fs::File::open(data().join(name)).unwrap()).unwrap();
    let mut writer = zip::ZipWriter::new(fs::File::create(target).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let name = entry.name().unwrap().into_owned();
        writer.start_file(&name, stored).unwrap();
        let bytes = if name.ends_with("data.pkl") { change(bytes) } else { bytes };
        writer.write_all(&bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// Replaces every occurrence by something as long.
fn replaced(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let places: Vec<usize> =
        bytes.windows(from.len()).enumerate().filter(|(_, window)| *window == from).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "{from:?} is not there");
    places.into_iter().for_each(|at| bytes[at..at + to.len()].copy_from_slice(to));
    bytes
}

#[test]
fn checkpoints_that_make_no_sense_get_one_error() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("m.pt");
    let convert = |image: [usize; 2]| {
        let file = TorchFile::open(&path).unwrap();
        vision::yolo_model(&file, image, Some(1)).unwrap_err().to_string()
    };
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    changed("yolo12.pt", &path, |pickle| replaced(pickle, b"A2C2f\n", b"A2C2x\n"));
    let error = convert([64, 64]);
    assert!(error.contains("layer `model.5` (A2C2x): this module is not supported"), "{error}");
    changed("yolov8.pt", &path, |pickle| replaced(pickle, b"Detect\n", b"Defect\n"));
    let error = convert([64, 64]);
    assert!(error.contains("(Defect): this head is not supported"), "{error}");
    changed("yolo12-qk.pt", &path, |pickle| replaced(pickle, &text("qk"), &text("kq")));
    assert!(convert([64, 64]).contains("neither `qkv` nor `qk` and `v`"));
    // The number of classes is a small integer after the attribute's name, first of the head's own.
    changed("yolov8.pt", &path, |pickle| {
        let nc = text("nc");
        let at = pickle.windows(nc.len()).rposition(|window| window == nc).unwrap();
        let number = at + pickle[at..].iter().position(|byte| *byte == b'K').unwrap();
        let mut pickle = pickle;
        assert_eq!(pickle[number + 1], 3);
        pickle[number + 1] = 5;
        pickle
    });
    let error = convert([64, 64]);
    assert!(error.contains("5 classes") && error.contains("3 and"), "{error}");
    changed("yolov8.pt", &path, |pickle| replaced(pickle, &text("names"), &text("mames")));
    assert!(convert([64, 64]).contains("no class names"));
    changed("yolov8.pt", &path, |pickle| pickle);
    let error = convert([40, 40]);
    assert!(error.contains("joins maps of different sizes") && error.contains("hint"), "{error}");

    // What others made, and models of other tasks, told by their classes.
    let renamed = |from: &str, to: &str| {
        changed("yolov8.pt", &path, |pickle| {
            let at = pickle.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            [&pickle[..at], to.as_bytes(), &pickle[at + from.len()..]].concat()
        });
        convert([64, 64])
    };
    let error = renamed("cultralytics.nn.tasks\nDetectionModel\n", "cmodels.yolo\nDetectionModel\n");
    assert!(error.contains("models.yolo.DetectionModel") && error.contains("with `kind: onnx`"), "{error}");
    for (class, what, kind) in [
        ("Pose", "is a pose model (Pose)", "onnx"),
        ("OBB26", "is a model of oriented boxes (OBB)", "onnx"),
        ("Segment26", "is a YOLO26 segmentation model", "yolo"),
        ("v10Detect", "is a YOLOv10", "yolo"),
        ("RTDETRDecoder", "is an RT-DETR", "yolo"),
        ("WorldDetect", "is a YOLO-World", "yolo"),
        ("YOLOESegment", "is a YOLOE", "yolo"),
    ] {
        let error = renamed("\nDetect\n", &format!("\n{class}\n"));
        assert!(error.contains(what) && error.contains("format=onnx"), "{error}");
        assert!(error.contains(&format!("with `kind: {kind}`")), "{error}");
    }
    let error = renamed("\nC3\n", "\nRepNCSPELAN4\n");
    assert!(error.contains("is a YOLOv9 (RepNCSPELAN4)"), "{error}");

    // A bare state dict, and an attack that would run a command in Python.
    let attack = b"\x80\x02}X\x05\x00\x00\x00modelcos\nsystem\nX\x04\x00\x00\x00true\x85Rs.";
    changed("yolov8.pt", &path, |_| attack.to_vec());
    assert!(convert([64, 64]).contains("holds a system, not a YOLO model"));
    changed("yolov8.pt", &path, |_| b"\x80\x02}.".to_vec());
    assert!(convert([64, 64]).contains("not a YOLO model"));
}

#[test]
fn classifiers_that_make_no_sense_get_one_error() {
    let scratch = tempfile::tempdir().unwrap();
    let with = |from: &str, to: &str, name: &str| {
        for file in ["config.json", "model.safetensors"] {
            fs::copy(data().join(name).join(file), scratch.path().join(file)).unwrap();
        }
        let path = scratch.path().join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).unwrap();
        checkpoint(scratch.path())
    };
    let error = |checkpoint: &Checkpoint, size: usize| {
        vision::classifier_model(checkpoint, [size, size], Some(1)).unwrap_err().to_string()
    };
    for (name, from, to, size, part) in [
        ("vit", "\"vit\"", "\"vitdet\"", 32, "model_type `vitdet` is not supported as a classifier"),
        ("vit", "\"image_size\": 32", "\"image_size\": 32", 64, "position embeddings are for 32 x 32 pixels"),
        (
            "vit",
            "\"hidden_size\": 24",
            "\"hidden_size\": 48",
            32,
            "has shape [24, 3, 8, 8], the configuration asks for [48",
        ),
        ("vit", "\"num_attention_heads\": 3", "\"num_attention_heads\": 5", 32, "5 heads cannot share 24"),
        ("vit", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", 32, "tensor `vit.encoder.layer.2"),
        ("vit", "\"gelu\"", "\"quick_gelu\"", 32, "`hidden_act: quick_gelu` is not supported"),
        ("swin", "\"window_size\": 4", "\"window_size\": 7", 32, "relative_position_bias_table"),
        ("resnet", "\"bottleneck\"", "\"bottlenose\"", 32, "`layer_type: bottlenose` is not supported"),
    ] {
        let message = error(&with(from, to, name), size);
        assert!(message.contains(part), "{name}: {message}");
    }
    // Convolutional networks take any size that leaves something to look at.
    for name in ["resnet", "convnext", "swin"] {
        let checkpoint = with("\"model_type\"", "\"model_type\"", name);
        assert!(vision::classifier_model(&checkpoint, [64, 64], Some(1)).is_ok(), "{name}");
    }
    let mut floats = fs::read(data().join("vit/model.safetensors")).unwrap();
    let end = floats.len();
    floats[end - 48..].copy_from_slice(&[0xff; 48]); // NaN in float16
    let checkpoint = with("\"vit\"", "\"vit\"", "vit");
    drop(checkpoint);
    fs::write(scratch.path().join("model.safetensors"), floats).unwrap();
    let message = error(&self::checkpoint(scratch.path()), 32);
    assert!(message.contains("not finite: training diverged"), "{message}");
}
