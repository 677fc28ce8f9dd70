//! QuantizeLinear and DynamicQuantizeLinear. rten multiplies by the reciprocal of the scale, which is off by one where
//! the quotient is near half way between two integers.

use onnx_protobuf::NodeProto;

use super::{Done, Rewritten};
use crate::onnx::attributes::{Attributes, input};
use crate::onnx::editor::{Editor, output, wanted};
use crate::onnx::facts::{elem, layout::resolve};

/// x / scale by a division: rten divides if the divisor has many elements.
fn quotient(edit: &mut Editor<'_>, x: &str, scale: &str) -> String {
    let shape = edit.shape(x);
    let scales = edit.op("Expand", &[scale, &shape], &[]);
    edit.op("Div", &[x, &scales], &[])
}

/// Rounds to even, adds the zero point, and clamps to the type.
fn saturated(edit: &mut Editor<'_>, quotient: &str, zero_point: Option<&str>, to: i32) -> String {
    let mut value = edit.op("Round", &[quotient], &[]);
    if let Some(zero_point) = zero_point {
        value = edit.op("Add", &[&value, zero_point], &[]);
    }
    let (low, high) = if to == elem::INT8 { (-128.0, 127.0) } else { (0.0, 255.0) };
    let (low, high) = (edit.float(low), edit.float(high));
    edit.op("Clip", &[&value, &low, &high], &[])
}

pub(super) fn quantize(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (mut x, scale, y) = (wanted(node, 0)?, wanted(node, 1)?, output(node, 0)?);
    let zero_point = input(node, 2).map(str::to_owned);
    let to = match &zero_point {
        Some(name) => edit.facts().get(name).elem,
        None => i32::try_from(node.int("output_dtype", 0)).ok().map(|to| if to == 0 { elem::UINT8 } else { to }),
    };
    let to = to.filter(|to| matches!(*to, elem::UINT8 | elem::INT8)).ok_or("only uint8 and int8 are quantised to")?;
    for name in ["block_size", "precision"] {
        if node.int(name, 0) != 0 {
            return Err(format!("its {name} is not computed with"));
        }
    }
    let shape = {
        let (scale, x) = (edit.facts().get(&scale), edit.facts().get(&x));
        match (scale.count(), scale.rank(), x.rank()) {
            (Some(1), _, _) => vec![1],
            (_, Some(1), Some(rank)) => {
                let at = resolve(node.int("axis", 1), rank).ok_or("its axis is none of its input")?;
                (0..rank).map(|axis| if axis == at { -1 } else { 1 }).collect()
            }
            _ => return Err("how its scales lie along its input is not known".to_owned()),
        }
    };
    if edit.facts().get(&x).elem.is_some_and(|elem| !elem::is_float(elem)) {
        x = edit.cast(&x, elem::FLOAT);
    }
    let shape = edit.ints(&shape);
    let scale = edit.op("Reshape", &[&scale, &shape], &[]);
    let quotient = quotient(edit, &x, &scale);
    let zero_point = zero_point.map(|name| {
        let whole = edit.op("Reshape", &[&name, &shape], &[]);
        edit.cast(&whole, elem::FLOAT)
    });
    let value = saturated(edit, &quotient, zero_point.as_deref(), to);
    edit.make("Cast", &[&value], &[&y], &[("to", i64::from(to).into())]);
    Ok(Done::Replaced)
}

/// DynamicQuantizeLinear by the specification's function: the range extended to 0, over 255.
pub(super) fn quantize_dynamically(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let mut name = |index: usize| output(node, index).unwrap_or_else(|_| edit.fresh("unused"));
    let (scale, zero_point) = (name(1), name(2));
    let (zero, steps) = (edit.float(0.0), edit.float(255.0));
    let least = edit.op("ReduceMin", &[&x], &[("keepdims", 0.into())]);
    let least = edit.op("Min", &[&least, &zero], &[]);
    let most = edit.op("ReduceMax", &[&x], &[("keepdims", 0.into())]);
    let most = edit.op("Max", &[&most, &zero], &[]);
    let span = edit.op("Sub", &[&most, &least], &[]);
    edit.make("Div", &[&span, &steps], &[&scale], &[]);
    let below = edit.op("Sub", &[&zero, &least], &[]);
    let offset = quotient(edit, &below, &scale);
    let offset = saturated(edit, &offset, None, elem::UINT8);
    edit.make("Cast", &[&offset], &[&zero_point], &[("to", i64::from(elem::UINT8).into())]);
    let quotient = quotient(edit, &x, &scale);
    let value = saturated(edit, &quotient, Some(&offset), elem::UINT8);
    edit.make("Cast", &[&value], &[&y], &[("to", i64::from(elem::UINT8).into())]);
    Ok(Done::Replaced)
}
