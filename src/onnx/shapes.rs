//! Dynamic dimensions to fixed ones. Engines with static shapes are 20 to 30 % faster than those with a range.

use std::collections::{BTreeMap, HashMap};

use onnx_protobuf::tensor_shape_proto::{Dimension, dimension::Value};
use onnx_protobuf::{ModelProto, ValueInfoProto, type_proto};

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
        let input = graph.input.iter_mut().find(|input| input.name.as_str() == name);
        let input = input.ok_or_else(|| format!("has no input `{name}`"))?;
        let dims = dims(input).ok_or_else(|| format!("input `{name}` has no shape"))?;
        if dims.len() != shape.len() {
            return Err(format!("input `{name}` has {} dimensions, the recipe gives {}", dims.len(), shape.len()));
        }
        for (axis, (dim, size)) in dims.iter_mut().zip(shape).enumerate() {
            match &dim.value {
                Some(Value::DimValue(fixed)) if usize::try_from(*fixed).is_ok_and(|fixed| fixed == *size) => {}
                Some(Value::DimValue(fixed)) if *fixed > 0 => {
                    return Err(format!("input `{name}`: dimension {axis} is {fixed} in the model, {size} in the recipe"));
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
