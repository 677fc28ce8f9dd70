//! The command line: arguments, dispatch, exit codes. Only this module prints: data to stdout, the rest to stderr.

mod bench;
mod build;
mod doctor;
mod exit;
mod fetch;
mod generate;
mod inspect;
mod manual;
mod named;
mod outputs;
mod progress;
mod recipe;
mod run;
mod serve;
mod service;
mod session;
mod signals;
mod strip;
mod verify;

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Parser, Subcommand};

pub use exit::Exit;

use crate::api::{ErrorKind, text_of};
use crate::backend::{isolated, onnxruntime};
use crate::confined;
use crate::diagnostic::Diagnostic;
use crate::llm::text::child;
use crate::log;
use crate::progress::Progress;
use crate::worker;

/// Turns checkpoints into proven TensorRT engines on the machine they run on
#[derive(Debug, Parser)]
#[command(name = "watus-build", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    /// No progress, only results and errors
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Doctor(doctor::Args),
    Fetch(fetch::Args),
    Build(build::Args),
    Verify(verify::Args),
    Run(run::Args),
    Bench(bench::Args),
    Serve(serve::Args),
    Service(service::Args),
    Inspect(inspect::Args),
    Strip(strip::Args),
    Recipe(recipe::Args),
    // What packages install; people meet it installed.
    #[command(hide = true)]
    Completions(manual::Completions),
    #[command(hide = true)]
    Man(manual::Man),
    /// Builds one engine for a parent process
    #[command(name = worker::SUBCOMMAND, hide = true)]
    BuildEngine,
    /// Renders templates and compiles grammars for a parent process
    #[command(name = child::SUBCOMMAND, hide = true)]
    Text,
    /// Computes a graph for a parent process
    #[command(name = isolated::SUBCOMMAND, hide = true)]
    Reference,
}

/// What every subcommand gets.
struct Environment {
    progress: Arc<dyn Progress>,
    cancel: Arc<AtomicBool>,
}

/// Parses the arguments, runs the command, says what went wrong.
pub fn main() -> Exit {
    onnxruntime::disable_telemetry();
    let cli = Cli::parse();
    let serves = matches!(cli.command, Command::Serve(_));
    signals::block(serves);
    let json = serves && !std::io::stderr().is_terminal();
    log::subscribe(if json { log::Format::Json } else { log::Format::Text });
    let work = match cli.command {
        Command::BuildEngine => Some(worker::child_main(std::io::BufReader::new(std::io::stdin()), std::io::stdout())),
        Command::Reference => Some(isolated::child_main()),
        Command::Text => Some(confined::serve(child::answerer())),
        _ => None,
    };
    if let Some(outcome) = work {
        return match outcome {
            Ok(()) => Exit::Success,
            Err(message) => {
                say(format!("error: {message}"));
                Exit::Failure
            }
        };
    }
    if let Ok(executable) = std::env::current_exe() {
        confined::use_program(executable);
    }
    let environment = Environment { progress: progress::new(cli.quiet), cancel: signals::cancel(serves) };
    let result = match cli.command {
        Command::Doctor(args) => doctor::execute(&args),
        Command::Fetch(args) => fetch::execute(&args, &environment),
        Command::Build(args) => build::execute(&args, &environment),
        Command::Verify(args) => verify::execute(&args, &environment),
        Command::Run(args) => run::execute(&args, &environment),
        Command::Bench(args) => bench::execute(&args, &environment),
        Command::Serve(args) => serve::execute(args, &environment),
        Command::Service(args) => service::execute(args),
        Command::Inspect(args) => inspect::execute(&args),
        Command::Strip(args) => strip::execute(&args),
        Command::Recipe(args) => recipe::execute(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
        Command::BuildEngine | Command::Reference | Command::Text => Ok(Exit::Success),
    };
    drop(environment); // progress bars end before the last word
    let exit = result.unwrap_or_else(|error| {
        if is_broken_pipe(&error) {
            return Exit::Success; // `watus-build … | head` is not an error
        }
        report(&error);
        Exit::of(&error)
    });
    log::flush(LAST_LINES);
    exit
}

/// How long the last lines of the log may take, where somebody reads them slowly or not at all.
const LAST_LINES: std::time::Duration = std::time::Duration::from_millis(500);

/// Prints an error and its causes.
fn report(error: &anyhow::Error) {
    say(format!("error: {}", shortened(&text_of(error))));
    // The same words are a finding of `doctor` and a line of `verify`, which have their own next step.
    if ErrorKind::of(error) == ErrorKind::NoDevice {
        say(
            "  hint: `watus-build doctor` tells why; `run`, `bench` and `serve` compute without a GPU with `--backend cpu`",
        );
    }
}

/// Bytes of an error that are shown: it may quote a name or a key from a file, and those may be megabytes.
const SHOWN: usize = 4096;

/// A text as it is shown, cut if it is long; the next step is kept.
fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= SHOWN {
        return Cow::Borrowed(text);
    }
    let cut = |part: &str, limit: usize| match part.len() <= limit {
        true => part.to_owned(),
        false => format!("{}…", &part[..part.floor_char_boundary(limit)]),
    };
    let Diagnostic { message, help } = Diagnostic::from(text);
    let shown = Diagnostic { message: cut(&message, SHOWN), help: help.map(|help| cut(&help, SHOWN)) };
    Cow::Owned(shown.to_string())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.into_iter().any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Writes lines to standard error; whoever closed it does not want them. What strangers named is shown, not obeyed.
fn say(text: impl std::fmt::Display) {
    log::line(&log::printable_text(&text.to_string()));
}

/// Writes a line to stdout; a closed pipe is an error, not a panic.
fn print(text: impl std::fmt::Display) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{}", log::printable_text(&text.to_string()))?;
    Ok(())
}

/// Writes a document to stdout as pretty JSON.
fn print_json(document: &impl serde::Serialize) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(document)?;
    writeln!(std::io::stdout(), "{}", log::printable_json(&json))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_errors_are_cut_and_hints_are_kept() {
        let long = "ż".repeat(450_000);
        for (text, begin, end) in [
            ("a: short\n  hint: do".to_owned(), "a: short\n  hint: do", "a: short\n  hint: do"),
            (format!("a: `{long}` is odd"), "a: `ż", "ż…"),
            (format!("a: `{long}` is odd\n  hint: do this"), "a: `ż", "ż…\n  hint: do this"),
            (format!("a: short\n  hint: not {long}"), "a: short\n  hint: not ż", "ż…"),
        ] {
            let shown = shortened(&text);
            assert!(shown.len() <= 2 * SHOWN + 6, "{}", shown.len());
            assert!(shown.starts_with(begin) && shown.ends_with(end), "{shown}");
        }
        assert!(matches!(shortened("short"), Cow::Borrowed(_)));
    }
}
