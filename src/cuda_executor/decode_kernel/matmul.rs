//! Phase descriptors of matrix products: tiles and strips of their weights.

use super::super::driver::word;
use super::super::matrix::{PackedMatrix, WeightsAt};
use super::super::packed_tiles::MatrixSize;
use super::abi::{
    INT4, INT8, MATMUL, PACKED_TILE_N, PLAIN_TILE_BYTES, PLAIN_TILE_K, PLAIN_TILE_N, PhaseDescriptor, WIDE_COLUMN_N,
    WIDE_COLUMNS, offset_kind,
};

/// Widths of the strips that products are cut into.
#[derive(Debug, Clone, Copy)]
pub(super) struct StripWidth {
    /// Tiles side by side in a strip of plain weights.
    pub(super) plain_tiles: usize,
    /// Number of blocks to provide with strips of packed weights.
    pub(super) blocks: usize,
    /// Whether strips are wide instead, as launches of many rows have them.
    pub(super) is_wide: bool,
}

/// The phase of a product. If `gated`, the first half of the outputs are gates of the second half (SwiGLU).
pub(super) fn matmul(weights: WeightsAt, size: MatrixSize, gated: bool, width: StripWidth) -> PhaseDescriptor {
    let MatrixSize { inputs, outputs } = size;
    let (tiles_across, tile_n) = match weights {
        _ if width.is_wide => (WIDE_COLUMNS, WIDE_COLUMN_N),
        WeightsAt::Plain(_) => (width.plain_tiles, PLAIN_TILE_N),
        // Two tiles where one is of gates and the other of what they gate, or where there are strips enough.
        WeightsAt::Packed(_) => (1 + usize::from(gated || outputs > 4 * PACKED_TILE_N * width.blocks), PACKED_TILE_N),
    };
    let columns = tiles_across * tile_n;
    let strips = if gated { (outputs / 2).div_ceil(columns / 2) } else { outputs.div_ceil(columns) };
    let common = PhaseDescriptor {
        kind: MATMUL,
        tiles_across: word(tiles_across),
        inputs: word(inputs),
        outputs: word(outputs),
        x_stride: word(inputs),
        strips: word(strips),
        gated: u32::from(gated),
        ..PhaseDescriptor::default()
    };
    match weights {
        WeightsAt::Plain(weights) => PhaseDescriptor {
            weights,
            tile_k: word(PLAIN_TILE_K),
            k_tiles: word(inputs.div_ceil(PLAIN_TILE_K)),
            tile_bytes: word(PLAIN_TILE_BYTES),
            ..common
        },
        WeightsAt::Packed(PackedMatrix { tiles, input_order, layout }) => PhaseDescriptor {
            weights: tiles,
            weight_kind: if layout.bits == 8 { INT8 } else { INT4 },
            input_order,
            tile_k: word(layout.tile_k()),
            k_tiles: word(layout.tiles()),
            tile_bytes: word(layout.tile_bytes()),
            group_size: word(layout.group),
            offset_kind: offset_kind(layout.offset),
            ..common
        },
    }
}
