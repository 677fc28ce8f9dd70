//! Dynamic dimensions to fixed ones (engines with static shapes are 20 to 30 % faster than those with a range), and
//! kernel shapes spelled out.

use std::collections::{BTreeMap, HashMap};

use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension::Value};
use onnx_protobuf::{AttributeProto, ModelProto, NodeProto, ValueInfoProto, type_proto};

fn dims(value: &mut ValueInfoProto) -> Option<&mut Vec<Dimension>> {
    match value.type_.as_mut()?.value.as_mut()? {
        type_proto::Value::TensorType(tensor) => Some(&mut tensor.shape.as_mut()?.dim),
        _ => None,
    }
}

/// Gives each named input its shape. A symbolic dimension ("N") takes the same value wherever the model names it.
pub(super) fn fix(model: &mut ModelProto, shapes: &BTreeMap<String, Vec<usize>>) -> Result<(), String> {
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
            match &dim.value {
                Some(Value::DimValue(fixed)) if usize::try_from(*fixed).is_ok_and(|fixed| fixed == *size) => {}
                Some(Value::DimValue(fixed)) if *fixed > 0 => {
                    return Err(format!(
                        "input `{name}`: dimension {axis} is {fixed} in the model, {size} in the recipe"
                    ));
                }
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
        if let Some(Value::DimParam(symbol)) = &dim.value
            && let Some(size) = symbols.get(symbol)
        {
            dim.value = Some(Value::DimValue(i64::try_from(*size).map_err(|_| "shape too large")?));
        }
    }
    Ok(())
}

/// Reverses the dimensions of each named input, and turns it back for whoever reads it.
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

/// Gives convolutions their optional `kernel_shape`, "inferred from input W if not present" (ONNX, Conv): rten cannot
/// infer it. Returns whether anything was missing.
pub(super) fn spell_out_kernels(model: &mut ModelProto) -> bool {
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
