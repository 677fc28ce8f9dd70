//! Infers dimensions of a node's outputs, by ONNX's operator specification.

use onnx_protobuf::NodeProto;

use super::layout::{
    Axes, axes, blocks, concatenated, flattened, padded, partial, range, reduced, remove, reshaped, resized, resolve,
    shape_range, sliced, split, top, unsqueezed,
};
use super::types::{BROADCAST, LIKE_FIRST, REDUCTIONS, among};
use super::{Fact, Shape};
use crate::onnx::attributes::Attributes;

/// The dimensions of the outputs.
pub(super) fn of(node: &NodeProto, inputs: &[&Fact], opset: i64) -> Vec<Option<Shape>> {
    let op = node.op_type.as_str();
    let shape = |index: usize| inputs.get(index).and_then(|fact| fact.shape.clone());
    match op {
        _ if among(LIKE_FIRST, op) => vec![shape(0); node.output.len().min(1)],
        _ if among(BROADCAST, op) => vec![broadcast(inputs)],
        _ if among(REDUCTIONS, op) => vec![reduced(node, inputs)],
        "ArgMax" | "ArgMin" => vec![shape(0).and_then(|shape| {
            let at = resolve(node.int("axis", 0), shape.len())?;
            remove(shape, &[at], node.int("keepdims", 1) != 0)
        })],
        "Split" => split(node, inputs),
        "TopK" => vec![top(node, inputs); 2],
        "LSTM" | "GRU" | "RNN" => recurrent(node, inputs),
        "DynamicQuantizeLinear" => vec![shape(0), Some(Vec::new()), Some(Vec::new())],
        "Size" => vec![Some(Vec::new())],
        "NonMaxSuppression" => vec![Some(vec![None, Some(3)])],
        _ => vec![single_output(node, inputs, opset)],
    }
}

fn single_output(node: &NodeProto, inputs: &[&Fact], opset: i64) -> Option<Shape> {
    computed(node, inputs, opset).or_else(|| moved(node, inputs, opset)).or_else(|| made(node, inputs))
}

/// Dimensions of operators that compute elements from several elements.
fn computed(node: &NodeProto, inputs: &[&Fact], opset: i64) -> Option<Shape> {
    let first = inputs.first().copied();
    let shape = || first?.shape.clone();
    match node.op_type.as_str() {
        "MatMul" | "MatMulInteger" => product(inputs),
        "Gemm" => {
            let side = |index: usize, flag: &str, plain: usize| {
                inputs.get(index)?.dim(if node.int(flag, 0) != 0 { 1 - plain } else { plain })
            };
            Some(vec![side(0, "transA", 0), side(1, "transB", 1)])
        }
        "Conv" | "ConvInteger" => convolved(node, inputs),
        "MaxPool" | "AveragePool" | "LpPool" => {
            let shape = shape()?;
            let kernel = node.ints("kernel_shape")?.to_vec();
            let mut dims = vec![*shape.first()?, *shape.get(1)?];
            dims.extend(windows(node, shape.get(2..)?, &kernel)?);
            Some(dims)
        }
        // The sizes follow from more attributes than are worth it: the rank is what is needed.
        "ConvTranspose" | "GridSample" => {
            let mut dims = vec![None; shape()?.len()];
            *dims.first_mut()? = first?.dim(0);
            Some(dims)
        }
        "GlobalAveragePool" | "GlobalMaxPool" => {
            Some(shape()?.into_iter().enumerate().map(|(at, dim)| if at < 2 { dim } else { Some(1) }).collect())
        }
        "Resize" | "Upsample" => resized(node, inputs, opset),
        "DepthToSpace" | "SpaceToDepth" => blocks(node, &shape()?),
        "Einsum" => {
            let equation = node.text("equation")?;
            let (_, output) = equation.split_once("->").filter(|_| !equation.contains("..."))?;
            Some(vec![None; output.chars().filter(|letter| letter.is_alphabetic()).count()])
        }
        _ => None,
    }
}

