//! Converts float32 models to half precision, for TensorRT versions that take types from the graph.
//!
//! Convolutions and matrix products read float16 (or bfloat16) operands; softmax, reductions, normalisations and
//! everything after the last product stay in float32, and so do the model's inputs and outputs. `assign` chooses the
//! type of every node, `Writer` rewrites the graph.
//!
//! Matrix products are not wrapped in casts for float32 sums as in language models' layers: there weights are inputs,
//! here they are constants, and TensorRT folds a cast of a constant into float32 weights, which costs more than it
//! saves.

mod assign;
mod weights;

use std::collections::{HashMap, HashSet};

use onnx_protobuf::{AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto::AttributeType};

use super::{Model, OnnxError, elem_type};
use crate::tensor::DType;

/// Settings of the conversion to half precision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Half {
    /// `Float16` or `BFloat16`.
    pub dtype: DType,
    /// Names of nodes to keep in float32, besides those the conversion chooses.
    pub keep: HashSet<String>,
}

impl Model {
    /// A copy of the model with half-precision arithmetic.
    pub fn to_half(&self, half: &Half) -> Result<Model, OnnxError> {
        let assigned = self.assign(half)?;
        let mut model = self.clone();
        let Some(graph) = model.proto.graph.as_mut() else { return Ok(model) };
        let mut writer = Writer {
            dtype: half.dtype,
            floats: assigned.floats,
            initializers: std::mem::take(&mut graph.initializer).into_iter().map(|t| (t.name.clone(), t)).collect(),
            model: self,
            written: GraphProto::default(),
            known: HashSet::new(),
        };
        writer.known.extend(graph.input.iter().map(|input| input.name.clone()));
        for (node, type_) in std::mem::take(&mut graph.node).into_iter().zip(assigned.nodes) {
            writer.node(node, type_).map_err(|message| self.fail(message))?;
        }
        for output in graph.output.iter().map(|output| output.name.clone()) {
            writer.full(&output).map_err(|message| self.fail(message))?;
        }
        graph.node = writer.written.node;
        graph.initializer = writer.written.initializer;
        // Types in between have changed; every runtime infers them.
        graph.value_info.clear();
        model.check_names().map_err(|message| self.fail(message))?;
        Ok(model)
    }

    /// Names of the nodes that stay in float32, for TensorRT 8, which takes precisions per layer.
    pub fn full_nodes(&self, half: &Half) -> Result<Vec<String>, OnnxError> {
        let assigned = self.assign(half)?;
        let nodes = self.proto.graph.node.iter().zip(&assigned.nodes);
        Ok(nodes.filter(|(_, type_)| **type_ == Type::Full).map(|(node, _)| node.name.clone()).collect())
    }

    /// Names of the convolutions and products that [`Model::to_half`] converts, in order.
    pub fn half_products(&self, half: &Half) -> Result<Vec<String>, OnnxError> {
        let assigned = self.assign(half)?;
        let nodes = self.proto.graph.node.iter().zip(&assigned.nodes);
        let products = nodes.filter(|(node, type_)| **type_ != Type::Full && assign::is_product(&node.op_type));
        Ok(products.map(|(node, _)| node.name.clone()).collect())
    }
}

/// Type of a node's arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    /// No floating-point arithmetic, or not to be changed.
    Other,
    Full,
    Half,
}

struct Writer<'a> {
    dtype: DType,
    /// Names of float32 tensors in the original.
    floats: HashSet<String>,
    initializers: HashMap<String, TensorProto>,
    model: &'a Model,
    written: GraphProto,
    /// Names of tensors in the new graph.
    known: HashSet<String>,
}

