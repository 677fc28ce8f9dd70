//! The ONNX graph of one decoder layer, and of the head.
//!
//! Only primitives of opset 17, so that every TensorRT from 8.5 on, onnxruntime and the CPU reference run the same
//! graph. A layer holds no weights: they are inputs, matrices as `[inputs, outputs]`, and one graph serves all layers.
//!
//! Attention never copies the cache: scores against the cache and against the chunk's own keys are computed separately,
//! joined for the softmax, and split again. Query heads that share a key head are rows of one product.

mod attention;

use std::path::Path;

use super::weights::Role;
use super::{Activation, Transformer};
use crate::onnx::{Attribute, GraphBuilder, Model, OnnxError};
use crate::spec::KvCache;
use crate::tensor::DType;

/// The static shape of a layer graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct LayerShape {
    /// Number of sequences.
    pub batch: usize,
    /// New positions of each sequence.
    pub chunk: usize,
    /// Cached positions of each sequence; 0 omits the cache's inputs.
    pub cache: usize,
}

impl std::fmt::Display for LayerShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "b{}-t{}-c{}", self.batch, self.chunk, self.cache)
    }
}

/// The types that a model's layers run in: whoever builds or runs them chooses, whatever the model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerTypes {
    /// Of the arithmetic.
    pub dtype: DType,
    /// Of keys and values: as they are computed, or int8 with a scale for each position and head.
    pub kv_cache: KvCache,
}

impl LayerTypes {
    /// Keys and values are kept as they are computed.
    pub fn new(dtype: DType) -> Self {
        Self { dtype, kv_cache: KvCache::Auto }
    }
}

pub(super) const OPSET: i64 = 17;

/// Added to the scores of masked positions. float16 can represent it, and exp of it is 0.
pub const MASKED: f32 = -30_000.0;

/// The graph of a decoder layer. Inputs, in order: hidden `[batch, chunk, hidden]`, cos and sin
/// `[batch, 1, chunk, rotary]`, mask `[batch, 1, group · chunk, cache + chunk]`, with a cache past_key and past_value
/// `[batch, kv_heads, cache, head_dim]`, then the layer's weights. Outputs: hidden_out like hidden, key and value
/// `[batch, kv_heads, chunk, head_dim]`.
///
/// Row (g, t) of the mask belongs to query t of head g in any group of heads.
pub fn layer_graph(model: &Transformer, shape: LayerShape, types: LayerTypes) -> Result<Model, OnnxError> {
    graph_of(model, shape, types, false)
}

/// The graph of a decoder layer in float32, with four more outputs `[batch, chunk, inputs]`: the inputs of each matrix.
pub fn observed_layer_graph(model: &Transformer, shape: LayerShape, kv_cache: KvCache) -> Result<Model, OnnxError> {
    graph_of(model, shape, LayerTypes { dtype: DType::Float32, kv_cache }, true)
}

/// Names of the outputs that [`observed_layer_graph`] adds.
const READ: [&str; 4] = ["attention_input", "output_input", "mlp_input", "down_input"];

