//! Where readings come from: sensors at an interval, or lines of tegrastats as they arrive.

use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::diagnostic::Diagnostic;
use crate::sensors::{Readings, Sensors, tegrastats};

/// Longest line in bytes; what is longer is no line of tegrastats.
const LONGEST: u64 = 64 << 10;
/// Lines that may wait to be shown.
const WAITING: usize = 64;
/// Longest wait for the first reading, at whose end loads are known.
const FIRST: Duration = Duration::from_millis(250);

/// What a source has.
pub(super) enum Polled {
    Readings(Box<Readings>),
    /// Nothing yet.
    Nothing,
    /// Nothing more.
    End,
}

pub(super) enum Source {
    /// Sensors, read when the time has come.
    Files {
        sensors: Sensors,
        interval: Duration,
        due: Instant,
    },
    Lines(Lines),
}

/// Lines of a tegrastats.
pub(super) struct Lines {
    lines: Receiver<io::Result<String>>,
    /// Whether one of them was tegrastats'.
    seen: bool,
    /// The tegrastats that was started, and this machine's sensors for what it does not tell.
    started: Option<(Child, Sensors)>,
}

impl Source {
    pub(super) fn files(sensors: Sensors, interval: Duration) -> Self {
        Self::Files { sensors, interval, due: Instant::now() + interval.min(FIRST) }
    }

    /// Lines from standard input.
    pub(super) fn stdin() -> io::Result<Self> {
        Ok(Self::Lines(Lines { lines: read_aside(io::stdin())?, seen: false, started: None }))
    }

    /// Starts tegrastats.
    pub(super) fn started(sensors: Sensors, interval: Duration) -> anyhow::Result<Self> {
        let mut command = Command::new("tegrastats");
        command.arg("--interval").arg(interval.as_millis().to_string());
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| {
            Diagnostic::new(format!("cannot start tegrastats: {error}")).with_help(
                "it is part of Jetson Linux (sudo apt install nvidia-l4t-tools); a container can be given the host's \
                 lines: tegrastats | docker run -i … watus-build monitor --source stdin",
            )
        })?;
        let Some(out) = child.stdout.take() else { bail!("tegrastats has no output") };
        let lines = read_aside(out)?;
        Ok(Self::Lines(Lines { lines, seen: false, started: Some((child, sensors)) }))
    }

    /// The next readings, if they come within `patience`.
    pub(super) fn poll(&mut self, patience: Duration) -> anyhow::Result<Polled> {
        match self {
            Self::Files { sensors, interval, due } => {
                let left = due.saturating_duration_since(Instant::now());
                std::thread::sleep(left.min(patience));
                if left > patience {
                    return Ok(Polled::Nothing);
                }
                let readings = sensors.read();
                let (next, now) = (*due + *interval, Instant::now());
                // After a pause (a stopped process) what was missed is not made up for.
                *due = if next > now { next } else { now + *interval };
                Ok(Polled::Readings(Box::new(readings)))
            }
            Self::Lines(lines) => lines.poll(patience),
        }
    }
}

impl Lines {
    fn poll(&mut self, patience: Duration) -> anyhow::Result<Polled> {
        let line = match self.lines.recv_timeout(patience) {
            Ok(line) => line?,
            Err(RecvTimeoutError::Timeout) => return Ok(Polled::Nothing),
            Err(RecvTimeoutError::Disconnected) if self.seen => return Ok(Polled::End),
            Err(RecvTimeoutError::Disconnected) => bail!(
                Diagnostic::new("the input holds no line of tegrastats")
                    .with_help("such a line begins like this: RAM 4321/62801MB (lfb 1759x4MB) CPU [0%@729,…")
            ),
        };
        let Some(readings) = tegrastats::parse(&line) else { return Ok(Polled::Nothing) };
        self.seen = true;
        let readings = match &mut self.started {
            Some((_, sensors)) => readings.or(sensors.read()),
            None => readings,
        };
        Ok(Polled::Readings(Box::new(readings)))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.started {
            // Fails if it has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Reads lines in a thread, since reading cannot be given up.
fn read_aside(input: impl Read + Send + 'static) -> io::Result<Receiver<io::Result<String>>> {
    let (sender, lines) = sync_channel(WAITING);
    std::thread::Builder::new().name("tegrastats".to_owned()).spawn(move || read_lines(input, &sender))?;
    Ok(lines)
}

fn read_lines(input: impl Read, sender: &SyncSender<io::Result<String>>) {
    let mut input = BufReader::new(input);
    loop {
        let mut line = Vec::new();
        let read = input.by_ref().take(LONGEST).read_until(b'\n', &mut line);
        let line = match read {
            Ok(0) => return,
            Ok(_) => Ok(String::from_utf8_lossy(&line).into_owned()),
            Err(error) => Err(error),
        };
        let failed = line.is_err();
        // Nobody listens any more: the program ends.
        if sender.send(line).is_err() || failed {
            return;
        }
    }
}
