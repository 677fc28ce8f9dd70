//! Standard error: lines that nobody waits for, and `tracing` events as lines.
//!
//! A reader of standard error may stall (a full pipe, Ctrl-S, a collector that hangs), and a server must not stall with
//! it: after [`queue`] a thread writes, from a bounded queue that counts the lines it drops. Control characters in text
//! from outside are escaped, so that a terminal does not obey them: see [`printable`].

use std::borrow::Cow;
use std::fmt::{Debug, Write as _};
use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, span};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

/// Most lines in the queue.
const WAITING: usize = 1024;
/// Most bytes of a line; `--log-prompts` writes long ones.
const LONGEST: usize = 1 << 20;

struct LineQueue {
    sender: SyncSender<String>,
    dropped: AtomicU64,
    written: AtomicU64,
    queued: AtomicU64,
}

static QUEUE: OnceLock<LineQueue> = OnceLock::new();

/// Starts a thread that writes the lines from now on; lines that do not fit the queue are dropped.
pub fn queue() -> std::io::Result<()> {
    let (sender, lines) = sync_channel(WAITING);
    let counts = || AtomicU64::new(0);
    let queue = LineQueue { sender, dropped: counts(), written: counts(), queued: counts() };
    if QUEUE.set(queue).is_ok() {
        std::thread::Builder::new().name("log".to_owned()).spawn(move || write(&lines))?;
    }
    Ok(())
}

fn write(lines: &Receiver<String>) {
    let Some(queue) = QUEUE.get() else { return };
    let mut told = 0;
    while let Ok(line) = lines.recv() {
        // A closed or full standard error is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{line}");
        queue.written.fetch_add(1, Ordering::Relaxed);
        let dropped = dropped();
        if dropped > told {
            let _ = writeln!(
                std::io::stderr(),
                "warning: {} lines of the log are missing here: they were not read in time",
                dropped - told
            );
            told = dropped;
        }
    }
}

/// Writes a line, or queues it after [`queue`].
pub fn line(text: &str) {
    let text = if text.len() > LONGEST { &text[..text.floor_char_boundary(LONGEST)] } else { text };
    let Some(queue) = QUEUE.get() else {
        // Whoever closed standard error does not want it.
        let _ = writeln!(std::io::stderr(), "{text}");
        return;
    };
    match queue.sender.try_send(text.to_owned()) {
        Ok(()) => drop(queue.queued.fetch_add(1, Ordering::Relaxed)),
        Err(_) => drop(queue.dropped.fetch_add(1, Ordering::Relaxed)),
    }
}

/// Number of lines dropped because the queue was full.
pub fn dropped() -> u64 {
    QUEUE.get().map_or(0, |queue| queue.dropped.load(Ordering::Relaxed))
}

/// Waits until the queue is written, but no longer than `patience`; to be called before the program ends.
pub fn flush(patience: Duration) {
    let Some(queue) = QUEUE.get() else { return };
    let begun = Instant::now();
    while queue.written.load(Ordering::Relaxed) < queue.queued.load(Ordering::Relaxed) && begun.elapsed() < patience {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a terminal obeys the character, or it changes the order of displayed text (Unicode's bidirectional
/// controls).
fn is_control(character: char) -> bool {
    let turns =
        matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{061c}');
    character.is_control() || turns
}

fn escaped(text: &str, obeyed: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match obeyed(character) {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    Cow::Owned(shown)
}

/// A name for use within a line: control characters and line breaks are escaped.
pub fn printable(name: &str) -> Cow<'_, str> {
    escaped(name, is_control)
}

/// A text of several lines: control characters except line breaks and tabs are escaped.
pub fn printable_text(text: &str) -> Cow<'_, str> {
    escaped(text, |character| is_control(character) && !matches!(character, '\n' | '\t'))
}

/// JSON text in which control characters within strings are escaped.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    let obeyed = |character: char| is_control(character) && !matches!(character, '\n' | '\t');
    if !json.chars().any(obeyed) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 8);
    for character in json.chars() {
        match obeyed(character) {
            true => _ = write!(shown, "\\u{:04x}", u32::from(character)),
            false => shown.push(character),
        }
    }
    Cow::Owned(shown)
}

