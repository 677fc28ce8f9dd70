//! What long work tells whoever watches. The library only emits events; `cli::progress` alone draws them.

/// Something happened. A transfer is `Transfer`, any number of `TransferAt`, then `TransferDone`;
/// an engine build is nested `Phase` … `PhaseDone` with `Step` in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A stage of the pipeline begins, e.g. "gender: building".
    Stage(&'a str),
    /// Worth a line whatever the verbosity.
    Warning(&'a str),
    /// A file transfer of `total` bytes begins, `done` of which are here already.
    Transfer {
        /// File name, unique among running transfers.
        name: &'a str,
        /// Bytes present from an earlier run.
        done: u64,
        /// Bytes in all, when known.
        total: Option<u64>,
    },
    /// `done` bytes of a running transfer are on disk.
    TransferAt {
        /// As in `Transfer`.
        name: &'a str,
        /// Bytes so far.
        done: u64,
    },
    /// A transfer ended, well or not.
    TransferDone {
        /// As in `Transfer`.
        name: &'a str,
    },
    /// A builder phase of `steps` steps begins.
    Phase {
        /// TensorRT's name of the phase.
        name: &'a str,
        /// Steps it will report.
        steps: u64,
    },
    /// `done` steps of a phase are complete.
    Step {
        /// TensorRT's name of the phase.
        phase: &'a str,
        /// Steps so far.
        done: u64,
    },
    /// A builder phase ended.
    PhaseDone {
        /// TensorRT's name of the phase.
        name: &'a str,
    },
}

/// Receives events, from any thread.
pub trait Progress: Send + Sync {
    /// Called for every event; must return quickly.
    fn event(&self, event: Event<'_>);
}

/// Ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _event: Event<'_>) {}
}
