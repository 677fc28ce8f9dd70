//! A weight on the device: a plain matrix or vector, or packed integers.

use super::buffers::Buffer;
use super::driver::Address;
use super::packed_tiles::Layout;

/// A weight on the device.
pub(super) enum Matrix {
    /// A matrix `[inputs, outputs]`, or a vector.
    Plain(Buffer),
    /// Small integers in tiles, as the decode kernel reads them.
    Packed {
        tiles: Buffer,
        /// uint32: where its inputs are, if not in their place.
        order: Option<Buffer>,
        layout: Layout,
    },
}

impl Matrix {
    pub(super) fn address(&self) -> Address {
        match self {
            Matrix::Plain(buffer) | Matrix::Packed { tiles: buffer, .. } => buffer.address(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Matrix::Plain(buffer) => buffer.len(),
            Matrix::Packed { tiles, order, .. } => tiles.len() + order.as_ref().map_or(0, Buffer::len),
        }
    }
}
