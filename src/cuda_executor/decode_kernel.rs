//! Decode steps with our own kernel: the next tokens of up to eight sequences through all layers and the head in one
//! launch. The phases' addresses are fixed when a model is loaded. `decode_kernel/README.md` explains the kernel.

pub(super) mod abi;
mod kernel;
mod matmul;
mod partition;
mod phases;
mod sm_speed;
#[cfg(test)]
mod tests;
mod top_logits;
mod variant;

use std::sync::Arc;

use super::buffers::Buffer;
use super::driver::{Address, word};
use super::state::DeviceState;
use crate::backend::BackendError;
use crate::convert::Activation;
use crate::executor::TopLogits;

use self::abi::{DecodeParams, MAX_GROUP, MAX_ROWS, MAX_STRIP_N, PhaseDescriptor};
pub(super) use self::kernel::DecodeKernel;
use self::kernel::PhaseList;
#[cfg(test)]
pub(super) use self::kernel::SOURCE;
use self::matmul::StripWidth;
use self::phases::{Activations, PhaseListBuilder, RowRange, step_phases};
use self::sm_speed::SmSpeeds;
use self::top_logits::{LogitRows, TopLogitsFinder};

/// Tiles side by side in a strip of plain weights, for one sequence. Longer rows are read faster, but more blocks then
/// share a strip, whose cost grows with the number of sequences.
const PLAIN_TILES_ALONE: usize = 4;
/// Tiles side by side in a strip of plain weights, for several sequences.
const PLAIN_TILES_TOGETHER: usize = 2;

/// The decode program of a model: the kernel's phase lists, and the buffers between phases.
pub(super) struct DecodeProgram {
    kernel: Arc<DecodeKernel>,
    speeds: SmSpeeds,
    lists: StepLists,
    partial_sums: Buffer,
    attention_partials: Buffer,
    activations: Activations,
    top_logits: TopLogitsFinder,
}

/// The phase lists that the kernel executes.
struct StepLists {
    /// All layers and the head for one sequence.
    one: PhaseList,
    /// All layers and the head for up to eight sequences, a list for each eight rows.
    many: Vec<PhaseList>,
    /// The head alone, for eight rows of `DeviceState::last` each.
    heads: Vec<PhaseList>,
}

impl StepLists {
    fn new(state: &DeviceState, activations: &Activations, slots: usize, shares: &[u32]) -> Result<Self, BackendError> {
        let (model, blocks, stream) = (&state.model, shares.len(), &state.device.stream);
        let phases = |rows: RowRange, plain_tiles: usize| {
            step_phases(state, activations, rows, StripWidth { plain_tiles, blocks })
        };
        let one = phases(RowRange { first: 0, count: 1 }, PLAIN_TILES_ALONE)?;
        let head = one.last();
        let many = (0..slots).step_by(MAX_ROWS).map(|first| {
            let rows = RowRange { first, count: MAX_ROWS.min(slots - first) };
            phases(rows, PLAIN_TILES_TOGETHER)?.finish(stream, shares)
        });
        let heads = (0..slots.max(MAX_ROWS).div_ceil(MAX_ROWS)).map(|part| {
            let mut alone = PhaseListBuilder::default();
            let x = state.last.address() + (part * MAX_ROWS * model.hidden_size * state.dtype.size()) as Address;
            let out = state.logits.address() + (part * MAX_ROWS * model.vocab_size * 4) as Address;
            alone.matmul(PhaseDescriptor { x, x_squares: 0, out, ..head });
            alone.finish(stream, shares)
        });
        let (many, heads) = (many.collect::<Result<_, _>>()?, heads.collect::<Result<_, _>>()?);
        Ok(Self { one: one.finish(stream, shares)?, many, heads })
    }

    fn bytes(&self) -> usize {
        self.heads.iter().chain(&self.many).chain([&self.one]).map(PhaseList::bytes).sum()
    }
}

