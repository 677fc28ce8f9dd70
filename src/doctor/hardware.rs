//! Checks GPU, memory, disk, power mode and clocks.

use super::{Examination, Finding};
use crate::backend::tensorrt::device::Device;
use crate::memory::format_bytes;
use crate::sensors;

/// The GPU's properties that later checks need.
pub(super) struct Gpu {
    pub findings: Vec<Finding>,
    /// Whether a supported GPU is present, as far as can be told.
    pub usable: bool,
    /// Free device memory in bytes; `None` unless the live machine is examined.
    pub memory: Option<u64>,
}

/// Tegra SoCs: device-tree "compatible" string, name, compute capability.
const SOCS: &[(&str, &str, &str)] = &[
    ("nvidia,tegra234", "Orin (Ampere)", "8.7"),
    ("nvidia,tegra264", "Thor (Blackwell)", "11.0"),
    ("nvidia,tegra194", "Xavier (Volta)", "7.2"),
];

pub(super) fn gpu(examination: &Examination) -> Gpu {
    let root = examination.root;
    let mut findings = Vec::new();
    let soc = root
        .read("/proc/device-tree/compatible")
        .and_then(|compatible| SOCS.iter().find(|(id, ..)| compatible.lines().any(|line| line == *id)));
    if let Some((_, name, capability)) = soc {
        findings.push(Finding::ok("soc", format!("{name}, compute capability {capability}")));
    }
    if root.live {
        let (finding, usable, memory) = live(examination, soc.is_some());
        findings.push(finding);
        return Gpu { findings, usable, memory };
    }
    // A container without the host's /etc/nv_tegra_release still sees the board.
    let jetson = examination.platform.is_jetson() || soc.is_some();
    let usable = if jetson { soc.is_some() } else { root.exists("/proc/driver/nvidia/version") };
    findings.push(match (usable, jetson) {
        (true, true) => Finding::ok("gpu", "integrated GPU (an image: not asked)"),
        (true, false) => {
            let version = root.read("/proc/driver/nvidia/version").unwrap_or_default();
            let driver =
                version.split_whitespace().find(|word| word.split('.').count() == 3).unwrap_or("unknown").to_owned();
            Finding::ok("gpu", format!("NVIDIA driver {driver} (an image: not asked)"))
        }
        (false, true) => Finding::warn("gpu", "a Jetson of unknown SoC", &[]),
        (false, false) => Finding::warn(
            "gpu",
            "no NVIDIA driver: engines can be built with TensorRT-RTX, not run",
            &["install NVIDIA's driver, if there is such a GPU"],
        ),
    });
    Gpu { findings, usable, memory: None }
}

fn live(examination: &Examination, tegra: bool) -> (Finding, bool, Option<u64>) {
    let platform = &examination.platform;
    match Device::open().and_then(|device| Ok((device.info()?, device))) {
        Ok((info, device)) => {
            let free = device.free_memory().unwrap_or(0);
            let seen = format!(
                "{}, compute capability {}, {} free of {}",
                info.name,
                info.compute_capability,
                format_bytes(free),
                format_bytes(info.memory)
            );
            (Finding::ok("gpu", seen), true, Some(free))
        }
        Err(error) if platform.is_jetson() || tegra => {
            let mend: &[&str] = if platform.container {
                &["start the container with --runtime nvidia --gpus all"]
            } else {
                &[
                    "sudo usermod -aG video,render $USER   # then log in again",
                    "sudo apt install --reinstall nvidia-l4t-cuda",
                ]
            };
            let seen = format!("{error}: other programs would silently use the CPU");
            (Finding::fail("gpu", seen, mend), false, None)
        }
        Err(error) => (
            Finding::warn(
                "gpu",
                format!("{error}; engines can be built with TensorRT-RTX, not run"),
                &["install NVIDIA's driver, if there is such a GPU"],
            ),
            false,
            None,
        ),
    }
}

