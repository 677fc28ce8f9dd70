//! The machine's memory, its largest free pieces, and swap.

use super::{FreeBlocks, MemoryReading, SwapReading};
use crate::system_root::Root;

/// A field of /proc/meminfo in bytes (proc_meminfo(5): kB are 1024 bytes).
pub(super) fn field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

pub(super) fn memory(root: &Root, meminfo: &str) -> Option<MemoryReading> {
    let total_bytes = field(meminfo, "MemTotal")?;
    let available = field(meminfo, "MemAvailable").or_else(|| field(meminfo, "MemFree"))?;
    let page = u64::try_from(rustix::param::page_size()).ok()?;
    let largest = root.read("/proc/buddyinfo").and_then(|text| largest_free(&text, page));
    Some(MemoryReading { total_bytes, used_bytes: total_bytes.saturating_sub(available), largest_free_block: largest })
}

/// Parses `Node 0, zone Normal 4 2 …`: the number of free pieces of 1, 2, 4 … pages.
fn largest_free(buddyinfo: &str, page: u64) -> Option<FreeBlocks> {
    let mut counts: Vec<u64> = Vec::new();
    for line in buddyinfo.lines() {
        let Some((_, zone)) = line.split_once("zone") else { continue };
        for (order, word) in zone.split_whitespace().skip(1).enumerate() {
            let count = word.parse::<u64>().ok()?;
            match counts.get_mut(order) {
                Some(sum) => *sum = sum.saturating_add(count),
                None => counts.push(count),
            }
        }
    }
    let order = counts.iter().rposition(|count| *count > 0)?;
    let pages = 1_u64.checked_shl(u32::try_from(order).ok()?)?;
    Some(FreeBlocks { bytes: page.checked_mul(pages)?, count: counts[order] })
}

pub(super) fn swap(meminfo: &str) -> Option<SwapReading> {
    let total_bytes = field(meminfo, "SwapTotal")?;
    let free = field(meminfo, "SwapFree")?;
    let cached_bytes = field(meminfo, "SwapCached").unwrap_or(0);
    Some(SwapReading { total_bytes, used_bytes: total_bytes.saturating_sub(free), cached_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_piece_of_all_zones() {
        let buddyinfo = "Node 0, zone      DMA      1      0      2\nNode 0, zone   Normal      9      0      5   0\n";
        assert_eq!(largest_free(buddyinfo, 4096), Some(FreeBlocks { bytes: 16 << 10, count: 7 }));
        assert_eq!(largest_free(buddyinfo, 64 << 10), Some(FreeBlocks { bytes: 256 << 10, count: 7 }));
        for hostile in ["", "Node 0, zone Normal 0 0", "Node 0, zone Normal 1 x", "1 2 3"] {
            assert_eq!(largest_free(hostile, 4096), None, "{hostile}");
        }
        let deep = format!("zone N{}", " 1".repeat(80));
        assert_eq!(largest_free(&deep, 4096), None);
    }

    #[test]
    fn swap_in_use() {
        let meminfo = "MemTotal: 8 kB\nSwapCached: 1 kB\nSwapTotal: 10 kB\nSwapFree: 4 kB\n";
        let swap = swap(meminfo).unwrap();
        assert_eq!((swap.total_bytes, swap.used_bytes, swap.cached_bytes), (10 << 10, 6 << 10, 1 << 10));
        assert_eq!(field("MemTotal: 99999999999999999999 kB", "MemTotal"), None);
        assert_eq!(field("MemTotal: 18446744073709551615 kB", "MemTotal"), None);
    }
}
