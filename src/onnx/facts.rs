//! Static analysis of a graph: element types, dimensions, and the values of small tensors.
//!
//! `types`, `shapes` and `layout` infer a node's outputs, `values` evaluates the arithmetic of shapes. Nothing is
//! guessed: what no rule covers is unknown, and the file's `value_info` is not trusted.

pub(super) mod layout;
mod shapes;
mod types;
mod values;

use std::collections::HashMap;

use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::{GraphProto, NodeProto, TensorProto, ValueInfoProto, tensor_shape_proto::dimension, type_proto};

use super::attributes::Attributes;
use super::elements;

/// Most elements of a tensor whose values are tracked; larger ones are data, not shapes.
pub(super) const VALUES_LIMIT: usize = 1024;

/// ONNX's numbers of element types (onnx.proto, TensorProto.DataType).
pub(super) mod elem {
    pub(in crate::onnx) const FLOAT: i32 = 1;
    pub(in crate::onnx) const UINT8: i32 = 2;
    pub(in crate::onnx) const INT8: i32 = 3;
    pub(in crate::onnx) const INT32: i32 = 6;
    pub(in crate::onnx) const INT64: i32 = 7;
    pub(in crate::onnx) const BOOL: i32 = 9;
    pub(in crate::onnx) const FLOAT16: i32 = 10;
    pub(in crate::onnx) const DOUBLE: i32 = 11;
    pub(in crate::onnx) const BFLOAT16: i32 = 16;

    /// Whether an element type is floating-point.
    pub(in crate::onnx) fn is_float(elem: i32) -> bool {
        matches!(elem, FLOAT | FLOAT16 | DOUBLE | BFLOAT16)
    }
}

/// Dimensions; `None` if unknown.
pub(super) type Shape = Vec<Option<i64>>;

/// Elements in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values {
    /// Integers and booleans, each known or not: a shape may have a dynamic dimension among fixed ones.
    Ints(Vec<Option<i64>>),
    /// Float32.
    Floats(Vec<f32>),
}

/// The known properties of a tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Fact {
    /// Element type by ONNX's number.
    pub(super) elem: Option<i32>,
    /// Dimensions, if at least the rank is known.
    pub(super) shape: Option<Shape>,
    /// Elements of a small tensor.
    pub(super) values: Option<Values>,
}

impl Fact {
    /// Number of dimensions.
    pub(super) fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }

    /// Size of a dimension, if known.
    pub(super) fn dim(&self, axis: usize) -> Option<i64> {
        self.shape.as_ref()?.get(axis).copied().flatten()
    }

    /// Number of elements, if every dimension is known.
    pub(super) fn count(&self) -> Option<i64> {
        self.shape.as_ref()?.iter().try_fold(1i64, |count, dim| count.checked_mul((*dim)?))
    }

    /// All elements, if they are known integers.
    pub(super) fn ints(&self) -> Option<Vec<i64>> {
        match self.values.as_ref()? {
            Values::Ints(values) => values.iter().copied().collect(),
            Values::Floats(_) => None,
        }
    }

    /// All elements, if they are known float32.
    pub(super) fn floats(&self) -> Option<&[f32]> {
        match self.values.as_ref()? {
            Values::Floats(values) => Some(values),
            Values::Ints(_) => None,
        }
    }

    /// Whether every element is known.
    pub(super) fn is_constant(&self) -> bool {
        match &self.values {
            Some(Values::Ints(values)) => values.iter().all(Option::is_some),
            Some(Values::Floats(_)) => true,
            None => false,
        }
    }
}

static UNKNOWN: Fact = Fact { elem: None, shape: None, values: None };

/// The facts of a graph, nested in those of the outer graph.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    outer: Option<&'a Facts<'a>>,
    known: HashMap<String, Fact>,
    opset: i64,
}