impl DecodeProgram {
    /// Builds the phase lists of the model in `state`, which has `slots` sequences.
    pub(super) fn new(kernel: Arc<DecodeKernel>, state: &DeviceState, slots: usize) -> Result<Self, BackendError> {
        let (model, rows, stream) = (&state.model, slots.min(MAX_ROWS), &state.device.stream);
        let activations = Activations::new(state, rows)?;
        let speeds = SmSpeeds::even(kernel.blocks);
        let lists = StepLists::new(state, &activations, slots, &speeds.shares)?;
        // As many splits as there are blocks, or pairs of row and key head.
        let attention = kernel.blocks.max(rows * model.kv_heads) * MAX_GROUP * (model.head_dim + 2) * 4;
        let partial_sums = Buffer::new(stream, 2 * kernel.blocks * MAX_ROWS * MAX_STRIP_N * 4, "decode steps")?;
        let attention_partials = Buffer::new(stream, attention, "decode steps")?;
        let top_logits = TopLogitsFinder::new(stream, model.vocab_size, slots)?;
        let mut program = Self { partial_sums, attention_partials, speeds, lists, activations, top_logits, kernel };
        // Where reading takes long enough to be timed.
        let outputs = &state.weights.output;
        if outputs.bytes() > 2 * state.device.cache()? {
            let params = program.params(state, RowRange { first: 0, count: 1 }, 0);
            if let Some(speeds) = SmSpeeds::measure(&program.kernel, state, &program.lists.heads[0], params)? {
                program.lists = StepLists::new(state, &program.activations, slots, &speeds.shares)?;
                program.speeds = speeds;
            }
        }
        Ok(program)
    }

    /// Size of the buffers between phases in bytes.
    pub(super) fn scratch_bytes(&self) -> usize {
        let partials = self.partial_sums.len() + self.attention_partials.len();
        self.lists.bytes() + self.speeds.bytes() + self.activations.bytes() + partials + self.top_logits.bytes()
    }

    /// Enqueues a step of `rows` sequences, the first of which is in `slot`: from the hidden states in
    /// `DeviceState::hidden[0]` to logits.
    pub(super) fn enqueue(&self, state: &DeviceState, rows: usize, slot: usize) -> Result<(), BackendError> {
        if rows == 1 {
            return self.launch(state, &self.lists.one, RowRange { first: 0, count: 1 }, slot);
        }
        for (part, list) in self.lists.many.iter().enumerate().take(rows.div_ceil(MAX_ROWS)) {
            let first = part * MAX_ROWS;
            self.launch(state, list, RowRange { first, count: (rows - first).min(MAX_ROWS) }, slot + first)?;
        }
        Ok(())
    }

    /// Enqueues the head for the first `rows` of `DeviceState::last`.
    pub(super) fn head(&self, state: &DeviceState, rows: usize) -> Result<(), BackendError> {
        for (part, list) in self.lists.heads.iter().enumerate().take(rows.div_ceil(MAX_ROWS)) {
            let count = (rows - part * MAX_ROWS).min(MAX_ROWS);
            self.launch(state, list, RowRange { first: 0, count }, 0)?;
        }
        Ok(())
    }

    /// Enqueues the search for the largest logits of the first `rows` of `DeviceState::logits`.
    pub(super) fn rank(&self, state: &DeviceState, rows: usize) -> Result<(), BackendError> {
        let inverse_temperatures = state.positions_of_rows().inverse_temperatures;
        let of = LogitRows { logits: state.logits.address(), inverse_temperatures, rows };
        self.top_logits.enqueue(&self.kernel, &state.device.stream, of)
    }

    /// Waits for the largest logits of the first `rows`.
    pub(super) fn top_logits(&mut self, rows: usize) -> Result<Vec<TopLogits>, BackendError> {
        self.top_logits.collect(rows)
    }

    /// Enqueues a list for some of the placed rows, of which the first is in `slot`.
    fn launch(&self, state: &DeviceState, list: &PhaseList, rows: RowRange, slot: usize) -> Result<(), BackendError> {
        self.kernel.launch(&state.device.stream, list, self.params(state, rows, slot))
    }

    /// The parameters that all lists are launched with.
    fn params(&self, state: &DeviceState, rows: RowRange, slot: usize) -> DecodeParams {
        let model = &state.model;
        let positions = state.positions_of_rows();
        DecodeParams {
            partial_sums: self.partial_sums.address(),
            attention_partials: self.attention_partials.address(),
            cached: positions.cached + 4 * rows.first as Address,
            occupied: positions.count + 4 * rows.first as Address,
            rows: word(rows.count),
            first_slot: word(slot),
            capacity: word(state.cache.capacity),
            rope_positions: word(state.positions),
            heads: word(model.heads),
            kv_heads: word(model.kv_heads),
            head_dim: word(model.head_dim),
            gelu: u32::from(model.activation == Activation::Gelu),
            kv_splits: word((self.kernel.blocks / (rows.count * model.kv_heads)).max(1)),
            norm_eps: model.norm_eps,
            attention_scale: model.attention_scale,
            attention_softcap: model.attention_softcap.unwrap_or(0.0),
            sm_count: self.speeds.sm_count(),
            block_of_sm: self.speeds.block_of_sm(),
            ..DecodeParams::default()
        }
    }
}
