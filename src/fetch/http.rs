//! Downloads a file over HTTP into a part file, robustly against misbehaving servers.
//!
//! A download resumes where the last run stopped (`Range`), is checked against its digest before it gets its final
//! name, and gives up after a bounded number of failures in a row. Sufficient progress resets the count (`retry.rs`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

use super::FetchError;
use super::digest::Digest;
use super::request::{HttpRequest, send};
use super::retry::{Failure, Retrier, Retry, refusal};
use crate::address;
use crate::artifact::about;
use crate::progress::{Event, Progress};

/// A file to download.
#[derive(Debug, Clone)]
pub struct Download {
    /// Address of the file.
    pub url: String,
    /// Name for progress and errors.
    pub name: String,
    /// Final path; the part file is `TARGET.incomplete`.
    pub target: PathBuf,
    /// Digest that the file must have.
    pub digest: Digest,
    /// Length in bytes, if known beforehand.
    pub size: Option<u64>,
    /// Token sent as `Authorization: Bearer …`, to the address's own origin only.
    pub token: Option<String>,
    /// Check of the file's beginning while it downloads.
    pub(super) inspection: Option<Inspection>,
}

/// A check of the first bytes of a download, which decides whether the rest is worth downloading.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inspection {
    /// Bytes to wait for; doubled each time that these are too few.
    pub(super) first: u64,
    /// Checks a part file, given the bytes that have arrived and the total; true if it needs more.
    pub(super) needs_more: fn(&Download, &mut File, u64, u64) -> Result<bool, Failure>,
}

/// Downloads files with shared connections and settings.
pub struct Downloader {
    agent: Agent,
    retrier: Retrier,
}

impl Downloader {
    /// A downloader that stops, resumably, once `cancel` is true.
    pub fn new(retry: Retry, progress: Arc<dyn Progress>, cancel: Arc<AtomicBool>) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // `request.rs` follows them.
            .max_redirects(0)
            // Silence is a stall too.
            .timeout_per_read(Some(retry.stall))
            .user_agent(concat!("watus-build/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        let stopped = AtomicBool::new(false);
        Self { agent, retrier: Retrier { settings: retry, progress, cancel, stopped } }
    }

    /// Stops running downloads, resumably, as if the user had cancelled.
    pub(super) fn stop(&self) {
        self.retrier.stopped.store(true, Ordering::Relaxed);
    }

    /// Downloads a text of at most `limit` bytes, e.g. the hub's description of a repository.
    pub(super) fn text(&self, name: &str, url: &str, token: Option<&str>, limit: u64) -> Result<String, FetchError> {
        let patience = self.retrier.settings.answer;
        let request = HttpRequest { name, address: url, token, from: None, patience, whole: true };
        let attempt = || -> Result<String, Failure> {
            self.retrier.check_cancel().map_err(Failure::Final)?;
            let mut response = send(&self.agent, &request)?;
            if !response.status().is_success() {
                return Err(refusal(name, url, response.status(), &response));
            }
            let read = response.body_mut().with_config().limit(limit).read_to_string();
            read.map_err(|error| Failure::of_ureq(name, error))
        };
        self.retrier.retrying(name, || 0, attempt)
    }

    /// Downloads the file unless the target exists. The target appears complete and verified, or not at all.
    pub fn download(&self, download: &Download) -> Result<(), FetchError> {
        if download.target.exists() {
            return Ok(());
        }
        if let Some(parent) = download.target.parent() {
            fs::create_dir_all(parent).map_err(about(parent))?;
        }
        let part = part_path(&download.target);
        let file = OpenOptions::new().read(true).append(true).create(true).open(&part).map_err(about(&part))?;
        // Two runs may want the same file: the second waits, then finds it done.
        file.lock().map_err(about(&part))?;
        if download.target.exists() {
            let _ = fs::remove_file(&part);
            return Ok(());
        }
        let result = self.fill(download, file, &part);
        self.retrier.progress.event(Event::TransferDone { name: &download.name });
        result
    }

    fn fill(&self, download: &Download, mut file: File, part: &Path) -> Result<(), FetchError> {
        let have = file.metadata().map_err(about(part))?.len();
        self.retrier.progress.event(Event::Transfer { name: &download.name, done: have, total: download.size });
        let mut wrong_once = false;
        loop {
            self.complete(download, &mut file)?;
            if download.digest.matches(part).map_err(about(part))? {
                file.sync_all().map_err(about(part))?;
                fs::rename(part, &download.target).map_err(about(&download.target))?;
                return Ok(());
            }
            // Resumed onto a stale or damaged part? One clean try tells.
            file.set_len(0).map_err(about(part))?;
            if wrong_once {
                let _ = fs::remove_file(part);
                return Err(FetchError::WrongHash { name: download.name.clone(), url: address::shown(&download.url) });
            }
            wrong_once = true;
        }
    }

    /// Downloads until the part file has the length that the server announced.
    fn complete(&self, download: &Download, file: &mut File) -> Result<(), FetchError> {
        let length = file.try_clone()?;
        let arrived = || length.metadata().map_or(0, |metadata| metadata.len());
        self.retrier.retrying(&download.name, arrived, || self.attempt(download, file))
    }

    fn attempt(&self, download: &Download, file: &mut File) -> Result<(), Failure> {
        self.retrier.check_cancel().map_err(Failure::Final)?;
        let mut start = file.metadata()?.len();
        if download.size.is_some_and(|size| start > size) {
            file.set_len(0)?;
            start = 0;
        }
        if start > 0 && download.size == Some(start) {
            return Ok(());
        }
        let request = HttpRequest {
            name: &download.name,
            address: &download.url,
            token: download.token.as_deref(),
            from: Some(start),
            patience: self.retrier.settings.answer,
            whole: false,
        };
        let response = send(&self.agent, &request)?;
        let total = match accept(download, &response, file, &mut start)? {
            Accepted::Complete => return Ok(()),
            Accepted::Follows(total) => total,
        };
        self.receive(download, response, file, start, total)
    }

    fn receive(
        &self,
        download: &Download,
        response: Response<Body>,
        file: &mut File,
        start: u64,
        total: Option<u64>,
    ) -> Result<(), Failure> {
        let name = &download.name;
        let limit = download.size.or(total);
        let mut reader = response.into_body().into_reader();
        let mut done = start;
        let mut pace = Pace { since: Instant::now(), done };
        let mut buffer = vec![0u8; 256 * 1024];
        let mut look = download.inspection;
        file.seek(SeekFrom::End(0))?;
        loop {
            self.retrier.check_cancel().map_err(Failure::Final)?;
            let read = match reader.read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::passing(name, error)),
            };
            if read == 0 {
                break;
            }
            done += read as u64;
            if limit.is_some_and(|limit| done > limit) {
                file.set_len(0)?;
                return Err(Failure::passing(name, "the server sends more than it announced"));
            }
            file.write_all(&buffer[..read])?;
            self.retrier.progress.event(Event::TransferAt { name, done });
            if limit != Some(done) {
                pace.check(&self.retrier.settings, done).map_err(|slow| Failure::passing(name, slow))?;
            }
            if let (Some(Inspection { first, needs_more }), Some(total)) = (look, limit)
                && done >= first.min(total)
            {
                let again = Inspection { first: first * 2, needs_more };
                look = needs_more(download, file, done, total)?.then_some(again);
            }
        }
        match limit {
            Some(limit) if done < limit => {
                Err(Failure::passing(name, format!("connection closed at {done} of {limit} bytes")))
            }
            _ => Ok(()),
        }
    }
}

