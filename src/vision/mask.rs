//! Masks of objects, from prototypes and coefficients (Bolya et al., YOLACT, 2019).

use serde::{Serialize, Serializer};

use super::Letterbox;
use crate::tensor::Tensor;

/// The pixels of an object within a rectangle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// Left and top of the rectangle in pixels of the image.
    pub origin: [u32; 2],
    /// Width of the rectangle in pixels.
    pub width: u32,
    /// For each pixel of the rectangle, row by row, whether it belongs to the object.
    pub inside: Vec<bool>,
}

/// Prototypes of the first image, `[count, height, width]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prototypes<'a> {
    pub(super) count: usize,
    height: usize,
    width: usize,
    values: &'a [f32],
}

impl<'a> Prototypes<'a> {
    pub(super) fn of(tensor: &'a Tensor) -> Option<Self> {
        let (&[batch, count, height, width], Some(values)) = (tensor.shape(), tensor.as_f32()) else { return None };
        let values = values.get(..count * height * width)?;
        (batch > 0 && !values.is_empty()).then_some(Self { count, height, width, values })
    }

    pub(super) fn is_finite(&self) -> bool {
        self.values.iter().all(|value| value.is_finite())
    }
}

/// Cuts out the object's pixels within its box: where the weighted sum of prototypes, interpolated bilinearly, is above
/// 0.
pub(super) fn cut(
    proto: &Prototypes<'_>,
    coefficients: &[f32],
    bbox: [f32; 4],
    letterbox: &Letterbox,
    input: [u32; 2],
) -> Mask {
    let Prototypes { height, width, values, .. } = *proto;
    let cells = height * width;
    // Prototype cells per pixel of the input, and the cell (fractional, centres aligned) of a pixel of the picture.
    let cell = |pixel: u32, axis: usize, size: usize| {
        let place = (f64::from(pixel) + 0.5) * letterbox.gain(axis) + f64::from(letterbox.offset[axis]);
        let at = (place * size as f64 / f64::from(input[axis]) - 0.5).clamp(0.0, size as f64 - 1.0);
        (at as usize, at.fract() as f32)
    };
    // Within the picture, and from left to right, whatever the box is.
    let pixel = |place: f32, axis: usize| (place.round() as u32).min(letterbox.picture[axis]);
    let pixels = |from: f32, to: f32, axis| pixel(from, axis)..pixel(to, axis).max(pixel(from, axis));
    let (columns, rows) = (pixels(bbox[0], bbox[2], 1), pixels(bbox[1], bbox[3], 0));
    let origin = [columns.start, rows.start];
    let mut inside = Vec::with_capacity(columns.len() * rows.len());
    // The sum over prototypes is needed at the cells around the box alone.
    let (first_row, first_column) = (cell(rows.start, 0, height).0, cell(columns.start, 1, width).0);
    let last = |range: &std::ops::Range<u32>, axis, size| (cell(range.end, axis, size).0 + 2).min(size);
    let (last_row, last_column) = (last(&rows, 0, height), last(&columns, 1, width));
    let across = last_column - first_column;
    let mut logits = vec![0.0f32; (last_row - first_row) * across];
    for (map, coefficient) in values.chunks(cells).zip(coefficients) {
        for (row, out) in (first_row..last_row).zip(logits.chunks_mut(across)) {
            let line = &map[row * width + first_column..][..across];
            out.iter_mut().zip(line).for_each(|(out, value)| *out += coefficient * value);
        }
    }
    let along: Vec<(usize, usize, f32)> = columns
        .clone()
        .map(|x| {
            let (column, share) = cell(x, 1, width);
            let next = (column + 1).min(last_column - 1);
            (column - first_column, next - first_column, share)
        })
        .collect();
    let mut line = vec![0.0f32; across];
    for y in rows {
        let (row, down) = cell(y, 0, height);
        let next = (row + 1).min(last_row - 1);
        let [upper, lower] = [row, next].map(|row| &logits[(row - first_row) * across..][..across]);
        line.iter_mut().zip(upper.iter().zip(lower)).for_each(|(out, (upper, lower))| {
            *out = upper * (1.0 - down) + lower * down;
        });
        inside
            .extend(along.iter().map(|(left, right, share)| line[*left] * (1.0 - share) + line[*right] * share > 0.0));
    }
    Mask { origin, width: columns.len() as u32, inside }
}

impl Mask {
    /// Number of pixels of the object.
    pub fn area(&self) -> usize {
        self.inside.iter().filter(|inside| **inside).count()
    }

