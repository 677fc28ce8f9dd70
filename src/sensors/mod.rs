//! The machine's sensors: load, clocks, memory, temperatures, power, throttling, power mode and fan.
//!
//! In: files of /proc and /sys, found by what they say of themselves (the device tree's node name, a chip's name), since paths
//! change from one JetPack to the next; NVIDIA's driver (NVML) where there is one; lines of `tegrastats`. Out: [`Readings`].
//! Like `doctor` it reads below a [`Root`], so that a fixture or another machine's files do as well.

mod board;
mod gpu;
#[cfg(feature = "serve")]
mod nvml;
mod power_mode;
mod processor;
mod ram;
mod readings;
pub mod tegrastats;

use std::collections::BTreeMap;

pub use power_mode::read as power_mode;
pub use readings::{
    CoreReading, EmcReading, EngineReading, FanReading, FreeBlocks, GpuReading, MemoryReading, ModeInUse, NamedMode,
    Rail, Readings, SwapReading, Temperature, Throttling,
};

use crate::system_root::Root;

/// A number that a file holds.
fn number(root: &Root, path: &str) -> Option<u64> {
    root.read(path)?.parse().ok()
}

/// Names in a folder that begin with `prefix` and end in a number, by that number.
fn numbered(root: &Root, folder: &str, prefix: &str) -> Vec<String> {
    let number = |name: &String| name.strip_prefix(prefix)?.parse::<u64>().ok();
    let mut names: Vec<_> =
        root.list(folder).into_iter().filter_map(|name| Some((number(&name)?, format!("{folder}/{name}")))).collect();
    names.sort();
    names.into_iter().map(|(_, path)| path).collect()
}

/// Mean and most of a rail since the first reading.
#[derive(Debug, Clone, Copy, Default)]
struct RailHistory {
    sum: u64,
    count: u64,
    most: u64,
}

/// The sensors of a machine. Loads of cores, means and the causes of throttling are since the last or the first reading.
#[derive(Debug)]
pub struct Sensors {
    root: Root,
    times: processor::CoreTimes,
    rails: BTreeMap<String, RailHistory>,
    highest: BTreeMap<String, f64>,
    /// Over-current events at the last reading, by alarm.
    events: BTreeMap<String, u64>,
}

impl Sensors {
    /// The sensors of the machine whose files `root` holds.
    pub fn new(root: Root) -> Self {
        let (times, events) = (processor::times(&root), board::over_current_events(&root));
        Self { root, times, rails: BTreeMap::new(), highest: BTreeMap::new(), events }
    }

    /// The name of the board or machine.
    pub fn board(&self) -> Option<String> {
        let names = ["/proc/device-tree/model", "/sys/class/dmi/id/product_name"];
        names.iter().find_map(|path| self.root.read(path)).filter(|name| !name.is_empty())
    }

    /// The Jetson Linux release, e.g. "36.4.4".
    pub fn l4t(&self) -> Option<String> {
        crate::l4t::parse_release(&self.root.read(crate::l4t::RELEASE_FILE)?)
    }

    /// Reads them all.
    pub fn read(&mut self) -> Readings {
        let root = &self.root;
        let meminfo = root.read("/proc/meminfo").unwrap_or_default();
        let now = processor::times(root);
        let cpus = processor::cores(root, &self.times, &now);
        self.times = now;
        let readings = Readings {
            gpus: gpu::read(root, &meminfo).into_iter().collect(),
            emc: gpu::emc(root),
            cpus,
            memory: ram::memory(root, &meminfo),
            swap: ram::swap(&meminfo),
            temperatures: board::temperatures(root),
            rails: board::rails(root),
            power_milliwatts: None,
            throttling: board::throttling(root, &mut self.events),
            power_mode: power_mode(root),
            fan: board::fan(root),
            engines: Vec::new(),
        };
        let mut readings = self.with_driver(readings);
        readings.power_milliwatts = board::whole(&readings.rails);
        self.remember(&mut readings);
        readings
    }

    /// With what NVIDIA's driver tells. Of an integrated GPU it tells less than the files, on Orin nothing
    /// (rbonghi/jetson_stats pull request 867).
    #[cfg(feature = "serve")]
    fn with_driver(&self, readings: Readings) -> Readings {
        match self.root.live.then(nvml::read).flatten() {
            Some(told) => readings.or(told),
            None => readings,
        }
    }

    #[cfg(not(feature = "serve"))]
    fn with_driver(&self, readings: Readings) -> Readings {
        readings
    }

    /// Joules that the GPU has used since its driver was loaded, where it counts them and there is one GPU.
    #[cfg(feature = "serve")]
    pub fn counted_joules(&self) -> Option<f64> {
        self.root.live.then(nvml::joules).flatten()
    }

    /// Joules that the GPU has used: only NVIDIA's driver counts them, and it is not asked without the feature `serve`.
    #[cfg(not(feature = "serve"))]
    pub fn counted_joules(&self) -> Option<f64> {
        None
    }

    /// Adds to means and maxima, and writes them into the readings.
    fn remember(&mut self, readings: &mut Readings) {
        for rail in &mut readings.rails {
            let past = self.rails.entry(rail.name.clone()).or_default();
            past.sum = past.sum.saturating_add(rail.milliwatts);
            past.count += 1;
            past.most = past.most.max(rail.milliwatts);
            rail.mean_milliwatts = past.sum.checked_div(past.count);
            rail.max_milliwatts = Some(past.most);
        }
        for zone in &mut readings.temperatures {
            let Some(celsius) = zone.celsius else { continue };
            let highest = self.highest.entry(zone.name.clone()).or_insert(celsius);
            *highest = highest.max(celsius);
            zone.max_celsius = Some(*highest);
        }
    }
}
