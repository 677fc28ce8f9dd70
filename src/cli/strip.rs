//! `strip`: an engine file without the metadata before its plan.

use std::path::PathBuf;

use anyhow::Context as _;

use super::outputs::{refuse_inputs, refuse_others};
use super::session::read_engine;
use super::{Exit, print};
use crate::artifact::write_file;
use crate::backend::tensorrt::plan;

/// Take Ultralytics' metadata off an engine file, for trtexec, DeepStream and other readers of plain plans
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Engine file
    engine: PathBuf,
    /// Where the plain plan goes [default: beside it, as .plan]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn execute(args: &Args) -> anyhow::Result<Exit> {
    let file = read_engine(&args.engine, "no TensorRT engine")?;
    let (metadata, plan) = plan::split(&file);
    let output = args.output.clone().unwrap_or_else(|| args.engine.with_extension("plan"));
    refuse_inputs(&output, std::iter::once(args.engine.as_path()))?;
    refuse_others(&output, |head| plan::Header::parse(plan::split(head).1).is_some(), "TensorRT engine")?;
    write_file(&output, plan).with_context(|| format!("cannot write {}", output.display()))?;
    let what = if metadata.is_some() { "without its metadata" } else { "had no metadata" };
    print(format!("{}: {what}: {}", args.engine.display(), output.display()))?;
    Ok(Exit::Success)
}