pub(super) fn memory(examination: &Examination) -> Vec<Finding> {
    let Some(memory) = examination.memory else {
        return vec![Finding::warn("memory", "/proc/meminfo is not readable", &[])];
    };
    let mut findings = Vec::new();
    let seen = format!("{} available of {}", format_bytes(memory.available), format_bytes(memory.total));
    findings.push(if memory.available < 4_000_000_000 {
        Finding::warn(
            "memory",
            format!("{seen}: too little for an LLM, tight for a YOLO build"),
            &["close other programs; without a desktop: sudo systemctl set-default multi-user.target && sudo reboot"],
        )
    } else {
        Finding::ok("memory", seen)
    });
    let (disk, zram) = (memory.disk_swap, memory.zram_swap);
    let swap_file =
        "sudo fallocate -l 16G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile";
    if examination.platform.container {
        // Its host's affair, and not to be mended from within.
        findings.push(Finding::ok("swap", format!("{} (the host's)", format_bytes(disk + zram))));
        return findings;
    }
    findings.push(match (disk, zram) {
        (0, 0) if memory.total > 60_000_000_000 => Finding::ok("swap", "none, and plenty of memory"),
        (0, 0) => Finding::warn("swap", "none: a large build is killed when memory runs out", &[swap_file]),
        (0, zram) => Finding::warn(
            "swap",
            format!("{} of zram only, which takes from the same memory", format_bytes(zram)),
            &["sudo systemctl disable --now nvzramconfig", swap_file],
        ),
        (disk, _) => Finding::ok("swap", format!("{} on disk", format_bytes(disk))),
    });
    findings
}

pub(super) fn disk(examination: &Examination) -> Vec<Finding> {
    if !examination.root.live {
        return Vec::new(); // an image's file system is not the one it will live on
    }
    let folder = crate::artifact::cache_dir();
    let existing = folder.ancestors().find(|path| path.exists());
    let Some(stat) = existing.and_then(|path| rustix::fs::statvfs(path).ok()) else { return Vec::new() };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let seen = format!("{} free for {}", format_bytes(free), folder.display());
    vec![if free < 20_000_000_000 {
        let mend = "a 7B model wants about 30 GB while it is built: set HF_HOME and WATUS_CACHE_DIR to an NVMe disk";
        Finding::warn("disk", seen, &[mend])
    } else {
        Finding::ok("disk", seen)
    }]
}

pub(super) fn power(examination: &Examination) -> Vec<Finding> {
    if !examination.platform.is_jetson() {
        return Vec::new();
    }
    vec![power_mode(examination), clocks(examination)]
}

fn power_mode(examination: &Examination) -> Finding {
    let Some(mode) = sensors::power_mode(examination.root) else {
        return Finding::warn("power-mode", "unknown (no /var/lib/nvpmodel/status)", &["sudo nvpmodel -q"]);
    };
    let (id, name) = (mode.id, mode.name.as_deref().unwrap_or("unnamed"));
    match mode.faster {
        Some(faster) => Finding::warn(
            "power-mode",
            format!("{name} (mode {id}); {} is faster, often by half", faster.name),
            &[&format!("sudo nvpmodel -m {}   # {}; may ask for a reboot", faster.id, faster.name)],
        ),
        None => Finding::ok("power-mode", format!("{name} (mode {id})")),
    }
}

fn clocks(examination: &Examination) -> Finding {
    let root = examination.root;
    let devices = root.list("/sys/class/devfreq");
    let is_gpu = |name: &&String| ["gpu", "gv11b", "ga10b", "gb10b"].iter().any(|part| name.contains(part));
    let Some(device) = devices.iter().find(is_gpu) else {
        return Finding::warn("clocks", "the GPU's clock is not visible", &["sudo jetson_clocks --show"]);
    };
    let hertz = |file: &str| {
        root.read(&format!("/sys/class/devfreq/{device}/{file}")).and_then(|text| text.parse::<u64>().ok())
    };
    match (hertz("min_freq"), hertz("max_freq")) {
        (Some(min), Some(max)) if min == max => Finding::ok("clocks", format!("GPU locked at {} MHz", max / 1_000_000)),
        (Some(min), Some(max)) => Finding::warn(
            "clocks",
            format!(
                "GPU floats between {} and {} MHz: first answers are slow, measurements scatter",
                min / 1_000_000,
                max / 1_000_000
            ),
            &["sudo jetson_clocks"],
        ),
        _ => Finding::warn("clocks", "the GPU's clock limits are not readable", &["sudo jetson_clocks --show"]),
    }
}
