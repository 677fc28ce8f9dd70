//! Activations that rten lacks or that overflow in it, rewritten by their formulas in ONNX's specification.

use onnx_protobuf::NodeProto;

use super::{Done, Rewritten};
use crate::onnx::attributes::Attributes;
use crate::onnx::editor::{Editor, output, wanted};

/// Values from which ln(1 + eˣ) equals x in float32; rten's exponential is infinite from 89 on.
const LINEAR: f32 = 20.0;

fn softplus_of(edit: &mut Editor<'_>, x: &str) -> (String, String) {
    let limit = edit.float(LINEAR);
    (edit.op("Greater", &[x, &limit], &[]), edit.op("Softplus", &[x], &[]))
}

pub(super) fn softplus(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let (large, small) = softplus_of(edit, &x);
    edit.make("Where", &[&large, &x, &small], &[&y], &[]);
    Ok(Done::Replaced)
}

/// Mish: x · tanh(softplus(x)).
pub(in crate::onnx) fn mish(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let (large, small) = softplus_of(edit, &x);
    let soft = edit.op("Where", &[&large, &x, &small], &[]);
    let gate = edit.op("Tanh", &[&soft], &[]);
    edit.make("Mul", &[&x, &gate], &[&y], &[]);
    Ok(Done::Replaced)
}

/// Celu: max(0, x) + min(0, α · (exp(x / α) − 1)).
pub(super) fn celu(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let (alpha, zero, one) = (edit.float(node.float("alpha", 1.0)), edit.float(0.0), edit.float(1.0));
    let scaled = edit.op("Div", &[&x, &alpha], &[]);
    let power = edit.op("Exp", &[&scaled], &[]);
    let below = edit.op("Sub", &[&power, &one], &[]);
    let below = edit.op("Mul", &[&below, &alpha], &[]);
    let below = edit.op("Min", &[&below, &zero], &[]);
    let above = edit.op("Max", &[&x, &zero], &[]);
    edit.make("Add", &[&above, &below], &[&y], &[]);
    Ok(Done::Replaced)
}

/// Selu: γ · elu(x), with the specification's defaults.
pub(super) fn selu(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let gamma = edit.float(node.float("gamma", 1.050_701));
    let made = edit.op("Elu", &[&x], &[("alpha", node.float("alpha", 1.673_263_2).into())]);
    edit.make("Mul", &[&made, &gamma], &[&y], &[]);
    Ok(Done::Replaced)
}

/// ThresholdedRelu: x if it is above α, else 0.
pub(super) fn thresholded(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let (alpha, zero) = (edit.float(node.float("alpha", 1.0)), edit.float(0.0));
    let above = edit.op("Greater", &[&x, &alpha], &[]);
    edit.make("Where", &[&above, &x, &zero], &[&y], &[]);
    Ok(Done::Replaced)
}

/// Shrink: x + bias below −λ, x − bias above λ, else 0.
pub(super) fn shrink(edit: &mut Editor<'_>, node: &NodeProto) -> Rewritten {
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let lambda = node.float("lambd", 0.5);
    let (bias, zero) = (edit.float(node.float("bias", 0.0)), edit.float(0.0));
    let (high, low) = (edit.float(lambda), edit.float(-lambda));
    let below = edit.op("Less", &[&x, &low], &[]);
    let above = edit.op("Greater", &[&x, &high], &[]);
    let (raised, lowered) = (edit.op("Add", &[&x, &bias], &[]), edit.op("Sub", &[&x, &bias], &[]));
    let outside = edit.op("Where", &[&above, &lowered, &zero], &[]);
    edit.make("Where", &[&below, &raised, &outside], &[&y], &[]);
    Ok(Done::Replaced)
}
