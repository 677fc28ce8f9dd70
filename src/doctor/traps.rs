//! Checks for known pitfalls of Jetsons, each with the report that describes it and the day it was read.

use super::advice::{NVIDIA_RUNTIME, install, on_host, reinstall};
use super::hardware::DROP_CACHES;
use super::platform::numbers;
use super::{Examination, Finding, Purpose, modules};
use crate::backend::tensorrt::allocation::Allocation;
use crate::backend::tensorrt::device::Device;
use crate::memory::format_bytes;

/// `tensorrt` is the name of the TensorRT that was found.
pub(super) fn check(examination: &Examination, tensorrt: Option<&str>) -> Vec<Finding> {
    if !examination.platform.is_jetson() {
        return Vec::new();
    }
    let mut findings = vec![driver_library(examination)];
    findings.extend(dla(examination, tensorrt));
    findings.extend(dla_compiler(examination, tensorrt));
    findings.extend(nvmap(examination));
    findings.extend(page_cache(examination));
    findings.extend(tegrastats(examination));
    findings
}

/// Without Tegra's own libcuda every framework silently falls back to the CPU (ollama/ollama#9503, read 2026-11-23). From
/// Jetson Linux 38 on, that of a Thor is in a folder of its own (NVIDIA-AI-Blueprints/video-search-and-summarization#1478,
/// read 2026-11-27).
fn driver_library(examination: &Examination) -> Finding {
    let (root, platform) = (examination.root, &examination.platform);
    let usual = ["/usr/lib/aarch64-linux-gnu/nvidia", "/usr/lib/aarch64-linux-gnu/tegra", "/usr/lib/aarch64-linux-gnu"];
    let mut folders = usual.map(str::to_owned).to_vec();
    let own = "/opt/nvidia/l4t-gpu-libs";
    folders.extend(root.list(own).into_iter().map(|name| format!("{own}/{name}")));
    if !root.find(&folders, "libcuda.so.1").is_empty() {
        return Finding::ok("driver", "libcuda.so.1 of Jetson Linux is there");
    }
    let package = reinstall(platform, "nvidia-l4t-cuda");
    let mend = if platform.container { NVIDIA_RUNTIME } else { package.as_str() };
    Finding::fail("driver", "no libcuda.so.1: programs would silently use the CPU", &[mend], &Purpose::ALL)
}

/// TensorRT 10.8 to 11.4.0 have no DLA on Linux; 11.4.1 has it again on AGX Orin with JetPack 7.2.2, Thor has none
/// (docs.nvidia.com/deeplearning/tensorrt/11.4.1, inference-library/work-with-dla, read 2026-11-27). Engines of this tool
/// use the GPU alone; whoever uses DLA beside them should know before upgrading.
fn dla(examination: &Examination, tensorrt: Option<&str>) -> Option<Finding> {
    let version = numbers(tensorrt?.rsplit(' ').next()?);
    let without = version.as_slice() >= [10, 8].as_slice() && version.as_slice() < [11, 4, 1].as_slice();
    let orin = modules::soc(examination.root).is_some_and(|soc| soc.capability == "8.7");
    if !without || !orin {
        return None;
    }
    let seen = "none with this TensorRT: 10.7 was the last with DLA, 11.4.1 has it again (AGX Orin, JetPack 7.2.2); watus-build \
                does not use DLA";
    Some(Finding::ok("dla", seen))
}

/// What TensorRT of JetPack 6 opens, and Jetson Linux 39 does not have.
pub(super) const DLA_COMPILER: &str = "libnvdla_compiler.so";
/// What to do without it.
pub(super) const NO_DLA_COMPILER: &str = "take an image for arm64 servers (SBSA): those named -igpu are for JetPack 6";

/// Images for JetPack 6 (named -igpu) have a TensorRT up to 10.11 that opens libnvdla_compiler.so of the host, which is
/// gone from Jetson Linux 39 (Jonah-May-OSS/wyoming-whisper-trt#1038, blakeblackshear/frigate#23582, read 2026-11-27).
fn dla_compiler(examination: &Examination, tensorrt: Option<&str>) -> Option<Finding> {
    let (root, platform) = (examination.root, &examination.platform);
    let version = numbers(tensorrt?.rsplit(' ').next()?);
    let new = platform.l4t_numbers() >= Some((39, 0, 0));
    // On the live machine it has been opened.
    let unsure = !root.live && platform.container && new && version.as_slice() < [10, 12].as_slice();
    let folders = ["/usr/lib/aarch64-linux-gnu/nvidia", "/usr/lib/aarch64-linux-gnu"];
    if !unsure || !root.find(&folders, DLA_COMPILER).is_empty() {
        return None;
    }
    let seen = format!("no {DLA_COMPILER} on this Jetson Linux: a TensorRT made for JetPack 6 does not load");
    Some(Finding::fail("dla-compiler", seen, &[NO_DLA_COMPILER], &Purpose::ALL))
}

/// Since L4T 36.4.7 large allocations can fail with "NvMapMemAllocInternalTagged … error 12" though memory is free
/// (ggml-org/llama.cpp#23732; a reboot helps against fragmentation: 0xShug0/audio.cpp#12; both read 2026-11-27).
fn nvmap(examination: &Examination) -> Option<Finding> {
    let platform = &examination.platform;
    if !matches!(platform.l4t_numbers()?, (36, 4, 7..) | (36, 5.., _)) {
        return None;
    }
    let seen = "this Jetson Linux can refuse large GPU allocations (NvMap error 12) though memory is free";
    let free = "sudo sh -c 'sync; echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/compact_memory'";
    let free = on_host(platform, free);
    let reboot = on_host(platform, "sudo reboot   # when that does not help: memory is fragmented");
    let mend = [free.as_str(), reboot.as_str()];
    match examination.root.live.then(probe).flatten() {
        Some((size, true)) => Some(Finding::ok("nvmap", format!("one allocation of {} works", format_bytes(size)))),
        Some((size, false)) => {
            let seen = format!("{seen}: {} failed just now", format_bytes(size));
            Some(Finding::fail("nvmap", seen, &mend, &[Purpose::Llm]))
        }
        None => Some(Finding::warn("nvmap", seen, &mend)),
    }
}

