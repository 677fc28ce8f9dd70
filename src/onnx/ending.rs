//! Determines the meaning of a model's first output: probabilities, or scores of any size.
//!
//! Only what the last nodes make certain is reported. Nodes between them and the output must not change the values'
//! meaning.

use std::collections::{HashMap, HashSet};

use onnx_protobuf::NodeProto;

use super::Model;
use super::attributes::{Attributes, input};
use super::facts::elem;

/// The operation that determines an output's meaning, with its node's label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Probabilities of classes that exclude each other.
    Softmax(String),
    /// Logarithms of probabilities of classes that exclude each other.
    LogSoftmax(String),
    /// Probabilities of labels that do not exclude each other.
    Sigmoid(String),
    /// Scores from a product with weights.
    Scores(String),
    /// Not determined.
    Unknown,
}

impl Model {
    /// The operation that determines the meaning of the first output.
    pub fn ending(&self) -> Ending {
        let graph = &self.proto.graph;
        let makers = graph.node.iter().flat_map(|node| node.output.iter().map(move |name| (name.as_str(), node)));
        let tail = Tail {
            makers: makers.collect(),
            weights: graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect(),
            limit: graph.node.len(),
        };
        graph.output.first().map_or(Ending::Unknown, |output| tail.before(&output.name, true))
    }
}

struct Tail<'a> {
    makers: HashMap<&'a str, &'a NodeProto>,
    weights: HashSet<&'a str>,
    /// Most nodes to follow back.
    limit: usize,
}

