//! Makes lines of readings: a view that fills a terminal, or one line. Prints nothing.

use std::collections::VecDeque;

use super::server::ServerReading;
use crate::memory::format_bytes;
use crate::sensors::{CoreReading, Readings, Throttling};

/// Readings that are drawn as a curve.
const KEPT: usize = 240;
/// Columns of a label, of a bar, of a core's cell.
const LABEL: usize = 7;
const BAR: usize = 20;
const CELL: usize = 17;
/// Most cores that have a cell each; more have a bar each.
const CELLS: usize = 16;
/// Bars of eight heights.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What is shown at one moment.
pub(super) struct Shown<'a> {
    pub(super) board: Option<&'a str>,
    pub(super) l4t: Option<&'a str>,
    /// The time of day.
    pub(super) clock: &'a str,
    pub(super) readings: &'a Readings,
    pub(super) server: Option<&'a ServerReading>,
    pub(super) history: &'a History,
}

/// Values of the latest readings, the newest last.
#[derive(Debug, Default)]
pub(super) struct History {
    load: VecDeque<f64>,
    memory: VecDeque<f64>,
    power: VecDeque<f64>,
    tokens: VecDeque<f64>,
}

impl History {
    pub(super) fn push(&mut self, readings: &Readings, server: Option<&ServerReading>) {
        let memory = readings.memory.as_ref().map(|memory| share(memory.used_bytes, memory.total_bytes));
        let new = [
            (&mut self.load, readings.gpus.first().and_then(|gpu| gpu.load_percent)),
            (&mut self.memory, memory),
            (&mut self.power, readings.power_milliwatts.map(|power| power as f64)),
            (&mut self.tokens, server.and_then(|server| server.tokens_per_second)),
        ];
        for (values, value) in new {
            values.extend(value);
            if values.len() > KEPT {
                values.pop_front();
            }
        }
    }
}

/// Percent that a part is of a whole.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

/// The whole view, of at most (columns, rows).
pub(super) fn lines(shown: &Shown<'_>, (columns, rows): (usize, usize)) -> Vec<String> {
    let Shown { readings, history, .. } = shown;
    let mut lines = vec![header(shown, columns), String::new()];
    lines.extend(graphics(readings, history, columns));
    lines.extend(cores(&readings.cpus, columns));
    lines.extend(memory(readings, history, columns));
    lines.extend(temperatures(readings));
    lines.extend(power(readings, history, columns));
    lines.extend(readings.throttling.as_ref().map(throttling));
    lines.extend(fan(readings));
    lines.extend(engines(readings));
    lines.extend(shown.server.into_iter().flat_map(|server| serving(server, history, columns)));
    lines.truncate(rows);
    lines.iter().map(|line| cut(line, columns)).collect()
}

/// One line with what matters most.
pub(super) fn plain(shown: &Shown<'_>) -> String {
    let readings = shown.readings;
    let mut parts = Vec::new();
    for gpu in &readings.gpus {
        let words =
            [gpu.load_percent.map(|load| format!("{load:.0} %")), gpu.clock_mhz().map(|clock| format!("{clock} MHz"))];
        parts.push(format!("GPU {}", words.into_iter().flatten().collect::<Vec<_>>().join(" ")));
    }
    let memory = readings.memory.as_ref();
    parts.extend(
        memory.map(|memory| format!("RAM {} of {}", format_bytes(memory.used_bytes), format_bytes(memory.total_bytes))),
    );
    let hottest = readings.hottest().and_then(|zone| Some(format!("{} {:.1} °C", zone.name, zone.celsius?)));
    parts.extend(hottest);
    parts.extend(readings.power_milliwatts.map(watts));
    let throttled = readings.throttling.as_ref().filter(|throttling| !throttling.causes.is_empty());
    parts.extend(throttled.map(|throttling| format!("throttled: {}", throttling.causes.join(", "))));
    parts.extend(shown.server.map(|server| state(server).join(", ")));
    format!("{}  {}", shown.clock, parts.join(", "))
}

fn header(shown: &Shown<'_>, columns: usize) -> String {
    let l4t = shown.l4t.map(|l4t| format!("L4T {l4t}"));
    let mode = shown.readings.power_mode.as_ref().map(|mode| {
        let name = mode.name.clone().unwrap_or_else(|| format!("power mode {}", mode.id));
        match &mode.faster {
            Some(faster) => format!("{name} ({} is faster)", faster.name),
            None => name,
        }
    });
    let parts: Vec<String> = shown.board.map(str::to_owned).into_iter().chain(l4t).chain(mode).collect();
    let (left, right) = (parts.join(" · "), shown.clock);
    let room = columns.saturating_sub(right.chars().count() + 1);
    let left = cut(&left, room);
    format!("{left}{}{right}", " ".repeat(columns.saturating_sub(left.chars().count() + right.chars().count())))
}

