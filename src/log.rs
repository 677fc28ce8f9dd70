//! Standard error: lines that nobody waits for, and `tracing` events as lines (`subscriber.rs`).
//!
//! A reader of standard error may stall (a full pipe, Ctrl-S, a collector that hangs), and a server must not stall with
//! it: after [`queue`] a thread writes, from a bounded queue that counts the lines it drops. Control characters in text
//! from outside are escaped, so that a terminal does not obey them: see [`printable`].

#[cfg(feature = "cli")]
mod subscriber;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

#[cfg(feature = "cli")]
#[cfg_attr(docsrs, doc(cfg(feature = "cli")))]
pub use subscriber::{Format, subscribe};

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

/// Target of events that are complete lines already, in their field `line`.
pub const LINES: &str = "watus_build::lines";

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
}
