//! A camera loop on the library: raw RGB frames on standard input, a line of JSON for each on standard output.
//!
//! ```sh
//! ffmpeg -loglevel error -f v4l2 -i /dev/video0 -f rawvideo -pix_fmt rgb24 -s 640x480 - |
//!   cargo run --release --example camera -- engines/yolo11n-seg 640 480
//! ```
//!
//! Preprocessing, engine and postprocessing are one after the other here; a robot that must not miss a frame reads them
//! in a thread of its own and keeps the newest.

use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use watus_build::backend::cpu::Cpu;
use watus_build::engine_dir::{EngineDir, Preference};
use watus_build::progress::Silent;
use watus_build::vision::{PictureInput, RgbImage};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, width, height] = &arguments[..] else {
        anyhow::bail!("usage: camera ENGINE_DIR WIDTH HEIGHT < frames")
    };
    let (folder, width, height) = (PathBuf::from(folder), width.parse::<u32>()?, height.parse::<u32>()?);
    let engine = EngineDir::load_checked(&folder, false, &Silent)?;
    let yolo = engine.manifest.contents.yolo().context("not a YOLO engine")?;
    let graph = engine.graph()?;

    // The engine where there is a GPU; the CPU reference is too slow for a camera, but shows that the loop works.
    let runner = engine.choose(Preference::Auto, &|text| eprintln!("{text}"))?;
    let mut session = engine.session(runner, &Cpu)?;

    let preprocess = yolo.preprocess();
    let input_spec = graph.inputs.first().context("the engine has no input")?;
    let (taken, batch) = (PictureInput::new(&preprocess, input_spec)?, input_spec.shape_with(graph.tuned_batch())[0]);
    let mut frame = vec![0; 3 * width as usize * height as usize];
    let mut input = std::io::stdin().lock();
    while input.read_exact(&mut frame).is_ok() {
        let start = Instant::now();
        let picture = RgbImage::from_raw(width, height, frame.clone()).context("a frame of another size")?;
        let outputs = session.run(&[taken.tensor(&picture, &preprocess).repeated(batch)])?;
        let objects = yolo.detections(&outputs, [height, width])?;
        let objects: Vec<_> = objects.iter().map(|object| (&object.label, object.score, object.bbox)).collect();
        println!("{}", serde_json::json!({ "ms": start.elapsed().as_secs_f64() * 1e3, "objects": objects }));
    }
    Ok(())
}