/// A label, a bar, words, and a curve of what was before if there is room.
fn gauge(
    label: &str,
    percent: Option<f64>,
    words: &str,
    curve: Option<(&VecDeque<f64>, f64)>,
    columns: usize,
) -> String {
    let bar = percent.map_or_else(|| " ".repeat(BAR), bar);
    let percent = percent.map(|percent| format!("{percent:.0} %")).unwrap_or_default();
    let line = format!("{label:<LABEL$}{bar} {percent:>5}  {words}");
    let room = columns.saturating_sub(line.chars().count() + 2);
    match curve {
        Some((values, most)) if room >= 8 && values.len() > 1 => format!("{line}  {}", spark(values, most, room)),
        _ => line,
    }
}

fn bar(percent: f64) -> String {
    let full = (percent.clamp(0.0, 100.0) / 100.0 * BAR as f64).round() as usize;
    format!("{}{}", "█".repeat(full), "·".repeat(BAR - full))
}

/// The height of a value of at most `most`.
fn height(value: f64, most: f64) -> char {
    let at = if most > 0.0 { (value / most).clamp(0.0, 1.0) * (HEIGHTS.len() - 1) as f64 } else { 0.0 };
    HEIGHTS[at.round() as usize]
}

/// The latest values, as many as there is room for.
fn spark(values: &VecDeque<f64>, most: f64, room: usize) -> String {
    values.iter().skip(values.len().saturating_sub(room)).map(|value| height(*value, most)).collect()
}

/// The largest value, by which a curve without a bound is drawn.
fn most(values: &VecDeque<f64>) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

fn graphics(readings: &Readings, history: &History, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for (at, gpu) in readings.gpus.iter().enumerate() {
        let clock = gpu.clock_mhz().map(|clock| match gpu.highest_clock_mhz {
            Some(highest) => format!("{clock} of {highest} MHz"),
            None => format!("{clock} MHz"),
        });
        let memory = gpu.memory_used_bytes.map(|used| match gpu.memory_total_bytes {
            Some(total) => format!("{} of {}", format_bytes(used), format_bytes(total)),
            None => format!("{} of RAM", format_bytes(used)),
        });
        let words: Vec<String> = clock.into_iter().chain(memory).collect();
        let label = if readings.gpus.len() == 1 { "GPU".to_owned() } else { format!("GPU {at}") };
        let curve = (at == 0).then_some((&history.load, 100.0));
        lines.push(gauge(&label, gpu.load_percent, &words.join(", "), curve, columns));
    }
    if let Some(emc) = &readings.emc {
        let clock = emc.clock_mhz.map(|clock| format!("{clock} MHz")).unwrap_or_default();
        lines.push(gauge("EMC", emc.load_percent, &clock, None, columns));
    }
    lines
}

fn cores(cores: &[Option<CoreReading>], columns: usize) -> Vec<String> {
    if cores.is_empty() {
        return Vec::new();
    }
    let on: Vec<&CoreReading> = cores.iter().flatten().collect();
    let loads: Vec<f64> = on.iter().filter_map(|core| core.load_percent).collect();
    let mean = (!loads.is_empty()).then(|| loads.iter().sum::<f64>() / loads.len() as f64);
    let off = cores.len() - on.len();
    let words = match off {
        0 => format!("{} cores", cores.len()),
        off => format!("{} cores, {off} off", cores.len()),
    };
    let mut lines = vec![gauge("CPU", mean, &words, None, columns)];
    let room = columns.saturating_sub(LABEL);
    let rows: Vec<String> = if cores.len() <= CELLS {
        let cells: Vec<String> = cores.iter().enumerate().map(|(at, core)| cell(at, core.as_ref())).collect();
        cells.chunks((room / CELL).max(1)).map(|row| row.concat()).collect()
    } else {
        let bars: Vec<char> = cores.iter().map(|core| small(core.as_ref())).collect();
        bars.chunks(room.max(1)).map(|row| row.iter().collect()).collect()
    };
    lines.extend(rows.into_iter().map(|row| format!("{}{}", " ".repeat(LABEL), row.trim_end())));
    lines
}

/// A core's load as a small bar; a blank one is off.
fn small(core: Option<&CoreReading>) -> char {
    core.map_or(' ', |core| height(core.load_percent.unwrap_or(0.0), 100.0))
}

fn cell(at: usize, core: Option<&CoreReading>) -> String {
    let text = match core {
        None => "off".to_owned(),
        Some(CoreReading { load_percent, clock_mhz }) => {
            let load = load_percent.map_or("–".to_owned(), |load| format!("{load:.0}%"));
            let clock = clock_mhz.map(|clock| clock.to_string()).unwrap_or_default();
            format!("{load:>4} {clock}")
        }
    };
    let cell = format!("{at:>2} {} {text}", small(core));
    format!("{cell:<CELL$}")
}

