//! Work in a child process of this executable, under limits of memory and time: a stranger's graph that crashes, never
//! ends or takes all memory is an error here, and nothing worse.
//!
//! Questions and answers go over the child's standard streams, each as its length (u64, little endian) and its bytes;
//! the first frame is the memory limit. The child ends when its input does. `program.rs` knows which program is started.

mod program;

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::diagnostic::{Diagnose, Diagnostic};

pub use program::{ENABLE, NOT_ENABLED, program, use_program};
pub(crate) use program::{command, file, take_name};

/// Limits of a child process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes.
    pub memory: u64,
    /// Time for one question: processor time, which does not count the machine's other work; at least as much time
    /// passes on the clock before the child is given up.
    pub time: Duration,
}

/// Why a question has no answer. The texts are sentences about "it", the work.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfinedError {
    #[error("it took longer than the {} s it may take", .0.as_secs_f64())]
    TooLong(Duration),
    #[error("it had too little of this busy machine's time; try again")]
    Starved,
    #[error("it was stopped")]
    Stopped,
    #[error("{0}")]
    Died(Death),
    #[error("cannot talk to the process it runs in: {0}")]
    Io(String),
    #[error("{}", self.diagnostic())]
    NotEnabled,
}

impl Diagnose for ConfinedError {
    fn diagnostic(&self) -> Diagnostic {
        match self {
            Self::NotEnabled => Diagnostic::new(NOT_ENABLED).with_help(ENABLE),
            _ => Diagnostic::new(self.to_string()),
        }
    }
}

/// How a child process ended.
#[derive(Debug, Clone)]
pub struct Death {
    status: ExitStatus,
    /// The last line of its standard error, without control characters.
    last: String,
    memory: u64,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = if self.last.is_empty() { String::new() } else { format!(": {}", self.last) };
        match self.status.signal() {
            _ if self.is_too_large() => {
                write!(f, "it needs more than the {:.1} GB of memory it may use", self.memory as f64 / 1e9)
            }
            Some(signal) => write!(f, "it crashed (signal {signal}){last}"),
            None => write!(f, "it ended without an answer ({}){last}", self.status),
        }
    }
}

impl Death {
    /// Whether the child ran out of memory: by the messages that the standard libraries of Rust and C++ print before
    /// they abort, or by signal 9, which the kernel's out-of-memory killer sends.
    pub fn is_too_large(&self) -> bool {
        let says = [OUT_OF_MEMORY, BAD_ALLOC].iter().any(|words| self.last.contains(words));
        matches!(self.status.signal(), Some(6) if says) || self.status.signal() == Some(9)
    }

    /// Whether a signal ended the child: what it worked on may be to blame, as it is not where the child left on its own.
    pub fn is_crash(&self) -> bool {
        self.status.signal().is_some()
    }

    /// A copy without the child's last line, which names a library's internals, for clients of the server.
    pub fn without_words(&self) -> Self {
        let last = if self.is_too_large() { OUT_OF_MEMORY } else { "" };
        Self { last: last.to_owned(), ..self.clone() }
    }
}

const OUT_OF_MEMORY: &str = "memory allocation of";
const BAD_ALLOC: &str = "std::bad_alloc";
/// Bytes of a child's standard error that are kept, from its end.
const WORDS_LIMIT: usize = 64 * 1024;
/// Characters of a child's last line that are shown.
const LINE_LIMIT: usize = 500;
/// Interval at which a waiting question asks whether its answer is still wanted.
const PATIENCE: Duration = Duration::from_millis(50);
/// Factor of the time limit after which, by the clock, a child that hardly gets the processor is given up: others may
/// be waiting.
const STARVED: u32 = 3;
/// Time that a child may take to exit after it closed its output.
const GRACE: Duration = Duration::from_secs(1);
/// Stack of the child's working thread in bytes: recursion over a deep graph fits.
pub(crate) const STACK: usize = 64 << 20;
/// Stack of other threads in bytes, the standard library's default.
const THREAD_STACK: u64 = 2 << 20;

