//! Python's `%` on strings: `'%s is %d' % (name, age)`.
//!
//! By "printf-style String Formatting" of Python's library reference.

use minijinja::Error;
use minijinja::Value;
use minijinja::value::ValueKind;

use super::values::{Number, Tuple, refused, repr, text};

/// Most characters of a field's width, and most digits of its precision.
const WIDEST: usize = 10_000;

/// A conversion: `%` with flags, width, precision and type.
#[derive(Default)]
struct PercentField {
    left: bool,
    zero: bool,
    plus: bool,
    space: bool,
    other: bool,
    width: usize,
    precision: Option<usize>,
}

/// The values to format.
struct FormatArguments<'a> {
    list: Vec<Value>,
    used: usize,
    map: Option<&'a Value>,
}

impl FormatArguments<'_> {
    fn next(&mut self) -> Result<Value, Error> {
        self.used += 1;
        self.list.get(self.used - 1).cloned().ok_or_else(|| refused("not enough arguments for format string"))
    }
}

/// Computes `format % values`.
pub(super) fn format(format: &str, values: &Value) -> Result<String, Error> {
    let list = match values.downcast_object_ref::<Tuple>() {
        Some(Tuple(items)) => items.clone(),
        None => vec![values.clone()],
    };
    let map = (values.kind() == ValueKind::Map).then_some(values);
    let mut values = FormatArguments { list, used: 0, map };
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = field(&rest[at + 1..], &mut values, &mut out)?;
    }
    out.push_str(rest);
    if values.map.is_none() && values.used < values.list.len() {
        return Err(refused("not all arguments converted during string formatting"));
    }
    Ok(out)
}

/// Writes the conversion at the beginning of `rest`; returns the text after it.
fn field<'a>(mut rest: &'a str, values: &mut FormatArguments<'_>, out: &mut String) -> Result<&'a str, Error> {
    let mut named = None;
    if let Some(after) = rest.strip_prefix('(') {
        let (key, after) = after.split_once(')').ok_or_else(|| refused("incomplete format key"))?;
        let map = values.map.ok_or_else(|| refused("format requires a mapping"))?;
        let value = map.get_item(&Value::from(key))?;
        if value.is_undefined() {
            return Err(refused(format!("there is no `{key}` to format")));
        }
        (named, rest) = (Some(value), after);
    }
    let mut field = PercentField::default();
    while let Some(flag) = rest.chars().next().filter(|c| "-+ 0#".contains(*c)) {
        match flag {
            '-' => field.left = true,
            '+' => field.plus = true,
            ' ' => field.space = true,
            '0' => field.zero = true,
            _ => field.other = true,
        }
        rest = &rest[1..];
    }
    let width;
    (width, rest) = size(rest, values)?;
    field.left |= width.is_some_and(|width| width < 0);
    field.width = within(width.unwrap_or_default().unsigned_abs())?;
    if let Some(after) = rest.strip_prefix('.') {
        let precision;
        (precision, rest) = size(after, values)?;
        field.precision = Some(within(precision.unwrap_or_default().max(0).unsigned_abs())?);
    }
    rest = rest.trim_start_matches(['h', 'l', 'L']);
    let kind = rest.chars().next().ok_or_else(|| refused("incomplete format"))?;
    if kind == '%' {
        out.push('%');
    } else {
        let value = named.map_or_else(|| values.next(), Ok)?;
        out.push_str(&field.write(kind, &value)?);
    }
    Ok(&rest[kind.len_utf8()..])
}

fn within(size: u64) -> Result<usize, Error> {
    let size = usize::try_from(size).ok().filter(|size| *size <= WIDEST);
    size.ok_or_else(|| refused(format!("a formatted field has more than {WIDEST} characters")))
}

/// Reads a width or a precision, which `*` takes from the values.
fn size<'a>(rest: &'a str, values: &mut FormatArguments<'_>) -> Result<(Option<i64>, &'a str), Error> {
    if let Some(after) = rest.strip_prefix('*') {
        let value = values.next()?;
        return Ok((Some(value.as_i64().ok_or_else(|| refused("* wants int"))?), after));
    }
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, after) = rest.split_at(digits);
    match digits {
        0 => Ok((None, after)),
        _ => Ok((Some(number.parse().map_err(|_| refused("a width is too large"))?), after)),
    }
}