fn memory(readings: &Readings, history: &History, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(memory) = &readings.memory {
        let used = share(memory.used_bytes, memory.total_bytes);
        let block = memory.largest_free_block.map(|blocks| {
            let size = match blocks.bytes {
                bytes if bytes < 1 << 20 => format!("{} KiB", bytes >> 10),
                bytes => format!("{} MiB", bytes >> 20),
            };
            format!(", largest free {} x {size}", blocks.count)
        });
        let (have, total) = (format_bytes(memory.used_bytes), format_bytes(memory.total_bytes));
        let words = format!("{have} of {total}{}", block.unwrap_or_default());
        lines.push(gauge("RAM", Some(used), &words, Some((&history.memory, 100.0)), columns));
    }
    if let Some(swap) = readings.swap.filter(|swap| swap.total_bytes > 0) {
        let used = share(swap.used_bytes, swap.total_bytes);
        let words = format!("{} of {}", format_bytes(swap.used_bytes), format_bytes(swap.total_bytes));
        lines.push(gauge("swap", Some(used), &words, None, columns));
    }
    lines
}

fn temperatures(readings: &Readings) -> Option<String> {
    let zones = readings.temperatures.iter().filter_map(|zone| Some(format!("{} {:.1}", zone.name, zone.celsius?)));
    let zones: Vec<String> = zones.collect();
    (!zones.is_empty()).then(|| format!("{:<LABEL$}{} °C", "heat", zones.join("  ")))
}

fn watts(milliwatts: u64) -> String {
    format!("{:.1} W", milliwatts as f64 / 1e3)
}

fn power(readings: &Readings, history: &History, columns: usize) -> Option<String> {
    let whole = readings.power_milliwatts?;
    let rails: Vec<String> =
        readings.rails.iter().map(|rail| format!("{} {:.1}", rail.name, rail.milliwatts as f64 / 1e3)).collect();
    let line = format!("{:<LABEL$}{}  ({})", "power", watts(whole), rails.join("  "));
    let room = columns.saturating_sub(line.chars().count() + 2);
    let curve = (room >= 8 && history.power.len() > 1).then(|| spark(&history.power, most(&history.power), room));
    Some(curve.map_or(line.clone(), |curve| format!("{line}  {curve}")))
}

fn throttling(throttling: &Throttling) -> String {
    let now = match throttling.causes.as_slice() {
        [] => "full".to_owned(),
        causes => format!("LOWERED by {}", causes.join(", ")),
    };
    let events = throttling.over_current_events.filter(|events| *events > 0);
    let events = events.map(|events| format!("; {events} over-current events since the start")).unwrap_or_default();
    format!("{:<LABEL$}{now}{events}", "clocks")
}

fn fan(readings: &Readings) -> Option<String> {
    let fan = readings.fan.as_ref()?;
    let words = [fan.percent.map(|percent| format!("{percent:.0} %")), fan.rpm.map(|rpm| format!("{rpm} rpm"))];
    Some(format!("{:<LABEL$}{}", "fan", words.into_iter().flatten().collect::<Vec<_>>().join(", ")))
}

/// Engines that are at work.
fn engines(readings: &Readings) -> Option<String> {
    let on = readings.engines.iter().filter(|engine| engine.on);
    let busy: Vec<String> =
        on.filter_map(|engine| Some(format!("{} {:.0} %", engine.name, engine.load_percent?))).collect();
    (!busy.is_empty()).then(|| format!("{:<LABEL$}{}", "others", busy.join("  ")))
}

/// A server's state in words.
fn state(server: &ServerReading) -> Vec<String> {
    if let Some(error) = &server.error {
        return vec![format!("no server: {error}")];
    }
    let rate = server.tokens_per_second.map(|rate| format!("{rate:.1} tok/s"));
    let prompts = server.prompt_tokens_per_second.map(|rate| format!("prompts {rate:.0} tok/s"));
    let slots = server.requests_running.zip(server.slots).map(|(running, slots)| format!("{running} of {slots} slots"));
    let queue = server.requests_waiting.map(|waiting| format!("{waiting} waiting"));
    [rate, prompts, slots, queue].into_iter().flatten().collect()
}

fn serving(server: &ServerReading, history: &History, columns: usize) -> Vec<String> {
    let line = format!("{:<LABEL$}{}", "", state(server).join(", "));
    let room = columns.saturating_sub(line.chars().count() + 2);
    let curve = (room >= 8 && history.tokens.len() > 1).then(|| spark(&history.tokens, most(&history.tokens), room));
    let line = curve.map_or(line.clone(), |curve| format!("{line}  {curve}"));
    vec![String::new(), format!("{:<LABEL$}{}", "server", server.url), line]
}

/// At most so many columns of a line; what is cut off shows by its last one.
fn cut(line: &str, columns: usize) -> String {
    match line.chars().count() <= columns {
        true => line.to_owned(),
        false => line.chars().take(columns.saturating_sub(1)).chain((columns > 0).then_some('…')).collect(),
    }
}

#[cfg(test)]
mod tests;
