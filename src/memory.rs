//! Memory of the machine and of the GPU, and estimates of what a build needs. On a Jetson both share one memory.

use std::fs;

pub mod page_cache;

/// Memory of the machine in bytes, from /proc/meminfo and /proc/swaps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// Total memory.
    pub total: u64,
    /// Memory available without swapping, page cache included.
    pub available: u64,
    /// Free memory, page cache not included.
    pub free: u64,
    /// Size of the swap on disks and in files.
    pub disk_swap: u64,
    /// Size of the swap in compressed memory (zram), which cannot hold weights.
    pub zram_swap: u64,
}

impl Memory {
    /// Memory of this machine; `None` if /proc cannot be read.
    pub fn of_this_machine() -> Option<Self> {
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        Self::parse(&fs::read_to_string("/proc/meminfo").ok()?, &swaps)
    }

    /// Parses the texts of /proc/meminfo and /proc/swaps.
    pub fn parse(meminfo: &str, swaps: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
        };
        let total = field("MemTotal")?;
        let free = field("MemFree").unwrap_or(0);
        let mut memory = Self { total, free, available: field("MemAvailable").unwrap_or(free), ..Self::default() };
        for line in swaps.lines().skip(1) {
            let mut columns = line.split_whitespace();
            let device = columns.next().unwrap_or_default();
            let size = columns.nth(1).and_then(|size| size.parse::<u64>().ok()).unwrap_or(0) * 1024;
            let kind = if device.contains("zram") { &mut memory.zram_swap } else { &mut memory.disk_swap };
            *kind += size;
        }
        Some(memory)
    }
}

/// Memory in bytes that can be allocated on a device whose driver reports `reported` as free. An integrated device
/// shares the machine's memory, and its driver does not count the page cache, which Linux gives up on demand
/// (ollama/ollama#12283).
pub fn free_on_device(reported: Option<u64>, integrated: bool, machine: Option<Memory>) -> Option<u64> {
    machine.filter(|_| integrated).map(|memory| memory.available).or(reported)
}

/// Resident memory of a builder process without weights, in bytes. TensorRT-RTX 1.6.1 takes 0.2 GB (docs/design/build.md);
/// TensorRT with its tactic libraries takes more, hence the margin.
const BUILDER_BASE: u64 = 700 << 20;
/// Peak memory of a build per byte of weights (measured: 2.49 GB of FP16 weights peak at 7.5 GB).
const BUILDER_FACTOR: u64 = 3;

/// Estimated peak memory in bytes of building an engine that contains its weights.
pub fn build_estimate(parameter_bytes: u64, workspace: Option<u64>) -> u64 {
    let weights = parameter_bytes.saturating_mul(BUILDER_FACTOR);
    // Where CPU and GPU share memory, the workspace comes on top; without a limit TensorRT takes what it finds.
    BUILDER_BASE.saturating_add(weights).saturating_add(workspace.unwrap_or(0))
}

/// Formats a number of bytes: "1.5 GB".
pub fn format_bytes(bytes: u64) -> String {
    if bytes >= 1_000_000_000 {
        format!("{:.1} GB", bytes as f64 / 1e9)
    } else {
        format!("{} MB", bytes.div_ceil(1_000_000))
    }
}

/// A value of a process in bytes: `field` of /proc/PROCESS/status, whose unit is kB (proc_pid_status(5)).
pub fn of_process(process: &str, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(value.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_linux_prints() {
        let meminfo =
            "MemTotal:       31316948 kB\nMemFree:         1000000 kB\nMemAvailable:   20000000 kB\nSwapTotal: 3 kB\n";
        let swaps =
            "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0 partition 2000 0 5\n/mnt/16GB.swap file 1000 0 -2\n";
        let memory = Memory::parse(meminfo, swaps).unwrap();
        assert_eq!(memory.total, 31_316_948 * 1024);
        assert_eq!((memory.zram_swap, memory.disk_swap), (2000 * 1024, 1000 * 1024));
        assert_eq!(Memory::parse("nothing", ""), None);
    }

    #[test]
    fn an_integrated_device_has_what_the_machine_has() {
        // A Jetson after a large file was read: nearly all of it is page cache.
        let meminfo = "MemTotal: 31316948 kB\nMemFree: 400000 kB\nMemAvailable: 28000000 kB\nCached: 27000000 kB\n";
        let machine = Memory::parse(meminfo, "");
        let available = 28_000_000 * 1024;
        for (reported, integrated, machine, wanted) in [
            (Some(400_000 * 1024), true, machine, Some(available)),
            (None, true, machine, Some(available)),
            (Some(80_000_000_000), false, machine, Some(80_000_000_000)),
            (None, false, machine, None),
            // No /proc/meminfo: the driver's word.
            (Some(5), true, None, Some(5)),
        ] {
            assert_eq!(free_on_device(reported, integrated, machine), wanted, "{reported:?} {integrated}");
        }
    }
}
