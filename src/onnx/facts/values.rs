//! Evaluates small tensors: what exporters write for arithmetic on shapes, and the scales of a resize.

use onnx_protobuf::NodeProto;

use super::layout::{bounds, clamp, parts, range, resolve, shape_range};
use super::{Fact, VALUES_LIMIT, Values, elem, of_tensor};
use crate::onnx::attributes::{Attributes, input};

/// The elements of the outputs, if known.
pub(super) fn of(node: &NodeProto, inputs: &[&Fact]) -> Vec<Option<Values>> {
    match node.op_type.as_str() {
        "Split" => split(node, inputs).unwrap_or_default(),
        _ => vec![single_output(node, inputs)],
    }
}

fn single_output(node: &NodeProto, inputs: &[&Fact]) -> Option<Values> {
    let first = inputs.first().copied();
    let same = || first?.values.clone();
    match node.op_type.as_str() {
        "Constant" => constant(node),
        "Shape" => {
            let shape = first?.shape.as_ref()?;
            let (from, to) = shape_range(node, shape.len());
            Some(Values::Ints(shape.get(from..to.max(from))?.to_vec()))
        }
        "Size" => Some(Values::Ints(vec![Some(first?.count()?)])),
        "Identity" | "Squeeze" | "Unsqueeze" | "Reshape" | "Flatten" => same(),
        "Cast" => cast(&same()?, node.int("to", 0)),
        "ConstantOfShape" => {
            let dims = first?.ints()?;
            let count = dims.iter().try_fold(1i64, |count, dim| count.checked_mul((*dim).max(0)))?;
            let value = match node.get("value") {
                Some(value) => of_tensor(value.t.as_ref()?).values?,
                None => Values::Floats(vec![0.0]),
            };
            repeated(&value, count)
        }
        // A single element alone: others would have to be laid out anew.
        "Expand" | "Tile" => {
            let counts = inputs.get(1)?.ints()?;
            let count = counts.iter().try_fold(1i64, |count, times| count.checked_mul(*times))?;
            repeated(&same()?, count)
        }
        "Range" => {
            let bound = |index: usize| inputs.get(index)?.ints()?.first().copied();
            let (from, step) = (bound(0)?, bound(2)?);
            let count = range(from, bound(1)?, step).filter(|count| small(*count))?;
            let at = |index: i64| index.checked_mul(step).and_then(|offset| from.checked_add(offset));
            Some(Values::Ints((0..count).map(at).collect()))
        }
        "Gather" => gathered(node, inputs),
        "Slice" => sliced(node, inputs),
        "Concat" => {
            inputs.iter().all(|fact| fact.rank() == Some(1)).then_some(())?;
            joined(&inputs.iter().map(|fact| fact.values.as_ref()).collect::<Option<Vec<&Values>>>()?)
        }
        "ReduceProd" | "ReduceSum" | "ReduceMax" | "ReduceMin" => total(node, inputs),
        "Where" => chosen(inputs),
        "Neg" | "Abs" | "Not" | "Floor" | "Ceil" | "Sqrt" => unary(node.op_type.as_str(), &same()?),
        op if inputs.len() == 2 => binary(op, inputs.first()?, inputs.get(1)?),
        _ => None,
    }
}

fn small(count: i64) -> bool {
    usize::try_from(count).is_ok_and(|count| count <= VALUES_LIMIT)
}

fn constant(node: &NodeProto) -> Option<Values> {
    if let Some(tensor) = node.get("value").and_then(|value| value.t.as_ref()) {
        return of_tensor(tensor).values;
    }
    if let Some(value) = node.get("value_int") {
        return Some(Values::Ints(vec![Some(value.i)]));
    }
    if let Some(value) = node.get("value_float") {
        return Some(Values::Floats(vec![value.f]));
    }
    if let Some(list) = node.get("value_floats").filter(|list| list.floats.len() <= VALUES_LIMIT) {
        return Some(Values::Floats(list.floats.clone()));
    }
    let list = node.ints("value_ints").filter(|list| list.len() <= VALUES_LIMIT)?;
    Some(Values::Ints(list.iter().copied().map(Some).collect()))
}

