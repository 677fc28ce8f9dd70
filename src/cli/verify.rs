//! `verify`: prove engine directories.

use std::path::PathBuf;

use super::{Environment, Exit, print, print_json};
use crate::artifact::sha256_file;
use crate::verify::{self, Status};

/// Prove engines: files, plan, signature, and their numbers against the CPU reference
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Engine directories
    #[arg(required = true)]
    engines: Vec<PathBuf>,
    /// Exit with code 7 if an engine could not be executed here
    #[arg(long)]
    require_execution: bool,
    /// Print the reports as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &Args, environment: &Environment) -> anyhow::Result<Exit> {
    let (mut exit, mut reports) = (Exit::Success, Vec::new());
    for folder in &args.engines {
        let report = verify::verify(folder, &environment.progress, &mut sha256_file)?;
        if !args.json {
            for check in &report.checks {
                let mark = match check.status {
                    Status::Passed => "ok  ",
                    Status::Failed => "FAIL",
                    Status::Skipped => "--  ",
                };
                print(format!("{mark} {}: {}: {}", report.name, check.name, check.detail))?;
            }
            for prompt in &report.prompts {
                let answer = prompt.answer.lines().collect::<Vec<_>>().join(" ");
                print(format!("     {}: \"{}\" -> \"{answer}\"", report.name, prompt.prompt))?;
            }
        }
        if report.failed() {
            exit = Exit::NotProved;
        } else if report.executed_on.is_none() {
            if !args.json {
                print(format!("     {}: not proved: its execution was not checked", report.name))?;
            }
            if args.require_execution && exit == Exit::Success {
                exit = Exit::NotExecuted;
            }
        }
        reports.push(report);
    }
    if args.json {
        print_json(&reports)?;
    }
    Ok(exit)
}
