//! Paths through the model: a pass of the engines, or a decode step.

use super::super::decode_kernel::row_class::RowClass;
use crate::convert::LayerShape;

/// Implementation of a decode step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum DecodePath {
    Engines,
    Kernels,
    /// Our kernel for rows of any slots; the batch is the number of rows of logits.
    Rows(RowClass),
}

/// Implementation of the decode steps of a batch, and the number of tokens that each sequence is padded to.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepPath {
    pub(super) path: DecodePath,
    pub(super) chunk: usize,
}

/// Key of a captured decode step: its shape, implementation, and first slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct StepKey {
    pub(super) shape: LayerShape,
    pub(super) path: DecodePath,
    pub(super) slot: usize,
}
