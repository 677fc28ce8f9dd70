//! Which Jetson Linux (L4T, Linux for Tegra) a machine runs, as `/etc/nv_tegra_release` says.

use std::fs::File;
use std::io::Read as _;

/// Where Jetson Linux says its release.
pub const RELEASE_FILE: &str = "/etc/nv_tegra_release";
/// The file has a few hundred bytes.
const READ_LIMIT: u64 = 64 << 10;

/// The Jetson Linux release of this machine, e.g. "36.4.4"; `None` elsewhere.
pub fn release() -> Option<String> {
    let mut bytes = Vec::new();
    File::open(RELEASE_FILE).ok()?.take(READ_LIMIT).read_to_end(&mut bytes).ok()?;
    parse_release(&String::from_utf8_lossy(&bytes))
}

/// Parses `# R36 (release), REVISION: 4.4, GCID: …`.
pub fn parse_release(text: &str) -> Option<String> {
    let line = text.trim_start().lines().next()?;
    let major = line.trim_start_matches(['#', ' ']).strip_prefix('R')?.split(' ').next()?;
    let minor = line.split("REVISION:").nth(1)?.split(',').next()?.trim();
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    (number(major) && number(minor)).then(|| format!("{major}.{minor}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_tells() {
        for (text, expected) in [
            ("# R36 (release), REVISION: 4.4, GCID: 41062509\n# KERNEL_VARIANT: oot", Some("36.4.4")),
            ("\n# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref", Some("35.4.1")),
            ("# R36 (release), REVISION: $(reboot), X", None),
            ("# R36 (release)", None),
            ("", None),
        ] {
            assert_eq!(parse_release(text).as_deref(), expected, "{text}");
        }
    }
}
