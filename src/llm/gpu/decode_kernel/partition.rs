//! Who does what: a product's tiles, or its strips of packed weights, dealt out to the blocks.

use std::collections::HashMap;

use super::super::driver::word;
use super::abi::{ADD, PRODUCT, Phase};

/// So few tiles or strips a block are dealt out evenly.
const FEW: usize = 8;

/// Phases, and the tables of their products.
pub(super) struct Dealt {
    phases: Vec<Phase>,
    pub(super) table: Vec<u32>,
}

/// A strip, and a tile in it.
fn place(unit: usize, tiles: usize) -> u32 {
    word(unit / tiles) << 16 | word(unit % tiles)
}

impl Dealt {
    /// Deals every product out to blocks by their shares, evenly where there is little for each; of packed weights in whole
    /// strips.
    pub(super) fn new(phases: &[Phase], shares: &[u32]) -> Self {
        let blocks = shares.len();
        // Shares of the blocks before each.
        let (mut before, mut all) = (vec![0], 0);
        for share in shares {
            all += *share as usize;
            before.push(all);
        }
        let mut dealt = Self { phases: phases.to_vec(), table: Vec::new() };
        let mut known = HashMap::new();
        for phase in &mut dealt.phases {
            if phase.kind == ADD {
                phase.parts = phase.strips;
            }
            if phase.kind != PRODUCT {
                continue;
            }
            let plain = phase.weight_kind == 0;
            let (strips, tiles) = (phase.strips as usize, if plain { phase.tiles as usize } else { 1 });
            let table = &mut dealt.table;
            let (first, owners, parts) = *known.entry((plain, strips, tiles)).or_insert_with(|| {
                let units = strips * tiles;
                let used = blocks.min(units);
                let firsts: Vec<usize> = match units < FEW * blocks {
                    true => (0..=blocks).map(|block| block.min(used) * units / used).collect(),
                    false => before.iter().map(|before| units * before / all).collect(),
                };
                let start = table.len();
                table.extend(firsts.iter().map(|first| place(*first, tiles)));
                let owners = table.len();
                // The block whose stretch has this tile.
                let owner = |tile: usize| firsts.partition_point(|first| *first <= tile) - 1;
                let both = |strip: usize| word(owner(strip * tiles)) | word(owner(strip * tiles + tiles - 1)) << 16;
                table.extend((0..strips).filter(|_| plain).map(both));
                (start, owners, word(if plain { strips } else { used }))
            });
            (phase.dealt, phase.owners, phase.parts) = (4 * first as u64, 4 * owners as u64, parts);
        }
        dealt
    }

    /// The phases, of which the table is at an address.
    pub(super) fn at(self, address: u64) -> Vec<Phase> {
        let mut phases = self.phases;
        for phase in phases.iter_mut().filter(|phase| phase.kind == PRODUCT) {
            phase.dealt += address;
            phase.owners += address;
        }
        phases
    }
}
