//! Converts Ultralytics' YOLO checkpoints (v8, 11, 12; detect, segment, classify) to ONNX, from the pickled module
//! objects.
//!
//! From a [`TorchFile`] to a [`YoloModel`], whose graph has the input `images` `[batch, 3, height, width]` (RGB, 0 to
//! 1), and the outputs `output0` (and `output1`) of Ultralytics' own export. Nodes have the names of torch's exporter.

mod attention;
mod blocks;
mod head;
mod module;
mod refusal;

use std::collections::BTreeMap;
use std::path::Path;

use self::blocks::Emitter;
use self::module::{Module, Read};
use super::OPSET;
use super::net::{Map, Net};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::torch::{Item, TorchFile};
use crate::onnx::{GraphBuilder, Model};
use crate::tensor::DType;
use crate::vision::Task;

/// A converted checkpoint.
#[derive(Debug)]
pub struct YoloModel {
    /// The graph, in float32.
    pub model: Model,
    /// Task of the model.
    pub task: Task,
    /// Class names in output order.
    pub names: Vec<String>,
    /// Largest stride in pixels; image sizes are multiples of it.
    pub stride: usize,
    /// Further metadata of the checkpoint: license, docs, head.
    pub about: BTreeMap<String, String>,
    /// Messages for the user.
    pub notes: Vec<String>,
}

/// Classes of the supported heads, and their tasks.
pub const YOLO_HEADS: [(&str, Task); 3] =
    [("Detect", Task::Detect), ("Segment", Task::Segment), ("Classify", Task::Classify)];

/// Classes of the supported layers before the head, besides `Concat`.
pub fn yolo_blocks() -> Vec<&'static str> {
    blocks::BLOCKS.iter().map(|(class, _)| *class).collect()
}

/// Models that are refused as a `.pt` file but supported as an ONNX export: the class that identifies them, their name,
/// and whether they belong to `kind: yolo` (else `kind: onnx`).
pub fn yolo_by_onnx() -> &'static [(&'static str, &'static str, bool)] {
    refusal::KNOWN
}

/// The model in a checkpoint: `ema`, the averaged weights, if training left it, else `model`.
pub fn root(file: &TorchFile) -> Item<'_> {
    let found = ["ema", "model"].into_iter().filter_map(|key| file.root().get(key)).find(|item| !item.is_none());
    found.unwrap_or(file.root())
}

/// Converts a checkpoint for images of size `image` (height, width); with a dynamic batch if `batch` is `None`.
pub fn yolo_model(file: &TorchFile, image: [usize; 2], batch: Option<usize>) -> Read<YoloModel> {
    let root = root(file);
    refusal::check_maker(root)?;
    let (_, class) = root.class().unwrap_or(("", "no object"));
    if !class.ends_with("Model") || root.get("_modules").is_none() {
        let help = "a checkpoint of Ultralytics is wanted; a bare state dict does not say what it is the weights of";
        return Err(root.error(format!("holds a {class}, not a YOLO model")).with_help(help));
    }
    let mut graph = GraphBuilder::new("yolo", OPSET);
    graph.input("images", DType::Float32, &[batch, Some(3), Some(image[0]), Some(image[1])]);
    let input = Map { name: "images".to_owned(), channels: 3, height: image[0], width: image[1] };
    let mut emitter = Emitter { net: Net { graph }, blocks: 0 };
    let layers = Module::layers(root)?;
    refusal::check_layers(root, &layers)?;
    let (head, body) = layers.split_last().ok_or_else(|| root.error("the model has no layers"))?;
    let mut maps: Vec<Map> = Vec::new();
    for layer in body {
        let inputs = gather(layer, &maps, &input)?;
        maps.push(match (layer.class, &inputs[..]) {
            ("Concat", _) if layer.size("d")? == 1 => emitter.concat(layer, &inputs)?,
            ("Concat", _) => return Err(layer.error("only joining channels is supported")),
            (_, [x]) => emitter.block(layer, x)?,
            _ => return Err(layer.error(format!("it takes {} inputs", inputs.len()))),
        });
    }
    let inputs = gather(head, &maps, &input)?;
    let mut model = End { emitter, names: class_names(root)?, batch, image }.finish(head, &inputs)?;
    for key in ["license", "docs"] {
        if let Some(text) = file.root().get(key).and_then(|item| item.text()) {
            model.about.insert(key.to_owned(), text.to_owned());
        }
    }
    Ok(model)
}

