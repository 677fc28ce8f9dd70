//! The functions that [`super::rewrite`] replaces operators with: Python's `+`, `%`, `//`, `*`, Jinja's `~`, slices and
//! tuples.

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, Value};

use super::filters::markup;
use super::percent;
use super::rewrite::{CONCAT, PRODUCT, QUOTIENT, REMAINDER, SLICE, SUM, TUPLE};
use super::values::{Number, Tuple, refused, text, whole};

/// Most bytes of a string that a multiplication may make.
const LONGEST: usize = 16 << 20;
/// Most items of a list that an operation may make.
const ITEMS: usize = 1 << 20;

pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_function(SUM, |terms: Rest<Value>| {
        let mut terms = terms.0.into_iter();
        let first = terms.next().unwrap_or_default();
        terms.try_fold(first, |left, right| sum(&left, &right))
    });
    environment.add_function(CONCAT, concat);
    environment.add_function(REMAINDER, |left: Value, right: Value| remainder(&left, &right));
    environment.add_function(QUOTIENT, |left: Value, right: Value| quotient(&left, &right));
    environment.add_function(PRODUCT, |left: Value, right: Value| product(&left, &right));
    environment.add_function(SLICE, |value: Value, bounds: Rest<Value>| slice(&value, &bounds));
    environment.add_function(TUPLE, |items: Rest<Value>| Value::from_object(Tuple(items.0)));
}

fn concat(operands: Rest<Value>) -> Result<String, Error> {
    operands.iter().map(text).collect()
}

fn impossible(sign: &str, left: &Value, right: &Value) -> Error {
    refused(format!("`{sign}` is not for {} and {}", left.kind(), right.kind()))
}

fn sum(left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (Number::of(left), Number::of(right)) {
        return Ok(match (&a, &b) {
            (Number::Whole(a), Number::Whole(b)) => {
                whole(a.checked_add(*b).ok_or_else(|| refused("a number is too large"))?)
            }
            _ => Value::from(a.float() + b.float()),
        });
    }
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        // What a template calls safe is Markup in Jinja2, which escapes whatever it is put together with.
        if left.is_safe() || right.is_safe() {
            return Ok(Value::from_safe_string([markup(left)?, markup(right)?].concat()));
        }
        return Ok(Value::from([a, b].concat()));
    }
    let list = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    let tuple = |value: &Value| value.downcast_object_ref::<Tuple>().is_some();
    if !list(left) || !list(right) || tuple(left) != tuple(right) {
        return Err(impossible("+", left, right));
    }
    let items: Vec<Value> = left.try_iter()?.chain(right.try_iter()?).take(ITEMS + 1).collect();
    if items.len() > ITEMS {
        return Err(refused(format!("a list has more than {ITEMS} items")));
    }
    Ok(like(left, items))
}

fn remainder(left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(format) = left.as_str() {
        return percent::format(format, right).map(Value::from);
    }
    let (Some(a), Some(b)) = (Number::of(left), Number::of(right)) else { return Err(impossible("%", left, right)) };
    if b.float() == 0.0 {
        return Err(refused("modulo by zero"));
    }
    Ok(match (&a, &b) {
        (Number::Whole(a), Number::Whole(b)) => {
            let rest = a.checked_rem(*b).unwrap_or_default();
            whole(if rest != 0 && (rest < 0) != (*b < 0) { rest + b } else { rest })
        }
        _ => Value::from(float_remainder(a.float(), b.float())),
    })
}

/// Remainder with the sign of the divisor.
fn float_remainder(a: f64, b: f64) -> f64 {
    let rest = a % b;
    if rest == 0.0 {
        0.0_f64.copysign(b)
    } else if (rest < 0.0) != (b < 0.0) {
        rest + b
    } else {
        rest
    }
}

