//! The methods of Python's str, dict and list that a sandbox allows to templates. Indices count characters, not bytes.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::values::{MapView, Number, Tuple, bind, pairs, refused, text};
use super::words::{capitalize, expand, fill_up, is_space, lines, range, split, strip, title};

/// Calls a value's method.
pub(super) fn call(state: &State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let unknown = || Err(Error::from(ErrorKind::UnknownMethod));
    match value.kind() {
        ValueKind::String => {
            let this = value.as_str().unwrap_or_default();
            if name == "format" {
                return format(state, value, args);
            }
            let answer = changed(this, name, args).transpose().or_else(|| parted(this, name, args).transpose());
            let answer = answer.or_else(|| asked(this, name, args).transpose());
            answer.unwrap_or_else(|| filled(this, name, args)?.map_or_else(unknown, Ok))
        }
        ValueKind::Map => dict(value, name, args)?.map_or_else(unknown, Ok),
        ValueKind::Seq | ValueKind::Iterable => list(value, name, args)?.map_or_else(unknown, Ok),
        _ => unknown(),
    }
}

/// `'{} {name}'.format(…)` by minijinja-contrib, with lists printed like Python's.
fn format(state: &State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let shown = |value: &Value| match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map if !value.is_kwargs() => text(value).map(Value::from),
        _ => Ok(value.clone()),
    };
    let args = args.iter().map(shown).collect::<Result<Vec<_>, Error>>()?;
    unknown_method_callback(state, value, "format", &args)
}

fn word(value: Option<Value>, what: &str) -> Result<Option<String>, Error> {
    let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(None) };
    match value.as_str() {
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(refused(format!("{what} wants a text, not {}", value.kind()))),
    }
}

fn needed(value: Option<Value>, what: &str) -> Result<String, Error> {
    word(value, what)?.ok_or_else(|| refused(format!("{what} wants a text")))
}

fn number(value: Option<Value>, what: &str) -> Result<Option<i128>, Error> {
    match value.filter(|value| !value.is_none()) {
        None => Ok(None),
        Some(value) => match Number::of(&value) {
            Some(Number::Whole(number)) => Ok(Some(number)),
            _ => Err(refused(format!("{what} wants a whole number, not {}", value.kind()))),
        },
    }
}

/// Methods that return a changed string.
fn changed(this: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let sides = match name {
        "strip" => Some((true, true)),
        "lstrip" => Some((true, false)),
        "rstrip" => Some((false, true)),
        _ => None,
    };
    if let Some(sides) = sides {
        let [chars] = bind(name, ["chars"], args)?;
        return Ok(Some(strip(this, word(chars, name)?.as_deref(), sides).into()));
    }
    let none = || bind(name, [], args).map(|[]| ());
    let swap =
        |c: char| -> String { if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() } };
    let text = match name {
        "upper" => none().map(|()| this.to_uppercase()),
        "lower" => none().map(|()| this.to_lowercase()),
        "casefold" => none().map(|()| this.to_lowercase().replace('ß', "ss")),
        "swapcase" => none().map(|()| this.chars().map(swap).collect()),
        "capitalize" => none().map(|()| capitalize(this)),
        "title" => none().map(|()| title(this)),
        "removeprefix" | "removesuffix" => {
            let [end] = bind(name, ["end"], args)?;
            let end = needed(end, name)?;
            let cut = if name == "removeprefix" { this.strip_prefix(&*end) } else { this.strip_suffix(&*end) };
            Ok(cut.unwrap_or(this).to_owned())
        }
        "replace" => {
            let [old, new, count] = bind(name, ["old", "new", "count"], args)?;
            let (old, new) = (needed(old, name)?, needed(new, name)?);
            let count = number(count, name)?.and_then(|count| usize::try_from(count).ok());
            Ok(count.map_or_else(|| this.replace(&old, &new), |count| this.replacen(&old, &new, count)))
        }
        "join" => {
            let [items] = bind(name, ["iterable"], args)?;
            let items = items.ok_or_else(|| refused("join wants a list"))?;
            let words = items.try_iter()?.map(|item| needed(Some(item), name)).collect::<Result<Vec<_>, Error>>()?;
            Ok(words.join(this))
        }
        _ => return Ok(None),
    };
    text.map(|text| Some(text.into()))
}

/// Methods that split a string.
fn parted(this: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "split" | "rsplit" => {
            let [separator, most] = bind(name, ["sep", "maxsplit"], args)?;
            let separator = word(separator, name)?;
            let most = number(most, name)?.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
            if separator.as_deref() == Some("") {
                return Err(refused(format!("{name}: empty separator")));
            }
            Value::from(split(this, separator.as_deref(), most, name == "split"))
        }
        "partition" | "rpartition" => {
            let [separator] = bind(name, ["sep"], args)?;
            let separator = needed(separator, name)?;
            if separator.is_empty() {
                return Err(refused(format!("{name}: empty separator")));
            }
            let first = name == "partition";
            let found = if first { this.split_once(&*separator) } else { this.rsplit_once(&*separator) };
            let parts = match found {
                Some((before, after)) => [before, &*separator, after],
                None if first => [this, "", ""],
                None => ["", "", this],
            };
            Value::from_object(Tuple(parts.map(Value::from).to_vec()))
        }
        "splitlines" => {
            let [ends] = bind(name, ["keepends"], args)?;
            Value::from(lines(this, ends.is_some_and(|ends| ends.is_true())))
        }
        _ => return Ok(None),
    }))
}

