//! Jinja2's filters and tests that minijinja lacks or implements differently (jinja2/filters.py, jinja2/tests.py).

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, State, Value, filters};

use super::values::{Number, Tuple, bind, pairs, refused, text};
use super::words::{capitalize, fill_up, strip};
use super::{json, percent};

pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", |value: Value, args: Rest<Value>| json::tojson(&value, &args));
    environment.add_filter("string", |value: Value| text(&value));
    environment.add_filter("upper", |value: Value| text(&value).map(|text| text.to_uppercase()));
    environment.add_filter("lower", |value: Value| text(&value).map(|text| text.to_lowercase()));
    environment.add_filter("capitalize", |value: Value| text(&value).map(|text| capitalize(&text)));
    environment.add_filter("title", |value: Value| text(&value).map(|text| title(&text)));
    environment.add_filter("trim", |value: Value, args: Rest<Value>| trim(&value, &args));
    environment.add_filter("replace", |value: Value, args: Rest<Value>| replace(&value, &args));
    environment.add_filter("join", join);
    environment.add_filter("wordcount", |value: Value| text(&value).map(|text| words(&text)));
    environment.add_filter("center", |value: Value, args: Rest<Value>| center(&value, &args));
    environment.add_filter("truncate", |value: Value, args: Rest<Value>| truncate(&value, &args));
    environment.add_filter("indent", |value: Value, args: Rest<Value>| indent(&value, &args));
    for name in ["escape", "e"] {
        environment.add_filter(name, |value: Value| markup(&value).map(Value::from_safe_string));
    }
    environment.add_filter("safe", |value: Value| text(&value).map(Value::from_safe_string));
    environment.add_filter("striptags", |value: Value| text(&value).map(|text| striptags(&text)));
    environment.add_filter("format", |value: Value, args: Rest<Value>| format(&value, args));
    environment.add_filter("int", |value: Value, args: Rest<Value>| int(&value, &args));
    environment.add_filter("float", |value: Value, args: Rest<Value>| float(&value, &args));
    environment.add_filter("round", |value: Value, args: Rest<Value>| round(&value, &args));
    environment.add_filter("items", |value: Value| items(&value));
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("default", |value: Value, args: Rest<Value>| default(value, &args));
    environment.add_filter("d", |value: Value, args: Rest<Value>| default(value, &args));
    tests(environment);
}

fn tests(environment: &mut Environment<'static>) {
    environment.add_test("sequence", |value: Value| match value.kind() {
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map => true,
        ValueKind::Iterable => value.len().is_some() && value.downcast_object_ref::<super::values::MapView>().is_none(),
        _ => false,
    });
    // To minijinja nothing is an empty list; templates ask this to find out whether there are functions.
    environment.add_test("iterable", |value: Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("number", |value: Value| Number::of(&value).is_some());
    environment.add_test("callable", |value: Value| value.kind() == ValueKind::Plain);
}

fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut first = true;
    for c in text.chars() {
        match first {
            true => titled.extend(c.to_uppercase()),
            false => titled.extend(c.to_lowercase()),
        }
        // jinja2 parts words at `_word_beginning_split_re`.
        first = c.is_whitespace() || "-({[<".contains(c);
    }
    titled
}

fn trim(value: &Value, args: &[Value]) -> Result<String, Error> {
    let [chars] = bind("trim", ["chars"], args)?;
    let chars = chars.filter(|chars| !chars.is_none()).map(|chars| text(&chars)).transpose()?;
    Ok(strip(&text(value)?, chars.as_deref(), (true, true)))
}

fn replace(value: &Value, args: &[Value]) -> Result<String, Error> {
    let [old, new, count] = bind("replace", ["old", "new", "count"], args)?;
    let (Some(old), Some(new)) = (old, new) else { return Err(refused("replace wants an old and a new text")) };
    let (value, old, new) = (text(value)?, text(&old)?, text(&new)?);
    let count = count.and_then(|count| count.as_i64()).and_then(|count| usize::try_from(count).ok());
    Ok(count.map_or_else(|| value.replace(&old, &new), |count| value.replacen(&old, &new, count)))
}

