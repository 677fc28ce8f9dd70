//! Builds engines in a child process, so that the kernel's out-of-memory killer ends the build and not the tool, and
//! the tool can say what happened.
//!
//! Parent and child talk over the child's standard streams, one JSON document per line: the [`Job`] in, messages out. A
//! closed input, or the line "cancel", stops the build.

mod child;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use child::child_main;

use crate::artifact::write_file;
use crate::backend::BackendError;
use crate::backend::isolated::this_program;
use crate::backend::tensorrt::{BuildOptions, TensorRt};
use crate::confined::command;
use crate::diagnostic::Diagnostic;
use crate::manifest::BuildRecord;
use crate::memory;
use crate::progress::{Event, Progress, Silent};

/// Hidden argument that starts a child.
pub const SUBCOMMAND: &str = "__build-engine";

/// Engines to build.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// Pairs of an ONNX model with final shapes and the path of its engine file.
    pub engines: Vec<(PathBuf, PathBuf)>,
    /// Child processes to distribute the engines over. Must be 1 if TensorRT times its kernels on the GPU. (Threads do
    /// not help: RTX builds under a lock.)
    pub processes: usize,
    /// File of tactic timings to use and update; `None` for RTX.
    pub timing_cache: Option<PathBuf>,
    /// Builder settings.
    pub options: BuildOptions,
    /// Whether to forward everything that TensorRT logs.
    #[serde(default)]
    pub verbose: bool,
}

/// A child's message to its parent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WorkerMessage {
    Phase {
        name: String,
        steps: u64,
    },
    Step {
        phase: String,
        done: u64,
    },
    PhaseDone {
        name: String,
    },
    Log {
        severity: i32,
        text: String,
        engine: String,
    },
    Done,
    Failed(Diagnostic),
    /// What is missing, and what to do about it.
    Unavailable {
        what: String,
        help: String,
    },
}

/// Process in which a build runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Isolation {
    /// This process.
    InProcess,
    /// Child processes of the running program, which must have called `enable_child_processes`.
    Child,
}

/// Most warnings that the manifest keeps.
const WARNING_LIMIT: usize = 20;
/// Beginning of TensorRT's message "Skipping tactic … due to insufficient memory", unchanged since version 8.
const SKIPPED_TACTIC: &str = "Skipping tactic";
/// Time that a cancelled build may take to stop by itself.
const GRACE: Duration = Duration::from_secs(10);

/// Name of the engine that this process is building, for log lines.
static CURRENT: Mutex<String> = Mutex::new(String::new());

/// Collects warnings and skipped tactics from TensorRT's log.
#[derive(Default)]
struct Collector {
    record: BuildRecord,
    last_error: Option<String>,
}

impl Collector {
    fn log(&mut self, severity: i32, text: &str) {
        if text.contains(SKIPPED_TACTIC) {
            self.record.skipped_tactics += 1;
        }
        let warnings = &mut self.record.warnings;
        if severity == 2 && warnings.len() < WARNING_LIMIT && !warnings.iter().any(|known| known == text) {
            warnings.push(text.to_owned());
        }
        if severity < 2 {
            self.last_error = Some(text.to_owned());
        }
    }
}

/// Builds an engine file.
pub fn build(
    isolation: &Isolation,
    job: &Job,
    progress: &Arc<dyn Progress>,
    cancel: &Arc<AtomicBool>,
) -> Result<BuildRecord, BackendError> {
    let start = Instant::now();
    let job = &Job { verbose: tracing::enabled!(tracing::Level::DEBUG), ..job.clone() };
    let mut record = match isolation {
        Isolation::InProcess => in_process(job, progress, cancel)?,
        Isolation::Child if job.processes > 1 => in_children(this_program()?, job, progress.as_ref(), cancel)?,
        Isolation::Child => in_child(this_program()?, job, progress.as_ref(), cancel)?,
    };
    record.seconds = start.elapsed().as_secs_f64();
    Ok(record)
}

fn in_process(job: &Job, progress: &Arc<dyn Progress>, cancel: &Arc<AtomicBool>) -> Result<BuildRecord, BackendError> {
    let collector = Arc::new(Mutex::new(Collector::default()));
    let sink = Arc::clone(&collector);
    TensorRt::set_log_sink(move |severity, text| {
        if let Ok(mut collector) = sink.lock() {
            collector.log(severity, &text);
        }
    });
    run(job, Arc::clone(progress), Arc::clone(cancel))?;
    let mut record = collector.lock().map(|collector| collector.record.clone()).unwrap_or_default();
    record.peak_memory_bytes = peak_memory("self").unwrap_or(0);
    Ok(record)
}

