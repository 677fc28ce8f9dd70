//! One file over HTTP into a part file, however badly the server behaves.
//!
//! A download resumes where the last run stopped (`Range`), is checked against its digest before it gets its name,
//! and gives up after a bounded number of failures in a row. Progress resets the count.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

use super::look;
use super::{Cancelled, FetchError};
use crate::artifact::{feed, hex};
use crate::progress::{Event, Progress};

/// What a file's content must hash to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Digest {
    /// SHA-256 of the content: large files on the hub, `url:` and `pypi:` sources.
    Sha256(String),
    /// Git's object id, SHA-1 of "blob LENGTH\0" and the content: small files on the hub.
    GitBlob(String),
}

impl Digest {
    /// The digest in hexadecimal; the hub names its blobs by it.
    pub fn hex(&self) -> &str {
        match self {
            Digest::Sha256(hex) | Digest::GitBlob(hex) => hex,
        }
    }

    /// Whether the file at `path` has this digest.
    pub fn matches(&self, path: &Path) -> io::Result<bool> {
        let mut file = File::open(path)?;
        let found = match self {
            Digest::Sha256(_) => {
                let mut hasher = Sha256::new();
                feed(&mut file, |chunk| hasher.update(chunk))?;
                hex(&hasher.finalize())
            }
            Digest::GitBlob(_) => {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {}\0", file.metadata()?.len()));
                feed(&mut file, |chunk| hasher.update(chunk))?;
                hex(&hasher.finalize())
            }
        };
        Ok(found.eq_ignore_ascii_case(self.hex()))
    }
}

/// How often and how patiently to try again.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Failures in a row before giving up.
    pub attempts: u32,
    /// First pause; doubles each time.
    pub pause: Duration,
    /// Longest pause, `Retry-After` included.
    pub longest: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 6, pause: Duration::from_millis(500), longest: Duration::from_secs(120) }
    }
}

/// One file to download.
#[derive(Debug, Clone)]
pub struct Download {
    /// Address.
    pub url: String,
    /// Name in progress and errors.
    pub name: String,
    /// Final path; the part file is `TARGET.incomplete`.
    pub target: PathBuf,
    /// What it must hash to.
    pub digest: Digest,
    /// Length, where known beforehand.
    pub size: Option<u64>,
    /// Sent as `Authorization: Bearer …`, to the named host only.
    pub token: Option<String>,
}

/// Downloads files with one agent and one set of rules.
pub struct Downloader {
    agent: Agent,
    retry: Retry,
    progress: Arc<dyn Progress>,
    cancel: Arc<AtomicBool>,
}

/// Why one attempt ended early.
pub(super) enum Failure {
    /// Trying again cannot help.
    Final(FetchError),
    /// Trying again may help, after this pause if the server named one.
    Passing { error: FetchError, wait: Option<Duration> },
}

impl Failure {
    /// A fault of the network or the server that another try may not meet.
    pub(super) fn passing(name: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let error = FetchError::Network { name: name.to_owned(), source: source.into() };
        Failure::Passing { error, wait: None }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Final(FetchError::Io(error))
    }
}

