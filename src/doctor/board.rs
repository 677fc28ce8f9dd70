//! Tells board, Jetson Linux and JetPack, and whether these belong together.

use super::advice::{NVIDIA_RUNTIME, upgrade};
use super::{Examination, Finding, Purpose};

pub(super) fn check(examination: &Examination) -> Vec<Finding> {
    let platform = &examination.platform;
    let board = platform.board.clone().unwrap_or_else(|| "unknown board".to_owned());
    let container = if platform.container { ", in a container" } else { "" };
    let mut findings = vec![Finding::ok("board", format!("{board} ({}){container}", platform.architecture))];
    let Some(l4t) = &platform.l4t else {
        if platform.tegra {
            let mend = match platform.container {
                true => NVIDIA_RUNTIME,
                false => "flash JetPack with SDK Manager",
            };
            let seen =
                "Jetson Linux is not to be seen: neither /etc/nv_tegra_release nor package nvidia-l4t-core is there";
            findings.push(Finding::fail("l4t", seen, &[mend], &Purpose::ALL));
        }
        return findings;
    };
    findings.push(match &platform.jetpack {
        None => Finding::warn(
            "l4t",
            format!("Jetson Linux {l4t}, a release this version does not know"),
            &["JetPack 5.1 to 7.2.2 are supported; the versions below decide"],
        ),
        Some(jetpack) => Finding::ok("l4t", format!("Jetson Linux {l4t} (JetPack {jetpack})")),
    });
    findings.extend(package(examination));
    findings
}

/// Whether the nvidia-jetpack package is of another JetPack than Jetson Linux.
fn package(examination: &Examination) -> Option<Finding> {
    let package = examination.packages.get("nvidia-jetpack")?;
    let name = examination.platform.release()?.name;
    if name == package.upstream() || name.ends_with("later") {
        return None;
    }
    let seen = format!("the nvidia-jetpack package is {}, Jetson Linux belongs to {name}", package.version);
    Some(Finding::warn("jetpack", seen, &[upgrade(&examination.platform)]))
}
