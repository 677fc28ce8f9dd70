//! The machine's state during a measurement: clocks, temperatures, power and throttling, sampled in a thread, and the energy used.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::sensors::{Readings, Sensors};

/// Pause between two samples. Rails are read over I2C in about a millisecond each.
const PAUSE: Duration = Duration::from_millis(200);

/// Lowest, mean and highest of what was sampled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct MinMeanMax {
    pub min: f64,
    pub mean: f64,
    pub max: f64,
}

/// What the machine was like while it was measured. What it does not tell is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Name of nvpmodel's power mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_mode: Option<String>,
    /// Name of the board's fastest mode, if that is another: the results are below what the board can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faster_power_mode: Option<String>,
    /// Clock of the first GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_clock_mhz: Option<MinMeanMax>,
    /// Clock of a Jetson's memory controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emc_clock_mhz: Option<MinMeanMax>,
    /// Highest temperatures by place.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub max_celsius: BTreeMap<String, f64>,
    /// Power of the whole module or GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_watts: Option<MinMeanMax>,
    /// What lowered clocks meanwhile; the results are below what the machine can do if there is anything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub throttled_by: Vec<String>,
}

/// A sum, from which a spread is made.
#[derive(Debug, Clone, Copy)]
struct Summed {
    min: f64,
    max: f64,
    sum: f64,
    count: f64,
}

impl Summed {
    fn add(sums: &mut Option<Self>, value: Option<f64>) {
        let Some(value) = value else { return };
        let sums = sums.get_or_insert(Self { min: value, max: value, sum: 0.0, count: 0.0 });
        *sums =
            Self { min: sums.min.min(value), max: sums.max.max(value), sum: sums.sum + value, count: sums.count + 1.0 };
    }

    fn spread(self) -> MinMeanMax {
        MinMeanMax { min: self.min, mean: self.sum / self.count, max: self.max }
    }
}

/// What was sampled so far.
#[derive(Debug, Default)]
struct Sampled {
    conditions: Conditions,
    gpu: Option<Summed>,
    emc: Option<Summed>,
    power: Option<Summed>,
    /// Joules by rails, up to the last sample, and when and at how many watts that was.
    joules: f64,
    last: Option<(Instant, f64)>,
}

impl Sampled {
    fn add(&mut self, readings: Readings, now: Instant) {
        let watts = readings.power_milliwatts.map(|power| power as f64 / 1e3);
        Summed::add(&mut self.gpu, readings.gpus.first().and_then(|gpu| gpu.clock_mhz()).map(|clock| clock as f64));
        Summed::add(&mut self.emc, readings.emc.and_then(|emc| emc.clock_mhz).map(|clock| clock as f64));
        Summed::add(&mut self.power, watts);
        // Of several GPUs one is measured, and the others' power is not its.
        let own = watts.filter(|_| readings.gpus.len() <= 1);
        // By the trapezoidal rule.
        if let (Some((then, before)), Some(watts)) = (self.last, own) {
            self.joules += (before + watts) / 2.0 * now.duration_since(then).as_secs_f64();
        }
        self.last = own.map(|watts| (now, watts));
        for zone in readings.temperatures {
            let Some(celsius) = zone.celsius else { continue };
            let most = self.conditions.max_celsius.entry(zone.name).or_insert(celsius);
            *most = most.max(celsius);
        }
        for cause in readings.throttling.into_iter().flat_map(|throttling| throttling.causes) {
            if !self.conditions.throttled_by.contains(&cause) {
                self.conditions.throttled_by.push(cause);
            }
        }
        if let Some(mode) = readings.power_mode {
            self.conditions.power_mode = mode.name.or(Some(format!("mode {}", mode.id)));
            self.conditions.faster_power_mode = mode.faster.map(|faster| faster.name);
        }
    }

    fn conditions(&self) -> Conditions {
        let spread = |sums: Option<Summed>| sums.map(Summed::spread);
        Conditions {
            gpu_clock_mhz: spread(self.gpu),
            emc_clock_mhz: spread(self.emc),
            power_watts: spread(self.power),
            ..self.conditions.clone()
        }
    }
}

/// A running sampler thread.
pub struct ConditionsSampler {
    shared: Arc<Mutex<(Sensors, Sampled)>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl ConditionsSampler {
    /// Starts sampling.
    pub fn start(sensors: Sensors) -> Self {
        let shared = Arc::new(Mutex::new((sensors, Sampled::default())));
        let stop = Arc::new(AtomicBool::new(false));
        let (own, seen) = (Arc::clone(&shared), Arc::clone(&stop));
        let thread = spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                sample(&own);
                sleep(PAUSE);
            }
        });
        Self { shared, stop, thread }
    }

    /// Joules used so far, counted by the GPU's driver or else summed up over the rails; `None` where neither is told. The
    /// difference of two calls is what was used between them.
    pub fn joules(&self) -> Option<f64> {
        if let Some(counted) = self.shared.lock().unwrap_or_else(PoisonError::into_inner).0.counted_joules() {
            return Some(counted);
        }
        sample(&self.shared);
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.1.last.map(|_| shared.1.joules)
    }

    /// Stops sampling and tells what was seen.
    pub fn stop(self) -> Conditions {
        self.stop.store(true, Ordering::Relaxed);
        // A sampler that panicked has told what it saw before.
        let _ = self.thread.join();
        sample(&self.shared);
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).1.conditions()
    }
}

