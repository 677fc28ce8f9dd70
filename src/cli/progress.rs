//! Displays progress: bars on a terminal, plain lines elsewhere, nothing with `--quiet`.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::say;
use crate::log::{printable, printable_text};
use crate::memory;
use crate::progress::{Event, Progress, Silent};

/// The display that fits standard error.
pub(super) fn new(quiet: bool) -> Arc<dyn Progress> {
    if quiet {
        Arc::new(Silent)
    } else if std::io::stderr().is_terminal() {
        Arc::new(Bars { multi: MultiProgress::new(), open: Mutex::default() })
    } else {
        Arc::new(Lines { transfers: Mutex::default() })
    }
}

struct Bars {
    multi: MultiProgress,
    open: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    fn add(&self, name: &str, length: Option<u64>, bytes: bool) -> Option<ProgressBar> {
        let template = match (length, bytes) {
            (Some(_), true) => "  {msg:30!} {bar:30} {bytes:>10}/{total_bytes} {bytes_per_sec} {eta}",
            (Some(_), false) => "  {msg:50!} {bar:30} {pos}/{len}",
            (None, _) => "  {msg:50!} {spinner}",
        };
        let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        let bar = self.multi.add(bar.with_style(ProgressStyle::with_template(template).ok()?));
        bar.set_message(printable(name).into_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        let old = self.open.lock().ok()?.insert(name.to_owned(), bar.clone());
        if let Some(old) = old {
            old.finish_and_clear();
        }
        Some(bar)
    }

    fn set(&self, name: &str, position: u64) {
        if let Ok(open) = self.open.lock()
            && let Some(bar) = open.get(name)
        {
            bar.set_position(position);
        }
    }

    fn finish(&self, name: &str) {
        if let Ok(mut open) = self.open.lock()
            && let Some(bar) = open.remove(name)
        {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bars {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Stage(text) => {
                let _ = self.multi.println(printable_text(text));
            }
            Event::Warning(text) => {
                let _ = self.multi.println(printable_text(&format!("warning: {text}")));
            }
            Event::Transfer { name, done, total } => {
                if let Some(bar) = self.add(name, total, true) {
                    bar.set_position(done);
                    bar.reset_eta();
                }
            }
            Event::TransferAt { name, done } => self.set(name, done),
            Event::Phase { name, steps } => {
                self.add(name, Some(steps), false);
            }
            Event::Step { phase, done } => self.set(phase, done),
            Event::TransferDone { name } | Event::PhaseDone { name } => self.finish(name),
        }
    }
}

/// Shortest time between two lines about one running transfer.
const LINE_EVERY: Duration = Duration::from_secs(5);

struct Lines {
    /// Total bytes of each running transfer and when its last line was printed, by name.
    transfers: Mutex<HashMap<String, (Option<u64>, Instant)>>,
}

impl Progress for Lines {
    fn event(&self, event: Event<'_>) {
        let Ok(mut transfers) = self.transfers.lock() else { return };
        match event {
            Event::Stage(text) => say(text),
            Event::Warning(text) => say(format!("warning: {text}")),
            Event::Transfer { name, total, .. } => {
                let size = total.map(|total| format!(" ({})", memory::format_bytes(total))).unwrap_or_default();
                say(format!("  fetching {name}{size}"));
                transfers.insert(name.to_owned(), (total, Instant::now()));
            }
            Event::TransferAt { name, done } => {
                if let Some((total, last)) = transfers.get_mut(name)
                    && last.elapsed() >= LINE_EVERY
                {
                    let percent = total.filter(|total| *total > 0).map(|total| format!(" {} %", done * 100 / total));
                    say(format!("  {name}: {}{}", memory::format_bytes(done), percent.unwrap_or_default()));
                    *last = Instant::now();
                }
            }
            Event::TransferDone { name } => {
                transfers.remove(name);
            }
            // Dozens of phases a second: a log wants the stages alone.
            Event::Phase { .. } | Event::Step { .. } | Event::PhaseDone { .. } => {}
        }
    }
}