fn quotient(left: &Value, right: &Value) -> Result<Value, Error> {
    let (Some(a), Some(b)) = (Number::of(left), Number::of(right)) else { return Err(impossible("//", left, right)) };
    if b.float() == 0.0 {
        return Err(refused("division by zero"));
    }
    Ok(match (&a, &b) {
        (Number::Whole(a), Number::Whole(b)) => {
            let quotient = a.checked_div(*b).ok_or_else(|| refused("a number is too large"))?;
            let exact = a.checked_rem(*b).unwrap_or_default() == 0;
            whole(if !exact && (*a < 0) != (*b < 0) { quotient - 1 } else { quotient })
        }
        _ => Value::from((a.float() / b.float()).floor()),
    })
}

fn product(left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (Number::of(left), Number::of(right)) {
        return Ok(match (&a, &b) {
            (Number::Whole(a), Number::Whole(b)) => {
                whole(a.checked_mul(*b).ok_or_else(|| refused("a number is too large"))?)
            }
            _ => Value::from(a.float() * b.float()),
        });
    }
    let (many, count) = if Number::of(left).is_some() { (right, left) } else { (left, right) };
    let Some(Number::Whole(count)) = Number::of(count) else { return Err(impossible("*", left, right)) };
    let count = usize::try_from(count.max(0)).map_err(|_| refused("a repetition is too long"))?;
    let fits = |length: usize, most: usize| length.checked_mul(count).is_some_and(|length| length <= most);
    if let Some(text) = many.as_str() {
        return match fits(text.len(), LONGEST) {
            true => Ok(Value::from(text.repeat(count))),
            false => Err(refused(format!("a repetition has more than {LONGEST} bytes"))),
        };
    }
    if many.kind() != ValueKind::Seq && many.kind() != ValueKind::Iterable {
        return Err(impossible("*", left, right));
    }
    let items: Vec<Value> = many.try_iter()?.collect();
    if !fits(items.len(), ITEMS) {
        return Err(refused(format!("a repetition has more than {ITEMS} items")));
    }
    Ok(like(many, items.iter().cycle().take(items.len() * count).cloned().collect()))
}

/// A tuple if `value` is one, else a list.
fn like(value: &Value, items: Vec<Value>) -> Value {
    match value.downcast_object_ref::<Tuple>() {
        Some(_) => Value::from_object(Tuple(items)),
        None => Value::from(items),
    }
}

fn slice(value: &Value, bounds: &[Value]) -> Result<Value, Error> {
    let bound = |at: usize| -> Result<Option<i128>, Error> {
        match bounds.get(at) {
            None => Ok(None),
            Some(value) if value.is_none() => Ok(None),
            Some(value) => match Number::of(value) {
                Some(Number::Whole(number)) => Ok(Some(number)),
                _ => Err(refused(format!("{} is no bound of a slice", value.kind()))),
            },
        }
    };
    let (start, stop, step) = (bound(0)?, bound(1)?, bound(2)?.unwrap_or(1));
    if step == 0 {
        return Err(refused("a slice's step is 0"));
    }
    if let Some(text) = value.as_str() {
        let letters: Vec<char> = text.chars().collect();
        return Ok(places(letters.len(), start, stop, step).map(|at| letters[at]).collect::<String>().into());
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            Ok(like(value, places(items.len(), start, stop, step).map(|at| items[at].clone()).collect()))
        }
        kind => Err(refused(format!("{kind} has no slices"))),
    }
}

/// The indices of a slice (`PySlice_AdjustIndices` in Objects/sliceobject.c of CPython).
fn places(length: usize, start: Option<i128>, stop: Option<i128>, step: i128) -> impl Iterator<Item = usize> {
    let length = i128::try_from(length).unwrap_or_default();
    let (least, most) = if step < 0 { (-1, length - 1) } else { (0, length) };
    let clip = |at: i128| (if at < 0 { at.saturating_add(length) } else { at }).clamp(least, most);
    let (from, to) = if step < 0 { (most, least) } else { (least, most) };
    let (from, to) = (start.map_or(from, clip), stop.map_or(to, clip));
    let within = move |at: &i128| if step < 0 { *at > to } else { *at < to };
    let next = move |at: &i128| at.checked_add(step);
    std::iter::successors(Some(from), next).take_while(within).map_while(|at| usize::try_from(at).ok())
}
