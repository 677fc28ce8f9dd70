//! Board, Jetson Linux release and JetPack release.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Package, Root, modules};
use crate::l4t::{RELEASE_FILE, parse_release};

/// The versions that a JetPack release ships. The L4T release decides, since the nvidia-jetpack package is often absent
/// or newer than the rest.
pub(super) struct JetPack {
    pub name: &'static str,
    /// The release's own, then those that NVIDIA supports on it too.
    pub tensorrt: &'static [&'static str],
    pub cuda: &'static str,
    pub cudnn: &'static str,
}

impl JetPack {
    /// Whether this TensorRT is made for it.
    pub fn takes(&self, tensorrt: &str) -> bool {
        let found = numbers(tensorrt);
        self.tensorrt.iter().any(|version| found.starts_with(&numbers(version)))
    }

    /// Its TensorRT versions, in words.
    pub fn tensorrt_text(&self) -> String {
        self.tensorrt.join(" or ")
    }
}

/// What JetPack releases have in common: TensorRT, CUDA, cuDNN.
type JetPackVersions = (&'static [&'static str], &'static str, &'static str);
const V5: JetPackVersions = (&["8.5.2"], "11.4", "8.6.0");
const V6_0: JetPackVersions = (&["8.6.2"], "12.2", "8.9.4");
const V6: JetPackVersions = (&["10.3.0"], "12.6", "9.3.0");
const V7: JetPackVersions = (&["10.13.3"], "13.0", "9.12.0");
const V7_2: JetPackVersions = (&["10.16.2"], "13.2", "9.20.0");
const V7_2_2: JetPackVersions = (&["10.16.2", "11.4"], "13.2", "9.20.0");

const fn jetpack(name: &'static str, (tensorrt, cuda, cudnn): JetPackVersions) -> JetPack {
    JetPack { name, tensorrt, cuda, cudnn }
}

/// JetPack releases by the first L4T release of each, in order. To 7.2: release pages of NVIDIA, recipes of
/// OE4T/meta-tegra and the table of jetson_stats, read 2026-11-23. 7.2.1 is R39.2.1: OE4T/meta-tegra#2339, read
/// 2026-11-27. 7.2.2 takes TensorRT 11.4.1 as SBSA package: docs.nvidia.com/deeplearning/tensorrt/11.4.1,
/// migration/tensorrt-10x-to-11x-jetson, read 2026-11-27; no public page gives its L4T release yet, which is later than
/// 39.2.1.
const RELEASES: &[((u32, u32, u32), JetPack)] = &[
    ((35, 2, 0), jetpack("5.1", V5)),
    ((35, 3, 0), jetpack("5.1.1", V5)),
    ((35, 4, 0), jetpack("5.1.2", V5)),
    ((35, 5, 0), jetpack("5.1.3", V5)),
    ((35, 6, 0), jetpack("5.1.4", V5)),
    ((35, 6, 1), jetpack("5.1.5", V5)),
    ((35, 6, 4), jetpack("5.1.6 or later", V5)),
    ((36, 3, 0), jetpack("6.0", V6_0)),
    ((36, 4, 0), jetpack("6.1", V6)),
    ((36, 4, 3), jetpack("6.2", V6)),
    ((36, 4, 4), jetpack("6.2.1", V6)),
    ((36, 5, 0), jetpack("6.2.2 or later", V6)),
    ((38, 2, 0), jetpack("7.0", V7)),
    ((38, 4, 0), jetpack("7.1", V7)),
    ((39, 2, 0), jetpack("7.2", V7_2)),
    ((39, 2, 1), jetpack("7.2.1", V7_2)),
    ((39, 2, 2), jetpack("7.2.2 or later", V7_2_2)),
];

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
    /// Module of a Jetson, e.g. "Jetson AGX Orin 32GB".
    pub module: Option<String>,
    /// Whether it has a Tegra SoC, as far as can be told.
    pub tegra: bool,
    /// Whether this is a container.
    pub container: bool,
}

