//! The metadata at the start of Ultralytics' engine files, so that its tools open ours: a length, and as many bytes of
//! JSON ([`plan::split`] splits them off).

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use jiff::Timestamp;

use crate::artifact::about;
use crate::backend::tensorrt::plan;
use crate::manifest::GraphEngine;
use crate::spec::{Boxes, Precision, Yolo};

/// Inserts the metadata before the plan in `path`, which is an engine of `graph`.
pub fn add_metadata(path: &Path, graph: &GraphEngine, yolo: &Yolo, precision: Precision) -> io::Result<()> {
    let batch = graph.inputs.first().and_then(|input| input.shape.first().copied().flatten());
    let batch = batch.unwrap_or_else(|| graph.tuned_batch());
    let metadata = metadata(yolo, batch, precision, !graph.profile.is_empty(), SystemTime::now());
    let plan = fs::read(path).map_err(about(path))?;
    fs::write(path, plan::join(&metadata, &plan)).map_err(about(path))
}

/// The keys that Ultralytics reads from an engine file (those of its exporter), and the program that wrote it.
fn metadata(yolo: &Yolo, batch: usize, precision: Precision, dynamic: bool, time: SystemTime) -> serde_json::Value {
    let names: serde_json::Map<String, serde_json::Value> =
        yolo.names.iter().enumerate().map(|(index, name)| (index.to_string(), name.as_str().into())).collect();
    let half = precision != Precision::Fp32;
    let about = |key: &str| yolo.about.get(key).map_or("", String::as_str);
    serde_json::json!({
        "description": "YOLO engine built by watus-build",
        "author": "watus-build",
        "version": env!("CARGO_PKG_VERSION"),
        "date": date(time),
        "license": about("license"),
        "docs": about("docs"),
        "head": about("head"),
        "stride": yolo.stride,
        "task": yolo.task,
        "batch": batch,
        "imgsz": yolo.size,
        "names": names,
        "channels": about("channels").parse().unwrap_or(3u32),
        "end2end": yolo.boxes == Boxes::Final,
        "args": {
            "batch": batch, "half": half, "int8": false, "quantize": if half { Some(16) } else { None }, "dynamic": dynamic,
            "nms": false, "simplify": true, "fraction": 1.0,
        },
        "watus": { "tool": concat!("watus-build ", env!("CARGO_PKG_VERSION")), "precision": precision },
    })
}

/// The date in UTC.
fn date(time: SystemTime) -> String {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH).strftime("%Y-%m-%d").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let at = |seconds| date(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds));
        assert_eq!(
            (at(0), at(951_782_400), at(1_795_564_799)),
            ("1970-01-01".into(), "2000-02-29".into(), "2026-11-24".into())
        );
    }
}