impl Tail<'_> {
    /// The operation behind a tensor, searched back to the last product; if `products`, that counts as
    /// [`Ending::Scores`].
    fn before(&self, name: &str, products: bool) -> Ending {
        let (mut name, mut moved, mut averaged) = (name, false, false);
        for _ in 0..self.limit {
            let Some(node) = self.maker(name) else { return Ending::Unknown };
            let next = match node.op_type.as_str() {
                "Softmax" if !moved => return Ending::Softmax(node.label()),
                "LogSoftmax" if !moved && !averaged => return Ending::LogSoftmax(node.label()),
                "Sigmoid" if !moved => return Ending::Sigmoid(node.label()),
                "Div" if !moved && self.is_softmax(node) => return Ending::Softmax(node.label()),
                "Gemm" | "MatMul" | "Conv" if products => return self.product(node),
                "Identity" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Dropout" => input(node, 0),
                "Cast" if i32::try_from(node.int("to", 0)).is_ok_and(elem::is_float) => input(node, 0),
                "GlobalAveragePool" | "AveragePool" | "ReduceMean" => {
                    averaged = true;
                    input(node, 0)
                }
                "Relu" => {
                    moved = true;
                    input(node, 0)
                }
                "Add" | "Sub" => {
                    moved = true;
                    self.beside_a_weight(node)
                }
                _ => return Ending::Unknown,
            };
            match next {
                Some(next) => name = next,
                None => return Ending::Unknown,
            }
        }
        Ending::Unknown
    }

    fn maker(&self, name: &str) -> Option<&NodeProto> {
        self.makers.get(name).copied().filter(|node| node.is_standard())
    }

    /// The meaning of a product: with weights scores, unless it averages probabilities.
    fn product(&self, node: &NodeProto) -> Ending {
        match self.beside_a_weight(node).map(|data| self.before(data, false)) {
            None | Some(Ending::Softmax(_) | Ending::Sigmoid(_)) => Ending::Unknown,
            Some(_) => Ending::Scores(node.label()),
        }
    }

    /// The operand that is computed, if the other one is a constant.
    fn beside_a_weight<'n>(&self, node: &'n NodeProto) -> Option<&'n str> {
        let (first, second) = (input(node, 0)?, input(node, 1)?);
        match (self.is_constant(first), self.is_constant(second)) {
            (false, true) => Some(first),
            (true, false) => Some(second),
            _ => None,
        }
    }

    fn is_constant(&self, name: &str) -> bool {
        let mut name = name;
        for _ in 0..=self.limit {
            if self.weights.contains(name) {
                return true;
            }
            let Some(node) = self.maker(name) else { return false };
            let before = match node.op_type.as_str() {
                "Constant" => return true,
                "Identity" | "Transpose" | "Cast" | "Reshape" | "Squeeze" | "Unsqueeze" | "DequantizeLinear" => {
                    input(node, 0)
                }
                _ => None,
            };
            match before {
                Some(before) => name = before,
                None => return false,
            }
        }
        false
    }

    /// Whether a Div is exp(x) / sum(exp(x)), as older exporters write softmax.
    fn is_softmax(&self, node: &NodeProto) -> bool {
        let (Some(part), Some(sum)) = (input(node, 0), input(node, 1)) else { return false };
        let makes = |name: &str, op: &str| self.maker(name).filter(|node| node.op_type == op);
        makes(part, "Exp").is_some() && makes(sum, "ReduceSum").is_some_and(|node| input(node, 0) == Some(part))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::onnx::{Attribute, GraphBuilder};
    use crate::tensor::{DType, Tensor};

    type Step<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, Attribute)]);

    /// The ending of a chain of nodes; `_` is the previous node's output, `w` a constant.
    fn ending(steps: &[Step<'_>]) -> Ending {
        let mut graph = GraphBuilder::new("g", 17);
        graph.input("x", DType::Float32, &[Some(1), Some(3)]);
        graph.initializer("w", &Tensor::from_f32(vec![3, 3], vec![0.5; 9]).unwrap());
        graph.initializer("one", &Tensor::from_f32(vec![1], vec![0.5]).unwrap());
        let mut last = "x".to_owned();
        for (op, inputs, attributes) in steps {
            let inputs: Vec<&str> =
                inputs.iter().map(|name| if *name == "_" { last.as_str() } else { *name }).collect();
            last = graph.node(op, &inputs, attributes);
        }
        graph.node_named("Identity", &[&last], &["y"], &[]);
        graph.output("y", DType::Float32, &[Some(1), Some(3)]);
        graph.finish(Path::new("g.onnx")).unwrap().ending()
    }

    #[test]
    fn the_last_nodes_tell_what_numbers_are() {
        let float: &[(&str, Attribute)] = &[("to", Attribute::Int(1))];
        let whole: &[(&str, Attribute)] = &[("to", Attribute::Int(7))];
        let cases: [(&[Step<'_>], &str); 20] = [
            (&[("Softmax", &["_"], &[])], "Softmax"),
            (&[("MatMul", &["_", "w"], &[]), ("Softmax", &["_"], &[]), ("Flatten", &["_"], &[])], "Softmax"),
            (&[("Softmax", &["_"], &[]), ("Cast", &["_"], float), ("Identity", &["_"], &[])], "Softmax"),
            (&[("Sigmoid", &["_"], &[]), ("Flatten", &["_"], &[])], "Sigmoid"),
            (&[("LogSoftmax", &["_"], &[])], "LogSoftmax"),
            (&[("MatMul", &["_", "w"], &[])], "Scores"),
            (&[("MatMul", &["w", "_"], &[]), ("Add", &["one", "_"], &[])], "Scores"),
            (&[("Gemm", &["_", "w"], &[]), ("Relu", &["_"], &[]), ("Flatten", &["_"], &[])], "Scores"),
            // What a product or a sum of probabilities is, is not known.
            (&[("Softmax", &["_"], &[]), ("MatMul", &["_", "w"], &[])], "Unknown"),
            (&[("Sigmoid", &["_"], &[]), ("Gemm", &["_", "w"], &[]), ("Add", &["_", "one"], &[])], "Unknown"),
            (&[("Softmax", &["_"], &[]), ("Add", &["_", "one"], &[])], "Unknown"),
            (&[("Softmax", &["_"], &[]), ("Relu", &["_"], &[])], "Unknown"),
            (&[("MatMul", &["_", "x"], &[])], "Unknown"),
            (&[("MatMul", &["_", "w"], &[]), ("Add", &["_", "x"], &[])], "Unknown"),
            (&[("MatMul", &["_", "w"], &[]), ("Tanh", &["_"], &[])], "Unknown"),
            (&[("Softmax", &["_"], &[]), ("Cast", &["_"], whole)], "Unknown"),
            (&[("Softmax", &["_"], &[]), ("Mul", &["_", "one"], &[])], "Unknown"),
            (&[("LogSoftmax", &["_"], &[]), ("ReduceMean", &["_"], &[])], "Unknown"),
            (&[("Softmax", &["_"], &[]), ("ReduceMean", &["_"], &[])], "Softmax"),
            (&[], "Unknown"),
        ];
        for (steps, wanted) in cases {
            let found = format!("{:?}", ending(steps));
            assert_eq!(found.split('(').next(), Some(wanted), "{steps:?}: {found}");
        }
        let Ending::Softmax(node) = ending(&[("Softmax", &["_"], &[])]) else { panic!("it is one") };
        assert!(node.starts_with("node '") && node.ends_with("(Softmax)"), "{node}");
    }

    #[test]
    fn softmax_in_parts_is_one() {
        let parts = |sum: &str| {
            let mut graph = GraphBuilder::new("g", 17);
            graph.input("x", DType::Float32, &[Some(1), Some(3)]);
            let e = graph.node("Exp", &["x"], &[]);
            let total = graph.node(sum, &[&e], &[]);
            graph.node_named("Div", &[&e, &total], &["y"], &[]);
            graph.output("y", DType::Float32, &[Some(1), Some(3)]);
            graph.finish(Path::new("g.onnx")).unwrap().ending()
        };
        assert!(matches!(parts("ReduceSum"), Ending::Softmax(_)));
        assert_eq!(parts("ReduceMax"), Ending::Unknown);
    }
}
