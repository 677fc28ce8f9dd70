//! TensorRT's log, on its way from C++ to the program.

use std::sync::Mutex;

use super::table::Bytes;

/// The program's function that hears the log, which opening a library sets.
pub(super) static LOG: Mutex<Option<unsafe extern "C" fn(i32, Bytes)>> = Mutex::new(None);

/// Passes a message on to it. C++ calls this over the bridge.
pub(super) fn on_log(severity: i32, message: String) {
    if let Ok(log) = LOG.lock()
        && let Some(log) = *log
    {
        // SAFETY: a function of the program, which stays.
        unsafe { log(severity, Bytes::of(message.as_bytes())) }
    }
}