/// Dimensions of operators that rearrange elements.
fn moved(node: &NodeProto, inputs: &[&Fact], opset: i64) -> Option<Shape> {
    let first = inputs.first().copied();
    let shape = || first?.shape.clone();
    match node.op_type.as_str() {
        "Flatten" => flattened(node, &shape()?),
        "Reshape" => reshaped(node, inputs, opset),
        "Transpose" => {
            let shape = shape()?;
            let Some(order) = node.ints("perm") else { return Some(shape.into_iter().rev().collect()) };
            (order.len() == shape.len()).then_some(())?;
            order.iter().map(|at| shape.get(usize::try_from(*at).ok()?).copied()).collect()
        }
        "Squeeze" => {
            let shape = shape()?;
            let axes = match axes(node, inputs) {
                Axes::Known(axes) => axes.iter().map(|at| resolve(*at, shape.len())).collect::<Option<Vec<usize>>>()?,
                Axes::Missing if shape.iter().all(Option::is_some) => {
                    (0..shape.len()).filter(|at| shape.get(*at) == Some(&Some(1))).collect()
                }
                _ => return None,
            };
            remove(shape, &axes, false)
        }
        "Unsqueeze" => unsqueezed(node, inputs),
        "Concat" => concatenated(node, inputs),
        "Slice" => sliced(node, inputs),
        "Gather" => {
            let (data, indices) = (shape()?, inputs.get(1)?.shape.clone()?);
            let at = resolve(node.int("axis", 0), data.len())?;
            Some(data.iter().take(at).chain(&indices).chain(data.iter().skip(at + 1)).copied().collect())
        }
        "GatherElements" => inputs.get(1)?.shape.clone(),
        "GatherND" => {
            let (data, indices) = (shape()?, inputs.get(1)?.shape.clone()?);
            let (last, batch) = (usize::try_from((*indices.last()?)?).ok()?, node.int("batch_dims", 0));
            let rest = data.iter().skip(last.checked_add(usize::try_from(batch).ok()?)?);
            Some(indices.iter().take(indices.len() - 1).chain(rest).copied().collect())
        }
        "Pad" => padded(node, inputs),
        _ => None,
    }
}

/// Dimensions of operators whose output size is given by values.
fn made(node: &NodeProto, inputs: &[&Fact]) -> Option<Shape> {
    let first = inputs.first().copied();
    let shape = || first?.shape.clone();
    match node.op_type.as_str() {
        "Shape" => {
            let (from, to) = shape_range(node, shape()?.len());
            Some(vec![Some(i64::try_from(to.saturating_sub(from)).ok()?)])
        }
        "Constant" => constant(node),
        "ConstantOfShape" => first?.ints().map(|dims| dims.into_iter().map(Some).collect()),
        "Expand" => {
            let wanted = Fact { shape: Some(partial(inputs.get(1)?)?), ..Fact::default() };
            broadcast(&[first?, &wanted])
        }
        "Tile" => {
            let repeats = partial(inputs.get(1)?)?;
            let dims = shape()?.into_iter().zip(repeats);
            Some(dims.map(|(dim, times)| dim?.checked_mul(times?)).collect())
        }
        "Range" => {
            let bound = |index: usize| inputs.get(index)?.ints()?.first().copied();
            let length = || range(bound(0)?, bound(1)?, bound(2)?);
            Some(vec![length()])
        }
        "NonZero" => Some(vec![Some(i64::try_from(shape()?.len()).ok()?), None]),
        "OneHot" => {
            let (mut dims, depth) = (shape()?, inputs.get(1)?.ints().and_then(|depth| depth.first().copied()));
            let at = resolve(node.int("axis", -1), dims.len() + 1)?;
            dims.insert(at, depth);
            Some(dims)
        }
        _ => None,
    }
}

/// Dimensions of broadcast inputs.
fn broadcast(inputs: &[&Fact]) -> Option<Shape> {
    let shapes: Vec<&Shape> = inputs.iter().map(|fact| fact.shape.as_ref()).collect::<Option<_>>()?;
    let rank = shapes.iter().map(|shape| shape.len()).max()?;
    let joined = |place: usize| {
        let dims = shapes.iter().filter_map(|shape| shape.len().checked_sub(place + 1).and_then(|at| shape.get(at)));
        // One that is unknown may be 1, or what another one is that is not 1.
        let mut result = Some(1);
        for dim in dims {
            match (result, dim) {
                (Some(1), other) => result = *other,
                (None, Some(size)) if *size != 1 => result = Some(*size),
                _ => {}
            }
        }
        result
    };
    Some((0..rank).rev().map(joined).collect())
}

