//! Python's values and their printed forms: tuples, views of a dict, `str` and `repr`.

use std::fmt::Write as _;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Deepest nesting of printed values; Python raises a RecursionError.
pub(super) const DEPTH: usize = 200;

/// A tuple, `(a, b)`.
#[derive(Debug)]
pub(super) struct Tuple(pub Vec<Value>);

impl Object for Tuple {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }
}

/// The result of `items()`, `keys()` or `values()` of a dict.
#[derive(Debug)]
pub(super) struct MapView {
    pub name: &'static str,
    pub values: Vec<Value>,
}

impl Object for MapView {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.values.clone())
    }
}

/// The error of an impossible operation.
pub(super) fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Keys and values of a dict, in order.
pub(super) fn pairs(map: &Value) -> Result<Vec<(Value, Value)>, Error> {
    let pair = |key: Value| map.get_item(&key).map(|value| (key, value));
    map.try_iter()?.map(pair).collect()
}

/// An integer (or boolean), or a float.
pub(super) enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    pub(super) fn of(value: &Value) -> Option<Self> {
        match value.kind() {
            ValueKind::Bool => Some(Self::Whole(i128::from(value.is_true()))),
            ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok().map(Self::Whole),
            ValueKind::Number => f64::try_from(value.clone()).ok().map(Self::Float),
            _ => None,
        }
    }

    pub(super) fn float(&self) -> f64 {
        match self {
            Self::Whole(number) => *number as f64,
            Self::Float(number) => *number,
        }
    }
}

/// An integer in minijinja's representation.
pub(super) fn whole(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| Value::from(number), Value::from)
}

/// Python's `str`.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None if value.is_undefined() => Ok(String::new()),
        None => repr(value),
    }
}

/// Python's `repr`.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write(&mut out, value, 0)?;
    Ok(out)
}

fn write(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEPTH {
        return Err(refused("a value is too deep to be printed"));
    }
    if let Some(view) = value.downcast_object_ref::<MapView>() {
        out.push_str(view.name);
        out.push('(');
        list(out, ["[", "]"], &mut view.values.iter().cloned(), depth)?;
        out.push(')');
        return Ok(());
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Number if !value.is_integer() => out.push_str(&float(f64::try_from(value.clone())?)),
        ValueKind::String => quote(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable if value.len().is_some() => match value.downcast_object_ref::<Tuple>() {
            Some(Tuple(items)) => {
                let end = if items.len() == 1 { ",)" } else { ")" };
                list(out, ["(", end], &mut items.iter().cloned(), depth)?;
            }
            None => list(out, ["[", "]"], &mut value.try_iter()?, depth)?,
        },
        ValueKind::Map => {
            out.push('{');
            for (index, (key, value)) in pairs(value)?.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write(out, key, depth + 1)?;
                out.push_str(": ");
                write(out, value, depth + 1)?;
            }
            out.push('}');
        }
        // None, truth values and whole numbers are Python's already.
        _ => write!(out, "{value}").map_err(|_| refused("a value cannot be printed"))?,
    }
    Ok(())
}

fn list(
    out: &mut String,
    [begin, end]: [&str; 2],
    items: &mut dyn Iterator<Item = Value>,
    depth: usize,
) -> Result<(), Error> {
    out.push_str(begin);
    for (index, item) in items.enumerate() {
        out.push_str(if index > 0 { ", " } else { "" });
        write(out, &item, depth + 1)?;
    }
    out.push_str(end);
    Ok(())
}

/// The `repr` of a str (`unicode_repr` in Objects/unicodeobject.c of CPython).
fn quote(out: &mut String, text: &str) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in text.chars() {
        let code = u32::from(c);
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c == mark => out.extend(['\\', c]),
            _ if printable(c) => out.push(c),
            _ if code <= 0xff => out.push_str(&format!("\\x{code:02x}")),
            _ if code <= 0xffff => out.push_str(&format!("\\u{code:04x}")),
            _ => out.push_str(&format!("\\U{code:08x}")),
        }
    }
    out.push(mark);
}

/// Python's `isprintable`: Rust escapes the same categories, and combining marks at the beginning of a text.
fn printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        _ if c.is_ascii() => false,
        _ => format!("a{c}").escape_debug().nth(1) == Some(c),
    }
}

/// The `repr` of a float: the shortest digits that round-trip, with an exponent from 1e16 on and below 1e-4.
pub(super) fn float(number: f64) -> String {
    if !number.is_finite() {
        return if number.is_nan() { "nan".to_owned() } else { format!("{number}") };
    }
    let scientific = format!("{number:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let power: i32 = exponent.parse().unwrap_or_default();
    if number == 0.0 || (-4..16).contains(&power) {
        let plain = format!("{number}");
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    format!("{digits}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs())
}

/// Binds arguments to parameter names like Python.
pub(super) fn bind<const N: usize>(what: &str, names: [&str; N], args: &[Value]) -> Result<[Option<Value>; N], Error> {
    let mut bound: [Option<Value>; N] = std::array::from_fn(|_| None);
    let (named, placed) = match args.split_last() {
        Some((last, placed)) if last.is_kwargs() => (Some(last), placed),
        _ => (None, args),
    };
    if placed.len() > N {
        return Err(refused(format!("{what} takes {N} arguments at most, {} are given", placed.len())));
    }
    for (place, value) in bound.iter_mut().zip(placed) {
        *place = Some(value.clone());
    }
    for (key, value) in named.map(pairs).transpose()?.unwrap_or_default() {
        let at = names.iter().position(|name| key.as_str() == Some(name));
        match at.map(|at| &mut bound[at]) {
            Some(place @ None) => *place = Some(value),
            Some(_) => return Err(refused(format!("{what} is given `{key}` twice"))),
            None => return Err(refused(format!("{what} has no argument `{key}`"))),
        }
    }
    Ok(bound)
}
