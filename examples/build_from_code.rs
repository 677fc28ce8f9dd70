//! Builds a detector's engine from code, verifies it on an image, and looks at that image with it.
//!
//! ```sh
//! cargo run --release --example build_from_code -- yolo11n.pt street.jpg engines
//! ```

use std::sync::Arc;

use watus_build::progress::{Event, Progress};
use watus_build::{Builder, Detector, Precision};

/// Tells of the stages and warnings, and not of every step.
struct Stages;

impl Progress for Stages {
    fn event(&self, event: Event<'_>) {
        if let Event::Stage(text) | Event::Warning(text) = event {
            eprintln!("{text}");
        }
    }
}

fn main() -> anyhow::Result<()> {
    // TensorRT builds in a child process, which is this program started again.
    watus_build::enable_child_processes();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, picture, output] = &arguments[..] else {
        anyhow::bail!("usage: build_from_code YOLO.pt PICTURE OUTPUT_DIR")
    };
    let builder = Builder::yolo(checkpoint).precision(Precision::Fp16).verify_images([picture]);
    let built = builder.progress(Arc::new(Stages)).build(output)?;
    let state = if built.was_current { "was current" } else { "is built" };
    let device = built.executed_on.unwrap_or_else(|| "nothing: no GPU here".to_owned());
    println!("{} {state}, verified on {device}", built.folder.display());
    for object in Detector::open(&built.folder)?.detect(picture)? {
        println!("{} {:.2} {:?}", object.label, object.score, object.bbox);
    }
    Ok(())
}
