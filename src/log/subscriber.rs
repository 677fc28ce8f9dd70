//! `tracing`'s events as lines: the program's own subscriber. Who uses the library chooses another, or none.

use std::fmt::Debug;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, span};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use super::{LINES, line, printable, printable_json, printable_text};

/// Format of logged events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines of text.
    Text,
    /// One JSON object per line, for a journal.
    Json,
}

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
