//! Fixes dynamic dimensions (engines with static shapes are 20 to 30 % faster than those with a range), and writes
//! kernel shapes explicitly.

use std::collections::{BTreeMap, HashMap};

use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension::Value};
use onnx_protobuf::{AttributeProto, ModelProto, NodeProto, ValueInfoProto, type_proto};

use super::Model;

fn dims(value: &mut ValueInfoProto) -> Option<&mut Vec<Dimension>> {
    match value.type_.as_mut()?.value.as_mut()? {
        type_proto::Value::TensorType(tensor) => Some(&mut tensor.shape.as_mut()?.dim),
        _ => None,
    }
}

/// Whether a dimension's symbol stands for an unknown size, which exporters write for several different ones
/// (Paddle2ONNX `?`, tf2onnx `unk__17`, others Python's None).
fn is_unknown(symbol: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    matches!(symbol.trim(), "" | "?" | "None" | "none" | "null" | "-1")
        || symbol.strip_prefix("unk__").is_some_and(digits)
}

impl Model {
    /// The symbol of a dynamic dimension of an input, if it has one.
    pub fn symbol(&self, input: &str, axis: usize) -> Option<&str> {
        let value = self.proto.graph.input.iter().find(|value| value.name == input)?;
        let Some(type_proto::Value::TensorType(tensor)) = &value.type_.value else { return None };
        match &tensor.shape.dim.get(axis)?.value {
            Some(Value::DimParam(symbol)) if !is_unknown(symbol) => Some(symbol),
            _ => None,
        }
    }
}

/// Sets the shape of each named input, where `None` keeps the model's dimension. A symbolic dimension ("N") gets the
/// same value everywhere in the model; one without a symbol only where the recipe sets it.
pub(super) fn fix(model: &mut ModelProto, shapes: &BTreeMap<String, Vec<Option<usize>>>) -> Result<(), String> {
    let graph = model.graph.as_mut().ok_or("no graph")?;
    let mut symbols: HashMap<String, usize> = HashMap::new();
    for (name, shape) in shapes {
        let input = graph.input.iter_mut().find(|input| input.name == *name);
        let input = input.ok_or_else(|| format!("has no input `{name}`"))?;
        let dims = dims(input).ok_or_else(|| format!("input `{name}` has no shape"))?;
        if dims.len() != shape.len() {
            return Err(format!("input `{name}` has {} dimensions, the recipe gives {}", dims.len(), shape.len()));
        }
        for (axis, (dim, size)) in dims.iter_mut().zip(shape).enumerate() {
            let Some(size) = size else {
                match &dim.value {
                    Some(Value::DimValue(fixed)) if *fixed > 0 => {
                        return Err(format!(
                            "input `{name}`: dimension {axis} is {fixed} in the model, a range in the recipe"
                        ));
                    }
                    Some(Value::DimParam(symbol)) if is_unknown(symbol) => dim.value = None,
                    _ => {}
                }
                continue;
            };
            match &dim.value {
                Some(Value::DimValue(fixed)) if usize::try_from(*fixed).is_ok_and(|fixed| fixed == *size) => {}
                Some(Value::DimValue(fixed)) if *fixed > 0 => {
                    return Err(format!(
                        "input `{name}`: dimension {axis} is {fixed} in the model, {size} in the recipe"
                    ));
                }
                Some(Value::DimParam(symbol)) if is_unknown(symbol) => {}
                Some(Value::DimParam(symbol)) => match symbols.insert(symbol.clone(), *size) {
                    Some(other) if other != *size => {
                        return Err(format!("dimension `{symbol}` would be both {other} and {size}"));
                    }
                    _ => {}
                },
                _ => {}
            }
            dim.value = Some(Value::DimValue(i64::try_from(*size).map_err(|_| "shape too large")?));
        }
    }
    let others = graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info);
    for dim in others.filter_map(dims).flatten() {
        let Some(Value::DimParam(symbol)) = &dim.value else { continue };
        if let Some(size) = symbols.get(symbol) {
            dim.value = Some(Value::DimValue(i64::try_from(*size).map_err(|_| "shape too large")?));
        } else if is_unknown(symbol) {
            // TensorRT takes dimensions of one name for equal.
            dim.value = None;
        }
    }
    Ok(())
}

/// Reverses the dimensions of each named input, and transposes it for its readers.
pub(super) fn transpose_inputs(model: &mut ModelProto, names: &[&str]) {
    let Some(graph) = model.graph.as_mut() else { return };
    let mut turns = Vec::new();
    for input in graph.input.iter_mut().filter(|input| names.contains(&input.name.as_str())) {
        let name = std::mem::take(&mut input.name);
        input.name = format!("{name}.transposed");
        if let Some(dims) = dims(input) {
            dims.reverse();
        }
        // Without `perm`, Transpose reverses.
        let (input, op_type) = (vec![input.name.clone()], "Transpose".to_owned());
        turns.push(NodeProto { input, output: vec![name], op_type, ..NodeProto::default() });
    }
    graph.node.splice(0..0, turns);
}

