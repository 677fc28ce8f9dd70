//! Finds the objects on a picture and draws them.
//!
//! ```sh
//! cargo run --release --example detect -- engines/yolo11n-seg street.jpg street-objects.jpg
//! ```

use watus_build::{Detector, draw};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [engine, picture, drawing] = &arguments[..] else {
        return Err("usage: detect ENGINE_DIR PICTURE DRAWING".into());
    };
    let mut detector = Detector::open(engine)?;
    let objects = detector.detect(picture)?;
    for object in &objects {
        println!("{} {:.2} {:?}", object.label, object.score, object.bbox);
    }
    Ok(draw(picture, &objects)?.save(drawing)?)
}
