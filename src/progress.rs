//! Progress of long work as events. The library only emits them; `cli::progress` displays them.

/// A progress event. A transfer is `Transfer`, any number of `TransferAt`, then `TransferDone`; an engine build is
/// nested `Phase` … `PhaseDone` with `Step` in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A stage of the pipeline begins, as a line of text, e.g. "gender: building".
    Stage(&'a str),
    /// A warning, as a line of text.
    Warning(&'a str),
    /// A transfer begins.
    Transfer {
        /// Name of the file, unique among running transfers.
        name: &'a str,
        /// Bytes present from an earlier run.
        done: u64,
        /// Size of the file in bytes, if known.
        total: Option<u64>,
    },
    /// A transfer has progressed.
    TransferAt {
        /// Name of the file.
        name: &'a str,
        /// Bytes on disk so far.
        done: u64,
    },
    /// A transfer ended, with or without success.
    TransferDone {
        /// Name of the file.
        name: &'a str,
    },
    /// A phase of a build begins.
    Phase {
        /// Name of the phase.
        name: &'a str,
        /// Number of steps in the phase.
        steps: u64,
    },
    /// A phase has progressed.
    Step {
        /// Name of the phase.
        phase: &'a str,
        /// Steps completed so far.
        done: u64,
    },
    /// A phase ended.
    PhaseDone {
        /// Name of the phase.
        name: &'a str,
    },
}

/// A receiver of progress events, which may come from any thread.
pub trait Progress: Send + Sync {
    /// Receives an event; must return quickly.
    fn event(&self, event: Event<'_>);
}

/// A receiver that ignores all events.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _event: Event<'_>) {}
}
