//! Reads a model's config.json; each error names file and field. It can record which fields were read, so that unread
//! fields are known.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;

use crate::checkpoint::CheckpointError;
use crate::diagnostic::Diagnostic;

/// A configuration object, with its file's name for messages.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    path: &'a Path,
    value: &'a Value,
    reads: Option<&'a Reads>,
}

/// The fields that were read, each with its object's address, since nested objects have fields of the same names.
#[derive(Debug, Default)]
pub(super) struct Reads(RefCell<HashSet<(usize, String)>>);

impl Reads {
    fn note(&self, object: &Value, field: &str) {
        self.0.borrow_mut().insert((std::ptr::from_ref(object).addr(), field.to_owned()));
    }

    fn has(&self, object: &Value, field: &str) -> bool {
        self.0.borrow().contains(&(std::ptr::from_ref(object).addr(), field.to_owned()))
    }
}

pub(super) type Read<T> = Result<T, CheckpointError>;

/// Largest size: a larger one is damage, and would only overflow later.
const SIZE_LIMIT: u64 = 1 << 28;

impl<'a> Config<'a> {
    /// The configuration `value`, read from `path`.
    pub fn new(path: &'a Path, value: &'a Value) -> Self {
        Self { path, value, reads: None }
    }

    /// The configuration `value`, read from `path`; the fields read are recorded in `reads`.
    pub(super) fn recorded(path: &'a Path, value: &'a Value, reads: &'a Reads) -> Self {
        Self { path, value, reads: Some(reads) }
    }

    /// Another object of the same file.
    pub fn with<'b>(&self, value: &'b Value) -> Config<'b>
    where
        'a: 'b,
    {
        Config { path: self.path, value, reads: self.reads }
    }

    /// Fields that were not read; all, if reads are not recorded.
    pub(super) fn unread(&self) -> Vec<(&'a str, &'a Value)> {
        let fields = self.value.as_object().into_iter().flatten();
        let asked = |field: &str| self.reads.is_some_and(|reads| reads.has(self.value, field));
        fields.map(|(field, value)| (field.as_str(), value)).filter(|(field, _)| !asked(field)).collect()
    }

    /// Marks a field as read because its value has no effect here.
    pub(super) fn pass(&self, field: &str) {
        self.get(field);
    }

    /// All fields.
    pub fn fields(&self) -> serde_json::Map<String, Value> {
        self.value.as_object().cloned().unwrap_or_default()
    }

    /// An error about this file.
    pub fn error(&self, message: impl Into<Diagnostic>) -> CheckpointError {
        CheckpointError::new(self.path, message)
    }

    /// A field's value, if it is present and not null.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        if let Some(reads) = self.reads {
            reads.note(self.value, field);
        }
        self.value.get(field).filter(|value| !value.is_null())
    }

    /// Whether a field is present and null, where that differs from absent.
    pub fn is_null(&self, field: &str) -> bool {
        self.get(field).is_none() && self.value.get(field).is_some()
    }

    /// A nested object.
    pub fn within(&self, field: &str) -> Option<Config<'a>> {
        self.get(field).filter(|value| value.is_object()).map(|value| Config { value, ..*self })
    }

    /// A positive integer, if present.
    pub fn optional_size(&self, field: &str) -> Read<Option<usize>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let size =
            value.as_u64().filter(|size| (1..SIZE_LIMIT).contains(size)).and_then(|size| usize::try_from(size).ok());
        size.map(Some).ok_or_else(|| self.error(format!("`{field}` is {value}, which is no size")))
    }

    /// A positive integer up to `limit`, if present.
    pub fn optional_size_to(&self, field: &str, limit: usize) -> Read<Option<usize>> {
        match self.optional_size(field)? {
            Some(size) if size > limit => Err(self.error(format!("`{field}` is {size}; it must be from 1 to {limit}"))),
            size => Ok(size),
        }
    }

    /// A positive integer up to `limit`.
    pub fn size_to(&self, field: &str, limit: usize) -> Read<usize> {
        self.optional_size_to(field, limit)?.ok_or_else(|| self.error(format!("`{field}` is missing")))
    }

    /// A positive integer.
    pub fn size(&self, field: &str) -> Read<usize> {
        self.optional_size(field)?.ok_or_else(|| self.error(format!("`{field}` is missing")))
    }

    /// A number, if present, that is finite in float32.
    pub fn optional_number(&self, field: &str) -> Read<Option<f64>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let number = value.as_f64().filter(|number| (*number as f32).is_finite());
        number.map(Some).ok_or_else(|| self.error(format!("`{field}` is {value}, which is no number")))
    }

    /// A number that is finite in float32.
    pub fn number(&self, field: &str) -> Read<f64> {
        self.optional_number(field)?.ok_or_else(|| self.error(format!("`{field}` is missing")))
    }

    /// A number above 0 in float32, if present: a divisor, or the argument of a logarithm.
    pub fn optional_positive(&self, field: &str) -> Read<Option<f64>> {
        match self.optional_number(field)? {
            Some(number) if (number as f32) <= 0.0 => {
                Err(self.error(format!("`{field}` is {number}; it must be above 0")))
            }
            number => Ok(number),
        }
    }

    /// A number above 0 in float32.
    pub fn positive(&self, field: &str) -> Read<f64> {
        self.optional_positive(field)?.ok_or_else(|| self.error(format!("`{field}` is missing")))
    }

    /// A number of at least 0, if present: an epsilon below a root.
    pub fn optional_not_negative(&self, field: &str) -> Read<Option<f64>> {
        match self.optional_number(field)? {
            Some(number) if number < 0.0 => Err(self.error(format!("`{field}` is {number}; it must be 0 or more"))),
            number => Ok(number),
        }
    }

    /// A boolean; false if absent.
    pub fn flag(&self, field: &str) -> bool {
        self.get(field).and_then(Value::as_bool).unwrap_or(false)
    }

    /// A string, if present.
    pub fn text(&self, field: &str) -> Option<&'a str> {
        self.get(field).and_then(Value::as_str)
    }

    /// A list of numbers, if present.
    pub fn numbers(&self, field: &str) -> Option<Vec<f64>> {
        self.get(field)?.as_array()?.iter().map(Value::as_f64).collect()
    }

    /// Fails unless `field` is absent or one of the strings `wanted`.
    pub fn only(&self, field: &str, wanted: &[&str]) -> Read<()> {
        match self.text(field) {
            Some(have) if !wanted.contains(&have) => {
                Err(self.error(format!("`{field}: {have}` is not supported; {} is", wanted.join(" or "))))
            }
            _ => Ok(()),
        }
    }
}
