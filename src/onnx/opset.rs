//! Converts models to an older opset, for a parser that supports no newer one (TensorRT 8: 17, current ones: 24): what
//! has changed since is rewritten or refused by name. Sources: ONNX's change log, opsets 18 to 28;
//! `tests/node_tests.rs` compares both versions in onnxruntime.

use std::cell::RefCell;

use onnx_protobuf::{GraphProto, NodeProto};

use super::attributes::{Attributes, graphs_mut, input};
use super::editor::{Editor, output, set, unset, wanted};
use super::facts::{Facts, Values, elem, layout::resolve};
use super::graph::Attribute;
use super::reference::{group_norm, mish};
use super::simplify::Names;
use super::{Model, OnnxError};

/// Newest opset whose changes are known.
pub const NEWEST: i64 = 28;

/// Operators introduced by an opset for which there is no older form here.
const NEW: &[(i64, &str)] = &[
    (18, "BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im OptionalGetElement OptionalHasElement"),
    (19, "DeformConv"),
    (20, "AffineGrid DFT ImageDecoder RegexFullMatch StringConcat StringSplit"),
    (23, "Attention RotaryEmbedding"),
    (24, "TensorScatter"),
    (26, "BitCast CumProd"),
    (27, "CausalConvWithState LinearAttention"),
    (28, "SwiGLU"),
];

/// Attributes introduced by an opset: operator, name, and the values that equal their absence (integers or a string).
const ATTRIBUTES: &[(i64, &str, &str, &[i64], &str)] = &[
    (18, "LpPool", "dilations", &[1], ""),
    (18, "LpPool", "ceil_mode", &[0], ""),
    (18, "Resize", "antialias", &[0], ""),
    (18, "Resize", "keep_aspect_ratio_policy", &[], "stretch"),
    (19, "AveragePool", "dilations", &[1], ""),
    (19, "Cast", "saturate", &[0, 1], ""),
    (19, "CastLike", "saturate", &[0, 1], ""),
    (19, "QuantizeLinear", "saturate", &[0, 1], ""),
    (21, "QuantizeLinear", "block_size", &[0], ""),
    (21, "QuantizeLinear", "output_dtype", &[0], ""),
    (21, "DequantizeLinear", "block_size", &[0], ""),
    (23, "DequantizeLinear", "output_dtype", &[0], ""),
    (23, "QuantizeLinear", "precision", &[0], ""),
    (24, "Cast", "round_mode", &[], "up"),
    (24, "CastLike", "round_mode", &[], "up"),
    (25, "Attention", "left_window_size", &[-1], ""),
    (25, "Attention", "right_window_size", &[-1], ""),
    (27, "Range", "stash_type", &[1], ""),
    (28, "SpaceToDepth", "mode", &[], "DCR"),
];

/// Strings introduced by an opset as values of an attribute.
const TEXTS: &[(i64, &str, &str, &str)] = &[
    (18, "ScatterElements", "reduction", "max"),
    (18, "ScatterElements", "reduction", "min"),
    (18, "ScatterND", "reduction", "max"),
    (18, "ScatterND", "reduction", "min"),
    (19, "Pad", "mode", "wrap"),
    (19, "Resize", "coordinate_transformation_mode", "half_pixel_symmetric"),
];

impl Model {
    /// Converts the model to opset `newest` if it has a newer one; returns whether it had.
    pub fn to_opset(&mut self, newest: i64) -> Result<bool, OnnxError> {
        let opset = self.opset();
        if opset <= newest {
            return Ok(false);
        }
        if opset > NEWEST || newest < 17 {
            return Err(self
                .fail(format!(
                    "opset {opset} is newer than this TensorRT's parser knows ({newest}), and is not one \
                     that can be written in an older one"
                ))
                .with_help(format!("export it with opset {newest} or below")));
        }
        let Some(graph) = self.proto.graph.as_mut() else { return Ok(false) };
        let names = RefCell::new(Names::of(graph));
        let lower = Lower { names: &names, opset, newest };
        let done = lower.graph(graph, None);
        done.map_err(|message| {
            self.fail(message).with_help(format!(
                "this TensorRT's parser knows opset {newest}, the model has {opset}: export it with \
                 opset {newest}"
            ))
        })?;
        for import in &mut self.proto.opset_import {
            if matches!(import.domain.as_str(), "" | "ai.onnx") {
                import.version = newest;
            }
        }
        // The IR that goes with an opset (onnx/docs/Versioning.md).
        let ir = match newest {
            ..=18 => 8,
            19 | 20 => 9,
            21 | 22 => 10,
            23 => 11,
            _ => 12,
        };
        self.proto.ir_version = self.proto.ir_version.min(ir);
        Ok(true)
    }
}

