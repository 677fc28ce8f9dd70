//! Quantises float weights to small integers, with a scale and, if asymmetric, a zero point per group of neighbouring
//! inputs of an output: weight ≈ (q - zero) · scale. Weights are rounded to nearest; the clipping range is chosen per
//! group by the squared error.

use std::collections::BTreeSet;

use half::f16;

use crate::convert::Part;
use crate::diagnostic::Diagnostic;

/// Group sizes that the runtime supports for packed weights, largest first.
const GROUPS: [usize; 3] = [128, 64, 32];

/// A quantisation scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheme {
    /// Bits of an integer, 4 or 8.
    pub bits: u32,
    /// Number of inputs that share a scale.
    pub group: usize,
    /// Whether the middle integer represents 0, without zero points.
    pub symmetric: bool,
}

/// The quantised weights of one output.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantisedRow {
    group: usize,
    /// An integer for each input.
    pub quants: Vec<u8>,
    /// A scale for each group.
    pub scales: Vec<f16>,
    /// A zero point for each group: the integer that represents 0.
    pub zeros: Vec<u8>,
}

impl QuantisedRow {
    /// The dequantised weight of input `at`.
    pub fn value(&self, at: usize) -> f32 {
        let group = at / self.group;
        (f32::from(self.quants[at]) - f32::from(self.zeros[group])) * self.scales[group].to_f32()
    }
}

/// Candidates for the clipping range, as shares of a group's range.
const CLIPS: [f32; 8] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65];

impl Scheme {
    /// For integers of `bits`, with groups of `group_size` inputs if that is given, else with the largest group size that
    /// divides the inputs of each of `matrices`; `name` is the model's.
    pub(super) fn choose(
        name: &str,
        matrices: &[Part],
        bits: u32,
        group_size: Option<usize>,
    ) -> Result<Self, Diagnostic> {
        let fits = |group: usize| matrices.iter().all(|part| part.shape[1].is_multiple_of(group));
        let group = match group_size {
            Some(group) if fits(group) => Some(group),
            Some(_) => None,
            None => GROUPS.into_iter().find(|group| fits(*group)),
        };
        let Some(group) = group else {
            let sizes: BTreeSet<usize> = matrices.iter().map(|part| part.shape[1]).collect();
            let sizes = sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let (wanted, help) = match group_size {
                Some(group) => (format!("group_size {group} does not divide"), "leave out `group_size`, or use fp16"),
                None => ("none of the group sizes 128, 64 and 32 divides".to_owned(), "use fp16"),
            };
            let message = format!("{name}: {wanted} all of the model's input sizes ({sizes})");
            return Err(Diagnostic::new(message).with_help(help));
        };
        // A zero point saves four bits much error and eight bits none.
        Ok(Self { bits, group, symmetric: bits == 8 })
    }

    /// The integer that represents 0 in symmetric groups.
    pub fn middle(self) -> u8 {
        1 << (self.bits - 1)
    }

    /// Quantises the weights of one output.
    pub fn row(self, values: &[f32]) -> QuantisedRow {
        let (mut quants, mut scales, mut zeros) = (Vec::with_capacity(values.len()), Vec::new(), Vec::new());
        for values in values.chunks(self.group) {
            let (scale, zero) = self.group(values);
            scales.push(scale);
            zeros.push(zero);
            let (scale, zero, highest) = (f32::from(scale), f32::from(zero), self.highest());
            quants.extend(values.iter().map(|value| {
                let q = if scale > 0.0 { (value / scale).round() + zero } else { zero };
                // A saturating cast, after which a NaN is 0.
                q.clamp(0.0, highest) as u8
            }));
        }
        QuantisedRow { group: self.group, quants, scales, zeros }
    }

    fn highest(self) -> f32 {
        f32::from(u8::try_from((1u32 << self.bits) - 1).unwrap_or(u8::MAX))
    }

