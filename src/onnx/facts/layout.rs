//! Dimensions of operators that move, cut and join elements, and the interpretation of their axes and bounds.

use onnx_protobuf::NodeProto;

use super::{Fact, Shape, Values};
use crate::onnx::attributes::{Attributes, input};

/// Index of an axis, which may count from the end.
pub(in crate::onnx) fn resolve(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis.checked_add(rank)? } else { axis };
    usize::try_from(axis).ok().filter(|_| axis < rank)
}

/// Axes, which were an attribute and became an input (Squeeze and Unsqueeze in opset 13, reductions in 13 and 18).
pub(in crate::onnx) enum Axes {
    Missing,
    Known(Vec<i64>),
    Unknown,
}

/// The axes of a node, as attribute or input.
pub(in crate::onnx) fn axes(node: &NodeProto, inputs: &[&Fact]) -> Axes {
    if let Some(axes) = node.ints("axes") {
        return Axes::Known(axes.to_vec());
    }
    match (input(node, 1), inputs.get(1).and_then(|fact| fact.ints())) {
        (None, _) => Axes::Missing,
        (Some(_), Some(axes)) => Axes::Known(axes),
        (Some(_), None) => Axes::Unknown,
    }
}

/// The range of dimensions that `Shape` returns (attributes since opset 15).
pub(super) fn shape_range(node: &NodeProto, rank: usize) -> (usize, usize) {
    let whole = i64::try_from(rank).unwrap_or(i64::MAX);
    let bound = |name: &str, default: i64| {
        let at = node.int(name, default);
        let at = if at < 0 { at.saturating_add(whole) } else { at };
        usize::try_from(at.clamp(0, whole)).unwrap_or(0)
    };
    (bound("start", 0), bound("end", whole))
}

/// Number of elements of a range; `None` for a step of zero.
pub(super) fn range(from: i64, to: i64, step: i64) -> Option<i64> {
    let (span, step) = (i128::from(to) - i128::from(from), i128::from(step));
    let count = match step {
        0 => return None,
        step if step > 0 => (span + step - 1).div_euclid(step),
        step => (-span - step - 1).div_euclid(-step),
    };
    i64::try_from(count.max(0)).ok()
}

/// The shape that a tensor of dimensions represents, some of which may be unknown.
pub(super) fn partial(fact: &Fact) -> Option<Shape> {
    match &fact.values {
        Some(Values::Ints(values)) => Some(values.clone()),
        _ => Some(vec![None; usize::try_from(fact.dim(0)?).ok().filter(|rank| *rank <= 64)?]),
    }
}

pub(super) fn remove(mut shape: Shape, axes: &[usize], keep: bool) -> Option<Shape> {
    for at in axes {
        *shape.get_mut(*at)? = Some(1);
    }
    if keep {
        return Some(shape);
    }
    Some(shape.into_iter().enumerate().filter(|(at, _)| !axes.contains(at)).map(|(_, dim)| dim).collect())
}

pub(super) fn flattened(node: &NodeProto, shape: &Shape) -> Option<Shape> {
    let rank = i64::try_from(shape.len()).ok()?;
    let axis = node.int("axis", 1);
    let at = usize::try_from(if axis < 0 { axis.checked_add(rank)? } else { axis }).ok()?;
    let count = |dims: &[Option<i64>]| dims.iter().try_fold(1i64, |count, dim| count.checked_mul((*dim)?));
    Some(vec![count(shape.get(..at)?), count(shape.get(at..)?)])
}

pub(super) fn reshaped(node: &NodeProto, inputs: &[&Fact], opset: i64) -> Option<Shape> {
    let data = inputs.first()?;
    let wanted: Shape = match node.ints("shape") {
        Some(shape) if opset < 5 => shape.iter().copied().map(Some).collect(),
        _ => partial(inputs.get(1)?)?,
    };
    let zero_is_zero = node.int("allowzero", 0) != 0;
    let mut dims: Shape = Vec::new();
    for (at, dim) in wanted.iter().enumerate() {
        dims.push(match dim {
            Some(0) if !zero_is_zero => data.dim(at),
            Some(-1) => None,
            other => *other,
        });
    }
    let guessed = wanted.iter().position(|dim| *dim == Some(-1));
    if let (Some(at), Some(count)) = (guessed, data.count()) {
        let rest = dims.iter().enumerate().filter(|(other, _)| *other != at);
        let rest = rest.map(|(_, dim)| *dim).try_fold(1i64, |count, dim| count.checked_mul(dim?));
        if let (Some(rest), Some(slot)) = (rest.filter(|rest| *rest > 0 && count % rest == 0), dims.get_mut(at)) {
            *slot = Some(count / rest);
        }
    }
    Some(dims)
}