struct Lower<'w> {
    names: &'w RefCell<Names>,
    opset: i64,
    newest: i64,
}

impl Lower<'_> {
    fn graph(&self, graph: &mut GraphProto, outer: Option<&Facts<'_>>) -> Result<(), String> {
        let nodes = std::mem::take(&mut graph.node);
        let mut edit = Editor::new(Facts::new(graph, outer, self.opset), self.names);
        for mut node in nodes {
            for inner in graphs_mut(&mut node) {
                self.graph(inner, Some(edit.facts()))?;
            }
            edit.start(&node);
            let label = node.label();
            if !self.node(&mut edit, &mut node).map_err(|message| format!("{label}: {message}"))? {
                edit.push(node);
            }
        }
        let (nodes, constants) = edit.finish();
        graph.node = nodes;
        graph.initializer.extend(constants);
        Ok(())
    }

    /// Whether the opset's changes must be rewritten.
    fn since(&self, opset: i64) -> bool {
        self.newest < opset && opset <= self.opset
    }

    /// Converts a node to the older opset; returns whether it was replaced by others.
    fn node(&self, edit: &mut Editor<'_>, node: &mut NodeProto) -> Result<bool, String> {
        if !node.is_standard() {
            return Ok(false);
        }
        let op = node.op_type.clone();
        if NEW.iter().any(|(since, names)| self.since(*since) && names.split(' ').any(|name| name == op)) {
            return Err(format!("opset {} has no such operator", self.newest));
        }
        for (since, _, name, text) in TEXTS.iter().filter(|(_, other, _, _)| *other == op) {
            if self.since(*since) && node.text(name) == Some(*text) {
                return Err(format!("opset {} has no {name} `{text}`", self.newest));
            }
        }
        for (since, _, name, ints, text) in ATTRIBUTES.iter().filter(|(_, other, _, _, _)| *other == op) {
            let Some(attribute) = node.get(name).filter(|_| self.since(*since)) else { continue };
            let listed = if attribute.ints.is_empty() { vec![attribute.i] } else { attribute.ints.clone() };
            let same =
                if ints.is_empty() { node.text(name) == Some(*text) } else { listed.iter().all(|i| ints.contains(i)) };
            if !same {
                return Err(format!("opset {} has no {name}", self.newest));
            }
            unset(node, name);
        }
        match op.as_str() {
            "Mish" if self.since(18) => {
                floats_alone(edit, &wanted(node, 0)?)?;
                mish(edit, node).map(|_| true)
            }
            // Scale and bias are by group in 18 and by channel in 21; neither is in 17.
            "GroupNormalization" if self.since(18) || self.since(21) => {
                floats_alone(edit, &wanted(node, 0)?)?;
                group_norm(edit, node).map(|_| true)
            }
            "Gelu" if self.since(20) => gelu(edit, node).map(|()| true),
            "RMSNormalization" if self.since(23) => rms_norm(edit, node).map(|()| true),
            "Swish" if self.since(24) => swish(edit, node).map(|()| true),
            "Mod" if self.since(28) => modulo(edit, node).map(|()| false),
            "Pad" if self.since(18) => pad(edit, node).map(|()| false),
            "Split" if self.since(18) => split(edit, node).map(|()| false),
            "Resize" if self.since(18) => resize(edit, node).map(|()| false),
            "GridSample" if self.since(20) => {
                let old = node.text("mode").map(|mode| match mode {
                    "linear" => "bilinear".to_owned(),
                    "cubic" => "bicubic".to_owned(),
                    other => other.to_owned(),
                });
                if let Some(mode) = old {
                    set(node, "mode", mode.as_str());
                }
                Ok(false)
            }
            _ if op.starts_with("Reduce") && op != "ReduceSum" && self.since(18) => reduce(edit, node).map(|()| false),
            _ => Ok(false),
        }
    }
}

