//! Classes of launches by their rows: the kernel is compiled for each, and has a list of phases for each.

use super::abi::BLOCK_ROWS;

/// How many rows a launch may have, and whether several may be of one cache slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RowClass {
    /// Up to eight, each of a slot of its own.
    Apart,
    /// Up to eight of any slots.
    Eight,
    /// Up to 32 of any slots, in wide strips.
    Thirty2,
    /// Up to 64 of any slots, in wide strips.
    Sixty4,
}

impl RowClass {
    /// The classes whose rows may be of any slots, by their number of rows.
    pub(crate) const SHARED: [Self; 3] = [Self::Eight, Self::Thirty2, Self::Sixty4];

    /// Most rows of a launch.
    pub(crate) fn most(self) -> usize {
        match self {
            Self::Apart | Self::Eight => BLOCK_ROWS,
            Self::Thirty2 => 32,
            Self::Sixty4 => 64,
        }
    }

    /// Most blocks that finish a wide strip, each some of its rows: as many as a warp has blocks of eight rows. 0 where
    /// strips are not wide.
    pub(super) fn finishers(self) -> usize {
        match self.most() {
            BLOCK_ROWS => 0,
            rows => rows / (2 * BLOCK_ROWS),
        }
    }
}