impl Platform {
    pub(super) fn of(root: &Root, packages: &BTreeMap<String, Package>) -> Self {
        let l4t = l4t(root, packages);
        let board =
            ["/proc/device-tree/model", "/sys/class/dmi/id/product_name"].iter().find_map(|path| root.read(path));
        // A container without NVIDIA's runtime sees the board, and nothing of Jetson Linux.
        let jetson = board.as_ref().is_some_and(|board| board.contains("Jetson")) || modules::soc(root).is_some();
        let arm = root.exists("/usr/lib/aarch64-linux-gnu") && !root.exists("/usr/lib/x86_64-linux-gnu");
        let architecture = match (root.live, arm) {
            (true, _) => std::env::consts::ARCH,
            (false, true) => "aarch64",
            (false, false) => "x86_64",
        };
        Self {
            architecture: architecture.to_owned(),
            board: board.filter(|board| !board.is_empty()),
            jetpack: l4t.as_deref().and_then(release).map(|release| release.name.to_owned()),
            module: modules::module(root).map(|module| module.name.to_owned()),
            tegra: l4t.is_some() || jetson,
            l4t,
            container: ["/.dockerenv", "/run/.containerenv", "/run/systemd/container"]
                .iter()
                .any(|path| root.exists(path)),
        }
    }

    /// Whether this is a Jetson.
    pub fn is_jetson(&self) -> bool {
        self.tegra
    }

    pub(super) fn release(&self) -> Option<&'static JetPack> {
        release(self.l4t.as_deref()?)
    }

    /// The numbers of the Jetson Linux release, major, minor and patch; `None` elsewhere.
    pub(super) fn l4t_numbers(&self) -> Option<(u32, u32, u32)> {
        l4t_numbers(self.l4t.as_deref()?)
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

fn l4t_numbers(l4t: &str) -> Option<(u32, u32, u32)> {
    let parts = numbers(l4t);
    let part = |index: usize| parts.get(index).copied().unwrap_or(0);
    Some((*parts.first()?, part(1), part(2)))
}

fn release(l4t: &str) -> Option<&'static JetPack> {
    let found = l4t_numbers(l4t)?;
    let (from, release) = RELEASES.iter().rev().find(|(from, _)| *from <= found)?;
    (from.0 == found.0).then_some(release)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        let cases = [
            ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref", "35.4.1", "5.1.2", "8.5.2"),
            ("# R35 (release), REVISION: 6.3, GCID: 1", "35.6.3", "5.1.5", "8.5.2"),
            ("# R36 (release), REVISION: 3.0, GCID: 1", "36.3.0", "6.0", "8.6.2"),
            ("# R36 (release), REVISION: 4.3, GCID: 1", "36.4.3", "6.2", "10.3.0"),
            ("# R36 (release), REVISION: 4.4, GCID: 41062509\n# KERNEL_VARIANT: oot", "36.4.4", "6.2.1", "10.3.0"),
            ("# R36 (release), REVISION: 4.7, GCID: 42132812", "36.4.7", "6.2.1", "10.3.0"),
            ("# R36 (release), REVISION: 5.0, GCID: 1", "36.5.0", "6.2.2 or later", "10.3.0"),
            ("# R38 (release), REVISION: 2.1, GCID: 42061081", "38.2.1", "7.0", "10.13.3"),
            ("# R38 (release), REVISION: 4.0, GCID: 43443517", "38.4.0", "7.1", "10.13.3"),
            (
                "# R39 (release), REVISION: 2.0, GCID: 45755727, DATE: Mon Jun  1 09:28:48 PM UTC 2026",
                "39.2.0",
                "7.2",
                "10.16.2",
            ),
            ("# R39 (release), REVISION: 2.1, GCID: 46758480", "39.2.1", "7.2.1", "10.16.2"),
            ("# R39 (release), REVISION: 2.2, GCID: 1", "39.2.2", "7.2.2 or later", "10.16.2 or 11.4"),
        ];
        for (text, l4t, jetpack, tensorrt) in cases {
            let found = parse_release(text).unwrap();
            let release = release(&found).unwrap();
            assert_eq!((found.as_str(), release.name, release.tensorrt_text().as_str()), (l4t, jetpack, tensorrt));
        }
        for unknown in ["32.7.4", "36.2.0", "37.1.0", "39.0.0", "40.1.0", ""] {
            assert!(release(unknown).is_none(), "{unknown}");
        }
        let takes = |l4t: &str, tensorrt: &str| release(l4t).unwrap().takes(tensorrt);
        assert!(takes("39.2.1", "10.16.2") && !takes("39.2.1", "11.4.1") && !takes("39.2.1", "10.16.20"));
        assert!(takes("39.2.2", "10.16.2") && takes("39.2.2", "11.4.1") && !takes("39.2.2", "11.3.0"));
    }

    #[test]
    fn releases_are_in_order() {
        assert!(RELEASES.is_sorted_by(|(a, _), (b, _)| a < b));
    }
}