/// The maps that a layer reads: `f` is an index or a list of indices, and -1 is the previous layer.
fn gather(layer: &Module<'_>, maps: &[Map], input: &Map) -> Read<Vec<Map>> {
    let from = layer.attribute("f").ok_or_else(|| layer.error("`f` is missing: where its input comes from"))?;
    let listed = from.elements();
    let list = if listed.is_empty() { vec![from] } else { listed };
    let pick = |item: Item<'_>| match item.integer()? {
        -1 => Some(maps.last().unwrap_or(input).clone()),
        index => maps.get(usize::try_from(index).ok()?).cloned(),
    };
    list.into_iter()
        .map(|item| pick(item).ok_or_else(|| layer.error("it reads a layer that does not come before it")))
        .collect()
}

/// Class names from `names`: a dict from class index to name, or a list.
fn class_names(root: Item<'_>) -> Read<Vec<String>> {
    let names = root.get("names").ok_or_else(|| root.error("the model has no class names (`names`)"))?;
    let listed = names.elements();
    if !listed.is_empty() {
        let texts: Option<Vec<String>> = listed.iter().map(|name| name.text().map(str::to_owned)).collect();
        return texts.ok_or_else(|| root.error("`names` holds something else than text"));
    }
    let mut by_number = BTreeMap::new();
    for (number, name) in names.items() {
        let entry = number.integer().zip(name.text());
        let (number, name) = entry.ok_or_else(|| root.error("`names` is not a list of names"))?;
        by_number.insert(number, name.to_owned());
    }
    if by_number.is_empty() || !by_number.keys().copied().eq(0..i64::try_from(by_number.len()).unwrap_or(0)) {
        return Err(root.error("the numbers in `names` do not run from 0"));
    }
    Ok(by_number.into_values().collect())
}

/// The state before the head: all other layers are emitted.
struct End {
    emitter: Emitter,
    names: Vec<String>,
    batch: Option<usize>,
    image: [usize; 2],
}

impl End {
    fn finish(mut self, head: &Module<'_>, inputs: &[Map]) -> Read<YoloModel> {
        let image = self.image;
        let fixed = |sizes: &[usize]| -> Vec<Option<usize>> {
            std::iter::once(self.batch).chain(sizes.iter().copied().map(Some)).collect()
        };
        let mut notes = Vec::new();
        if head.find("one2one_cv2")?.is_some() {
            notes.push(
                "an end-to-end model: its one-to-many branches are used, with non-maximum suppression after the engine"
                    .to_owned(),
            );
        }
        let task = YOLO_HEADS.iter().find(|(class, _)| *class == head.class).map(|(_, task)| *task);
        let task = task.ok_or_else(|| {
            head.error("this head is not supported").with_help(
                "detect, segment and classify models are; others can be exported to ONNX and built with \
                 `kind: onnx`",
            )
        })?;
        let (outputs, classes) = match task {
            Task::Detect => {
                let found = self.emitter.detect(head, inputs, image)?;
                let shape = fixed(&[4 + found.classes, found.anchors]);
                (vec![(found.output, shape)], found.classes)
            }
            Task::Segment => {
                let (found, masks, proto) = self.emitter.segment(head, inputs, image)?;
                let shape = fixed(&[4 + found.classes + masks, found.anchors]);
                let proto_shape = fixed(&[proto.channels, proto.height, proto.width]);
                (vec![(found.output, shape), (proto.name, proto_shape)], found.classes)
            }
            Task::Classify => {
                let (output, classes) = self.emitter.classify(head, inputs)?;
                (vec![(output, fixed(&[classes]))], classes)
            }
        };
        if classes != self.names.len() {
            let names = self.names.len();
            return Err(head.error(format!("it tells {classes} classes apart, the checkpoint names {names}")));
        }
        let stride = match task {
            Task::Classify => 1,
            _ => inputs.iter().map(|map| image[0] / map.height.max(1)).max().unwrap_or(1),
        };
        let mut graph = self.emitter.net.graph;
        graph.scope("");
        for (index, (name, shape)) in outputs.iter().enumerate() {
            let output = format!("output{index}");
            graph.node_named("Identity", &[name], &[&output], &[]);
            graph.output(&output, DType::Float32, shape);
        }
        let model = graph.finish(Path::new("model.onnx"));
        let model = model.map_err(|error| CheckpointError::new(&error.path, error.message))?;
        let about = BTreeMap::from([("head".to_owned(), head.class.to_owned())]);
        Ok(YoloModel { model, task, names: self.names, stride, about, notes })
    }
}
