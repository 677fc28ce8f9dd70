//! From a graph to a verified engine with the library alone: writes YOLOv8n (seeded weights) as ONNX, builds it with
//! TensorRT in this process, and compares the engine with the CPU reference where there is a GPU.
//!
//! Usage: cargo run --release --example yolo_engine -- [FOLDER] [IMAGE_SIZE]

mod yolov8n;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use watus_build::backend::Backend;
use watus_build::backend::cpu::Cpu;
use watus_build::backend::tensorrt::{BuildOptions, TensorRt};
use watus_build::progress::Silent;
use watus_build::tensor::{DType, Tensor};
use watus_build::verify;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().unwrap_or_else(|| "engines".to_owned()));
    let image: usize = arguments.next().map_or(Ok(640), |size| size.parse())?;

    let path = folder.join("yolov8n.onnx");
    let model = yolov8n::yolov8n(&path, image, 8)?;
    watus_build::artifact::write_file(&path, &model.to_bytes()?)?;
    println!("{}: {} parameters", path.display(), model.summary()?.parameters);

    let tensorrt = TensorRt::open()?;
    let options = BuildOptions::default();
    let built = tensorrt.build(&path, &options, &[], Arc::new(Silent), Arc::default())?;
    watus_build::artifact::write_file(&folder.join("yolov8n.engine"), built.bytes())?;
    println!("yolov8n.engine: {} bytes by {}", built.bytes().len(), tensorrt.version);

    let input = Tensor::seeded(DType::Float32, vec![1, 3, image, image], 1).expect("a float32 tensor");
    let mut reference = Cpu.open(Path::new(&path))?;
    match tensorrt.load(built.bytes(), false) {
        Ok(mut engine) => {
            for found in verify::compare(&mut *engine, &mut *reference, "seed 1", &[input])? {
                println!("{}: relative error {:.1e} on {}", found.output, found.relative_error, engine.info().device);
            }
        }
        Err(error) => {
            let outputs = reference.run(&[input])?;
            println!("{error}; the CPU reference gives {:?}", outputs[0].shape());
        }
    }
    Ok(())
}
