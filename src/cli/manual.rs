//! Generates what a package installs beside the program, from clap's definitions: shell completions and man pages.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Exit};

/// Print shell completions, e.g. for ~/.local/share/bash-completion/completions/watus-build
#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// Shell to generate completions for
    shell: Shell,
}

/// Write man pages, one for each subcommand
#[derive(Debug, clap::Args)]
pub(super) struct Man {
    /// Directory to write to; created if missing
    folder: PathBuf,
}

/// The name of the installed program.
const PROGRAM: &str = "watus-build";

pub(super) fn completions(args: &Completions) -> anyhow::Result<Exit> {
    // Made first: clap_complete panics where it cannot write, and whoever reads may have gone.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), PROGRAM, &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(Exit::Success)
}

pub(super) fn man(args: &Man) -> anyhow::Result<Exit> {
    let folder = &args.folder;
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        clap_mangen::generate_to(Cli::command(), folder)
    };
    write().with_context(|| format!("cannot write man pages to {}", folder.display()))?;
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// File names of the man pages of `command` and of its visible subcommands.
    fn pages(command: &clap::Command, name: &str) -> Vec<String> {
        let shown = command.get_subcommands().filter(|below| !below.is_hide_set());
        let below = shown.flat_map(|below| pages(below, &format!("{name}-{}", below.get_name())));
        [format!("{name}.1")].into_iter().chain(below).collect()
    }

    #[test]
    fn every_subcommand_has_a_page() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("man/man1");
        man(&Man { folder: folder.clone() }).unwrap();
        let mut written: Vec<String> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        written.sort();
        let mut expected = pages(&Cli::command(), PROGRAM);
        expected.sort();
        assert_eq!(written, expected);
        assert!(expected.iter().any(|page| page == "watus-build-recipe-check.1"), "{expected:?}");
        let page = std::fs::read_to_string(folder.join("watus-build-build.1")).unwrap();
        assert!(page.contains("\n.SH SYNOPSIS") && page.contains("dry"), "{page}");
        let error = man(&Man { folder: folder.join("watus-build.1") }).unwrap_err().to_string();
        assert!(error.starts_with("cannot write man pages to "), "{error}");
    }

    #[test]
    fn shells_complete_what_there_is() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), PROGRAM, &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in ["doctor", "recipe", "schema", "max-tokens"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }
}