/// Measures the speed of a body.
struct Pace {
    since: Instant,
    done: u64,
}

impl Pace {
    /// Checks the speed once per [`Retry::stall`]; a server that sends single bytes would keep every read alive.
    fn check(&mut self, settings: &Retry, done: u64) -> Result<(), String> {
        let time = self.since.elapsed();
        if time < settings.stall {
            return Ok(());
        }
        let came = done - self.done;
        if came < settings.least(time) {
            return Err(format!("stalled: {came} bytes came in {:.1} s", time.as_secs_f64()));
        }
        (self.since, self.done) = (Instant::now(), done);
        Ok(())
    }
}

/// Path of the part file of `target`; huggingface_hub uses the same.
pub fn part_path(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".incomplete");
    PathBuf::from(name)
}

enum Accepted {
    Complete,
    /// The total length, if the server announces it.
    Follows(Option<u64>),
}

/// Checks a response's status line and headers; sets `start` to 0 if the server ignores the range.
fn accept(
    download: &Download,
    response: &Response<Body>,
    file: &mut File,
    start: &mut u64,
) -> Result<Accepted, Failure> {
    let text = |name: header::HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let range = text(header::CONTENT_RANGE).and_then(parse_content_range);
            match range {
                Some((first, total)) if first == *start => Ok(Accepted::Follows(total)),
                _ => {
                    // Bytes of some other place: nothing of this part file can be trusted.
                    file.set_len(0)?;
                    Err(Failure::passing(&download.name, "the server answers with another range than asked"))
                }
            }
        }
        StatusCode::OK => {
            file.set_len(0)?;
            *start = 0;
            Ok(Accepted::Follows(text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok())))
        }
        StatusCode::RANGE_NOT_SATISFIABLE if *start > 0 => {
            let total = text(header::CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes */")?.parse().ok());
            if total == Some(*start) {
                return Ok(Accepted::Complete);
            }
            file.set_len(0)?;
            Err(Failure::Passing {
                error: FetchError::Network { name: download.name.clone(), source: "stale part file".into() },
                wait: Some(Duration::ZERO),
            })
        }
        StatusCode::RANGE_NOT_SATISFIABLE => Ok(Accepted::Complete), // an empty file has no byte 0
        status => Err(refusal(&download.name, &download.url, status, response)),
    }
}

/// Parses `bytes 0-9/100` as (first, total).
fn parse_content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.parse().ok()?, total.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_range() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(parse_content_range("bytes */10"), None);
        assert_eq!(parse_content_range("items 0-1/2"), None);
    }
}
