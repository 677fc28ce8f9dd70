//! The command line: arguments, dispatch, exit codes. Only this module prints: data to stdout, the rest to stderr.

mod bench;
mod build;
mod doctor;
mod exit;
mod fetch;
mod generate;
mod inspect;
mod list;
mod manual;
mod monitor;
mod named;
mod outputs;
mod progress;
mod recipe;
mod remove;
mod run;
mod screen;
mod serve;
mod service;
mod session;
mod signals;
mod strip;
mod upgrade;
mod verify;

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Parser, Subcommand};

pub use exit::Exit;

use crate::api::{ErrorKind, diagnostic_of};
use crate::backend::onnxruntime;
use crate::child_process;
use crate::diagnostic::Diagnostic;
use crate::log;
use crate::progress::Progress;

/// Build TensorRT engines from checkpoints, verify them against a CPU reference, and run them
#[derive(Debug, Parser)]
#[command(name = "watus-build", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    /// Print results and errors only, no progress
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Doctor(doctor::Args),
    Monitor(monitor::Args),
    Fetch(fetch::Args),
    Build(build::Args),
    Verify(verify::Args),
    Run(run::Args),
    Bench(bench::Args),
    Serve(serve::Args),
    Service(service::Args),
    Inspect(inspect::Args),
    List(list::Args),
    Remove(remove::Args),
    Strip(strip::Args),
    Recipe(recipe::Args),
    Completions(manual::Completions),
    Man(manual::Man),
}

/// What the command line hands to every subcommand: where progress goes, and the flag that signals set.
struct Environment {
    progress: Arc<dyn Progress>,
    cancel: Arc<AtomicBool>,
}

/// Parses the arguments, runs the subcommand and reports its error.
pub fn main() -> Exit {
    onnxruntime::disable_telemetry();
    if child_process::is_child() {
        signals::block(false);
        log::subscribe(log::Format::Text);
    }
    child_process::enable_child_processes();
    let cli = Cli::parse();
    let serves = matches!(cli.command, Command::Serve(_));
    signals::block(serves);
    let json = serves && !std::io::stderr().is_terminal();
    log::subscribe(if json { log::Format::Json } else { log::Format::Text });
    let environment = Environment { progress: progress::new(cli.quiet), cancel: signals::cancel(serves) };
    let result = match cli.command {
        Command::Doctor(args) => doctor::execute(&args),
        Command::Monitor(args) => monitor::execute(&args, &environment),
        Command::Fetch(args) => fetch::execute(&args, &environment),
        Command::Build(args) => build::execute(&args, &environment),
        Command::Verify(args) => verify::execute(&args, &environment),
        Command::Run(args) => run::execute(&args, &environment),
        Command::Bench(args) => bench::execute(&args, &environment),
        Command::Serve(args) => serve::execute(args, &environment),
        Command::Service(args) => service::execute(args),
        Command::Inspect(args) => inspect::execute(&args),
        Command::List(args) => list::execute(&args),
        Command::Remove(args) => remove::execute(&args, &environment),
        Command::Strip(args) => strip::execute(&args),
        Command::Recipe(args) => recipe::execute(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
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

/// Longest wait at exit for a slow reader of standard error.
const LAST_LINES: std::time::Duration = std::time::Duration::from_millis(500);

/// The message of an error and its causes, and the hint.
fn told(error: &anyhow::Error) -> Diagnostic {
    let told = diagnostic_of(error);
    // The same words are a finding of `doctor` and a line of `verify`, which have their own next step.
    match told.help.is_none() && ErrorKind::of(error) == ErrorKind::NoDevice {
        true => told.with_help(
            "`watus-build doctor` tells why; `run`, `bench` and `serve` compute without a GPU with `--backend cpu`",
        ),
        false => told,
    }
}

/// Prints an error and its causes.
fn report(error: &anyhow::Error) {
    say(format!("error: {}", shortened(told(error))));
}

/// Bytes of an error message that are printed: a message may quote a name of megabytes from a file.
const SHOWN: usize = 4096;

/// Cuts the parts of a long error message for printing.
fn shortened(told: Diagnostic) -> Diagnostic {
    let cut = |part: String| match part.len() <= SHOWN {
        true => part,
        false => format!("{}…", &part[..part.floor_char_boundary(SHOWN)]),
    };
    Diagnostic {
        message: cut(told.message),
        help: told.help.map(cut),
        words: told.words.map(|words| cut(words.into()).into()),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.into_iter().any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Writes lines to standard error with control characters escaped. A closed standard error is ignored.
fn say(text: impl std::fmt::Display) {
    log::line(&log::printable_text(&text.to_string()));
}

/// Says a next step below what was printed elsewhere.
fn say_next(help: impl std::fmt::Display) {
    say(format!("  hint: {help}"));
}

/// Writes a line to stdout. A closed pipe is an error, not a panic.
fn print(text: impl std::fmt::Display) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{}", log::printable_text(&text.to_string()))?;
    Ok(())
}

/// Writes a document to stdout as indented JSON.
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
            let told = match text.split_once("\n  hint: ") {
                Some((message, help)) => Diagnostic::new(message).with_help(help),
                None => Diagnostic::new(text),
            };
            let shown = shortened(told).to_string();
            assert!(shown.len() <= 2 * SHOWN + 6, "{}", shown.len());
            assert!(shown.starts_with(begin) && shown.ends_with(end), "{shown}");
        }
    }
}