pub(super) fn unsqueezed(node: &NodeProto, inputs: &[&Fact]) -> Option<Shape> {
    let shape = inputs.first()?.shape.as_ref()?;
    let Axes::Known(axes) = axes(node, inputs) else { return None };
    let rank = shape.len().checked_add(axes.len())?;
    let places: Vec<usize> = axes.iter().map(|at| resolve(*at, rank)).collect::<Option<_>>()?;
    let mut rest = shape.iter();
    let dims = (0..rank).map(|at| if places.contains(&at) { Some(Some(1)) } else { rest.next().copied() });
    dims.collect()
}

pub(super) fn concatenated(node: &NodeProto, inputs: &[&Fact]) -> Option<Shape> {
    let shapes: Vec<&Shape> = inputs.iter().map(|fact| fact.shape.as_ref()).collect::<Option<_>>()?;
    let mut dims = (*shapes.first()?).clone();
    let at = resolve(node.int("axis", 1), dims.len())?;
    shapes.iter().all(|shape| shape.len() == dims.len()).then_some(())?;
    let sizes: Option<Vec<i64>> = shapes.iter().map(|shape| shape.get(at).copied().flatten()).collect();
    let sum = sizes.and_then(|sizes| sizes.into_iter().try_fold(0i64, i64::checked_add));
    for (place, dim) in dims.iter_mut().enumerate() {
        *dim = if place == at { sum } else { shapes.iter().find_map(|shape| shape.get(place).copied().flatten()) };
    }
    Some(dims)
}

/// The bounds of a Slice as (axis, start, end, step), if they are known.
pub(super) fn bounds(node: &NodeProto, inputs: &[&Fact], rank: usize) -> Option<Vec<(usize, i64, i64, i64)>> {
    let list = |name: &str, index: usize| match node.ints(name) {
        Some(values) => Some(values.to_vec()),
        None => inputs.get(index)?.ints(),
    };
    let (starts, ends) = (list("starts", 1)?, list("ends", 2)?);
    let axes = match node.ints("axes").is_some() || input(node, 3).is_some() {
        true => list("axes", 3)?,
        false => (0..i64::try_from(starts.len()).ok()?).collect(),
    };
    let steps = if input(node, 4).is_some() { inputs.get(4)?.ints()? } else { vec![1; starts.len()] };
    (starts.len() == ends.len() && axes.len() == ends.len() && steps.len() == ends.len()).then_some(())?;
    let each = starts.iter().zip(&ends).zip(axes.iter().zip(&steps));
    each.map(|((start, end), (axis, step))| Some((resolve(*axis, rank)?, *start, *end, *step))).collect()
}

/// First index and number of elements of a slice of a dimension (ONNX, Slice: clamping).
pub(super) fn clamp(size: i64, start: i64, end: i64, step: i64) -> Option<(i64, i64)> {
    let wrap = |at: i64| if at < 0 { at.saturating_add(size) } else { at };
    if size <= 0 {
        return (size == 0).then_some((0, 0));
    }
    let (least, most) = if step > 0 { (0, size) } else { (-1, size - 1) };
    let start = wrap(start).clamp(0, most);
    range(start, wrap(end).clamp(least, most), step).map(|count| (start, count))
}

pub(super) fn sliced(node: &NodeProto, inputs: &[&Fact]) -> Option<Shape> {
    let mut dims = inputs.first()?.shape.clone()?;
    match bounds(node, inputs, dims.len()) {
        Some(bounds) => {
            for (at, start, end, step) in bounds {
                let dim = dims.get_mut(at)?;
                *dim = dim.and_then(|size| clamp(size, start, end, step)).map(|(_, count)| count);
            }
        }
        None => dims.fill(None),
    }
    Some(dims)
}

pub(super) fn split(node: &NodeProto, inputs: &[&Fact]) -> Vec<Option<Shape>> {
    let count = node.output.len();
    let each = || {
        let shape = inputs.first()?.shape.clone()?;
        let at = resolve(node.int("axis", 0), shape.len())?;
        let parts = parts(node, inputs, at);
        let with = |index: usize| {
            let mut dims = shape.clone();
            *dims.get_mut(at)? = parts.as_ref().and_then(|parts| parts.get(index).copied());
            Some(dims)
        };
        Some((0..count).map(with).collect::<Vec<_>>())
    };
    each().unwrap_or_else(|| vec![None; count])
}

