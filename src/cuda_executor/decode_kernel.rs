//! Decode steps with our own kernel: the next tokens of up to eight sequences, or up to 64 tokens of any, through all
//! layers and the head in one launch. The phases' addresses are fixed when a model is loaded. `decode_kernel/README.md`
//! explains the kernel.

pub(super) mod abi;
mod kernel;
mod matmul;
mod partition;
mod phases;
pub(super) mod row_class;
pub(super) mod rows;
mod sm_speed;
#[cfg(test)]
mod tests;
mod top_logits;
mod variant;

use std::sync::Arc;

use super::buffers::Buffer;
use super::driver::{Address, word};
use super::packed_tiles::TileKinds;
use super::state::DeviceState;
use crate::backend::BackendError;
use crate::backend::tensorrt::device::Device;
use crate::convert::{Activation, LayerTypes, Transformer};
use crate::executor::TopLogits;

use self::abi::{BLOCK_ROWS, DecodeParams, MAX_GROUP, MAX_STRIP_N, PhaseDescriptor};
pub(super) use self::kernel::DecodeKernel;
use self::kernel::PhaseList;
#[cfg(test)]
pub(super) use self::kernel::SOURCE;
use self::matmul::StripWidth;
use self::phases::{Activations, PhaseListBuilder, RowRange, step_phases};
use self::row_class::RowClass;
use self::rows::{SharedRows, TableRow};
use self::sm_speed::SmSpeeds;
use self::top_logits::{LogitRows, TopLogitsFinder};

/// Tiles side by side in a strip of plain weights, for one sequence. Longer rows are read faster, but more blocks then
/// share a strip, whose cost grows with the number of sequences.
const PLAIN_TILES_ALONE: usize = 4;
/// Tiles side by side in a strip of plain weights, for several sequences.
const PLAIN_TILES_TOGETHER: usize = 2;

/// The kernels of a model.
pub(super) struct DecodeKernels {
    /// For rows of slots of their own.
    pub(super) apart: Arc<DecodeKernel>,
    /// For rows of any slots, by their number of rows.
    pub(super) shared: Vec<DecodeKernel>,
}

impl DecodeKernels {
    /// Compiles them for a model with these kinds of packed tiles or, if there are none for those (they want more shared memory
    /// than some devices have), for the same weights widened to 16 bits. Returns warnings of what is missing, too.
    pub(super) fn for_model(
        device: &Device,
        model: &Transformer,
        types: LayerTypes,
        kinds: TileKinds,
    ) -> Result<(Option<Self>, Vec<String>), BackendError> {
        let why = match Self::compile(device, model, types, kinds)? {
            Ok(kernels) => return Ok((Some(kernels), Vec::new())),
            Err(why) => why,
        };
        let plain = TileKinds::default();
        if kinds != plain
            && let Ok(kernels) = Self::compile(device, model, types, plain)?
        {
            return Ok((Some(kernels), kinds.without_packed(&why)));
        }
        Ok((None, kinds.without_kernel(&why, types.dtype)))
    }

    /// Compiles them for a model with these kinds of packed tiles; the inner error says why there are none. A class of
    /// launches that this device has no kernel for is left out.
    fn compile(
        device: &Device,
        model: &Transformer,
        types: LayerTypes,
        kinds: TileKinds,
    ) -> Result<Result<Self, String>, BackendError> {
        let apart = match DecodeKernel::compile(device, model, types, (kinds, RowClass::Apart))? {
            Ok(kernel) => Arc::new(kernel),
            Err(why) => return Ok(Err(why)),
        };
        let mut shared = Vec::new();
        for class in RowClass::SHARED {
            match DecodeKernel::compile(device, model, types, (kinds, class))? {
                Ok(kernel) => shared.push(kernel),
                Err(why) => tracing::debug!("no launches of {} rows of any slots: {why}", class.most()),
            }
        }
        Ok(Ok(Self { apart, shared }))
    }

    /// Most rows of a launch whose rows are of any slots; 0 if there is no kernel for them.
    pub(super) fn shared_rows(&self) -> usize {
        self.shared.last().map_or(0, |kernel| kernel.class.most())
    }
}

/// The decode program of a model: the kernel's phase lists, and the buffers between phases.
pub(super) struct DecodeProgram {
    kernel: Arc<DecodeKernel>,
    shared: SharedRows,
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
            step_phases(state, activations, rows, StripWidth { plain_tiles, blocks, is_wide: false })
        };
        let one = phases(RowRange { first: 0, count: 1 }, PLAIN_TILES_ALONE)?;
        let head = one.last();
        let many = (0..slots).step_by(BLOCK_ROWS).map(|first| {
            let rows = RowRange { first, count: BLOCK_ROWS.min(slots - first) };
            phases(rows, PLAIN_TILES_TOGETHER)?.finish(stream, shares, RowClass::Apart)
        });
        let heads = (0..slots.max(BLOCK_ROWS).div_ceil(BLOCK_ROWS)).map(|part| {
            let mut alone = PhaseListBuilder::default();
            let x = state.last.address() + (part * BLOCK_ROWS * model.hidden_size * state.dtype.size()) as Address;
            let out = state.logits.address() + (part * BLOCK_ROWS * model.vocab_size * 4) as Address;
            alone.matmul(PhaseDescriptor { x, x_squares: 0, out, ..head });
            alone.finish(stream, shares, RowClass::Apart)
        });
        let (many, heads) = (many.collect::<Result<_, _>>()?, heads.collect::<Result<_, _>>()?);
        Ok(Self { one: one.finish(stream, shares, RowClass::Apart)?, many, heads })
    }

    fn bytes(&self) -> usize {
        self.heads.iter().chain(&self.many).chain([&self.one]).map(PhaseList::bytes).sum()
    }
}

