//! `monitor`, and the sensors that it and the server read, on the files of boards (`tests/data/sensors`).
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use support::{output, repository, watus};
use watus_build::sensors::tegrastats::{Dialect, line, parse};
use watus_build::sensors::{NamedMode, Readings, Sensors};
use watus_build::system_root::Root;

/// Writes a board's files below `folder`.
fn unpack(board: &str, folder: &Path) {
    let text = fs::read_to_string(repository().join("tests/data/sensors").join(format!("{board}.txt"))).unwrap();
    for (path, held) in text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split_once(": ").unwrap()) {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, held.replace("\\n", "\n").replace("\\0", "\0")).unwrap();
    }
}

fn board(name: &str) -> (tempfile::TempDir, Sensors) {
    let folder = tempfile::tempdir().unwrap();
    unpack(name, folder.path());
    let sensors = Sensors::new(Root::at(folder.path()));
    (folder, sensors)
}

fn temperature(readings: &Readings, name: &str) -> Option<f64> {
    readings.temperatures.iter().find(|zone| zone.name == name).unwrap().celsius
}

#[test]
fn a_slow_mode_on_jetpack_5() {
    let (_folder, mut sensors) = board("jetpack-5.1.2");
    assert_eq!((sensors.board().as_deref(), sensors.l4t().as_deref()), (Some("Jetson AGX Orin"), Some("35.4.1")));
    let seen = sensors.read();
    let gpu = &seen.gpus[0];
    assert_eq!((gpu.name.as_str(), gpu.load_percent, gpu.clock_mhz()), ("ga10b", Some(0.0), Some(114)));
    assert_eq!((gpu.clock_limits_mhz, gpu.highest_clock_mhz), (Some((114, 612)), Some(1300)));
    assert_eq!(gpu.memory_used_bytes, Some(500_000 << 10));
    assert_eq!(seen.emc.as_ref().unwrap().clock_mhz, Some(2133));
    assert_eq!(
        (seen.cpus.len(), seen.cpus[8].is_none(), seen.cpus[0].as_ref().unwrap().clock_mhz),
        (12, true, Some(1728))
    );
    let block = seen.memory.as_ref().unwrap().largest_free_block.unwrap();
    assert_eq!(block.count, 466);
    assert_eq!(seen.swap.unwrap().used_bytes, 19_456 << 10);
    assert_eq!(
        (temperature(&seen, "CPU"), temperature(&seen, "GPU"), temperature(&seen, "Tboard")),
        (Some(52.562), None, Some(38.0))
    );
    // The memory's rail is part of VIN_SYS_5V0; what is not connected and the sum of shunts are no rails.
    let rails: Vec<_> = seen.rails.iter().map(|rail| (rail.name.as_str(), rail.milliwatts)).collect();
    assert_eq!(rails, [("VDD_GPU_SOC", 2388), ("VDD_CPU_CV", 796), ("VIN_SYS_5V0", 3980), ("VDDQ_VDD2_1V8AO", 477)]);
    assert_eq!(seen.power_milliwatts, Some(2388 + 796 + 3980));
    let mode = seen.power_mode.unwrap();
    assert_eq!((mode.name.as_deref(), mode.faster), (Some("MODE_30W"), Some(NamedMode { id: 0, name: "MAXN".into() })));
    let fan = seen.fan.unwrap();
    assert_eq!((fan.percent, fan.rpm), (Some(26.0), Some(1420)));
    // Low clocks of cpufreq and devfreq are no throttling.
    assert_eq!(seen.throttling.unwrap().causes, Vec::<String>::new());
}

#[test]
fn a_hot_board_on_jetpack_6() {
    let (folder, mut sensors) = board("jetpack-6.2.1");
    let seen = sensors.read();
    assert_eq!((seen.gpus[0].load_percent, seen.gpus[0].highest_clock_mhz), (Some(87.3), Some(1020)));
    assert_eq!(seen.emc, None);
    assert_eq!((temperature(&seen, "gpu"), temperature(&seen, "cv0")), (Some(88.625), None));
    assert_eq!(seen.hottest().unwrap().name, "tj");
    // VDD_IN has all of it.
    assert_eq!(seen.power_milliwatts, Some(15_252));
    let throttling = seen.throttling.unwrap();
    assert_eq!((throttling.causes, throttling.over_current_events), (vec!["gpu-throttle-alert".to_owned()], Some(41)));
    let blocks = seen.memory.unwrap().largest_free_block.unwrap();
    assert_eq!(blocks.count, 13);
    // One more over-current event, half of the power, a busier core.
    let change = |path: &str, held: &str| fs::write(folder.path().join(path), held).unwrap();
    change("sys/class/hwmon/hwmon3/oc3_event_cnt", "42\n");
    change("sys/class/thermal/cooling_device2/cur_state", "0\n");
    change("sys/class/hwmon/hwmon1/curr1_input", "1550\n");
    change("proc/stat", "cpu0 175 0 50 875 0 0 0 0 0 0\n");
    let seen = sensors.read();
    let throttling = seen.throttling.unwrap();
    assert_eq!((throttling.causes, throttling.over_current_events), (vec!["oc3".to_owned()], Some(42)));
    let input = &seen.rails[0];
    assert_eq!((input.milliwatts, input.mean_milliwatts, input.max_milliwatts), (7626, Some(11_439), Some(15_252)));
    assert_eq!(seen.cpus[0].as_ref().unwrap().load_percent, Some(75.0));
    assert_eq!(sensors.read().throttling.unwrap().causes, Vec::<String>::new());
}

