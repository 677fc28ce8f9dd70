//! A hub on loopback: the two endpoints a download needs, and every way a server can misbehave.
//!
//! It speaks just enough HTTP/1.1, one connection a request, so that a fault can be placed on any byte.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha1::Digest as _;

/// What the server does to the next matching requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Answer with this status, error code header and Retry-After.
    Status(u16, &'static str, Option<u32>),
    /// Answer with a redirect to this address.
    Redirect(String),
    /// Take the request and say nothing.
    Silence,
    /// Send the body's head, then a byte every so often.
    Drip(usize, Duration),
    /// Send this many bytes of the body, then close.
    Cut(usize),
    /// Flip a bit of the body.
    Corrupt,
    /// Ignore Range and send everything with status 200.
    IgnoreRange,
    /// Answer a range with another one.
    WrongRange,
    /// Send more than was announced.
    TooLong,
}

/// One scheduled fault: path fragment, kind, how often.
type Schedule = Vec<(String, Fault, usize)>;

/// The server; it stops with the process.
pub struct Hub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

struct State {
    files: BTreeMap<String, (Vec<u8>, bool)>,
    commit: String,
    faults: Schedule,
    log: Vec<String>,
    /// Authorization headers, one a request.
    tokens: Vec<Option<String>>,
    token: Option<String>,
    /// Pause between pieces of 16 KiB.
    pace: Duration,
}

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl Hub {
    /// Serves files as the repository `org/model`; `true` stores one as LFS does (named by SHA-256).
    pub fn start(files: &[(&str, Vec<u8>, bool)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(name, bytes, lfs)| ((*name).to_owned(), (bytes.clone(), *lfs))).collect();
        let state = Arc::new(Mutex::new(State {
            files,
            commit: COMMIT.to_owned(),
            faults: Vec::new(),
            log: Vec::new(),
            tokens: Vec::new(),
            token: None,
            pace: Duration::ZERO,
        }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let _ = serve(stream, &state);
                });
            }
        });
        Self { endpoint, state }
    }

    /// The next `times` requests whose path contains `path` meet `fault`.
    pub fn fault(&self, path: &str, fault: Fault, times: usize) {
        self.state.lock().unwrap().faults.push((path.to_owned(), fault, times));
    }

    /// Wants this token from now on.
    pub fn require_token(&self, token: &str) {
        self.state.lock().unwrap().token = Some(token.to_owned());
    }

    /// Moves the branch to another commit.
    pub fn push(&self, commit: &str, name: &str, bytes: Vec<u8>) {
        let mut state = self.state.lock().unwrap();
        state.commit = commit.to_owned();
        state.files.insert(name.to_owned(), (bytes, true));
    }

    pub fn pace(&self, pace: Duration) {
        self.state.lock().unwrap().pace = pace;
    }

    /// Requests so far, as "GET PATH RANGE".
    pub fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }

    /// The token each request came with.
    pub fn tokens(&self) -> Vec<Option<String>> {
        self.state.lock().unwrap().tokens.clone()
    }

    pub fn clear_log(&self) {
        self.state.lock().unwrap().log.clear();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn git_blob(bytes: &[u8]) -> String {
    let mut hasher = sha1::Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hex(&hasher.finalize())
}

fn info(state: &State) -> Vec<u8> {
    let siblings: Vec<_> = state
        .files
        .iter()
        .map(|(name, (bytes, lfs))| {
            let mut entry = serde_json::json!({ "rfilename": name, "size": bytes.len(), "blobId": git_blob(bytes) });
            if *lfs {
                let sha256 = hex(&sha2::Sha256::digest(bytes));
                entry["lfs"] = serde_json::json!({ "sha256": sha256, "size": bytes.len(), "pointerSize": 134 });
            }
            entry
        })
        .collect();
    serde_json::json!({ "sha": state.commit, "siblings": siblings }).to_string().into_bytes()
}

struct Request {
    path: String,
    range: Option<usize>,
    token: Option<String>,
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split_whitespace().nth(1).unwrap_or("/").to_owned();
    let mut request = Request { path, range: None, token: None };
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(request);
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = value.trim().trim_start_matches("bytes=").trim_end_matches('-').parse().ok(),
            "authorization" => request.token = value.trim().strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
}

fn take_fault(state: &mut State, path: &str) -> Option<Fault> {
    let position = state.faults.iter().position(|(part, _, left)| *left > 0 && path.contains(part.as_str()))?;
    state.faults[position].2 -= 1;
    Some(state.faults[position].1.clone())
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let request = read_request(&stream)?;
    let (body, fault, pace) = {
        let mut state = state.lock().unwrap();
        let range = request.range.map(|start| format!(" {start}-")).unwrap_or_default();
        state.log.push(format!("GET {}{range}", request.path));
        state.tokens.push(request.token.clone());
        let fault = take_fault(&mut state, &request.path);
        let denied = state.token.is_some() && state.token != request.token;
        let body = if request.path.starts_with("/api/models/org/model/revision/") {
            Some(info(&state))
        } else {
            let file = request.path.strip_prefix("/org/model/resolve/").and_then(|rest| rest.split_once('/'));
            file.and_then(|(_, name)| state.files.get(name)).map(|(bytes, _)| bytes.clone())
        };
        let fault = if denied { Some(Fault::Status(401, "GatedRepo", None)) } else { fault };
        (body, fault, state.pace)
    };
    if let Some(Fault::Redirect(address)) = &fault {
        let head =
            format!("HTTP/1.1 307 There\r\nLocation: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return stream.write_all(head.as_bytes());
    }
    if fault == Some(Fault::Silence) {
        // Until the client goes away.
        let _ = std::io::Read::read(&mut stream, &mut [0]);
        return Ok(());
    }
    let Some(mut body) = body else {
        return stream.write_all(
            b"HTTP/1.1 404 Not Found\r\nX-Error-Code: RepoNotFound\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    };
    if let Some(Fault::Status(status, code, retry)) = &fault {
        let retry = retry.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
        let head = format!(
            "HTTP/1.1 {status} Nope\r\nX-Error-Code: {code}\r\n{retry}Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        return stream.write_all(head.as_bytes());
    }
    let total = body.len();
    let start = request.range.filter(|_| fault != Some(Fault::IgnoreRange) && !request.path.starts_with("/api"));
    let head = match start {
        Some(start) if start >= total => {
            format!(
                "HTTP/1.1 416 Range\r\nContent-Range: bytes */{total}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
        }
        Some(start) => {
            body.drain(..start);
            let shown = if fault == Some(Fault::WrongRange) { start + 1 } else { start };
            format!(
                "HTTP/1.1 206 Partial\r\nContent-Range: bytes {shown}-{}/{total}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                total - 1,
                body.len()
            )
        }
        None => format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\nConnection: close\r\n\r\n"),
    };
    if start.is_some_and(|start| start >= total) {
        body.clear();
    }
    stream.write_all(head.as_bytes())?;
    match fault {
        Some(Fault::Cut(length)) => body.truncate(length),
        Some(Fault::Corrupt) => {
            if let Some(byte) = body.last_mut() {
                *byte ^= 1;
            }
        }
        Some(Fault::TooLong) => body.extend_from_slice(b"more"),
        _ => {}
    }
    if let Some(Fault::Drip(head, pause)) = fault {
        stream.write_all(&body[..head.min(body.len())])?;
        for byte in &body[head.min(body.len())..] {
            std::thread::sleep(pause);
            stream.write_all(&[*byte])?;
        }
        return Ok(());
    }
    for piece in body.chunks(16 * 1024) {
        stream.write_all(piece)?;
        std::thread::sleep(pace);
    }
    Ok(())
}
