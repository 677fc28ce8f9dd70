//! Where an object is on a picture.

use serde::{Serialize, Serializer};

/// A rectangle on a picture, in pixels of that picture as it was given: 0, 0 is its upper left corner, x grows to the
/// right and y downwards. Boxes that a detector gives lie within the picture.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BoundingBox {
    /// x of the left side.
    pub left: f32,
    /// y of the upper side.
    pub top: f32,
    /// x of the right side.
    pub right: f32,
    /// y of the lower side.
    pub bottom: f32,
}

impl BoundingBox {
    /// From the left side to the right one.
    pub fn width(&self) -> f32 {
        self.right - self.left
    }

    /// From the upper side to the lower one.
    pub fn height(&self) -> f32 {
        self.bottom - self.top
    }

    /// x of the middle.
    pub fn center_x(&self) -> f32 {
        f32::midpoint(self.left, self.right)
    }

    /// y of the middle.
    pub fn center_y(&self) -> f32 {
        f32::midpoint(self.top, self.bottom)
    }

    /// Left, top, right, bottom.
    pub fn corners(&self) -> [f32; 4] {
        [self.left, self.top, self.right, self.bottom]
    }

    /// Intersection over union with another box, 0 to 1; 0 where both are empty.
    pub fn overlap(&self, other: &BoundingBox) -> f32 {
        overlap(&self.corners(), &other.corners())
    }
}

/// From left, top, right, bottom.
impl From<[f32; 4]> for BoundingBox {
    fn from([left, top, right, bottom]: [f32; 4]) -> Self {
        Self { left, top, right, bottom }
    }
}

/// As a list: left, top, right, bottom.
impl Serialize for BoundingBox {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.corners().serialize(serializer)
    }
}

/// Intersection over union of two boxes (left, top, right, bottom); 0 where both are empty.
pub(super) fn overlap(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let area = |r: &[f32; 4]| (r[2] - r[0]).max(0.0) * (r[3] - r[1]).max(0.0);
    let shared = area(&[a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    let union = area(a) + area(b) - shared;
    if union > 0.0 { shared / union } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_middles_and_overlaps() {
        let one = BoundingBox { left: 1.0, top: 2.0, right: 5.0, bottom: 10.0 };
        assert_eq!((one.width(), one.height(), one.center_x(), one.center_y()), (4.0, 8.0, 3.0, 6.0));
        assert_eq!(serde_json::to_string(&one).unwrap(), "[1.0,2.0,5.0,10.0]");
        // 2 x 8 of 4 x 8 are shared by both: 16 of 48.
        let other = BoundingBox::from([3.0, 2.0, 7.0, 10.0]);
        assert!((one.overlap(&other) - 1.0 / 3.0).abs() < 1e-6);
        assert_eq!(BoundingBox::default().overlap(&BoundingBox::default()), 0.0);
    }
}