impl<'a> Facts<'a> {
    /// The facts of a graph's inputs and constants.
    pub(super) fn new(graph: &GraphProto, outer: Option<&'a Facts<'a>>, opset: i64) -> Self {
        let mut facts = Self { outer, known: HashMap::new(), opset };
        for input in &graph.input {
            let mut fact = of_value(input);
            // What a loop's body declares need not hold in its second round.
            fact.shape = fact.shape.filter(|_| outer.is_none());
            facts.known.insert(input.name.clone(), fact);
        }
        for sparse in &graph.sparse_initializer {
            facts.known.insert(sparse.values.name.clone(), Fact::default());
        }
        for tensor in &graph.initializer {
            facts.constant(tensor);
        }
        facts
    }

    /// Version of the default operator set.
    pub(super) fn opset(&self) -> i64 {
        self.opset
    }

    /// The fact about a tensor.
    pub(super) fn get(&self, name: &str) -> &Fact {
        let mut facts = self;
        loop {
            if let Some(fact) = facts.known.get(name) {
                return fact;
            }
            match facts.outer {
                Some(outer) => facts = outer,
                None => return &UNKNOWN,
            }
        }
    }

    /// Whether a tensor with this name exists.
    pub(super) fn has(&self, name: &str) -> bool {
        self.known.contains_key(name) || self.outer.is_some_and(|outer| outer.has(name))
    }

    /// The fact about a node's input.
    pub(super) fn input(&self, node: &NodeProto, index: usize) -> &Fact {
        node.input.get(index).map_or(&UNKNOWN, |name| self.get(name))
    }

    /// Adds a constant.
    pub(super) fn constant(&mut self, tensor: &TensorProto) {
        self.known.insert(tensor.name.clone(), of_tensor(tensor));
    }

    /// Adds the facts about a node's outputs.
    pub(super) fn follow(&mut self, node: &NodeProto) {
        let found = self.outputs(node);
        for (name, fact) in node.output.iter().zip(found).filter(|(name, _)| !name.is_empty()) {
            self.known.insert(name.clone(), fact);
        }
    }

    fn outputs(&self, node: &NodeProto) -> Vec<Fact> {
        let count = node.output.len();
        if !node.is_standard() {
            return vec![Fact::default(); count];
        }
        let inputs: Vec<&Fact> = node.input.iter().map(|name| self.get(name)).collect();
        let mut shapes = shapes::of(node, &inputs, self.opset).into_iter();
        let mut elems = types::elems(node, &inputs).into_iter();
        let mut values = values::of(node, &inputs).into_iter();
        (0..count)
            .map(|_| {
                let elem = elems.next().flatten();
                let shape = shapes.next().flatten();
                // A size below zero is a mistake of the file, and no size.
                let sizes =
                    |shape: Shape| -> Shape { shape.into_iter().map(|dim| dim.filter(|size| *size >= 0)).collect() };
                let mut fact = Fact { elem, shape: shape.map(sizes), values: values.next().flatten() };
                // Values come with a shape that holds as many, or they are of no use.
                let fits =
                    |len: usize| fact.count().is_some_and(|count| usize::try_from(count).is_ok_and(|c| c == len));
                // What wraps around at run time was not reckoned as it does.
                let narrow = |ints: &[Option<i64>]| {
                    elem != Some(elem::INT32) || ints.iter().flatten().all(|value| i32::try_from(*value).is_ok())
                };
                let sound = match &fact.values {
                    Some(Values::Ints(ints)) => fits(ints.len()) && !elem.is_none_or(elem::is_float) && narrow(ints),
                    Some(Values::Floats(floats)) => fits(floats.len()) && elem == Some(elem::FLOAT),
                    None => true,
                };
                if !sound {
                    fact.values = None;
                }
                fact
            })
            .collect()
    }
}

