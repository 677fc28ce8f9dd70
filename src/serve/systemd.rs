//! Notifies systemd of readiness, and of the worker being alive (watchdog).

use std::sync::Mutex;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use super::state::{Phase, State};

struct Told {
    ready: bool,
    last: Instant,
}

static TOLD: Mutex<Option<Told>> = Mutex::new(None);

/// Silence after which the worker counts as hung: no step of an engine takes this long.
const HANGS: Duration = Duration::from_secs(60);

/// Sends due notifications; called often. Does nothing outside a systemd service.
pub(super) fn report(state: &State) {
    let Ok(mut told) = TOLD.lock() else { return };
    let told = told.get_or_insert_with(|| Told { ready: false, last: Instant::now() });
    if !told.ready && state.phase() == Phase::Ready {
        told.ready = true;
        let device = state.about().map(|about| format!("serving on {}", about.device)).unwrap_or_default();
        let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&device)]);
    }
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    // While a model loads there is no worker to be heard of.
    let alive = state.phase() == Phase::Loading || state.silence() < HANGS;
    if alive && told.last.elapsed() > interval / 3 {
        told.last = Instant::now();
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
    }
}

pub(super) fn stopping() {
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
}
