//! Checks GPU, memory and disk.

use super::advice::{NVIDIA_RUNTIME, on_host, reinstall};
use super::{Examination, Finding, Platform, Purpose, Root, modules};
use crate::backend::tensorrt::device::Device;
use crate::memory::{Memory, format_bytes};

/// What was found about the GPU.
pub(super) struct Gpu {
    pub findings: Vec<Finding>,
    /// Memory in bytes that models may fill; `None` if an image does not tell.
    pub memory: Option<u64>,
}

/// Memory in bytes that building a vision engine needs.
const BUILD: u64 = 2_000_000_000;
/// Memory in bytes below which no language model is of use: 1B in FP16 beside the system where they share it, the model
/// alone elsewhere.
const LLM_SHARED: u64 = 4_000_000_000;
const LLM_ALONE: u64 = 2_000_000_000;

/// Whether the GPU uses the machine's memory: Jetsons, and DGX Spark, whose product is called NVIDIA_DGX_Spark
/// (natolambert/dgx-spark-setup, README, read 2026-11-27).
fn is_shared(platform: &Platform) -> bool {
    platform.is_jetson()
        || platform.board.as_ref().is_some_and(|board| board.contains("DGX") && board.contains("Spark"))
}

/// `tensorrt` is the name of the TensorRT that was found.
pub(super) fn gpu(examination: &Examination, tensorrt: Option<&str>) -> Gpu {
    let (root, platform) = (examination.root, &examination.platform);
    let mut findings = Vec::new();
    if let Some(soc) = modules::soc(root) {
        findings.push(Finding::ok("soc", format!("{}, compute capability {}", soc.name, soc.capability)));
    }
    if let Some(module) = modules::module(root) {
        let seen = format!("{} (p{}): {}", module.name, module.part, module.gpu);
        findings.push(Finding::ok("module", seen));
    }
    let shared = is_shared(platform).then_some(examination.memory).flatten().map(|memory| memory.total);
    if !root.live {
        findings.push(of_image(examination));
        return Gpu { findings, memory: shared };
    }
    let (found, free) = live(examination, tensorrt);
    findings.extend(found);
    Gpu { findings, memory: shared.or(free) }
}

/// The jobs that need a GPU. TensorRT-RTX builds without one.
fn needing_gpu(tensorrt: Option<&str>) -> &'static [Purpose] {
    match tensorrt.is_some_and(|name| name.contains("RTX")) {
        true => &[Purpose::Vision, Purpose::Llm],
        false => &Purpose::ALL,
    }
}

fn of_image(examination: &Examination) -> Finding {
    let root = examination.root;
    if examination.platform.is_jetson() {
        // The driver is a finding of its own.
        return Finding::ok("gpu", "integrated GPU (not tried: only files are examined)");
    }
    let Some(version) = root.read("/proc/driver/nvidia/version") else {
        return no_driver("no NVIDIA driver", &Purpose::ALL);
    };
    let driver = version.split_whitespace().find(|word| word.split('.').count() == 3).unwrap_or("unknown");
    Finding::ok("gpu", format!("NVIDIA driver {driver} (not tried: only files are examined)"))
}

fn no_driver(why: &str, blocks: &[Purpose]) -> Finding {
    let seen = format!("{why}: engines can be built with TensorRT-RTX, not run");
    Finding::warn("gpu", seen, &["install NVIDIA's driver if this machine has an NVIDIA GPU"]).blocking(blocks)
}

