//! `verify`: prove engine directories.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{Environment, Exit, print, print_json, say, say_next, session};
use crate::artifact::sha256_file;
use crate::backend::isolated::ProofProcess;
use crate::diagnostic::Diagnostic;
use crate::log::printable;
use crate::manifest::layout::REPORT_FILE;
use crate::verify::{self, Check, Endpoint, Report, Status};

/// Prove engines: files, plan, signature, and their numbers against the CPU reference; or a server, against what OpenAI's
/// clients need
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Engine directories
    #[arg(required_unless_present = "serve")]
    engines: Vec<PathBuf>,
    /// A server to try instead, such as `http://localhost:8080`; it need not be ours
    #[arg(long, value_name = "URL", conflicts_with_all = ["engines", "require_execution"])]
    serve: Option<String>,
    /// With --serve: the model to ask for [default: the first listed]
    #[arg(long, value_name = "NAME", requires = "serve")]
    model: Option<String>,
    /// With --serve: a file whose first line is the key to show
    #[arg(long, value_name = "FILE", requires = "serve")]
    api_key_file: Option<PathBuf>,
    /// Exit with code 7 if an engine could not be executed here
    #[arg(long)]
    require_execution: bool,
    /// Print the reports as JSON
    #[arg(long)]
    json: bool,
}

/// A line for a check.
fn tell(name: &str, check: &Check) -> anyhow::Result<()> {
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
            printed = tell(endpoint.model(), check);
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
                exit = exit.worst(conclude(args, folder, &report)?);
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

/// Writes the report beside the engine. Where that is not possible (a disk that is read only), what was found still counts.
fn keep(folder: &Path, report: &Report) {
    if let Err(error) = report.save(folder) {
        let path = folder.join(REPORT_FILE);
        let lost = format!("warning: the report is not kept: cannot write {}: {error}", path.display());
        say(Diagnostic::new(lost).with_help("make the folder writable, or keep what `--json` prints"));
    }
}

/// Says what was found of one engine.
fn conclude(args: &Args, folder: &Path, report: &Report) -> anyhow::Result<Exit> {
    if !args.json {
        for check in &report.checks {
            tell(&report.name, check)?;
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
        print(format!("     {}: not proved: its execution was not checked", report.name))?;
    }
    Ok(if args.require_execution { Exit::NotExecuted } else { Exit::Success })
}
