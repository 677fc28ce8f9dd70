//! Checks the settings of the builder (`build:`).

use super::super::Document;
use super::super::schema::Build;
use super::{Checked, within};
use crate::spec::{Kind, Precision};
use crate::tensor::DType;

/// Largest batch size; larger ones would only overflow later.
const BATCH_LIMIT: f64 = 65_536.0;

pub(super) fn check(document: &Document, kind: Kind, build: &Build) -> Checked {
    let at = |field: &str, message: &str, help: Option<&str>| Err(document.error(&["build", field], message, help));
    let number = |field: &str, value: Option<f64>, allowed| within(document, &["build", field], value, allowed);
    number("batch", build.batch.map(f64::from), 1.0..=BATCH_LIMIT)?;
    number("max_batch", build.max_batch.map(f64::from), 1.0..=BATCH_LIMIT)?;
    number("optimization_level", build.optimization_level.map(f64::from), 0.0..=5.0)?;
    // 4 TiB.
    number("workspace_mib", build.workspace_mib.map(f64::from), 1.0..=4_194_304.0)?;
    let batch = build.batch.unwrap_or(1);
    if let Some(max_batch) = build.max_batch
        && max_batch < batch
    {
        return at("max_batch", &format!("max_batch {max_batch} is below batch {batch}"), None);
    }
    let quantised = build.precision.is_some_and(|precision| precision.bits().is_some());
    head(document, kind, build)?;
    if let Some(group) = build.group_size {
        if !quantised && build.head.is_none_or(|head| head.bits().is_none()) {
            return at("group_size", "group_size belongs to `precision` or `head` in `int8` or `int4`", None);
        }
        if ![32, 64, 128].contains(&group) {
            return at("group_size", &format!("groups of {group} inputs are not supported"), Some("use 32, 64 or 128"));
        }
    }
    if build.calibration.is_some() && !quantised {
        return at("calibration", "calibration belongs to `precision: int8` or `int4`", None);
    }
    if quantised && kind != Kind::Llm {
        return at("precision", "int8 and int4 are for language models", Some("use fp16"));
    }
    if build.kv_cache.is_some() && kind != Kind::Llm {
        return at("kv_cache", "kv_cache is for language models", Some("leave it out"));
    }
    for name in build.compute_capabilities.iter().flatten() {
        let number = |part: &str| !part.is_empty() && part.len() <= 2 && part.bytes().all(|b| b.is_ascii_digit());
        if !name.split_once('.').is_some_and(|(major, minor)| number(major) && number(minor)) {
            let message = format!("`{name}` is not a compute capability");
            return at("compute_capabilities", &message, Some("write e.g. [\"8.9\"]"));
        }
    }
    for (name, shape) in build.shapes.iter().flatten() {
        shape.check(name, kind == Kind::Onnx).or_else(|(message, hint)| at("shapes", &message, hint))?;
    }
    Ok(())
}

/// Checks the type of the output matrix against that of the arithmetic.
fn head(document: &Document, kind: Kind, build: &Build) -> Checked {
    let Some(head) = build.head else { return Ok(()) };
    let error = |message: &str, help: &str| Err(document.error(&["build", "head"], message, Some(help)));
    if kind != Kind::Llm {
        return error("head is for language models", "leave it out");
    }
    let precision = build.precision.unwrap_or(Precision::Fp16);
    if head.bits().is_some() && precision.dtype() != DType::Float16 {
        let message = format!("`head: {head}` computes in fp16, `precision: {precision}` does not");
        return error(&message, "use `precision: fp16`, `int8` or `int4`, or leave out `head`");
    }
    if head.bits().is_none() && head.dtype() != precision.dtype() {
        let message = format!("`head: {head}` is not the type that `precision: {precision}` computes in");
        return error(&message, "use int8 or int4, or leave out `head`");
    }
    Ok(())
}
