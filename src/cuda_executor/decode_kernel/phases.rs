//! Builds the phases of a step: the layers of a model, then the head.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::super::aux_kernels::LayerAddresses;
use super::super::buffers::Buffer;
use super::super::driver::{Address, word};
use super::super::matrix::Matrix;
use super::super::packed_tiles::MatrixSize;
use super::super::state::DeviceState;
use super::abi::{ATTENTION, BLOCK_ROWS, NORM_ADD, NORM_ADD_STRIP_N, PACKED_TILE_N, PhaseDescriptor};
use super::kernel::PhaseList;
use super::matmul::{StripWidth, matmul};
use super::row_class::RowClass;
use crate::backend::BackendError;
use crate::convert::{LayerKind, Role};

/// A range of the rows of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowRange {
    pub(super) first: usize,
    pub(super) count: usize,
}

/// Activations, and partial sums of their squares for the next norm.
#[derive(Debug, Clone, Copy)]
struct WithSquares {
    rows: Address,
    squares: Address,
}

/// Buffers between phases.
pub(super) struct Activations {
    buffers: Vec<Buffer>,
    qkv: Address,
    attended: Address,
    /// Hidden states between attention and MLP.
    middle: WithSquares,
    /// A product that is normed before it is added to the residual.
    apart: WithSquares,
    gates: Address,
    hidden_squares: Address,
}

impl Activations {
    /// Allocates the buffers for steps of `rows` sequences.
    pub(super) fn new(state: &DeviceState, rows: usize) -> Result<Self, BackendError> {
        let model = &state.model;
        let (hidden, d) = (model.hidden_size, model.head_dim);
        let mut buffers = Vec::new();
        let mut buffer = |bytes: usize| -> Result<Address, BackendError> {
            let buffer = Buffer::new(&state.device.stream, bytes, "decode steps")?;
            let address = buffer.address();
            buffers.push(buffer);
            Ok(address)
        };
        let row = |width: usize| rows * width * state.dtype.size();
        // For strips as narrow as they get.
        let squares = rows.max(BLOCK_ROWS) * hidden.div_ceil(PACKED_TILE_N) * 4;
        let qkv = buffer(row((model.heads + 2 * model.kv_heads) * d))?;
        let attended = buffer(row(model.heads * d))?;
        let middle = WithSquares { rows: buffer(row(hidden))?, squares: buffer(squares)? };
        let apart = WithSquares { rows: buffer(row(hidden))?, squares: buffer(squares)? };
        let (gates, hidden_squares) = (buffer(row(model.intermediate_size))?, buffer(squares)?);
        Ok(Self { qkv, attended, middle, apart, gates, hidden_squares, buffers })
    }

    pub(super) fn bytes(&self) -> usize {
        self.buffers.iter().map(Buffer::len).sum()
    }
}

/// Builds a phase list and assigns counters to the phases.
#[derive(Default)]
pub(super) struct PhaseListBuilder {
    phases: Vec<PhaseDescriptor>,
    counters: usize,
}

impl PhaseListBuilder {
    fn push(&mut self, phase: PhaseDescriptor, counters: usize) {
        self.phases.push(PhaseDescriptor { first_counter: word(self.counters), ..phase });
        self.counters += counters;
    }

    pub(super) fn matmul(&mut self, phase: PhaseDescriptor) {
        self.push(phase, phase.strips as usize);
    }

    /// The last phase added.
    pub(super) fn last(&self) -> PhaseDescriptor {
        self.phases.last().copied().unwrap_or_default()
    }

    /// Uploads the list for blocks with these shares of the work.
    pub(super) fn finish(
        mut self,
        stream: &Arc<CudaStream>,
        shares: &[u32],
        class: RowClass,
    ) -> Result<PhaseList, BackendError> {
        // The phases' own counters come first.
        let first = word(self.phases.len());
        self.phases.iter_mut().for_each(|phase| phase.first_counter += first);
        PhaseList::new(stream, &self.phases, self.counters, (shares, class))
    }
}

/// The phases of all layers and the head, for some rows of a step.
pub(super) fn step_phases(
    state: &DeviceState,
    between: &Activations,
    rows: RowRange,
    width: StripWidth,
) -> Result<PhaseListBuilder, BackendError> {
    let list = PhaseListBuilder::default();
    let mut builder = StepBuilder { state, between, rows, width, list, square_parts: 0 };
    for (index, kind) in state.model.layers.iter().enumerate() {
        builder.attention(index, *kind)?;
        builder.mlp(index)?;
    }
    builder.head();
    Ok(builder.list)
}

struct StepBuilder<'a> {
    state: &'a DeviceState,
    between: &'a Activations,
    rows: RowRange,
    width: StripWidth,
    list: PhaseListBuilder,
    /// Number of partial sums of squares of the last hidden states.
    square_parts: u32,
}

