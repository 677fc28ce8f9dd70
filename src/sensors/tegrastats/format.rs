//! Writes readings as a line of tegrastats.

use std::fmt::Write as _;

use super::super::{CoreReading, EngineReading, GpuReading, MemoryReading, Rail, Readings, SwapReading, Temperature};
use super::Dialect;

/// The line of a release for these readings, without the date before it. What was not read is left out.
pub fn line(readings: &Readings, dialect: Dialect) -> String {
    let mut words = Vec::new();
    words.extend(readings.memory.as_ref().map(memory));
    words.extend(readings.swap.as_ref().map(swap));
    if !readings.cpus.is_empty() {
        let cores: Vec<String> = readings.cpus.iter().map(core).collect();
        words.push(format!("CPU [{}]", cores.join(",")));
    }
    if let Some(emc) = &readings.emc {
        let clock = emc.clock_mhz.map(|clock| format!("@{clock}"));
        words.extend(named("EMC_FREQ", emc.load_percent, clock.as_deref()));
    }
    words.extend(readings.gpus.first().and_then(gpu));
    words.extend(readings.engines.iter().map(|one| engine(one, dialect)));
    words.extend(readings.temperatures.iter().filter_map(|zone| temperature(zone, dialect)));
    words.extend(readings.rails.iter().map(|one| rail(one, dialect)));
    words.join(" ")
}

fn megabytes(bytes: u64) -> u64 {
    bytes >> 20
}

fn memory(memory: &MemoryReading) -> String {
    let mut text = format!("RAM {}/{}MB", megabytes(memory.used_bytes), megabytes(memory.total_bytes));
    if let Some(blocks) = memory.largest_free_block {
        let size = match blocks.bytes {
            bytes if bytes < 1 << 20 => format!("{}kB", bytes >> 10),
            bytes => format!("{}MB", megabytes(bytes)),
        };
        let _ = write!(text, " (lfb {}x{size})", blocks.count);
    }
    text
}

fn swap(swap: &SwapReading) -> String {
    let [used, total, cached] = [swap.used_bytes, swap.total_bytes, swap.cached_bytes].map(megabytes);
    format!("SWAP {used}/{total}MB (cached {cached}MB)")
}

/// `NAME 3%@2133` of what is known of it.
fn named(name: &str, load: Option<f64>, clock: Option<&str>) -> Option<String> {
    let load = load.map(|load| format!("{load:.0}%"));
    let value = format!("{}{}", load.unwrap_or_default(), clock.unwrap_or_default());
    (!value.is_empty()).then(|| format!("{name} {value}"))
}

fn core(core: &Option<CoreReading>) -> String {
    let Some(CoreReading { load_percent, clock_mhz }) = core else { return "off".to_owned() };
    let clock = clock_mhz.map(|clock| format!("@{clock}")).unwrap_or_default();
    format!("{:.0}%{clock}", load_percent.unwrap_or(0.0))
}

fn gpu(gpu: &GpuReading) -> Option<String> {
    let clocks: Vec<String> = gpu.clocks_mhz.iter().map(u64::to_string).collect();
    let clocks = (!clocks.is_empty()).then(|| format!("@[{}]", clocks.join(",")));
    named("GR3D_FREQ", gpu.load_percent, clocks.as_deref())
}

fn engine(engine: &EngineReading, dialect: Dialect) -> String {
    let EngineReading { name, on, load_percent, clock_mhz } = engine;
    match (on, load_percent, clock_mhz) {
        (true, Some(load), Some(clock)) => format!("{name} {load:.0}%@{clock}"),
        (true, Some(load), None) => format!("{name} {load:.0}%"),
        (true, None, Some(clock)) if dialect >= Dialect::R38 && name.ends_with("_FREQ") => format!("{name} @{clock}"),
        (true, None, Some(clock)) => format!("{name} {clock}"),
        _ => format!("{name} off"),
    }
}

fn temperature(zone: &Temperature, dialect: Dialect) -> Option<String> {
    let Temperature { name, celsius, max_celsius } = zone;
    let Some(celsius) = celsius else { return (dialect == Dialect::R35).then(|| format!("{name}@-256C")) };
    let most = max_celsius.filter(|_| dialect >= Dialect::R39).map(|most| format!("/{most}C"));
    Some(format!("{name}@{celsius}C{}", most.unwrap_or_default()))
}

fn rail(rail: &Rail, dialect: Dialect) -> String {
    let Rail { name, milliwatts, mean_milliwatts, max_milliwatts } = rail;
    let most = max_milliwatts.filter(|_| dialect >= Dialect::R39).map(|most| format!("/{most}mW"));
    format!("{name} {milliwatts}mW/{}mW{}", mean_milliwatts.unwrap_or(*milliwatts), most.unwrap_or_default())
}
