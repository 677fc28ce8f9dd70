//! The `watus-build` command. Everything is in the library; see `watus_build::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    watus_build::cli::main().into()
}
