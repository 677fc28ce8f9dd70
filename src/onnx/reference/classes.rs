//! Operators about classes: softmax over flattened axes, Hardmax, ArgMax with the first of equals, OneHot of floats.

use onnx_protobuf::NodeProto;

use super::{Done, Rewritten};
use crate::onnx::attributes::Attributes;
use crate::onnx::editor::{Editor, output, wanted};
use crate::onnx::facts::elem;
use crate::onnx::graph::Attribute;

/// Opset from which softmax works along one axis; before, everything after the axis was one vector ("coerced into 2D",
/// Softmax-11).
const ALONG_AXIS: i64 = 13;

pub(super) fn softmax(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    if edit.facts().opset() >= ALONG_AXIS {
        return Ok(Done::Kept);
    }
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let (flat, shape) = flattened(edit, node, &x);
    let made = edit.op(&node.op_type, &[&flat], &[("axis", (-1).into())]);
    edit.make("Reshape", &[&made, &shape], &[&y], &[]);
    Ok(Done::Replaced)
}

/// Flattens everything after the axis into rows; returns the rows, and the original dimensions.
fn flattened(edit: &mut Editor<'_>, node: &NodeProto, x: &str) -> (String, String) {
    let shape = edit.shape(x);
    (edit.op("Flatten", &[x], &[("axis", node.int("axis", 1).into())]), shape)
}

/// Hardmax: 1 at the first maximum, 0 elsewhere.
pub(super) fn hardmax(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let along = edit.facts().opset() >= ALONG_AXIS;
    let (data, shape, axis) = if along {
        (x, None, node.int("axis", -1))
    } else {
        let (flat, shape) = flattened(edit, node, &x);
        (flat, Some(shape), -1)
    };
    let places = largest(edit, &data, axis, true);
    let axes = edit.ints(&[axis]);
    let places = edit.op("Squeeze", &[&places, &axes], &[]);
    let depth = edit.dim(&data, axis);
    let values = edit.floats(vec![2], &[0.0, 1.0]);
    match shape {
        None => edit.make("OneHot", &[&places, &depth, &values], &[&y], &[("axis", axis.into())]),
        Some(shape) => {
            let made = edit.op("OneHot", &[&places, &depth, &values], &[("axis", axis.into())]);
            edit.make("Reshape", &[&made, &shape], &[&y], &[]);
        }
    }
    Ok(Done::Replaced)
}

/// Index of the first maximum (or minimum) along an axis, which is kept with size 1. rten's ArgMax takes the last of
/// equals, its TopK the first.
fn largest(edit: &mut Editor<'_>, x: &str, axis: i64, largest: bool) -> String {
    let (one, values, places) = (edit.ints(&[1]), edit.fresh("values"), edit.fresh("places"));
    let attributes: [(&str, Attribute); 3] =
        [("axis", axis.into()), ("largest", i64::from(largest).into()), ("sorted", 1.into())];
    edit.make("TopK", &[x, &one], &[&values, &places], &attributes);
    places
}

pub(super) fn arg(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (mut x, y, axis) = (wanted(node, 0)?, output(node, 0)?, node.int("axis", 0));
    if matches!(edit.facts().get(&x).elem, Some(elem::UINT8 | elem::INT8)) {
        x = edit.cast(&x, elem::INT32);
    }
    let last = node.int("select_last_index", 0) != 0;
    let data = if last { reversed(edit, &x, axis) } else { x.clone() };
    let mut places = largest(edit, &data, axis, node.op_type == "ArgMax");
    if last {
        let (size, one) = (edit.dim(&x, axis), edit.ints(&[1]));
        let end = edit.op("Sub", &[&size, &one], &[]);
        places = edit.op("Sub", &[&end, &places], &[]);
    }
    if node.int("keepdims", 1) != 0 {
        edit.make("Identity", &[&places], &[&y], &[]);
    } else {
        let axes = edit.ints(&[axis]);
        edit.make("Squeeze", &[&places, &axes], &[&y], &[]);
    }
    Ok(Done::Replaced)
}

fn reversed(edit: &mut Editor<'_>, x: &str, axis: i64) -> String {
    let (start, end, axes) = (edit.ints(&[-1]), edit.ints(&[i64::MIN]), edit.ints(&[axis]));
    let step = edit.ints(&[-1]);
    edit.op("Slice", &[x, &start, &end, &axes, &step], &[])
}

/// OneHot: rten only accepts integers for indices and depth.
pub(super) fn one_hot(edit: &mut Editor<'_>, node: &mut NodeProto) -> Rewritten {
    let mut done = Done::Kept;
    for index in 0..2 {
        let name = wanted(node, index)?;
        if edit.facts().get(&name).elem.is_some_and(elem::is_float) {
            let whole = edit.cast(&name, elem::INT64);
            if let Some(slot) = node.input.get_mut(index) {
                *slot = whole;
            }
            done = Done::Changed;
        }
    }
    Ok(done)
}