fn graph_of(model: &Transformer, shape: LayerShape, types: LayerTypes, observed: bool) -> Result<Model, OnnxError> {
    let LayerShape { batch, chunk, cache } = shape;
    let dtype = types.dtype;
    let mut graph = GraphBuilder::new(&format!("{}-layer-{shape}", model.family), OPSET);
    let dims = |dims: &[usize]| dims.iter().copied().map(Some).collect::<Vec<_>>();
    let hidden = dims(&[batch, chunk, model.hidden_size]);
    let rotary = dims(&[batch, 1, chunk, model.rotary_dim()]);
    let past = dims(&[batch, model.kv_heads, cache, model.head_dim]);
    graph.input("hidden", dtype, &hidden);
    graph.input("cos", dtype, &rotary);
    graph.input("sin", dtype, &rotary);
    graph.input("mask", dtype, &dims(&[batch, 1, model.group() * chunk, cache + chunk]));
    if cache > 0 {
        graph.input("past_key", dtype, &past);
        graph.input("past_value", dtype, &past);
    }
    for weight in model.layer_weights(0) {
        let kind = if weight.role.is_norm() { DType::Float32 } else { dtype };
        let shape = if weight.role.is_matrix() { vec![weight.columns, weight.rows] } else { vec![weight.columns] };
        graph.input(weight.role.name(), kind, &dims(&shape));
    }
    let mut emitter = LayerEmitter::new(graph, model, types);
    let past = if cache > 0 { Past::Apart { key: "past_key", value: "past_value", length: cache } } else { Past::None };
    let context = LayerContext { cos: "cos", sin: "sin", mask: "mask", past, key: "key", value: "value" };
    let mut inputs = |_: &mut GraphBuilder, role: Role| vec![role.name().to_owned()];
    let out = emitter.layer("hidden", &context, &mut inputs);
    let mut graph = emitter.graph;
    graph.node_named("Identity", &[&out], &["hidden_out"], &[]);
    graph.output("hidden_out", dtype, &hidden);
    let new = dims(&[batch, model.kv_heads, chunk, model.head_dim]);
    graph.output("key", dtype, &new);
    graph.output("value", dtype, &new);
    for ((name, inputs), read) in READ.iter().zip(model.matrix_inputs()).zip(emitter.read.iter().filter(|_| observed)) {
        graph.node_named("Identity", &[read], &[name], &[]);
        graph.output(name, dtype, &dims(&[batch, chunk, inputs]));
    }
    graph.finish(Path::new("layer.onnx"))
}

/// The graph of the model's end: last norm and output matrix. Inputs: hidden `[rows, hidden]`, norm `[hidden]`, output
/// `[hidden, vocabulary]`. Output: logits `[rows, vocabulary]` in float32.
pub fn head_graph(model: &Transformer, rows: usize, dtype: DType) -> Result<Model, OnnxError> {
    let mut graph = GraphBuilder::new(&format!("{}-head-r{rows}", model.family), OPSET);
    let (hidden, vocabulary) = (model.hidden_size, model.vocab_size);
    graph.input("hidden", dtype, &[Some(rows), Some(hidden)]);
    graph.input("norm", DType::Float32, &[Some(hidden)]);
    graph.input("output", dtype, &[Some(hidden), Some(vocabulary)]);
    let mut emitter = LayerEmitter::new(graph, model, LayerTypes::new(dtype));
    let logits = emitter.head("hidden", "norm", "output");
    let mut graph = emitter.graph;
    graph.node_named("Identity", &[&logits], &["logits"], &[]);
    graph.output("logits", DType::Float32, &[Some(rows), Some(vocabulary)]);
    graph.finish(Path::new("head.onnx"))
}

/// Keys and values of earlier positions.
#[derive(Clone, Copy)]
pub(super) enum Past<'a> {
    None,
    /// `length` positions, which are not joined with the new ones.
    Apart {
        key: &'a str,
        value: &'a str,
        length: usize,
    },
    /// Any number of positions; key and value outputs are joined with them.
    Joined {
        key: &'a str,
        value: &'a str,
    },
}

/// Inputs of a layer besides hidden states and weights, and names of its outputs.
pub(super) struct LayerContext<'a> {
    pub(super) cos: &'a str,
    pub(super) sin: &'a str,
    pub(super) mask: &'a str,
    pub(super) past: Past<'a>,
    pub(super) key: &'a str,
    pub(super) value: &'a str,
}

/// Returns the names of a role's tensors: matrices `[inputs, outputs]`, one or several side by side.
pub(super) type Weights<'a> = dyn FnMut(&mut GraphBuilder, Role) -> Vec<String> + 'a;

