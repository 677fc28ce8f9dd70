//! Launches whose rows are tokens of any slots: several of one prompt, causal among themselves, beside other sequences'
//! next tokens. A table in device memory says which, so that lists of phases never change.

use std::sync::Arc;

use bytemuck::Zeroable;
use cudarc::driver::CudaStream;

use super::super::buffers::Buffer;
use super::super::driver::word;
use super::super::state::DeviceState;
use super::PLAIN_TILES_TOGETHER;
use super::abi::{
    BLOCK_ROWS, DecodeParams, MAX_STRIP_N, MOST_ROWS, MOST_SPLITS, QueryChunk, RowTable, WIDE_COLUMN_N, WIDE_COLUMNS,
};
use super::kernel::{DecodeKernel, PhaseList};
use super::matmul::StripWidth;
use super::phases::{Activations, RowRange, step_phases};
use super::row_class::RowClass;
use crate::backend::BackendError;
use crate::convert::Transformer;

/// A row of a launch: a token of a slot's sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableRow {
    pub(crate) slot: usize,
    pub(crate) position: usize,
    /// Whether its logits are wanted.
    pub(crate) is_wanted: bool,
}

/// What a table's query chunks and splits follow from.
#[derive(Debug, Clone, Copy)]
pub(super) struct QuerySizes {
    /// Query heads that share a key head, and key heads.
    pub(super) group: usize,
    pub(super) kv_heads: usize,
    /// Queries that a block takes at once, and blocks.
    pub(super) query_rows: usize,
    pub(super) blocks: usize,
}

/// The table of at most [`MOST_ROWS`] rows, of which those of a slot follow each other at consecutive positions.
pub(super) fn row_table(rows: &[TableRow], sizes: QuerySizes) -> RowTable {
    let mut table = RowTable::zeroed();
    table.rows = word(rows.len());
    for (at, row) in rows.iter().enumerate() {
        (table.slot[at], table.position[at]) = (word(row.slot), word(row.position));
    }
    let wanted = rows.iter().enumerate().filter(|(_, row)| row.is_wanted);
    for (to, (at, _)) in table.wanted_rows.iter_mut().zip(wanted) {
        *to = word(at);
        table.wanted += 1;
    }
    let AttentionPlan { together, kv_splits } = AttentionPlan::of(rows, sizes);
    let (mut run, mut chunks) = (0, 0);
    for of_slot in rows.chunk_by(|a, b| a.slot == b.slot) {
        for first in (0..of_slot.len()).step_by(together) {
            let count = word(together.min(of_slot.len() - first));
            table.chunk[chunks] = QueryChunk { first: word(run + first), count, run: word(run), padding: 0 };
            chunks += 1;
        }
        run += of_slot.len();
    }
    table.chunks = word(chunks);
    table.kv_splits = word(kv_splits);
    table
}

/// What attention of a run takes about, in nanoseconds at an H100's clocks: a span of 32 positions and a chunk's
/// beginning, and what each sixteen queries add to them; to merge splits, and what each adds for each sixteen queries.
const SPAN: [usize; 2] = [500, 90];
const BEGINNING: [usize; 2] = [1_000, 300];
const MERGE: [usize; 2] = [4_000, 150];

/// How a launch's attention is cut: rows of a chunk, and splits of its positions. Large chunks read the cache less
/// often, small ones and splits keep more blocks busy; splits are merged, which takes as long as several spans.
#[derive(Debug, Clone, Copy)]
struct AttentionPlan {
    together: usize,
    kv_splits: usize,
}