/// Starts a child process of the registered executable.
pub fn start(subcommand: &str, limits: Limits) -> Result<Confined, ConfinedError> {
    Confined::start(program().ok_or(ConfinedError::NotEnabled)?, subcommand, limits)
}

/// A running child process that answers questions.
#[derive(Debug)]
pub struct Confined {
    child: Child,
    input: ChildStdin,
    answers: Receiver<Vec<u8>>,
    words: Option<JoinHandle<Vec<u8>>>,
    limits: Limits,
    /// Set once the child has ended; every later question gets this error.
    over: Option<ConfinedError>,
}

impl Confined {
    /// Starts `executable` with `subcommand`, which must call [`serve`].
    pub fn start(executable: &Path, subcommand: &str, limits: Limits) -> Result<Self, ConfinedError> {
        let failed = |error: io::Error| ConfinedError::Io(format!("{}: {error}", executable.display()));
        let mut child = command(executable)
            .arg(subcommand)
            // Its output is ours alone.
            .env_remove("RTEN_TIMING")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Out of the terminal's process group: Ctrl-C is for the parent.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        // When memory runs out, the kernel should take this one.
        let _ = fs::write(format!("/proc/{}/oom_score_adj", child.id()), "1000");
        let (input, output, words) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(input), Some(mut output), Some(words)) = (input, output, words) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(ConfinedError::Io("it has no standard streams".to_owned()));
        };
        // One at a time: a child that answers without being asked has to wait.
        let (sender, answers) = mpsc::sync_channel(1);
        thread::spawn(move || {
            // An answer can be no larger than the memory it was made in.
            while let Ok(Some(answer)) = read_frame(&mut output, limits.memory) {
                if sender.send(answer).is_err() {
                    break;
                }
            }
        });
        let words = Some(thread::spawn(move || listen(words)));
        let mut confined = Self { child, input, answers, words, limits, over: None };
        // A child that is gone already is told of at the first question.
        let _ = write_frame(&mut confined.input, &limits.memory.to_le_bytes());
        Ok(confined)
    }

    /// Sends a question and waits for the answer. An error ends the child, and every later question gets the same
    /// error.
    pub fn ask(&mut self, question: &[u8]) -> Result<Vec<u8>, ConfinedError> {
        self.ask_until(question, &|| false)
    }

    /// Like [`Confined::ask`], but gives up and ends the child once `stop` returns true.
    pub fn ask_until(&mut self, question: &[u8], stop: &dyn Fn() -> bool) -> Result<Vec<u8>, ConfinedError> {
        if let Some(error) = &self.over {
            return Err(error.clone());
        }
        let clock = Clock::start(&self.child, self.limits.time);
        let mut answer = match write_frame(&mut self.input, question) {
            Ok(()) => Err(RecvTimeoutError::Timeout),
            Err(_) => Err(RecvTimeoutError::Disconnected),
        };
        let mut over = None;
        while answer == Err(RecvTimeoutError::Timeout) {
            over = if stop() { Some(ConfinedError::Stopped) } else { clock.over() };
            if over.is_some() {
                break;
            }
            answer = self.answers.recv_timeout(PATIENCE);
        }
        let error = match (answer, over) {
            (Ok(answer), _) => return Ok(answer),
            (_, Some(over)) => over,
            (Err(_), None) => self.death(),
        };
        self.end();
        self.over = Some(error.clone());
        Err(error)
    }

    /// Why the child stopped answering, from its exit status.
    fn death(&mut self) -> ConfinedError {
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if start.elapsed() < GRACE => thread::sleep(Duration::from_millis(5)),
                Ok(None) => return ConfinedError::Io("it closed its output".to_owned()),
                Err(error) => return ConfinedError::Io(error.to_string()),
            }
        };
        let words = self.words.take().and_then(|words| words.join().ok()).unwrap_or_default();
        ConfinedError::Died(Death { status, last: last_line(&words), memory: self.limits.memory })
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        self.end();
    }
}

