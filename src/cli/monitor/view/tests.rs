//! The view of a board that is at work, hot, and in a slow mode; of one that tells little; in small and large terminals.

use super::super::server::ServerReading;
use super::{History, Shown, lines, plain};
use crate::sensors::tegrastats::parse;
use crate::sensors::{FanReading, GpuReading, ModeInUse, NamedMode, Readings, Throttling};

const LINE: &str = "RAM 6982/7620MB (lfb 5x1MB) SWAP 2640/16384MB (cached 202MB) CPU [97%@1984,5%@1984,0%@729,off] EMC_FREQ 18%@3199 \
                    GR3D_FREQ 84%@[713] NVDEC 40%@115 VIC off cpu@65.562C cv0@-256C gpu@88.5C tj@88.5C \
                    VDD_IN 17946mW/15710mW VDD_CPU_GPU_CV 8896mW/7585mW VDD_SOC 3923mW/3515mW";

/// A busy Orin Nano.
fn busy() -> Readings {
    let mut readings = parse(LINE).unwrap();
    readings.gpus[0].highest_clock_mhz = Some(1020);
    readings.throttling =
        Some(Throttling { causes: vec!["gpu-throttle-alert".into(), "oc3".into()], over_current_events: Some(41) });
    let faster = Some(NamedMode { id: 2, name: "MAXN_SUPER".to_owned() });
    readings.power_mode = Some(ModeInUse { id: 0, name: Some("15W".to_owned()), faster });
    readings.fan = Some(FanReading { percent: Some(100.0), rpm: Some(4980) });
    readings
}

fn serving() -> ServerReading {
    ServerReading {
        url: "http://127.0.0.1:8080".to_owned(),
        tokens_per_second: Some(41.25),
        prompt_tokens_per_second: Some(210.0),
        requests_running: Some(2),
        requests_waiting: Some(3),
        slots: Some(4),
        ..ServerReading::default()
    }
}

/// A history in which the load went up and the server came later.
fn history() -> History {
    let mut history = History::default();
    for step in 0..12_u32 {
        let mut readings = busy();
        readings.gpus[0].load_percent = Some(f64::from(step) * 9.0);
        readings.power_milliwatts = Some(u64::from(step) * 1000);
        history.push(&readings, (step >= 6).then(serving).as_ref());
    }
    history
}

fn drawn(readings: &Readings, server: Option<&ServerReading>, size: (usize, usize)) -> Vec<String> {
    let board = Some("NVIDIA Jetson Orin Nano Developer Kit Super");
    lines(&Shown { board, l4t: Some("36.4.4"), clock: "12:34:56", readings, server, history: &history() }, size)
}

#[test]
fn a_busy_board_in_a_wide_terminal() {
    let seen = drawn(&busy(), Some(&serving()), (110, 40)).join("\n");
    assert_eq!(seen, WIDE);
}

/// At the ends of lines there is nothing, unless a curve ends there.
const WIDE: &str = "\
NVIDIA Jetson Orin Nano Developer Kit Super · L4T 36.4.4 · 15W (MAXN_SUPER is faster)                 12:34:56

GPU    █████████████████···  84 %  713 of 1020 MHz  ▁▂▂▃▄▄▅▅▆▇▇█
EMC    ████················  18 %  3199 MHz
CPU    ███████·············  34 %  4 cores, 1 off
        0 █  97% 1984    1 ▁   5% 1984    2 ▁   0% 729     3   off
RAM    ██████████████████··  92 %  7.3 GB of 8.0 GB, largest free 5 x 1 MiB  ▇▇▇▇▇▇▇▇▇▇▇▇
swap   ███·················  16 %  2.8 GB of 17.2 GB
heat   cpu 65.6  gpu 88.5  tj 88.5 °C
power  17.9 W  (VDD_IN 17.9  VDD_CPU_GPU_CV 8.9  VDD_SOC 3.9)  ▁▂▂▃▄▄▅▅▆▇▇█
clocks LOWERED by gpu-throttle-alert, oc3; 41 over-current events since the start
fan    100 %, 4980 rpm
others NVDEC 40 %

server http://127.0.0.1:8080
       41.2 tok/s, prompts 210 tok/s, 2 of 4 slots, 3 waiting  ██████";

#[test]
fn no_line_is_wider_and_no_view_higher_than_the_terminal() {
    for size in [(80, 24), (40, 10), (20, 3), (1, 1), (0, 0), (400, 100)] {
        let seen = drawn(&busy(), Some(&serving()), size);
        assert!(seen.len() <= size.1, "{size:?}: {} lines", seen.len());
        let widest = seen.iter().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(widest <= size.0, "{size:?}: {widest} columns");
    }
    // What is cut off shows.
    assert!(drawn(&busy(), None, (40, 10))[0].contains("… 12:34:56"), "{:?}", drawn(&busy(), None, (40, 10)));
}

#[test]
fn what_is_not_told_is_not_shown() {
    let seen = drawn(&Readings::default(), None, (80, 24));
    assert_eq!(seen.len(), 2, "{seen:?}");
    let missing =
        ServerReading { url: "http://robot:8080".into(), error: Some("timeout".into()), ..ServerReading::default() };
    let (readings, history) = (Readings::default(), History::default());
    let server = Some(&missing);
    let shown = Shown { board: None, l4t: None, clock: "12:34:56", readings: &readings, server, history: &history };
    assert_eq!(plain(&shown), "12:34:56  no server: timeout");
    assert!(lines(&shown, (80, 24)).contains(&"server http://robot:8080".to_owned()));
}

/// Two GPUs of a server, many cores, no rails.
#[test]
fn many_gpus_and_cores_fit() {
    let gpu = GpuReading {
        load_percent: Some(50.0),
        clocks_mhz: vec![1980],
        memory_used_bytes: Some(40_000_000_000),
        memory_total_bytes: Some(80_000_000_000),
        ..GpuReading::default()
    };
    let core = busy().cpus[0].clone();
    let readings = Readings { gpus: vec![gpu.clone(), gpu], cpus: vec![core; 192], ..Readings::default() };
    let seen = drawn(&readings, None, (80, 24));
    assert!(seen[2].starts_with("GPU 0  ██████████·········· "), "{seen:#?}");
    assert!(seen[3].contains("50 %  1980 MHz, 40.0 GB of 80.0 GB"), "{seen:#?}");
    assert!(seen[4].contains("97 %  192 cores"), "{seen:#?}");
    assert_eq!(seen[5].trim_start().chars().count(), 73, "{seen:#?}");
    assert_eq!(seen.len(), 8, "{seen:#?}");
}

#[test]
fn one_line_says_what_matters() {
    let (readings, server) = (busy(), serving());
    let shown = Shown {
        board: None,
        l4t: None,
        clock: "12:34:56",
        readings: &readings,
        server: Some(&server),
        history: &History::default(),
    };
    let wanted = "12:34:56  GPU 84 % 713 MHz, RAM 7.3 GB of 8.0 GB, tj 88.5 °C, 17.9 W, \
                  throttled: gpu-throttle-alert, oc3, 41.2 tok/s, prompts 210 tok/s, 2 of 4 slots, 3 waiting";
    assert_eq!(plain(&shown), wanted);
}