impl AttentionPlan {
    /// The plan that is done first: the blocks' turns, of each the spans of a split.
    fn of(rows: &[TableRow], sizes: QuerySizes) -> Self {
        let QuerySizes { group, kv_heads, query_rows, blocks } = sizes;
        let runs = || rows.chunk_by(|a, b| a.slot == b.slot).map(<[TableRow]>::len);
        let spans = rows.iter().map(|row| row.position + 1).max().unwrap_or(1).div_ceil(32);
        let longest = runs().max().unwrap_or(1);
        let halves =
            std::iter::successors(Some((query_rows / group).max(1)), |rows| (*rows > 1).then(|| rows.div_ceil(2)));
        let plans = halves.flat_map(|together| {
            let pairs = (runs().map(|rows| rows.div_ceil(together)).sum::<usize>() * kv_heads).max(1);
            let most = (blocks / pairs).clamp(1, MOST_SPLITS);
            let (turns, queries) = (pairs.div_ceil(blocks.max(1)), (together.min(longest) * group).div_ceil(16));
            let of = move |[once, each]: [usize; 2], count: usize| once + each * count;
            (1..=most).map(move |kv_splits| {
                let split = of(BEGINNING, queries) + spans.div_ceil(kv_splits) * of(SPAN, queries);
                let merge = if kv_splits > 1 { of(MERGE, queries * kv_splits) } else { 0 };
                (turns * split + merge, Self { together, kv_splits })
            })
        });
        let first = plans.min_by_key(|(takes, _)| *takes);
        first.map_or(Self { together: 1, kv_splits: 1 }, |(_, plan)| plan)
    }
}

/// A class's kernel and its list of phases.
struct ClassProgram {
    kernel: DecodeKernel,
    list: Option<PhaseList>,
}

/// The kernels for rows of any slots, and the table of the next launch.
pub(super) struct SharedRows {
    programs: Vec<ClassProgram>,
    table: Buffer,
}

impl SharedRows {
    /// `kernels` come by their number of rows.
    pub(super) fn new(kernels: Vec<DecodeKernel>, stream: &Arc<CudaStream>) -> Result<Self, BackendError> {
        let table = Buffer::new(stream, size_of::<RowTable>(), "decode steps")?;
        let programs = kernels.into_iter().map(|kernel| ClassProgram { kernel, list: None }).collect();
        Ok(Self { programs, table })
    }

    /// Writes the lists of phases, for blocks with these shares of the work.
    pub(super) fn write_lists(
        &mut self,
        state: &DeviceState,
        activations: &Activations,
        shares: &[u32],
    ) -> Result<(), BackendError> {
        for ClassProgram { kernel, list } in &mut self.programs {
            let rows = RowRange { first: 0, count: kernel.class.most() };
            let width = StripWidth {
                plain_tiles: PLAIN_TILES_TOGETHER,
                blocks: shares.len(),
                is_wide: kernel.class.finishers() > 0,
            };
            let phases = step_phases(state, activations, rows, width)?;
            *list = Some(phases.finish(&state.device.stream, shares, kernel.class)?);
        }
        Ok(())
    }

    /// Most rows of a launch; 0 if there is no kernel.
    pub(super) fn rows(&self) -> usize {
        self.programs.last().map_or(0, |program| program.kernel.class.most())
    }

    pub(super) fn classes(&self) -> Vec<RowClass> {
        self.programs.iter().map(|program| program.kernel.class).collect()
    }

    /// Floats of a block's partial sums of a strip.
    pub(super) fn partial_sums(&self) -> usize {
        let floats = |class: RowClass| match class.finishers() {
            0 => BLOCK_ROWS * MAX_STRIP_N,
            _ => class.most() * WIDE_COLUMNS * WIDE_COLUMN_N,
        };
        self.programs.iter().map(|program| floats(program.kernel.class)).max().unwrap_or(0)
    }

    /// Bytes of the partials of attention: where there are several splits, there are no more than blocks.
    pub(super) fn attention_partials(&self, head_dim: usize) -> usize {
        let bytes = |kernel: &DecodeKernel| kernel.blocks * kernel.query_rows * (head_dim + 2) * 4;
        self.programs.iter().map(|program| bytes(&program.kernel)).max().unwrap_or(0)
    }

    fn program(&self, class: RowClass) -> Result<&ClassProgram, BackendError> {
        let found = self.programs.iter().find(|program| program.kernel.class == class);
        found.ok_or_else(|| BackendError::Run(format!("no kernel for {} rows", class.most()).into()))
    }