/// The fact in an input's declaration.
fn of_value(value: &ValueInfoProto) -> Fact {
    let Some(type_proto::Value::TensorType(tensor)) = value.type_.as_ref().and_then(|type_| type_.value.as_ref())
    else {
        return Fact::default();
    };
    let dim = |dim: &onnx_protobuf::tensor_shape_proto::Dimension| match dim.value {
        Some(dimension::Value::DimValue(size)) if size >= 0 => Some(size),
        _ => None,
    };
    let shape = tensor.shape.as_ref().map(|shape| shape.dim.iter().map(dim).collect());
    Fact { elem: Some(tensor.elem_type).filter(|elem| *elem != 0), shape, values: None }
}

/// The fact about a constant.
pub(super) fn of_tensor(tensor: &TensorProto) -> Fact {
    let shape: Shape = tensor.dims.iter().copied().map(Some).collect();
    Fact { elem: Some(tensor.data_type), shape: Some(shape), values: tensor_values(tensor) }
}

/// The elements of a small constant without external data.
fn tensor_values(tensor: &TensorProto) -> Option<Values> {
    let count = usize::try_from(elements(tensor)?).ok().filter(|count| *count <= VALUES_LIMIT)?;
    if tensor.data_location.enum_value_or_default() == DataLocation::EXTERNAL {
        return None;
    }
    let raw = tensor.raw_data.as_slice();
    fn words<const N: usize, T>(raw: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
        raw.chunks_exact(N).filter_map(|word| word.try_into().ok()).map(read).collect()
    }
    let narrow = || tensor.int32_data.iter().map(|value| i64::from(*value)).collect::<Vec<i64>>();
    let ints: Vec<i64> = match tensor.data_type {
        elem::FLOAT => {
            let floats = if raw.is_empty() { tensor.float_data.clone() } else { words(raw, f32::from_le_bytes) };
            return (floats.len() == count).then_some(Values::Floats(floats));
        }
        elem::INT64 if raw.is_empty() => tensor.int64_data.clone(),
        elem::INT64 => words(raw, i64::from_le_bytes),
        elem::INT32 if raw.is_empty() => narrow(),
        elem::INT32 => words(raw, i32::from_le_bytes).into_iter().map(i64::from).collect(),
        elem::BOOL if raw.is_empty() => narrow().into_iter().map(|value| i64::from(value != 0)).collect(),
        elem::BOOL => raw.iter().map(|value| i64::from(*value != 0)).collect(),
        elem::UINT8 if raw.is_empty() => narrow(),
        elem::UINT8 => raw.iter().map(|value| i64::from(*value)).collect(),
        elem::INT8 if raw.is_empty() => narrow(),
        elem::INT8 => words(raw, i8::from_le_bytes).into_iter().map(i64::from).collect(),
        _ => return None,
    };
    (ints.len() == count).then(|| Values::Ints(ints.into_iter().map(Some).collect()))
}

/// A fact as a constant of the file; `None` unless it is known in full.
pub(super) fn to_tensor(name: &str, fact: &Fact) -> Option<TensorProto> {
    let elem = fact.elem?;
    let dims: Vec<i64> = fact.shape.as_ref()?.iter().copied().collect::<Option<_>>()?;
    let raw_data: Vec<u8> = match (fact.values.as_ref()?, elem) {
        (Values::Floats(values), elem::FLOAT) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        (Values::Ints(_), elem::INT64) => fact.ints()?.iter().flat_map(|value| value.to_le_bytes()).collect(),
        (Values::Ints(_), elem::INT32) => {
            let narrow: Vec<i32> = fact.ints()?.into_iter().map(|v| i32::try_from(v).ok()).collect::<Option<_>>()?;
            narrow.iter().flat_map(|value| value.to_le_bytes()).collect()
        }
        (Values::Ints(_), elem::BOOL) => fact.ints()?.iter().map(|value| u8::from(*value != 0)).collect(),
        (Values::Ints(_), elem::UINT8) => {
            fact.ints()?.into_iter().map(|value| u8::try_from(value).ok()).collect::<Option<_>>()?
        }
        _ => return None,
    };
    Some(TensorProto { name: name.to_owned(), dims, data_type: elem, raw_data, ..TensorProto::default() })
}

#[cfg(test)]
mod tests;
