//! Convolutions and poolings with explicit attributes: rten takes SAME_LOWER for SAME_UPPER, and requires attributes
//! that are optional in ONNX.

use onnx_protobuf::NodeProto;

use super::{Done, Rewritten};
use crate::onnx::attributes::Attributes;
use crate::onnx::editor::{Editor, set, unset};
use crate::onnx::graph::Attribute;

pub(super) fn make_explicit(edit: &mut Editor<'_>, node: &mut NodeProto) -> Rewritten {
    let before = node.attribute.len();
    let kernel = match node.ints("kernel_shape") {
        Some(kernel) => kernel.to_vec(),
        None => {
            // W is (out channels, in channels / groups, spatial…).
            let shape = edit.facts().input(node, 1).shape.as_ref().and_then(|shape| shape.get(2..));
            let kernel = shape.and_then(|dims| dims.iter().copied().collect::<Option<Vec<i64>>>());
            let kernel = kernel.ok_or("the size of its kernel is not known")?;
            set(node, "kernel_shape", Attribute::Ints(kernel.clone()));
            kernel
        }
    };
    let pool = node.op_type.ends_with("Pool");
    for name in ["strides", "dilations"] {
        if node.get(name).is_none() && !(pool && name == "dilations") {
            set(node, name, Attribute::Ints(vec![1; kernel.len()]));
        }
    }
    let auto = node.text("auto_pad").unwrap_or("NOTSET").to_owned();
    match auto.as_str() {
        "VALID" => {
            unset(node, "auto_pad");
            unset(node, "pads");
            set(node, "pads", Attribute::Ints(vec![0; kernel.len() * 2]));
        }
        "SAME_LOWER" => {
            let pads = lower(edit, node, &kernel).ok_or("SAME_LOWER of an input of unknown size is not computed")?;
            unset(node, "auto_pad");
            set(node, "pads", Attribute::Ints(pads));
            if pool {
                unset(node, "ceil_mode");
            }
        }
        "NOTSET" if node.get("pads").is_none() => set(node, "pads", Attribute::Ints(vec![0; kernel.len() * 2])),
        _ => {}
    }
    let same = auto == "NOTSET" || auto == "SAME_UPPER";
    Ok(if same && node.attribute.len() == before { Done::Kept } else { Done::Changed })
}

/// Pads of SAME_LOWER: as many as keep size / stride, an odd one at the beginning.
fn lower(edit: &Editor<'_>, node: &NodeProto, kernel: &[i64]) -> Option<Vec<i64>> {
    let x = edit.facts().input(node, 0);
    let (mut begins, mut ends) = (Vec::new(), Vec::new());
    for (at, size) in kernel.iter().enumerate() {
        let of = |name: &str, default: i64| node.ints(name).map_or(Some(default), |values| values.get(at).copied());
        let (stride, dilation) = (of("strides", 1)?, of("dilations", 1)?);
        let reach = size.checked_sub(1)?.checked_mul(dilation)?.checked_add(1)?;
        let total = match (node.op_type.as_str(), stride) {
            ("ConvTranspose", _) => reach.checked_add(of("output_padding", 0)?)?.checked_sub(stride)?,
            (_, 1) => reach.checked_sub(1)?,
            _ => {
                let size = x.dim(at + 2)?;
                let steps = size.checked_add(stride.checked_sub(1)?)?.checked_div(stride)?;
                steps.checked_sub(1)?.checked_mul(stride)?.checked_add(reach)?.checked_sub(size)?
            }
        };
        let total = total.max(0);
        begins.push(total - total / 2);
        ends.push(total / 2);
    }
    begins.append(&mut ends);
    Some(begins)
}
