//! [`Sides`]: one number or two, as recipes write image sizes. Deserialised by hand, so that an error names its line
//! and the accepted forms.

use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

/// A size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sides {
    /// One number for both sides, or for the shorter one.
    One(u32),
    /// Height and width.
    Both([u32; 2]),
}

impl<'de> Deserialize<'de> for Sides {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Sides;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of pixels, or [HEIGHT, WIDTH]")
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Sides, E> {
                let side = u32::try_from(value);
                side.map(Sides::One).map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Sides, E> {
                let side = u32::try_from(value);
                side.map(Sides::One).map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, sides: A) -> Result<Sides, A::Error> {
                <[u32; 2]>::deserialize(SeqAccessDeserializer::new(sides)).map(Sides::Both)
            }
        }
        deserializer.deserialize_any(Read)
    }
}