fn len(values: &Values) -> usize {
    match values {
        Values::Ints(values) => values.len(),
        Values::Floats(values) => values.len(),
    }
}

/// A value repeated `count` times.
fn repeated(values: &Values, count: i64) -> Option<Values> {
    let count = usize::try_from(count).ok().filter(|count| *count <= VALUES_LIMIT)?;
    match values {
        Values::Ints(values) => values.first().filter(|_| values.len() == 1).map(|v| Values::Ints(vec![*v; count])),
        Values::Floats(values) => values.first().filter(|_| values.len() == 1).map(|v| Values::Floats(vec![*v; count])),
    }
}

fn picked(values: &Values, places: &[i64]) -> Option<Values> {
    fn pick<T: Copy>(values: &[T], places: &[i64]) -> Option<Vec<T>> {
        places.iter().map(|at| values.get(usize::try_from(*at).ok()?).copied()).collect()
    }
    Some(match values {
        Values::Ints(values) => Values::Ints(pick(values, places)?),
        Values::Floats(values) => Values::Floats(pick(values, places)?),
    })
}

fn gathered(node: &NodeProto, inputs: &[&Fact]) -> Option<Values> {
    let data = inputs.first().filter(|fact| fact.rank() == Some(1))?;
    (node.int("axis", 0) == 0 || node.int("axis", 0) == -1).then_some(())?;
    let size = data.dim(0)?;
    let places = inputs.get(1)?.ints()?.into_iter().map(|at| if at < 0 { at.checked_add(size) } else { Some(at) });
    picked(data.values.as_ref()?, &places.collect::<Option<Vec<i64>>>()?)
}

fn sliced(node: &NodeProto, inputs: &[&Fact]) -> Option<Values> {
    let fact = inputs.first().filter(|fact| fact.rank() == Some(1))?;
    let cut: [(usize, i64, i64, i64); 1] = bounds(node, inputs, 1)?.try_into().ok()?;
    let [(_, start, end, step)] = cut;
    let (start, count) = clamp(fact.dim(0)?, start, end, step).filter(|(_, count)| small(*count))?;
    let places = (0..count).map(|at| at.checked_mul(step).and_then(|offset| start.checked_add(offset)));
    picked(fact.values.as_ref()?, &places.collect::<Option<Vec<i64>>>()?)
}

fn joined(parts: &[&Values]) -> Option<Values> {
    (parts.iter().map(|part| len(part)).sum::<usize>() <= VALUES_LIMIT).then_some(())?;
    let (mut ints, mut floats) = (Vec::new(), Vec::new());
    for part in parts {
        match part {
            Values::Ints(values) => ints.extend(values),
            Values::Floats(values) => floats.extend(values),
        }
    }
    // Of one type, or the graph is wrong.
    match (ints.is_empty(), floats.is_empty()) {
        (_, true) => Some(Values::Ints(ints)),
        (true, false) => Some(Values::Floats(floats)),
        (false, false) => None,
    }
}

fn split(node: &NodeProto, inputs: &[&Fact]) -> Option<Vec<Option<Values>>> {
    let data = inputs.first().filter(|fact| fact.rank() == Some(1))?;
    resolve(node.int("axis", 0), 1)?;
    let mut from = 0i64;
    let mut pieces = Vec::new();
    for size in parts(node, inputs, 0)?.into_iter().take(node.output.len()) {
        let to = from.checked_add(size).filter(|to| *to >= from && small(*to))?;
        pieces.push(picked(data.values.as_ref()?, &(from..to).collect::<Vec<i64>>()));
        from = to;
    }
    Some(pieces)
}

