//! Reads Ultralytics' ONNX exports, whose metadata contains task, head, stride and class names (`engine/exporter.py`).

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::names::python_names;
use super::{Meaning, Vision, around, onnx};
use crate::diagnostic::Diagnostic;
use crate::log::printable;
use crate::onnx::Model;
use crate::recipe::YoloPlan;
use crate::spec::{Boxes, Task};
use crate::vision::pixel_axes;

/// The next step with an export that is not one of Ultralytics', or that does not say what its output is.
const AS_IT_IS: &str = "use `kind: onnx`";

/// Reads an export.
pub(super) fn load(plan: &YoloPlan, path: PathBuf) -> anyhow::Result<Vision> {
    let model = Model::load(&path)?;
    let said = |key: &str| {
        model.metadata(key).ok_or_else(|| {
            Diagnostic::new(format!("{}: no metadata `{key}`: not exported by Ultralytics", path.display()))
                .with_help(AS_IT_IS)
        })
    };
    let task = match said("task")? {
        "detect" => Task::Detect,
        "segment" => Task::Segment,
        "classify" => Task::Classify,
        other => {
            let other = printable(other);
            let what = Diagnostic::new(format!("{}: task `{other}` is not supported", path.display()));
            bail!(what.with_help(AS_IT_IS))
        }
    };
    let names = python_names(said("names")?)
        .map_err(|mistake| anyhow::anyhow!("{}: metadata `names`: {mistake}", path.display()))?;
    let stride = said("stride")?.parse().with_context(|| format!("{}: metadata `stride`", path.display()))?;
    let input = model.inputs()?.into_iter().next().with_context(|| format!("{}: no input", path.display()))?;
    let own = match pixel_axes(&input.shape).map(|axes| axes.map(|axis| input.shape[axis])) {
        Some([Some(height), Some(width)]) => Some([u32::try_from(height)?, u32::try_from(width)?]),
        _ => None,
    };
    let size = plan.size.or(own).unwrap_or([640; 2]);
    let boxes = match task {
        Task::Classify => Boxes::Anchors,
        Task::Detect | Task::Segment => boxes(&path, &model, task, names.len())?,
    };
    let (mut yolo, classifier) = around(plan, task, names, stride, size);
    yolo.boxes = boxes;
    for key in ["license", "docs", "head", "channels"] {
        if let Some(text) = model.metadata(key) {
            yolo.about.insert(key.to_owned(), text.to_owned());
        }
    }
    onnx(path, Meaning::Yolo(yolo, classifier))
}

