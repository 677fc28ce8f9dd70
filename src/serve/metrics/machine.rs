//! The machine's sensors as metrics, read whenever somebody asks for them. What is not known or off now is NaN or not told.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::MetricKind;
use crate::sensors::{Readings, Sensors};
use crate::system_root::Root;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SensorName {
    sensor: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RailName {
    rail: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CoreNumber {
    core: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PowerModeLabels {
    mode: String,
    /// The fastest mode of this board.
    fastest: String,
}

/// A gauge of any number.
type Amount = Gauge<f64, AtomicU64>;

/// The sensors, and a gauge for each of their values.
pub(super) struct MachineGauges {
    sensors: Mutex<Sensors>,
    gpu_load: Amount,
    gpu_clock: Amount,
    gpu_memory: Family<MetricKind, Amount>,
    emc_load: Amount,
    emc_clock: Amount,
    cpu_load: Family<CoreNumber, Amount>,
    ram: Family<MetricKind, Amount>,
    swap: Family<MetricKind, Amount>,
    temperatures: Family<SensorName, Amount>,
    power: Family<RailName, Amount>,
    whole_power: Amount,
    power_mode: Family<PowerModeLabels, Gauge>,
    fan: Amount,
    throttled: Gauge,
    over_current: Counter,
}

impl MachineGauges {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let machine = Self {
            sensors: Mutex::new(Sensors::new(Root::live())),
            gpu_load: Gauge::default(),
            gpu_clock: Gauge::default(),
            gpu_memory: Family::default(),
            emc_load: Gauge::default(),
            emc_clock: Gauge::default(),
            cpu_load: Family::default(),
            ram: Family::default(),
            swap: Family::default(),
            temperatures: Family::default(),
            power: Family::default(),
            whole_power: Gauge::default(),
            power_mode: Family::default(),
            fan: Gauge::default(),
            throttled: Gauge::default(),
            over_current: Counter::default(),
        };
        machine.register(registry);
        machine
    }

    fn register(&self, registry: &mut Registry) {
        let (hertz, watts) = (|| Unit::Other("hertz".to_owned()), || Unit::Other("watts".to_owned()));
        registry.register("gpu_load", "Share of time the GPU was busy, 0 to 1", self.gpu_load.clone());
        registry.register_with_unit("gpu_clock", "The GPU's clock", hertz(), self.gpu_clock.clone());
        let help = "The GPU's memory in use, and all of it; on a Jetson a part of the machine's";
        registry.register_with_unit("gpu_memory", help, Unit::Bytes, self.gpu_memory.clone());
        let help = "Share of the memory controller's bandwidth in use, 0 to 1";
        registry.register("emc_load", help, self.emc_load.clone());
        registry.register_with_unit("emc_clock", "The memory controller's clock", hertz(), self.emc_clock.clone());
        registry.register("cpu_load", "Share of time each core was busy, 0 to 1", self.cpu_load.clone());
        let help = "The machine's memory: all, in use, and the largest free piece in one place";
        registry.register_with_unit("ram", help, Unit::Bytes, self.ram.clone());
        registry.register_with_unit("swap", "Swap: all, and in use", Unit::Bytes, self.swap.clone());
        let temperatures = self.temperatures.clone();
        registry.register_with_unit("temperature", "Temperatures of the chip and board", Unit::Celsius, temperatures);
        registry.register_with_unit("power", "Power through each rail", watts(), self.power.clone());
        registry.register_with_unit(
            "machine_power",
            "Power of the whole module or GPU",
            watts(),
            self.whole_power.clone(),
        );
        registry.register("power_mode", "1 for nvpmodel's mode in use", self.power_mode.clone());
        registry.register("fan", "Share of the fan's full speed, 0 to 1", self.fan.clone());
        let help = "1 while heat, current or the driver lowers clocks, else 0";
        registry.register("throttled", help, self.throttled.clone());
        let help = "Over-current and under-voltage events since the machine started";
        registry.register("over_current_events", help, self.over_current.clone());
    }

    /// Reads the sensors.
    pub(super) fn read(&self) {
        let readings = self.sensors.lock().unwrap_or_else(PoisonError::into_inner).read();
        self.set(&readings);
    }

    pub(super) fn set(&self, readings: &Readings) {
        let (gpu, emc) = (readings.gpus.first(), readings.emc.as_ref());
        self.gpu_load.set(share(gpu.and_then(|gpu| gpu.load_percent)));
        self.gpu_clock.set(hertz(gpu.and_then(|gpu| gpu.clock_mhz())));
        let used = ("used", gpu.and_then(|gpu| gpu.memory_used_bytes));
        fill(&self.gpu_memory, &[used, ("total", gpu.and_then(|gpu| gpu.memory_total_bytes))]);
        self.emc_load.set(share(emc.and_then(|emc| emc.load_percent)));
        self.emc_clock.set(hertz(emc.and_then(|emc| emc.clock_mhz)));
        self.cpu_load.clear();
        for (core, reading) in (0..).zip(&readings.cpus) {
            if let Some(percent) = reading.as_ref().and_then(|reading| reading.load_percent) {
                self.cpu_load.get_or_create(&CoreNumber { core }).set(percent / 100.0);
            }
        }
        let memory = readings.memory.as_ref();
        let block = ("largest_free_block", memory.and_then(|memory| Some(memory.largest_free_block?.bytes)));
        let [total, used] = [memory.map(|memory| memory.total_bytes), memory.map(|memory| memory.used_bytes)];
        fill(&self.ram, &[("total", total), ("used", used), block]);
        let [total, used] = [readings.swap.map(|swap| swap.total_bytes), readings.swap.map(|swap| swap.used_bytes)];
        fill(&self.swap, &[("total", total), ("used", used)]);
        self.set_power(readings);
        let throttling = readings.throttling.as_ref();
        self.throttled.set(i64::from(throttling.is_some_and(|throttling| !throttling.causes.is_empty())));
        let events = throttling.and_then(|throttling| throttling.over_current_events).unwrap_or(0);
        self.over_current.inc_by(events.saturating_sub(self.over_current.get()));
    }

    /// Temperatures, power, power mode and fan.
    fn set_power(&self, readings: &Readings) {
        self.temperatures.clear();
        for zone in &readings.temperatures {
            if let Some(celsius) = zone.celsius {
                self.temperatures.get_or_create(&SensorName { sensor: zone.name.clone() }).set(celsius);
            }
        }
        self.power.clear();
        for rail in &readings.rails {
            let watts = rail.milliwatts as f64 / 1e3;
            self.power.get_or_create(&RailName { rail: rail.name.clone() }).set(watts);
        }
        self.whole_power.set(readings.power_milliwatts.map_or(f64::NAN, |milliwatts| milliwatts as f64 / 1e3));
        self.power_mode.clear();
        if let Some(mode) = &readings.power_mode {
            let name = mode.name.clone().unwrap_or_else(|| mode.id.to_string());
            let fastest = mode.faster.as_ref().map_or_else(|| name.clone(), |faster| faster.name.clone());
            self.power_mode.get_or_create(&PowerModeLabels { mode: name, fastest }).set(1);
        }
        self.fan.set(share(readings.fan.as_ref().and_then(|fan| fan.percent)));
    }
}

fn share(percent: Option<f64>) -> f64 {
    percent.map_or(f64::NAN, |percent| percent / 100.0)
}

fn hertz(megahertz: Option<u64>) -> f64 {
    megahertz.map_or(f64::NAN, |clock| clock as f64 * 1e6)
}

/// Sets bytes by kind; what is not known is not told.
fn fill(family: &Family<MetricKind, Amount>, values: &[(&'static str, Option<u64>)]) {
    family.clear();
    for (kind, bytes) in values.iter().filter_map(|(kind, bytes)| Some((*kind, (*bytes)?))) {
        family.get_or_create(&MetricKind { kind }).set(bytes as f64);
    }
}
