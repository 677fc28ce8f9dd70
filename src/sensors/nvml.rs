//! What NVIDIA's driver tells of its GPUs (NVML).

use std::sync::OnceLock;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::{Device, Nvml};

use super::{FanReading, GpuReading, Rail, Readings, Temperature, Throttling};

/// Reasons that lower clocks, in words. An idle GPU, and clocks that somebody has set, are none.
const REASONS: [(ThrottleReasons, &str); 5] = [
    (ThrottleReasons::SW_POWER_CAP, "power limit"),
    (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake"),
    (ThrottleReasons::SW_THERMAL_SLOWDOWN, "heat (driver)"),
    (ThrottleReasons::HW_THERMAL_SLOWDOWN, "heat (hardware)"),
    (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown"),
];

fn devices() -> Vec<Device<'static>> {
    static NVML: OnceLock<Option<Nvml>> = OnceLock::new();
    let Some(nvml) = NVML.get_or_init(|| Nvml::init().ok()) else { return Vec::new() };
    let count = nvml.device_count().unwrap_or(0);
    (0..count).filter_map(|index| nvml.device_by_index(index).ok()).collect()
}

/// Readings of the driver's GPUs; `None` without a driver or GPU.
pub(super) fn read() -> Option<Readings> {
    let devices = devices();
    if devices.is_empty() {
        return None;
    }
    // A lone GPU needs no number.
    let place = |at: usize| if devices.len() == 1 { "GPU".to_owned() } else { format!("GPU {at}") };
    let mut readings = Readings::default();
    let mut throttling = None;
    for (at, device) in devices.iter().enumerate() {
        readings.gpus.push(gpu(device));
        if let Ok(celsius) = device.temperature(TemperatureSensor::Gpu) {
            let celsius = Some(f64::from(celsius));
            readings.temperatures.push(Temperature { name: place(at), celsius, max_celsius: None });
        }
        if let Ok(milliwatts) = device.power_usage() {
            readings.rails.push(Rail { name: place(at), milliwatts: milliwatts.into(), ..Rail::default() });
        }
        if let Ok(reasons) = device.current_throttle_reasons() {
            let told = REASONS.iter().filter(|(reason, _)| reasons.contains(*reason));
            let causes = told.map(|(_, words)| format!("{}: {words}", place(at)));
            throttling.get_or_insert_with(Throttling::default).causes.extend(causes);
        }
    }
    readings.throttling = throttling;
    let percent = devices.iter().find_map(|device| device.fan_speed(0).ok());
    readings.fan = percent.map(|percent| FanReading { percent: Some(percent.into()), rpm: None });
    Some(readings)
}

fn gpu(device: &Device<'_>) -> GpuReading {
    let clock = |clock: Clock| device.clock_info(clock).ok().map(u64::from);
    let memory = device.memory_info().ok();
    GpuReading {
        name: device.name().unwrap_or_default(),
        load_percent: device.utilization_rates().ok().map(|load| load.gpu.into()),
        clocks_mhz: clock(Clock::SM).into_iter().collect(),
        clock_limits_mhz: None,
        highest_clock_mhz: device.max_clock_info(Clock::SM).ok().map(u64::from),
        memory_clock_mhz: clock(Clock::Memory),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        memory_total_bytes: memory.as_ref().map(|memory| memory.total),
    }
}

/// Joules that the GPU has used since the driver was loaded; `None` if it does not count, or if there are several, of which one works.
pub(super) fn joules() -> Option<f64> {
    let devices = devices();
    let [device] = &devices[..] else { return None };
    device.total_energy_consumption().ok().map(|millijoules| millijoules as f64 / 1e3)
}
