//! `doctor`: checks whether this machine can build and run engines, and names the fix for what is missing.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::bail;

use super::monitor::no_root;
use super::{Exit, print, print_json};
use crate::doctor::{Level, MachineReport, Root, examine};

/// Check JetPack, CUDA, cuDNN, TensorRT, ONNX Runtime, GPU, memory, disk and power mode, and say how to fix problems
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Examine the root file system at DIR (a mounted image, or a copy of a machine's files) instead of this machine
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &Args) -> anyhow::Result<Exit> {
    let root = match &args.root {
        Some(path) if !path.is_dir() => bail!(no_root(path)),
        Some(path) => Root::at(path),
        None => Root::live(),
    };
    let report = examine(&root);
    if args.json {
        print_json(&report)?
    } else {
        print(text(&report).trim_end())?
    }
    Ok(if report.level() == Level::Fail { Exit::Environment } else { Exit::Success })
}

fn text(report: &MachineReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let mark = match finding.level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        let _ = writeln!(text, "{mark}  {:<17} {}", finding.id, finding.seen);
        for line in &finding.mend {
            let _ = writeln!(text, "      {:<17} -> {line}", "");
        }
    }
    text.push('\n');
    for verdict in &report.verdicts {
        let able = if verdict.able { "yes" } else { "no " };
        let _ = writeln!(text, "{:<7} {able}  {}", verdict.job, verdict.reason);
    }
    text
}
