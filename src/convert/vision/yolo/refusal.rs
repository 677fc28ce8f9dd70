//! Refuses unsupported checkpoints by their classes, and names an alternative. (The class names are those of
//! Ultralytics' `nn/modules` and `nn/tasks.py`, and of older repositories' `models/yolo.py`.)

use super::module::{Module, Read};
use crate::checkpoint::torch::Item;

/// A class, the models that have it, and whether their ONNX export is supported by `kind: yolo`.
pub(super) const KNOWN: &[(&str, &str, bool)] = &[
    ("Pose", "a pose model", false),
    ("Pose26", "a pose model", false),
    ("OBB", "a model of oriented boxes (OBB)", false),
    ("OBB26", "a model of oriented boxes (OBB)", false),
    ("Depth", "a depth model", false),
    ("SemanticSegment", "a semantic segmentation model", false),
    ("Segment26", "a YOLO26 segmentation model", true),
    ("v10Detect", "a YOLOv10", true),
    ("RTDETRDecoder", "an RT-DETR", true),
    ("WorldDetect", "a YOLO-World", true),
    ("YOLOEDetect", "a YOLOE", true),
    ("YOLOESegment", "a YOLOE", true),
    ("YOLOESegment26", "a YOLOE", true),
    ("ELAN1", "a YOLOv9", true),
    ("RepNCSPELAN4", "a YOLOv9", true),
];

/// Refuses checkpoints of older repositories: YOLOv5's own (and YOLOv7's and YOLOv9's, which derive from it) have
/// classes with the same names and other arithmetic.
pub(super) fn check_maker(root: Item<'_>) -> Read<()> {
    let Some((package, class)) = root.class() else { return Ok(()) };
    if package.starts_with("ultralytics") || !package.split('.').any(|part| part == "models") {
        return Ok(());
    }
    let message = "a checkpoint of the original YOLOv5, v7 or v9 repository, not of Ultralytics' package";
    Err(root.error(format!("holds a {package}.{class}: {message}")).with_help(
        "export it to ONNX there (`python export.py --weights NAME.pt --include onnx`) and build that with \
         `kind: onnx`",
    ))
}

/// Refuses models by one of their layers, the head first.
pub(super) fn check_layers(root: Item<'_>, layers: &[Module<'_>]) -> Read<()> {
    let known = |layer: &Module<'_>| KNOWN.iter().find(|(class, ..)| *class == layer.class);
    let Some((class, what, read)) = layers.iter().rev().find_map(known) else { return Ok(()) };
    let kind = if *read { "yolo" } else { "onnx" };
    Err(root.error(format!("is {what} ({class}), which is not converted from a .pt file")).with_help(format!(
        "export it to ONNX with Ultralytics (`yolo export model=NAME.pt format=onnx`) and build \
         that with `kind: {kind}`"
    )))
}
