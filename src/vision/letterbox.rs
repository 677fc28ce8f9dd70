//! Letterboxing: scale and position of an image inside an input of another aspect ratio.

/// Scale and position of an image inside an input that keeps its aspect ratio.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Letterbox {
    /// Pixels of the input per pixel of the image, before its sides are rounded to whole pixels.
    pub scale: f64,
    /// First row and column of the image in the input.
    pub offset: [u32; 2],
    /// Height and width of the image in pixels.
    pub picture: [u32; 2],
}

impl Letterbox {
    /// Fits an image of size `picture` into `input` (height, width).
    pub fn new(picture: [u32; 2], input: [u32; 2]) -> Self {
        let ratio = |axis: usize| f64::from(input[axis]) / f64::from(picture[axis].max(1));
        let scale = ratio(0).min(ratio(1));
        let mut letterbox = Self { scale, offset: [0; 2], picture };
        let scaled = letterbox.scaled();
        letterbox.offset = [0, 1].map(|axis| input[axis].saturating_sub(scaled[axis]) / 2);
        letterbox
    }

    /// Height and width of the scaled image in the input.
    pub fn scaled(&self) -> [u32; 2] {
        self.picture.map(|size| ((f64::from(size) * self.scale).round_ties_even() as u32).max(1))
    }

    /// Pixels of the input per pixel of the image along an axis, after rounding to whole pixels (Ultralytics,
    /// `scale_boxes`).
    pub fn gain(&self, axis: usize) -> f64 {
        f64::from(self.scaled()[axis]) / f64::from(self.picture[axis].max(1))
    }

    /// Converts a coordinate of the input to the image along an axis (0 is vertical), clamped to the image.
    pub fn place(&self, value: f32, axis: usize) -> f32 {
        let place = (f64::from(value) - f64::from(self.offset[axis])) / self.gain(axis);
        // `clamp` lets a NaN through.
        if place.is_nan() { 0.0 } else { place.clamp(0.0, f64::from(self.picture[axis])) as f32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letterbox_places() {
        // bus.jpg in 640: 480 of 640 columns.
        let letterbox = Letterbox::new([1080, 810], [640, 640]);
        assert_eq!((letterbox.scaled(), letterbox.offset), ([640, 480], [0, 80]));
        assert_eq!(
            (letterbox.place(80.0, 1), letterbox.place(320.0, 1), letterbox.place(700.0, 1)),
            (0.0, 405.0, 810.0)
        );
    }
}
