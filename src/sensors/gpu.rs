//! A Jetson's GPU and memory controller, from devfreq and debugfs.

use super::ram::field;
use super::{EmcReading, GpuReading, number};
use crate::system_root::Root;

/// Where Linux lists devices whose clocks it changes.
const DEVFREQ: &str = "/sys/class/devfreq";
/// Names of GPUs in device trees: Orin and Thor on JetPack 6 and 7, Xavier, Orin on JetPack 5 and its successor, TX2.
const NODES: [&str; 5] = ["gpu", "gv11b", "ga10b", "gb10b", "gp10b"];
/// Where the load is if the GPU's devfreq device has none.
const LOADS: [&str; 3] =
    ["/sys/devices/platform/gpu.0/load", "/sys/devices/gpu.0/load", "/sys/devices/platform/bus@0/17000000.gpu/load"];

/// Devices of devfreq, each with its node's name in the device tree, or its own where it has none.
fn devices(root: &Root) -> Vec<(String, String)> {
    let device = |name: String| {
        let path = format!("{DEVFREQ}/{name}");
        let node = root.read(&format!("{path}/device/of_node/name"));
        // The name's own part: 17000000.ga10b.
        let own = name.rsplit_once('.').map_or(name.as_str(), |(_, own)| own).to_owned();
        (path, node.unwrap_or(own))
    };
    root.list(DEVFREQ).into_iter().map(device).collect()
}

/// The integrated GPU. Thor has a device for each cluster (gpu-gpc-0) and one for its video engines (gpu-nvd-0).
pub(super) fn read(root: &Root, meminfo: &str) -> Option<GpuReading> {
    let is_gpu = |name: &str| NODES.contains(&name) || name.starts_with("gpu-gpc");
    let devices: Vec<_> =
        devices(root).into_iter().filter(|(path, node)| is_gpu(node) && !path.contains("nvd")).collect();
    let (_, name) = devices.first()?;
    let megahertz = |file: &str| {
        let read =
            |(path, _): &(String, String)| number(root, &format!("{path}/{file}")).map(|hertz| hertz / 1_000_000);
        devices.iter().filter_map(read).collect::<Vec<u64>>()
    };
    let limits = megahertz("min_freq").into_iter().min().zip(megahertz("max_freq").into_iter().max());
    let own = devices.iter().map(|(path, _)| format!("{path}/device/load"));
    let load = own.chain(LOADS.map(str::to_owned)).find_map(|path| number(root, &path));
    Some(GpuReading {
        name: name.clone(),
        // In thousandths.
        load_percent: load.map(|load| load.min(1000) as f64 / 10.0),
        clocks_mhz: megahertz("cur_freq"),
        clock_limits_mhz: limits,
        highest_clock_mhz: devices.iter().filter_map(|(path, _)| highest(root, path)).max(),
        // What CPU and GPU share through NvMap; JetPack 7 does not tell.
        memory_used_bytes: field(meminfo, "NvMapMemUsed"),
        ..GpuReading::default()
    })
}

/// The highest clock of a device in MHz, whatever the power mode allows.
fn highest(root: &Root, device: &str) -> Option<u64> {
    let clocks = root.read(&format!("{device}/available_frequencies"))?;
    clocks.split_whitespace().filter_map(|hertz| hertz.parse::<u64>().ok()).max().map(|hertz| hertz / 1_000_000)
}

/// The memory controller's clock: from the power processor's debugfs, which root may read, or from devfreq (Thor).
pub(super) fn emc(root: &Root) -> Option<EmcReading> {
    let debug = number(root, "/sys/kernel/debug/bpmp/debug/clk/emc/rate");
    let device = || {
        let (path, _) = devices(root).into_iter().find(|(_, node)| node == "emc" || node == "bwmgr")?;
        number(root, &format!("{path}/cur_freq"))
    };
    let hertz = debug.or_else(device)?;
    Some(EmcReading { load_percent: None, clock_mhz: Some(hertz / 1_000_000) })
}
