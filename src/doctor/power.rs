//! Checks what sets a Jetson's speed: power mode, clocks, heat. The remedies last over a reboot.

use super::advice::on_host;
use super::{Examination, Finding, Root};
use crate::sensors::{self, ModeInUse, NamedMode};

pub(super) fn check(examination: &Examination) -> Vec<Finding> {
    if !examination.platform.is_jetson() {
        return Vec::new();
    }
    let mut findings = vec![power_mode(examination), clocks(examination)];
    findings.extend(heat(examination));
    findings
}

/// What a faster mode asks for. Not every carrier board is made for the fastest: Seeed does not support MAXN_SUPER on some,
/// for heat (fly4future/install_script#28, read 2026-11-26).
const WARMER: &str = "a faster mode needs power and cooling: if tj in `tegrastats` nears its limit, the board throttles and \
                      a lower mode is faster";

fn power_mode(examination: &Examination) -> Finding {
    let (root, platform) = (examination.root, &examination.platform);
    let query = on_host(platform, "sudo nvpmodel -q");
    let Some(ModeInUse { id, name, faster }) = sensors::power_mode(root) else {
        return match platform.container {
            true => Finding::ok("power-mode", "not to be seen in a container (on the host: sudo nvpmodel -q)"),
            false => Finding::warn("power-mode", "unknown (no /var/lib/nvpmodel/status)", &[&query]),
        };
    };
    let Some(name) = name else {
        let seen = format!("mode {id}, which /etc/nvpmodel.conf does not name: it may be a slow one");
        return Finding::warn("power-mode", seen, &[&query]);
    };
    let Some(faster) = faster else {
        return Finding::ok("power-mode", format!("{name} (mode {id})"));
    };
    let NamedMode { id: fastest, name: best } = faster;
    let set = format!("sudo nvpmodel -m {fastest}   # {best}, stays after a reboot, for which nvpmodel may ask");
    let seen = format!("{name} (mode {id}); {best} is faster, often by half");
    Finding::warn("power-mode", seen, &[&on_host(platform, &set), WARMER])
}

/// A unit that fixes the clocks at every boot, once the power mode is set, which says what they are fixed at.
const CLOCKS_UNIT: &str = "printf '[Unit]\\nAfter=nvpmodel.service\\n[Service]\\nType=oneshot\\nExecStart=/usr/bin/jetson_clocks\\n[Install]\\n\
                           WantedBy=multi-user.target\\n' | sudo tee /etc/systemd/system/jetson-clocks.service && sudo systemctl \
                           enable jetson-clocks   # at every boot";

fn clocks(examination: &Examination) -> Finding {
    let (root, platform) = (examination.root, &examination.platform);
    let show = on_host(platform, "sudo jetson_clocks --show");
    let devices = root.list("/sys/class/devfreq");
    let is_gpu = |name: &&String| ["gpu", "gv11b", "ga10b", "gb10b"].iter().any(|part| name.contains(part));
    let Some(device) = devices.iter().find(is_gpu) else {
        return match root.live || root.exists("/sys/class") {
            true => Finding::warn("clocks", "the GPU's clock is not visible", &[&show]),
            false => Finding::ok("clocks", "the GPU's clock is not visible (an image without /sys)"),
        };
    };
    let hertz = |file: &str| {
        root.read(&format!("/sys/class/devfreq/{device}/{file}")).and_then(|text| text.parse::<u64>().ok())
    };
    match (hertz("min_freq"), hertz("max_freq")) {
        (Some(min), Some(max)) if min == max => Finding::ok("clocks", format!("GPU locked at {} MHz", max / 1_000_000)),
        (Some(min), Some(max)) => Finding::warn(
            "clocks",
            format!(
                "the GPU's clock varies between {} and {} MHz: first answers are slow, measurements vary",
                min / 1_000_000,
                max / 1_000_000
            ),
            &[&on_host(platform, "sudo jetson_clocks   # until the next boot"), &on_host(platform, CLOCKS_UNIT)],
        ),
        _ => Finding::warn("clocks", "the GPU's clock limits are not readable", &[&show]),
    }
}