/// Builds the engines of a job in this process.
fn run(job: &Job, progress: Arc<dyn Progress>, cancel: Arc<AtomicBool>) -> Result<(), BackendError> {
    let tensorrt = TensorRt::open()?;
    if let [(onnx, engine)] = &job.engines[..] {
        return build_engine(&tensorrt, job, (onnx, engine), progress, cancel);
    }
    progress.event(Event::Phase { name: ENGINES, steps: job.engines.len() as u64 });
    for ((onnx, engine), done) in job.engines.iter().zip(1..) {
        // Dozens of small engines: their own phases would only flicker.
        build_engine(&tensorrt, job, (onnx, engine), Arc::new(Silent), Arc::clone(&cancel))?;
        progress.event(Event::Step { phase: ENGINES, done });
    }
    progress.event(Event::PhaseDone { name: ENGINES });
    Ok(())
}

/// Phase of a job with several engines; each step is an engine.
const ENGINES: &str = "Building engines";

/// Merges the progress of several children into one phase.
struct Counting<'a> {
    progress: &'a dyn Progress,
    done: AtomicU64,
}

impl Progress for Counting<'_> {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Step { phase: ENGINES, .. } => {
                let done = 1 + self.done.fetch_add(1, Ordering::Relaxed);
                self.progress.event(Event::Step { phase: ENGINES, done });
            }
            Event::Phase { name: ENGINES, .. } | Event::PhaseDone { name: ENGINES } => {}
            other => self.progress.event(other),
        }
    }
}

