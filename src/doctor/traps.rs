//! Checks for known pitfalls of Jetsons, each with the report that describes it.

use super::platform::numbers;
use super::{Examination, Finding};
use crate::backend::tensorrt::allocation::Allocation;
use crate::backend::tensorrt::device::Device;
use crate::memory::format_bytes;

pub(super) fn check(examination: &Examination) -> Vec<Finding> {
    if !examination.platform.is_jetson() {
        return Vec::new();
    }
    let checks = [driver_library, pip_tensorrt, held_tensorrt, nvmap, page_cache, tegrastats];
    checks.iter().filter_map(|check| check(examination)).collect()
}

/// Without Tegra's own libcuda every framework silently falls back to the CPU (ollama/ollama#9503).
fn driver_library(examination: &Examination) -> Option<Finding> {
    let folders =
        ["/usr/lib/aarch64-linux-gnu/nvidia", "/usr/lib/aarch64-linux-gnu/tegra", "/usr/lib/aarch64-linux-gnu"];
    if examination.root.find(&folders, "libcuda.so.1").is_empty() {
        let mend: &[&str] = if examination.platform.container {
            &["start the container with --runtime nvidia --gpus all"]
        } else {
            &["sudo apt install --reinstall nvidia-l4t-cuda"]
        };
        return Some(Finding::fail("driver", "no libcuda.so.1: programs would silently use the CPU", mend));
    }
    Some(Finding::ok("driver", "libcuda.so.1 of Jetson Linux is there"))
}

/// The TensorRT wheels on the Python Package Index are not built for Tegra (ultralytics/ultralytics#18799).
fn pip_tensorrt(examination: &Examination) -> Option<Finding> {
    let root = examination.root;
    let mut roots = vec!["/usr/local/lib".to_owned(), "/root/.local/lib".to_owned()];
    roots.extend(root.list("/home").into_iter().map(|user| format!("/home/{user}/.local/lib")));
    for lib in roots {
        for python in root.list(&lib).into_iter().filter(|name| name.starts_with("python3")) {
            for packages in ["dist-packages", "site-packages"] {
                let folder = format!("{lib}/{python}/{packages}");
                let pip = root
                    .list(&folder)
                    .into_iter()
                    .find(|name| name.starts_with("tensorrt") && name.ends_with(".dist-info"));
                if let Some(name) = pip {
                    return Some(Finding::warn(
                        "pip-tensorrt",
                        format!(
                            "pip's {} in {folder} hides JetPack's TensorRT from Python and has no Tegra build",
                            name.trim_end_matches(".dist-info")
                        ),
                        &[
                            "python3 -m pip uninstall tensorrt tensorrt-cu12 tensorrt-cu12-libs tensorrt-cu12-bindings",
                            "python3 -m venv --system-site-packages VENV   # sees JetPack's own tensorrt",
                        ],
                    ));
                }
            }
        }
    }
    None
}

/// A held TensorRT package stays behind when JetPack is upgraded, and half an upgrade breaks every engine.
fn held_tensorrt(examination: &Examination) -> Option<Finding> {
    let ours = ["tensorrt", "libnvinfer", "libnvonnxparsers"];
    let tensorrt: Vec<_> =
        examination.packages.iter().filter(|(name, _)| ours.iter().any(|prefix| name.starts_with(prefix))).collect();
    let core: Vec<&str> =
        tensorrt.iter().filter(|(name, _)| name.starts_with("libnv")).map(|(_, package)| package.upstream()).collect();
    let mixed = core.iter().any(|version| numbers(version).get(..3) != numbers(core[0]).get(..3));
    let held: Vec<&str> = tensorrt.iter().filter(|(_, package)| package.held).map(|(name, _)| name.as_str()).collect();
    if mixed {
        let mut versions = core.clone();
        versions.sort_unstable();
        versions.dedup();
        let seen = format!("TensorRT packages of different versions: {}", versions.join(", "));
        let unhold = format!("sudo apt-mark unhold {}", held.join(" "));
        let upgrade = "sudo apt update && sudo apt full-upgrade";
        let mend: &[&str] = if held.is_empty() { &[upgrade] } else { &[&unhold, upgrade] };
        return Some(Finding::fail("apt-tensorrt", seen, mend));
    }
    if held.is_empty() {
        return None;
    }
    let behind = examination
        .platform
        .release()
        .is_some_and(|release| core.first().is_some_and(|version| !version.starts_with(release.tensorrt)));
    let seen = format!("held by apt: {}", held.join(", "));
    Some(if behind {
        Finding::warn(
            "apt-tensorrt",
            format!("{seen}, and not what this JetPack ships"),
            &[&format!("sudo apt-mark unhold {} && sudo apt full-upgrade", held.join(" "))],
        )
    } else {
        Finding::ok("apt-tensorrt", format!("{seen} (engines stay valid)"))
    })
}

/// Since L4T 36.4.7 large allocations can fail with "NvMapMemAllocInternalTagged … error 12" though memory is free
/// (ggml-org/llama.cpp pull request 23732).
fn nvmap(examination: &Examination) -> Option<Finding> {
    let l4t = numbers(examination.platform.l4t.as_deref()?);
    let affected = l4t.as_slice() >= [36, 4, 7].as_slice() && l4t.as_slice() < [37].as_slice();
    if !affected {
        return None;
    }
    let seen = "this Jetson Linux can refuse large GPU allocations (NvMap error 12) though memory is free";
    let mend = [
        "sudo sh -c 'sync; echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/compact_memory'",
        "sudo reboot   # when that does not help: memory is fragmented",
    ];
    match examination.root.live.then(probe).flatten() {
        Some((size, true)) => Some(Finding::ok("nvmap", format!("one allocation of {} works", format_bytes(size)))),
        Some((size, false)) => {
            Some(Finding::fail("nvmap", format!("{seen}: {} failed just now", format_bytes(size)), &mend))
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
            &["sudo sh -c 'sync; echo 3 > /proc/sys/vm/drop_caches'"],
        ));
    }
    None
}

fn tegrastats(examination: &Examination) -> Option<Finding> {
    if examination.root.exists("/usr/bin/tegrastats") {
        return Some(Finding::ok("tegrastats", "/usr/bin/tegrastats shows GPU load and memory"));
    }
    Some(Finding::warn("tegrastats", "not installed", &["sudo apt install nvidia-l4t-tools"]))
}
