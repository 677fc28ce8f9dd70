//! Nearest-neighbour Resize for TensorRT, which multiplies by the reciprocal of the scale where onnxruntime divides:
//! the last bit decides where a coordinate is exactly between two pixels, or on a pixel that `ceil` and `floor` round
//! to. Seen with TensorRT-RTX 1.6.1: a scale of 3 with `ceil`, and one of 1.7 with `round_prefer_ceil`, chose other
//! pixels.

use onnx_protobuf::NodeProto;

use super::{Axis, Done, How, Mode, Rewritten, Rounding, SIZE_LIMIT, Transformation, index};
use crate::onnx::editor::{Editor, output, wanted};

/// Rewrites a nearest Resize as lists of indices, if TensorRT might choose other pixels.
pub(in crate::onnx) fn write(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    // Resize-10 is asymmetric and rounds down; scales there are powers of two as a rule.
    if edit.facts().opset() < 11 {
        return Ok(Done::Kept);
    }
    let (x, y, how) = (wanted(node, 0)?, output(node, 0)?, How::of(node)?);
    let Mode::Nearest(rounding) = how.mode else { return Ok(Done::Kept) };
    if matches!(how.transformation, Transformation::Crop | Transformation::Symmetric) {
        return Ok(Done::Kept);
    }
    let axes = how.axes(node, edit.facts())?;
    let within = axes.iter().all(|axis| axis.to <= SIZE_LIMIT);
    let (Some((last, before)), true) = (axes.split_last(), within) else { return Ok(Done::Kept) };
    let rightly = |axis: &Axis| -> Vec<i64> {
        (0..axis.to).map(|at| rounding.place(how.coordinate(at, axis), axis.from)).collect()
    };
    if axes.iter().all(|axis| is_firm(&how, rounding, axis, &rightly(axis))) {
        return Ok(Done::Kept);
    }
    let mut made = x;
    for axis in before {
        let places = edit.ints(&rightly(axis));
        made = edit.op("Gather", &[&made, &places], &[("axis", index(axis.at)?.into())]);
    }
    let places = edit.ints(&rightly(last));
    edit.make("Gather", &[&made, &places], &[&y], &[("axis", index(last.at)?.into())]);
    Ok(Done::Replaced)
}

/// Whether reciprocals, rounded before the sum or fused with it, give the same pixels along an axis.
fn is_firm(how: &How, rounding: Rounding, axis: &Axis, rightly: &[i64]) -> bool {
    let (from, to) = (axis.from as f32, axis.to as f32);
    let same = |coordinate: &dyn Fn(f32) -> f32| {
        (0..axis.to).zip(rightly).all(|(at, right)| rounding.place(coordinate(at as f32), axis.from) == *right)
    };
    match how.transformation {
        Transformation::Asymmetric => same(&|at| at * axis.inverse),
        Transformation::AlignCorners if axis.to > 1 => same(&|at| at * ((from - 1.0) / (to - 1.0))),
        Transformation::PytorchHalfPixel if axis.to == 1 => true,
        Transformation::HalfPixel | Transformation::PytorchHalfPixel => {
            same(&|at| (at + 0.5) * axis.inverse - 0.5) && same(&|at| (at + 0.5).mul_add(axis.inverse, -0.5))
        }
        _ => true,
    }
}