/// A reduction of a whole list to one number.
fn total(node: &NodeProto, inputs: &[&Fact]) -> Option<Values> {
    let fact = inputs.first().filter(|fact| fact.rank().is_some_and(|rank| rank <= 1))?;
    let all = match input(node, 1) {
        None => node.ints("axes").is_none(),
        Some(_) => inputs.get(1)?.ints()?.is_empty(),
    };
    let untouched = all && node.int("noop_with_empty_axes", 0) != 0;
    let list = fact.ints().filter(|list| !list.is_empty() && !untouched)?;
    let mut rest = list.iter().copied();
    let first = rest.next()?;
    let value = rest.try_fold(first, |value, next| match node.op_type.as_str() {
        "ReduceProd" => value.checked_mul(next),
        "ReduceSum" => value.checked_add(next),
        "ReduceMax" => Some(value.max(next)),
        _ => Some(value.min(next)),
    })?;
    Some(Values::Ints(vec![Some(value)]))
}

/// The element at an index; a list of one element is broadcast.
fn at<T: Copy>(values: &[T], place: usize) -> Option<T> {
    values.get(if values.len() == 1 { 0 } else { place }).copied()
}

/// Length of two or three lists after broadcasting single elements; `None` if the result depends on dimensions.
fn breadth(facts: &[&Fact]) -> Option<usize> {
    let counts: Vec<usize> = facts.iter().map(|fact| fact.values.as_ref().map(len)).collect::<Option<_>>()?;
    let most = counts.iter().copied().max()?;
    let shapes: Vec<_> =
        facts.iter().zip(&counts).filter(|(_, count)| **count != 1).map(|(fact, _)| &fact.shape).collect();
    let same = shapes.windows(2).all(|pair| pair.first() == pair.last());
    let plain = counts.iter().all(|count| *count == most || *count == 1);
    (same && plain && counts.iter().all(|count| *count > 0)).then_some(most)
}

fn chosen(inputs: &[&Fact]) -> Option<Values> {
    let [condition, yes, no] = inputs else { return None };
    let count = breadth(inputs)?;
    let condition = condition.ints()?;
    match (yes.values.as_ref()?, no.values.as_ref()?) {
        (Values::Ints(yes), Values::Ints(no)) => {
            let pick = |place| if at(&condition, place)? != 0 { at(yes, place) } else { at(no, place) };
            Some(Values::Ints((0..count).map(pick).collect::<Option<_>>()?))
        }
        (Values::Floats(yes), Values::Floats(no)) => {
            let pick = |place| if at(&condition, place)? != 0 { at(yes, place) } else { at(no, place) };
            Some(Values::Floats((0..count).map(pick).collect::<Option<_>>()?))
        }
        _ => None,
    }
}

fn unary(op: &str, values: &Values) -> Option<Values> {
    match values {
        Values::Ints(values) => {
            let one = |value: i64| match op {
                "Neg" => value.checked_neg(),
                "Abs" => value.checked_abs(),
                "Not" => Some(i64::from(value == 0)),
                _ => None,
            };
            matches!(op, "Neg" | "Abs" | "Not").then_some(())?;
            Some(Values::Ints(values.iter().map(|value| value.and_then(one)).collect()))
        }
        Values::Floats(values) => {
            let one: fn(f32) -> f32 = match op {
                "Neg" => |value| -value,
                "Abs" => f32::abs,
                "Floor" => f32::floor,
                "Ceil" => f32::ceil,
                "Sqrt" => f32::sqrt,
                _ => return None,
            };
            Some(Values::Floats(values.iter().copied().map(one).collect()))
        }
    }
}

