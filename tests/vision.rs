//! Vision checkpoints against the libraries they come from: tiny ones in `tests/data/vision`, made by its scripts.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use watus_build::backend::Backend;
use watus_build::backend::cpu::Cpu;
use watus_build::checkpoint::Checkpoint;
use watus_build::checkpoint::torch::TorchFile;
use watus_build::convert::vision;
use watus_build::onnx::Model;
use watus_build::tensor::{DType, Tensor, read_npy};
use watus_build::vision::Task;

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