impl Writer<'_> {
    fn suffix(&self) -> &'static str {
        if self.dtype == DType::BFloat16 { "bf16" } else { "f16" }
    }

    /// The name of a tensor in float32, which is the original's name; adds a Cast if needed.
    fn full(&mut self, name: &str) -> Result<String, String> {
        if self.known.insert(name.to_owned()) {
            match self.initializers.get(name) {
                Some(tensor) => self.written.initializer.push(tensor.clone()),
                // Computed in half precision: what was written so far has it by that name.
                None => self.cast(&format!("{name}.{}", self.suffix()), name, DType::Float32),
            }
        }
        Ok(name.to_owned())
    }

    /// The name of a tensor in half precision; adds a Cast if needed.
    fn half(&mut self, name: &str) -> Result<String, String> {
        let half = format!("{name}.{}", self.suffix());
        if self.known.insert(half.clone()) {
            match self.initializers.get(name) {
                Some(tensor) => {
                    let narrow = weights::narrow(self.model.path(), tensor, &half, self.dtype)?;
                    self.written.initializer.push(narrow);
                }
                None => self.cast(name, &half, self.dtype),
            }
        }
        Ok(half)
    }

    fn cast(&mut self, from: &str, to: &str, dtype: DType) {
        self.written.node.push(NodeProto {
            name: format!("{to}/Cast"),
            op_type: "Cast".to_owned(),
            input: vec![from.to_owned()],
            output: vec![to.to_owned()],
            attribute: vec![AttributeProto {
                name: "to".to_owned(),
                type_: AttributeType::INT.into(),
                i: i64::from(elem_type(dtype) as i32),
                ..AttributeProto::default()
            }],
            ..NodeProto::default()
        });
    }

    fn node(&mut self, mut node: NodeProto, type_: Type) -> Result<(), String> {
        let resize = matches!(node.op_type.as_str(), "Resize" | "Upsample");
        for (index, input) in node.input.iter_mut().enumerate().filter(|(_, input)| !input.is_empty()) {
            // Scales and regions of a Resize are float32 whatever it resizes.
            let data = self.floats.contains(input) && !(resize && index > 0);
            *input = match type_ {
                Type::Half if data => self.half(input)?,
                _ => self.full(input)?,
            };
        }
        let suffix = self.suffix();
        for output in node.output.iter_mut().filter(|output| !output.is_empty()) {
            if type_ == Type::Half && self.floats.contains(output) {
                *output = format!("{output}.{suffix}");
            }
            self.known.insert(output.clone());
        }
        self.written.node.push(node);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::GraphBuilder;
    use super::*;
    use crate::tensor::Tensor;

    /// A model with a product, a softmax, another product, and a sum after it.
    fn model(weight: f32) -> Model {
        let mut graph = GraphBuilder::new("g", 17);
        graph.input("x", DType::Float32, &[Some(2), Some(2)]);
        let w = graph.initializer("w", &Tensor::from_f32(vec![2, 2], vec![weight; 4]).unwrap());
        let a = graph.node("MatMul", &["x", &w], &[]);
        let scaled = graph.node("Mul", &[&a, &a], &[]);
        let p = graph.node("Softmax", &[&scaled], &[("axis", (-1).into())]);
        let moved = graph.node("Transpose", &[&p], &[("perm", [1, 0].into())]);
        let b = graph.node("MatMul", &[&moved, &w], &[]);
        let y = graph.node("Add", &[&b, &w], &[]);
        graph.output(&y, DType::Float32, &[Some(2), Some(2)]);
        graph.finish(Path::new("g.onnx")).unwrap()
    }

    fn half() -> Half {
        Half { dtype: DType::Float16, keep: HashSet::new() }
    }

    #[test]
    fn softmax_and_tail_stay_full() {
        let model = model(0.5);
        let full = model.full_nodes(&half()).unwrap();
        assert_eq!(full, ["Mul_1", "Softmax_2", "Add_5"], "scores, softmax, what follows the last product");
        assert_eq!(model.half_products(&half()).unwrap(), ["MatMul_0", "MatMul_4"]);
        let narrow = model.to_half(&half()).unwrap();
        assert_eq!(
            (narrow.inputs().unwrap(), narrow.outputs().unwrap()),
            (model.inputs().unwrap(), model.outputs().unwrap())
        );
        let casts = narrow.summary().unwrap().operators["Cast"];
        // x to half, a to float32, p to half, b to float32; w is there twice.
        assert_eq!(casts, 4, "{:?}", narrow.proto.graph.node);
    }

    #[test]
    fn kept_and_large_weights_stay_full() {
        let mut half = half();
        half.keep.insert("MatMul_0".to_owned());
        assert!(model(0.5).full_nodes(&half).unwrap().contains(&"MatMul_0".to_owned()));
        let large = model(1e5);
        half.keep.clear();
        assert!(large.half_products(&half).unwrap().is_empty(), "weights beyond float16");
        half.dtype = DType::BFloat16;
        assert_eq!(large.half_products(&half).unwrap().len(), 2);
    }

    #[test]
    fn a_model_in_half_precision_is_told() {
        let once = model(0.5).to_half(&half()).unwrap();
        let error = once.to_half(&half()).unwrap_err().to_string();
        assert!(error.contains("already"), "{error}");
    }
}