impl Downloader {
    /// A downloader that stops, resumably, once `cancel` is true.
    pub fn new(retry: Retry, progress: Arc<dyn Progress>, cancel: Arc<AtomicBool>) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            // A stalled body is cut and resumed.
            .timeout_per_read(Some(Duration::from_secs(30)))
            .user_agent(concat!("watus-build/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Self { agent, retry, progress, cancel }
    }

    /// Downloads unless the target is there already. The target appears complete and checked, or not at all.
    pub fn download(&self, download: &Download) -> Result<(), FetchError> {
        if download.target.exists() {
            return Ok(());
        }
        if let Some(parent) = download.target.parent() {
            fs::create_dir_all(parent)?;
        }
        let part = part_path(&download.target);
        let file = OpenOptions::new().read(true).append(true).create(true).open(&part)?;
        // Two runs may want the same file: the second waits, then finds it done.
        file.lock()?;
        if download.target.exists() {
            let _ = fs::remove_file(&part);
            return Ok(());
        }
        let result = self.fill(download, file, &part);
        self.progress.event(Event::TransferDone { name: &download.name });
        result
    }

    fn fill(&self, download: &Download, mut file: File, part: &Path) -> Result<(), FetchError> {
        let have = file.metadata()?.len();
        self.progress.event(Event::Transfer { name: &download.name, done: have, total: download.size });
        let mut wrong_once = false;
        loop {
            self.complete(download, &mut file)?;
            if download.digest.matches(part)? {
                file.sync_all()?;
                fs::rename(part, &download.target)?;
                return Ok(());
            }
            // Resumed onto a stale or damaged part? One clean try tells.
            file.set_len(0)?;
            if wrong_once {
                let _ = fs::remove_file(part);
                return Err(FetchError::WrongHash { name: download.name.clone(), url: download.url.clone() });
            }
            wrong_once = true;
        }
    }

    /// Tries until the part file is as long as the server says.
    fn complete(&self, download: &Download, file: &mut File) -> Result<(), FetchError> {
        let length = file.try_clone()?;
        self.retrying(|| length.metadata().map_or(0, |metadata| metadata.len()), || self.attempt(download, file))
    }

    /// Tries again after passing failures, a bounded number of times in a row; growth of `progress` starts a new count.
    pub(super) fn retrying<T>(
        &self,
        progress: impl Fn() -> u64,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, FetchError> {
        let mut failures = 0;
        loop {
            let before = progress();
            let (error, wait) = match attempt() {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { error, wait }) => (error, wait),
            };
            failures = if progress() > before { 1 } else { failures + 1 };
            if failures >= self.retry.attempts {
                return Err(FetchError::GaveUp { attempts: failures, last: Box::new(error) });
            }
            let doubled = self.retry.pause.saturating_mul(1 << (failures - 1).min(16));
            self.pause(wait.unwrap_or(doubled).min(self.retry.longest))?;
        }
    }

    fn pause(&self, mut left: Duration) -> Result<(), FetchError> {
        while !left.is_zero() {
            self.check_cancel()?;
            let step = left.min(Duration::from_millis(100));
            std::thread::sleep(step);
            left -= step;
        }
        Ok(())
    }

    fn check_cancel(&self) -> Result<(), FetchError> {
        if self.cancel.load(Ordering::Relaxed) { Err(FetchError::Cancelled(Cancelled)) } else { Ok(()) }
    }

    fn attempt(&self, download: &Download, file: &mut File) -> Result<(), Failure> {
        self.check_cancel().map_err(Failure::Final)?;
        let mut start = file.metadata()?.len();
        if download.size.is_some_and(|size| start > size) {
            file.set_len(0)?;
            start = 0;
        }
        if start > 0 && download.size == Some(start) {
            return Ok(());
        }
        let mut request = self.agent.get(&download.url).header(header::RANGE, format!("bytes={start}-"));
        // Compressed, a length and a range would mean other bytes.
        request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = &download.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let response = request.call().map_err(|error| Failure::passing(&download.name, error))?;
        let total = match accept(download, &response, file, &mut start)? {
            Answer::Complete => return Ok(()),
            Answer::Follows(total) => total,
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
        let mut buffer = vec![0u8; 256 * 1024];
        // A GGUF's header tells whether the rest is worth having.
        let mut look_at = (name.ends_with(".gguf") && limit.is_some()).then_some(look::FIRST);
        file.seek(SeekFrom::End(0))?;
        loop {
            self.check_cancel().map_err(Failure::Final)?;
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
            self.progress.event(Event::TransferAt { name: &download.name, done });
            if let (Some(at), Some(total)) = (look_at, limit)
                && done >= at.min(total)
            {
                look_at = look::needs_more(download, file, done, total)?.then_some(at * 2);
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

/// The part file of `target`; huggingface_hub uses the same name.
pub fn part_path(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".incomplete");
    PathBuf::from(name)
}

enum Answer {
    Complete,
    /// The file's whole length, if the server says.
    Follows(Option<u64>),
}

/// Judges a response's status line and headers; moves `start` back to 0 when the server ignores the range.
fn accept(download: &Download, response: &Response<Body>, file: &mut File, start: &mut u64) -> Result<Answer, Failure> {
    let text = |name: header::HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let range = text(header::CONTENT_RANGE).and_then(parse_content_range);
            match range {
                Some((first, total)) if first == *start => Ok(Answer::Follows(total)),
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
            Ok(Answer::Follows(text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok())))
        }
        StatusCode::RANGE_NOT_SATISFIABLE if *start > 0 => {
            let total = text(header::CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes */")?.parse().ok());
            if total == Some(*start) {
                return Ok(Answer::Complete);
            }
            file.set_len(0)?;
            Err(Failure::Passing {
                error: FetchError::Network { name: download.name.clone(), source: "stale part file".into() },
                wait: Some(Duration::ZERO),
            })
        }
        StatusCode::RANGE_NOT_SATISFIABLE => Ok(Answer::Complete), // an empty file has no byte 0
        status => Err(refusal(&download.name, &download.url, status, response)),
    }
}

/// `bytes 0-9/100` as (first, total).
fn parse_content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.parse().ok()?, total.parse().ok()))
}

/// What to make of an answer that is not the content.
pub(super) fn refusal(name: &str, url: &str, status: StatusCode, response: &Response<Body>) -> Failure {
    let error = status_error(name, url, status, response);
    match status.as_u16() {
        408 | 429 | 500..=599 => Failure::Passing { error, wait: retry_after(response) },
        _ => Failure::Final(error),
    }
}

/// `Retry-After` in seconds; the date form is not worth a parser here.
fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let value = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

/// What a status means, from the hub's own error code header where there is one.
fn status_error(name: &str, url: &str, status: StatusCode, response: &Response<Body>) -> FetchError {
    let code = response.headers().get("x-error-code").and_then(|value| value.to_str().ok()).unwrap_or("");
    let name = name.to_owned();
    match (status.as_u16(), code) {
        (_, "GatedRepo") => FetchError::Gated { name },
        (_, "RevisionNotFound") => FetchError::NoSuchRevision { name },
        (401 | 403, _) => FetchError::Unauthorized { name },
        (404, _) => FetchError::NotFound { name, url: url.to_owned() },
        (429, _) => FetchError::RateLimited { name },
        (status, _) => FetchError::Status { name, status },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_match_what_git_and_sha256sum_print() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "hello\n").unwrap();
        // printf 'hello\n' | git hash-object --stdin; printf 'hello\n' | sha256sum
        let git = Digest::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".into());
        let sha = Digest::Sha256("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03".into());
        assert!(git.matches(&path).unwrap());
        assert!(sha.matches(&path).unwrap());
        fs::write(&path, "hellO\n").unwrap();
        assert!(!git.matches(&path).unwrap());
        assert!(!sha.matches(&path).unwrap());
    }

    #[test]
    fn content_range() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(parse_content_range("bytes */10"), None);
        assert_eq!(parse_content_range("items 0-1/2"), None);
    }
}
