//! Chooses the type of each node's arithmetic.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use half::f16;
use onnx_protobuf::{NodeProto, TensorProto};

use super::{Half, Type, weights};
use crate::onnx::{Model, OnnxError, elem_type};
use crate::tensor::DType;

/// Element-wise operators, with or without broadcasting, which are as precise as their inputs.
const POINTWISE: &[&str] = &[
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Neg",
    "Abs",
    "Min",
    "Max",
    "Sum",
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Elu",
    "Selu",
    "Celu",
    "ThresholdedRelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Swish",
    "Mish",
    "Tanh",
    "Softsign",
    "Erf",
    "Gelu",
    "Clip",
    "Where",
];
/// Operators that copy or select values without arithmetic.
const MOVEMENT: &[&str] = &[
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Slice",
    "Split",
    "Concat",
    "Gather",
    "GatherElements",
    "GatherND",
    "Expand",
    "Tile",
    "Pad",
    "Identity",
    "Dropout",
    "DepthToSpace",
    "SpaceToDepth",
    "MaxPool",
    "Resize",
    "Upsample",
];
/// Fewest weights of a convolution that counts as a layer; one with fewer is a weighted mean, as in a detector's box
/// decoding.
const LAYER_WEIGHTS: usize = 64;

/// Whether the operator benefits from half precision.
pub(super) fn is_product(op: &str) -> bool {
    matches!(op, "Conv" | "ConvTranspose" | "MatMul" | "Gemm")
}

/// The types chosen.
pub(super) struct Assigned {
    /// Type of each node, in order.
    pub(super) nodes: Vec<Type>,
    /// Names of float32 tensors.
    pub(super) floats: HashSet<String>,
}

impl Model {
    pub(super) fn assign(&self, half: &Half) -> Result<Assigned, OnnxError> {
        let float = elem_type(DType::Float32) as i32;
        let types = self.element_types()?;
        let is_float = |name: &String| types.get(name) == Some(&float);
        let nodes = &self.proto.graph.node;
        let initializers: HashMap<&str, &TensorProto> =
            self.proto.graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        let mut assigned = Vec::with_capacity(nodes.len());
        let tail = tail(nodes, &initializers);
        for (node, tail) in nodes.iter().zip(tail) {
            let op = node.op_type.as_str();
            let known = is_product(op) || POINTWISE.contains(&op) || MOVEMENT.contains(&op);
            let constants = node.input.iter().filter_map(|input| initializers.get(input.as_str()).copied());
            assigned.push(if !node.input.iter().chain(&node.output).any(is_float) {
                Type::Other
            } else if !known || tail || half.keep.contains(&node.name) || !fits(self.path(), half, constants, float) {
                Type::Full
            } else {
                Type::Half
            });
        }
        spread(nodes, &mut assigned, &|name: &String| is_float(name) && !initializers.contains_key(name.as_str()));
        let floats = types.iter().filter(|(_, type_)| **type_ == float).map(|(name, _)| name.clone()).collect();
        Ok(Assigned { nodes: assigned, floats })
    }

