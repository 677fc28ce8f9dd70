//! Reads a model's configuration: the fields of config.json, each error with file and field. It can remember what it was
//! asked for, so that what nobody asked for is known.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;

use crate::checkpoint::CheckpointError;
use crate::diagnostic::Diagnostic;

/// A configuration and its file's name, for messages.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    path: &'a Path,
    value: &'a Value,
    reads: Option<&'a Reads>,
}

/// What was asked for: fields by their object's address, since objects within have fields of the same names.
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

/// Larger than any model's dimension; a config above it is damage and would only overflow later.
const SIZE_LIMIT: u64 = 1 << 28;

impl<'a> Config<'a> {
    /// `value` as read from `path`.
    pub fn new(path: &'a Path, value: &'a Value) -> Self {
        Self { path, value, reads: None }
    }

    /// As [`Config::new`], and remembers in `reads` what it is asked for.
    pub(super) fn recorded(path: &'a Path, value: &'a Value, reads: &'a Reads) -> Self {
        Self { path, value, reads: Some(reads) }
    }

    /// Other fields of the same file.
    pub fn with<'b>(&self, value: &'b Value) -> Config<'b>
    where
        'a: 'b,
    {
        Config { path: self.path, value, reads: self.reads }
    }

    /// Fields that nobody asked for; all, if nobody took notes.
    pub(super) fn unread(&self) -> Vec<(&'a str, &'a Value)> {
        let fields = self.value.as_object().into_iter().flatten();
        let asked = |field: &str| self.reads.is_some_and(|reads| reads.has(self.value, field));
        fields.map(|(field, value)| (field.as_str(), value)).filter(|(field, _)| !asked(field)).collect()
    }

    /// Notes that a field was looked at and says nothing here.
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

    /// A field that is there and not null.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        if let Some(reads) = self.reads {
            reads.note(self.value, field);
        }
        self.value.get(field).filter(|value| !value.is_null())
    }

    /// A field that is there and says null, where that is something else than not being there.
    pub fn is_null(&self, field: &str) -> bool {
        self.get(field).is_none() && self.value.get(field).is_some()
    }

    /// An object within.
    pub fn within(&self, field: &str) -> Option<Config<'a>> {
        self.get(field).filter(|value| value.is_object()).map(|value| Config { value, ..*self })
    }

    /// A positive whole number, if there.
    pub fn optional_size(&self, field: &str) -> Read<Option<usize>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let size =
            value.as_u64().filter(|size| (1..SIZE_LIMIT).contains(size)).and_then(|size| usize::try_from(size).ok());
        size.map(Some).ok_or_else(|| self.error(format!("`{field}` is {value}, which is no size")))
    }

    /// A positive whole number up to `limit`, if there.
    pub fn optional_size_to(&self, field: &str, limit: usize) -> Read<Option<usize>> {
        match self.optional_size(field)? {
            Some(size) if size > limit => Err(self.error(format!("`{field}` is {size}; it must be from 1 to {limit}"))),
            size => Ok(size),
        }
    }

    /// A positive whole number up to `limit`.
    pub fn size_to(&self, field: &str, limit: usize) -> Read<usize> {
        self.optional_size_to(field, limit)?.ok_or_else(|| self.error(format!("`{field}` is missing")))
    }

    /// A positive whole number.
    pub fn size(&self, field: &str) -> Read<usize> {
        self.optional_size(field)?.ok_or_else(|| self.error(format!("`{field}` is missing")))
    }

    /// A number that is finite in float32 too, if there.
    pub fn optional_number(&self, field: &str) -> Read<Option<f64>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let number = value.as_f64().filter(|number| (*number as f32).is_finite());
        number.map(Some).ok_or_else(|| self.error(format!("`{field}` is {value}, which is no number")))
    }

    /// A finite number.
    pub fn number(&self, field: &str) -> Read<f64> {
        self.optional_number(field)?.ok_or_else(|| self.error(format!("`{field}` is missing")))
    }

    /// A number above 0, in float32 too, if there: a divisor, or the argument of a logarithm.
    pub fn optional_positive(&self, field: &str) -> Read<Option<f64>> {
        match self.optional_number(field)? {
            Some(number) if (number as f32) <= 0.0 => {
                Err(self.error(format!("`{field}` is {number}; it must be above 0")))
            }
            number => Ok(number),
        }
    }

    /// A number above 0.
    pub fn positive(&self, field: &str) -> Read<f64> {
        self.optional_positive(field)?.ok_or_else(|| self.error(format!("`{field}` is missing")))
    }

    /// A number of 0 or more, if there: what is added below a root.
    pub fn optional_not_negative(&self, field: &str) -> Read<Option<f64>> {
        match self.optional_number(field)? {
            Some(number) if number < 0.0 => Err(self.error(format!("`{field}` is {number}; it must be 0 or more"))),
            number => Ok(number),
        }
    }

    /// A truth value; false when absent.
    pub fn flag(&self, field: &str) -> bool {
        self.get(field).and_then(Value::as_bool).unwrap_or(false)
    }

    /// A text, if there.
    pub fn text(&self, field: &str) -> Option<&'a str> {
        self.get(field).and_then(Value::as_str)
    }

    /// A list of numbers, if there.
    pub fn numbers(&self, field: &str) -> Option<Vec<f64>> {
        self.get(field)?.as_array()?.iter().map(Value::as_f64).collect()
    }

    /// Fails unless `field` is absent or the text `wanted`.
    pub fn only(&self, field: &str, wanted: &[&str]) -> Read<()> {
        match self.text(field) {
            Some(have) if !wanted.contains(&have) => {
                Err(self.error(format!("`{field}: {have}` is not supported; {} is", wanted.join(" or "))))
            }
            _ => Ok(()),
        }
    }
}
