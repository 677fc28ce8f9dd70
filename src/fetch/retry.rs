//! Retries of failed requests: how often, how long, and what is logged.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ureq::Body;
use ureq::http::{Response, StatusCode, header};

use super::{Cancelled, FetchError};
use crate::address;
use crate::progress::{Event, Progress};

/// Limits of retries.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Failures in a row after which to give up.
    pub attempts: u32,
    /// First pause; doubled after each failure.
    pub pause: Duration,
    /// Longest pause, and the longest total wait that a server may ask for before its content arrives.
    pub longest: Duration,
    /// Longest time until a response, redirects included; for a repository's description until its end.
    pub answer: Duration,
    /// Interval over which the speed of a body is measured.
    pub stall: Duration,
    /// Bytes per second below which a body counts as stalled.
    pub slowest: u64,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 6,
            pause: Duration::from_millis(500),
            longest: Duration::from_secs(120),
            answer: Duration::from_secs(60),
            stall: Duration::from_secs(30),
            slowest: 1024,
        }
    }
}

impl Retry {
    /// Bytes that a body at the slowest accepted speed brings in `time`; at least 1.
    pub(super) fn least(&self, time: Duration) -> u64 {
        let bytes = u128::from(self.slowest) * time.as_millis() / 1000;
        u64::try_from(bytes).unwrap_or(u64::MAX).max(1)
    }
}

/// Why an attempt failed.
pub(super) enum Failure {
    /// Trying again cannot help.
    Final(FetchError),
    /// Trying again may help, after the wait that the server asked for, if any.
    Passing { error: FetchError, wait: Option<Duration> },
}

impl Failure {
    /// A failure of the network or the server that may pass.
    pub(super) fn passing(name: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let error = FetchError::Network { name: name.to_owned(), source: source.into() };
        Failure::Passing { error, wait: None }
    }

    /// Converts ureq's error; messages that would repeat the address are replaced.
    pub(super) fn of_ureq(name: &str, error: ureq::Error) -> Self {
        match error {
            ureq::Error::BadUri(_) | ureq::Error::RequireHttpsOnly(_) => Failure::passing(name, "the address is wrong"),
            error => Failure::passing(name, error),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Final(FetchError::Io(error))
    }
}

/// Retries after failures that may pass, and logs each wait.
pub(super) struct Retrier {
    pub(super) settings: Retry,
    pub(super) progress: Arc<dyn Progress>,
    pub(super) cancel: Arc<AtomicBool>,
    /// Set when another download has failed, so that all others are useless.
    pub(super) stopped: AtomicBool,
}

impl Retrier {
    /// Tries a bounded number of times in a row. `arrived` counts bytes: an attempt that brought as many as the slowest
    /// accepted server would in one interval restarts the count. Fewer do not, or a byte at a time would never end.
    pub(super) fn retrying<T>(
        &self,
        name: &str,
        arrived: impl Fn() -> u64,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, FetchError> {
        let (mut failures, mut asked) = (0, Duration::ZERO);
        loop {
            let before = arrived();
            let (error, wait) = match attempt() {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { error, wait }) => (error, wait),
            };
            if arrived().saturating_sub(before) >= self.settings.least(self.settings.stall) {
                (failures, asked) = (0, Duration::ZERO);
            }
            failures += 1;
            if failures >= self.settings.attempts {
                return Err(FetchError::GaveUp { attempts: failures, last: Box::new(error) });
            }
            asked = asked.saturating_add(wait.unwrap_or_default());
            if let Some(wait) = wait.filter(|_| asked > self.settings.longest) {
                let (name, longest) = (name.to_owned(), self.settings.longest.as_secs());
                return Err(FetchError::AskedToWait { name, seconds: wait.as_secs(), longest });
            }
            let doubled = self.settings.pause.saturating_mul(1 << (failures - 1).min(16)).min(self.settings.longest);
            self.wait(&error, wait.unwrap_or(doubled), failures + 1)?;
        }
    }

    /// Logs the wait before try number `next`, and waits.
    fn wait(&self, error: &FetchError, time: Duration, next: u32) -> Result<(), FetchError> {
        if !time.is_zero() {
            let error = error.to_string();
            let what = error.lines().next().unwrap_or_default();
            let (seconds, tries) = (time.as_secs_f64(), self.settings.attempts);
            let text = format!("{what}; trying again in {seconds:.1} s (try {next} of {tries})");
            self.progress.event(Event::Warning(&text));
        }
        let mut left = time;
        while !left.is_zero() {
            self.check_cancel()?;
            let step = left.min(Duration::from_millis(100));
            std::thread::sleep(step);
            left -= step;
        }
        Ok(())
    }

    pub(super) fn check_cancel(&self) -> Result<(), FetchError> {
        let ends = self.cancel.load(Ordering::Relaxed) || self.stopped.load(Ordering::Relaxed);
        if ends { Err(FetchError::Cancelled(Cancelled)) } else { Ok(()) }
    }
}

/// The failure for a response that is not the content.
pub(super) fn refusal(name: &str, url: &str, status: StatusCode, response: &Response<Body>) -> Failure {
    let error = status_error(name, url, status, response);
    match status.as_u16() {
        408 | 429 | 500..=599 => Failure::Passing { error, wait: retry_after(response) },
        _ => Failure::Final(error),
    }
}

/// `Retry-After` in seconds; the date form, which no hub sends, counts as absent.
fn retry_after(response: &Response<Body>) -> Option<Duration> {
    seconds(response.headers().get(header::RETRY_AFTER)?.to_str().ok()?)
}

pub(super) fn seconds(text: &str) -> Option<Duration> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // More digits than a number holds are a long time too.
    is_number.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

/// The error for a status; the hub's own error code, if there is one, decides.
fn status_error(name: &str, url: &str, status: StatusCode, response: &Response<Body>) -> FetchError {
    let code = response.headers().get("x-error-code").and_then(|value| value.to_str().ok()).unwrap_or("");
    let name = name.to_owned();
    match (status.as_u16(), code) {
        (_, "GatedRepo") => FetchError::Gated { name },
        (_, "RevisionNotFound") => FetchError::NoSuchRevision { name },
        (401 | 403, _) => FetchError::Unauthorized { name },
        (404, _) => FetchError::NotFound { name, url: address::shown(url) },
        (429, _) => FetchError::RateLimited { name },
        (status, _) => FetchError::Status { name, status },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after() {
        let cases = [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Wed, 21 Oct 2026 07:28:00 GMT", None),
            ("-1", None),
            ("1.5", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(seconds(text), expected.map(Duration::from_secs), "{text:?}");
        }
    }
}
