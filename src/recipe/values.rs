//! Deserialises fields that accept several types by hand: serde's untagged enums lose the line of an error, and name a
//! Rust type where the user needs to know which values are accepted.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use super::onnx::InputValue;
use super::schema::{Picture, Source};

impl<'de> Deserialize<'de> for InputValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = InputValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, true or false, or a list of numbers")
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<InputValue, E> {
                Ok(InputValue::Truth(value))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<InputValue, E> {
                Ok(InputValue::Whole(value))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<InputValue, E> {
                whole(value).map(InputValue::Whole)
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<InputValue, E> {
                Ok(InputValue::Float(value))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<InputValue, A::Error> {
                let mut numbers = Vec::new();
                while let Some(number) = list.next_element::<NumberValue>()? {
                    numbers.push(number);
                }
                let wholes = numbers.iter().map(|number| match number {
                    NumberValue::Whole(value) => Some(*value),
                    NumberValue::Float(_) => None,
                });
                Ok(match wholes.collect() {
                    Some(wholes) => InputValue::Wholes(wholes),
                    None => InputValue::Floats(numbers.into_iter().map(NumberValue::float).collect()),
                })
            }
        }
        deserializer.deserialize_any(Read)
    }
}

/// A number in a list.
enum NumberValue {
    Whole(i64),
    Float(f64),
}

impl NumberValue {
    fn float(self) -> f64 {
        match self {
            NumberValue::Whole(value) => value as f64,
            NumberValue::Float(value) => value,
        }
    }
}

impl<'de> Deserialize<'de> for NumberValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = NumberValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<NumberValue, E> {
                Ok(NumberValue::Whole(value))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<NumberValue, E> {
                whole(value).map(NumberValue::Whole)
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<NumberValue, E> {
                Ok(NumberValue::Float(value))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

fn whole<E: Error>(value: u64) -> Result<i64, E> {
    let limit = "a whole number up to 9223372036854775807";
    i64::try_from(value).map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &limit))
}

impl<'de> Deserialize<'de> for Picture {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Picture;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or a source such as { hub: OWNER/NAME, file: FILE }")
            }

            fn visit_str<E: Error>(self, path: &str) -> Result<Picture, E> {
                Ok(Picture::Path(path.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Picture, A::Error> {
                let source = Source::deserialize(MapAccessDeserializer::new(fields))?;
                Ok(Picture::Source(Box::new(source)))
            }
        }
        deserializer.deserialize_any(Read)
    }
}
