//! Forwards TensorRT's build phases as progress events, and a cancel request as TensorRT's "stop".

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::progress::{Event, Progress};

/// Called by TensorRT's builder, from any of its threads.
pub struct BuildObserver {
    progress: Arc<dyn Progress>,
    cancel: Arc<AtomicBool>,
}

impl BuildObserver {
    /// Reports to `progress`; stops the build once `cancel` is true.
    pub fn new(progress: Arc<dyn Progress>, cancel: Arc<AtomicBool>) -> Self {
        Self { progress, cancel }
    }

    pub(super) fn phase_start(&self, phase: String, _parent: String, steps: i32) {
        self.progress.event(Event::Phase { name: &phase, steps: u64::try_from(steps).unwrap_or(0) });
    }

    pub(super) fn step_complete(&self, phase: String, step: i32) -> bool {
        // TensorRT counts steps from zero.
        let done = u64::try_from(step).unwrap_or(0) + 1;
        self.progress.event(Event::Step { phase: &phase, done });
        !self.cancel.load(Ordering::Relaxed)
    }

    pub(super) fn phase_finish(&self, phase: String) {
        self.progress.event(Event::PhaseDone { name: &phase });
    }
}