/// Time that a question has taken.
struct Clock {
    limit: Duration,
    begun: Instant,
    child: u32,
    /// The child's processor time when the question was sent.
    before: Option<Duration>,
}

impl Clock {
    fn start(child: &Child, limit: Duration) -> Self {
        Self { limit, begun: Instant::now(), child: child.id(), before: processor_time(child.id()) }
    }

    /// The error if the question has exceeded its limits.
    fn over(&self) -> Option<ConfinedError> {
        let elapsed = self.begun.elapsed();
        if elapsed < self.limit {
            return None;
        }
        let (Some(before), Some(now)) = (self.before, processor_time(self.child)) else {
            return Some(ConfinedError::TooLong(self.limit));
        };
        match now.saturating_sub(before) {
            worked if worked >= self.limit => Some(ConfinedError::TooLong(self.limit)),
            _ if elapsed >= self.limit * STARVED => Some(ConfinedError::Starved),
            _ => None,
        }
    }
}

/// Processor time of a process: fields 14 and 15 of its `stat` file (proc(5)), in clock ticks.
fn processor_time(process: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is a name in brackets, which may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks = ticks(11)?.checked_add(ticks(12)?)?;
    let a_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Duration::from_millis(ticks.saturating_mul(1000) / a_second))
}

/// Reads a child's standard error to its end, and keeps the last bytes.
fn listen(mut words: ChildStderr) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), [0u8; 4096]);
    while let Ok(count @ 1..) = words.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..count]);
        if kept.len() > 2 * WORDS_LIMIT {
            kept.drain(..kept.len() - WORDS_LIMIT);
        }
    }
    kept
}

/// The last line that gives a reason, without control characters.
fn last_line(words: &[u8]) -> String {
    let words = String::from_utf8_lossy(words);
    let mut lines = words.lines().filter(|line| !line.trim().is_empty());
    let told = lines.clone().find(|line| line.contains(OUT_OF_MEMORY)).or_else(|| lines.next_back());
    let mut line = String::new();
    for letter in told.unwrap_or_default().trim().chars().take(LINE_LIMIT) {
        if letter.is_control() { line.extend(letter.escape_default()) } else { line.push(letter) }
    }
    line
}

/// The child's side: answers until the input ends.
///
/// The calling thread only reads, so that a parent that is gone ends the work at once, whatever is being worked on. (A
/// death signal would be bound to the thread of the parent that started this process, which may end before the parent.)
pub fn serve(mut answer: impl FnMut(&[u8]) -> Vec<u8> + Send + 'static) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let mut input = io::stdin().lock();
    let Some(first) = read_frame(&mut input, 8).map_err(text)? else { return Ok(()) };
    let memory: [u8; 8] = first.try_into().map_err(|_| "the first frame is no memory limit".to_owned())?;
    confine(u64::from_le_bytes(memory)).map_err(|error| format!("cannot limit this process: {error}"))?;
    let (questions, asked) = mpsc::channel::<Vec<u8>>();
    let work = move || {
        // Who asks should hear of a panic at once.
        let _end = EndOnPanic;
        let mut output = io::stdout().lock();
        for question in asked {
            if write_frame(&mut output, &answer(&question)).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("answers".to_owned()).stack_size(STACK).spawn(work).map_err(text)?;
    while let Some(question) = read_frame(&mut input, u64::MAX).map_err(text)? {
        if questions.send(question).is_err() {
            return Err("nobody answers any more".to_owned());
        }
    }
    Ok(())
}

/// Ends the process if the thread panics.
struct EndOnPanic;

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::exit(101);
        }
    }
}

