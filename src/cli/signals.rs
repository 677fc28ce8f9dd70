//! Signals: which ones stop a command, and how.
//!
//! Ctrl-C, SIGTERM and SIGHUP are handled by `ctrlc`. The others are blocked before a second thread exists, so that all
//! threads inherit the mask, and are received by a thread of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use super::{Exit, say, screen};

/// Longest time a command may take to stop by itself; longer than a build gives its child process.
const STOPPING: Duration = Duration::from_secs(15);

/// Further signals that a server handles: their default action would end it amid its answers.
const HEARD: [Signal; 3] = [Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Blocks signals for this thread and for the threads it will start. Must be called while there is only one thread.
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

/// Returns a flag that signals set. The first signal asks the command to stop, the second ends the process; a server
/// first drains for as long as `--drain` says.
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
    // A live view ends at once, and what is said then would stand on the terminal that it gives back.
    let is_live = screen::is_taken();
    if flag.swap(true, Ordering::Relaxed) {
        end();
    }
    if !is_live {
        say("stopping (once more to insist)");
    }
    // Services and `timeout` ask once. What does not look at the flag (one long computation) is ended all the same.
    if let Some(patience) = patience {
        // Aside: the second signal is heard meanwhile.
        std::thread::spawn(move || {
            std::thread::sleep(patience);
            end();
        });
    }
}

fn end() -> ! {
    screen::restore();
    std::process::exit(i32::from(Exit::Cancelled as u8));
}

fn listen(flag: &AtomicBool) {
    let heard: SigSet = HEARD.into_iter().collect();
    while let Ok(signal) = heard.wait() {
        match signal {
            Signal::SIGQUIT => ask(flag, None),
            other => tracing::warn!("{other} is ignored: it has no meaning here; SIGTERM ends the server"),
        }
    }
}