    /// Height of the rectangle.
    pub fn height(&self) -> u32 {
        self.inside.len() as u32 / self.width.max(1)
    }

    /// Whether a pixel of the picture belongs to the object.
    pub fn contains(&self, x: u32, y: u32) -> bool {
        let (Some(x), Some(y)) = (x.checked_sub(self.origin[0]), y.checked_sub(self.origin[1])) else { return false };
        // In usize: a place far below this mask does not wrap into it.
        let index = y as usize * self.width as usize + x as usize;
        x < self.width && self.inside.get(index).copied().unwrap_or(false)
    }

    /// Coordinates of the object's pixels in the image.
    pub fn pixels(&self) -> impl Iterator<Item = (u32, u32)> {
        let width = self.width.max(1);
        self.inside.iter().zip(0u32..).filter(|(inside, _)| **inside).map(move |(_, index)| {
            (self.origin[0].saturating_add(index % width), self.origin[1].saturating_add(index / width))
        })
    }

    /// Intersection over union with another mask on the same image; 1 if both are empty.
    pub fn overlap(&self, other: &Mask) -> f64 {
        let shared = self.pixels().filter(|(x, y)| other.contains(*x, *y)).count();
        let union = (self.area() + other.area()).saturating_sub(shared);
        if union == 0 { 1.0 } else { shared as f64 / union as f64 }
    }
}

/// Serialises as rectangle, area and run lengths: outside, inside, outside, … row by row within the rectangle.
impl Serialize for Mask {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (mut runs, mut current) = (vec![0u32], false);
        for inside in &self.inside {
            if *inside != current {
                runs.push(0);
                current = *inside;
            }
            if let Some(run) = runs.last_mut() {
                *run += 1;
            }
        }
        serde_json::json!({
            "origin": self.origin, "width": self.width, "height": self.height(), "area": self.area(), "runs": runs,
        })
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_cut_out_of_prototypes() {
        // Two maps of 4 x 4 cells: the left half, and everything.
        let mut values = vec![1.0f32; 32];
        (0..16).for_each(|cell| values[cell] = if cell % 4 < 2 { 1.0 } else { -1.0 });
        let tensor = Tensor::from_f32(vec![1, 2, 4, 4], values).unwrap();
        let proto = Prototypes::of(&tensor).unwrap();
        let letterbox = Letterbox::new([16, 16], [16, 16]);
        let mask = cut(&proto, &[1.0, 0.0], [4.0, 2.0, 12.0, 6.0], &letterbox, [16, 16]);
        assert_eq!((mask.origin, mask.width, mask.inside.len()), ([4, 2], 8, 32));
        assert_eq!(mask.inside[..8], [true, true, true, true, false, false, false, false]);
        assert_eq!((mask.area(), mask.height()), (16, 4));
        assert!(mask.contains(4, 2) && mask.contains(7, 5) && !mask.contains(8, 2) && !mask.contains(3, 2));
        let all = cut(&proto, &[0.0, 1.0], [4.0, 2.0, 12.0, 6.0], &letterbox, [16, 16]);
        assert_eq!((all.area(), mask.overlap(&all), all.overlap(&all)), (32, 0.5, 1.0));
        let json = serde_json::to_value(&mask).unwrap();
        assert_eq!((json["area"].as_u64(), json["runs"][1].as_u64()), (Some(16), Some(4)));
        let none = cut(&proto, &[1.0, 0.0], [3.0, 3.0, 3.0, 3.0], &letterbox, [16, 16]);
        assert_eq!(none.area(), 0);
        for strange in [
            [12.0, 6.0, 4.0, 2.0],
            [f32::NAN; 4],
            [f32::NEG_INFINITY, f32::NEG_INFINITY, f32::INFINITY, f32::INFINITY],
            [99.0, 99.0, 1e30, 1e30],
        ] {
            let mask = cut(&proto, &[1.0, f32::NAN], strange, &letterbox, [16, 16]);
            let [left, top] = mask.origin;
            assert!(left + mask.width <= 16 && top <= 16, "{strange:?}: {mask:?}");
            assert_eq!(mask.inside.len() % mask.width.max(1) as usize, 0, "{strange:?}");
        }
    }

    #[test]
    fn masks_far_apart_do_not_meet() {
        let mask = |origin| Mask { origin, width: 1 << 16, inside: vec![true; 1 << 16] };
        assert_eq!(mask([0, 0]).overlap(&mask([0, 1 << 16])), 0.0);
        assert_eq!(mask([0, 1 << 16]).overlap(&mask([0, 0])), 0.0);
    }
}