/// Limits this process's memory and disables its core dumps.
fn confine(memory: u64) -> io::Result<()> {
    // Threads' stacks count as data, though hardly any of them is touched. Mapped files do not: RLIMIT_AS would count
    // them, and all that allocators and thread pools reserve and never use.
    let threads = thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let stacks = (STACK as u64).saturating_add(threads.saturating_mul(THREAD_STACK));
    for (resource, limit) in [(Resource::Data, memory.saturating_add(stacks)), (Resource::Core, 0)] {
        let most = getrlimit(resource).maximum;
        let limit = Some(most.map_or(limit, |most| most.min(limit)));
        setrlimit(resource, Rlimit { current: limit, maximum: limit })?;
    }
    Ok(())
}

fn write_frame(output: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    output.write_all(&(bytes.len() as u64).to_le_bytes())?;
    output.write_all(bytes)?;
    output.flush()
}

/// Reads the next frame, of at most `limit` bytes; `None` at the end of input.
fn read_frame(input: &mut impl Read, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0u8; 8];
    match input.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u64::from_le_bytes(length);
    if length > limit {
        return Err(io::Error::other(format!("a frame of {length} bytes, {limit} are allowed")));
    }
    // Grows with what comes: the length alone allocates nothing.
    let mut bytes = Vec::new();
    if input.take(length).read_to_end(&mut bytes)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_and_are_bounded() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, b"one").unwrap();
        write_frame(&mut bytes, b"").unwrap();
        let mut reader = bytes.as_slice();
        assert_eq!(read_frame(&mut reader, 3).unwrap().unwrap(), b"one");
        assert_eq!(read_frame(&mut reader, 3).unwrap().unwrap(), b"");
        assert_eq!(read_frame(&mut reader, 3).unwrap(), None);
        assert!(read_frame(&mut bytes.as_slice(), 2).is_err(), "longer than allowed");
        assert!(read_frame(&mut &bytes[..10], 3).is_err(), "cut off");
        assert!(read_frame(&mut [0xff; 8].as_slice(), u64::MAX).is_err(), "no such memory is asked for");
    }

    #[test]
    fn a_death_is_a_sentence() {
        let limits = Limits { memory: 2_000_000_000, time: Duration::from_secs(60) };
        let death = |script: &str| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("child");
            fs::write(&path, script).unwrap();
            let mut child = Confined::start(Path::new("/bin/sh"), path.to_str().unwrap(), limits).unwrap();
            let first = child.ask(b"?").unwrap_err().to_string();
            assert_eq!(child.ask(b"?").unwrap_err().to_string(), first, "it stays dead");
            first
        };
        for (script, expected) in [
            (
                "echo 'memory allocation of 9 bytes failed' >&2; kill -ABRT $$",
                "it needs more than the 2.0 GB of memory",
            ),
            (
                "echo \"terminate called\nwhat():  std::bad_alloc\" >&2; kill -ABRT $$",
                "it needs more than the 2.0 GB of memory",
            ),
            ("kill -KILL $$", "it needs more than the 2.0 GB of memory"),
            ("printf 'a\\n\\033[2Jb\\n' >&2; kill -SEGV $$", "it crashed (signal 11): \\u{1b}[2Jb"),
            ("exit 3", "it ended without an answer (exit status: 3)"),
        ] {
            let said = death(script);
            assert!(said.starts_with(expected), "{script}: {said}");
        }
    }

    #[test]
    fn who_takes_too_long_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("child");
        let limits = Limits { memory: 1 << 30, time: Duration::from_millis(50) };
        // One works all the time; the other hardly gets to work, as on a machine that is busy with something else.
        for (script, expected) in [
            ("while :; do :; done", "it took longer than the 0.05 s it may take"),
            ("sleep 1000", "it had too little of this busy machine's time; try again"),
        ] {
            fs::write(&path, script).unwrap();
            let mut child = Confined::start(Path::new("/bin/sh"), path.to_str().unwrap(), limits).unwrap();
            assert_eq!(child.ask(b"?").unwrap_err().to_string(), expected);
            assert!(child.child.try_wait().unwrap().is_some(), "nothing is left running");
        }
    }
}
