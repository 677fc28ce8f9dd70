//! A camera loop: raw RGB frames on standard input, a line of JSON for each on standard output.
//!
//! ```sh
//! ffmpeg -loglevel error -f v4l2 -i /dev/video0 -f rawvideo -pix_fmt rgb24 -s 640x480 - |
//!   cargo run --release --example camera -- engines/yolo11n-seg 640 480
//! ```
//!
//! Preprocessing, engine and postprocessing are one after the other here; a robot that must not miss a frame reads them
//! in a thread of its own and keeps the newest.

use std::io::Read;
use std::time::Instant;

use watus_build::{Detector, Frame};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [engine, width, height] = &arguments[..] else {
        anyhow::bail!("usage: camera ENGINE_DIR WIDTH HEIGHT < frames")
    };
    let (width, height) = (width.parse::<u32>()?, height.parse::<u32>()?);
    let mut detector = Detector::open(engine)?;
    // Without a GPU the CPU computes: too slow for a camera, but it shows that the loop works.
    eprintln!("{} on {}", detector.name(), detector.info().name);
    let mut pixels = vec![0; 3 * width as usize * height as usize];
    let mut input = std::io::stdin().lock();
    while input.read_exact(&mut pixels).is_ok() {
        let start = Instant::now();
        let objects = detector.detect(Frame::rgb(&pixels, width, height)?)?;
        let objects: Vec<_> = objects.iter().map(|object| (&object.label, object.score, object.bbox)).collect();
        println!("{}", serde_json::json!({ "ms": start.elapsed().as_secs_f64() * 1e3, "objects": objects }));
    }
    Ok(())
}
