//! Chat templates: the Jinja a model is published with, run by minijinja with what `transformers` adds to it.

use std::path::Path;

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::Formatter;

use super::chat::{Chat, Traits};
use super::child::{Renderer, unanswered};
use crate::checkpoint::read_json;
use crate::llm::executor::LlmError;
use crate::log::printable;
use crate::regular_file;

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Where it is rendered, if not in this process.
    renderer: Option<Renderer>,
    text: String,
    bos: String,
    eos: String,
    source: std::path::PathBuf,
}

/// A special token of tokenizer_config.json, written as a text or an object.
pub(super) fn token(settings: &serde_json::Value, name: &str) -> Option<String> {
    let token = settings.get(name)?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

const NAME: &str = "chat";
/// Templates are pages.
const TEMPLATE_LIMIT: u64 = 16 << 20;

impl ChatTemplate {
    /// The template of `folder`, from the first of the places it may be in.
    pub(super) fn find(folder: &Path, settings: &serde_json::Value) -> Result<Option<(Self, Traits)>, LlmError> {
        let jinja = folder.join("chat_template.jinja");
        let json = folder.join("chat_template.json");
        let (source, text) = if jinja.exists() {
            let text = regular_file::read_text(&jinja, TEMPLATE_LIMIT);
            let text = text.map_err(|error| LlmError::Text { path: jinja.clone(), message: error.to_string() })?;
            (jinja, Some(text))
        } else if json.exists() {
            let text = read_json(&json)?.get("chat_template").and_then(|text| text.as_str()).map(str::to_owned);
            (json, text)
        } else {
            (folder.join("tokenizer_config.json"), settings.get("chat_template").and_then(named_default))
        };
        let Some(text) = text else { return Ok(None) };
        let bos = token(settings, "bos_token").unwrap_or_default();
        let eos = token(settings, "eos_token").unwrap_or_default();
        let mut template = Self::compile(text.clone(), bos, eos, &source)?;
        template.renderer = Renderer::of(&template);
        let traits = Traits::of(&template, &text);
        Ok(Some((template, traits)))
    }

    fn compile(text: String, bos: String, eos: String, source: &Path) -> Result<Self, LlmError> {
        let mut environment = Environment::new();
        // As transformers sets up Jinja (`chat_template_utils.py`).
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", |value: Value, options: Kwargs| -> Result<Value, Error> {
            let indent = options.get::<Option<usize>>("indent")?;
            let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
            options.assert_all_used()?;
            let value = serde_json::to_value(&value);
            let value = value.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
            let text = python_json(&value, indent);
            Ok(Value::from_safe_string(if ascii { escape(&text) } else { text }))
        });
        // To minijinja nothing is an empty list; templates ask this to find out whether there are functions.
        environment
            .add_test("iterable", |value: Value| !value.is_none() && !value.is_undefined() && value.try_iter().is_ok());
        environment.add_function("strftime_now", |format: String| strftime(&format, now()));
        // A crafted template must not compute for ever.
        environment.set_fuel(Some(5_000_000));
        let compiled = environment.add_template_owned(NAME, without_marks(text.clone()));
        compiled.map_err(|error| LlmError::Text { path: source.to_owned(), message: describe(&error) })?;
        Ok(Self { environment, renderer: None, text, bos, eos, source: source.to_owned() })
    }

    /// What another process needs to render it.
    pub(super) fn parts(&self) -> [&str; 3] {
        [&self.text, &self.bos, &self.eos]
    }

    /// From [`ChatTemplate::parts`].
    pub(super) fn of_parts([text, bos, eos]: [String; 3]) -> Result<Self, LlmError> {
        Self::compile(text, bos, eos, Path::new("the template"))
    }

    /// The template itself.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The text of a conversation, up to where the assistant's answer begins.
    pub fn render(&self, chat: &Chat) -> Result<String, LlmError> {
        let failed = |message: String| LlmError::Text { path: self.source.clone(), message };
        match &self.renderer {
            None => self.render_here(chat).map_err(failed),
            Some(renderer) => match renderer.render(chat) {
                Ok(rendered) => rendered.map_err(failed),
                Err(error) => Err(unanswered("the chat template cannot be rendered", &error, failed)),
            },
        }
    }

    /// In this process, where the steps of a template are bounded, and what they may take of memory is not.
    pub(super) fn render_here(&self, chat: &Chat) -> Result<String, String> {
        let template = self.environment.get_template(NAME).map_err(|error| describe(&error))?;
        let (bos_token, eos_token) = (&self.bos, &self.eos);
        let (messages, options) = (&chat.messages, &chat.options);
        let tools = (!chat.tools.is_empty()).then_some(&chat.tools);
        let rendered = template.render(context! {
            messages, tools, bos_token, eos_token, add_generation_prompt => true, ..Value::from_serialize(options)
        });
        rendered.map_err(|error| describe(&error))
    }
}

