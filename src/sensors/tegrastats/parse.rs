//! Reads a line of tegrastats. Words that are not known are passed over, as releases add some; so are values that make no sense.

use super::super::{
    CoreReading, EmcReading, EngineReading, FreeBlocks, GpuReading, MemoryReading, Rail, Readings, SwapReading,
    Temperature,
};

/// Longest line in bytes; real ones have below 1000.
const LONGEST: usize = 16 << 10;
/// Most values of a list.
const VALUES: usize = 4096;

/// Reads a line; `None` if it is none of tegrastats'.
pub fn parse(line: &str) -> Option<Readings> {
    if line.len() > LONGEST {
        return None;
    }
    let mut readings = Readings::default();
    let words = words(line);
    let mut rest = words.iter().map(String::as_str).peekable();
    while let Some(word) = rest.next() {
        if let Some(zone) = temperature(word) {
            readings.temperatures.push(zone);
            continue;
        }
        // Names stand before their values.
        let Some(value) = rest.peek().copied() else { break };
        let taken = match word {
            "RAM" => pair(value).map(|(used_bytes, total_bytes)| {
                readings.memory = Some(MemoryReading { total_bytes, used_bytes, largest_free_block: None });
            }),
            "(lfb" => free_blocks(value).zip(readings.memory.as_mut()).map(|(blocks, memory)| {
                memory.largest_free_block = Some(blocks);
            }),
            "SWAP" => pair(value).map(|(used_bytes, total_bytes)| {
                readings.swap = Some(SwapReading { total_bytes, used_bytes, cached_bytes: 0 });
            }),
            "(cached" => size(value.trim_end_matches(')')).zip(readings.swap.as_mut()).map(|(bytes, swap)| {
                swap.cached_bytes = bytes;
            }),
            "CPU" => cores(value).map(|cores| readings.cpus = cores),
            "EMC_FREQ" | "EMC" => usage(value).map(|(load_percent, clocks)| {
                readings.emc = Some(EmcReading { load_percent, clock_mhz: clocks.first().copied() });
            }),
            "GR3D_FREQ" | "GR3D" => usage(value).map(|(load_percent, clocks_mhz)| {
                readings.gpus = vec![GpuReading { load_percent, clocks_mhz, ..GpuReading::default() }];
            }),
            // AGX Orin's second cluster, on the first releases of JetPack 5.
            "GR3D2_FREQ" => usage(value).zip(readings.gpus.first_mut()).map(|((_, clocks), gpu)| {
                gpu.clocks_mhz.extend(clocks);
            }),
            name if is_name(name) => match rail(name, value) {
                // NC: not connected.
                Some(rail) => {
                    readings.rails.extend((name != "NC").then_some(rail));
                    Some(())
                }
                None => engine(name, value).map(|engine| readings.engines.push(engine)),
            },
            _ => None,
        };
        if taken.is_some() {
            rest.next();
        }
    }
    let known = readings.memory.is_some() || !readings.cpus.is_empty() || !readings.gpus.is_empty();
    readings.power_milliwatts = super::super::board::whole(&readings.rails);
    known.then_some(readings)
}

/// Words between blanks; what square brackets hold is one, also with blanks in it.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut open = false;
    for word in line.split_whitespace() {
        match words.last_mut().filter(|_| open) {
            Some(last) => last.push_str(word),
            None => words.push(word.to_owned()),
        }
        open = match (word.rfind('['), word.rfind(']')) {
            (Some(begin), end) => end.is_none_or(|end| end < begin),
            (None, Some(_)) => false,
            (None, None) => open,
        };
    }
    words
}

fn is_name(word: &str) -> bool {
    word.starts_with(|first: char| first.is_ascii_uppercase())
        && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

/// `220MB`, `512kB`, in bytes.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// `18207/62841MB`, in bytes.
fn pair(text: &str) -> Option<(u64, u64)> {
    let (used, total) = text.split_once('/')?;
    let unit = total.trim_start_matches(|digit: char| digit.is_ascii_digit());
    Some((size(&format!("{used}{unit}"))?, size(total)?))
}

/// `466x4MB)`.
fn free_blocks(text: &str) -> Option<FreeBlocks> {
    let (count, bytes) = text.trim_end_matches(')').split_once('x')?;
    Some(FreeBlocks { bytes: size(bytes)?, count: count.parse().ok()? })
}

/// `34`, of `34%`.
fn percent(text: &str) -> Option<f64> {
    let value: f64 = text.parse().ok()?;
    (0.0..=100.0).contains(&value).then_some(value)
}

/// `3%@2133`, `0%@[1300,1300]`, `@[0,0,0]`, `@665`, `7%`: load and clocks.
fn usage(text: &str) -> Option<(Option<f64>, Vec<u64>)> {
    let (load, clocks) = text.split_once('@').unwrap_or((text, ""));
    let load = load.strip_suffix('%').and_then(percent);
    let list = clocks.trim_start_matches('[').trim_end_matches(']');
    let clocks: Vec<u64> = list.split(',').take(VALUES).filter_map(|clock| clock.parse().ok()).collect();
    (load.is_some() || !clocks.is_empty()).then_some((load, clocks))
}

/// `[14%@2188,off,5%@2112]`, or with one clock for all, `[0%,5%,off]@2601`.
fn cores(text: &str) -> Option<Vec<Option<CoreReading>>> {
    let (list, common) = text.strip_prefix('[')?.split_once(']')?;
    let common: Option<u64> = common.strip_prefix('@').and_then(|clock| clock.parse().ok());
    let core = |word: &str| {
        let (load_percent, clocks) = usage(word)?;
        Some(CoreReading { load_percent, clock_mhz: clocks.first().copied().or(common) })
    };
    let cores: Vec<_> = list.split(',').take(VALUES).map(core).collect();
    cores.iter().any(Option::is_some).then_some(cores)
}

/// `cpu@52.562C`, or with the most since the program started, `cpu@50.718C/51.5C`.
fn temperature(word: &str) -> Option<Temperature> {
    let (name, degrees) = word.split_once('@')?;
    let is_named = name.starts_with(|first: char| first.is_ascii_alphabetic());
    let named = is_named && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let celsius = |text: &str| text.strip_suffix('C')?.parse::<f64>().ok().filter(|told| told.is_finite());
    let (now, most) = degrees.split_once('/').unwrap_or((degrees, ""));
    let now = celsius(now).filter(|_| named)?;
    // -256: switched off.
    Some(Temperature { name: name.to_owned(), celsius: (now > -200.0).then_some(now), max_celsius: celsius(most) })
}

/// `2412mW/2412mW`, with the most `…/2643mW`, and of old `554/600`: now, mean, most.
fn rail(name: &str, text: &str) -> Option<Rail> {
    let mut values = text.split('/').map(|value| value.trim_end_matches("mW").parse::<u64>().ok());
    let (now, mean, most) = (values.next()??, values.next()??, values.next().flatten());
    Some(Rail { name: name.to_owned(), milliwatts: now, mean_milliwatts: Some(mean), max_milliwatts: most })
}

/// `off`, `36%@115`, `@0`, `174`.
fn engine(name: &str, text: &str) -> Option<EngineReading> {
    let name = name.to_owned();
    if text == "off" {
        return Some(EngineReading { name, ..EngineReading::default() });
    }
    if let Ok(clock) = text.parse() {
        return Some(EngineReading { name, on: true, load_percent: None, clock_mhz: Some(clock) });
    }
    let (load_percent, clocks) = usage(text)?;
    Some(EngineReading { name, on: true, load_percent, clock_mhz: clocks.first().copied() })
}