fn product(inputs: &[&Fact]) -> Option<Shape> {
    let (a, b) = (inputs.first()?.shape.as_ref()?, inputs.get(1)?.shape.as_ref()?);
    let stack = |shape: &Shape| Fact {
        shape: Some(shape.iter().take(shape.len().saturating_sub(2)).copied().collect()),
        ..Fact::default()
    };
    let mut dims = broadcast(&[&stack(a), &stack(b)])?;
    if a.len() >= 2 {
        dims.push(*a.get(a.len() - 2)?);
    }
    if b.len() >= 2 {
        dims.push(*b.last()?);
    }
    Some(dims)
}

fn convolved(node: &NodeProto, inputs: &[&Fact]) -> Option<Shape> {
    let (shape, weights) = (inputs.first()?.shape.as_ref()?, inputs.get(1)?);
    let mut dims = vec![*shape.first()?, weights.dim(0)];
    let kernel = weights.shape.as_ref().and_then(|shape| shape.get(2..)?.iter().copied().collect::<Option<Vec<i64>>>());
    match kernel {
        Some(kernel) => dims.extend(windows(node, shape.get(2..)?, &kernel)?),
        None => dims.extend(vec![None; shape.len().checked_sub(2)?]),
    }
    Some(dims)
}

/// Output sizes of a sliding window over `spatial` (ONNX, MaxPool: output_spatial_shape).
fn windows(node: &NodeProto, spatial: &[Option<i64>], kernel: &[i64]) -> Option<Shape> {
    (spatial.len() == kernel.len()).then_some(())?;
    let of = |name: &str, at: usize, default: i64| match node.ints(name) {
        Some(values) if !values.is_empty() => values.get(at).copied(),
        _ => Some(default),
    };
    let auto = node.text("auto_pad").unwrap_or("NOTSET");
    let size = |at: usize, size: i64, kernel: i64| {
        let (stride, dilation) = (of("strides", at, 1)?, of("dilations", at, 1)?);
        let reach = kernel.checked_sub(1)?.checked_mul(dilation)?.checked_add(1)?;
        (stride > 0 && reach > 0 && size >= 0).then_some(())?;
        if auto.starts_with("SAME") {
            return Some(size.checked_add(stride - 1)? / stride);
        }
        let pads = match auto {
            "VALID" => 0,
            _ => of("pads", at, 0)?.checked_add(of("pads", at + spatial.len(), 0)?)?,
        };
        let room = size.checked_add(pads)?.checked_sub(reach).filter(|room| *room >= 0)?;
        if node.int("ceil_mode", 0) == 0 {
            return (room / stride).checked_add(1);
        }
        // A last window that would begin behind the input and the padding before it is none (MaxPool-22, and onnxruntime in
        // every opset).
        let steps = room.checked_add(stride - 1)? / stride;
        let begin = if auto == "VALID" { 0 } else { of("pads", at, 0)? };
        let dropped = steps.checked_mul(stride)? >= size.checked_add(begin)?;
        steps.checked_add(i64::from(!dropped))
    };
    Some(spatial.iter().zip(kernel).enumerate().map(|(at, (dim, kernel))| size(at, (*dim)?, *kernel)).collect())
}

fn recurrent(node: &NodeProto, inputs: &[&Fact]) -> Vec<Option<Shape>> {
    let directions = if node.text("direction") == Some("bidirectional") { 2 } else { 1 };
    let hidden = node.get("hidden_size").map(|size| size.i);
    let x = inputs.first().copied();
    let dim = |at: usize| x.and_then(|fact| fact.dim(at));
    if node.int("layout", 0) != 0 {
        return vec![None; node.output.len()];
    }
    let last = Some(vec![Some(directions), dim(1), hidden]);
    vec![Some(vec![dim(0), Some(directions), dim(1), hidden]), last.clone(), last]
}

fn constant(node: &NodeProto) -> Option<Shape> {
    if let Some(tensor) = node.get("value").and_then(|value| value.t.as_ref()) {
        return Some(tensor.dims.iter().copied().map(Some).collect());
    }
    if node.get("value_int").is_some() || node.get("value_float").is_some() {
        return Some(Vec::new());
    }
    let list = node.get("value_ints").map(|list| list.ints.len());
    let list = list.or_else(|| node.get("value_floats").map(|list| list.floats.len()));
    Some(vec![Some(i64::try_from(list?).ok()?)])
}