/// A thermal zone of Linux (Documentation/ABI/testing/sysfs-class-thermal), in thousandths of a degree Celsius.
struct ThermalZone {
    name: String,
    temperature: i64,
    /// Where it begins to throttle: its lowest passive trip point.
    limit: Option<i64>,
}

/// Most trip points of a zone that are read.
const TRIP_POINTS: u32 = 16;
/// What sensors show: less or more is one that is off (-256 °C on a Jetson).
const PLAUSIBLE: std::ops::Range<i64> = -40_000..200_000;

fn zone(root: &Root, name: &str) -> Option<ThermalZone> {
    let read = |file: &str| root.read(&format!("/sys/class/thermal/{name}/{file}"));
    let temperature = read("temp")?.parse::<i64>().ok().filter(|temperature| PLAUSIBLE.contains(temperature))?;
    let passive = (0..TRIP_POINTS)
        .filter(|point| read(&format!("trip_point_{point}_type")).is_some_and(|kind| kind == "passive"));
    let limits = passive.filter_map(|point| read(&format!("trip_point_{point}_temp"))?.parse::<i64>().ok());
    let limit = limits.filter(|limit| (1..PLAUSIBLE.end).contains(limit)).min();
    Some(ThermalZone { name: read("type")?, temperature, limit })
}

