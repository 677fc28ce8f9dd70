//! Board, Jetson Linux release and JetPack release.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Examination, Finding, Package, Root};
use crate::l4t::{RELEASE_FILE, parse_release};

/// The versions that a JetPack release ships, by NVIDIA's release pages. The L4T release decides, since the
/// nvidia-jetpack package is often absent or newer than the rest.
pub(super) struct JetPack {
    pub name: &'static str,
    pub tensorrt: &'static str,
    pub cuda: &'static str,
    pub cudnn: &'static str,
}

/// JetPack releases by L4T release: (major, first minor, minor after the last).
const RELEASES: &[((u32, u32, u32), JetPack)] = &[
    ((35, 2, 3), JetPack { name: "5.1", tensorrt: "8.5.2", cuda: "11.4", cudnn: "8.6.0" }),
    ((35, 3, 4), JetPack { name: "5.1.1", tensorrt: "8.5.2", cuda: "11.4", cudnn: "8.6.0" }),
    ((35, 4, 5), JetPack { name: "5.1.2", tensorrt: "8.5.2", cuda: "11.4", cudnn: "8.6.0" }),
    ((35, 5, 6), JetPack { name: "5.1.3", tensorrt: "8.5.2", cuda: "11.4", cudnn: "8.6.0" }),
    ((35, 6, 100), JetPack { name: "5.1.4 or later", tensorrt: "8.5.2", cuda: "11.4", cudnn: "8.6.0" }),
    ((36, 3, 4), JetPack { name: "6.0", tensorrt: "8.6.2", cuda: "12.2", cudnn: "8.9.4" }),
    ((36, 4, 5), JetPack { name: "6.1 or 6.2", tensorrt: "10.3.0", cuda: "12.6", cudnn: "9.3.0" }),
    ((36, 5, 100), JetPack { name: "6.2.2", tensorrt: "10.3.0", cuda: "12.6", cudnn: "9.3.0" }),
    ((38, 2, 4), JetPack { name: "7.0", tensorrt: "10.13.3", cuda: "13.0", cudnn: "9.12.0" }),
    ((38, 4, 100), JetPack { name: "7.1", tensorrt: "10.13.3", cuda: "13.0", cudnn: "9.12.0" }),
    ((39, 2, 100), JetPack { name: "7.2", tensorrt: "10.16.2", cuda: "13.2", cudnn: "9.20.0" }),
];

/// JetPack releases of L4T R36.4, by its patch level.
const R36_4: &[(u32, &str)] = &[(0, "6.1"), (2, "6.1"), (3, "6.2"), (4, "6.2.1"), (7, "6.2.1")];

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Platform {
    /// CPU architecture, of the image if one is examined.
    pub architecture: String,
    /// Board or host name, from the device tree or DMI.
    pub board: Option<String>,
    /// Jetson Linux release, on a Jetson.
    pub l4t: Option<String>,
    /// JetPack release that belongs to the Jetson Linux release.
    pub jetpack: Option<String>,
    /// Whether this is a container.
    pub container: bool,
}

impl Platform {
    pub(super) fn of(root: &Root, packages: &BTreeMap<String, Package>) -> Self {
        let l4t = l4t(root, packages);
        let board =
            ["/proc/device-tree/model", "/sys/class/dmi/id/product_name"].iter().find_map(|path| root.read(path));
        let arm = root.exists("/usr/lib/aarch64-linux-gnu") && !root.exists("/usr/lib/x86_64-linux-gnu");
        let architecture = match (root.live, arm) {
            (true, _) => std::env::consts::ARCH,
            (false, true) => "aarch64",
            (false, false) => "x86_64",
        };
        Self {
            architecture: architecture.to_owned(),
            board: board.filter(|board| !board.is_empty()),
            jetpack: l4t.as_deref().and_then(jetpack_name),
            l4t,
            container: root.exists("/.dockerenv") || root.exists("/run/.containerenv"),
        }
    }

    /// Whether this is a Jetson.
    pub fn is_jetson(&self) -> bool {
        self.l4t.is_some()
    }

