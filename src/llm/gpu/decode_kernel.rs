//! A decode step on our own kernel: up to eight sequences' next tokens through all layers and the head in one launch. What
//! each phase reads and writes is fixed when a model is loaded; see `decode_kernel/abi.cu`.

pub(super) mod abi;
mod kernel;
mod matmul;
mod partition;
mod sm_speed;
#[cfg(test)]
mod tests;
mod top_logits;
mod variant;

use std::sync::Arc;

use super::buffers::Buffer;
use super::driver::{Address, word};
use super::kv_cache::Places;
use super::matrix::Matrix;
use super::packed_tiles;
use super::state::State;
use crate::backend::BackendError;
use crate::convert::{Activation, Role};
use crate::llm::executor::Likeliest;

use self::top_logits::Ranking;
use abi::{ADD, ADD_WIDTH, ATTEND, Launch, PLAIN_ACROSS, PLAIN_ACROSS_TOGETHER, Phase, ROWS, WIDEST};
pub(super) use kernel::Kernel;
use kernel::List;
#[cfg(test)]
pub(super) use kernel::SOURCE;
use matmul::{Cut, product};
use sm_speed::Shares;
use variant::GROUP;

/// A model's step: what the kernel does, and what lies between its phases.
pub(super) struct Program {
    kernel: Arc<Kernel>,
    shares: Shares,
    lists: Lists,
    partial: Buffer,
    attention: Buffer,
    between: Between,
    ranking: Ranking,
}

/// What the kernel does.
struct Lists {
    /// All layers and the head for one sequence.
    one: List,
    /// The same for up to eight at a time.
    many: Vec<List>,
    /// The head alone, of eight rows of `State::last` each.
    heads: Vec<List>,
}

/// Activations and sums of squares between the phases.
struct Between {
    buffers: Vec<Buffer>,
    qkv: Address,
    attended: Address,
    middle: (Address, Address),
    apart: (Address, Address),
    gates: Address,
    hidden_squares: Address,
}

impl Between {
    /// For steps of `rows` sequences.
    fn new(state: &State, rows: usize) -> Result<Self, BackendError> {
        let model = &state.model;
        let (hidden, d) = (model.hidden_size, model.head_dim);
        let mut buffers = Vec::new();
        let mut buffer = |bytes: usize| -> Result<Address, BackendError> {
            let buffer = Buffer::new(&state.device.stream, bytes, "decode steps")?;
            let address = buffer.address();
            buffers.push(buffer);
            Ok(address)
        };
        let mut activations = |width: usize| buffer(rows * width * state.dtype.size());
        let (qkv, attended) = (activations((model.heads + 2 * model.kv_heads) * d)?, activations(model.heads * d)?);
        let (middle, apart, gates) =
            (activations(hidden)?, activations(hidden)?, activations(model.intermediate_size)?);
        // For strips as narrow as they get.
        let mut squares = || buffer(ROWS * hidden.div_ceil(packed_tiles::STRIP) * 4);
        let (middle, apart, hidden_squares) = ((middle, squares()?), (apart, squares()?), squares()?);
        Ok(Self { qkv, attended, middle, apart, gates, hidden_squares, buffers })
    }
}

/// Builds a list, giving each phase its counters.
#[derive(Default)]
struct Lister {
    phases: Vec<Phase>,
    counters: usize,
}

impl Lister {
    fn push(&mut self, phase: Phase, counters: usize) {
        self.phases.push(Phase { counters: word(self.counters), ..phase });
        self.counters += counters;
    }

    fn product(&mut self, phase: Phase) {
        self.push(phase, phase.strips as usize);
    }

    /// residual + product, or residual + norm(product), which goes through `apart`; each with its squares. Returns in how
    /// many parts those of the sum are.
    fn join(
        &mut self,
        product: Phase,
        norm: Address,
        residual: Address,
        (out, out_squares): (Address, Address),
        apart: (Address, Address),
    ) -> u32 {
        if norm == 0 {
            self.product(Phase { residual, out, out_squares, ..product });
            return product.strips;
        }
        self.product(Phase { out: apart.0, out_squares: apart.1, ..product });
        let strips = word((product.outputs as usize).div_ceil(ADD_WIDTH));
        let add = Phase {
            kind: ADD,
            x: apart.0,
            squares: apart.1,
            square_count: product.strips,
            norm,
            residual,
            out,
            out_squares,
            outputs: product.outputs,
            strips,
            ..Phase::default()
        };
        self.push(add, 0);
        strips
    }

    fn finish(mut self, state: &State, shares: &[u32]) -> Result<List, BackendError> {
        let first = word(self.phases.len());
        self.phases.iter_mut().for_each(|phase| phase.counters += first);
        List::new(&state.device.stream, &self.phases, self.counters, shares)
    }
}