/// A template without transformers' own `{% generation %}`, which marks what a model is trained on and writes nothing.
fn without_marks(mut text: String) -> String {
    for (mark, nothing) in [("endgeneration", "endif"), ("generation", "if true")] {
        for (open, close) in [("{% ", " %}"), ("{%- ", " %}"), ("{% ", " -%}"), ("{%- ", " -%}")] {
            text = text.replace(&format!("{open}{mark}{close}"), &format!("{open}{nothing}{close}"));
        }
    }
    text
}

/// JSON with everything beyond ASCII escaped.
fn escape(json: &str) -> String {
    let mut text = String::new();
    for character in json.chars() {
        match character.is_ascii() {
            true => text.push(character),
            false => {
                character.encode_utf16(&mut [0; 2]).iter().for_each(|unit| text.push_str(&format!("\\u{unit:04x}")))
            }
        }
    }
    text
}

/// JSON as Python's json.dumps writes it, which is what models have seen.
pub(super) fn python_json(value: &serde_json::Value, indent: Option<usize>) -> String {
    let mut text = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, Spaced)),
    };
    written.ok().and_then(|()| String::from_utf8(text).ok()).unwrap_or_default()
}

/// A space after commas and colons.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

fn describe(error: &Error) -> String {
    let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    let detail = error.detail().map_or_else(|| error.to_string(), str::to_owned);
    // The template's own words: what they say must not look like other lines.
    format!("chat template{line}: {}", printable(&detail))
}

/// A template, or the one called "default" of a list.
fn named_default(value: &serde_json::Value) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    let list = value.as_array()?;
    let named = |name: &str| list.iter().find(|entry| entry.get("name").and_then(|n| n.as_str()) == Some(name));
    named("default").or(list.first())?.get("template")?.as_str().map(str::to_owned)
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The conversions templates use, of a time in seconds since 1970, in UTC.
fn strftime(format: &str, seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let days = seconds / 86_400;
    // Civil date of a day number (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (name, weekday) = (MONTHS[(month - 1) as usize % 12], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(name),
            Some('b') => out.push_str(&name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('H') => out.push_str(&format!("{:02}", seconds / 3600 % 24)),
            Some('M') => out.push_str(&format!("{:02}", seconds / 60 % 60)),
            Some('S') => out.push_str(&format!("{:02}", seconds % 60)),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::text::Message;

    fn render(template: &str, messages: &[Message]) -> Result<String, LlmError> {
        let template =
            ChatTemplate::compile(template.to_owned(), "<s>".to_owned(), "</s>".to_owned(), Path::new("t.json"))?;
        template.render(&Chat { messages: messages.to_vec(), ..Chat::default() })
    }

    #[test]
    fn templates_use_pythons_methods() {
        let messages = [Message::new("system", " Be brief. "), Message::new("user", "Hi")];
        let template = "{{ bos_token }}{% for m in messages %}\n  {%- if m['role'] == 'system' %}\n[{{ m.content.strip() \
                        | upper }}]{% elif loop.last and not m.content.startswith('x') %}{{ m['content'] }}{{ eos_token \
                        }}{% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}";
        assert_eq!(render(template, &messages).unwrap(), "<s>[BE BRIEF.]Hi</s>>");
    }

    #[test]
    fn templates_are_given_what_transformers_gives() {
        let template = "{% if tools is iterable and tools | length > 0 %}{{ tools }}{% endif %}{% for m in messages %}{%- \
                        generation -%}{{ m.content | tojson }} {{ [m.content, 1] | tojson(indent=2) }}{% endgeneration \
                        %}{{ m.content | tojson(ensure_ascii=true) }}{% endfor %}";
        let rendered = render(template, &[Message::new("user", "<ż> \u{1f916}")]).unwrap();
        let pretty = "[\n  \"<ż> \u{1f916}\",\n  1\n]";
        assert_eq!(rendered, format!("\"<ż> \u{1f916}\" {pretty}\"<\\u017c> \\ud83e\\udd16\""));
    }

    #[test]
    fn a_template_says_why_it_refuses() {
        let error = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err().to_string();
        assert!(error.contains("t.json") && error.contains("roles must alternate"), "{error}");
        let error = render("{{ raise_exception('a\nerror: \u{1b}') }}", &[]).unwrap_err().to_string();
        assert!(error.ends_with("a\\nerror: \\u{1b}"), "{error}");
        let error = render("{% for x in %}", &[]).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
        let error = render("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", &[]);
        assert!(error.is_err());
    }

    #[test]
    fn dates() {
        assert_eq!(strftime("%d %b %Y %A %H:%M:%S %%", 0), "01 Jan 1970 Thursday 00:00:00 %%");
        assert_eq!(strftime("%Y-%m-%d %a %B", 1_709_164_799), "2024-02-28 Wed February");
        assert_eq!(strftime("%Y-%m-%d", 1_709_164_800), "2024-02-29");
    }
}
