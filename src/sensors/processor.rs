//! CPU cores: their load from /proc/stat, their clocks from cpufreq.

use std::collections::BTreeMap;

use super::{CoreReading, number};
use crate::system_root::Root;

/// Most cores; a list of more is not believed.
const CORES: usize = 4096;

/// Busy and whole time of each core since the machine started, in ticks. A core that is off is not there.
pub(super) type CoreTimes = BTreeMap<usize, (u64, u64)>;

/// The times of this moment.
pub(super) fn times(root: &Root) -> CoreTimes {
    parse_times(&root.read("/proc/stat").unwrap_or_default())
}

/// Parses `cpu0 USER NICE SYSTEM IDLE IOWAIT IRQ SOFTIRQ STEAL …` (proc_stat(5); guests' time is in USER already).
fn parse_times(stat: &str) -> CoreTimes {
    let core = |line: &str| {
        let mut words = line.strip_prefix("cpu")?.split_whitespace();
        let core = words.next()?.parse().ok().filter(|core| *core < CORES)?;
        let ticks: Vec<u64> = words.take(8).map_while(|word| word.parse().ok()).collect();
        let whole = ticks.iter().fold(0_u64, |sum, ticks| sum.saturating_add(*ticks));
        let idle = ticks.get(3)?.saturating_add(ticks.get(4).copied().unwrap_or(0));
        // "cpu  1 2 3": the sum of all begins with a blank.
        (!line.starts_with("cpu ")).then_some((core, (whole.saturating_sub(idle), whole)))
    };
    stat.lines().filter_map(core).collect()
}

/// The highest number in a list of cores such as `0-11` or `0,2-3`.
fn last_core(list: &str) -> Option<usize> {
    list.rsplit([',', '-']).next()?.trim().parse().ok().filter(|core| *core < CORES)
}

/// All cores; `None` for one that is off.
pub(super) fn cores(root: &Root, before: &CoreTimes, now: &CoreTimes) -> Vec<Option<CoreReading>> {
    let present = root.read("/sys/devices/system/cpu/present").and_then(|list| last_core(&list));
    let Some(last) = present.max(now.keys().next_back().copied()) else { return Vec::new() };
    let core = |core: usize| {
        let (busy, whole) = *now.get(&core)?;
        let (busy_before, whole_before) = before.get(&core).copied().unwrap_or((0, 0));
        let passed = whole.saturating_sub(whole_before);
        let load = (passed > 0).then(|| 100.0 * busy.saturating_sub(busy_before) as f64 / passed as f64);
        let clock = number(root, &format!("/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq"));
        Some(CoreReading {
            load_percent: load.map(|load| (load.min(100.0) * 10.0).round() / 10.0),
            clock_mhz: clock.map(|kilohertz| kilohertz / 1000),
        })
    };
    (0..=last).map(core).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_of_the_time_between() {
        let before = parse_times("cpu  30 0 10 60\ncpu0 10 0 10 80 0\ncpu2 0 0 0 100 0 0 0 0 7 7\nintr 5\n");
        assert_eq!(before, BTreeMap::from([(0, (20, 100)), (2, (0, 100))]));
        let now = parse_times("cpu0 40 0 20 130 10\ncpu2 0 0 0 100\n");
        let root = Root::at(std::path::Path::new("/nowhere"));
        let cores = cores(&root, &before, &now);
        let loads: Vec<_> = cores.iter().map(|core| core.as_ref().map(|core| core.load_percent)).collect();
        // 40 of 100 ticks; off; no time has passed.
        assert_eq!(loads, [Some(Some(40.0)), None, Some(None)]);
    }

    #[test]
    fn hostile_lists_are_not_believed() {
        for (list, last) in
            [("0-11", Some(11)), ("0,2-3\n", Some(3)), ("0", Some(0)), ("0-99999999999", None), ("", None)]
        {
            assert_eq!(last_core(list), last, "{list}");
        }
        assert_eq!(parse_times("cpu99999999 1 1 1 1\ncpux 1\ncpu1 18446744073709551615 1 0 1\ncpu3 1 2 3\n").len(), 1);
    }
}