/// Gelu (opset 20): x / 2 · (1 + erf(x / √2)), or its tanh approximation.
fn gelu(edit: &mut Editor<'_>, node: &NodeProto) -> Result<(), String> {
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    floats_alone(edit, &x)?;
    let (half, one) = (edit.float(0.5), edit.float(1.0));
    let bent = if node.text("approximate") == Some("tanh") {
        let (cubic, root) = (edit.float(0.044_715), edit.float((2.0 / std::f32::consts::PI).sqrt()));
        let square = edit.op("Mul", &[&x, &x], &[]);
        let cube = edit.op("Mul", &[&square, &x], &[]);
        let scaled = edit.op("Mul", &[&cube, &cubic], &[]);
        let sum = edit.op("Add", &[&x, &scaled], &[]);
        let inner = edit.op("Mul", &[&sum, &root], &[]);
        edit.op("Tanh", &[&inner], &[])
    } else {
        let root = edit.float(std::f32::consts::FRAC_1_SQRT_2);
        let inner = edit.op("Mul", &[&x, &root], &[]);
        edit.op("Erf", &[&inner], &[])
    };
    let raised = edit.op("Add", &[&bent, &one], &[]);
    let halved = edit.op("Mul", &[&x, &half], &[]);
    edit.make("Mul", &[&halved, &raised], &[&y], &[]);
    Ok(())
}

/// RMSNormalization (opset 23): x / √(mean(x²) + ε) · scale over the last axes.
fn rms_norm(edit: &mut Editor<'_>, node: &NodeProto) -> Result<(), String> {
    let (x, scale, y) = (wanted(node, 0)?, wanted(node, 1)?, output(node, 0)?);
    floats_alone(edit, &x)?;
    let rank = edit.facts().get(&x).rank().ok_or("the rank of its input is not known")?;
    let first = resolve(node.int("axis", -1), rank).ok_or("its axis is none of its input")?;
    let axes = (first..rank).filter_map(|axis| i64::try_from(axis).ok()).collect();
    let epsilon = edit.float(node.float("epsilon", 1e-5));
    let square = edit.op("Mul", &[&x, &x], &[]);
    let mean = edit.op("ReduceMean", &[&square], &[("axes", Attribute::Ints(axes))]);
    let raised = edit.op("Add", &[&mean, &epsilon], &[]);
    let root = edit.op("Sqrt", &[&raised], &[]);
    let normal = edit.op("Div", &[&x, &root], &[]);
    edit.make("Mul", &[&normal, &scale], &[&y], &[]);
    Ok(())
}

/// Swish (opset 24): x · sigmoid(α · x).
fn swish(edit: &mut Editor<'_>, node: &NodeProto) -> Result<(), String> {
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    floats_alone(edit, &x)?;
    let alpha = edit.float(node.float("alpha", 1.0));
    let scaled = edit.op("Mul", &[&x, &alpha], &[]);
    let gate = edit.op("Sigmoid", &[&scaled], &[]);
    edit.make("Mul", &[&x, &gate], &[&y], &[]);
    Ok(())
}

/// Mod (opset 28), which computes Python's remainder for floats too.
fn modulo(edit: &Editor<'_>, node: &NodeProto) -> Result<(), String> {
    let floats = edit.facts().input(node, 0).elem.is_some_and(elem::is_float);
    if floats && node.int("fmod", 0) == 0 {
        return Err("the older opset divides floats with `fmod` alone".to_owned());
    }
    Ok(())
}

/// Refuses types other than float32: our constants are float32, and types cannot be mixed.
fn floats_alone(edit: &Editor<'_>, x: &str) -> Result<(), String> {
    match edit.facts().get(x).elem {
        Some(elem::FLOAT) | None => Ok(()),
        Some(_) => Err("it is written in the older opset for float32 alone".to_owned()),
    }
}