/// A step of `rows` sequences at most, of which the first is row `first` of what the step reads: all layers and the head.
fn whole(state: &State, between: &Between, (first, rows): (usize, usize), cut: Cut) -> Result<Lister, BackendError> {
    let model = &state.model;
    let states =
        |index: usize| state.hidden[index % 2].address() + (first * model.hidden_size * state.dtype.size()) as Address;
    let (hidden, inner, d) = (model.hidden_size, model.intermediate_size, model.head_dim);
    let (wide, qkv_width) = (model.heads * d, (model.heads + 2 * model.kv_heads) * d);
    let mut hidden_count = 0;
    let mut list = Lister::default();
    for (index, kind) in model.layers.iter().enumerate() {
        let weight = |role: Role| state.weights.of(index, role);
        let address = |role: Role| weight(role).map_or(0, Matrix::address);
        let matrix = |role: Role, inputs: usize, outputs: usize| {
            let matrix = weight(role).ok_or_else(|| BackendError::Run(format!("no weight {}", role.name())))?;
            Ok::<_, BackendError>(product(matrix, [inputs, outputs], role == Role::GateUp, cut))
        };
        let (input, output) = (states(index), states(index + 1));
        let first = Phase {
            x: input,
            // Nobody has summed up the embeddings' squares.
            squares: if index == 0 { 0 } else { between.hidden_squares },
            square_count: hidden_count,
            norm: address(Role::AttentionNorm),
            bias: address(Role::QkvBias),
            out: between.qkv,
            ..matrix(Role::Qkv, hidden, qkv_width)?
        };
        list.product(first);
        let Places { rows: [keys, values], scales: [key_scales, value_scales] } = state.cache.places(index, 0, 0);
        let (cos, sin) = &state.tables[kind.rope];
        let attend = Phase {
            kind: ATTEND,
            x: between.qkv,
            norm: address(Role::QueryNorm),
            key_norm: address(Role::KeyNorm),
            out: between.attended,
            keys,
            values,
            key_scales,
            value_scales,
            cos: cos.address(),
            sin: sin.address(),
            window: kind.window.map_or(0, word),
            rotary: word(model.ropes[kind.rope].dimension()),
            ..Phase::default()
        };
        list.push(attend, rows * model.kv_heads);
        let projected =
            Phase { x: between.attended, bias: address(Role::OutputBias), ..matrix(Role::Output, wide, hidden)? };
        let middle_count = list.join(projected, address(Role::PostAttentionNorm), input, between.middle, between.apart);
        let gate_up = Phase {
            x: between.middle.0,
            squares: between.middle.1,
            square_count: middle_count,
            norm: address(Role::MlpNorm),
            bias: address(Role::GateUpBias),
            out: between.gates,
            ..matrix(Role::GateUp, hidden, 2 * inner)?
        };
        let down = Phase { x: between.gates, bias: address(Role::DownBias), ..matrix(Role::Down, inner, hidden)? };
        list.product(gate_up);
        hidden_count = list.join(
            down,
            address(Role::PostMlpNorm),
            between.middle.0,
            (output, between.hidden_squares),
            between.apart,
        );
    }
    let last = states(model.layers.len());
    let head = Phase {
        x: last,
        squares: between.hidden_squares,
        square_count: hidden_count,
        norm: state.weights.norm.address(),
        out: state.logits.address() + (first * model.vocab_size * 4) as Address,
        wide: 1,
        cap: model.logit_softcap.unwrap_or(0.0),
        ..product(&state.weights.output, [hidden, model.vocab_size], false, cut)
    };
    list.product(head);
    Ok(list)
}

impl Lists {
    fn new(state: &State, between: &Between, slots: usize, shares: &[u32]) -> Result<Self, BackendError> {
        let (model, rows, blocks) = (&state.model, slots.min(ROWS), shares.len());
        let one = whole(state, between, (0, 1), Cut { across: PLAIN_ACROSS, blocks })?;
        let head = one.phases[one.phases.len() - 1];
        let many = (0..slots).step_by(ROWS).map(|first| {
            let rows = rows.min(slots - first);
            let cut = Cut { across: PLAIN_ACROSS_TOGETHER, blocks };
            whole(state, between, (first, rows), cut)?.finish(state, shares)
        });
        let heads = (0..slots.max(ROWS).div_ceil(ROWS)).map(|part| {
            let mut alone = Lister::default();
            let x = state.last.address() + (part * ROWS * model.hidden_size * state.dtype.size()) as u64;
            let out = state.logits.address() + (part * ROWS * model.vocab_size * 4) as u64;
            alone.product(Phase { x, squares: 0, out, ..head });
            alone.finish(state, shares)
        });
        let (many, heads) = (many.collect::<Result<_, _>>()?, heads.collect::<Result<_, _>>()?);
        Ok(Self { one: one.finish(state, shares)?, many, heads })
    }
}