/// Distributes the engines of a job over several children. Engines are small, so if one fails the others are finished
/// first.
fn in_children(
    executable: &Path,
    job: &Job,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<BuildRecord, BackendError> {
    let count = job.processes.min(job.engines.len());
    let share = |index: usize| Job {
        engines: job.engines.iter().skip(index).step_by(count).cloned().collect(),
        processes: 1,
        ..job.clone()
    };
    progress.event(Event::Phase { name: ENGINES, steps: job.engines.len() as u64 });
    let counting = Counting { progress, done: AtomicU64::new(0) };
    let results: Vec<_> = std::thread::scope(|scope| {
        let children: Vec<_> = (0..count)
            .map(|index| {
                scope.spawn({
                    let (counting, span) = (&counting, tracing::Span::current());
                    move || span.in_scope(|| in_child(executable, &share(index), counting, cancel))
                })
            })
            .collect();
        children.into_iter().map(|child| child.join()).collect()
    });
    progress.event(Event::PhaseDone { name: ENGINES });
    let mut whole = BuildRecord::default();
    for result in results {
        let panicked = |_| BackendError::Build("a build thread panicked".into());
        let record = result.map_err(panicked)??;
        // They ran at the same time.
        whole.peak_memory_bytes += record.peak_memory_bytes;
        whole.skipped_tactics += record.skipped_tactics;
        whole.warnings.extend(
            record.warnings.into_iter().filter(|warning| !whole.warnings.contains(warning)).collect::<Vec<_>>(),
        );
    }
    Ok(whole)
}

/// Builds one engine of a job.
fn build_engine(
    tensorrt: &TensorRt,
    job: &Job,
    (onnx, engine): (&Path, &Path),
    progress: Arc<dyn Progress>,
    cancel: Arc<AtomicBool>,
) -> Result<(), BackendError> {
    if let Ok(mut current) = CURRENT.lock() {
        *current = engine.file_name().unwrap_or_default().to_string_lossy().into_owned();
    }
    let timings = job.timing_cache.as_ref().and_then(|path| fs::read(path).ok()).unwrap_or_default();
    let built = tensorrt.build(onnx, &job.options, &timings, progress, cancel)?;
    let failed =
        |path: &Path, error: std::io::Error| BackendError::Build(format!("{}: {error}", path.display()).into());
    // Staged with the rest of its directory, which is flushed as a whole.
    fs::write(engine, built.bytes()).map_err(|error| failed(engine, error))?;
    if let Some(path) = job.timing_cache.as_ref().filter(|_| !built.timing_cache().is_empty()) {
        write_file(path, built.timing_cache()).map_err(|error| failed(path, error))?;
    }
    Ok(())
}

/// Largest resident memory in bytes that a process has had.
pub fn peak_memory(process: &str) -> Option<u64> {
    memory::of_process(process, "VmHWM")
}

fn in_child(
    executable: &Path,
    job: &Job,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<BuildRecord, BackendError> {
    let failed = |what: &str, error: std::io::Error| BackendError::Build(format!("{what}: {error}").into());
    let mut child = command(executable)
        .arg(SUBCOMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Out of the terminal's process group: Ctrl-C reaches the parent, which asks the child to stop.
        .process_group(0)
        .spawn()
        .map_err(|error| failed("cannot start the build process", error))?;
    // The builder is what should die when memory runs out, not the robot's other programs.
    let _ = fs::write(format!("/proc/{}/oom_score_adj", child.id()), "1000");
    let result = converse(&mut child, job, progress, cancel);
    if result.is_err() {
        let _ = child.kill();
    }
    let _ = child.wait();
    result
}

fn converse(
    child: &mut Child,
    job: &Job,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<BuildRecord, BackendError> {
    let failed = |what: &str, error: std::io::Error| BackendError::Build(format!("{what}: {error}").into());
    let mut input = child.stdin.take();
    let line = serde_json::to_string(job).map_err(|error| failed("cannot describe the job", error.into()))?;
    if let Some(input) = input.as_mut() {
        // A child that is gone already is reported by its exit status below.
        let _ = writeln!(input, "{line}");
    }
    let (sender, messages) = std::sync::mpsc::channel();
    let output = child.stdout.take();
    let reader = std::thread::spawn(move || {
        for line in output.map(BufReader::new).into_iter().flat_map(BufRead::lines).map_while(Result::ok) {
            if let Ok(message) = serde_json::from_str::<WorkerMessage>(&line)
                && sender.send(message).is_err()
            {
                return;
            }
        }
    });
    let process = child.id().to_string();
    let mut collector = Collector::default();
    let mut outcome = None;
    let mut cancelled_at: Option<Instant> = None;
    loop {
        let peak = peak_memory(&process).unwrap_or(0);
        collector.record.peak_memory_bytes = collector.record.peak_memory_bytes.max(peak);
        if cancel.load(Ordering::Relaxed) && cancelled_at.is_none() {
            cancelled_at = Some(Instant::now());
            input = None; // end of input asks the child to stop
        }
        if cancelled_at.is_some_and(|at| at.elapsed() > GRACE) {
            return Err(BackendError::Cancelled);
        }
        match messages.recv_timeout(Duration::from_millis(50)) {
            Ok(message) => handle(message, &mut collector, &mut outcome, progress),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let _ = reader.join();
    drop(input);
    let status = child.wait().map_err(|error| failed("cannot wait for the build process", error))?;
    match outcome {
        _ if cancelled_at.is_some() => Err(BackendError::Cancelled),
        Some(Ok(())) => Ok(collector.record),
        Some(Err(error)) => Err(error),
        None => Err(died(status, &collector)),
    }
}

fn handle(
    message: WorkerMessage,
    collector: &mut Collector,
    outcome: &mut Option<Result<(), BackendError>>,
    progress: &dyn Progress,
) {
    match message {
        WorkerMessage::Phase { name, steps } => progress.event(Event::Phase { name: &name, steps }),
        WorkerMessage::Step { phase, done } => progress.event(Event::Step { phase: &phase, done }),
        WorkerMessage::PhaseDone { name } => progress.event(Event::PhaseDone { name: &name }),
        WorkerMessage::Log { severity, text, engine } => {
            // In the span of who builds, here; of which engine it is, the child knows.
            tracing::debug!(severity, engine, "TensorRT: {text}");
            collector.log(severity, &text);
        }
        WorkerMessage::Done => *outcome = Some(Ok(())),
        WorkerMessage::Unavailable { what, help } => *outcome = Some(Err(BackendError::Unavailable { what, help })),
        WorkerMessage::Failed(said) => *outcome = Some(Err(BackendError::Build(said))),
    }
}

/// The error for a child that ended without a message.
fn died(status: std::process::ExitStatus, collector: &Collector) -> BackendError {
    let peak = memory::format_bytes(collector.record.peak_memory_bytes);
    let last = collector.last_error.as_ref().map(|error| format!("\n  TensorRT: {error}")).unwrap_or_default();
    BackendError::Build(match status.signal() {
        Some(9) => Diagnostic::new(format!(
            "the build was killed, most likely because memory ran out (it had reached {peak}){last}"
        ))
        .with_help(
            "close other programs, lower `batch`, `max_batch` or `workspace_mib` in the recipe, or add swap on a disk: sudo \
             fallocate -l 16G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile",
        ),
        Some(signal) => Diagnostic::new(format!(
            "the build crashed inside TensorRT (signal {signal}, at {peak} of memory){last}"
        ))
        .with_help(
            "`watus-build doctor` checks that libraries and headers agree; `optimization_level: 2` avoids some faulty \
             tactics",
        ),
        None => Diagnostic::new(format!("the build process ended without an answer ({status}){last}")),
    })
}
