//! NonMaxSuppression by image and class. rten's works on all at once, takes boxes in their order and not by score, and
//! suppresses at the threshold, not only above it.

use onnx_protobuf::NodeProto;

use super::{Done, Outcome};
use crate::onnx::attributes::{Attributes, input};
use crate::onnx::editor::{Editor, output, wanted};
use crate::onnx::graph::Attribute;

/// Images times classes, each some nodes.
const LIMIT: i64 = 4096;

pub(super) fn suppress(edit: &mut Editor<'_>, node: &NodeProto) -> Outcome {
    let (boxes, scores, y) = (wanted(node, 0)?, wanted(node, 1)?, output(node, 0)?);
    let of = edit.facts().get(&scores);
    let (Some(images), Some(classes)) = (of.dim(0), of.dim(1)) else {
        return Err("the number of its images or classes is not known beforehand".to_owned());
    };
    if images.checked_mul(classes).is_none_or(|count| count > LIMIT || count < 1) {
        return Err(format!("{images} images of {classes} classes are not computed ({LIMIT} together)"));
    }
    let overlap = threshold(edit, node, 3, 0.0f32.next_up())?;
    let score = threshold(edit, node, 4, f32::MIN)?;
    let most = match input(node, 2) {
        Some(most) => most.to_owned(),
        None => edit.ints(&[0]),
    };
    let corners = node.int("center_point_box", 0) == 0;
    let boxes = if corners { sorted_corners(edit, &boxes) } else { boxes };
    let last = edit.ints(&[2]);
    let shape = edit.shape(&scores);
    let end = edit.ints(&[3]);
    let count = edit.op("Slice", &[&shape, &last, &end], &[]);
    let mut each = Each { boxes, scores, count, most, overlap, score, corners, lists: Vec::new() };
    for image in 0..images {
        for class in 0..classes {
            each.write(edit, image, class);
        }
    }
    let lists: Vec<&str> = each.lists.iter().map(String::as_str).collect();
    edit.make("Concat", &lists, &[&y], &[("axis", 0.into())]);
    Ok(Done::Replaced)
}

/// The next float above a threshold: what rten does from there on, ONNX does above the threshold.
fn threshold(edit: &mut Editor<'_>, node: &NodeProto, index: usize, missing: f32) -> Result<String, String> {
    let value = match input(node, index) {
        None => missing,
        Some(name) => {
            let value = edit.facts().get(name).floats().and_then(|values| values.first().copied());
            value.ok_or_else(|| format!("its threshold `{name}` is no constant"))?.next_up()
        }
    };
    Ok(edit.float(value))
}

/// Boxes as (y1, x1, y2, x2) with the smaller ones first: "any pair of diagonal box corners" will do.
fn sorted_corners(edit: &mut Editor<'_>, boxes: &str) -> String {
    let (zero, two, four, last) = (edit.ints(&[0]), edit.ints(&[2]), edit.ints(&[4]), edit.ints(&[-1]));
    let one = edit.op("Slice", &[boxes, &zero, &two, &last], &[]);
    let other = edit.op("Slice", &[boxes, &two, &four, &last], &[]);
    let (low, high) = (edit.op("Min", &[&one, &other], &[]), edit.op("Max", &[&one, &other], &[]));
    edit.op("Concat", &[&low, &high], &[("axis", (-1).into())])
}

/// What is the same for all images and classes, and what they found.
struct Each {
    boxes: String,
    scores: String,
    /// Boxes of an image, as a list of one.
    count: String,
    most: String,
    overlap: String,
    score: String,
    corners: bool,
    lists: Vec<String>,
}

impl Each {
    /// The boxes of one image and class by falling score, those that stay, and where they were.
    fn write(&mut self, edit: &mut Editor<'_>, image: i64, class: i64) {
        let (from, to) = (edit.ints(&[image, class]), edit.ints(&[image + 1, class + 1]));
        let (axes, flat, picked) = (edit.ints(&[0, 1]), edit.ints(&[-1]), edit.ints(&[image]));
        let scores = edit.op("Slice", &[&self.scores, &from, &to, &axes], &[]);
        let (values, places) = (edit.fresh("values"), edit.fresh("places"));
        let attributes: [(&str, Attribute); 3] = [("axis", (-1).into()), ("largest", 1.into()), ("sorted", 1.into())];
        edit.make("TopK", &[&scores, &self.count], &[&values, &places], &attributes);
        let places = edit.op("Reshape", &[&places, &flat], &[]);
        let boxes = edit.op("Gather", &[&self.boxes, &picked], &[("axis", 0.into())]);
        let boxes = edit.op("Gather", &[&boxes, &places], &[("axis", 1.into())]);
        let inputs = [&boxes, &values, &self.most, &self.overlap, &self.score].map(String::as_str);
        let kind: [(&str, Attribute); 1] = [("center_point_box", i64::from(!self.corners).into())];
        let kept = edit.op("NonMaxSuppression", &inputs, &kind);
        let (zero, two, three, one) = (edit.ints(&[0]), edit.ints(&[2]), edit.ints(&[3]), edit.ints(&[1]));
        let order = edit.op("Slice", &[&kept, &two, &three, &one], &[]);
        let place = edit.op("Gather", &[&places, &order], &[("axis", 0.into())]);
        let nothing = edit.op("Slice", &[&kept, &zero, &two, &one], &[]);
        let whose = edit.op("Add", &[&nothing, &from], &[]);
        self.lists.push(edit.op("Concat", &[&whose, &place], &[("axis", 1.into())]));
    }
}