    pub(super) fn release(&self) -> Option<&'static JetPack> {
        release(self.l4t.as_deref()?)
    }
}

/// The Jetson Linux release, "36.4.4", from [`RELEASE_FILE`], else from the nvidia-l4t-core package.
fn l4t(root: &Root, packages: &BTreeMap<String, Package>) -> Option<String> {
    if let Some(text) = root.read(RELEASE_FILE)
        && let Some(release) = parse_release(&text)
    {
        return Some(release);
    }
    packages.get("nvidia-l4t-core").map(|package| package.upstream().to_owned())
}

/// The numbers of a version such as "36.4.4".
pub(super) fn numbers(version: &str) -> Vec<u32> {
    version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

fn release(l4t: &str) -> Option<&'static JetPack> {
    let parts = numbers(l4t);
    let (major, minor) = (*parts.first()?, parts.get(1).copied().unwrap_or(0));
    let found = RELEASES.iter().find(|((wanted, from, below), _)| major == *wanted && (*from..*below).contains(&minor));
    found.map(|(_, release)| release)
}

fn jetpack_name(l4t: &str) -> Option<String> {
    if let [36, 4, patch, ..] = numbers(l4t)[..]
        && let Some((_, name)) = R36_4.iter().find(|(known, _)| *known == patch)
    {
        return Some((*name).to_owned());
    }
    release(l4t).map(|release| release.name.to_owned())
}

pub(super) fn check(examination: &Examination) -> Vec<Finding> {
    let platform = &examination.platform;
    let board = platform.board.clone().unwrap_or_else(|| "unknown board".to_owned());
    let container = if platform.container { ", in a container" } else { "" };
    let mut findings = vec![Finding::ok("board", format!("{board} ({}){container}", platform.architecture))];
    let Some(l4t) = &platform.l4t else {
        if platform.board.as_ref().is_some_and(|board| board.contains("Jetson")) {
            let mend = "in a container, start it with --runtime nvidia; else flash JetPack with SDK Manager";
            findings.push(Finding::fail("l4t", "a Jetson without /etc/nv_tegra_release and nvidia-l4t-core", &[mend]));
        }
        return findings;
    };
    findings.push(match &platform.jetpack {
        None => Finding::warn(
            "l4t",
            format!("Jetson Linux {l4t}, a release this version does not know"),
            &["JetPack 5.1 to 7.2 are supported; the versions below decide"],
        ),
        Some(jetpack) => Finding::ok("l4t", format!("Jetson Linux {l4t} (JetPack {jetpack})")),
    });
    if let Some(package) = examination.packages.get("nvidia-jetpack") {
        let release = jetpack_name(l4t);
        if release.as_ref().is_some_and(|release| !release.contains(package.upstream()) && !release.contains("later")) {
            findings.push(Finding::warn(
                "jetpack",
                format!(
                    "the nvidia-jetpack package is {}, Jetson Linux belongs to {}",
                    package.version,
                    release.unwrap_or_default()
                ),
                &["sudo apt update && sudo apt full-upgrade"],
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        let cases = [
            ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref", "35.4.1", "5.1.2", "8.5.2"),
            ("# R36 (release), REVISION: 3.0, GCID: 1", "36.3.0", "6.0", "8.6.2"),
            ("# R36 (release), REVISION: 4.4, GCID: 41062509\n# KERNEL_VARIANT: oot", "36.4.4", "6.2.1", "10.3.0"),
            ("# R36 (release), REVISION: 5.0, GCID: 1", "36.5.0", "6.2.2", "10.3.0"),
            (
                "# R39 (release), REVISION: 2.0, GCID: 45755727, DATE: Mon Jun  1 09:28:48 PM UTC 2026",
                "39.2.0",
                "7.2",
                "10.16.2",
            ),
        ];
        for (text, l4t, jetpack, tensorrt) in cases {
            let found = parse_release(text).unwrap();
            assert_eq!((found.as_str(), jetpack_name(&found).unwrap().as_str()), (l4t, jetpack));
            assert_eq!(release(&found).unwrap().tensorrt, tensorrt);
        }
        assert_eq!(jetpack_name("40.1.0"), None);
    }
}