/// Sizes into which a Split cuts `axis`.
pub(super) fn parts(node: &NodeProto, inputs: &[&Fact], axis: usize) -> Option<Vec<i64>> {
    if let Some(sizes) = node.ints("split") {
        return Some(sizes.to_vec());
    }
    if input(node, 1).is_some() {
        return inputs.get(1)?.ints();
    }
    let (size, count) = (inputs.first()?.dim(axis)?, i64::try_from(node.output.len()).ok()?);
    let chunk = size.checked_add(count - 1)?.checked_div(count)?;
    Some((0..count).map(|at| (size - (chunk * at).min(size)).min(chunk)).collect())
}

pub(super) fn top(node: &NodeProto, inputs: &[&Fact]) -> Option<Shape> {
    let mut dims = inputs.first()?.shape.clone()?;
    let at = resolve(node.int("axis", -1), dims.len())?;
    let count = match node.get("k") {
        Some(k) => Some(k.i),
        None => inputs.get(1).and_then(|fact| fact.ints()).and_then(|k| k.first().copied()),
    };
    *dims.get_mut(at)? = count;
    Some(dims)
}

pub(super) fn reduced(node: &NodeProto, inputs: &[&Fact]) -> Option<Shape> {
    let shape = inputs.first()?.shape.clone()?;
    let keep = node.int("keepdims", 1) != 0;
    let axes = match axes(node, inputs) {
        Axes::Known(axes) if !axes.is_empty() => {
            axes.iter().map(|at| resolve(*at, shape.len())).collect::<Option<Vec<usize>>>()?
        }
        Axes::Unknown => return if keep { Some(vec![None; shape.len()]) } else { None },
        _ if node.int("noop_with_empty_axes", 0) != 0 => return Some(shape),
        _ => (0..shape.len()).collect(),
    };
    remove(shape, &axes, keep)
}

pub(super) fn padded(node: &NodeProto, inputs: &[&Fact]) -> Option<Shape> {
    let shape = inputs.first()?.shape.clone()?;
    let pads = node.ints("pads").map(<[i64]>::to_vec).or_else(|| inputs.get(1)?.ints());
    let axes = if input(node, 3).is_some() {
        inputs.get(3)?.ints()
    } else {
        Some((0..i64::try_from(shape.len()).ok()?).collect())
    };
    let (Some(pads), Some(axes)) = (pads, axes) else { return Some(vec![None; shape.len()]) };
    (pads.len() == axes.len().checked_mul(2)?).then_some(())?;
    let mut dims = shape;
    for (index, axis) in axes.iter().enumerate() {
        let at = resolve(*axis, dims.len())?;
        let dim = dims.get_mut(at)?;
        let sum = pads.get(index)?.checked_add(*pads.get(index + axes.len())?)?;
        *dim = dim.and_then(|size| size.checked_add(sum)).filter(|size| *size >= 0);
    }
    Some(dims)
}

pub(super) fn resized(node: &NodeProto, inputs: &[&Fact], opset: i64) -> Option<Shape> {
    let shape = inputs.first()?.shape.clone()?;
    let plain = node.get("axes").is_none() && node.text("keep_aspect_ratio_policy").unwrap_or("stretch") == "stretch";
    let sizes = inputs.get(3).and_then(|fact| fact.ints()).filter(|sizes| plain && sizes.len() == shape.len());
    if let Some(sizes) = sizes {
        return Some(sizes.into_iter().map(Some).collect());
    }
    let given = node.get("scales").map(|scales| scales.floats.clone());
    let place = if node.op_type == "Upsample" || opset < 11 { 1 } else { 2 };
    let scales = given.or_else(|| inputs.get(place)?.floats().map(<[f32]>::to_vec));
    let Some(scales) = scales.filter(|scales| plain && scales.len() == shape.len()) else {
        return Some(vec![None; shape.len()]);
    };
    // floor(size × scale), in float32 as runtimes compute it; only sizes that float32 holds exactly.
    let scaled = |size: i64, scale: f32| {
        let size = u16::try_from(size).ok()?;
        let product = (f32::from(size) * scale).floor();
        (product.is_finite() && (0.0..1e9).contains(&product)).then_some(product as i64)
    };
    Some(shape.into_iter().zip(scales).map(|(dim, scale)| scaled(dim?, scale)).collect())
}

pub(super) fn blocks(node: &NodeProto, shape: &Shape) -> Option<Shape> {
    let [batch, channels, height, width] = shape.as_slice() else { return None };
    let block = Some(node.int("blocksize", 0)).filter(|block| (1..=1 << 20).contains(block))?;
    let grows = node.op_type == "DepthToSpace";
    let scale = |dim: &Option<i64>, grows: bool, by: i64| {
        dim.and_then(|dim| if grows { dim.checked_mul(by) } else { Some(dim / by) })
    };
    Some(vec![*batch, scale(channels, !grows, block * block), scale(height, grows, block), scale(width, grows, block)])
}