/// Format of logged events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines of text.
    Text,
    /// One JSON object per line, for a journal.
    Json,
}

/// Target of events that are complete lines already, in their field `line`.
pub const LINES: &str = "watus_build::lines";

/// Subscribes to `tracing` events of the level in `WATUS_LOG` (error, warn, info, debug or trace; default warn) and
/// above.
pub fn subscribe(format: Format) {
    let asked = std::env::var("WATUS_LOG").ok().and_then(|level| level.trim().parse::<LevelFilter>().ok());
    let level = asked.unwrap_or(LevelFilter::WARN);
    let subscriber = tracing_subscriber::registry().with(Lines { format, level });
    // Set once: by the program, not by who uses its library.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

struct Lines {
    format: Format,
    level: LevelFilter,
}

/// The collected fields of a span or an event.
#[derive(Default)]
struct Said {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name => self.fields.push((name, value.to_owned())),
        }
    }
}

impl Said {
    fn fields(&self) -> String {
        self.fields.iter().map(|(name, value)| format!(" {name}={}", printable(value))).collect()
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target() == LINES || (metadata.target().starts_with("watus_build") && *metadata.level() <= self.level)
    }

    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let mut said = Said::default();
        attributes.record(&mut said);
        if let Some(span) = context.span(id) {
            let name = format!("{}{}", span.name(), said.fields());
            span.extensions_mut().insert(name);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        if event.metadata().target() == LINES {
            return line(&said.message);
        }
        let scope = context.event_scope(event).into_iter().flat_map(|scope| scope.from_root());
        let spans: Vec<String> = scope.filter_map(|span| span.extensions().get::<String>().cloned()).collect();
        line(&self.text(*event.metadata().level(), &said, &spans));
    }
}

impl Lines {
    fn text(&self, level: Level, said: &Said, spans: &[String]) -> String {
        let level = match level {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        if self.format == Format::Text {
            let within = if spans.is_empty() { String::new() } else { format!("  [{}]", spans.join(": ")) };
            return format!("{level}: {}{}{within}", printable_text(&said.message), said.fields());
        }
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let mut entry = serde_json::json!({"time": time, "level": level, "message": said.message});
        for (name, value) in &said.fields {
            entry[*name] = value.as_str().into();
        }
        if !spans.is_empty() {
            entry["spans"] = spans.into();
        }
        printable_json(&entry.to_string()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_stranger_names_is_obeyed() {
        let name = "a\u{1b}[31m\nb\u{9b}2J\u{202e}c\tż";
        assert_eq!(printable(name), "a\\u{1b}[31m\\nb\\u{9b}2J\\u{202e}c\\tż");
        assert_eq!(printable_text("a\nb\t\u{7}"), "a\nb\t\\u{7}");
        assert!(matches!(printable("zażółć"), Cow::Borrowed(_)));
        let json = serde_json::to_string(&["\u{1b}\u{9b}\u{202e}"]).unwrap();
        assert_eq!(serde_json::from_str::<[String; 1]>(&printable_json(&json)).unwrap()[0], "\u{1b}\u{9b}\u{202e}");
        assert!(printable_json(&json).is_ascii());
    }

    #[test]
    fn events_say_where_they_come_from() {
        let lines = |format| Lines { format, level: LevelFilter::DEBUG };
        let said = Said { message: "slow\u{1b}".to_owned(), fields: vec![("engine", "a\nb".to_owned())] };
        let spans = ["build recipe=yolo".to_owned(), "child".to_owned()];
        let text = lines(Format::Text).text(Level::WARN, &said, &spans);
        assert_eq!(text, "warning: slow\\u{1b} engine=a\\nb  [build recipe=yolo: child]");
        let json: serde_json::Value =
            serde_json::from_str(&lines(Format::Json).text(Level::WARN, &said, &spans)).unwrap();
        assert_eq!(
            (&json["level"], &json["engine"], &json["spans"][1]),
            (&"warning".into(), &"a\nb".into(), &"child".into())
        );
    }
}