/// Emits parts of a transformer; shapes are static or dynamic like the inputs'.
pub(super) struct LayerEmitter<'a> {
    pub(super) graph: GraphBuilder,
    pub(super) model: &'a Transformer,
    dtype: DType,
    kv_cache: KvCache,
    /// Names of the inputs of the layers' matrices, in order.
    read: Vec<String>,
}

impl<'a> LayerEmitter<'a> {
    pub(super) fn new(graph: GraphBuilder, model: &'a Transformer, types: LayerTypes) -> Self {
        let LayerTypes { dtype, kv_cache } = types;
        Self { graph, model, dtype, kv_cache, read: Vec::new() }
    }
}

impl LayerEmitter<'_> {
    fn node(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        self.graph.node(op, inputs, attributes)
    }

    pub(super) fn cast(&mut self, x: &str, dtype: DType) -> String {
        self.node("Cast", &[x], &[("to", crate::onnx::type_number(dtype).into())])
    }

    /// A scalar in the arithmetic's type.
    fn constant(&mut self, value: f32) -> String {
        let scalar = self.graph.scalar(value);
        if self.dtype == DType::Float32 { scalar } else { self.cast(&scalar, self.dtype) }
    }

    /// a · b, summed in float32. TensorRT sums float16 products in float16, unless the product is between casts: it
    /// fuses the casts to float32, the product and the cast back into one kernel with float16 operands.
    fn product(&mut self, a: &str, b: &str) -> String {
        let wide = self.wide_product(a, b);
        if self.dtype == DType::Float32 { wide } else { self.cast(&wide, self.dtype) }
    }

    /// a · b, summed in float32, with the result left in float32.
    fn wide_product(&mut self, a: &str, b: &str) -> String {
        if self.dtype == DType::Float32 {
            return self.node("MatMul", &[a, b], &[]);
        }
        let (a, b) = (self.cast(a, DType::Float32), self.cast(b, DType::Float32));
        self.node("MatMul", &[&a, &b], &[])
    }

    fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.graph.integers(shape);
        self.node("Reshape", &[x, &shape], &[])
    }

    fn split(&mut self, x: &str, sizes: &[usize], axis: i64) -> Vec<String> {
        let list: Vec<i64> = sizes.iter().map(|size| *size as i64).collect();
        let list = self.graph.integers(&list);
        self.graph.node_outputs("Split", &[x, &list], sizes.len(), &[("axis", axis.into())])
    }

    /// RMSNorm (Zhang & Sennrich 2019) over the last axis, in float32; `weight` is float32.
    pub(super) fn norm(&mut self, x: &str, weight: &str) -> String {
        let wide = if self.dtype == DType::Float32 { x.to_owned() } else { self.cast(x, DType::Float32) };
        let square = self.node("Mul", &[&wide, &wide], &[]);
        let mean = self.node("ReduceMean", &[&square], &[("axes", [-1].into()), ("keepdims", 1.into())]);
        let eps = self.graph.scalar(self.model.norm_eps);
        let sum = self.node("Add", &[&mean, &eps], &[]);
        let root = self.node("Sqrt", &[&sum], &[]);
        let unit = self.node("Div", &[&wide, &root], &[]);
        let scaled = self.node("Mul", &[&unit, weight], &[]);
        if self.dtype == DType::Float32 { scaled } else { self.cast(&scaled, self.dtype) }
    }

    /// x · weight (+ bias), split into `sizes`.
    fn linear(&mut self, x: &str, roles: (Role, Option<Role>), sizes: &[usize], weights: &mut Weights) -> Vec<String> {
        let matrices = weights(&mut self.graph, roles.0);
        let biases = roles.1.map(|role| weights(&mut self.graph, role)).unwrap_or_default();
        let mut outputs = Vec::new();
        for (index, matrix) in matrices.iter().enumerate() {
            let product = self.product(x, matrix);
            outputs.push(match biases.get(index) {
                Some(bias) => self.node("Add", &[&product, bias], &[]),
                None => product,
            });
        }
        if outputs.len() == 1 && sizes.len() > 1 { self.split(&outputs[0], sizes, -1) } else { outputs }
    }

    /// cap · tanh(x / cap).
    fn softcap(&mut self, x: &str, cap: f32, constant: impl Fn(&mut Self, f32) -> String) -> String {
        let (inverse, cap) = (constant(self, 1.0 / cap), constant(self, cap));
        let small = self.node("Mul", &[x, &inverse], &[]);
        let bounded = self.node("Tanh", &[&small], &[]);
        self.node("Mul", &[&bounded, &cap], &[])
    }

    /// One decoder layer; returns the new hidden states.
    pub(super) fn layer(&mut self, hidden: &str, context: &LayerContext, weights: &mut Weights) -> String {
        let model = self.model;
        let norm = weights(&mut self.graph, Role::AttentionNorm).remove(0);
        let x = self.norm(hidden, &norm);
        self.read.push(x.clone());
        let attended = self.attention(&x, context, weights);
        let attended = self.post_norm(attended, Role::PostAttentionNorm, weights);
        let hidden = self.node("Add", &[hidden, &attended], &[]);
        let norm = weights(&mut self.graph, Role::MlpNorm).remove(0);
        let x = self.norm(&hidden, &norm);
        self.read.push(x.clone());
        let inner = model.intermediate_size;
        let roles = (Role::GateUp, model.mlp_bias.then_some(Role::GateUpBias));
        let gate_up = self.linear(&x, roles, &[inner, inner], weights);
        let gate = self.activate(&gate_up[0]);
        let gated = self.node("Mul", &[&gate, &gate_up[1]], &[]);
        self.read.push(gated.clone());
        let roles = (Role::Down, model.mlp_bias.then_some(Role::DownBias));
        let down = self.linear(&gated, roles, &[model.hidden_size], weights).remove(0);
        let down = self.post_norm(down, Role::PostMlpNorm, weights);
        self.node("Add", &[&hidden, &down], &[])
    }

    fn post_norm(&mut self, x: String, role: Role, weights: &mut Weights) -> String {
        if !self.model.post_norms {
            return x;
        }
        let weight = weights(&mut self.graph, role).remove(0);
        self.norm(&x, &weight)
    }

    fn activate(&mut self, x: &str) -> String {
        match self.model.activation {
            Activation::Silu => {
                let sigmoid = self.node("Sigmoid", &[x], &[]);
                self.node("Mul", &[x, &sigmoid], &[])
            }
            // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), Hendrycks & Gimpel 2016.
            Activation::Gelu => {
                let square = self.node("Mul", &[x, x], &[]);
                let cubic = self.constant(0.044_715);
                let scaled = self.node("Mul", &[&square, &cubic], &[]);
                let one = self.constant(1.0);
                let factor = self.node("Add", &[&scaled, &one], &[]);
                let root = self.constant((2.0 / std::f32::consts::PI).sqrt());
                let linear = self.node("Mul", &[x, &root], &[]);
                let argument = self.node("Mul", &[&linear, &factor], &[]);
                let tanh = self.node("Tanh", &[&argument], &[]);
                let raised = self.node("Add", &[&tanh, &one], &[]);
                let half = self.constant(0.5);
                let halved = self.node("Mul", &[x, &half], &[]);
                self.node("Mul", &[&halved, &raised], &[])
            }
        }
    }

    /// Logits in float32 from hidden states `[.., hidden]`.
    pub(super) fn head(&mut self, hidden: &str, norm: &str, output: &str) -> String {
        let x = self.norm(hidden, norm);
        let logits = self.wide_product(&x, output);
        match self.model.logit_softcap {
            Some(cap) => self.softcap(&logits, cap, |emitter, value| emitter.graph.scalar(value)),
            None => logits,
        }
    }
}
