//! What a running `serve` tells of itself, from its `/metrics`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

/// Longest wait for the server, during which the view stands still.
const PATIENCE: Duration = Duration::from_millis(500);
/// Most bytes of its metrics.
const LONGEST: u64 = 4 << 20;

/// A server at one moment, as `--json` prints it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct ServerReading {
    /// Its address.
    pub(super) url: String,
    /// Why it tells nothing; the other fields are absent then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// Tokens of answers a second since the last reading, of all requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tokens_per_second: Option<f64>,
    /// Tokens of prompts a second since the last reading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_tokens_per_second: Option<f64>,
    /// Requests that are answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) requests_running: Option<u64>,
    /// Requests in the queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) requests_waiting: Option<u64>,
    /// Requests that can be answered at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) slots: Option<u64>,
}

/// What is read of the metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Counts {
    answered: f64,
    prompted: f64,
    running: u64,
    waiting: u64,
    slots: u64,
}

/// A server that is asked again and again.
pub(super) struct Server {
    agent: ureq::Agent,
    url: String,
    key: Option<String>,
    /// Whether it was named; another one need not be there.
    named: bool,
    /// Somebody else listens at the address where it was looked for.
    foreign: bool,
    last: Option<(Instant, Counts)>,
}

impl Server {
    /// The server at `url`, or the one that may be at `usual`.
    pub(super) fn new(url: Option<&str>, usual: &str, key_file: Option<&Path>) -> anyhow::Result<Self> {
        let read = |path: &Path| -> anyhow::Result<String> {
            let text = crate::regular_file::read_text(path, 1 << 20);
            let text = text.with_context(|| format!("cannot read {}", path.display()))?;
            Ok(text.lines().next().unwrap_or_default().trim().to_owned())
        };
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
        Ok(Self {
            agent: config.build().into(),
            url: url.unwrap_or(usual).trim_end_matches('/').trim_end_matches("/v1").to_owned(),
            key: key_file.map(read).transpose()?,
            named: url.is_some(),
            foreign: false,
            last: None,
        })
    }

    /// Asks it. `None` if it was not named and is not there.
    pub(super) fn read(&mut self) -> Option<ServerReading> {
        if self.foreign {
            return None;
        }
        let counts = match self.ask() {
            Ok(counts) => counts,
            Err(error) => {
                self.last = None;
                let unknown = ServerReading { url: self.url.clone(), error: Some(error), ..ServerReading::default() };
                return self.named.then_some(unknown);
            }
        };
        let now = Instant::now();
        let before = self.last.replace((now, counts));
        let rate = |of: fn(&Counts) -> f64| {
            let (then, before) = before.as_ref()?;
            let passed = now.duration_since(*then).as_secs_f64();
            let more = of(&counts) - of(before);
            // Fewer than before: another server is there now.
            (passed > 0.0 && more >= 0.0).then(|| (more / passed * 10.0).round() / 10.0)
        };
        Some(ServerReading {
            url: self.url.clone(),
            error: None,
            tokens_per_second: rate(|counts| counts.answered),
            prompt_tokens_per_second: rate(|counts| counts.prompted),
            requests_running: Some(counts.running),
            requests_waiting: Some(counts.waiting),
            slots: Some(counts.slots),
        })
    }

    fn ask(&mut self) -> Result<Counts, String> {
        let mut request = self.agent.get(format!("{}/metrics", self.url));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.call().map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(LONGEST).read_to_string();
        let counts = text.map_err(|error| error.to_string()).and_then(|text| match status {
            200 => parse(&text)
                .ok_or_else(|| "what answers there is no watus-build: --server names another address".to_owned()),
            401 | 403 => Err(format!("status {status}: give its key with --api-key-file")),
            status => Err(format!("status {status}")),
        });
        // It is not asked each second for what it does not have, and does not log who has no key.
        self.foreign = counts.is_err() && !self.named;
        counts
    }
}

/// Reads the metrics that are shown; `None` if they are not those of `serve`.
fn parse(text: &str) -> Option<Counts> {
    let value = |name: &str| {
        let told = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        told.trim().parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0)
    };
    // Saturates; what is not finite was left out.
    let whole = |name: &str| value(name).map(|value| value as u64);
    Some(Counts {
        answered: value("watus_tokens_total{kind=\"answer\"}").unwrap_or(0.0),
        prompted: value("watus_tokens_total{kind=\"prompt\"}").unwrap_or(0.0),
        running: whole("watus_requests_running")?,
        waiting: whole("watus_requests_waiting")?,
        slots: whole("watus_slots")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_serve_alone_are_read() {
        let text = "# HELP watus_slots Requests that can run at once.\n# TYPE watus_slots gauge\nwatus_slots 4\n\
                    watus_requests_waiting 3\nwatus_requests_running 2\nwatus_tokens_total{kind=\"answer\"} 120\n\
                    watus_tokens_total{kind=\"reused\"} 9\n# EOF\n";
        let counts = Counts { answered: 120.0, prompted: 0.0, running: 2, waiting: 3, slots: 4 };
        assert_eq!(parse(text), Some(counts));
        assert_eq!(parse(&text.replace("watus_", "vllm_")), None);
        assert_eq!(parse(&text.replace("slots 4", "slots -4")), None);
        assert_eq!(parse(&text.replace("slots 4", "slots NaN")), None);
        assert_eq!(parse(""), None);
    }
}
