//! `monitor`: shows load, clocks, memory, temperatures and power of this machine, and a server's speed beside them.
//!
//! `source.rs` takes readings, `server.rs` asks a running `serve`, `view.rs` makes lines of both without printing them.

mod server;
mod source;
mod view;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::bail;
use clap::ValueEnum;
use serde::Serialize;

use super::screen::{self, Screen};
use super::{Environment, Exit, print};
use crate::diagnostic::Diagnostic;
use crate::log::{printable, printable_json};
use crate::sensors::tegrastats::{self, Dialect};
use crate::sensors::{Readings, Sensors};
use crate::system_root::Root;
use server::{Server, ServerReading};
use source::{Polled, Source};
use view::{History, Shown};

/// Longest wait before Ctrl-C or a new size of the terminal is noticed.
const TICK: Duration = Duration::from_millis(50);
/// Where `serve` listens unless it is told otherwise.
const SERVER: &str = "http://127.0.0.1:8080";

/// Where readings come from
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Origin {
    /// Files of /proc and /sys, and NVIDIA's driver
    Files,
    /// The lines of a `tegrastats` that `monitor` starts, and files for what they do not tell
    Tegrastats,
    /// The lines of a `tegrastats` on standard input, which may be another machine's
    Stdin,
}

/// Whose lines to print
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Release {
    /// Those of this machine's release
    Own,
    /// JetPack 5 (L4T 35)
    #[value(name = "5")]
    JetPack5,
    /// JetPack 6 (L4T 36)
    #[value(name = "6")]
    JetPack6,
    /// JetPack 7.0 and 7.1 (L4T 38)
    #[value(name = "7.0")]
    JetPack70,
    /// JetPack 7.2 (L4T 39)
    #[value(name = "7.2")]
    JetPack72,
}

/// Show load, clocks, memory, temperatures, power and throttling of this machine, with a server's tokens per second, slots and queue
///
/// On a terminal this is a live view, until Ctrl-C; elsewhere a line is printed for each reading. Of EMC, the memory controller,
/// only root may read the clock, and only tegrastats the load: see `--source`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Seconds between two readings, 0.1 to 3600 [default: 1]
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    interval: Option<Duration>,
    /// Readings to take before it ends [default: until Ctrl-C]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print each reading as a line of JSON
    #[arg(long, conflicts_with = "tegrastats")]
    json: bool,
    /// Print each reading as a line of NVIDIA's tegrastats, in the format of this Jetson's release or of the JetPack that is named
    #[arg(long, value_enum, value_name = "JETPACK", num_args = 0..=1, require_equals = true, default_missing_value = "own")]
    tegrastats: Option<Release>,
    /// Where readings come from
    #[arg(long, value_enum, default_value = "files", value_name = "SOURCE")]
    source: Origin,
    /// Read /proc, /sys and /etc below DIR instead of below /
    #[arg(long, value_name = "DIR", conflicts_with = "source")]
    root: Option<PathBuf>,
    /// Address of a running `serve` [default: http://127.0.0.1:8080, if one answers there]
    #[arg(long, value_name = "URL", conflicts_with = "tegrastats")]
    server: Option<String>,
    /// File whose first line is the API key that the server asks for
    #[arg(long, value_name = "FILE", conflicts_with = "tegrastats")]
    api_key_file: Option<PathBuf>,
}

/// Argument parser for a length of time.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    let seconds = seconds.ok_or("give seconds from 0.1 to 3600")?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// One reading with its time, as `--json` prints it.
#[derive(Serialize)]
struct TimedReadings<'a> {
    /// Seconds since 1970, to the millisecond.
    time: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    board: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    l4t: Option<&'a str>,
    #[serde(flatten)]
    readings: &'a Readings,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<&'a ServerReading>,
}

/// How readings are shown.
enum Output {
    Json,
    Tegrastats(Dialect),
    Lines,
    /// The screen, and the size at which it was drawn.
    View(Screen, (usize, usize)),
}

/// What is shown, and where.
struct Monitor {
    board: Option<String>,
    l4t: Option<String>,
    output: Output,
    history: History,
    latest: Option<(String, Readings, Option<ServerReading>)>,
}

