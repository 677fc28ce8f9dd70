//! What host and kernel hand to each other, as `abi.cu` declares it.

use super::super::driver::Address;
use crate::checkpoint::Second;

/// As abi.cu has them.
pub(super) const TILE: usize = 64;
pub(super) const WIDEST: usize = WARPS * TILE;
/// Columns of a strip where a residual is added after a norm.
pub(super) const ADD_WIDTH: usize = 128;
/// Warps side by side. Long rows of plain weights read faster, but more blocks then share a strip, which costs more the
/// more sequences there are.
pub(super) const PLAIN_ACROSS: usize = 4;
pub(super) const PLAIN_ACROSS_TOGETHER: usize = 2;
pub(super) const WARPS: usize = 8;
pub(super) const FETCHERS: usize = 4;
/// Inputs of a plain tile.
pub(super) const PLAIN_DEEP: usize = 32;
/// Sequences of a step at most.
pub(crate) const ROWS: usize = 8;
/// Bytes of a tile of plain weights.
pub(super) const PLAIN_TILE: usize = 4096;

/// What a phase does, as abi.cu numbers it.
pub(super) const PRODUCT: u32 = 0;
pub(super) const ATTEND: u32 = 1;
pub(super) const ADD: u32 = 2;

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Phase {
    pub(super) x: Address,
    pub(super) squares: Address,
    pub(super) norm: Address,
    pub(super) key_norm: Address,
    pub(super) weights: Address,
    pub(super) order: Address,
    pub(super) bias: Address,
    pub(super) residual: Address,
    pub(super) out: Address,
    pub(super) out_squares: Address,
    pub(super) keys: Address,
    pub(super) values: Address,
    pub(super) key_scales: Address,
    pub(super) value_scales: Address,
    pub(super) cos: Address,
    pub(super) sin: Address,
    pub(super) dealt: Address,
    pub(super) owners: Address,
    pub(super) kind: u32,
    pub(super) weight_kind: u32,
    pub(super) inputs: u32,
    pub(super) outputs: u32,
    pub(super) stride: u32,
    pub(super) across: u32,
    pub(super) tile_k: u32,
    pub(super) tiles: u32,
    pub(super) strips: u32,
    pub(super) tile_bytes: u32,
    pub(super) group: u32,
    pub(super) second: u32,
    pub(super) square_count: u32,
    pub(super) gated: u32,
    pub(super) wide: u32,
    pub(super) counters: u32,
    pub(super) window: u32,
    pub(super) rotary: u32,
    pub(super) cap: f32,
    pub(super) parts: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Launch {
    pub(super) phases: Address,
    pub(super) counters: Address,
    pub(super) partial: Address,
    pub(super) attention: Address,
    pub(super) cached: Address,
    pub(super) present: Address,
    pub(super) count: u32,
    pub(super) rows: u32,
    pub(super) slot: u32,
    pub(super) capacity: u32,
    pub(super) positions: u32,
    pub(super) heads: u32,
    pub(super) kv_heads: u32,
    pub(super) dim: u32,
    pub(super) gelu: u32,
    pub(super) splits: u32,
    pub(super) eps: f32,
    pub(super) scale: f32,
    pub(super) cap: f32,
    pub(super) _end: u32,
    pub(super) ranks: Address,
    pub(super) times: Address,
}

/// What the ranking of logits reads and writes, in its order.
pub(super) struct Places {
    pub(super) logits: Address,
    pub(super) inverses: Address,
    pub(super) lists: Address,
    pub(super) masses: Address,
    pub(super) counters: Address,
    pub(super) out: Address,
}

/// Number of an arrangement of terms in abi.cu.
pub(super) fn second(second: Second) -> u32 {
    match second {
        Second::Zero => 1,
        Second::Minimum => 2,
    }
}
