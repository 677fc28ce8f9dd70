//! Exports the full model as one ONNX graph, for inspection and other runtimes. Its weights are external data that
//! refers to the checkpoint's own files, so that no weight is copied.
//!
//! Inputs and outputs have Optimum's names: input_ids, attention_mask, position_ids, past_key_values.N.key and .value;
//! logits, present.N.key and .value. All dimensions but the model's sizes are dynamic. Arithmetic is float32, whatever
//! the type of the stored weights.

use std::path::Path;

use super::Transformer;
use super::layer::{LayerContext, LayerEmitter, LayerTypes, MASKED, OPSET, Past};
use super::weights::{Part, Role};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::onnx::{External, GraphBuilder, Model};
use crate::tensor::{DType, Tensor};

/// A full model, and the files that contain its weights.
pub struct FullGraph {
    /// The graph.
    pub model: Model,
    /// For each file its name in the graph, and its index in the checkpoint's files.
    pub files: Vec<(String, usize)>,
}

/// Emits the full graph of `transformer`, whose tensors were located in `checkpoint`. `name` returns the name by which
/// the ONNX file refers to a checkpoint file.
pub fn export_full_graph(
    transformer: &Transformer,
    checkpoint: &Checkpoint,
    name: impl Fn(usize) -> String,
) -> Result<FullGraph, CheckpointError> {
    let mut graph = GraphBuilder::new(transformer.family, OPSET);
    declare(&mut graph, transformer);
    let mut source = TensorSource { checkpoint, name: &name, offset: transformer.norm_offset, error: None };
    let mut emitter = LayerEmitter::new(graph, transformer, LayerTypes::new(DType::Float32));
    let embedding = source.stored(&mut emitter.graph, &transformer.embedding());
    let rows = emitter.graph.node("Gather", &[&embedding, "input_ids"], &[]);
    let mut hidden = emitter.cast(&rows, DType::Float32);
    if transformer.embedding_scale != 1.0 {
        let scale = emitter.graph.scalar(transformer.embedding_scale);
        hidden = emitter.graph.node("Mul", &[&hidden, &scale], &[]);
    }
    let tables: Vec<(String, String)> = (0..transformer.ropes.len()).map(|rope| rotary(&mut emitter, rope)).collect();
    let mut masks: Vec<(Option<usize>, String)> = Vec::new();
    for (index, kind) in transformer.layers.iter().enumerate() {
        let mask = match masks.iter().find(|(window, _)| *window == kind.window) {
            Some((_, mask)) => mask.clone(),
            None => {
                let mask = mask(&mut emitter, kind.window);
                masks.push((kind.window, mask.clone()));
                mask
            }
        };
        let name = |what: &str, part: &str| format!("{what}.{index}.{part}");
        let (past_key, past_value) = (name("past_key_values", "key"), name("past_key_values", "value"));
        let (key, value) = (name("present", "key"), name("present", "value"));
        let context = LayerContext {
            cos: &tables[kind.rope].0,
            sin: &tables[kind.rope].1,
            mask: &mask,
            past: Past::Joined { key: &past_key, value: &past_value },
            key: &key,
            value: &value,
        };
        let weights = transformer.layer_weights(index);
        hidden = emitter.layer(&hidden, &context, &mut |graph, role| {
            let weight = weights.iter().find(|weight| weight.role == role);
            weight.map_or_else(Vec::new, |weight| {
                weight.parts.iter().map(|part| source.layer_weight(graph, part, role)).collect()
            })
        });
    }
    let norm = source.norm(&mut emitter.graph, &transformer.final_norm());
    let output = source.matrix(&mut emitter.graph, &transformer.output_matrix());
    let logits = emitter.head(&hidden, &norm, &output);
    let mut graph = emitter.graph;
    graph.node_named("Identity", &[&logits], &["logits"], &[]);
    if let Some(error) = source.error {
        return Err(error);
    }
    let model = graph.finish(Path::new("model.onnx"));
    let model = model.map_err(|error| CheckpointError::new(&checkpoint.config_path, error))?;
    let files = (0..checkpoint.files().len()).map(|index| (name(index), index)).collect();
    Ok(FullGraph { model, files })
}

