//! Arithmetic that rten computes differently: casts to boolean, signs, vectors in products, reductions over no axes.

use onnx_protobuf::NodeProto;

use super::{Done, Rewritten};
use crate::onnx::attributes::{Attributes, input};
use crate::onnx::editor::{Editor, output, set, unset, wanted};
use crate::onnx::facts::{elem, layout};

/// Adds x - x, which is zero in the tensor's type, and NaN where x is not finite.
fn nothing(edit: &mut Editor<'_>, x: &str) -> String {
    edit.op("Sub", &[x, x], &[])
}

/// Sign: rten returns 1 for 0.
pub(super) fn sign(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let zero = nothing(edit, &x);
    let is_zero = edit.op("Equal", &[&x, &zero], &[]);
    let made = edit.op("Sign", &[&x], &[]);
    edit.make("Where", &[&is_zero, &zero, &made], &[&y], &[]);
    Ok(Done::Replaced)
}

/// Cast to boolean: rten keeps booleans in int32, and casts 2 to 2 and 0.5 to 0.
pub(super) fn cast(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (mut x, y) = (wanted(node, 0)?, output(node, 0)?);
    let from = edit.facts().get(&x).elem;
    if node.int("to", 0) != i64::from(elem::BOOL) || from == Some(elem::BOOL) {
        return Ok(Done::Kept);
    }
    if matches!(from, Some(elem::UINT8 | elem::INT8)) {
        x = edit.cast(&x, elem::INT32);
    }
    let zero = nothing(edit, &x);
    let is_zero = edit.op("Equal", &[&x, &zero], &[]);
    edit.make("Not", &[&is_zero], &[&y], &[]);
    Ok(Done::Replaced)
}

pub(super) fn cast_like(edit: &mut Editor<'_>, node: &mut NodeProto) -> Rewritten {
    let like = wanted(node, 1)?;
    let to = edit.facts().get(&like).elem.ok_or("the type it casts to is not known")?;
    "Cast".clone_into(&mut node.op_type);
    node.input.truncate(1);
    node.attribute.clear();
    set(node, "to", i64::from(to));
    match cast(edit, node)? {
        Done::Kept => Ok(Done::Changed),
        done => Ok(done),
    }
}

/// MatMul with a vector: rten keeps a dimension of 1.
pub(super) fn product(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (a, b, y) = (wanted(node, 0)?, wanted(node, 1)?, output(node, 0)?);
    match edit.facts().get(&b).rank() {
        Some(1) => {
            let (column, last) = (edit.ints(&[1]), edit.ints(&[-1]));
            let b = edit.op("Unsqueeze", &[&b, &column], &[]);
            let made = edit.op("MatMul", &[&a, &b], &[]);
            edit.make("Squeeze", &[&made, &last], &[&y], &[]);
        }
        Some(_) => return Ok(Done::Kept),
        None => {
            // Its rank is known when it is there: one dimension less if that is 1.
            let made = edit.op("MatMul", &[&a, &b], &[]);
            let (zero, one) = (edit.ints(&[0]), edit.ints(&[1]));
            let dims = edit.shape(&b);
            let rank = edit.shape(&dims);
            let above = edit.op("Sub", &[&rank, &one], &[]);
            let kept = edit.op("Min", &[&above, &one], &[]);
            let lost = edit.op("Sub", &[&one, &kept], &[]);
            let shape = edit.shape(&made);
            let length = edit.shape(&shape);
            let end = edit.op("Sub", &[&length, &lost], &[]);
            let shape = edit.op("Slice", &[&shape, &zero, &end], &[]);
            edit.make("Reshape", &[&made, &shape], &[&y], &[]);
        }
    }
    Ok(Done::Replaced)
}

/// Pow: rten only raises floats to floats and integers to integers.
pub(super) fn power(edit: &mut Editor<'_>, node: &mut NodeProto) -> Rewritten {
    let exponent = wanted(node, 1)?;
    let float = |edit: &Editor<'_>, index: usize| edit.facts().input(node, index).elem.map(elem::is_float);
    if (float(&*edit, 0), float(&*edit, 1)) != (Some(true), Some(false)) {
        return Ok(Done::Kept);
    }
    let exponent = edit.cast(&exponent, elem::FLOAT);
    if let Some(slot) = node.input.get_mut(1) {
        *slot = exponent;
    }
    Ok(Done::Changed)
}

/// IsInf: rten only detects both infinities together.
pub(super) fn is_infinite(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let side = match (node.int("detect_positive", 1) != 0, node.int("detect_negative", 1) != 0) {
        (true, true) => return Ok(Done::Kept),
        (true, false) => "Greater",
        (false, true) => "Less",
        // Nothing is less and greater.
        (false, false) => "Equal",
    };
    let zero = edit.float(0.0);
    let infinite = edit.op("IsInf", &[&x], &[]);
    let side = edit.op(side, &[&x, &zero], &[]);
    edit.make("And", &[&infinite, &side], &[&y], &[]);
    Ok(Done::Replaced)
}

/// Reductions: rten takes an empty list of axes for all axes, and has no booleans among integers.
pub(super) fn reduce(edit: &mut Editor<'_>, node: &mut NodeProto) -> Rewritten {
    let x = edit.facts().input(node, 0);
    if node.op_type == "ReduceMean" {
        let none = input(node, 1).is_some() && edit.facts().input(node, 1).ints().is_some_and(|axes| axes.is_empty());
        if !none || node.int("noop_with_empty_axes", 0) == 0 {
            return Ok(Done::Kept);
        }
        "Identity".clone_into(&mut node.op_type);
        node.input.truncate(1);
        unset(node, "noop_with_empty_axes");
        unset(node, "keepdims");
        return Ok(Done::Changed);
    }
    let whole = !x.elem.is_none_or(elem::is_float);
    let empty = x.shape.as_ref().is_some_and(|shape| shape.contains(&Some(0)));
    if (whole && empty) || (x.elem == Some(elem::BOOL) && x.count().is_none()) {
        return Err("the extreme of no integers, or of none at times, is not computed".to_owned());
    }
    Ok(Done::Kept)
}

/// A reduction over no axes (`noop_with_empty_axes`) keeps every element, but still takes its logarithm, magnitude or
/// square. TensorRT's parser returns the input unchanged, and so does rten for ReduceL2.
pub(in crate::onnx) fn empty_axes(edit: &mut Editor<'_>, node: &NodeProto, op: &str) -> Rewritten {
    if node.int("noop_with_empty_axes", 0) == 0 {
        return Ok(Done::Kept);
    }
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let inputs = [edit.facts().input(node, 0), edit.facts().input(node, 1)];
    let empty = match layout::axes(node, &inputs) {
        layout::Axes::Missing => true,
        layout::Axes::Known(axes) => axes.is_empty(),
        layout::Axes::Unknown => false,
    };
    // There is no logarithm of integers.
    if !empty || op == "Log" && edit.facts().get(&x).elem.is_some_and(|elem| !elem::is_float(elem)) {
        return Ok(Done::Kept);
    }
    match op {
        "Mul" => edit.make(op, &[&x, &x], &[&y], &[]),
        _ => edit.make(op, &[&x], &[&y], &[]),
    }
    Ok(Done::Replaced)
}