pub(super) fn execute(args: &Args, environment: &Environment) -> anyhow::Result<Exit> {
    let root = match &args.root {
        Some(path) if !path.is_dir() => bail!(no_root(path)),
        Some(path) => Root::at(path),
        None => Root::live(),
    };
    if args.source == Origin::Stdin && args.interval.is_some() {
        bail!(
            Diagnostic::new("--interval has no meaning with --source stdin: each line is a reading")
                .with_help("leave it out, and give it to the `tegrastats` that writes the lines")
        );
    }
    let interval = args.interval.unwrap_or(Duration::from_secs(1));
    let sensors = Sensors::new(root);
    let foreign = args.source == Origin::Stdin;
    let (board, l4t) = if foreign { (None, None) } else { (sensors.board(), sensors.l4t()) };
    let dialect = args.tegrastats.map(|release| dialect(release, l4t.as_deref())).transpose()?;
    let mut server = match dialect {
        Some(_) => None,
        None => Some(Server::new(args.server.as_deref(), SERVER, args.api_key_file.as_deref())?),
    };
    let mut source = match args.source {
        Origin::Files => Source::files(sensors, interval),
        Origin::Tegrastats => Source::started(sensors, interval)?,
        Origin::Stdin => Source::stdin()?,
    };
    let output = match dialect {
        Some(dialect) => Output::Tegrastats(dialect),
        None if args.json => Output::Json,
        None if std::io::stdout().is_terminal() => Output::View(Screen::take()?, (0, 0)),
        None => Output::Lines,
    };
    let mut monitor = Monitor { board, l4t, output, history: History::default(), latest: None };
    let mut taken = 0;
    while args.count.is_none_or(|count| taken < count) {
        if environment.cancel.load(Ordering::Relaxed) {
            // Who asks for no number ends it so.
            return Ok(if args.count.is_some() { Exit::Cancelled } else { Exit::Success });
        }
        match source.poll(TICK)? {
            Polled::Nothing => monitor.redraw()?,
            Polled::End => break,
            Polled::Readings(readings) => {
                taken += 1;
                monitor.show(*readings, server.as_mut().and_then(Server::read))?;
            }
        }
    }
    Ok(Exit::Success)
}

/// The error for a `--root` that is no folder.
pub(super) fn no_root(path: &Path) -> Diagnostic {
    let what = Diagnostic::new(format!("--root {}: not a folder", path.display()));
    what.with_help("name the folder that holds the etc, proc and sys of an image or of a copy of a machine's files")
}

/// The dialect of lines to print.
fn dialect(release: Release, l4t: Option<&str>) -> anyhow::Result<Dialect> {
    Ok(match release {
        Release::JetPack5 => Dialect::R35,
        Release::JetPack6 => Dialect::R36,
        Release::JetPack70 => Dialect::R38,
        Release::JetPack72 => Dialect::R39,
        Release::Own => match l4t.and_then(Dialect::of_l4t) {
            Some(dialect) => dialect,
            None => bail!(
                Diagnostic::new("--tegrastats: no Jetson Linux release is known here (/etc/nv_tegra_release)")
                    .with_help("name the JetPack whose format is wanted, e.g. --tegrastats=6")
            ),
        },
    })
}

impl Monitor {
    fn show(&mut self, readings: Readings, server: Option<ServerReading>) -> anyhow::Result<()> {
        match &self.output {
            Output::Json => return self.print_json(&readings, server.as_ref()),
            Output::Tegrastats(dialect) => {
                let date = jiff::ZonedDateTime::now().strftime("%m-%d-%Y %H:%M:%S").to_string();
                return print(format!("{date} {}", tegrastats::line(&readings, *dialect)));
            }
            Output::Lines | Output::View(..) => {}
        }
        let clock = jiff::ZonedDateTime::now().strftime("%H:%M:%S").to_string();
        self.history.push(&readings, server.as_ref());
        self.latest = Some((clock, readings, server));
        self.draw()
    }

    fn print_json(&self, readings: &Readings, server: Option<&ServerReading>) -> anyhow::Result<()> {
        let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = (passed.as_secs_f64() * 1e3).round() / 1e3;
        let (board, l4t) = (self.board.as_deref(), self.l4t.as_deref());
        let json = serde_json::to_string(&TimedReadings { time, board, l4t, readings, server })?;
        writeln!(std::io::stdout(), "{}", printable_json(&json))?;
        Ok(())
    }

    /// Draws the view again if the terminal has another size now.
    fn redraw(&mut self) -> anyhow::Result<()> {
        match &self.output {
            Output::View(_, drawn) if *drawn != screen::size() => self.draw(),
            _ => Ok(()),
        }
    }

    fn draw(&mut self) -> anyhow::Result<()> {
        let Some((clock, readings, server)) = &self.latest else { return Ok(()) };
        let (board, l4t) = (self.board.as_deref(), self.l4t.as_deref());
        let shown = Shown { board, l4t, clock, readings, server: server.as_ref(), history: &self.history };
        match &mut self.output {
            Output::View(screen, drawn) => {
                let size = screen::size();
                let lines = view::lines(&shown, size);
                // Names of chips and boards are whoever's made them.
                let lines: Vec<String> = lines.iter().map(|line| printable(line).into_owned()).collect();
                screen.draw(&lines)?;
                *drawn = size;
                Ok(())
            }
            _ => print(view::plain(&shown)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_seconds_in_bounds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for odd in ["0", "0.01", "-1", "NaN", "inf", "1e9", "x", ""] {
            assert_eq!(seconds(odd), Err("give seconds from 0.1 to 3600".to_owned()), "{odd}");
        }
    }
}