    /// Element type of every tensor, by the rules of operators that change it.
    fn element_types(&self) -> Result<HashMap<String, i32>, OnnxError> {
        let graph = &self.proto.graph;
        let number = |dtype: DType| elem_type(dtype) as i32;
        let mut types: HashMap<String, i32> =
            graph.initializer.iter().map(|tensor| (tensor.name.clone(), tensor.data_type)).collect();
        for input in self.inputs()? {
            types.insert(input.name, number(input.dtype));
        }
        for node in &graph.node {
            let attribute = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name);
            if node.attribute.iter().any(|attribute| attribute.g.is_some()) {
                let message = format!("node '{}' ({}) holds a graph of its own", node.name, node.op_type);
                return Err(self
                    .fail(format!("{message}, which half precision does not reach"))
                    .with_help("use `precision: fp32`"));
            }
            let input = |index: usize| node.input.get(index).and_then(|name| types.get(name)).copied();
            let float = number(DType::Float32);
            let type_ = match node.op_type.as_str() {
                "Shape" | "Size" | "NonZero" | "ArgMax" | "ArgMin" => number(DType::Int64),
                "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "And" | "Or" | "Not" | "Xor"
                | "IsNaN" | "IsInf" => number(DType::Bool),
                "Cast" => attribute("to").map_or(float, |to| i32::try_from(to.i).unwrap_or(float)),
                "Constant" | "ConstantOfShape" => {
                    attribute("value").and_then(|value| value.t.as_ref()).map_or(float, |tensor| tensor.data_type)
                }
                "Where" => input(1).unwrap_or(float),
                _ => input(0).unwrap_or(float),
            };
            types.extend(node.output.iter().map(|output| (output.clone(), type_)));
        }
        let halves = [number(DType::Float16), number(DType::BFloat16)];
        if let Some((name, _)) = types.iter().find(|(_, type_)| halves.contains(type_)) {
            let message = format!("`{name}` is in half precision already");
            return Err(self.fail(message).with_help("use `precision: fp32`, which keeps the model's own types"));
        }
        Ok(types)
    }
}

/// Whether half precision can represent all float constants.
fn fits<'a>(model: &Path, half: &Half, mut constants: impl Iterator<Item = &'a TensorProto>, float: i32) -> bool {
    half.dtype == DType::BFloat16
        || constants.all(|tensor| {
            tensor.data_type != float
                || weights::values(model, tensor)
                    .is_ok_and(|values| values.iter().all(|value| value.abs() <= f16::MAX.to_f32()))
        })
}

/// For each node, whether no layer comes after it.
fn tail(nodes: &[NodeProto], initializers: &HashMap<&str, &TensorProto>) -> Vec<bool> {
    let mut before_a_layer: HashSet<&str> = HashSet::new();
    let mut tail = vec![false; nodes.len()];
    for (index, node) in nodes.iter().enumerate().rev() {
        let weights = node.input.get(1).and_then(|name| initializers.get(name.as_str()));
        let elements = weights.map(|tensor| tensor.dims.iter().product::<i64>());
        let small = elements.is_some_and(|count| usize::try_from(count).is_ok_and(|count| count <= LAYER_WEIGHTS));
        let layer = is_product(&node.op_type) && !(small && node.op_type == "Conv");
        let leads = node.output.iter().any(|output| before_a_layer.contains(output.as_str()));
        if layer || leads {
            before_a_layer.extend(node.input.iter().map(String::as_str));
        }
        tail[index] = !layer && !leads;
    }
    tail
}

/// Extends the float32 region: forwards to nodes that continue its arithmetic (the rest of a normalisation), and
/// backwards to nodes that only it reads (the scores of a softmax).
fn spread(nodes: &[NodeProto], assigned: &mut [Type], is_float: &dyn Fn(&String) -> bool) {
    let mut full: HashSet<&str> = HashSet::new();
    for (node, type_) in nodes.iter().zip(assigned.iter_mut()) {
        let pointwise = POINTWISE.contains(&node.op_type.as_str());
        if *type_ == Type::Half && pointwise && node.input.iter().any(|input| full.contains(input.as_str())) {
            *type_ = Type::Full;
        }
        if *type_ == Type::Full && !is_product(&node.op_type) {
            full.extend(node.output.iter().filter(|output| is_float(output)).map(String::as_str));
        }
    }
    let mut wanted_in_half: HashSet<&str> = HashSet::new();
    let mut read: HashSet<&str> = HashSet::new();
    for (node, type_) in nodes.iter().zip(assigned.iter_mut()).rev() {
        let outputs = || node.output.iter().map(String::as_str);
        let only_full =
            outputs().any(|output| read.contains(output)) && !outputs().any(|output| wanted_in_half.contains(output));
        if *type_ == Type::Half && !is_product(&node.op_type) && only_full {
            *type_ = Type::Full;
        }
        read.extend(node.input.iter().map(String::as_str));
        if *type_ == Type::Half {
            wanted_in_half.extend(node.input.iter().map(String::as_str));
        }
    }
}