fn binary(op: &str, a: &Fact, b: &Fact) -> Option<Values> {
    let count = breadth(&[a, b])?;
    match (a.values.as_ref()?, b.values.as_ref()?) {
        (Values::Ints(left), Values::Ints(right)) => {
            // Types that wrap around at other bounds are left alone.
            let wide = |fact: &Fact| matches!(fact.elem, Some(elem::INT64 | elem::INT32 | elem::BOOL));
            (wide(a) && wide(b)).then_some(())?;
            integer(op, 1, 1)?;
            let one = |place| integer(op, at(left, place).flatten()?, at(right, place).flatten()?);
            Some(Values::Ints((0..count).map(one).collect()))
        }
        (Values::Floats(left), Values::Floats(right)) => {
            if let Some(one) = comparison(op) {
                let one = |place| Some(i64::from(one(at(left, place)?, at(right, place)?)));
                return Some(Values::Ints((0..count).map(one).collect()));
            }
            let one: fn(f32, f32) -> f32 = match op {
                "Add" => |a, b| a + b,
                "Sub" => |a, b| a - b,
                "Mul" => |a, b| a * b,
                "Div" => |a, b| a / b,
                _ => return None,
            };
            let one = |place| Some(one(at(left, place)?, at(right, place)?));
            Some(Values::Floats((0..count).map(one).collect::<Option<_>>()?))
        }
        _ => None,
    }
}

fn comparison(op: &str) -> Option<fn(f32, f32) -> bool> {
    let one: fn(f32, f32) -> bool = match op {
        "Equal" => |a, b| a == b,
        "Less" => |a, b| a < b,
        "LessOrEqual" => |a, b| a <= b,
        "Greater" => |a, b| a > b,
        "GreaterOrEqual" => |a, b| a >= b,
        _ => return None,
    };
    Some(one)
}

/// Integer arithmetic; `None` for another operator, without a result, or on overflow.
fn integer(op: &str, a: i64, b: i64) -> Option<i64> {
    Some(match op {
        "Add" => a.checked_add(b)?,
        "Sub" => a.checked_sub(b)?,
        "Mul" => a.checked_mul(b)?,
        // Towards zero, as C divides.
        "Div" => a.checked_div(b)?,
        "Max" => a.max(b),
        "Min" => a.min(b),
        "Equal" => i64::from(a == b),
        "Less" => i64::from(a < b),
        "LessOrEqual" => i64::from(a <= b),
        "Greater" => i64::from(a > b),
        "GreaterOrEqual" => i64::from(a >= b),
        "And" => i64::from(a != 0 && b != 0),
        "Or" => i64::from(a != 0 || b != 0),
        "Xor" => i64::from((a != 0) != (b != 0)),
        _ => return None,
    })
}

fn cast(values: &Values, to: i64) -> Option<Values> {
    /// Integers up to here are exact in float32.
    const EXACT: i64 = 1 << 24;
    let to = i32::try_from(to).ok()?;
    match values {
        Values::Ints(values) => match to {
            elem::INT64 => Some(Values::Ints(values.clone())),
            elem::INT32 => {
                let fits = |value: &Option<i64>| value.is_none_or(|value| i32::try_from(value).is_ok());
                values.iter().all(fits).then(|| Values::Ints(values.clone()))
            }
            elem::BOOL => {
                Some(Values::Ints(values.iter().map(|value| value.map(|value| i64::from(value != 0))).collect()))
            }
            elem::FLOAT => {
                let exact = |value: &Option<i64>| {
                    value.filter(|value| (-EXACT..=EXACT).contains(value)).map(|value| value as f32)
                };
                Some(Values::Floats(values.iter().map(exact).collect::<Option<_>>()?))
            }
            _ => None,
        },
        Values::Floats(values) => match to {
            elem::FLOAT => Some(Values::Floats(values.clone())),
            elem::BOOL => Some(Values::Ints(values.iter().map(|value| Some(i64::from(*value != 0.0))).collect())),
            elem::INT32 | elem::INT64 => {
                // Beyond, and for what is no number, runtimes differ.
                let whole = |value: &f32| (value.abs() < 1e9).then(|| value.trunc() as i64);
                Some(Values::Ints(values.iter().map(|value| whole(value).map(Some)).collect::<Option<_>>()?))
            }
            _ => None,
        },
    }
}
