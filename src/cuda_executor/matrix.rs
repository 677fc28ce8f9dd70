//! Weights on the device: plain matrices and vectors, or packed integers.

use super::buffers::Buffer;
use super::driver::Address;
use super::packed_tiles::PackedLayout;

/// A weight on the device.
pub(super) enum Matrix {
    /// A matrix `[inputs, outputs]`, or a vector.
    Plain(Buffer),
    /// Integers packed in tiles for the decode kernel.
    Packed {
        tiles: Buffer,
        /// For permuted inputs (GPTQ's act-order): the index in the activations of each input, in uint32.
        order: Option<Buffer>,
        layout: PackedLayout,
    },
}

/// Addresses of a packed matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct PackedMatrix {
    pub(super) tiles: Address,
    /// Address of the order of its inputs, or 0.
    pub(super) input_order: Address,
    pub(super) layout: PackedLayout,
}

/// Address of a weight.
#[derive(Debug, Clone, Copy)]
pub(super) enum WeightsAt {
    Plain(Address),
    Packed(PackedMatrix),
}

impl Matrix {
    pub(super) fn address(&self) -> Address {
        match self {
            Matrix::Plain(buffer) | Matrix::Packed { tiles: buffer, .. } => buffer.address(),
        }
    }

    pub(super) fn addresses(&self) -> WeightsAt {
        match self {
            Matrix::Plain(buffer) => WeightsAt::Plain(buffer.address()),
            Matrix::Packed { tiles, order, layout } => WeightsAt::Packed(PackedMatrix {
                tiles: tiles.address(),
                input_order: order.as_ref().map_or(0, Buffer::address),
                layout: *layout,
            }),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Matrix::Plain(buffer) => buffer.len(),
            Matrix::Packed { tiles, order, .. } => tiles.len() + order.as_ref().map_or(0, Buffer::len),
        }
    }
}
