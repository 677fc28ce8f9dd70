//! Shapes of inputs, as written.

use std::fmt;

use schemars::JsonSchema;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The shape of an input: one, or all between two.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum InputShape {
    /// The only one.
    Fixed(Vec<u32>),
    /// Every one between `min` and `max`.
    Range(InputRange),
}

/// The shapes an input may have. Dimensions that are the same in all three are fixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InputRange {
    /// The smallest.
    pub min: Vec<u32>,
    /// What the engine is made fastest for.
    pub opt: Vec<u32>,
    /// The largest.
    pub max: Vec<u32>,
}

// By hand: serde's untagged enums say of no variant what is wrong with it.
impl<'de> Deserialize<'de> for InputShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = InputShape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a shape such as [1, 80], or a range { min: [1, 8], opt: [1, 80], max: [1, 300] }")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<InputShape, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(sequence)).map(InputShape::Fixed)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<InputShape, A::Error> {
                InputRange::deserialize(MapAccessDeserializer::new(map)).map(InputShape::Range)
            }
        }
        deserializer.deserialize_any(Shape)
    }
}
