//! Ways through the model: a pass of the engines, or a decode step.

use crate::convert::LayerShape;

/// Who computes a decode step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum DecodePath {
    Engines,
    Kernels,
}

/// Who computes the decode steps of a batch, and how many tokens each sequence is padded to.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepPath {
    pub(super) path: DecodePath,
    pub(super) chunk: usize,
}

/// A captured decode step: its shape, who computes it, and its first slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct StepKey {
    pub(super) shape: LayerShape,
    pub(super) path: DecodePath,
    pub(super) slot: usize,
}

/// A pass of the engines for one sequence: over the first `layers`, or over all.
#[derive(Debug, Clone, Copy)]
pub(super) struct EnginePass {
    pub(super) shape: LayerShape,
    pub(super) slot: usize,
    pub(super) layers: usize,
}
