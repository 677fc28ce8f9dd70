//! Work partition: distributes the tiles of a product, or its strips of packed weights, over the blocks.
//!
//! Plain weights are partitioned by tiles, so a block's part may begin and end inside a strip (Stream-K, Osama et al.
//! 2023); packed weights by whole strips. Wide strips are partitioned by units of tiles along the inputs, whatever their
//! weights.

use std::collections::HashMap;

use super::super::driver::word;
use super::abi::{MATMUL, NORM_ADD, PLAIN, PhaseDescriptor, WIDE_TILES_DEEP};
use super::row_class::RowClass;

/// Units per block below which all blocks get the same number: a unit is then an eighth of a block's work or more, too
/// coarse for shares in quarters.
const FEW: usize = 8;

/// Most strips of a product: numbers of strips and of tiles along the inputs share a word of the tables (`variant::check`
/// declines larger models).
pub(super) const MAX_STRIPS: usize = 0xffff;

/// Phases, with the partition tables of their products.
pub(super) struct Partition {
    phases: Vec<PhaseDescriptor>,
    pub(super) table: Vec<u32>,
}

/// The work of products with the same partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Units {
    /// Whether a strip may be cut along the inputs.
    is_cut: bool,
    strips: usize,
    /// Tiles (units of wide strips) along the inputs that may be partitioned; 1 for whole strips.
    tiles: usize,
    /// Most blocks that finish a wide strip, each some of its rows; 0 for other strips.
    finishers: usize,
}

/// Index of a product's partition in the table, and the number of parts in which its outputs become final.
#[derive(Debug, Clone, Copy)]
struct Tables {
    first_units: usize,
    strip_owners: usize,
    completions: u32,
}

impl Units {
    fn of(phase: &PhaseDescriptor, class: RowClass) -> Self {
        let (strips, tiles, finishers) = (phase.strips as usize, phase.k_tiles as usize, class.finishers());
        match (finishers > 0, phase.weight_kind == PLAIN) {
            (true, _) => Self { is_cut: true, strips, tiles: tiles.div_ceil(WIDE_TILES_DEEP), finishers },
            (false, true) => Self { is_cut: true, strips, tiles, finishers },
            (false, false) => Self { is_cut: false, strips, tiles: 1, finishers },
        }
    }

    /// The first unit of each block, followed by the number of all. `before` are the sums of the shares before each
    /// block.
    fn firsts(self, before: &[usize]) -> Vec<usize> {
        let (units, blocks) = (self.strips * self.tiles, before.len() - 1);
        let used = blocks.min(units);
        match units < FEW * blocks {
            true => (0..=blocks).map(|block| block.min(used) * units / used).collect(),
            false => before.iter().map(|share| units * share / before[blocks]).collect(),
        }
    }

    /// Appends the partition to the table.
    fn part(self, before: &[usize], table: &mut Vec<u32>) -> Tables {
        let firsts = self.firsts(before);
        let first_units = table.len();
        table.extend(firsts.iter().map(|unit| word(unit / self.tiles) << 16 | word(unit % self.tiles)));
        let strip_owners = table.len();
        // The block that has a tile.
        let owner = |tile: usize| firsts.partition_point(|first| *first <= tile) - 1;
        let owners = |strip: usize| (owner(strip * self.tiles), owner((strip + 1) * self.tiles - 1));
        let cut = 0..if self.is_cut { self.strips } else { 0 };
        table.extend(cut.clone().map(owners).map(|(first, last)| word(first) | word(last) << 16));
        let completions = match (self.is_cut, self.finishers) {
            (false, _) => (before.len() - 1).min(self.strips),
            (true, 0) => self.strips,
            (true, most) => cut.map(owners).map(|(first, last)| (last - first + 1).min(most)).sum::<usize>(),
        };
        Tables { first_units, strip_owners, completions: word(completions) }
    }
}

impl Partition {
    /// Partitions every product among blocks by their shares, evenly if there are few units per block.
    pub(super) fn new(phases: &[PhaseDescriptor], shares: &[u32], class: RowClass) -> Self {
        let mut before = vec![0];
        before.extend(shares.iter().scan(0, |sum, share| {
            *sum += *share as usize;
            Some(*sum)
        }));
        let mut partition = Self { phases: phases.to_vec(), table: Vec::new() };
        let mut known: HashMap<Units, Tables> = HashMap::new();
        for phase in &mut partition.phases {
            if phase.kind == NORM_ADD {
                phase.completions = phase.strips;
            }
            if phase.kind != MATMUL {
                continue;
            }
            let units = Units::of(phase, class);
            let tables = *known.entry(units).or_insert_with(|| units.part(&before, &mut partition.table));
            (phase.first_units, phase.strip_owners) = (4 * tables.first_units as u64, 4 * tables.strip_owners as u64);
            phase.completions = tables.completions;
        }
        partition
    }

    /// The phases, with the table at `address`.
    pub(super) fn at(self, address: u64) -> Vec<PhaseDescriptor> {
        let mut phases = self.phases;
        for phase in phases.iter_mut().filter(|phase| phase.kind == MATMUL) {
            phase.first_units += address;
            phase.strip_owners += address;
        }
        phases
    }
}
