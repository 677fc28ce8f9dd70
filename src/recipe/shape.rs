//! Input shapes as recipes write them.

use std::fmt;

use schemars::JsonSchema;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Most elements of an input: 16 GiB of float32.
const ELEMENTS_LIMIT: u64 = 1 << 32;

/// Shape of an input: one fixed shape, or a range of shapes.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum InputShape {
    /// One fixed shape, `[dim, …]`.
    Fixed(Vec<u32>),
    /// All shapes between `min` and `max`.
    Range(InputRange),
}

/// The range of shapes an input may have. A dimension that is equal in all three shapes is fixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map of fields")]
pub struct InputRange {
    /// Smallest shape.
    pub min: Vec<u32>,
    /// Shape that the engine is tuned for.
    pub opt: Vec<u32>,
    /// Largest shape.
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

/// What is wrong with a value, and the hint.
pub(super) type Complaint = (String, Option<&'static str>);

impl InputShape {
    /// Checks the shape of input `name`; a range is an error unless `ranges`.
    pub(super) fn check(&self, name: &str, ranges: bool) -> Result<(), Complaint> {
        match self {
            InputShape::Fixed(dims) => shape_limits(name, dims),
            InputShape::Range(range) if ranges => range_limits(name, range),
            InputShape::Range(_) => Err((
                format!("a range of shapes for `{name}` is for the kind onnx"),
                Some("pictures have one size, and `max_batch` says how many come at once"),
            )),
        }
    }
}

fn shape_limits(name: &str, dims: &[u32]) -> Result<(), Complaint> {
    if dims.is_empty() || dims.contains(&0) {
        return Err((format!("the shape of `{name}` has no elements"), None));
    }
    let elements = dims.iter().try_fold(1u64, |count, dim| count.checked_mul(u64::from(*dim)));
    if dims.len() > 8 || elements.is_none_or(|elements| elements > ELEMENTS_LIMIT) {
        return Err((format!("the shape of `{name}` has more than 8 dimensions or {ELEMENTS_LIMIT} elements"), None));
    }
    Ok(())
}

fn range_limits(name: &str, InputRange { min, opt, max }: &InputRange) -> Result<(), Complaint> {
    shape_limits(name, max)?;
    if min.len() != max.len() || opt.len() != max.len() {
        let counts = [min, opt, max].map(Vec::len);
        return Err((
            format!("min, opt and max of `{name}` have {counts:?} dimensions"),
            Some("give all dimensions in each"),
        ));
    }
    let ordered = |((least, tuned), most): ((&u32, &u32), &u32)| 0 < *least && least <= tuned && tuned <= most;
    match min.iter().zip(opt).zip(max).position(|dims| !ordered(dims)) {
        None => Ok(()),
        Some(axis) => Err((
            format!(
                "dimension {axis} of `{name}`: min {} <= opt {} <= max {} does not hold",
                min[axis], opt[axis], max[axis]
            ),
            Some("the least is 1"),
        )),
    }
}
