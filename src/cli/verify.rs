//! `verify`: verifies engine directories, or a server.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{Environment, Exit, print, print_json, say, say_next, session};
use crate::artifact::sha256_file;
use crate::backend::isolated::ProofProcess;
use crate::diagnostic::Diagnostic;
use crate::log::printable;
use crate::manifest::layout::REPORT_FILE;
use crate::verify::{self, Check, Endpoint, Report, Status};

/// Verify engines (files, plan, signature, and outputs against the CPU reference), or a server against the OpenAI API
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Engine directories
    #[arg(required_unless_present = "serve", value_name = "ENGINE")]
    engines: Vec<PathBuf>,
    /// Base URL of a server to verify instead, such as `http://localhost:8080`; any OpenAI-compatible server
    #[arg(long, value_name = "URL", conflicts_with_all = ["engines", "require_execution"])]
    serve: Option<String>,
    /// With --serve: model to request [default: the first that the server lists]
    #[arg(long, value_name = "NAME", requires = "serve")]
    model: Option<String>,
    /// With --serve: file whose first line is the API key to send
    #[arg(long, value_name = "FILE", requires = "serve")]
    api_key_file: Option<PathBuf>,
    /// Exit with code 7 if an engine could not be executed on this machine
    #[arg(long)]
    require_execution: bool,
    /// Print the reports as JSON
    #[arg(long)]
    json: bool,
}

/// Prints the line of one check.
fn print_check(name: &str, check: &Check) -> anyhow::Result<()> {
    let mark = match check.status {
        Status::Passed => "ok  ",
        Status::Failed => "FAIL",
        Status::Skipped => "--  ",
        Status::Warned => "warn",
    };
    // A server's name for its model is the server's own.
    print(format!("{mark} {}: {}: {}", printable(name), check.name, super::shortened(check.seen())))
}

fn serving(args: &Args, url: &str) -> anyhow::Result<Exit> {
    let read = |path: &PathBuf| -> anyhow::Result<String> {
        let text =
            crate::regular_file::read_text(path, 1 << 20).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    };
    let key = args.api_key_file.as_ref().map(read).transpose()?;
    let endpoint = Endpoint::new(url, key, args.model.clone()).map_err(|error| {
        Diagnostic::new(error).with_help("is a server there? `watus-build serve ENGINE` starts one")
    })?;
    let mut printed = Ok(());
    let checks = endpoint.verify(|check| {
        if !args.json && printed.is_ok() {
            printed = print_check(endpoint.model(), check);
        }
    });
    printed?;
    if args.json {
        print_json(&checks)?;
    }
    let failed = checks.iter().any(|check| check.status == Status::Failed);
    Ok(if failed { Exit::NotProved } else { Exit::Success })
}

pub(super) fn execute(args: &Args, environment: &Environment) -> anyhow::Result<Exit> {
    if let Some(url) = &args.serve {
        return serving(args, url);
    }
    let runner = ProofProcess::Isolated(session::reference()?);
    let (mut exit, mut reports) = (Exit::Success, Vec::new());
    for folder in &args.engines {
        // One that cannot be looked at does not hide what the others are like.
        match verify::examine(folder, &runner, &environment.progress, &mut sha256_file) {
            Ok(report) => {
                keep(folder, &report);
                exit = exit.worst(print_outcome(args, folder, &report)?);
                reports.push(report);
            }
            Err(error) => {
                super::report(&error);
                exit = exit.worst(Exit::of(&error));
            }
        }
    }
    if args.json {
        print_json(&reports)?;
    }
    Ok(exit)
}

/// Writes the report into the engine directory. If it cannot be written (read-only disk), the result still counts.
fn keep(folder: &Path, report: &Report) {
    if let Err(error) = report.save(folder) {
        let path = folder.join(REPORT_FILE);
        let lost = format!("warning: the report is not kept: cannot write {}: {error}", path.display());
        say(Diagnostic::new(lost).with_help("make the folder writable, or keep what `--json` prints"));
    }
}

/// Prints the outcome for one engine and returns its exit code.
fn print_outcome(args: &Args, folder: &Path, report: &Report) -> anyhow::Result<Exit> {
    if !args.json {
        for check in &report.checks {
            print_check(&report.name, check)?;
        }
        for prompt in &report.prompts {
            let answer = prompt.answer.lines().collect::<Vec<_>>().join(" ");
            let asked = printable(&prompt.prompt);
            print(format!("     {}: \"{asked}\" -> \"{}\"", report.name, printable(&answer)))?;
        }
    }
    if report.failed() {
        say_next(format!(
            "{} is not to be used as it is; build it again: `watus-build build --rebuild RECIPE`",
            folder.display()
        ));
        return Ok(Exit::NotProved);
    }
    if report.executed_on.is_some() {
        return Ok(Exit::Success);
    }
    if !args.json {
        print(format!("     {}: not verified: its execution was not checked", report.name))?;
    }
    Ok(if args.require_execution { Exit::NotExecuted } else { Exit::Success })
}