    /// Uploads the table of the next launch of a class.
    pub(super) fn place(
        &mut self,
        model: &Transformer,
        class: RowClass,
        rows: &[TableRow],
    ) -> Result<(), BackendError> {
        let kernel = &self.program(class)?.kernel;
        let most = class.most().min(MOST_ROWS);
        if rows.is_empty() || rows.len() > most {
            return Err(BackendError::Run(format!("{} rows in a launch of up to {most}", rows.len()).into()));
        }
        let (group, kv_heads) = (model.group(), model.kv_heads);
        let sizes = QuerySizes { group, kv_heads, query_rows: kernel.query_rows, blocks: kernel.blocks };
        self.table.upload(bytemuck::bytes_of(&row_table(rows, sizes)))
    }

    /// Enqueues a launch of a class.
    pub(super) fn launch(
        &self,
        stream: &CudaStream,
        class: RowClass,
        params: DecodeParams,
    ) -> Result<(), BackendError> {
        let ClassProgram { kernel, list } = self.program(class)?;
        let list = list.as_ref().ok_or_else(|| BackendError::Run("a launch without a list of phases".into()))?;
        kernel.launch(stream, list, DecodeParams { table: self.table.address(), ..params })
    }

    /// Bytes on the device.
    pub(super) fn bytes(&self) -> usize {
        let lists = self.programs.iter().filter_map(|program| program.list.as_ref());
        self.table.len() + lists.map(PhaseList::bytes).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_slot_are_cut_into_chunks_of_queries() {
        let row = |slot, position, is_wanted| TableRow { slot, position, is_wanted };
        let mut rows = vec![row(3, 100, true)];
        rows.extend((40..49).map(|position| row(0, position, position == 48)));
        rows.push(row(5, 7, true));
        let sizes = QuerySizes { group: 4, kv_heads: 2, query_rows: 16, blocks: 10 };
        let table = row_table(&rows, sizes);
        assert_eq!((table.rows, table.wanted, table.chunks, table.kv_splits), (11, 3, 5, 1));
        assert_eq!((&table.slot[..3], &table.position[..3]), (&[3, 0, 0][..], &[100, 40, 41][..]));
        assert_eq!(table.wanted_rows[..3], [0, 9, 10]);
        let chunks: Vec<_> = table.chunk[..5].iter().map(|chunk| (chunk.first, chunk.count, chunk.run)).collect();
        assert_eq!(chunks, [(0, 1, 0), (1, 4, 1), (5, 4, 1), (9, 1, 1), (10, 1, 10)]);
        // More query heads than a block takes at once never happen; as many are a row each.
        let whole = row_table(&rows, QuerySizes { group: 16, ..sizes });
        assert_eq!((whole.chunks, whole.kv_splits), (11, 1));
        let full: Vec<TableRow> = (0..MOST_ROWS).map(|at| row(at, 0, true)).collect();
        assert_eq!(row_table(&full, sizes).chunks, 64);
    }

    #[test]
    fn chunks_are_small_at_few_positions_and_splits_many_at_long_ones() {
        let cut = |rows: usize, context: usize, blocks: usize| {
            let rows: Vec<TableRow> =
                (context - rows..context).map(|position| TableRow { slot: 0, position, is_wanted: false }).collect();
            let table = row_table(&rows, QuerySizes { group: 4, kv_heads: 8, query_rows: 64, blocks });
            (table.chunks, table.kv_splits)
        };
        // Four spans: nothing is merged, and as many blocks as can be have a chunk.
        assert_eq!(cut(61, 128, 132), (16, 1));
        let (chunks, splits) = cut(61, 1_500, 132);
        assert!(chunks < 16 && splits > 1 && chunks * 8 * splits <= 132, "{chunks} chunks, {splits} splits");
        let (chunks, splits) = cut(1, 8_000, 132);
        assert!(chunks == 1 && splits > 8, "{splits} splits");
        // Few blocks take turns: chunks as large as they can be.
        assert_eq!(cut(64, 1_500, 16), (4, 1));
    }
}