/// Pad: expands pads of some axes (opset 18) to all.
fn pad(edit: &mut Editor<'_>, node: &mut NodeProto) -> Result<(), String> {
    let Some(axes) = input(node, 3) else { return Ok(()) };
    let axes = edit.facts().get(axes).ints().ok_or("the axes it pads are no constant")?;
    let pads = edit.facts().input(node, 1).ints().ok_or("its pads along some axes are no constant")?;
    let rank = edit.facts().input(node, 0).rank().ok_or("the rank of what it pads is not known")?;
    let mut all = vec![0; rank * 2];
    for (index, axis) in axes.iter().enumerate() {
        let at = resolve(*axis, rank).ok_or("its axes are none of its input")?;
        for (slot, pad) in [(at, pads.get(index)), (at + rank, pads.get(index + axes.len()))] {
            if let (Some(slot), Some(pad)) = (all.get_mut(slot), pad) {
                *slot = *pad;
            }
        }
    }
    let pads = edit.ints(&all);
    if let Some(slot) = node.input.get_mut(1) {
        *slot = pads;
    }
    node.input.truncate(3);
    Ok(())
}

/// Split: computes the sizes of the parts from their number (opset 18).
fn split(edit: &mut Editor<'_>, node: &mut NodeProto) -> Result<(), String> {
    if node.get("num_outputs").is_none() {
        return Ok(());
    }
    unset(node, "num_outputs");
    let x = edit.facts().input(node, 0);
    let rank = x.rank().ok_or("the rank of what it splits is not known")?;
    let at = resolve(node.int("axis", 0), rank).ok_or("its axis is none of its input")?;
    let size = x.dim(at).ok_or("the size it splits is not known")?;
    let count = i64::try_from(node.output.len()).map_err(|_| "it has too many outputs")?;
    if count == 0 {
        return Err("it has no outputs".to_owned());
    }
    let chunk = size / count + i64::from(size % count != 0);
    let sizes: Vec<i64> = (0..count).map(|part| (size - (chunk * part).min(size)).min(chunk)).collect();
    let sizes = edit.ints(&sizes);
    node.input.truncate(1);
    node.input.push(sizes);
    Ok(())
}

/// Reductions: moves axes from an input (opset 18, ReduceSum 13) to an attribute.
fn reduce(edit: &mut Editor<'_>, node: &mut NodeProto) -> Result<(), String> {
    if edit.facts().input(node, 0).elem == Some(elem::BOOL) {
        return Err("the older opset has no truth values here".to_owned());
    }
    let untouched = node.int("noop_with_empty_axes", 0) != 0;
    unset(node, "noop_with_empty_axes");
    let axes = match input(node, 1) {
        None => Vec::new(),
        Some(name) => edit.facts().get(name).ints().ok_or("its axes are no constant")?,
    };
    node.input.truncate(1);
    if !axes.is_empty() {
        set(node, "axes", Attribute::Ints(axes));
    } else if untouched {
        return Err("without axes it does nothing, which the older opset cannot say".to_owned());
    }
    Ok(())
}

/// Resize: expands scales or sizes of some axes (opset 18) to all.
fn resize(edit: &mut Editor<'_>, node: &mut NodeProto) -> Result<(), String> {
    let Some(axes) = node.ints("axes").map(<[i64]>::to_vec) else { return Ok(()) };
    unset(node, "axes");
    let x = edit.facts().input(node, 0);
    let rank = x.rank().ok_or("the rank of what it resizes is not known")?;
    let places: Option<Vec<usize>> = axes.iter().map(|axis| resolve(*axis, rank)).collect();
    let places = places.ok_or("its axes are none of its input")?;
    if input(node, 1).is_some() && node.text("coordinate_transformation_mode") == Some("tf_crop_and_resize") {
        return Err("opset 17 has a roi of all axes".to_owned());
    }
    let (index, all) = if input(node, 2).is_some() {
        let scales = edit.facts().input(node, 2).floats().ok_or("its scales are no constant")?.to_vec();
        let mut all = vec![1.0; rank];
        for (at, scale) in places.iter().zip(scales) {
            if let Some(slot) = all.get_mut(*at) {
                *slot = scale;
            }
        }
        (2, edit.floats(vec![rank], &all))
    } else {
        let Some(Values::Ints(sizes)) = edit.facts().input(node, 3).values.clone() else {
            return Err("its sizes are no constant".to_owned());
        };
        let mut all = edit.facts().input(node, 0).shape.clone().unwrap_or_default();
        for (at, size) in places.iter().zip(sizes) {
            if let Some(slot) = all.get_mut(*at) {
                *slot = size;
            }
        }
        let all = all.into_iter().collect::<Option<Vec<i64>>>().ok_or("the size of its other axes is not known")?;
        (3, edit.ints(&all))
    };
    if let Some(slot) = node.input.get_mut(index) {
        *slot = all;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