/// Adds the optional `kernel_shape` to convolutions, "inferred from input W if not present" (ONNX, Conv), which rten
/// cannot infer. Returns whether any was missing.
pub(super) fn make_kernel_shapes_explicit(model: &mut ModelProto) -> bool {
    let Some(graph) = model.graph.as_mut() else { return false };
    let weights: HashMap<&str, &[i64]> =
        graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor.dims.as_slice())).collect();
    let mut changed = false;
    for node in graph.node.iter_mut().filter(|node| matches!(node.op_type.as_str(), "Conv" | "ConvTranspose")) {
        let missing = node.attribute.iter().all(|attribute| attribute.name != "kernel_shape");
        // W is (out channels, in channels / groups, spatial…).
        let spatial = node.input.get(1).and_then(|name| weights.get(name.as_str())?.get(2..));
        if let Some(spatial) = spatial.filter(|_| missing) {
            node.attribute.push(AttributeProto {
                name: "kernel_shape".to_owned(),
                type_: AttributeType::INTS.into(),
                ints: spatial.to_vec(),
                ..AttributeProto::default()
            });
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use onnx_protobuf::{GraphProto, TensorShapeProto};

    fn value(name: &str, dims: &[&str]) -> ValueInfoProto {
        let dim =
            |symbol: &&str| Dimension { value: Some(Value::DimParam((*symbol).to_owned())), ..Default::default() };
        let shape = TensorShapeProto { dim: dims.iter().map(dim).collect(), ..Default::default() };
        let tensor = type_proto::Tensor { elem_type: 1, shape: Some(shape).into(), ..Default::default() };
        let type_ =
            onnx_protobuf::TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
        ValueInfoProto { name: name.to_owned(), type_: Some(type_).into(), ..Default::default() }
    }

    fn fixed(inputs: &[(&str, &[&str])], output: &[&str]) -> ModelProto {
        let graph = GraphProto {
            input: inputs.iter().map(|(name, dims)| value(name, dims)).collect(),
            output: vec![value("y", output)],
            ..Default::default()
        };
        ModelProto { graph: Some(graph).into(), ..Default::default() }
    }

    /// Sizes of a value, -1 for dynamic dimensions.
    fn sizes(value: &mut ValueInfoProto) -> Vec<i64> {
        let size = |dim: &Dimension| match &dim.value {
            Some(Value::DimValue(size)) => *size,
            Some(Value::DimParam(symbol)) => panic!("`{symbol}` is left"),
            None | Some(_) => -1,
        };
        dims(value).unwrap().iter().map(size).collect()
    }

    #[test]
    fn a_range_leaves_a_dimension_open() {
        let mut model = fixed(&[("x", &["N", "time", "?"])], &["N", "time"]);
        fix(&mut model, &[("x".to_owned(), vec![Some(1), None, None])].into()).unwrap();
        let graph = model.graph.as_mut().unwrap();
        let left = |value: &mut ValueInfoProto| dims(value).unwrap().iter().map(|dim| dim.value.clone()).collect();
        let time = || Some(Value::DimParam("time".to_owned()));
        let (input, output): (Vec<_>, Vec<_>) = (left(&mut graph.input[0]), left(&mut graph.output[0]));
        assert_eq!(input, [Some(Value::DimValue(1)), time(), None]);
        assert_eq!(output, [Some(Value::DimValue(1)), time()]);
        let error = fix(&mut model, &[("x".to_owned(), vec![None, None, None])].into()).unwrap_err();
        assert_eq!(error, "input `x`: dimension 0 is 1 in the model, a range in the recipe");
    }

    #[test]
    fn what_has_no_name_is_no_symbol() {
        for unknown in ["?", "", "None", "unk__1", "-1"] {
            let mut model = fixed(&[("x", &["N", unknown, unknown])], &["N", unknown]);
            fix(&mut model, &[("x".to_owned(), [2, 48, 192].map(Some).to_vec())].into()).unwrap();
            let graph = model.graph.as_mut().unwrap();
            assert_eq!(sizes(&mut graph.input[0]), [2, 48, 192], "{unknown}");
            assert_eq!(sizes(&mut graph.output[0]), [2, -1], "{unknown}");
        }
        for name in ["N", "width", "unk__", "??"] {
            let mut model = fixed(&[("x", &[name, name])], &[name]);
            let error = fix(&mut model, &[("x".to_owned(), [48, 192].map(Some).to_vec())].into()).unwrap_err();
            assert_eq!(error, format!("dimension `{name}` would be both 48 and 192"));
        }
        let proto = fixed(&[("x", &["N", "?"])], &["N"]);
        let model = Model { path: "g.onnx".into(), proto };
        assert_eq!(
            [("x", 0), ("x", 1), ("x", 2), ("y", 0)].map(|(name, axis)| model.symbol(name, axis)),
            [Some("N"), None, None, None]
        );
    }
}
