//! What the board's chips tell: temperatures, power rails, throttling, fan.
//!
//! Thermal zones and cooling devices are Linux' (Documentation/ABI/testing/sysfs-class-thermal), rails and fans hwmon's
//! (Documentation/hwmon/sysfs-interface.rst): millivolts, milliamperes, microwatts, millidegrees. Over-current alarms are
//! counted by `soctherm_oc` (Jetson Linux Developer Guide, "Over-Current Throttling").

use std::collections::BTreeMap;

use super::{FanReading, Rail, Temperature, Throttling, number, numbered};
use crate::system_root::Root;

const HWMON: &str = "/sys/class/hwmon";
const THERMAL: &str = "/sys/class/thermal";
/// Endings of zones' names that say nothing: `CPU-therm` on JetPack 5, `cpu-thermal` on 6 and 7.
const ENDINGS: [&str; 4] = ["-thermal", "-therm", "_tegra", "-Die"];
/// The rail through which all power comes, by boards: Orin NX and Nano, Thor, older ones.
const INPUTS: [&str; 3] = ["VDD_IN", "VIN", "POM_5V_IN"];
/// AGX Orin's rail of the memory, which is fed by VIN_SYS_5V0 and counted there.
const COUNTED_TWICE: &str = "VDDQ_VDD2_1V8AO";
/// Most channels of a chip.
const CHANNELS: usize = 8;

pub(super) fn temperatures(root: &Root) -> Vec<Temperature> {
    let zone = |path: String| {
        let kind = root.read(&format!("{path}/type"))?;
        let name = ENDINGS.iter().find_map(|ending| kind.strip_suffix(ending)).unwrap_or(&kind);
        // A place that is switched off cannot be read, or tells -256 degrees.
        let told = root.read(&format!("{path}/temp")).and_then(|text| text.parse::<i32>().ok());
        let celsius = told.filter(|millidegrees| *millidegrees > -200_000).map(|told| f64::from(told) / 1000.0);
        Some(Temperature { name: name.to_owned(), celsius, max_celsius: None })
    };
    numbered(root, THERMAL, "thermal_zone").into_iter().filter_map(zone).collect()
}

/// Chips of hwmon, each with its name.
fn chips(root: &Root) -> Vec<(String, String)> {
    let chip = |path: String| Some((root.read(&format!("{path}/name"))?, path));
    numbered(root, HWMON, "hwmon").into_iter().filter_map(chip).collect()
}

/// Rails of the power monitors: INA3221 (Xavier, Orin) tells voltage and current, INA238 (Thor) power.
pub(super) fn rails(root: &Root) -> Vec<Rail> {
    let monitors = chips(root).into_iter().filter(|(name, _)| name.starts_with("ina"));
    monitors.flat_map(|(name, path)| (1..=CHANNELS).filter_map(move |at| rail(root, (&name, &path), at))).collect()
}

fn rail(root: &Root, (chip, path): (&str, &str), at: usize) -> Option<Rail> {
    let label = root.read(&format!("{path}/in{at}_label"));
    // Not connected; the sum of shunt voltages.
    if label.as_ref().is_some_and(|label| label == "NC" || label.starts_with("sum of")) {
        return None;
    }
    let microwatts = match number(root, &format!("{path}/power{at}_input")) {
        Some(microwatts) => microwatts,
        None => {
            let millivolts = number(root, &format!("{path}/in{at}_input"))?;
            millivolts.checked_mul(number(root, &format!("{path}/curr{at}_input"))?)?
        }
    };
    let named = || root.read(&format!("{path}/power{at}_label")).or_else(|| root.read(&format!("{path}/label")));
    let name = label.or_else(named).unwrap_or_else(|| format!("{chip}_{at}"));
    Some(Rail { name, milliwatts: microwatts / 1000, ..Rail::default() })
}

/// Power of the whole in milliwatts: of the rail through which all comes, or the sum of those that share it.
pub(super) fn whole(rails: &[Rail]) -> Option<u64> {
    let input = INPUTS.iter().find_map(|name| rails.iter().find(|rail| rail.name == *name));
    if let Some(input) = input {
        return Some(input.milliwatts);
    }
    let parts: Vec<u64> = rails.iter().filter(|rail| rail.name != COUNTED_TWICE).map(|rail| rail.milliwatts).collect();
    parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(*part)).filter(|_| !parts.is_empty())
}

/// Events of each alarm since the machine started: oc1 under-voltage, oc2 mean and oc3 momentary over-current.
pub(super) fn over_current_events(root: &Root) -> BTreeMap<String, u64> {
    let counters = chips(root).into_iter().filter(|(name, _)| name == "soctherm_oc");
    let counted = counters.flat_map(|(_, path)| {
        let alarm = move |at: usize| {
            let name = format!("oc{at}");
            let count = number(root, &format!("{path}/{name}_event_cnt"))?;
            Some((name, count))
        };
        (1..=CHANNELS).filter_map(alarm)
    });
    counted.collect()
}

/// What lowers clocks now. Other cooling devices (`cpufreq-cpu0`, `devfreq-17000000.gpu`) also tell a clock that is merely low.
pub(super) fn throttling(root: &Root, before: &mut BTreeMap<String, u64>) -> Option<Throttling> {
    let alert = |path: String| {
        let kind = root.read(&format!("{path}/type")).filter(|kind| kind.ends_with("throttle-alert"))?;
        Some((kind, number(root, &format!("{path}/cur_state"))? > 0))
    };
    let alerts: Vec<_> = numbered(root, THERMAL, "cooling_device").into_iter().filter_map(alert).collect();
    let events = over_current_events(root);
    if alerts.is_empty() && events.is_empty() {
        return None;
    }
    let fired = events.iter().filter(|(alarm, count)| before.get(*alarm).is_some_and(|before| *count > before));
    let fired: Vec<String> = fired.map(|(alarm, _)| alarm.clone()).collect();
    let causes = alerts.into_iter().filter(|(_, active)| *active).map(|(kind, _)| kind).chain(fired).collect();
    let total = events.values().try_fold(0_u64, |sum, count| sum.checked_add(*count)).filter(|_| !events.is_empty());
    *before = events;
    Some(Throttling { causes, over_current_events: total })
}

/// The fan: one chip has its pulse width, on some boards another its speed (`pwmfan`, `pwm_tach`).
pub(super) fn fan(root: &Root) -> Option<FanReading> {
    let chips: Vec<_> = chips(root).into_iter().filter(|(name, _)| name.contains("pwm")).collect();
    let first = |file: &str| chips.iter().find_map(|(_, path)| number(root, &format!("{path}/{file}")));
    let percent = first("pwm1").map(|width| (width.min(255) as f64 / 2.55).round());
    let rpm = first("fan1_input").or_else(|| first("rpm"));
    (percent.is_some() || rpm.is_some()).then_some(FanReading { percent, rpm })
}
