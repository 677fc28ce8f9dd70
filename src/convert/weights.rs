//! Maps the tensors of a checkpoint to the inputs of the layer graph.

use super::{Transformer, unread};
use crate::checkpoint::{Checkpoint, CheckpointError, View};

/// A weight's role in the decoder layer, which is also the name of the layer graph's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Role {
    AttentionNorm,
    Qkv,
    QkvBias,
    QueryNorm,
    KeyNorm,
    Output,
    OutputBias,
    PostAttentionNorm,
    MlpNorm,
    GateUp,
    GateUpBias,
    Down,
    DownBias,
    PostMlpNorm,
}

impl Role {
    /// Name of the graph input.
    pub fn name(self) -> &'static str {
        match self {
            Role::AttentionNorm => "attention_norm",
            Role::Qkv => "qkv",
            Role::QkvBias => "qkv_bias",
            Role::QueryNorm => "query_norm",
            Role::KeyNorm => "key_norm",
            Role::Output => "output",
            Role::OutputBias => "output_bias",
            Role::PostAttentionNorm => "post_attention_norm",
            Role::MlpNorm => "mlp_norm",
            Role::GateUp => "gate_up",
            Role::GateUpBias => "gate_up_bias",
            Role::Down => "down",
            Role::DownBias => "down_bias",
            Role::PostMlpNorm => "post_mlp_norm",
        }
    }

    /// Whether it is the weight of an RMSNorm, which stays float32 whatever the engine computes in.
    pub fn is_norm(self) -> bool {
        use Role::{AttentionNorm, KeyNorm, MlpNorm, PostAttentionNorm, PostMlpNorm, QueryNorm};
        matches!(self, AttentionNorm | QueryNorm | KeyNorm | PostAttentionNorm | MlpNorm | PostMlpNorm)
    }

    /// Whether it is a matrix; otherwise it is a vector.
    pub fn is_matrix(self) -> bool {
        matches!(self, Role::Qkv | Role::Output | Role::GateUp | Role::Down)
    }
}

/// A tensor of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub tensor: String,
    /// Required shape; `[outputs, inputs]` for a matrix.
    pub shape: Vec<usize>,
}

/// A weight of the layer: one tensor, or several concatenated along the outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    /// Role in the layer.
    pub role: Role,
    /// Number of outputs of a matrix; 1 for a vector.
    pub rows: usize,
    /// Number of inputs of a matrix; length of a vector.
    pub columns: usize,
    /// Its tensors, in order of outputs.
    pub parts: Vec<Part>,
}

impl Transformer {
    /// Number of inputs of each of a layer's matrices, in the order of execution.
    pub fn matrix_inputs(&self) -> Vec<usize> {
        self.layer_weights(0).iter().filter(|weight| weight.role.is_matrix()).map(|weight| weight.columns).collect()
    }

    /// The weights of layer `index`, in the order of the layer graph's inputs.
    pub fn layer_weights(&self, index: usize) -> Vec<Weight> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (query, key) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let name = |stem: &str| format!("{}layers.{index}.{stem}", self.prefix);
        let vector = |role: Role, size: usize, stem: &str| Weight {
            role,
            rows: 1,
            columns: size,
            parts: vec![Part { tensor: name(&format!("{stem}.weight")), shape: vec![size] }],
        };
        // Matrices and their biases, by the stems and sizes of their parts.
        let linear = |role: Role, bias: Option<Role>, inputs: usize, parts: &[(&str, usize)]| {
            let rows = parts.iter().map(|(_, rows)| rows).sum();
            let matrix = parts
                .iter()
                .map(|(stem, rows)| Part { tensor: name(&format!("{stem}.weight")), shape: vec![*rows, inputs] });
            let mut weights = vec![Weight { role, rows, columns: inputs, parts: matrix.collect() }];
            if let Some(role) = bias {
                let parts =
                    parts.iter().map(|(stem, rows)| Part { tensor: name(&format!("{stem}.bias")), shape: vec![*rows] });
                weights.push(Weight { role, rows: 1, columns: rows, parts: parts.collect() });
            }
            weights
        };
        let separate = [("self_attn.q_proj", query), ("self_attn.k_proj", key), ("self_attn.v_proj", key)];
        let fused = [("self_attn.qkv_proj", query + 2 * key)];
        let qkv: &[_] = if self.fused { &fused } else { &separate };
        let separate = [("mlp.gate_proj", inner), ("mlp.up_proj", inner)];
        let fused = [("mlp.gate_up_proj", 2 * inner)];
        let gate_up: &[_] = if self.fused { &fused } else { &separate };