/// Tries to allocate half of the free device memory, at most 4 GB, in one piece; returns (bytes, whether it worked).
fn probe() -> Option<(u64, bool)> {
    let device = Device::open().ok()?;
    let size = (device.free_memory()? / 2).min(4_000_000_000);
    // As a model's memory is.
    Some((size, Allocation::new(&device.stream, usize::try_from(size).ok()?, "a trial").is_ok()))
}

/// On shared memory the page cache counts as used GPU memory, and CUDA's allocator cannot always reclaim it.
fn page_cache(examination: &Examination) -> Option<Finding> {
    let memory = examination.memory?;
    let cache = memory.available.saturating_sub(memory.free);
    if memory.free < memory.total / 10 && cache > memory.total / 4 {
        return Some(Finding::warn(
            "page-cache",
            format!(
                "{} free, {} in the page cache: large models may fail to load until it is dropped",
                format_bytes(memory.free),
                format_bytes(cache)
            ),
            &[&on_host(&examination.platform, DROP_CACHES)],
        ));
    }
    None
}

fn tegrastats(examination: &Examination) -> Option<Finding> {
    if examination.root.exists("/usr/bin/tegrastats") {
        return Some(Finding::ok("tegrastats", "/usr/bin/tegrastats shows GPU load and memory"));
    }
    // The host's tool.
    if examination.platform.container {
        return None;
    }
    let mend = install(&examination.platform, "nvidia-l4t-tools");
    Some(Finding::warn("tegrastats", "not installed", &[&mend]))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Level, Root, examine};
    use super::*;

    /// The findings of a Jetson of this release and SoC with this TensorRT, in a container or not.
    fn examined(release: &str, soc: &str, tensorrt: &str, more: &[&str]) -> Vec<Finding> {
        let image = tempfile::tempdir().unwrap();
        let library = format!("usr/lib/aarch64-linux-gnu/libnvinfer.so.{tensorrt}");
        let files = [
            ("etc/nv_tegra_release", format!("# {release}, GCID: 1")),
            ("proc/device-tree/compatible", format!("nvidia,{soc}\0")),
            (library.as_str(), String::new()),
        ];
        let more = more.iter().map(|path| (*path, String::new()));
        for (path, text) in files.into_iter().chain(more) {
            let path = image.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        examine(&Root::at(image.path())).findings
    }

    #[test]
    fn traps_are_those_of_the_release() {
        let (r36, r36_4_7) = ("R36 (release), REVISION: 4.4", "R36 (release), REVISION: 4.7");
        let (r38, r39) = ("R38 (release), REVISION: 2.0", "R39 (release), REVISION: 2.0");
        let (orin, thor) = ("tegra234", "tegra264");
        let host: &[&str] = &[];
        let container: &[&str] = &[".dockerenv"];
        let compiler: &[&str] = &[".dockerenv", "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so"];
        type Case<'a> = (&'a str, &'a str, &'a str, &'a [&'a str], &'a str, Option<Level>);
        let cases: [Case<'_>; 14] = [
            (r36, orin, "10.3.0", host, "dla", None),
            (r39, orin, "10.16.2", host, "dla", Some(Level::Ok)),
            (r39, orin, "11.4.1", host, "dla", None),
            (r39, orin, "11.4.0", host, "dla", Some(Level::Ok)),
            (r38, thor, "10.13.3", host, "dla", None),
            (r39, orin, "10.11.0", container, "dla-compiler", Some(Level::Fail)),
            (r39, orin, "10.11.0", compiler, "dla-compiler", None),
            (r39, orin, "10.16.2", container, "dla-compiler", None),
            (r36, orin, "10.11.0", container, "dla-compiler", None),
            (r36, orin, "10.3.0", host, "nvmap", None),
            (r36_4_7, orin, "10.3.0", host, "nvmap", Some(Level::Warn)),
            (r38, thor, "10.13.3", host, "nvmap", None),
            (r39, orin, "10.16.2", host, "tegrastats", Some(Level::Warn)),
            (r39, orin, "10.16.2", container, "tegrastats", None),
        ];
        for (release, soc, tensorrt, more, id, level) in cases {
            let findings = examined(release, soc, tensorrt, more);
            let found = findings.iter().find(|finding| finding.id == id);
            assert_eq!(found.map(|finding| finding.level), level, "{release} {soc} {tensorrt}: {id} {found:?}");
        }
    }

    #[test]
    fn the_driver_of_a_thor_is_where_its_releases_have_it() {
        for (path, level) in [
            ("opt/nvidia/l4t-gpu-libs/openrm/libcuda.so.1", Level::Ok),
            ("usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1.1", Level::Ok),
            ("opt/nvidia/other/libcuda.so.1", Level::Fail),
        ] {
            let findings = examined("R39 (release), REVISION: 2.0", "tegra264", "10.16.2", &[path]);
            let driver = findings.iter().find(|finding| finding.id == "driver").unwrap();
            assert_eq!(driver.level, level, "{path}");
        }
    }
}