fn sample(shared: &Mutex<(Sensors, Sampled)>) {
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let (sensors, sampled) = &mut *shared;
    let readings = sensors.read();
    sampled.add(readings, Instant::now());
}

impl Conditions {
    /// Why the results are below what the machine can do.
    pub fn flags(&self) -> Vec<String> {
        let mode = self.faster_power_mode.as_ref().map(|faster| {
            let own = self.power_mode.as_deref().unwrap_or("unknown");
            format!("measured in power mode {own}, below {faster}")
        });
        let throttled = (!self.throttled_by.is_empty())
            .then(|| format!("measured while clocks were lowered by {}", self.throttled_by.join(", ")));
        mode.into_iter().chain(throttled).collect()
    }

    /// The state in one line; `None` if nothing is known.
    pub(super) fn text(&self) -> Option<String> {
        let clock = |what: &str, clock: Option<MinMeanMax>| {
            clock.map(|clock| format!("{what} {:.0} to {:.0} MHz, mean {:.0}", clock.min, clock.max, clock.mean))
        };
        // The hottest alone: places are many.
        let hottest = self.max_celsius.iter().max_by(|a, b| a.1.total_cmp(b.1));
        let parts = [
            self.power_mode.as_ref().map(|mode| format!("power mode {mode}")),
            clock("GPU", self.gpu_clock_mhz),
            clock("EMC", self.emc_clock_mhz),
            hottest.map(|(place, celsius)| format!("{place} up to {celsius:.1} °C")),
            self.power_watts.map(|power| format!("{:.1} W, at most {:.1} W", power.mean, power.max)),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensors::tegrastats::parse;
    use crate::sensors::{ModeInUse, NamedMode, Throttling};

    /// Two seconds at 10, 20 and 30 W, hot in between.
    #[test]
    fn energy_and_flags_of_what_was_seen() {
        let (begin, mut sampled) = (Instant::now(), Sampled::default());
        let lines = [
            "RAM 1/2MB EMC_FREQ @3199 GR3D_FREQ 9%@[300] gpu@50C tj@51C VDD_IN 10000mW/1mW",
            "RAM 1/2MB EMC_FREQ @3199 GR3D_FREQ 99%@[1300] gpu@90C tj@91.5C VDD_IN 20000mW/1mW",
            "RAM 1/2MB EMC_FREQ @3199 GR3D_FREQ 99%@[800] gpu@70C tj@71C VDD_IN 30000mW/1mW",
        ];
        for (seconds, line) in (0..).zip(lines) {
            let mut readings = parse(line).unwrap();
            let causes = if seconds == 1 { vec!["gpu-throttle-alert".to_owned()] } else { Vec::new() };
            readings.throttling = Some(Throttling { causes, over_current_events: None });
            let faster = Some(NamedMode { id: 0, name: "MAXN".to_owned() });
            readings.power_mode = Some(ModeInUse { id: 2, name: Some("MODE_30W".to_owned()), faster });
            sampled.add(readings, begin + Duration::from_secs(seconds));
        }
        assert_eq!(sampled.joules, 15.0 + 25.0);
        let seen = sampled.conditions();
        assert_eq!(seen.gpu_clock_mhz, Some(MinMeanMax { min: 300.0, mean: 800.0, max: 1300.0 }));
        let flags =
            ["measured in power mode MODE_30W, below MAXN", "measured while clocks were lowered by gpu-throttle-alert"];
        assert_eq!(seen.flags(), flags);
        let text = "power mode MODE_30W; GPU 300 to 1300 MHz, mean 800; EMC 3199 to 3199 MHz, mean 3199; \
                    tj up to 91.5 °C; 20.0 W, at most 30.0 W";
        assert_eq!(seen.text().as_deref(), Some(text));
        let kept = serde_json::to_string(&seen).unwrap();
        assert_eq!(serde_json::from_str::<Conditions>(&kept).unwrap(), seen);
        assert_eq!((Conditions::default().text(), Conditions::default().flags()), (None, Vec::new()));
    }

    #[test]
    fn a_machine_without_rails_has_no_energy() {
        let nowhere = crate::system_root::Root::at(std::path::Path::new("/nowhere"));
        let sampler = ConditionsSampler::start(Sensors::new(nowhere));
        assert_eq!(sampler.joules(), None);
        assert_eq!(sampler.stop(), Conditions::default());
    }
}