#[test]
fn jetpack_7_on_orin_and_thor() {
    let (_folder, mut sensors) = board("jetpack-7.2");
    let seen = sensors.read();
    assert_eq!(seen.gpus[0].clock_limits_mhz, Some((1300, 1300)));
    assert_eq!(seen.power_mode.unwrap().faster, None);
    assert_eq!((seen.throttling.unwrap().over_current_events, seen.fan.unwrap().rpm), (Some(17), Some(2140)));
    let (_folder, mut sensors) = board("thor-7.0");
    let seen = sensors.read();
    // Thor's video engines are not its GPU; its load is the driver's to tell.
    assert_eq!((seen.gpus.len(), seen.gpus[0].clock_mhz(), seen.gpus[0].load_percent), (1, Some(1575), None));
    assert_eq!(seen.emc.unwrap().clock_mhz, Some(4266));
    assert_eq!((seen.rails.last().unwrap().name.as_str(), seen.power_milliwatts), ("VIN", Some(28_906)));
    assert_eq!((seen.power_mode, seen.fan, seen.throttling), (None, None, None));
}

/// Files that a broken or hostile board might have.
#[test]
fn nonsense_in_files_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let long = "9".repeat(400);
    for (path, held) in [
        ("proc/meminfo", "MemTotal: 99999999999999999999 kB\nMemAvailable: 1 kB"),
        ("proc/stat", "cpu0\ncpu1 x y\ncpu99999 1 2 3 4"),
        ("sys/devices/system/cpu/present", long.as_str()),
        ("sys/class/devfreq/x.gpu/cur_freq", long.as_str()),
        ("sys/class/devfreq/x.gpu/device/load", "-5"),
        ("sys/class/thermal/thermal_zone0/type", "tj-thermal"),
        ("sys/class/thermal/thermal_zone0/temp", "99999999999"),
        ("sys/class/thermal/thermal_zone18446744073709551616/type", "odd"),
        ("sys/class/hwmon/hwmon0/name", "ina3221"),
        ("sys/class/hwmon/hwmon0/in1_input", "18446744073709551615"),
        ("sys/class/hwmon/hwmon0/curr1_input", "2"),
        ("var/lib/nvpmodel/status", "pmode:-1"),
    ] {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, held).unwrap();
    }
    let seen = Sensors::new(Root::at(folder.path())).read();
    assert_eq!((seen.memory, seen.cpus.len(), seen.rails.len(), seen.power_mode), (None, 0, 0, None));
    assert_eq!((seen.gpus[0].clock_mhz(), seen.gpus[0].load_percent), (None, None));
    assert_eq!((seen.temperatures.len(), seen.temperatures[0].celsius), (1, None));
}

/// The command on a board: JSON lines, lines of tegrastats, plain lines.
#[test]
fn the_command_prints_what_is_asked_for() {
    let scratch = tempfile::tempdir().unwrap();
    for (name, release, dialect) in [
        ("jetpack-5.1.2", "35.4.1", Dialect::R35),
        ("jetpack-6.2.1", "36.4.4", Dialect::R36),
        ("jetpack-7.2", "39.2.0", Dialect::R39),
    ] {
        let (folder, mut sensors) = board(name);
        let monitor = |arguments: &[&str]| {
            let mut command = watus(scratch.path());
            // Nobody serves there.
            command.args(["monitor", "--interval", "0.1", "-n", "2", "--root"]).arg(folder.path()).args(arguments);
            let (code, stdout, stderr) = output(&mut command);
            assert_eq!((code, stderr.as_str()), (0, ""), "{name} {arguments:?}");
            let lines: Vec<String> = stdout.lines().map(str::to_owned).collect();
            assert_eq!(lines.len(), 2, "{name} {arguments:?}: {stdout}");
            lines
        };
        let told: Value = serde_json::from_str(&monitor(&["--json", "--server", "http://127.0.0.1:9"])[1]).unwrap();
        let own = serde_json::to_value(sensors.read()).unwrap();
        for field in ["gpus", "temperatures", "power_milliwatts", "power_mode", "fan", "memory"] {
            assert_eq!(told[field], own[field], "{name} {field}");
        }
        assert_eq!((&told["l4t"], told["time"].as_f64().unwrap() > 1.7e9), (&json!(release), true));
        assert!(told["server"]["error"].is_string() && told["server"]["slots"].is_null(), "{told}");
        let printed = &monitor(&["--tegrastats"])[1];
        let (_, body) = printed.split_at("12-31-2026 12:00:00 ".len());
        assert_eq!(line(&parse(printed).unwrap(), dialect), body);
        assert!(monitor(&["--tegrastats=7.2"])[1].contains("mW/"), "{name}");
        let plain = &monitor(&["--server", "http://127.0.0.1:9"])[1];
        assert!(plain.contains("GPU ") && plain.contains("°C") && plain.contains(" W, "), "{plain}");
    }
}