impl Program {
    /// Puts together the steps of the model in `state`, which holds `slots` sequences.
    pub(super) fn new(kernel: Arc<Kernel>, state: &State, slots: usize) -> Result<Self, BackendError> {
        let (model, rows) = (&state.model, slots.min(ROWS));
        let between = Between::new(state, rows)?;
        let shares = Shares::even(kernel.blocks);
        let lists = Lists::new(state, &between, slots, &shares.of)?;
        // As many parts as there are blocks, or pairs of sequence and key head.
        let attention = kernel.blocks.max(rows * model.kv_heads) * GROUP * (model.head_dim + 2) * 4;
        let partial = Buffer::new(&state.device.stream, 2 * kernel.blocks * ROWS * WIDEST * 4, "decode steps")?;
        let attention = Buffer::new(&state.device.stream, attention, "decode steps")?;
        let ranking = Ranking::new(&state.device.stream, model.vocab_size, slots)?;
        let mut program = Self { partial, attention, shares, lists, between, ranking, kernel };
        // Where reading takes long enough to be timed.
        let outputs = &state.weights.output;
        if matches!(outputs, Matrix::Plain(_)) && outputs.bytes() > 2 * state.device.cache()? {
            let launch = program.launch_of(state, (0, 1), 0);
            if let Some(shares) = Shares::measure(&program.kernel, state, &program.lists.heads[0], launch)? {
                program.lists = Lists::new(state, &program.between, slots, &shares.of)?;
                program.shares = shares;
            }
        }
        Ok(program)
    }

    /// Bytes between the phases.
    pub(super) fn scratch_bytes(&self) -> usize {
        let lists = self.lists.heads.iter().chain(&self.lists.many).chain([&self.lists.one]).map(List::bytes);
        let between: usize = self.between.buffers.iter().map(Buffer::len).sum();
        lists.sum::<usize>() + between + self.partial.len() + self.attention.len() + self.ranking.bytes()
    }

    /// Puts a step of `rows` sequences on the stream, the first of which is in `slot`: the hidden states in
    /// `State::hidden[0]` to logits.
    pub(super) fn enqueue(&self, state: &State, rows: usize, slot: usize) -> Result<(), BackendError> {
        if rows == 1 {
            return self.launch(state, &self.lists.one, (0, 1), slot);
        }
        for (part, list) in self.lists.many.iter().enumerate().take(rows.div_ceil(ROWS)) {
            let first = part * ROWS;
            self.launch(state, list, (first, (rows - first).min(ROWS)), slot + first)?;
        }
        Ok(())
    }

    /// The first `rows` of `State::last` to logits.
    pub(super) fn head(&self, state: &State, rows: usize) -> Result<(), BackendError> {
        for (part, list) in self.lists.heads.iter().enumerate().take(rows.div_ceil(ROWS)) {
            self.launch(state, list, (0, (rows - part * ROWS).min(ROWS)), 0)?;
        }
        Ok(())
    }

    /// Finds the likeliest tokens of the first `rows` of `State::logits`.
    pub(super) fn rank(&self, state: &State, rows: usize) -> Result<(), BackendError> {
        let by = (&*self.kernel, &*state.device.stream);
        self.ranking.enqueue(by, state.logits.address(), state.inverse_temperatures(), rows)
    }

    /// Waits for them.
    pub(super) fn likeliest(&mut self, rows: usize) -> Result<Vec<Likeliest>, BackendError> {
        self.ranking.collect(rows)
    }

    /// Puts a list on the stream for `rows` sequences, of which the first is row `first` of those that were placed.
    fn launch(
        &self,
        state: &State,
        list: &List,
        (first, rows): (usize, usize),
        slot: usize,
    ) -> Result<(), BackendError> {
        self.kernel.launch(&state.device.stream, list, self.launch_of(state, (first, rows), slot))
    }

    /// What all lists are launched with.
    fn launch_of(&self, state: &State, (first, rows): (usize, usize), slot: usize) -> Launch {
        let model = &state.model;
        let (cached, present) = state.places();
        Launch {
            partial: self.partial.address(),
            attention: self.attention.address(),
            cached: cached + 4 * first as Address,
            present: present + 4 * first as Address,
            rows: word(rows),
            slot: word(slot),
            capacity: word(state.cache.capacity),
            positions: word(state.positions),
            heads: word(model.heads),
            kv_heads: word(model.kv_heads),
            dim: word(model.head_dim),
            gelu: u32::from(model.activation == Activation::Gelu),
            splits: word((self.kernel.blocks / (rows * model.kv_heads)).max(1)),
            eps: model.norm_eps,
            scale: model.attention_scale,
            cap: model.attention_softcap.unwrap_or(0.0),
            ranks: self.shares.ranks(),
            ..Launch::default()
        }
    }
}
