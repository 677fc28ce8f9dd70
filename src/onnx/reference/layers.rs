//! Normalisations that rten lacks, rewritten by their formulas, and recurrent layers, which it runs over all steps.

use onnx_protobuf::NodeProto;

use super::{Done, Rewritten};
use crate::onnx::attributes::{Attributes, has_output, input};
use crate::onnx::editor::{Editor, output, wanted};
use crate::onnx::graph::Attribute;

/// Recurrent layers: rten ignores `sequence_lens` and runs every sequence to its end.
pub(super) fn recurrent(edit: &mut Editor<'_>, node: &mut NodeProto) -> Rewritten {
    let Some(name) = input(node, 4) else { return Ok(Done::Kept) };
    let steps = edit.facts().input(node, 0).dim(0);
    let lengths = edit.facts().get(name).ints();
    if !lengths.is_some_and(|lengths| lengths.iter().all(|length| Some(*length) == steps)) {
        return Err("its sequence_lens is not computed with, all sequences are taken to be whole".to_owned());
    }
    if let Some(slot) = node.input.get_mut(4) {
        slot.clear();
    }
    Ok(Done::Changed)
}

/// LRN: x / (bias + α / size · Σ x²)^β over neighbouring channels, with the mean over channels computed by a pooling
/// over rows of an image.
pub(super) fn local_response(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let size = Some(node.int("size", 0)).filter(|size| (1..=1 << 20).contains(size)).ok_or("its size is none")?;
    let before = (size - 1) / 2;
    let (alpha, beta) = (edit.float(node.float("alpha", 1e-4)), edit.float(node.float("beta", 0.75)));
    let bias = edit.float(node.float("bias", 1.0));
    let (second, rows) = (edit.ints(&[1]), edit.ints(&[0, 0, 0, -1]));
    let squares = edit.op("Mul", &[&x, &x], &[]);
    let plane = edit.op("Unsqueeze", &[&squares, &second], &[]);
    let plane = edit.op("Reshape", &[&plane, &rows], &[]);
    let attributes: [(&str, Attribute); 4] = [
        ("kernel_shape", [size, 1].into()),
        ("strides", [1, 1].into()),
        ("pads", [before, 0, size - 1 - before, 0].into()),
        ("count_include_pad", 1.into()),
    ];
    let means = edit.op("AveragePool", &[&plane], &attributes);
    let shape = edit.shape(&x);
    let means = edit.op("Reshape", &[&means, &shape], &[]);
    let scaled = edit.op("Mul", &[&means, &alpha], &[]);
    let raised = edit.op("Add", &[&scaled, &bias], &[]);
    let divisor = edit.op("Pow", &[&raised, &beta], &[]);
    edit.make("Div", &[&x, &divisor], &[&y], &[]);
    Ok(Done::Replaced)
}

/// GroupNormalization: InstanceNormalization of the groups, then scale and bias, per group before opset 21 and per
/// channel since.
pub(in crate::onnx) fn group_norm(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (x, scale, bias, y) = (wanted(node, 0)?, wanted(node, 1)?, wanted(node, 2)?, output(node, 0)?);
    let groups = node.int("num_groups", 0);
    let count =
        usize::try_from(groups).ok().filter(|count| (1..=1 << 20).contains(count)).ok_or("its num_groups is none")?;
    let (ones, zeros) = (edit.floats(vec![count], &vec![1.0; count]), edit.floats(vec![count], &vec![0.0; count]));
    let (rows, column) = (edit.ints(&[0, groups, -1]), edit.ints(&[1, -1, 1]));
    let shape = edit.shape(&x);
    let grouped = edit.op("Reshape", &[&x, &rows], &[]);
    let epsilon: [(&str, Attribute); 1] = [("epsilon", node.float("epsilon", 1e-5).into())];
    let mut normal = edit.op("InstanceNormalization", &[&grouped, &ones, &zeros], &epsilon);
    if edit.facts().opset() >= 21 {
        let channels = edit.ints(&[0, 0, -1]);
        normal = edit.op("Reshape", &[&normal, &shape], &[]);
        normal = edit.op("Reshape", &[&normal, &channels], &[]);
    }
    let (scale, bias) = (edit.op("Reshape", &[&scale, &column], &[]), edit.op("Reshape", &[&bias, &column], &[]));
    let scaled = edit.op("Mul", &[&normal, &scale], &[]);
    let moved = edit.op("Add", &[&scaled, &bias], &[]);
    edit.make("Reshape", &[&moved, &shape], &[&y], &[]);
    Ok(Done::Replaced)
}

/// LayerNormalization: rten only returns the result, so mean and deviation are computed in addition.
pub(super) fn layer_norm(edit: &mut Editor<'_>, node: &mut NodeProto) -> Rewritten {
    if !has_output(node, 1) && !has_output(node, 2) {
        return Ok(Done::Kept);
    }
    let (x, axis) = (wanted(node, 0)?, node.int("axis", -1));
    let from = match (axis < 0, edit.facts().get(&x).rank().and_then(|rank| i64::try_from(rank).ok())) {
        (true, _) => axis,
        (false, Some(rank)) => axis - rank,
        (false, None) => return Err("the axes it works on are not known".to_owned()),
    };
    if !(-64..0).contains(&from) {
        return Err("its axis is none of its input".to_owned());
    }
    let axes = || ("axes", Attribute::Ints((from..0).collect()));
    let mean = match output(node, 1) {
        Ok(mean) => {
            edit.make("ReduceMean", &[&x], &[&mean], &[axes()]);
            mean
        }
        Err(_) => edit.op("ReduceMean", &[&x], &[axes()]),
    };
    if let Ok(deviation) = output(node, 2) {
        let epsilon = edit.float(node.float("epsilon", 1e-5));
        let distance = edit.op("Sub", &[&x, &mean], &[]);
        let squares = edit.op("Mul", &[&distance, &distance], &[]);
        let variance = edit.op("ReduceMean", &[&squares], &[axes()]);
        let variance = edit.op("Add", &[&variance, &epsilon], &[]);
        let root = edit.op("Sqrt", &[&variance], &[]);
        edit.make("Reciprocal", &[&root], &[&deviation], &[]);
    }
    node.output.truncate(1);
    Ok(Done::Changed)
}

/// MeanVarianceNormalization: (x − mean) / (deviation + 1e-9), by the specification's function.
pub(super) fn mean_variance(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let axes = || ("axes", Attribute::Ints(node.ints("axes").map_or_else(|| vec![0, 2, 3], <[i64]>::to_vec)));
    let small = edit.float(1e-9);
    let mean = edit.op("ReduceMean", &[&x], &[axes()]);
    let distance = edit.op("Sub", &[&x, &mean], &[]);
    let squares = edit.op("Mul", &[&distance, &distance], &[]);
    let variance = edit.op("ReduceMean", &[&squares], &[axes()]);
    let deviation = edit.op("Sqrt", &[&variance], &[]);
    let divisor = edit.op("Add", &[&deviation, &small], &[]);
    edit.make("Div", &[&distance, &divisor], &[&y], &[]);
    Ok(Done::Replaced)
}