impl StepBuilder<'_> {
    /// The hidden states before a layer.
    fn hidden(&self, layer: usize) -> Address {
        let row = self.state.model.hidden_size * self.state.dtype.size();
        self.state.hidden[layer % 2].address() + (self.rows.first * row) as Address
    }

    /// Address of a layer's vector, or 0 if it has none.
    fn vector(&self, layer: usize, role: Role) -> Address {
        self.state.weights.of(layer, role).map_or(0, Matrix::address)
    }

    /// The phase of a product with a layer's matrix.
    fn product(&self, layer: usize, role: Role, size: MatrixSize) -> Result<PhaseDescriptor, BackendError> {
        let matrix = self.state.weights.of(layer, role);
        let matrix = matrix.ok_or_else(|| BackendError::Run(format!("no weight {}", role.name()).into()))?;
        Ok(matmul(matrix.addresses(), size, role == Role::GateUp, self.width))
    }

    /// Adds residual + product, or residual + norm(product) through `Activations::apart`; both with sums of squares.
    fn join(&mut self, product: PhaseDescriptor, norm: Address, residual: Address, out: WithSquares) {
        if norm == 0 {
            self.list.matmul(PhaseDescriptor { residual, out: out.rows, out_squares: out.squares, ..product });
            self.square_parts = product.strips;
            return;
        }
        let apart = self.between.apart;
        self.list.matmul(PhaseDescriptor { out: apart.rows, out_squares: apart.squares, ..product });
        let strips = word((product.outputs as usize).div_ceil(NORM_ADD_STRIP_N));
        let add = PhaseDescriptor {
            kind: NORM_ADD,
            x: apart.rows,
            x_squares: apart.squares,
            x_square_parts: product.strips,
            norm_weight: norm,
            residual,
            out: out.rows,
            out_squares: out.squares,
            outputs: product.outputs,
            strips,
            ..PhaseDescriptor::default()
        };
        self.list.push(add, 0);
        self.square_parts = strips;
    }

    /// Adds the phases of hidden + attention(norm(hidden)), into `Activations::middle`.
    fn attention(&mut self, layer: usize, kind: LayerKind) -> Result<(), BackendError> {
        let (state, between, model) = (self.state, self.between, &self.state.model);
        let (hidden, d) = (model.hidden_size, model.head_dim);
        let (queries, qkv) = (model.heads * d, (model.heads + 2 * model.kv_heads) * d);
        let input = self.hidden(layer);
        let qkv = PhaseDescriptor {
            x: input,
            // Nobody has summed up the embeddings' squares.
            x_squares: if layer == 0 { 0 } else { between.hidden_squares },
            x_square_parts: self.square_parts,
            norm_weight: self.vector(layer, Role::AttentionNorm),
            bias: self.vector(layer, Role::QkvBias),
            out: between.qkv,
            ..self.product(layer, Role::Qkv, MatrixSize { inputs: hidden, outputs: qkv })?
        };
        self.list.matmul(qkv);
        let LayerAddresses { rows: [keys, values], scales: [key_scales, value_scales] } =
            state.cache.addresses(layer, 0, 0);
        let table = &state.tables[kind.rope];
        let attention = PhaseDescriptor {
            kind: ATTENTION,
            x: between.qkv,
            norm_weight: self.vector(layer, Role::QueryNorm),
            key_norm_weight: self.vector(layer, Role::KeyNorm),
            out: between.attended,
            keys,
            values,
            key_scales,
            value_scales,
            cos: table.cos.address(),
            sin: table.sin.address(),
            window: kind.window.map_or(0, word),
            rotary_dim: word(model.ropes[kind.rope].dimension()),
            ..PhaseDescriptor::default()
        };
        // The first counts who has appended, where rows share slots; there are no more query chunks than rows.
        self.list.push(attention, 1 + self.rows.count * model.kv_heads);
        let projected = PhaseDescriptor {
            x: between.attended,
            bias: self.vector(layer, Role::OutputBias),
            ..self.product(layer, Role::Output, MatrixSize { inputs: queries, outputs: hidden })?
        };
        self.join(projected, self.vector(layer, Role::PostAttentionNorm), input, between.middle);
        Ok(())
    }

    /// Adds the phases of middle + down(activation(gate) · up), into the next layer's hidden states.
    fn mlp(&mut self, layer: usize) -> Result<(), BackendError> {
        let (between, model) = (self.between, &self.state.model);
        let (hidden, inner) = (model.hidden_size, model.intermediate_size);
        let gate_up = PhaseDescriptor {
            x: between.middle.rows,
            x_squares: between.middle.squares,
            x_square_parts: self.square_parts,
            norm_weight: self.vector(layer, Role::MlpNorm),
            bias: self.vector(layer, Role::GateUpBias),
            out: between.gates,
            ..self.product(layer, Role::GateUp, MatrixSize { inputs: hidden, outputs: 2 * inner })?
        };
        self.list.matmul(gate_up);
        let down = PhaseDescriptor {
            x: between.gates,
            bias: self.vector(layer, Role::DownBias),
            ..self.product(layer, Role::Down, MatrixSize { inputs: inner, outputs: hidden })?
        };
        let out = WithSquares { rows: self.hidden(layer + 1), squares: between.hidden_squares };
        self.join(down, self.vector(layer, Role::PostMlpNorm), between.middle.rows, out);
        Ok(())
    }

    /// Adds the phases from the last hidden states to logits.
    fn head(&mut self) {
        let (state, model) = (self.state, &self.state.model);
        let size = MatrixSize { inputs: model.hidden_size, outputs: model.vocab_size };
        let head = PhaseDescriptor {
            x: self.hidden(model.layers.len()),
            x_squares: self.between.hidden_squares,
            x_square_parts: self.square_parts,
            norm_weight: state.weights.norm.address(),
            out: state.logits.address() + (self.rows.first * model.vocab_size * 4) as Address,
            out_is_float32: 1,
            logit_softcap: model.logit_softcap.unwrap_or(0.0),
            ..matmul(state.weights.output.addresses(), size, false, self.width)
        };
        self.list.matmul(head);
    }
}
