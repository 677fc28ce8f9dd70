//! Poolings with `ceil_mode`, whose last window may extend beyond the padding. In ONNX (MaxPool-22, AveragePool-22) no
//! window begins beyond the input and the padding before it, and elements of a window beyond the padding do not count
//! for an average, not even with `count_include_pad`; onnxruntime computes every opset so. TensorRT's
//! kEXPLICIT_ROUND_UP, which the parser uses, has such windows and counts all elements. With as much padding as the
//! windows need both agree.

use onnx_protobuf::NodeProto;

use crate::onnx::attributes::Attributes;
use crate::onnx::editor::{Editor, set, unset, wanted};
use crate::onnx::facts::{Fact, Facts};
use crate::onnx::graph::Attribute;
use crate::onnx::reference::{Done, Rewritten};

/// Position of the windows along an axis.
struct Windows {
    /// Padding at the beginning.
    begin: i64,
    end: i64,
    /// Padding that the last window needs at the end.
    needed: i64,
    /// Whether ONNX's rule drops a last window that would begin beyond the padding.
    dropped: bool,
}

/// Rewrites a pooling with the padding that its windows need, if the parser would use another.
pub(super) fn write(edit: &mut Editor<'_>, node: &mut NodeProto) -> Rewritten {
    if !rounds_up(node) {
        return Ok(Done::Kept);
    }
    let Some(axes) = all_windows(node, edit.facts().input(node, 0)) else { return Ok(Done::Kept) };
    let uncounted = counts_padding(node) && axes.iter().any(|axis| axis.needed > axis.end);
    if !uncounted && axes.iter().all(|axis| !axis.dropped) {
        return Ok(Done::Kept);
    }
    let x = wanted(node, 0)?;
    let pads = |begin: fn(&Windows) -> i64, end: fn(&Windows) -> i64| -> Vec<i64> {
        axes.iter().map(begin).chain(axes.iter().map(end)).collect()
    };
    if uncounted {
        // What counts becomes zeros of the input; what does not is left out of the average.
        let zeros = pads(|axis| axis.begin, |axis| axis.needed.min(axis.end));
        let padded = padded(edit, &x, &zeros);
        if let Some(slot) = node.input.first_mut() {
            *slot = padded;
        }
        unset(node, "count_include_pad");
        set(node, "pads", Attribute::Ints(pads(|_| 0, |axis| (axis.needed - axis.end).max(0))));
    } else {
        set(node, "pads", Attribute::Ints(pads(|axis| axis.begin, |axis| axis.needed)));
    }
    unset(node, "ceil_mode");
    unset(node, "auto_pad");
    Ok(Done::Changed)
}

/// Whether the sizes that decide TensorRT's interpretation of a pooling are unknown.
pub(in crate::onnx) fn is_doubtful(node: &NodeProto, facts: &Facts<'_>) -> bool {
    if !rounds_up(node) || all_windows(node, facts.input(node, 0)).is_some() {
        return false;
    }
    let kernel = node.ints("kernel_shape").unwrap_or_default();
    // A last window can only begin behind the input where a step is longer than what windows have beyond the padding.
    let reaches = |(at, kernel_size): (usize, &i64)| {
        let (stride, end) = (number(node, "strides", at, 1)?, pad(node, at + kernel.len())?);
        Some(stride.checked_add(end)? <= *kernel_size)
    };
    counts_padding(node) || !kernel.iter().enumerate().all(|axis| reaches(axis) == Some(true))
}

fn rounds_up(node: &NodeProto) -> bool {
    let same = node.text("auto_pad").is_some_and(|auto| auto.starts_with("SAME"));
    // The parser refuses dilations itself.
    let dilated = node.ints("dilations").is_some_and(|dilations| dilations.iter().any(|dilation| *dilation != 1));
    matches!(node.op_type.as_str(), "MaxPool" | "AveragePool") && node.int("ceil_mode", 0) != 0 && !same && !dilated
}

fn counts_padding(node: &NodeProto) -> bool {
    node.op_type == "AveragePool" && node.int("count_include_pad", 0) != 0
}

/// Element `at` of a list attribute.
fn number(node: &NodeProto, name: &str, at: usize, default: i64) -> Option<i64> {
    match node.ints(name) {
        Some(values) if !values.is_empty() => values.get(at).copied(),
        _ => Some(default),
    }
}

fn pad(node: &NodeProto, at: usize) -> Option<i64> {
    if node.text("auto_pad") == Some("VALID") { Some(0) } else { number(node, "pads", at, 0) }
}

/// The windows along all axes, if their sizes are known.
fn all_windows(node: &NodeProto, x: &Fact) -> Option<Vec<Windows>> {
    let (kernel, spatial) = (node.ints("kernel_shape")?, x.shape.as_ref()?.get(2..)?);
    (kernel.len() == spatial.len()).then_some(())?;
    let each = spatial.iter().zip(kernel).enumerate();
    each.map(|(at, (size, kernel_size))| windows(node, (at, kernel.len()), (*size)?, *kernel_size)).collect()
}

/// The windows along axis `at` of `axes`.
fn windows(node: &NodeProto, (at, axes): (usize, usize), size: i64, kernel: i64) -> Option<Windows> {
    let (begin, end, stride) = (pad(node, at)?, pad(node, at.checked_add(axes)?)?, number(node, "strides", at, 1)?);
    (size > 0 && stride > 0 && kernel > 0 && begin >= 0 && end >= 0).then_some(())?;
    let before = size.checked_add(begin)?;
    let room = before.checked_add(end)?.checked_sub(kernel).filter(|room| *room >= 0)?;
    let steps = room.checked_add(stride - 1)? / stride;
    let dropped = steps.checked_mul(stride)? >= before;
    let steps = steps - i64::from(dropped);
    let needed = steps.checked_mul(stride)?.checked_add(kernel)?.checked_sub(before)?;
    Some(Windows { begin, end, needed: needed.max(0), dropped })
}

/// Pads the spatial axes with zeros.
fn padded(edit: &mut Editor<'_>, x: &str, spatial: &[i64]) -> String {
    if spatial.iter().all(|pad| *pad == 0) {
        return x.to_owned();
    }
    let (begins, ends) = spatial.split_at(spatial.len() / 2);
    let pads = [[0, 0].as_slice(), begins, &[0, 0], ends].concat();
    // Pads became an input with opset 11.
    if edit.facts().opset() < 11 {
        return edit.op("Pad", &[x], &[("pads", Attribute::Ints(pads))]);
    }
    let pads = edit.ints(&pads);
    edit.op("Pad", &[x, &pads], &[])
}