        let mut weights = vec![vector(Role::AttentionNorm, hidden, "input_layernorm")];
        weights.extend(linear(Role::Qkv, self.qkv_bias.then_some(Role::QkvBias), hidden, qkv));
        if self.qk_norm {
            weights.push(vector(Role::QueryNorm, self.head_dim, "self_attn.q_norm"));
            weights.push(vector(Role::KeyNorm, self.head_dim, "self_attn.k_norm"));
        }
        let output_bias = self.output_bias.then_some(Role::OutputBias);
        weights.extend(linear(Role::Output, output_bias, query, &[("self_attn.o_proj", hidden)]));
        if self.post_norms {
            weights.push(vector(Role::PostAttentionNorm, hidden, "post_attention_layernorm"));
            weights.push(vector(Role::MlpNorm, hidden, "pre_feedforward_layernorm"));
        } else {
            weights.push(vector(Role::MlpNorm, hidden, "post_attention_layernorm"));
        }
        weights.extend(linear(Role::GateUp, self.mlp_bias.then_some(Role::GateUpBias), hidden, gate_up));
        let down = [("mlp.down_proj", hidden)];
        weights.extend(linear(Role::Down, self.mlp_bias.then_some(Role::DownBias), inner, &down));
        if self.post_norms {
            weights.push(vector(Role::PostMlpNorm, hidden, "post_feedforward_layernorm"));
        }
        weights
    }

    /// The embedding, `[vocabulary, hidden]`.
    pub fn embedding(&self) -> Part {
        let tensor = format!("{}embed_tokens.weight", self.prefix);
        Part { tensor, shape: vec![self.vocab_size, self.hidden_size] }
    }

    /// The last norm, `[hidden]`.
    pub fn final_norm(&self) -> Part {
        Part { tensor: format!("{}norm.weight", self.prefix), shape: vec![self.hidden_size] }
    }

    /// The output matrix, from the last hidden state to logits: `[vocabulary, hidden]`.
    pub fn output_matrix(&self) -> Part {
        if self.tied {
            return self.embedding();
        }
        Part { tensor: self.output.clone(), shape: vec![self.vocab_size, self.hidden_size] }
    }

    /// All tensors of the model.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        let weights = (0..self.layers.len()).flat_map(move |index| self.layer_weights(index));
        let layers = weights.flat_map(|weight| weight.parts);
        [self.embedding(), self.final_norm(), self.output_matrix()].into_iter().chain(layers)
    }

    /// Finds the model's tensors in `checkpoint`, where multimodal checkpoints have them under a prefix. Checks that
    /// every weight is present with its shape, and that no tensor is left that would have to be used.
    pub fn locate(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let ends = |suffix: &str| checkpoint.names().find(|name| name.ends_with(suffix)).map(str::to_owned);
        if let Some(name) = ends("embed_tokens.weight") {
            self.prefix = name.trim_end_matches("embed_tokens.weight").to_owned();
        }
        if let Some(name) = ends("lm_head.weight") {
            self.output = name;
            self.untie_own_head(checkpoint)?;
        }
        for part in self.parts() {
            checkpoint.expect(&part.tensor, &part.shape)?;
        }
        let next = format!("{}layers.{}.", self.prefix, self.layers.len());
        if let Some(name) = checkpoint.names().find(|name| name.starts_with(&next)) {
            let message = format!("tensor `{name}` belongs to a layer the configuration does not have");
            return Err(CheckpointError::new(&checkpoint.config_path, message));
        }
        let notes = unread::tensors(self, checkpoint)?;
        self.notes.extend(notes);
        Ok(())
    }

    /// Uses an output matrix that is present and differs from the embedding, whatever the configuration says, as
    /// transformers 5 does (`modeling_utils.py`, `tie_weights`).
    fn untie_own_head(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let embedding = self.embedding();
        // What is missing is said with everything else.
        if !self.tied || !checkpoint.has(&embedding.tensor) {
            return Ok(());
        }
        let own = checkpoint.expect(&self.output, &embedding.shape)?;
        if is_same(&own, &checkpoint.expect(&embedding.tensor, &embedding.shape)?) {
            return Ok(());
        }
        self.notes.push(format!(
            "`tie_word_embeddings` is true, but `{}` differs from the embedding: it is used, as transformers 5 does",
            self.output
        ));
        self.tied = false;
        Ok(())
    }
}

/// Whether two matrices of the same shape have the same values.
fn is_same(a: &View<'_>, b: &View<'_>) -> bool {
    let is_plain = |view: &View<'_>| view.is_in_order() && !view.is_packed();
    if a.encoding == b.encoding && is_plain(a) && is_plain(b) {
        return a.bytes == b.bytes;
    }
    let (mut x, mut y) = (vec![0.0; a.columns()], vec![0.0; b.columns()]);
    (0..a.rows()).all(|row| {
        a.read_row(row, &mut x);
        b.read_row(row, &mut y);
        x == y
    })
}
