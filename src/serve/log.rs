//! One log entry per request, written when its last byte is sent. Prompts and answers are left out, unless requested.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::generation::Usage;

/// Receives log entries; the command line prints them.
pub type Log = Arc<dyn Fn(&LogEntry) + Send + Sync>;

/// A log entry of a finished request.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub struct LogEntry {
    /// Seconds since 1970.
    pub time: f64,
    pub request_id: String,
    pub path: String,
    /// Status of the response; 499 if the client closed the connection.
    pub status: u16,
    pub seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answered>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The prompt, with `--log-prompts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The answer, with `--log-prompts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// Token counts and times of an answer.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs)]
pub struct Answered {
    pub stream: bool,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    pub completion_tokens: usize,
    /// Tokens that were drafted, those of them that the model says as well, and those that a grammar forced.
    pub drafted_tokens: usize,
    pub accepted_tokens: usize,
    pub forced_tokens: usize,
    pub first_token_seconds: f64,
    pub tokens_per_second: f64,
    pub finish_reason: &'static str,
}

/// A log entry that is being filled; dropping it logs it.
pub(super) struct AccessRecord {
    entry: LogEntry,
    begun: Instant,
    log: Log,
    over: bool,
    silent: bool,
}

/// nginx's status for a client that closed the connection.
const CLIENT_CLOSED: u16 = 499;

impl AccessRecord {
    pub(super) fn new(log: &Log, request_id: &str, path: &str, prompt: Option<String>) -> Self {
        let entry = LogEntry {
            time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            request_id: request_id.to_owned(),
            path: path.to_owned(),
            status: CLIENT_CLOSED,
            text: prompt.is_some().then(String::new),
            prompt,
            ..LogEntry::default()
        };
        Self { entry, begun: Instant::now(), log: Arc::clone(log), over: false, silent: false }
    }

    /// Sets the time at which the request arrived.
    pub(super) fn since(mut self, begun: Instant) -> Self {
        self.begun = begun;
        self
    }

    /// Drops the entry without logging it, because another one is logged.
    pub(super) fn unneeded(mut self) {
        self.silent = true;
    }

    pub(super) fn append_text(&mut self, text: &str) {
        if let Some(said) = &mut self.entry.text {
            said.push_str(text);
        }
    }

    /// Updates the token counts of an answer.
    pub(super) fn progress(&mut self, usage: &Usage, stream: bool) {
        if self.entry.answer.is_none() {
            let first = self.begun.elapsed().as_secs_f64();
            self.entry.answer = Some(Answered { stream, first_token_seconds: first, ..Answered::default() });
        }
        if let Some(answer) = &mut self.entry.answer {
            answer.prompt_tokens = usage.prompt;
            answer.cached_tokens = usage.reused;
            answer.completion_tokens = usage.answer;
            answer.drafted_tokens = usage.speculation.drafted;
            answer.accepted_tokens = usage.speculation.accepted;
            answer.forced_tokens = usage.speculation.forced;
            let seconds = usage.rest.as_secs_f64();
            answer.tokens_per_second = if seconds > 0.0 { (usage.answer - 1) as f64 / seconds } else { 0.0 };
        }
    }

    pub(super) fn finished(&mut self, reason: &'static str) {
        self.entry.status = 200;
        self.over = true;
        if let Some(answer) = &mut self.entry.answer {
            answer.finish_reason = reason;
        }
    }

    pub(super) fn failed(&mut self, status: u16, message: &str) {
        self.over = true;
        self.entry.status = status;
        self.entry.error = Some(message.to_owned());
    }
}

impl Drop for AccessRecord {
    fn drop(&mut self) {
        if self.silent {
            return;
        }
        if !self.over {
            self.entry.error = Some("the client went away".to_owned());
        }
        self.entry.seconds = self.begun.elapsed().as_secs_f64();
        (self.log)(&self.entry);
    }
}