/// Whether the board is so hot that it throttles, which nothing else here would explain.
fn heat(examination: &Examination) -> Option<Finding> {
    let root = examination.root;
    let names = root.list("/sys/class/thermal").into_iter().filter(|name| name.starts_with("thermal_zone"));
    let zones: Vec<ThermalZone> = names.filter_map(|name| zone(root, &name)).collect();
    let degrees = |thousandths: i64| thousandths / 1000;
    let throttled = zones.iter().find_map(|zone| Some((zone, zone.limit.filter(|limit| zone.temperature >= *limit)?)));
    if let Some((zone, limit)) = throttled {
        let seen = format!(
            "{} at {} °C, throttled from {} °C: slower than its power mode says",
            zone.name,
            degrees(zone.temperature),
            degrees(limit)
        );
        let fan = on_host(&examination.platform, "sudo jetson_clocks --fan   # full speed, until the next boot");
        return Some(Finding::warn("heat", seen, &[&fan, "clean or enlarge the cooler, or take a lower power mode"]));
    }
    let hottest = zones.iter().max_by_key(|zone| zone.temperature)?;
    let limit = zones.iter().filter_map(|zone| zone.limit).min();
    let limit = limit.map(|limit| format!(", throttles from {} °C", degrees(limit))).unwrap_or_default();
    Some(Finding::ok("heat", format!("{} at {} °C{limit}", hottest.name, degrees(hottest.temperature))))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::{Level, examine};
    use super::*;

    fn found(id: &str, files: &[(&str, &str)]) -> Finding {
        let image = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = image.path().join(path);
            fs::create_dir_all(path.parent().unwrap_or(Path::new(""))).unwrap();
            fs::write(path, text).unwrap();
        };
        write("etc/nv_tegra_release", "# R36 (release), REVISION: 4.4, GCID: 1");
        files.iter().for_each(|(path, text)| write(path, text));
        examine(&Root::at(image.path())).findings.into_iter().find(|finding| finding.id == id).unwrap()
    }

    /// Ids are in no order, names are.
    #[test]
    fn a_slower_mode_than_the_fastest_is_told() {
        let conf = |names: &[(u32, &str)]| -> String {
            let lines =
                names.iter().map(|(id, name)| format!("< POWER_MODEL ID={id} NAME={name} >\nCPU_ONLINE CORE_0 1\n"));
            format!("# < POWER_MODEL ID=9 NAME=MAXN_SUPER >\n{}", lines.collect::<String>())
        };
        let super_nano = conf(&[(0, "15W"), (1, "25W"), (2, "MAXN_SUPER"), (3, "7W")]);
        let nano = conf(&[(0, "15W"), (1, "7W")]);
        let agx = conf(&[(0, "MAXN"), (1, "MODE_15W"), (2, "MODE_30W"), (3, "MODE_50W")]);
        let cases = [
            (&super_nano, "pmode:0002", Level::Ok, "MAXN_SUPER (mode 2)"),
            (&super_nano, "pmode:0001", Level::Warn, "25W (mode 1); MAXN_SUPER is faster"),
            (&nano, "pmode:0000", Level::Ok, "15W (mode 0)"),
            (&nano, "pmode:0001", Level::Warn, "7W (mode 1); 15W is faster"),
            (&agx, "pmode:0003 fmode:quiet", Level::Warn, "MODE_50W (mode 3); MAXN is faster"),
            (&agx, "pmode:0007", Level::Warn, "mode 7, which /etc/nvpmodel.conf does not name"),
            (&agx, "pmode:x", Level::Warn, "unknown"),
        ];
        for (conf, status, level, said) in cases {
            let finding = found("power-mode", &[("etc/nvpmodel.conf", conf), ("var/lib/nvpmodel/status", status)]);
            assert_eq!((finding.level, finding.seen.contains(said)), (level, true), "{status}: {finding:?}");
        }
        let unnamed = found("power-mode", &[("var/lib/nvpmodel/status", "pmode:0002")]);
        assert_eq!(unnamed.level, Level::Warn, "a mode without a name is not taken for the fastest");
    }

    #[test]
    fn heat_is_told_where_the_board_throttles() {
        let zone = |temperature: &str| {
            [
                ("sys/class/thermal/thermal_zone0/type", "cv0-thermal".to_owned()),
                ("sys/class/thermal/thermal_zone0/temp", "-256000\n".to_owned()),
                ("sys/class/thermal/thermal_zone8/type", "tj-thermal\n".to_owned()),
                ("sys/class/thermal/thermal_zone8/temp", temperature.to_owned()),
                ("sys/class/thermal/thermal_zone8/trip_point_0_type", "critical\n".to_owned()),
                ("sys/class/thermal/thermal_zone8/trip_point_0_temp", "104500\n".to_owned()),
                ("sys/class/thermal/thermal_zone8/trip_point_1_type", "passive\n".to_owned()),
                ("sys/class/thermal/thermal_zone8/trip_point_1_temp", "99000\n".to_owned()),
            ]
        };
        for (temperature, level, said) in [
            ("54343\n", Level::Ok, "tj-thermal at 54 °C, throttles from 99 °C"),
            ("99500\n", Level::Warn, "tj-thermal at 99 °C, throttled from 99 °C"),
        ] {
            let zone = zone(temperature);
            let files: Vec<(&str, &str)> = zone.iter().map(|(path, text)| (*path, text.as_str())).collect();
            let finding = found("heat", &files);
            assert_eq!((finding.level, finding.seen.contains(said)), (level, true), "{finding:?}");
        }
    }

    /// What a remedy changes is there after the next boot, or it says that it is not.
    #[test]
    fn remedies_outlive_a_reboot_or_say_so() {
        let clock = "sys/class/devfreq/17000000.gpu";
        let (min, max) = (format!("{clock}/min_freq"), format!("{clock}/max_freq"));
        let finding = found("clocks", &[(&min, "306000000\n"), (&max, "930000000\n")]);
        let [now, boot] = &finding.mend[..] else { panic!("{finding:?}") };
        assert!(now.contains("until the next boot") && boot.contains("systemctl enable"), "{finding:?}");
        // The unit as a shell writes it.
        let written = boot.split('|').next().unwrap();
        let output = std::process::Command::new("sh").args(["-c", written]).output().unwrap();
        let unit = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            unit,
            "[Unit]\nAfter=nvpmodel.service\n[Service]\nType=oneshot\nExecStart=/usr/bin/jetson_clocks\n[Install]\n\
             WantedBy=multi-user.target\n"
        );
    }
}