/// Asks this machine's GPU; returns its free memory too.
fn live(examination: &Examination, tensorrt: Option<&str>) -> (Vec<Finding>, Option<u64>) {
    let platform = &examination.platform;
    match Device::open().and_then(|device| Ok((device.info()?, device))) {
        Ok((info, device)) => {
            let free = device.free_memory().unwrap_or(0);
            let (capability, memory) = (&info.compute_capability, format_bytes(info.memory));
            let seen =
                format!("{}, compute capability {capability}, {} free of {memory}", info.name, format_bytes(free));
            let mut findings = vec![Finding::ok("gpu", seen)];
            if free < LLM_ALONE && !device.is_integrated() {
                let seen = format!("{} free: too little for a language model", format_bytes(free));
                let mend = "end other programs on the GPU (`nvidia-smi` lists them)";
                findings.push(Finding::warn("gpu-memory", seen, &[mend]).blocking(&[Purpose::Llm]));
            }
            (findings, Some(free))
        }
        Err(error) if platform.is_jetson() => {
            let seen = format!("{error}: other programs would silently use the CPU");
            let groups = "sudo usermod -aG video,render $USER   # then log in again";
            let driver = reinstall(platform, "nvidia-l4t-cuda");
            let mend: &[&str] = if platform.container { &[NVIDIA_RUNTIME] } else { &[groups, &driver] };
            (vec![Finding::fail("gpu", seen, mend, &Purpose::ALL)], None)
        }
        Err(error) => (vec![no_driver(&error.to_string(), needing_gpu(tensorrt))], None),
    }
}

pub(super) fn memory(examination: &Examination) -> Vec<Finding> {
    let platform = &examination.platform;
    let Some(memory) = examination.memory else {
        return vec![match examination.root.live {
            true => Finding::warn("memory", "/proc/meminfo is not readable", &[]),
            false => Finding::ok("memory", "unknown (an image without /proc)"),
        }];
    };
    let seen = format!("{} available of {}", format_bytes(memory.available), format_bytes(memory.total));
    if memory.available >= LLM_SHARED {
        return vec![Finding::ok("memory", seen), swap(examination, memory)];
    }
    let mut blocks = Vec::new();
    blocks.extend((memory.available.saturating_add(memory.disk_swap) < BUILD).then_some(Purpose::Build));
    blocks.extend((is_shared(platform) && memory.total < LLM_SHARED).then_some(Purpose::Llm));
    let close = "close other programs; without a desktop: sudo systemctl set-default multi-user.target && sudo reboot";
    let mend: Vec<String> = taken(platform).into_iter().chain([on_host(platform, close)]).collect();
    let mend: Vec<&str> = mend.iter().map(String::as_str).collect();
    let seen = format!("{seen}: too little for a large language model, tight for a YOLO build");
    vec![Finding::warn("memory", seen, &mend).blocking(&blocks), swap(examination, memory)]
}

/// Below Jetson Linux 39 the driver keeps memory of ended GPU programs until caches are dropped (NVIDIA/skills,
/// jetson-memory-audit, read 2026-11-26).
fn taken(platform: &Platform) -> Option<String> {
    let affected = platform.l4t_numbers().is_some_and(|l4t| l4t < (39, 0, 0));
    affected.then(|| on_host(platform, DROP_CACHES) + "   # frees what ended GPU programs left taken")
}

/// Gives up page cache and what the driver pools.
pub(super) const DROP_CACHES: &str = "sudo sh -c 'sync; echo 3 > /proc/sys/vm/drop_caches'";

/// Makes a swap file that is there after a reboot too.
const SWAP_FILE: &str = "sudo fallocate -l 16G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon \
                         /swapfile && echo '/swapfile none swap sw 0 0' | sudo tee -a /etc/fstab";

fn swap(examination: &Examination, memory: Memory) -> Finding {
    let (disk, zram) = (memory.disk_swap, memory.zram_swap);
    if examination.platform.container {
        // Its host's affair, and not to be mended from within.
        return Finding::ok("swap", format!("{} (the host's)", format_bytes(disk + zram)));
    }
    match (disk, zram) {
        (0, 0) if memory.total > 60_000_000_000 => Finding::ok("swap", "none; there is plenty of memory"),
        (0, 0) => Finding::warn("swap", "none: a large build is killed when memory runs out", &[SWAP_FILE]),
        (0, zram) => Finding::warn(
            "swap",
            format!("{} of zram only, which takes from the same memory", format_bytes(zram)),
            &["sudo systemctl disable --now nvzramconfig", SWAP_FILE],
        ),
        (disk, _) => match forgotten_swap(examination.root) {
            None => Finding::ok("swap", format!("{} on disk", format_bytes(disk))),
            Some(file) => {
                let seen = format!("{} on disk; {file} is not in /etc/fstab: gone after a reboot", format_bytes(disk));
                let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.+@".contains(c);
                let mend = match file.chars().all(plain) {
                    true => format!("echo '{file} none swap sw 0 0' | sudo tee -a /etc/fstab"),
                    false => "add it to /etc/fstab".to_owned(),
                };
                Finding::warn("swap", seen, &[&mend])
            }
        },
    }
}

