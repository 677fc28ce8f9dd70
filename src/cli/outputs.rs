//! Protects files: a command overwrites neither its inputs nor files of other programs.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, bail};

use crate::artifact::is_same_file;
use crate::diagnostic::Diagnostic;

/// Refuses a target that is one of the input files.
pub(super) fn refuse_inputs<'a>(target: &Path, mut inputs: impl Iterator<Item = &'a Path>) -> anyhow::Result<()> {
    if let Some(input) = inputs.find(|input| is_same_file(input, target)) {
        bail!(
            Diagnostic::new(format!(
                "{} would be replaced by what is made of it{}",
                input.display(),
                if input == target { String::new() } else { format!(" (as {})", target.display()) }
            ))
            .with_help("choose another place")
        );
    }
    Ok(())
}

/// Refuses a target that exists and does not start like the kind of file the command writes.
pub(super) fn refuse_others(target: &Path, is_ours: impl Fn(&[u8]) -> bool, kind: &str) -> anyhow::Result<()> {
    if target.is_dir() {
        bail!(Diagnostic::new(format!("{} is a folder", target.display())).with_help("name a file"));
    }
    let Ok(metadata) = std::fs::metadata(target) else { return Ok(()) };
    if !metadata.is_file() {
        bail!(Diagnostic::new(format!("{} is a device or a pipe", target.display())).with_help("name a file"));
    }
    let mut head = Vec::new();
    let read = File::open(target).and_then(|file| file.take(1 << 20).read_to_end(&mut head));
    read.with_context(|| format!("cannot read {}", target.display()))?;
    if !is_ours(&head) && !head.is_empty() {
        bail!(
            Diagnostic::new(format!("{} is there already, and no {kind}", target.display()))
                .with_help("choose another place, or move it away")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_nobodys_to_replace() {
        assert!(refuse_others(Path::new("/dev/null"), |_| true, "SVG").is_err());
        let scratch = tempfile::tempdir().unwrap();
        let pipe = scratch.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        assert!(refuse_others(&pipe, |_| true, "SVG").is_err());
        assert!(crate::artifact::write_file(&pipe, b"x").is_err());
    }

    #[test]
    fn what_is_read_and_what_is_not_ours_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        for (name, text) in [("in", "x"), ("chart", "<svg/>"), ("notes", "mine"), ("empty", "")] {
            std::fs::write(path(name), text).unwrap();
        }
        std::fs::create_dir(path("folder")).unwrap();
        std::os::unix::fs::symlink(path("in"), path("link")).unwrap();
        std::fs::hard_link(path("in"), path("twin")).unwrap();
        for (target, fine) in [("in", false), ("link", false), ("twin", false), ("notes", true), ("absent", true)] {
            assert_eq!(refuse_inputs(&path(target), std::iter::once(path("in").as_path())).is_ok(), fine, "{target}");
        }
        for (target, fine) in [("chart", true), ("notes", false), ("empty", true), ("absent", true), ("folder", false)]
        {
            let checked = refuse_others(&path(target), |head| head.starts_with(b"<svg"), "SVG");
            assert_eq!(checked.is_ok(), fine, "{target}");
        }
    }
}
