//! What the server is doing, as `/health` tells it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::generation::compiler::GrammarCompiler;
use crate::generation::{RequestLimits, Usage};
use crate::text::Text;

/// In order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    Loading = 0,
    Ready = 1,
    Draining = 2,
    Failed = 3,
}

impl Phase {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}

/// A loaded model.
pub(super) struct About {
    pub(super) engine: String,
    pub(super) device: String,
    /// What the model has to do without.
    pub(super) warnings: Vec<String>,
    pub(super) slots: usize,
    pub(super) limits: RequestLimits,
    pub(super) max_len: usize,
    pub(super) text: Arc<Text>,
    /// Makes grammars for its tokens.
    pub(super) compiler: Arc<GrammarCompiler>,
    /// Special tokens spelled in contents are special.
    pub(super) special: bool,
}

/// See the module.
pub(super) struct State {
    phase: AtomicU8,
    begun: Instant,
    /// Milliseconds after `begun` of the worker's last sign of life.
    beat: AtomicU64,
    about: OnceLock<About>,
    /// Tokens a second of one answer, smoothed.
    rate: Mutex<Option<f64>>,
}

/// Weight of a new answer in the measured rate.
const FRESH: f64 = 0.2;
/// Answers shorter than this say little of the rate.
const SHORTEST: usize = 8;

impl State {
    pub(super) fn new() -> Self {
        let (about, rate) = (OnceLock::new(), Mutex::new(None));
        Self { phase: AtomicU8::new(Phase::Loading as u8), begun: Instant::now(), beat: AtomicU64::new(0), about, rate }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Loading,
            1 => Phase::Ready,
            2 => Phase::Draining,
            _ => Phase::Failed,
        }
    }

    /// Phases follow each other; none goes back.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::Relaxed);
    }

    pub(super) fn loaded(&self, about: About) {
        let _ = self.about.set(about);
        self.enter(Phase::Ready);
    }

    pub(super) fn about(&self) -> Option<&About> {
        self.about.get()
    }

    pub(super) fn uptime(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The worker lives.
    pub(super) fn beat(&self) {
        self.beat.store(u64::try_from(self.uptime().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long ago it last said so.
    pub(super) fn silence(&self) -> Duration {
        self.uptime().saturating_sub(Duration::from_millis(self.beat.load(Ordering::Relaxed)))
    }

    pub(super) fn measured(&self, usage: &Usage) {
        if usage.answer < SHORTEST || usage.rest.is_zero() {
            return;
        }
        let new = (usage.answer - 1) as f64 / usage.rest.as_secs_f64();
        if let Ok(mut rate) = self.rate.lock() {
            *rate = Some(rate.map_or(new, |old| old + FRESH * (new - old)));
        }
    }

    pub(super) fn rate(&self) -> Option<f64> {
        self.rate.lock().ok().and_then(|rate| *rate)
    }
}
