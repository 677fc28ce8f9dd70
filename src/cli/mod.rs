//! The command line: arguments, dispatch, exit codes. Only this module prints: data to stdout, the rest to stderr.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod build;
mod doctor;
mod exit;
mod fetch;
mod generate;
mod inspect;
mod progress;
mod recipe;
mod run;
mod serve;
mod service;
mod session;
mod strip;
mod verify;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};

pub use exit::Exit;

use crate::backend::{BackendError, cpu};
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
    /// Builds one engine for a parent process
    #[command(name = worker::SUBCOMMAND, hide = true)]
    BuildEngine,
    /// Computes a graph for a parent process
    #[command(name = cpu::SUBCOMMAND, hide = true)]
    Reference,
}

/// What every subcommand gets.
struct Environment {
    progress: Arc<dyn Progress>,
    cancel: Arc<AtomicBool>,
}

/// Parses the arguments, runs the command, says what went wrong.
pub fn main() -> Exit {
    let cli = Cli::parse();
    let work = match cli.command {
        Command::BuildEngine => Some(worker::child_main(std::io::BufReader::new(std::io::stdin()), std::io::stdout())),
        Command::Reference => Some(cpu::child_main()),
        _ => None,
    };
    if let Some(outcome) = work {
        return match outcome {
            Ok(()) => Exit::Success,
            Err(message) => {
                eprintln!("error: {message}");
                Exit::Failure
            }
        };
    }
    let environment = Environment { progress: progress::new(cli.quiet), cancel: cancel_on_signal() };
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
        Command::BuildEngine | Command::Reference => Ok(Exit::Success),
    };
    drop(environment); // progress bars end before the last word
    result.unwrap_or_else(|error| {
        if is_broken_pipe(&error) {
            return Exit::Success; // `watus-build … | head` is not an error
        }
        report(&error);
        Exit::of(&error)
    })
}

/// Prints an error and its causes, a cause only if it says something new.
fn report(error: &anyhow::Error) {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    eprintln!("error: {text}");
    // The same words are a finding of `doctor` and a line of `verify`, which have their own next step.
    if error.chain().any(|cause| matches!(exit::backend_error(cause), Some(BackendError::NoDevice(_)))) {
        eprintln!(
            "  hint: `watus-build doctor` tells why; `run`, `bench` and `serve` compute without a GPU with `--backend cpu`"
        );
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.into_iter().any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The first Ctrl-C or SIGTERM asks to stop, the second insists.
fn cancel_on_signal() -> Arc<AtomicBool> {
    let cancel = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&cancel);
    let handler = move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(Exit::Cancelled as u8));
        }
        eprintln!("stopping (once more to insist)");
    };
    // Fails only when a handler is set already; then Ctrl-C simply ends the process.
    let _ = ctrlc::set_handler(handler);
    cancel
}

/// Writes a line to stdout; a closed pipe is an error, not a panic.
fn print(text: impl std::fmt::Display) -> anyhow::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

/// Writes a document to stdout as pretty JSON.
fn print_json(document: &impl serde::Serialize) -> anyhow::Result<()> {
    print(serde_json::to_string_pretty(document)?)
}
