//! Examines a machine: what it can do, what is wrong, and the command that fixes it.
//!
//! Everything is read from files, so that a mounted image or a fixture can be examined like the machine itself
//! (`--root DIR`). Only on the live machine are libraries opened and the GPU queried.
//!
//! Each check makes findings; a finding says which jobs it prevents, and `verdict.rs` asks nothing but the findings
//! whether the machine is fit for a job. `platform.rs`, `board.rs` and `modules.rs` tell the machine, `software.rs` CUDA and the
//! kernels, `tensorrt.rs` TensorRT, `packages.rs` what dpkg and pip installed, `hardware.rs` and `power.rs` the rest;
//! `traps.rs` are known pitfalls, `advice.rs` says remedies so that they fit a container. What is known about releases
//! and boards names its public source and the day it was read.

mod advice;
mod board;
mod hardware;
mod judge;
mod modules;
mod packages;
mod platform;
mod power;
mod software;
mod tensorrt;
mod traps;
mod verdict;

use serde::Serialize;

pub use platform::Platform;
pub use verdict::Verdict;

use crate::l4t;
use crate::memory::Memory;
pub use crate::system_root::{Package, Root};

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Level {
    Ok,
    Warn,
    Fail,
}

/// A job that a machine is fit for or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// Building engines.
    Build,
    /// Running vision models.
    Vision,
    /// Running language models.
    Llm,
}

impl Purpose {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Build, Self::Vision, Self::Llm];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Vision => "vision",
            Self::Llm => "llm",
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable short name, e.g. "power-mode".
    pub id: &'static str,
    /// Severity.
    pub level: Level,
    /// What the check found.
    pub seen: String,
    /// Commands, or one sentence, that fix the problem.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mend: Vec<String>,
    /// The jobs that it prevents. A failure prevents at least one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<Purpose>,
}

impl Finding {
    fn ok(id: &'static str, seen: impl Into<String>) -> Self {
        Self { id, level: Level::Ok, seen: seen.into(), mend: Vec::new(), blocks: Vec::new() }
    }

    fn warn(id: &'static str, seen: impl Into<String>, mend: &[&str]) -> Self {
        let mend = mend.iter().map(|line| (*line).to_owned()).collect();
        Self { level: Level::Warn, mend, ..Self::ok(id, seen) }
    }

    fn fail(id: &'static str, seen: impl Into<String>, mend: &[&str], blocks: &[Purpose]) -> Self {
        Self { level: Level::Fail, ..Self::warn(id, seen, mend) }.blocking(blocks)
    }

    /// With the jobs that it prevents.
    fn blocking(self, blocks: &[Purpose]) -> Self {
        Self { blocks: blocks.to_vec(), ..self }
    }
}

/// Result of an examination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineReport {
    /// The machine.
    pub platform: Platform,
    /// The results of all checks, in order.
    pub findings: Vec<Finding>,
    /// The jobs that the machine is fit for.
    pub verdicts: Vec<Verdict>,
}

impl MachineReport {
    /// The severity of the worst finding.
    pub fn level(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }
}

/// State shared by the checks.
pub(crate) struct Examination<'a> {
    root: &'a Root,
    platform: Platform,
    packages: std::collections::BTreeMap<String, Package>,
    memory: Option<Memory>,
}

/// Examines a machine.
pub fn examine(root: &Root) -> MachineReport {
    let packages = root.packages();
    let meminfo = root.read("/proc/meminfo").unwrap_or_default();
    let memory = Memory::parse(&meminfo, &root.read("/proc/swaps").unwrap_or_default());
    let examination = Examination { root, platform: Platform::of(root, &packages), packages, memory };
    let mut findings = board::check(&examination);
    findings.extend(software::check(&examination));
    let (tensorrt, found) = tensorrt::check(&examination);
    findings.extend(found);
    findings.push(judge::check(&examination));
    let gpu = hardware::gpu(&examination, tensorrt.as_deref());
    findings.extend(gpu.findings);
    findings.extend(hardware::memory(&examination));
    findings.extend(hardware::disk(&examination));
    findings.extend(power::check(&examination));
    findings.extend(packages::check(&examination));
    findings.extend(traps::check(&examination, tensorrt.as_deref()));
    let verdicts = verdict::of(&findings, &verdict::Capacity { tensorrt, memory: gpu.memory });
    MachineReport { platform: examination.platform, findings, verdicts }
}

