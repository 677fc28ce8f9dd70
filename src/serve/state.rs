//! The server's state, as `/health` reports it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::generation::compiler::GrammarCompiler;
use crate::generation::{RequestLimits, Usage};
use crate::text::Text;

/// Phases of the server, in order.
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

/// Properties of a loaded model.
pub(super) struct About {
    pub(super) engine: String,
    pub(super) device: String,
    /// Features that the model lacks.
    pub(super) warnings: Vec<String>,
    pub(super) slots: usize,
    pub(super) limits: RequestLimits,
    pub(super) max_len: usize,
    pub(super) text: Arc<Text>,
    /// Makes grammars for its tokens.
    pub(super) compiler: Arc<GrammarCompiler>,
    /// Whether special tokens written in messages are encoded as special tokens.
    pub(super) special: bool,
}

/// State shared by the worker thread and the handlers.
pub(super) struct State {
    phase: AtomicU8,
    begun: Instant,
    /// Time of the worker's last sign of life, in milliseconds after `begun`.
    beat: AtomicU64,
    about: OnceLock<About>,
    /// Decoding speed of one answer in tokens per second, smoothed.
    rate: Mutex<Option<f64>>,
}

/// Weight of a new answer in the smoothed speed.
const FRESH: f64 = 0.2;
/// Fewest tokens of an answer that counts for the speed.
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

    /// Enters a later phase; earlier ones are ignored.
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

    /// Records a sign of life of the worker.
    pub(super) fn beat(&self) {
        self.beat.store(u64::try_from(self.uptime().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Time since the worker's last sign of life.
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