fn join(state: &State<'_, '_>, value: Value, args: Rest<Value>) -> Result<String, Error> {
    let [between, attribute] = bind("join", ["d", "attribute"], &args)?;
    let between = between.map(|between| text(&between)).transpose()?.unwrap_or_default();
    let items: Vec<Value> = match attribute.filter(|attribute| !attribute.is_none()) {
        Some(attribute) => {
            let named = [("attribute", attribute)].into_iter().collect::<minijinja::value::Kwargs>();
            state.apply_filter("map", &[value, named.into()])?.try_iter()?.collect()
        }
        None => value.try_iter()?.collect(),
    };
    let words = items.iter().map(text).collect::<Result<Vec<_>, Error>>()?;
    Ok(words.join(&between))
}

fn words(text: &str) -> usize {
    text.split(|c: char| c != '_' && !c.is_alphanumeric()).filter(|word| !word.is_empty()).count()
}

fn center(value: &Value, args: &[Value]) -> Result<String, Error> {
    let [width] = bind("center", ["width"], args)?;
    let width = width.map_or(Some(80), |width| width.as_usize());
    fill_up(&text(value)?, "center", width.ok_or_else(|| refused("center wants a width"))?, ' ')
}

fn truncate(value: &Value, args: &[Value]) -> Result<String, Error> {
    let [length, whole, end, leeway] = bind("truncate", ["length", "killwords", "end", "leeway"], args)?;
    let size = |value: Option<Value>, other: usize| match value.filter(|value| !value.is_none()) {
        Some(value) => value.as_usize().ok_or_else(|| refused("truncate wants a length")),
        None => Ok(other),
    };
    let (length, leeway) = (size(length, 255)?, size(leeway, 5)?);
    let end = end.map(|end| text(&end)).transpose()?.unwrap_or_else(|| "...".to_owned());
    let value = text(value)?;
    let keep = length.checked_sub(end.chars().count()).ok_or_else(|| refused("truncate: the end is longer"))?;
    if value.chars().count() <= length.saturating_add(leeway) {
        return Ok(value);
    }
    let cut: String = value.chars().take(keep).collect();
    let words = !whole.is_some_and(|whole| whole.is_true());
    let cut = cut.rsplit_once(' ').filter(|_| words).map_or(cut.as_str(), |(before, _)| before);
    Ok(format!("{cut}{end}"))
}

fn indent(value: &Value, args: &[Value]) -> Result<String, Error> {
    let [width, first, blank] = bind("indent", ["width", "first", "blank"], args)?;
    let width = width.unwrap_or_else(|| Value::from(4));
    let indent = match width.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(width.as_usize().filter(|width| *width <= 1024).ok_or_else(|| refused("indent: no width"))?),
    };
    let truth = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (first, blank) = (truth(first), truth(blank));
    // A newline is added so that the last line counts too (`do_indent`).
    let value = text(value)? + "\n";
    let lines: Vec<&str> = value.strip_suffix('\n').unwrap_or_default().split('\n').collect();
    let set_in = |(at, line): (usize, &&str)| {
        let bare = at == 0 || (line.is_empty() && !blank);
        format!("{}{line}", if bare { "" } else { &indent })
    };
    let lines: Vec<String> = lines.iter().enumerate().map(set_in).collect();
    Ok(format!("{}{}", if first { indent.as_str() } else { "" }, lines.join("\n")))
}

/// Escapes HTML like markupsafe.
pub(super) fn markup(value: &Value) -> Result<String, Error> {
    let text = text(value)?;
    if value.is_safe() {
        return Ok(text);
    }
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Ok(text.replace('\'', "&#39;").replace('"', "&#34;"))
}

