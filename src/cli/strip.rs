//! `strip`: writes an engine file without the metadata in front of its plan.

use std::path::PathBuf;

use anyhow::Context as _;

use super::outputs::{refuse_inputs, refuse_others};
use super::session::read_engine;
use super::{Exit, print};
use crate::artifact::write_file;
use crate::backend::tensorrt::plan;

/// Remove Ultralytics' metadata from an engine file, for readers of plain plans such as trtexec and DeepStream
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Engine file with metadata
    engine: PathBuf,
    /// File to write the plain plan to [default: the engine's name with the extension .plan]
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