/// What keeps this machine from full speed, for benchmark reports, beside the power mode that they record themselves.
pub fn performance_notes() -> Vec<String> {
    let root = Root::live();
    if l4t::release().is_none() {
        return Vec::new();
    }
    let packages = root.packages();
    let platform = Platform::of(&root, &packages);
    let findings = power::check(&Examination { root: &root, platform, packages, memory: None });
    findings.into_iter().filter(|finding| finding.level > Level::Ok).map(|finding| finding.seen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The findings of an image with these files and links, by id.
    fn examined(files: &[(&str, &str)], links: &[(&str, &str)]) -> Vec<Finding> {
        let image = tempfile::tempdir().unwrap();
        let place = |path: &str| {
            let path = image.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        files.iter().for_each(|(path, text)| std::fs::write(place(path), text).unwrap());
        links.iter().for_each(|(path, target)| std::os::unix::fs::symlink(target, place(path)).unwrap());
        examine(&Root::at(image.path())).findings
    }

    fn seen<'a>(findings: &'a [Finding], id: &str) -> (Level, &'a str) {
        let finding = findings.iter().find(|finding| finding.id == id).unwrap();
        (finding.level, finding.seen.as_str())
    }

    /// JetPack 7 on a Thor: CUDA for SBSA, /usr/local/cuda a link of alternatives, runtime packages only.
    #[test]
    fn cuda_is_found_through_links() {
        let lib = "usr/local/cuda-13.0/targets/sbsa-linux/lib";
        let (runtime, compiler) = (format!("{lib}/libcudart.so.13.0.88"), format!("{lib}/libnvrtc.so.13"));
        let files = [
            ("etc/nv_tegra_release", "# R38 (release), REVISION: 2.0, GCID: 1"),
            ("proc/device-tree/compatible", "nvidia,tegra264\0"),
            ("usr/lib/aarch64-linux-gnu/libc.so.6", ""),
            (runtime.as_str(), ""),
            (compiler.as_str(), ""),
        ];
        let links = [("usr/local/cuda", "/etc/alternatives/cuda"), ("etc/alternatives/cuda", "/usr/local/cuda-13.0")];
        let findings = examined(&files, &links);
        assert_eq!(seen(&findings, "cuda"), (Level::Ok, "CUDA 13.0.88"));
        let found = "NVRTC: /usr/local/cuda/targets/sbsa-linux/lib/libnvrtc.so.13";
        assert_eq!(seen(&findings, "nvrtc"), (Level::Ok, found));
    }

    #[test]
    fn precompiled_kernels_need_no_compiler() {
        let kernel =
            format!("{}/{}", &crate::cuda_executor::PACKAGED_KERNELS[1..], crate::cuda_executor::packaged_kernel());
        let driver = ("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05");
        let findings = examined(&[driver, (kernel.as_str(), "")], &[]);
        assert_eq!(seen(&findings, "nvrtc"), (Level::Ok, "no NVRTC; none is needed"));
        assert_eq!(seen(&findings, "kernels"), (Level::Ok, "precompiled in /usr/lib/watus-build/kernels"));
        // Those of another version.
        let other = format!("{}/0123.ptx", &crate::cuda_executor::PACKAGED_KERNELS[1..]);
        let findings = examined(&[driver, (other.as_str(), "")], &[]);
        assert_eq!(seen(&findings, "nvrtc").0, Level::Warn);
        assert!(findings.iter().all(|finding| finding.id != "kernels"));
    }

    /// A container without NVIDIA's runtime: nothing of Jetson Linux is mounted, but the board is known.
    #[test]
    fn a_jetsons_container_is_not_told_to_install_a_driver() {
        let board = [
            (".dockerenv", ""),
            ("proc/device-tree/compatible", "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0"),
            ("proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0"),
            ("proc/meminfo", "MemTotal: 64000000 kB\nMemFree: 50000000 kB\nMemAvailable: 60000000 kB\n"),
        ];
        let findings = examined(&board, &[]);
        assert_eq!(seen(&findings, "gpu").0, Level::Ok);
        let mends: Vec<&str> = findings.iter().flat_map(|finding| &finding.mend).map(String::as_str).collect();
        assert!(mends.iter().any(|mend| mend.contains("--runtime nvidia")), "{mends:?}");
        assert!(!mends.iter().any(|mend| mend.contains("driver") || mend.contains("mkswap")), "{mends:?}");
    }
}
