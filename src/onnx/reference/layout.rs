//! Operators that rearrange elements: Pad along some axes, SpaceToDepth, Dropout at inference.

use onnx_protobuf::NodeProto;

use super::{Done, Rewritten};
use crate::onnx::attributes::{Attributes, has_output, input};
use crate::onnx::editor::{Editor, output, wanted};
use crate::onnx::facts::layout::resolve;

/// Dropout at inference: its input and, if used, its mask. One without a mask was removed before.
pub(super) fn dropout(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let opset = edit.facts().opset();
    let training = match opset {
        ..=6 => node.int("is_test", 0) == 0,
        7..=11 => false,
        _ => input(node, 2).is_some() && edit.facts().input(node, 2).ints().is_none_or(|flags| flags != [0]),
    };
    if training {
        return Err("it may be asked to train, which is random".to_owned());
    }
    edit.make("Identity", &[&x], &[&y], &[]);
    if has_output(node, 1) {
        if opset < 10 {
            return Err("its mask is of numbers before opset 10, and runtimes differ in which".to_owned());
        }
        let mask = output(node, 1)?;
        let shape = edit.shape(&x);
        // Before opset 12 ONNX does not say what it is at inference; onnxruntime's is all false.
        let kept = edit.truth(opset >= 12);
        edit.make("Expand", &[&kept, &shape], &[&mask], &[]);
    }
    Ok(Done::Replaced)
}

/// Pad: rten needs pads of all axes.
pub(super) fn pad(edit: &mut Editor<'_>, node: &mut NodeProto) -> Rewritten {
    let Some(axes) = input(node, 3) else { return Ok(Done::Kept) };
    let axes = edit.facts().get(axes).ints().ok_or("the axes it pads are no constant")?;
    let rank = edit.facts().input(node, 0).rank().ok_or("the rank of what it pads is not known")?;
    let places: Option<Vec<usize>> = axes.iter().map(|axis| resolve(*axis, rank)).collect();
    let places = places.ok_or("its axes are none of its input")?;
    let ends = places.iter().map(|at| at + rank);
    let slots: Vec<i64> = places.iter().copied().chain(ends).filter_map(|at| i64::try_from(at).ok()).collect();
    let pads = wanted(node, 1)?;
    let (none, slots) = (edit.ints(&vec![0; rank * 2]), edit.ints(&slots));
    let pads = edit.op("ScatterElements", &[&none, &slots, &pads], &[("axis", 0.into())]);
    if let Some(slot) = node.input.get_mut(1) {
        *slot = pads;
    }
    node.input.truncate(3);
    Ok(Done::Changed)
}

/// SpaceToDepth: [N, C, h, b, w, b], with the block's two axes moved before or after C.
pub(super) fn space_to_depth(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let fact = edit.facts().get(&x);
    let (Some(channels), Some(height), Some(width)) = (fact.dim(1), fact.dim(2), fact.dim(3)) else {
        return Err("the size of its input is not known".to_owned());
    };
    let block = Some(node.int("blocksize", 0)).filter(|block| (1..=1 << 15).contains(block));
    let block =
        block.filter(|block| height % block == 0 && width % block == 0).ok_or("its blocksize does not divide")?;
    let deep = channels.checked_mul(block * block).ok_or("its input is too large")?;
    let order = match node.text("mode").unwrap_or("DCR") {
        "DCR" => [0, 3, 5, 1, 2, 4],
        "CRD" => [0, 1, 3, 5, 2, 4],
        mode => return Err(format!("its mode {mode} is not computed")),
    };
    let (rows, columns) = (height / block, width / block);
    let (blocks, depth) =
        (edit.ints(&[0, channels, rows, block, columns, block]), edit.ints(&[0, deep, rows, columns]));
    let cut = edit.op("Reshape", &[&x, &blocks], &[]);
    let moved = edit.op("Transpose", &[&cut], &[("perm", order.into())]);
    edit.make("Reshape", &[&moved, &depth], &[&y], &[]);
    Ok(Done::Replaced)
}
