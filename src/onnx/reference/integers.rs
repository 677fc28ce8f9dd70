//! int64, which rten represents as int32: constants that do not fit are refused, and sums and products are checked
//! after a run.

use std::collections::HashSet;

use onnx_protobuf::{NodeProto, TensorProto, tensor_proto::DataLocation};

use crate::onnx::attributes::Attributes;
use crate::onnx::editor::Editor;
use crate::onnx::facts::{Facts, elem};

/// An additional output that tells after a run whether an int64 result exceeded int32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Name of the output: the largest absolute value, a float32 scalar.
    pub output: String,
    /// Label of the node with that result, for messages.
    pub node: String,
}

/// Value of a [`Guard`] that counts as overflow: a little below 2³¹, since it was computed in float32.
pub const GUARD_LIMIT: f32 = 2_147_400_000.0;

/// Inputs for which rten's clamping to int32 does not change the meaning: bounds for "to the end", "all" and "for
/// ever".
const NEAREST_WILL_DO: &[(&str, &[usize])] =
    &[("Slice", &[1, 2]), ("NonMaxSuppression", &[2]), ("Clip", &[1, 2]), ("Loop", &[0])];

/// Constants that hold what no int32 does.
#[derive(Debug, Default)]
pub(super) struct Wide(HashSet<String>);

impl Wide {
    /// Those of a graph.
    pub(super) fn add(&mut self, constants: &[TensorProto]) {
        self.0.extend(constants.iter().filter(|tensor| is_wide(tensor)).map(|tensor| tensor.name.clone()));
    }

    /// Refuses a node that computes with one.
    pub(super) fn check(&self, node: &NodeProto) -> Result<(), String> {
        let tensors = node.attribute.iter().filter_map(|attribute| attribute.t.as_ref());
        let listed = ["value_int", "value_ints"].iter().filter_map(|name| node.get(name));
        let mut numbers = listed.flat_map(|attribute| attribute.ints.iter().copied().chain([attribute.i]));
        if tensors.into_iter().any(is_wide) || numbers.any(|value| !fits(value)) {
            return Err("its int64 value does not fit the int32 that is computed in".to_owned());
        }
        if self.0.is_empty() {
            return Ok(());
        }
        let harmless = NEAREST_WILL_DO.iter().find(|(op, _)| *op == node.op_type);
        let harmless = |at: usize| harmless.is_some_and(|(_, inputs)| inputs.contains(&at));
        let mut inputs = node.input.iter().enumerate().filter(|(at, _)| !harmless(*at));
        match inputs.find(|(_, name)| self.0.contains(name.as_str())) {
            Some((_, name)) => Err(format!("int64 values of `{name}` do not fit the int32 that is computed in")),
            None => Ok(()),
        }
    }
}

fn fits(value: i64) -> bool {
    i32::try_from(value).is_ok()
}

fn is_wide(tensor: &TensorProto) -> bool {
    if tensor.data_type != elem::INT64 || tensor.data_location.enum_value_or_default() == DataLocation::EXTERNAL {
        return false;
    }
    let words = tensor.raw_data.chunks_exact(8).filter_map(|word| word.try_into().ok());
    words.map(i64::from_le_bytes).chain(tensor.int64_data.iter().copied()).any(|value| !fits(value))
}

/// Whether a node can produce an int64 beyond int32 from inputs within it.
pub(super) fn may_overflow(node: &NodeProto, facts: &Facts<'_>) -> bool {
    if !node.is_standard() {
        return false;
    }
    let integers = |index: usize| facts.input(node, index).elem == Some(elem::INT64);
    // Numbers that shapes are reckoned with are bounded by memory.
    let known = node.input.iter().all(|name| facts.get(name).values.is_some());
    match node.op_type.as_str() {
        "Add" | "Sub" | "Mul" | "Pow" => integers(0) && !known,
        "Sum" | "ReduceSum" | "ReduceProd" | "CumSum" => integers(0) && !known,
        "Cast" => {
            let from_float = facts.input(node, 0).elem.is_some_and(elem::is_float);
            from_float && node.int("to", 0) == i64::from(elem::INT64) && !known
        }
        _ => false,
    }
}

/// Repeats the node's arithmetic in float32, and takes the largest absolute value; returns its name.
pub(super) fn watch(edit: &mut Editor<'_>, node: &NodeProto) -> String {
    let numbers = match node.op_type.as_str() {
        "ReduceSum" | "ReduceProd" | "CumSum" | "Cast" => 1,
        _ => node.input.len(),
    };
    let mut inputs = Vec::new();
    for (index, name) in node.input.iter().enumerate() {
        let number = index < numbers && !name.is_empty();
        inputs.push(if number { edit.cast(name, elem::FLOAT) } else { name.clone() });
    }
    let value = match node.op_type.as_str() {
        "Cast" => inputs.first().cloned().unwrap_or_default(),
        op => {
            let output = edit.fresh(op);
            let name = edit.fresh("watched");
            edit.push(NodeProto { name, input: inputs, output: vec![output.clone()], ..node.clone() });
            output
        }
    };
    let size = edit.op("Abs", &[&value], &[]);
    edit.op("ReduceMax", &[&size], &[("keepdims", 0.into())])
}