/// Layout of the detector's output: RT-DETR by the name of head or model, the others by shape.
fn boxes(path: &Path, model: &Model, task: Task, classes: usize) -> anyhow::Result<Boxes> {
    let outputs = model.outputs()?;
    let dims = |index: usize| outputs.get(index).map(|output| output.shape.as_slice()).unwrap_or_default();
    let masks = match (task, dims(1)) {
        (Task::Segment, [_, Some(masks), _, _]) => *masks,
        _ => 0,
    };
    let says = |key: &str, word: &str| model.metadata(key).is_some_and(|text| text.to_ascii_lowercase().contains(word));
    let is_rtdetr = says("head", "rtdetr") || says("description", "rtdetr") || says("description", "rt-detr");
    let (rows, columns) = match dims(0) {
        [_, rows, columns] => (*rows, *columns),
        _ => (None, None),
    };
    let found = if is_rtdetr {
        // Newer exports give score and class, older ones a score for each class.
        let queries = columns.is_none_or(|columns| columns == 6 || columns == 4 + classes);
        if queries && classes == 2 {
            bail!(
                Diagnostic::new(format!(
                    "{}: six columns of an RT-DETR for two classes are a score and a class, or two scores: it does not say \
                     which",
                    path.display()
                ))
                .with_help(AS_IT_IS)
            );
        }
        queries.then_some(Boxes::Queries)
    } else if columns.is_some_and(|columns| columns == 6 + masks) {
        // No grid has so few cells, but 300 boxes may be as many as the rows of 296 classes.
        Some(Boxes::Final)
    } else if rows.is_some_and(|rows| rows == 4 + classes + masks) {
        Some(Boxes::Anchors)
    } else if rows.is_none() || columns.is_none() {
        Some(if says("end2end", "true") { Boxes::Final } else { Boxes::Anchors })
    } else {
        None
    };
    let found = found.filter(|found| task == Task::Detect || *found != Boxes::Queries).ok_or_else(|| {
        let output = outputs.first().map_or_else(|| "missing".to_owned(), ToString::to_string);
        let [anchors, chosen] = [Boxes::Anchors, Boxes::Final].map(Boxes::shape);
        Diagnostic::new(format!(
            "{}: the output is {output}; {anchors} or {chosen} is wanted for {classes} classes",
            path.display()
        ))
        .with_help(format!("{AS_IT_IS}, which leaves the output as it is"))
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::GraphBuilder;
    use crate::tensor::DType;

    fn export(metadata: &[(&str, &str)], outputs: &[&[Option<usize>]]) -> Model {
        let mut graph = GraphBuilder::new("g", 17);
        graph.input("images", DType::Float32, &[Some(1), Some(3), Some(64), Some(64)]);
        for (key, value) in metadata {
            graph.metadata(key, value);
        }
        for (index, shape) in outputs.iter().enumerate() {
            let output = format!("output{index}");
            graph.node_named("Identity", &["images"], &[&output], &[]);
            graph.output(&output, DType::Float32, shape);
        }
        graph.finish(Path::new("m.onnx")).unwrap()
    }

    /// Metadata and shapes of Ultralytics 8.4.190's exports, and of older ones.
    #[test]
    fn shapes_and_heads_tell_where_boxes_are() {
        let fixed = |shape: [usize; 3]| shape.map(Some);
        let proto: &[Option<usize>] = &[Some(1), Some(32), Some(16), Some(16)];
        let detect = [("head", "Detect"), ("end2end", "False")];
        let rtdetr = [("head", "RTDETRDecoder"), ("end2end", "False")];
        let old = [("description", "Ultralytics RTDETR-l model trained on coco")];
        let end2end = [("head", "v10Detect"), ("end2end", "True")];
        type Case<'a> = (&'a [(&'a str, &'a str)], Task, usize, [Option<usize>; 3], Result<Boxes, &'a str>);
        let cases: [Case<'_>; 13] = [
            (&detect, Task::Detect, 3, fixed([1, 7, 80]), Ok(Boxes::Anchors)),
            (&detect, Task::Detect, 2, fixed([1, 6, 80]), Ok(Boxes::Anchors)),
            (&detect, Task::Detect, 3, fixed([1, 300, 6]), Ok(Boxes::Final)), // nms=True
            (&end2end, Task::Detect, 80, fixed([1, 300, 6]), Ok(Boxes::Final)),
            (&end2end, Task::Detect, 296, fixed([1, 300, 6]), Ok(Boxes::Final)),
            (&end2end, Task::Detect, 80, [None; 3], Ok(Boxes::Final)),
            (&detect, Task::Segment, 80, fixed([1, 116, 84]), Ok(Boxes::Anchors)),
            (&end2end, Task::Segment, 80, fixed([1, 300, 38]), Ok(Boxes::Final)),
            (&rtdetr, Task::Detect, 80, fixed([1, 300, 6]), Ok(Boxes::Queries)),
            (&old, Task::Detect, 80, fixed([1, 300, 84]), Ok(Boxes::Queries)),
            (&rtdetr, Task::Detect, 2, fixed([1, 300, 6]), Err("it does not say which")),
            (&rtdetr, Task::Segment, 80, fixed([1, 300, 6]), Err("is wanted for 80 classes")),
            (&detect, Task::Detect, 80, fixed([1, 300, 7]), Err("output0 float32[1, 300, 7]")),
        ];
        for (metadata, task, classes, shape, want) in cases {
            let mut outputs: Vec<&[Option<usize>]> = vec![&shape];
            if task == Task::Segment {
                outputs.push(proto);
            }
            let found = boxes(Path::new("m.onnx"), &export(metadata, &outputs), task, classes);
            match (found, want) {
                (Ok(found), Ok(want)) => assert_eq!(found, want, "{shape:?}, {metadata:?}"),
                (Err(error), Err(said)) => assert!(error.to_string().contains(said), "{error}"),
                (found, want) => panic!("{shape:?}: {found:?} instead of {want:?}"),
            }
        }
    }
}
