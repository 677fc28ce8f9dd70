//! A product as the kernel takes it: tiles and strips of its weights.

use super::super::buffers::Buffer;
use super::super::driver::{Address, word};
use super::super::matrix::Matrix;
use super::super::packed_tiles::{self, Layout};
use super::abi::{PLAIN_DEEP, PLAIN_TILE, PRODUCT, Phase, TILE, second};

/// How a product is cut: `across` warps side by side if its weights are plain, for so many blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub(super) across: usize,
    pub(super) blocks: usize,
}

/// A product's shape and weights.
pub(super) fn product(matrix: &Matrix, sizes: [usize; 2], gated: bool, cut: Cut) -> Phase {
    let packed = match matrix {
        Matrix::Plain(_) => None,
        Matrix::Packed { layout, order, .. } => Some((*layout, order.as_ref().map_or(0, Buffer::address))),
    };
    shape((matrix.address(), packed), sizes, gated, cut)
}

/// The same of weights at an address, packed in a layout and in an order or plain. Gated, half of the outputs are gates of
/// the other half.
pub(super) fn shape(
    (weights, packed): (Address, Option<(Layout, Address)>),
    [inputs, outputs]: [usize; 2],
    gated: bool,
    cut: Cut,
) -> Phase {
    // One strip of packed weights at a time, two if gates and what they let through are in two, or if there are many.
    let across = match packed {
        None => cut.across,
        Some(_) => 1 + usize::from(gated || outputs > 4 * packed_tiles::STRIP * cut.blocks),
    };
    let width = across * if packed.is_none() { TILE } else { packed_tiles::STRIP };
    let (made, width) = if gated { (outputs / 2, width / 2) } else { (outputs, width) };
    let common = Phase {
        kind: PRODUCT,
        across: word(across),
        weights,
        inputs: word(inputs),
        outputs: word(outputs),
        stride: word(inputs),
        strips: word(made.div_ceil(width)),
        gated: u32::from(gated),
        ..Phase::default()
    };
    match packed {
        None => Phase {
            tile_k: word(PLAIN_DEEP),
            tiles: word(inputs.div_ceil(PLAIN_DEEP)),
            tile_bytes: word(PLAIN_TILE),
            ..common
        },
        Some((layout, order)) => Phase {
            weight_kind: if layout.bits == 8 { 1 } else { 2 },
            order,
            tile_k: word(layout.deep()),
            tiles: word(layout.tiles()),
            tile_bytes: word(layout.tile_bytes()),
            group: word(layout.group),
            second: second(layout.second),
            ..common
        },
    }
}
