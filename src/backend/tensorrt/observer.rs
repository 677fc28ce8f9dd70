//! Forwards TensorRT's build phases as progress events, and a cancellation to TensorRT.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use watus_shim::{Bytes, Observer};

use crate::progress::{Event, Progress};

/// Receives callbacks from TensorRT's builder, on any of its threads.
pub struct BuildObserver {
    progress: Arc<dyn Progress>,
    cancel: Arc<AtomicBool>,
}

impl BuildObserver {
    /// Reports to `progress`, and stops the build once `cancel` is true.
    pub fn new(progress: Arc<dyn Progress>, cancel: Arc<AtomicBool>) -> Self {
        Self { progress, cancel }
    }

    fn phase_start(&self, phase: &str, steps: i32) {
        self.progress.event(Event::Phase { name: phase, steps: u64::try_from(steps).unwrap_or(0) });
    }

    fn step_complete(&self, phase: &str, step: i32) -> bool {
        // TensorRT counts steps from zero.
        let done = u64::try_from(step).unwrap_or(0) + 1;
        self.progress.event(Event::Step { phase, done });
        !self.cancel.load(Ordering::Relaxed)
    }

    /// The observer as the shim's C struct, valid while `self` is borrowed.
    pub(super) fn as_c(&self) -> Observer {
        Observer { context: std::ptr::from_ref(self).cast(), phase_start, step_complete, phase_finish }
    }
}

/// # Safety
/// What [`BuildObserver::as_c`] gave, while the observer is borrowed, and a name of TensorRT's.
unsafe fn read<'a>(context: *const c_void, phase: Bytes) -> (&'a BuildObserver, std::borrow::Cow<'a, str>) {
    // SAFETY: the caller's word.
    unsafe { (&*context.cast(), String::from_utf8_lossy(phase.as_slice())) }
}

unsafe extern "C" fn phase_start(context: *const c_void, phase: Bytes, steps: i32) {
    // SAFETY: the shim's word, for this and the two below.
    let (observer, phase) = unsafe { read(context, phase) };
    observer.phase_start(&phase, steps);
}

unsafe extern "C" fn step_complete(context: *const c_void, phase: Bytes, step: i32) -> bool {
    // SAFETY: see above.
    let (observer, phase) = unsafe { read(context, phase) };
    observer.step_complete(&phase, step)
}

unsafe extern "C" fn phase_finish(context: *const c_void, phase: Bytes) {
    // SAFETY: see above.
    let (observer, phase) = unsafe { read(context, phase) };
    observer.progress.event(Event::PhaseDone { name: &phase });
}
