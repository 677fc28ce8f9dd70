//! A running `watus-build serve`, stopped when it is dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

pub struct Server {
    child: Child,
    pub address: String,
    log: Arc<Mutex<String>>,
}

/// A response: status, headers as one text, body.
pub struct Reply {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.body))
    }

    /// `error.code`, or its type where it has none.
    pub fn code(&self) -> String {
        let error = &self.json()["error"];
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        error["code"].as_str().or(error["type"].as_str()).unwrap_or_default().to_owned()
    }
}

impl Server {
    /// Serves an engine directory on the CPU reference, and waits until it is ready.
    pub fn start(scratch: &Path, engine: &Path, more: &[&str]) -> Self {
        let mut command = super::watus(scratch);
        command.arg("serve").arg(engine).args(["--backend", "cpu"]).args(more);
        if !more.contains(&"--port") {
            command.args(["--port", "0"]);
        }
        Self::spawn(command)
    }

    /// Starts the server that `command` is, and waits until it is ready.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the server starts");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
        let mut begun = String::new();
        let address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("the server ended: {begun}")).expect("text");
            if let Some((_, address)) = line.split_once("http://") {
                break address.split("/v1").next().expect("an address").to_owned();
            }
            begun.push_str(&line);
        };
        let log = Arc::new(Mutex::new(begun));
        let sink = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                sink.lock().expect("the log").push_str(&format!("{line}\n"));
            }
        });
        let server = Self { child, address, log };
        while server.get("/health/ready").status != 200 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        server
    }

    pub fn log(&self) -> String {
        self.log.lock().expect("the log").clone()
    }

    /// Sends bytes as they are; returns the connection.
    pub fn raw(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.write_all(request.as_bytes()).expect("the request is taken");
        stream
    }

    /// A whole exchange.
    pub fn exchange(&self, request: &str) -> Reply {
        let mut text = String::new();
        let mut stream = self.raw(request);
        // A server that refuses early may reset the connection.
        let _ = stream.read_to_string(&mut text);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response but {text:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Reply { status, headers: head.to_lowercase(), body: unchunk(head, body) }
    }

    pub fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        )
    }

    pub fn get(&self, path: &str) -> Reply {
        self.exchange(&Self::request("GET", path, "", ""))
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.exchange(&Self::request("POST", path, "Content-Type: application/json\r\n", &body.to_string()))
    }

    /// A text's greedy continuation.
    pub fn complete(&self, prompt: &str, max_tokens: usize) -> Value {
        let body = json!({"model": "local-trt-llm", "prompt": prompt, "max_tokens": max_tokens});
        let reply = self.post("/v1/completions", &body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()
    }

    /// A figure of /metrics.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
    }

    pub fn wait_until_idle(&self) {
        while self.metric("watus_requests_running") + self.metric("watus_requests_waiting") > 0.0 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// Kills every child of the server's, as a machine without memory would; how many there were.
    pub fn kill_children(&self) -> usize {
        let parent = self.child.id().to_string();
        let mut killed = 0;
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // "PID (NAME) STATE PPID …"
            let above = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
            let number = entry.file_name().to_string_lossy().parse().ok();
            if let Some(pid) = number.and_then(rustix::process::Pid::from_raw).filter(|_| above == Some(&parent)) {
                killed += usize::from(rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok());
            }
        }
        killed
    }

    /// SIGTERM.
    pub fn ask_to_end(&self) {
        let pid = i32::try_from(self.child.id()).expect("a process number");
        let pid = rustix::process::Pid::from_raw(pid).expect("a process number");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the server lives");
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("the server ends")
    }
}

/// Without HTTP's chunk sizes.
fn unchunk(head: &str, body: &str) -> String {
    if !head.to_lowercase().contains("transfer-encoding: chunked") {
        return body.to_owned();
    }
    let (mut rest, mut whole) = (body, String::new());
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let Some(chunk) = after.get(..size).filter(|_| size > 0) else { break };
        whole.push_str(chunk);
        rest = after.get(size + 2..).unwrap_or_default();
    }
    whole
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
    }
}
