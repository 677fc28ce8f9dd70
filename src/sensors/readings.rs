//! What the sensors of a machine tell at one moment. `monitor --json` prints it, so names of fields are stable and end in
//! their unit. What a machine does not tell is absent, never 0.

use serde::{Deserialize, Serialize};

/// Readings of all sensors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Readings {
    /// GPUs: the integrated one, or those of NVIDIA's driver.
    pub gpus: Vec<GpuReading>,
    /// The controller of the memory that CPU and GPU of a Jetson share (EMC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emc: Option<EmcReading>,
    /// CPU cores in their order; null for a core that is switched off.
    pub cpus: Vec<Option<CoreReading>>,
    /// The machine's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryReading>,
    /// Swap, of all devices and files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<SwapReading>,
    /// Temperatures.
    pub temperatures: Vec<Temperature>,
    /// Power rails.
    pub rails: Vec<Rail>,
    /// Power of the whole module or GPU in milliwatts, from the rails that add up to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_milliwatts: Option<u64>,
    /// Whether, and why, clocks are lowered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttling: Option<Throttling>,
    /// nvpmodel's power mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_mode: Option<ModeInUse>,
    /// The fan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fan: Option<FanReading>,
    /// Video and other engines, which tegrastats alone reports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<EngineReading>,
}

/// One GPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuReading {
    /// Name, e.g. "ga10b" or "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// Share of the time in which it was busy, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_percent: Option<f64>,
    /// Clocks of its processing clusters in MHz; most GPUs tell one for all of them.
    pub clocks_mhz: Vec<u64>,
    /// Lowest and highest clock in MHz that it may have now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_limits_mhz: Option<(u64, u64)>,
    /// Highest clock in MHz of which it is capable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub highest_clock_mhz: Option<u64>,
    /// Clock of its own memory in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_clock_mhz: Option<u64>,
    /// Memory that it uses in bytes; on a Jetson a part of the machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_used_bytes: Option<u64>,
    /// Its own memory in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_total_bytes: Option<u64>,
}

impl GpuReading {
    /// The highest of its clocks in MHz.
    pub fn clock_mhz(&self) -> Option<u64> {
        self.clocks_mhz.iter().copied().max()
    }
}

/// The memory controller.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EmcReading {
    /// Share of the bandwidth at this clock that is used, in percent. Only tegrastats can tell: the conversion is in firmware.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_percent: Option<f64>,
    /// Clock in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_mhz: Option<u64>,
}

/// A CPU core.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CoreReading {
    /// Share of the time since the last reading in which it was busy, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_percent: Option<f64>,
    /// Clock in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_mhz: Option<u64>,
}

/// The machine's memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryReading {
    /// All of it in bytes.
    pub total_bytes: u64,
    /// What programs and the kernel keep, in bytes; the page cache is not counted.
    pub used_bytes: u64,
    /// Size in bytes of the largest free piece in one place, and how many of them there are. Small pieces alone mean that a
    /// large allocation of the GPU may fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub largest_free_block: Option<FreeBlocks>,
}

/// The largest free pieces of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct FreeBlocks {
    pub bytes: u64,
    pub count: u64,
}

/// Swap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapReading {
    /// All of it in bytes.
    pub total_bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes that are in memory as well.
    pub cached_bytes: u64,
}

/// A temperature.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Temperature {
    /// Where: the thermal zone's name without its ending, e.g. "gpu", "tj" (the hottest place of the chip).
    pub name: String,
    /// Degrees Celsius; null while the place is switched off.
    pub celsius: Option<f64>,
    /// Highest since the first reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_celsius: Option<f64>,
}

/// Power through one rail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rail {
    /// The rail's name, e.g. "VDD_GPU_SOC".
    pub name: String,
    /// Milliwatts.
    pub milliwatts: u64,
    /// Mean since the first reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_milliwatts: Option<u64>,
    /// Most since the first reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_milliwatts: Option<u64>,
}

/// Whether clocks are lowered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Throttling {
    /// What lowers them now: alerts of heat ("gpu-throttle-alert"), over-current alarms that fired since the last reading
    /// ("oc3"), reasons of NVIDIA's driver ("power brake"). Empty if nothing does.
    pub causes: Vec<String>,
    /// Over-current and under-voltage events since the machine started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_current_events: Option<u64>,
}

/// A power mode's number and name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct NamedMode {
    pub id: u32,
    pub name: String,
}

/// The power mode in use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModeInUse {
    /// Its number for `nvpmodel -m`.
    pub id: u32,
    /// Its name, unless nvpmodel.conf is not readable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The fastest mode of this board, if it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faster: Option<NamedMode>,
}

/// The fan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FanReading {
    /// Share of its full speed that is asked for, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
    /// Measured turns a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpm: Option<u64>,
}

/// An engine beside CPU and GPU, as tegrastats reports it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EngineReading {
    /// Its name, e.g. "NVDEC".
    pub name: String,
    /// Whether it is switched on.
    pub on: bool,
    /// Share of the time in which it was busy, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_percent: Option<f64>,
    /// Clock in MHz.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_mhz: Option<u64>,
}

impl Readings {
    /// The temperature that decides about throttling: the chip's hottest place (tj), else the highest.
    pub fn hottest(&self) -> Option<&Temperature> {
        let known = || self.temperatures.iter().filter(|zone| zone.celsius.is_some());
        let junction = known().find(|zone| zone.name.eq_ignore_ascii_case("tj"));
        junction.or_else(|| known().max_by(|a, b| a.celsius.unwrap_or(0.0).total_cmp(&b.celsius.unwrap_or(0.0))))
    }

    /// These readings, with what they lack from `other` ones of the same machine.
    pub fn or(self, other: Self) -> Self {
        Self {
            gpus: merged_gpus(self.gpus, other.gpus),
            emc: self.emc.or(other.emc),
            cpus: if self.cpus.is_empty() { other.cpus } else { self.cpus },
            memory: self.memory.or(other.memory),
            swap: self.swap.or(other.swap),
            temperatures: if self.temperatures.is_empty() { other.temperatures } else { self.temperatures },
            rails: if self.rails.is_empty() { other.rails } else { self.rails },
            power_milliwatts: self.power_milliwatts.or(other.power_milliwatts),
            throttling: self.throttling.or(other.throttling),
            power_mode: self.power_mode.or(other.power_mode),
            fan: self.fan.or(other.fan),
            engines: if self.engines.is_empty() { other.engines } else { self.engines },
        }
    }
}

/// GPUs, each with what it lacks from the other one in its place.
fn merged_gpus(own: Vec<GpuReading>, other: Vec<GpuReading>) -> Vec<GpuReading> {
    if own.is_empty() {
        return other;
    }
    let mut other = other.into_iter();
    let merge = |gpu: GpuReading| {
        let more = other.next().unwrap_or_default();
        GpuReading {
            name: if gpu.name.is_empty() { more.name } else { gpu.name },
            load_percent: gpu.load_percent.or(more.load_percent),
            clocks_mhz: if gpu.clocks_mhz.is_empty() { more.clocks_mhz } else { gpu.clocks_mhz },
            clock_limits_mhz: gpu.clock_limits_mhz.or(more.clock_limits_mhz),
            highest_clock_mhz: gpu.highest_clock_mhz.or(more.highest_clock_mhz),
            memory_clock_mhz: gpu.memory_clock_mhz.or(more.memory_clock_mhz),
            memory_used_bytes: gpu.memory_used_bytes.or(more.memory_used_bytes),
            memory_total_bytes: gpu.memory_total_bytes.or(more.memory_total_bytes),
        }
    };
    own.into_iter().map(merge).collect()
}