#[test]
fn lines_of_tegrastats_are_a_source() {
    let scratch = tempfile::tempdir().unwrap();
    let text =
        "RAM 1/2MB (lfb 1x1MB) CPU [5%@729,off] EMC_FREQ 3%@2133 GR3D_FREQ 7%@[114] tj@50.5C VDD_IN 5000mW/4000mW";
    let monitor = |arguments: &[&str], input: String| {
        let mut command = watus(scratch.path());
        command.args(["monitor", "--source", "stdin"]).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It may end before it has read all.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, stdout, stderr) = monitor(&["--tegrastats=6"], format!("odd\n{text}\n07-31-2026 14:58:05 {text}\n"));
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    let bodies: Vec<&str> = stdout.lines().map(|line| &line["12-31-2026 12:00:00 ".len()..]).collect();
    assert_eq!(bodies, [text, text]);
    let (_, stdout, _) = monitor(&["--json", "-n", "1"], format!("{text}\n{text}\n"));
    let told: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&told["emc"]["load_percent"], &told["cpus"][1], &told["board"]),
        (&json!(3.0), &Value::Null, &Value::Null)
    );
    let cases: [(&[&str], &str, i32, &str); 5] = [
        (&["--json"], "RAM\nUnknown command\n", 1, "the input holds no line of tegrastats"),
        (&["--json", "--interval", "2"], text, 1, "--interval has no meaning with --source stdin"),
        (&["--tegrastats"], text, 1, "name the JetPack whose format is wanted"),
        (&["--tegrastats", "--json"], text, 2, "cannot be used with"),
        (&["--interval", "0"], text, 2, "give seconds from 0.1 to 3600"),
    ];
    for (arguments, input, code, said) in cases {
        let (ended, _, stderr) = monitor(arguments, input.to_owned());
        assert!(ended == code && stderr.contains(said), "{arguments:?}: {ended} {stderr}");
    }
}

/// A tegrastats that is started, and is ended with the command.
#[test]
fn a_tegrastats_is_started_and_ended() {
    use std::os::unix::fs::PermissionsExt as _;
    let scratch = tempfile::tempdir().unwrap();
    let program = scratch.path().join("tegrastats");
    let script =
        "#!/bin/sh\necho $$ > pid\nwhile true; do echo \"RAM 1/2MB CPU [5%@729] VDD_IN $2mW/1mW\"; sleep 0.05; done\n";
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", scratch.path().display(), std::env::var("PATH").unwrap());
    let mut command = watus(scratch.path());
    command.env("PATH", path).args(["monitor", "--source", "tegrastats", "-i", "0.3", "-n", "2", "--json"]);
    let (code, stdout, stderr) = output(&mut command);
    assert_eq!(code, 0, "{stderr}");
    let told: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    // It is asked for the interval, in milliseconds.
    assert_eq!(told["power_milliwatts"], 300);
    let pid = fs::read_to_string(scratch.path().join("pid")).unwrap();
    assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists(), "tegrastats runs on");
    let mut command = watus(scratch.path());
    command.env("PATH", "/nowhere").args(["monitor", "--source", "tegrastats", "-n", "1"]);
    let (code, _, stderr) = output(&mut command);
    assert!(code == 1 && stderr.contains("cannot start tegrastats") && stderr.contains("--source stdin"), "{stderr}");
}

/// Ctrl-C ends it, well where no number was asked for.
#[test]
fn an_interrupt_ends_it() {
    let (folder, _) = board("jetpack-7.2");
    let cases: [(&[&str], i32); 2] = [(&["--json"], 0), (&["--json", "-n", "1000"], 130)];
    for (arguments, code) in cases {
        let mut command = watus(folder.path());
        command.args(["monitor", "-i", "0.1", "--root"]).arg(folder.path()).args(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // Kept open: a closed pipe would end it too.
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert!(line.starts_with('{'), "{line}");
        let pid = child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(code), "{arguments:?}");
        drop(out);
    }
}
