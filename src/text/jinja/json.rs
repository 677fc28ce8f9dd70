//! Writes JSON like Python's `json.dumps`, in the form that models were trained on.

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::values::{DEPTH, Number, bind, float, pairs, refused};

/// Largest indentation of a level in spaces.
const WIDEST: i128 = 64;

/// Arguments of `json.dumps(value, …)`.
pub(super) struct JsonStyle {
    ascii: bool,
    /// Indentation of a level, if the output has line breaks.
    indent: Option<String>,
    between: String,
    after_key: String,
    sorted: bool,
}

impl Default for JsonStyle {
    fn default() -> Self {
        Self { ascii: false, indent: None, between: ", ".to_owned(), after_key: ": ".to_owned(), sorted: false }
    }
}

/// transformers' own filter (`tojson` in `chat_template_utils.py`).
pub(super) fn tojson(value: &Value, args: &[Value]) -> Result<String, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sorted] = bind("tojson", names, args)?;
    let given = |value: Option<Value>| value.filter(|value| !value.is_none());
    let truth = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let mut style = JsonStyle { ascii: truth(ascii), sorted: truth(sorted), ..JsonStyle::default() };
    if let Some(indent) = given(indent) {
        ",".clone_into(&mut style.between);
        style.indent = Some(match (indent.as_str(), Number::of(&indent)) {
            (Some(text), _) => text.to_owned(),
            (_, Some(Number::Whole(width))) if width <= WIDEST => {
                " ".repeat(usize::try_from(width).unwrap_or_default())
            }
            _ => return Err(refused(format!("tojson: an indent of {indent} is none, or too wide"))),
        });
    }
    if let Some(separators) = given(separators) {
        let texts: Vec<Value> = separators.try_iter()?.collect();
        let [between, after_key] = texts.as_slice() else { return Err(refused("tojson: two separators are wanted")) };
        let spell = |text: &Value| text.as_str().map(str::to_owned).ok_or_else(|| refused("a separator is no text"));
        (style.between, style.after_key) = (spell(between)?, spell(after_key)?);
    }
    style.dump(value)
}

impl JsonStyle {
    pub(super) fn dump(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(&mut out, value, 0)?;
        Ok(out)
    }

    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH {
            return Err(refused("a value is too deep to be written as JSON"));
        }
        match value.kind() {
            ValueKind::Map => {
                let mut pairs = pairs(value)?;
                if self.sorted {
                    pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
                }
                let mut items = pairs.into_iter().map(|(key, value)| (Some(key), value));
                self.group(out, ['{', '}'], &mut items, depth)?;
            }
            ValueKind::Seq | ValueKind::Iterable if value.downcast_object_ref::<super::values::MapView>().is_none() => {
                self.group(out, ['[', ']'], &mut value.try_iter()?.map(|item| (None, item)), depth)?;
            }
            ValueKind::String => out.push_str(&self.text(value.as_str().unwrap_or_default())),
            _ => out.push_str(&scalar(value)?),
        }
        Ok(())
    }

    fn group(
        &self,
        out: &mut String,
        [begin, end]: [char; 2],
        items: &mut dyn Iterator<Item = (Option<Value>, Value)>,
        depth: usize,
    ) -> Result<(), Error> {
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(indent.as_str(), depth));
            }
        };
        out.push(begin);
        let mut empty = true;
        for (key, value) in items {
            out.push_str(if empty { "" } else { &self.between });
            empty = false;
            line(out, depth + 1);
            if let Some(key) = key {
                match key.as_str() {
                    Some(key) => out.push_str(&self.text(key)),
                    None => out.push_str(&self.text(&scalar(&key)?)),
                }
                out.push_str(&self.after_key);
            }
            self.write(out, &value, depth + 1)?;
        }
        if !empty {
            line(out, depth);
        }
        out.push(end);
        Ok(())
    }

    /// A quoted string.
    fn text(&self, text: &str) -> String {
        let mut quoted = String::with_capacity(text.len() + 2);
        quoted.push('"');
        for c in text.chars() {
            match c {
                '"' => quoted.push_str("\\\""),
                '\\' => quoted.push_str("\\\\"),
                '\n' => quoted.push_str("\\n"),
                '\r' => quoted.push_str("\\r"),
                '\t' => quoted.push_str("\\t"),
                '\u{8}' => quoted.push_str("\\b"),
                '\u{c}' => quoted.push_str("\\f"),
                _ if u32::from(c) < 0x20 || (self.ascii && c == '\u{7f}') => {
                    quoted.push_str(&format!("\\u{:04x}", u32::from(c)))
                }
                _ => quoted.push(c),
            }
        }
        quoted.push('"');
        if self.ascii { escape(&quoted, false) } else { quoted }
    }
}

/// A value that is neither a string nor a container.
fn scalar(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(value.is_true().to_string()),
        ValueKind::Number => Ok(match Number::of(value) {
            Some(Number::Float(number)) if number.is_nan() => "NaN".to_owned(),
            Some(Number::Float(number)) if number.is_infinite() => {
                if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
            }
            Some(Number::Float(number)) => float(number),
            _ => value.to_string(),
        }),
        kind => Err(refused(format!("{kind} is nothing that JSON can say"))),
    }
}

/// Escapes everything beyond ASCII, in 16-bit units as JSON does, or like Python's `ascii`.
pub(super) fn escape(text: &str, python: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        let code = u32::from(c);
        match c {
            _ if c.is_ascii() => escaped.push(c),
            _ if python && code <= 0xff => escaped.push_str(&format!("\\x{code:02x}")),
            _ if python && code > 0xffff => escaped.push_str(&format!("\\U{code:08x}")),
            _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| escaped.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    escaped
}