fn declare(graph: &mut GraphBuilder, model: &Transformer) {
    for name in ["input_ids", "attention_mask", "position_ids"] {
        graph.input(name, DType::Int64, &[None, None]);
    }
    let cache = [None, Some(model.kv_heads), None, Some(model.head_dim)];
    graph.output("logits", DType::Float32, &[None, None, Some(model.vocab_size)]);
    for index in 0..model.layers.len() {
        for part in ["key", "value"] {
            graph.input(&format!("past_key_values.{index}.{part}"), DType::Float32, &cache);
            graph.output(&format!("present.{index}.{part}"), DType::Float32, &cache);
        }
    }
}

/// Cosine and sine of position_ids `[batch, chunk]` as `[batch, 1, chunk, rotary]`.
fn rotary(emitter: &mut LayerEmitter, index: usize) -> (String, String) {
    let rope = &emitter.model.ropes[index];
    let twice: Vec<f32> = rope.frequencies.iter().chain(&rope.frequencies).copied().collect();
    let frequencies = Tensor::from_f32(vec![1, 1, 1, twice.len()], twice).expect("as long as its shape");
    let (name, factor) = (format!("frequencies.{index}"), rope.factor);
    emitter.graph.initializer(&name, &frequencies);
    let positions = emitter.cast("position_ids", DType::Float32);
    let axes = emitter.graph.integers(&[1, 3]);
    let positions = emitter.graph.node("Unsqueeze", &[&positions, &axes], &[]);
    let angles = emitter.graph.node("Mul", &[&positions, &name], &[]);
    let mut of = |op: &str| {
        let value = emitter.graph.node(op, &[&angles], &[]);
        let factor = emitter.graph.scalar(factor);
        emitter.graph.node("Mul", &[&value, &factor], &[])
    };
    (of("Cos"), of("Sin"))
}

/// The additive mask `[batch, 1, group · chunk, past + chunk]` from attention_mask `[batch, past + chunk]`: a query
/// sees positions up to its own, within its window, that are not masked.
fn mask(emitter: &mut LayerEmitter, window: Option<usize>) -> String {
    let group = emitter.model.group();
    let graph = &mut emitter.graph;
    let length = |graph: &mut GraphBuilder, name: &str| {
        let shape = graph.node("Shape", &[name], &[]);
        let one = graph.integers(&[1]);
        let size = graph.node("Gather", &[&shape, &one], &[]);
        let axes = graph.integers(&[0]);
        graph.node("Squeeze", &[&size, &axes], &[])
    };
    let (total, chunk) = (length(graph, "attention_mask"), length(graph, "input_ids"));
    let past = graph.node("Sub", &[&total, &chunk], &[]);
    let integer = |graph: &mut GraphBuilder, value: i64| {
        let list = graph.integers(&[value]);
        let axes = graph.integers(&[0]);
        graph.node("Squeeze", &[&list, &axes], &[])
    };
    let (zero, one) = (integer(graph, 0), integer(graph, 1));
    let keys = graph.node("Range", &[&zero, &total, &one], &[]);
    let queries = graph.node("Range", &[&past, &total, &one], &[]);
    let axes = graph.integers(&[1]);
    let queries = graph.node("Unsqueeze", &[&queries, &axes], &[]);
    let mut seen = graph.node("LessOrEqual", &[&keys, &queries], &[]);
    if let Some(window) = window {
        let window = integer(graph, window as i64);
        let first = graph.node("Sub", &[&queries, &window], &[]);
        let inside = graph.node("Greater", &[&keys, &first], &[]);
        seen = graph.node("And", &[&seen, &inside], &[]);
    }
    let axes = graph.integers(&[1, 2]);
    let given = graph.node("Unsqueeze", &["attention_mask", &axes], &[]);
    let given = graph.node("Cast", &[&given], &[("to", crate::onnx::type_number(DType::Bool).into())]);
    let seen = graph.node("And", &[&seen, &given], &[]);
    let (visible, hidden) = (graph.scalar(0.0), graph.scalar(MASKED));
    let mask = graph.node("Where", &[&seen, &visible, &hidden], &[]);
    graph.node("Concat", &vec![mask.as_str(); group], &[("axis", 2.into())])
}

