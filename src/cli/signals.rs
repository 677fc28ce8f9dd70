//! Signals: which end a command, how, and which do not.
//!
//! Ctrl-C, SIGTERM and SIGHUP are asked for by `ctrlc`. The others here are blocked before there is a second thread, so that
//! all threads inherit it, and taken by a thread of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use super::{Exit, say};

/// How long a command may take to stop by itself: longer than a build gives its child.
const STOPPING: Duration = Duration::from_secs(15);

/// What a server hears besides, and would be ended by at once, amid its answers.
const HEARD: [Signal; 3] = [Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Blocks signals for this thread and for those it will start: to be called by the only one there is.
pub(super) fn block(serves: bool) {
    // Beyond `ulimit -f` the kernel sends SIGXFSZ, which ends the process where it stands. Blocked, the write fails
    // (EFBIG), is told with the file's name, and what is half written is removed.
    let mut blocked = SigSet::from(Signal::SIGXFSZ);
    if serves {
        blocked.extend(HEARD);
    }
    // Fails for no set of signals that exist.
    let _ = blocked.thread_block();
}

/// A flag that signals set. The first asks to stop, the second insists; a server drains for as long as it was told.
pub(super) fn cancel(serves: bool) -> Arc<AtomicBool> {
    let cancel = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&cancel);
    let patience = (!serves).then_some(STOPPING);
    // Fails only when a handler is set already; then Ctrl-C simply ends the process.
    let _ = ctrlc::set_handler(move || ask(&flag, patience));
    if serves {
        let flag = Arc::clone(&cancel);
        // Without the thread these signals are never heard, and SIGTERM still ends the server.
        let _ = std::thread::Builder::new().name("signals".to_owned()).spawn(move || listen(&flag));
    }
    cancel
}

fn ask(flag: &AtomicBool, patience: Option<Duration>) {
    if flag.swap(true, Ordering::Relaxed) {
        std::process::exit(i32::from(Exit::Cancelled as u8));
    }
    say("stopping (once more to insist)");
    // Services and `timeout` ask once. What does not look at the flag (one long computation) is ended all the same.
    if let Some(patience) = patience {
        // Aside: the second signal is heard meanwhile.
        std::thread::spawn(move || {
            std::thread::sleep(patience);
            std::process::exit(i32::from(Exit::Cancelled as u8));
        });
    }
}

fn listen(flag: &AtomicBool) {
    let heard: SigSet = HEARD.into_iter().collect();
    while let Ok(signal) = heard.wait() {
        match signal {
            Signal::SIGQUIT => ask(flag, None),
            other => tracing::warn!("{other} is ignored: nothing here is done by it; SIGTERM ends the server"),
        }
    }
}