/// Removes tags like markupsafe, but keeps entities.
fn striptags(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('<') {
        let Some((_, after)) = after.split_once('>') else { break };
        bare.push_str(before);
        rest = after;
    }
    bare.push_str(rest);
    bare.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn format(value: &Value, args: Rest<Value>) -> Result<String, Error> {
    let values = match args.first() {
        Some(named) if named.is_kwargs() => pairs(named)?.into_iter().collect(),
        _ => Value::from_object(Tuple(args.0)),
    };
    percent::format(&text(value)?, &values)
}

fn int(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [other, base] = bind("int", ["default", "base"], args)?;
    let other = other.unwrap_or_else(|| Value::from(0));
    let base = base.and_then(|base| base.as_usize()).and_then(|base| u32::try_from(base).ok()).unwrap_or(10);
    let parsed = match (Number::of(value), value.as_str()) {
        (Some(Number::Whole(number)), _) => Some(number),
        (Some(Number::Float(number)), _) => number.is_finite().then(|| number.trunc() as i128),
        (_, Some(text)) if (2..=36).contains(&base) => {
            let digits = text.trim().replace('_', "");
            let lower = digits.to_lowercase();
            let mark = [("0x", 16), ("0o", 8), ("0b", 2)].iter().find(|mark| mark.1 == base).map_or("", |mark| mark.0);
            let plain = lower.strip_prefix(mark).unwrap_or(&lower);
            let float = || text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
            i128::from_str_radix(plain, base).ok().or_else(|| float().map(|number| number.trunc() as i128))
        }
        _ => None,
    };
    Ok(parsed.map_or(other, super::values::whole))
}

fn float(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [other] = bind("float", ["default"], args)?;
    let parsed = match Number::of(value) {
        Some(number) => Some(number.float()),
        None => value.as_str().and_then(|text| text.trim().replace('_', "").parse::<f64>().ok()),
    };
    Ok(parsed.map_or_else(|| other.unwrap_or_else(|| Value::from(0.0)), Value::from))
}

/// Rounds halves to even; the result is a float only if the value was one.
fn round(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [precision, method] = bind("round", ["precision", "method"], args)?;
    let precision = match precision {
        Some(precision) => precision.as_i64().and_then(|precision| i32::try_from(precision).ok()),
        None => Some(0),
    };
    let precision = precision.filter(|precision| (-300..=300).contains(precision));
    let precision = precision.ok_or_else(|| refused("round: no precision"))?;
    let number = Number::of(value).ok_or_else(|| refused(format!("{} cannot be rounded", value.kind())))?;
    let scale = 10_f64.powi(precision);
    let method = method.map(|method| text(&method)).transpose()?;
    match (method.as_deref().unwrap_or("common"), number) {
        ("common", Number::Whole(_)) if precision >= 0 => Ok(value.clone()),
        // The nearest decimal of the float's exact value, as Python finds it.
        ("common", Number::Float(number)) if precision > 0 => {
            let places = usize::try_from(precision).unwrap_or_default();
            Ok(Value::from(format!("{number:.places$}").parse::<f64>().unwrap_or(number)))
        }
        ("common", Number::Float(number)) => Ok(Value::from((number * scale).round_ties_even() / scale)),
        ("common", Number::Whole(number)) => {
            Ok(super::values::whole(((number as f64 * scale).round_ties_even() / scale) as i128))
        }
        ("ceil", number) => Ok(Value::from((number.float() * scale).ceil() / scale)),
        ("floor", number) => Ok(Value::from((number.float() * scale).floor() / scale)),
        (other, _) => Err(refused(format!("round: method `{other}` is not common, ceil or floor"))),
    }
}

fn tuples(pairs: Vec<(Value, Value)>) -> Value {
    pairs.into_iter().map(|(key, value)| Value::from_object(Tuple(vec![key, value]))).collect()
}

fn items(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(tuples(Vec::new())),
        ValueKind::Map => Ok(tuples(pairs(value)?)),
        kind => Err(refused(format!("{kind} has no items: they are of a mapping"))),
    }
}

fn dictsort(value: Value, args: Rest<Value>) -> Result<Value, Error> {
    let names = ["case_sensitive", "by", "reverse"];
    let bound = bind("dictsort", names, &args)?;
    let given = names.into_iter().zip(bound).filter_map(|(name, value)| value.map(|value| (name, value)));
    let sorted = filters::dictsort(&value, given.collect())?;
    let pair = |pair: Value| pair.try_iter().map(|items| Value::from_object(Tuple(items.collect())));
    sorted.try_iter()?.map(pair).collect::<Result<Value, Error>>()
}

fn default(value: Value, args: &[Value]) -> Result<Value, Error> {
    let [other, falsy] = bind("default", ["default_value", "boolean"], args)?;
    let falsy = falsy.is_some_and(|falsy| falsy.is_true());
    let missing = value.is_undefined() || (falsy && !value.is_true());
    Ok(if missing { other.unwrap_or_else(|| Value::from("")) } else { value })
}