/// Emits checkpoint tensors as external initializers; records the first error.
struct TensorSource<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a dyn Fn(usize) -> String,
    offset: f32,
    error: Option<CheckpointError>,
}

impl TensorSource<'_> {
    /// A tensor as stored, `[outputs, inputs]` or `[size]`, declared once under its own name.
    fn stored(&mut self, graph: &mut GraphBuilder, part: &Part) -> String {
        if graph.has_initializer(&part.tensor) {
            return part.tensor.clone();
        }
        let result = self.checkpoint.expect(&part.tensor, &part.shape).and_then(|view| {
            let Some(dtype) = view.encoding.dtype() else {
                let path = self.checkpoint.files()[view.file].path();
                let message = format!("tensor `{}` is {}, which ONNX cannot point into", part.tensor, view.encoding);
                return Err(CheckpointError::new(path, message)
                    .with_help("emit ONNX from a checkpoint in float32, float16 or bfloat16"));
            };
            let external = External {
                location: (self.name)(view.file),
                offset: view.offset as u64,
                length: view.bytes.len() as u64,
            };
            graph.external_initializer(&part.tensor, dtype, &part.shape, &external);
            Ok(view.is_in_order())
        });
        match result {
            Ok(true) => part.tensor.clone(),
            // GGUF's neighbours (2i, 2i + 1) back to halves (i, i + d/2).
            Ok(false) => {
                let heads = self.checkpoint.interleaved_heads(&part.tensor).unwrap_or(1) as i64;
                // A bias has one column.
                let columns = part.shape.get(1).map_or(1, |columns| *columns as i64);
                let apart = graph.integers(&[heads, -1, 2, columns]);
                let x = graph.node("Reshape", &[&part.tensor, &apart], &[]);
                let x = graph.node("Transpose", &[&x], &[("perm", [0, 2, 1, 3].into())]);
                let shape: Vec<i64> = part.shape.iter().map(|size| *size as i64).collect();
                let shape = graph.integers(&shape);
                graph.node("Reshape", &[&x, &shape], &[])
            }
            Err(error) => {
                self.error.get_or_insert(error);
                part.tensor.clone()
            }
        }
    }

    fn wide(&mut self, graph: &mut GraphBuilder, part: &Part) -> String {
        let stored = self.stored(graph, part);
        graph.node("Cast", &[&stored], &[("to", crate::onnx::type_number(DType::Float32).into())])
    }

    /// A matrix transposed to `[inputs, outputs]`.
    fn matrix(&mut self, graph: &mut GraphBuilder, part: &Part) -> String {
        let wide = self.wide(graph, part);
        graph.node("Transpose", &[&wide], &[("perm", [1, 0].into())])
    }

    fn norm(&mut self, graph: &mut GraphBuilder, part: &Part) -> String {
        let wide = self.wide(graph, part);
        if self.offset == 0.0 {
            return wide;
        }
        let offset = graph.scalar(self.offset);
        graph.node("Add", &[&wide, &offset], &[])
    }

    fn layer_weight(&mut self, graph: &mut GraphBuilder, part: &Part, role: Role) -> String {
        if role.is_matrix() {
            self.matrix(graph, part)
        } else if role.is_norm() {
            self.norm(graph, part)
        } else {
            self.wide(graph, part)
        }
    }
}