    /// The scale and zero point of a group with the least squared error: for every clipping range the scale is fitted
    /// once more to the integers that result (least squares).
    fn group(self, values: &[f32]) -> (f16, u8) {
        let (low, high) = values.iter().fold((0.0_f32, 0.0_f32), |(low, high), v| (low.min(*v), high.max(*v)));
        let mut best = (f32::INFINITY, f16::ZERO, self.middle());
        for clip in CLIPS {
            let (first, zero) = self.terms(low * clip, high * clip);
            for scale in [first, self.fitted(values, f32::from(first), f32::from(zero))] {
                let error = self.error(values, f32::from(scale), f32::from(zero));
                if error < best.0 {
                    best = (error, scale, zero);
                }
            }
        }
        (best.1, best.2)
    }

    fn fitted(self, values: &[f32], scale: f32, zero: f32) -> f16 {
        let (mut product, mut square) = (0.0, 0.0);
        if scale > 0.0 {
            let (inverse, highest) = (1.0 / scale, self.highest());
            for value in values {
                let q = ((value * inverse).round() + zero).clamp(0.0, highest) - zero;
                product += q * value;
                square += q * q;
            }
        }
        f16::from_f32(if square > 0.0 { product / square } else { scale })
    }

    /// The scale and zero point at which the integers reach from `low` to `high`.
    fn terms(self, low: f32, high: f32) -> (f16, u8) {
        if self.symmetric {
            // One more below 0 than above: the larger side decides.
            let side = (high / (self.highest() - f32::from(self.middle()))).max(-low / f32::from(self.middle()));
            return (f16::from_f32(side), self.middle());
        }
        let scale = f16::from_f32((high - low) / self.highest());
        let wide = f32::from(scale);
        let zero = if wide > 0.0 { (-low / wide).round().clamp(0.0, self.highest()) } else { 0.0 };
        (scale, zero as u8)
    }

    fn error(self, values: &[f32], scale: f32, zero: f32) -> f32 {
        if scale <= 0.0 || !scale.is_finite() {
            return values.iter().map(|value| value * value).sum();
        }
        let (inverse, highest) = (1.0 / scale, self.highest());
        let errors = values.iter().map(|value| {
            let q = ((value * inverse).round() + zero).clamp(0.0, highest);
            let error = (q - zero) * scale - value;
            error * error
        });
        errors.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values after quantising and dequantising.
    fn round_trip(scheme: Scheme, values: &[f32]) -> Vec<f32> {
        let row = scheme.row(values);
        (0..values.len()).map(|at| row.value(at)).collect()
    }

    fn error(values: &[f32], other: &[f32]) -> f32 {
        let squares = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        (squares(values, other) / squares(values, &vec![0.0; values.len()])).sqrt()
    }

    #[test]
    fn what_integers_can_say_is_said_exactly() {
        let scheme = Scheme { bits: 4, group: 16, symmetric: false };
        let values: Vec<f32> = (0..16).map(|q| (q as f32 - 5.0) * 0.25).collect();
        assert_eq!(round_trip(scheme, &values), values);
        let symmetric = Scheme { symmetric: true, ..scheme };
        let values: Vec<f32> = (0..16).map(|q| (q as f32 - 8.0) * 0.25).collect();
        assert_eq!(round_trip(symmetric, &values), values);
        assert_eq!(round_trip(scheme, &[0.0; 16]), [0.0; 16]);
    }

    #[test]
    fn clipping_helps_and_bits_do() {
        // Bell-shaped, as weights are, with one far out.
        let mut values: Vec<f32> = (0..128).map(|i| ((i * 37 % 128) as f32 / 64.0 - 1.0).powi(3) * 0.1).collect();
        values[5] = 0.35;
        let rough = Scheme { bits: 4, group: 128, symmetric: false };
        let (low, high) = values.iter().fold((0.0_f32, 0.0_f32), |(l, h), v| (l.min(*v), h.max(*v)));
        let (scale, zero) = rough.terms(low, high);
        let plain = rough.error(&values, f32::from(scale), f32::from(zero));
        let (scale, zero) = rough.group(&values);
        assert!(rough.error(&values, f32::from(scale), f32::from(zero)) < plain);
        let fine = Scheme { bits: 8, symmetric: true, ..rough };
        let (rough, fine) = (error(&values, &round_trip(rough, &values)), error(&values, &round_trip(fine, &values)));
        // Most values are small beside the range. Sixteen times as many steps, half of them for the smaller side.
        assert!(rough < 0.25 && fine < rough / 7.0, "{rough} {fine}");
    }
}
