//! doctor
use super::Exit;
/// x
#[derive(Debug, clap::Args)]
pub(super) struct Args {}
pub(super) fn execute(_args: &Args) -> anyhow::Result<Exit> { Ok(Exit::Success) }