impl DecodeProgram {
    /// Builds the phase lists of the model in `state`, which has `slots` sequences.
    pub(super) fn new(kernels: DecodeKernels, state: &DeviceState, slots: usize) -> Result<Self, BackendError> {
        let DecodeKernels { apart: kernel, shared } = kernels;
        let (model, rows, stream) = (&state.model, slots.min(BLOCK_ROWS), &state.device.stream);
        let mut shared = SharedRows::new(shared, stream)?;
        let activations = Activations::new(state, rows.max(shared.rows()))?;
        let speeds = SmSpeeds::even(kernel.blocks);
        let lists = StepLists::new(state, &activations, slots, &speeds.shares)?;
        // As many splits as there are blocks, or pairs of row and key head.
        let attention = kernel.blocks.max(rows * model.kv_heads) * MAX_GROUP * (model.head_dim + 2) * 4;
        let attention = attention.max(shared.attention_partials(model.head_dim));
        let sums = (BLOCK_ROWS * MAX_STRIP_N).max(shared.partial_sums());
        let partial_sums = Buffer::new(stream, 2 * kernel.blocks * sums * 4, "decode steps")?;
        let attention_partials = Buffer::new(stream, attention, "decode steps")?;
        let top_logits = TopLogitsFinder::new(stream, model.vocab_size, slots.max(shared.rows()))?;
        shared.write_lists(state, &activations, &speeds.shares)?;
        let mut program =
            Self { partial_sums, attention_partials, speeds, lists, activations, top_logits, kernel, shared };
        // Where reading takes long enough to be timed.
        let outputs = &state.weights.output;
        if outputs.bytes() > 2 * state.device.cache()? {
            let params = program.params(state, RowRange { first: 0, count: 1 }, 0);
            if let Some(speeds) = SmSpeeds::measure(&program.kernel, state, &program.lists.heads[0], params)? {
                program.lists = StepLists::new(state, &program.activations, slots, &speeds.shares)?;
                program.shared.write_lists(state, &program.activations, &speeds.shares)?;
                program.speeds = speeds;
            }
        }
        Ok(program)
    }

    /// Size of the buffers between phases in bytes.
    pub(super) fn scratch_bytes(&self) -> usize {
        let partials = self.partial_sums.len() + self.attention_partials.len();
        let lists = self.lists.bytes() + self.shared.bytes();
        lists + self.speeds.bytes() + self.activations.bytes() + partials + self.top_logits.bytes()
    }

    /// Enqueues a step of `rows` sequences, the first of which is in `slot`: from the hidden states in
    /// `DeviceState::hidden[0]` to logits.
    pub(super) fn enqueue(&self, state: &DeviceState, rows: usize, slot: usize) -> Result<(), BackendError> {
        if rows == 1 {
            return self.launch(state, &self.lists.one, RowRange { first: 0, count: 1 }, slot);
        }
        for (part, list) in self.lists.many.iter().enumerate().take(rows.div_ceil(BLOCK_ROWS)) {
            let first = part * BLOCK_ROWS;
            self.launch(state, list, RowRange { first, count: (rows - first).min(BLOCK_ROWS) }, slot + first)?;
        }
        Ok(())
    }

    /// Most rows of a launch whose rows are of any slots; 0 if there is no kernel for them.
    pub(super) fn shared_rows(&self) -> usize {
        self.shared.rows()
    }

    /// The classes of launches whose rows are of any slots.
    pub(super) fn shared_classes(&self) -> Vec<RowClass> {
        self.shared.classes()
    }

    /// Uploads the rows of the next launch of a class.
    pub(super) fn place_rows(
        &mut self,
        state: &DeviceState,
        class: RowClass,
        rows: &[TableRow],
    ) -> Result<(), BackendError> {
        self.shared.place(&state.model, class, rows)
    }

    /// Enqueues a launch of a class, of the rows that were placed: from the hidden states in `DeviceState::hidden[0]` to
    /// logits of those that want them, one behind the other.
    pub(super) fn enqueue_rows(&self, state: &DeviceState, class: RowClass) -> Result<(), BackendError> {
        let params = self.params(state, RowRange { first: 0, count: class.most() }, 0);
        self.shared.launch(&state.device.stream, class, params)
    }

    /// Enqueues the head for the first `rows` of `DeviceState::last`.
    pub(super) fn head(&self, state: &DeviceState, rows: usize) -> Result<(), BackendError> {
        for (part, list) in self.lists.heads.iter().enumerate().take(rows.div_ceil(BLOCK_ROWS)) {
            let count = (rows - part * BLOCK_ROWS).min(BLOCK_ROWS);
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