/// A swap file in use that neither /etc/fstab nor a unit brings back after a reboot.
fn forgotten_swap(root: &Root) -> Option<String> {
    let fstab = root.read("/etc/fstab")?;
    if root.list("/etc/systemd/system").iter().any(|name| name.ends_with(".swap")) {
        return None;
    }
    let kept = |file: &str| {
        let mut lines = fstab.lines().filter(|line| !line.trim_start().starts_with('#'));
        lines.any(|line| line.split_whitespace().next() == Some(file))
    };
    let swaps = root.read("/proc/swaps")?;
    let mut files = swaps.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_whitespace();
        let (file, kind) = (columns.next()?, columns.next()?);
        (kind == "file").then_some(file)
    });
    files.find(|file| !kept(file)).map(str::to_owned)
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Level, examine};
    use super::*;

    /// The findings of an image with these files.
    fn examined(files: &[(&str, &str)]) -> Vec<Finding> {
        let image = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = image.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        examine(&Root::at(image.path())).findings
    }

    fn found(findings: &[Finding], id: &str) -> Finding {
        findings.iter().find(|finding| finding.id == id).unwrap().clone()
    }

    const MEMORY: (&str, &str) = ("proc/meminfo", "MemTotal: 31000000 kB\nMemFree: 1 kB\nMemAvailable: 30000000 kB\n");

    #[test]
    fn swap_that_a_reboot_forgets_is_told() {
        let swaps = "Filename Type Size Used Priority\n/mnt/swap file 16777212 0 -2\n";
        let cases = [
            (Some("# /mnt/swap none swap sw 0 0\n/dev/root / ext4 defaults 0 1\n"), Level::Warn),
            (Some("/mnt/swap none swap sw 0 0\n"), Level::Ok),
            (Some("/mnt/swap2 none swap sw 0 0\n"), Level::Warn),
            (None, Level::Ok),
        ];
        for (fstab, level) in cases {
            let mut files = vec![MEMORY, ("proc/swaps", swaps)];
            files.extend(fstab.map(|fstab| ("etc/fstab", fstab)));
            let finding = found(&examined(&files), "swap");
            assert_eq!(finding.level, level, "{finding:?}");
            let mended = finding.mend.iter().any(|mend| mend.contains("'/mnt/swap none swap sw 0 0' | sudo tee -a"));
            assert_eq!(mended, level == Level::Warn, "{finding:?}");
        }
        let none = found(&examined(&[MEMORY, ("proc/swaps", "Filename\n")]), "swap");
        assert!(none.mend.iter().any(|mend| mend.contains("/etc/fstab")), "{none:?}");
    }

    /// What cannot be seen in an image prevents nothing.
    #[test]
    fn an_image_without_proc_is_not_short_of_memory() {
        let findings = examined(&[("etc/nv_tegra_release", "# R36 (release), REVISION: 4.4, GCID: 1")]);
        assert_eq!(found(&findings, "memory").level, Level::Ok);
        assert!(found(&findings, "gpu").blocks.is_empty());
    }

    #[test]
    fn memory_left_taken_is_freed_below_jetson_linux_39() {
        let little = ("proc/meminfo", "MemTotal: 7800000 kB\nMemFree: 1 kB\nMemAvailable: 900000 kB\n");
        for (release, freed) in
            [("# R36 (release), REVISION: 5.0, X", true), ("# R39 (release), REVISION: 2.0, X", false)]
        {
            let finding = found(&examined(&[("etc/nv_tegra_release", release), little]), "memory");
            assert_eq!((finding.level, &finding.blocks[..]), (Level::Warn, &[Purpose::Build][..]), "{finding:?}");
            let mended = finding.mend.iter().any(|mend| mend.contains("drop_caches"));
            assert_eq!(mended, freed, "{release}: {finding:?}");
        }
    }
}
