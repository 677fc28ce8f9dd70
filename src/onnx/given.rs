//! Constant values that a recipe gives to inputs, set before constants are folded.

use std::collections::BTreeMap;

use half::f16;
use onnx_protobuf::TensorProto;

use super::{Model, OnnxError, elem_type};
use crate::tensor::{DType, Tensor, TensorData, TensorSpec, element_count};

/// Most elements of a value; larger ones are data.
const ELEMENTS_LIMIT: usize = 1 << 20;

/// Value of an input: one number for all elements, or one per element in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub enum Given {
    /// Integers and booleans.
    Wholes(Vec<i64>),
    /// Floats.
    Floats(Vec<f64>),
}

impl Given {
    fn len(&self) -> usize {
        match self {
            Given::Wholes(values) => values.len(),
            Given::Floats(values) => values.len(),
        }
    }
}

impl Model {
    /// Replaces inputs by constants.
    pub fn give_values(&mut self, values: &BTreeMap<String, Given>) -> Result<(), OnnxError> {
        for (name, value) in values {
            let inputs = self.inputs()?;
            let Some(spec) = inputs.iter().find(|input| input.name == *name) else {
                let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
                return Err(self.fail(format!("`inputs:` gives `{name}` a value; the model's inputs are {names:?}")));
            };
            let tensor =
                tensor(spec, value).map_err(|why| self.fail(format!("the value of `inputs: {name}`: {why}")))?;
            let constant = TensorProto {
                name: name.clone(),
                dims: tensor.shape().iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect(),
                data_type: elem_type(tensor.dtype()) as i32,
                raw_data: tensor.bytes().to_vec(),
                ..TensorProto::default()
            };
            if let Some(graph) = self.proto.graph.as_mut() {
                graph.input.retain(|input| input.name != *name);
                graph.initializer.push(constant);
                // Before version 4 every constant had to be an input too.
                self.proto.ir_version = self.proto.ir_version.max(4);
            }
        }
        if !values.is_empty() && self.inputs()?.is_empty() {
            let message = "`inputs:` gives every input a value: the model would always compute the same, and take \
                           nothing to run on";
            return Err(self.fail(message).with_help("leave out the input that changes from run to run"));
        }
        Ok(())
    }
}

fn tensor(spec: &TensorSpec, value: &Given) -> Result<Tensor, String> {
    let shape: Vec<usize> = match spec.shape.as_slice() {
        [None] => vec![value.len()],
        dims => dims.iter().map(|dim| dim.unwrap_or(1)).collect(),
    };
    let count = element_count(&shape).filter(|count| *count <= ELEMENTS_LIMIT).ok_or("the input is too large")?;
    let spread = match value.len() {
        1 => count,
        len if len == count => 1,
        len => return Err(format!("{len} numbers for {spec}, which has {count}")),
    };
    let data = data(spec.dtype, value).ok_or_else(|| format!("{value:?} is no {}", spec.dtype))?;
    Tensor::new(shape, data.repeated(spread)).ok_or_else(|| format!("{value:?} is no {spec}"))
}

/// The numbers in the input's type, if it can represent them.
fn data(dtype: DType, value: &Given) -> Option<TensorData> {
    fn narrow<T: TryFrom<i64>>(values: &[i64]) -> Option<Vec<T>> {
        values.iter().map(|value| T::try_from(*value).ok()).collect()
    }
    let floats = || -> Vec<f64> {
        match value {
            Given::Wholes(values) => values.iter().map(|value| *value as f64).collect(),
            Given::Floats(values) => values.clone(),
        }
    };
    let Given::Wholes(wholes) = value else {
        return match dtype {
            DType::Float32 => Some(TensorData::F32(floats().into_iter().map(|value| value as f32).collect())),
            DType::Float16 => Some(TensorData::F16(floats().into_iter().map(f16::from_f64).collect())),
            _ => None,
        };
    };
    Some(match dtype {
        DType::Float32 => TensorData::F32(floats().into_iter().map(|value| value as f32).collect()),
        DType::Float16 => TensorData::F16(floats().into_iter().map(f16::from_f64).collect()),
        DType::Int8 => TensorData::I8(narrow(wholes)?),
        DType::UInt8 => TensorData::U8(narrow(wholes)?),
        DType::Int32 => TensorData::I32(narrow(wholes)?),
        DType::Int64 => TensorData::I64(wholes.clone()),
        DType::Bool => {
            TensorData::Bool(narrow(wholes).filter(|values: &Vec<u8>| values.iter().all(|value| *value < 2))?)
        }
        DType::BFloat16 => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::onnx::{Attribute, GraphBuilder};

    fn branch(op: &str) -> Attribute {
        let mut graph = GraphBuilder::new("branch", 17);
        graph.node_named(op, &["x"], &["made"], &[]);
        graph.output("made", DType::Float32, &[Some(2)]);
        graph.subgraph()
    }

    /// A model that branches on the sampling rate, as voice activity detectors do.
    fn model() -> Model {
        let mut graph = GraphBuilder::new("g", 17);
        graph.input("x", DType::Float32, &[Some(2)]);
        graph.input("sr", DType::Int64, &[]);
        graph.input("list", DType::Float32, &[None]);
        let rate = graph.initializer("rate", &Tensor::new(vec![], TensorData::I64(vec![16_000])).unwrap());
        let fast = graph.node("Equal", &["sr", &rate], &[]);
        graph.node_named("If", &[&fast], &["y"], &[("then_branch", branch("Exp")), ("else_branch", branch("Det"))]);
        graph.output("y", DType::Float32, &[Some(2)]);
        graph.finish(Path::new("g.onnx")).unwrap()
    }

    fn given(name: &str, value: Given) -> BTreeMap<String, Given> {
        BTreeMap::from([(name.to_owned(), value)])
    }

    #[test]
    fn a_value_decides_what_is_built() {
        let mut model = model();
        model.give_values(&given("sr", Given::Wholes(vec![16_000]))).unwrap();
        model.give_values(&given("list", Given::Floats(vec![0.5, 2.0]))).unwrap();
        assert_eq!(model.inputs().unwrap().iter().map(|input| input.name.as_str()).collect::<Vec<_>>(), ["x"]);
        model.simplify();
        let operators: Vec<&str> = model.proto.graph.node.iter().map(|node| node.op_type.as_str()).collect();
        assert!(operators.contains(&"Exp") && !operators.contains(&"If"), "{operators:?}");
    }

    #[test]
    fn values_that_do_not_fit_are_told() {
        for (name, value, wanted) in [
            ("rs", Given::Wholes(vec![1]), "`rs` a value; the model's inputs are [\"x\", \"sr\", \"list\"]"),
            ("sr", Given::Wholes(vec![1, 2]), "2 numbers for sr int64[], which has 1"),
            ("sr", Given::Floats(vec![0.5]), "is no int64"),
        ] {
            let error = model().give_values(&given(name, value)).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let whole = |name: &str| (name.to_owned(), Given::Wholes(vec![1]));
        let all = BTreeMap::from(["x", "sr", "list"].map(whole));
        let error = model().give_values(&all).unwrap_err().to_string();
        assert!(error.contains("g.onnx: `inputs:` gives every input a value") && error.contains("hint: "), "{error}");
    }
}