impl PercentField {
    fn write(&self, kind: char, value: &Value) -> Result<String, Error> {
        let words = |text: String| match self.precision {
            Some(most) => text.chars().take(most).collect(),
            None => text,
        };
        Ok(match kind {
            's' => self.pad("", &words(text(value)?), false),
            'r' => self.pad("", &words(repr(value)?), false),
            'a' => self.pad("", &words(super::json::escape(&repr(value)?, true)), false),
            'c' => self.pad("", &character(value)?, false),
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
                let number = match (Number::of(value), kind) {
                    (Some(Number::Whole(number)), _) => number,
                    (Some(Number::Float(number)), 'd' | 'i' | 'u') if number.is_finite() => number.trunc() as i128,
                    _ => return Err(refused(format!("%{kind} format: a number is required, not {}", value.kind()))),
                };
                let size = number.unsigned_abs();
                let (mark, digits) = match kind {
                    'x' => ("0x", format!("{size:x}")),
                    'X' => ("0X", format!("{size:X}")),
                    'o' => ("0o", format!("{size:o}")),
                    _ => ("", size.to_string()),
                };
                let digits = format!("{digits:0>width$}", width = self.precision.unwrap_or_default());
                let mark = if self.other { mark } else { "" };
                self.pad(&format!("{}{mark}", self.sign(number < 0)), &digits, true)
            }
            'f' | 'F' | 'e' | 'E' | 'g' | 'G' => {
                let number = Number::of(value).map(|number| number.float());
                let number = number.ok_or_else(|| refused(format!("must be real number, not {}", value.kind())))?;
                let digits = self.float(kind.to_ascii_lowercase(), number.abs());
                let digits = if kind.is_ascii_uppercase() { digits.to_uppercase() } else { digits };
                self.pad(self.sign(number.is_sign_negative() && !number.is_nan()), &digits, number.is_finite())
            }
            _ => return Err(refused(format!("unsupported format character `{kind}`"))),
        })
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        }
    }

    fn pad(&self, sign: &str, text: &str, number: bool) -> String {
        let missing = self.width.saturating_sub(sign.chars().count() + text.chars().count());
        if self.left {
            format!("{sign}{text}{}", " ".repeat(missing))
        } else if self.zero && number {
            format!("{sign}{}{text}", "0".repeat(missing))
        } else {
            format!("{}{sign}{text}", " ".repeat(missing))
        }
    }

    fn float(&self, kind: char, number: f64) -> String {
        if !number.is_finite() {
            return if number.is_nan() { "nan" } else { "inf" }.to_owned();
        }
        let precision = self.precision.unwrap_or(6);
        let scientific = |precision: usize| {
            let text = format!("{number:.precision$e}");
            let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
            (digits.to_owned(), power.parse::<i32>().unwrap_or_default())
        };
        let exponent = |power: i32| format!("e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs());
        match kind {
            'f' => format!("{number:.precision$}"),
            'e' => {
                let (digits, power) = scientific(precision);
                digits + &exponent(power)
            }
            _ => {
                let precision = precision.max(1);
                let (digits, power) = scientific(precision - 1);
                let short = |digits: String| match digits.contains('.') && !self.other {
                    true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
                    false => digits,
                };
                let places = i64::try_from(precision).unwrap_or_default() - 1 - i64::from(power);
                match usize::try_from(places) {
                    Ok(places) if power >= -4 => short(format!("{number:.places$}")),
                    _ => short(digits) + &exponent(power),
                }
            }
        }
    }
}

fn character(value: &Value) -> Result<String, Error> {
    let one = |text: &&str| text.chars().count() == 1;
    let coded = || value.as_i64().and_then(|code| char::from_u32(u32::try_from(code).ok()?)).map(String::from);
    value.as_str().filter(one).map(str::to_owned).or_else(coded).ok_or_else(|| refused("%c requires int or char"))
}