/// Methods that examine a string.
fn asked(this: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let all = |accept: &dyn Fn(char) -> bool| {
        bind(name, [], args).map(|[]| Some(Value::from(!this.is_empty() && this.chars().all(accept))))
    };
    let cased = |right: fn(char) -> bool, wrong: fn(char) -> bool| {
        bind(name, [], args).map(|[]| Some(Value::from(this.chars().any(right) && !this.chars().any(wrong))))
    };
    match name {
        "isdigit" | "isdecimal" | "isnumeric" => all(&char::is_numeric),
        "isalpha" => all(&char::is_alphabetic),
        "isalnum" => all(&char::is_alphanumeric),
        "isspace" => all(&is_space),
        "isascii" => bind(name, [], args).map(|[]| Some(Value::from(this.is_ascii()))),
        "isupper" => cased(char::is_uppercase, char::is_lowercase),
        "islower" => cased(char::is_lowercase, char::is_uppercase),
        "istitle" => {
            bind(name, [], args).map(|[]| Some(Value::from(title(this) == this && title(this) != this.to_lowercase())))
        }
        "isidentifier" => {
            let rest = |c: char| c == '_' || c.is_alphanumeric();
            let first = this.chars().next().is_some_and(|c| c == '_' || c.is_alphabetic());
            bind(name, [], args).map(|[]| Some(Value::from(first && this.chars().all(rest))))
        }
        "startswith" | "endswith" => {
            let [ends, start, end] = bind(name, ["prefix", "start", "end"], args)?;
            let ends = ends.ok_or_else(|| refused(format!("{name} wants a text")))?;
            let within = range(this, number(start, name)?, number(end, name)?);
            let ends: Vec<Value> = if ends.as_str().is_some() { vec![ends] } else { ends.try_iter()?.collect() };
            let ends = ends.into_iter().map(|end| needed(Some(end), name)).collect::<Result<Vec<_>, Error>>()?;
            let holds = |end: &String| match (within, name) {
                (Some((_, text)), "startswith") => text.starts_with(&**end),
                (Some((_, text)), _) => text.ends_with(&**end),
                (None, _) => false,
            };
            Ok(Some(Value::from(ends.iter().any(holds))))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [what, start, end] = bind(name, ["sub", "start", "end"], args)?;
            let what = needed(what, name)?;
            let within = range(this, number(start, name)?, number(end, name)?);
            if name == "count" {
                return Ok(Some(Value::from(within.map_or(0, |(_, text)| text.matches(&*what).count()))));
            }
            let found = within.and_then(|(before, text)| {
                let at = if name.starts_with('r') { text.rfind(&*what) } else { text.find(&*what) };
                at.map(|at| before + text[..at].chars().count())
            });
            match found {
                None if name.ends_with("index") => Err(refused("substring not found")),
                found => Ok(Some(found.map_or_else(|| Value::from(-1), Value::from))),
            }
        }
        _ => Ok(None),
    }
}

/// Methods that pad a string.
fn filled(this: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    if !matches!(name, "center" | "ljust" | "rjust" | "zfill" | "expandtabs") {
        return Ok(None);
    }
    let [width, fill] = bind(name, ["width", "fillchar"], args)?;
    let width = number(width, name)?;
    if name == "expandtabs" {
        let width = usize::try_from(width.unwrap_or(8)).unwrap_or_default();
        return if width <= 64 { Ok(Some(expand(this, width).into())) } else { Err(refused("tabs are not so wide")) };
    }
    let width = width.ok_or_else(|| refused(format!("{name} wants a width")))?;
    let fill = word(fill, name)?.unwrap_or_else(|| " ".to_owned());
    let mut fills = fill.chars();
    let (Some(fill), None) = (fills.next(), fills.next()) else {
        return Err(refused(format!("{name}: the fill character must be exactly one character long")));
    };
    Ok(Some(fill_up(this, name, usize::try_from(width).unwrap_or_default(), fill)?.into()))
}

fn dict(this: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let view = |name: &'static str, values: Vec<Value>| Ok(Some(Value::from_object(MapView { name, values })));
    match name {
        "get" => {
            let [key, other] = bind(name, ["key", "default"], args)?;
            let key = key.ok_or_else(|| refused("get wants a key"))?;
            let found = this.get_item(&key)?;
            let other = || other.unwrap_or_else(|| Value::from(()));
            Ok(Some(if found.is_undefined() { other() } else { found }))
        }
        "items" | "keys" | "values" => {
            let [] = bind(name, [], args)?;
            let pairs = pairs(this)?.into_iter();
            match name {
                "items" => {
                    view("dict_items", pairs.map(|(key, value)| Value::from_object(Tuple(vec![key, value]))).collect())
                }
                "keys" => view("dict_keys", pairs.map(|(key, _)| key).collect()),
                _ => view("dict_values", pairs.map(|(_, value)| value).collect()),
            }
        }
        "copy" => bind(name, [], args).map(|[]| Some(this.clone())),
        _ => Ok(None),
    }
}

fn list(this: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match name {
        "count" => {
            let [what] = bind(name, ["value"], args)?;
            let count = this.try_iter()?.filter(|item| Some(item) == what.as_ref()).count();
            Ok(Some(Value::from(count)))
        }
        "index" => {
            let [what] = bind(name, ["value"], args)?;
            match this.try_iter()?.enumerate().find(|(_, item)| Some(item) == what.as_ref()) {
                Some((at, _)) => Ok(Some(Value::from(at))),
                None => Err(refused("the list has no such item")),
            }
        }
        "copy" => bind(name, [], args).map(|[]| Some(this.clone())),
        _ => Ok(None),
    }
}
