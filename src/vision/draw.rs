//! Draws results onto images: boxes, labels, masks.

use image::{Rgb, RgbImage};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::Detection;

/// Colours of classes, far apart in hue; repeated if there are more classes.
const PALETTE: [[u8; 3]; 10] = [
    [230, 57, 70],
    [29, 120, 200],
    [42, 157, 80],
    [244, 140, 6],
    [131, 56, 200],
    [0, 150, 160],
    [216, 51, 150],
    [120, 110, 20],
    [90, 100, 220],
    [180, 80, 40],
];

/// A copy of the image with every detection drawn on it, those with the highest scores on top.
pub fn annotate(picture: &RgbImage, detections: &[Detection]) -> RgbImage {
    let mut canvas = picture.clone();
    let side = picture.width().max(picture.height());
    let line = (side / 320).clamp(1, 8);
    let letters = match side {
        0..500 => RasterHeight::Size16,
        500..1500 => RasterHeight::Size24,
        _ => RasterHeight::Size32,
    };
    let color = |detection: &Detection| PALETTE[detection.class % PALETTE.len()];
    for detection in detections.iter().rev() {
        if let Some(mask) = &detection.mask {
            mask.pixels().for_each(|(x, y)| blend(&mut canvas, x, y, color(detection), 0.45));
        }
    }
    for detection in detections.iter().rev() {
        let [left, top, right, bottom] = detection.bbox.corners().map(|side| side.round() as u32);
        let color = color(detection);
        for (x, y, width, height) in [
            (left, top, right - left.min(right), line),
            (left, bottom.saturating_sub(line), right - left.min(right), line),
            (left, top, line, bottom - top.min(bottom)),
            (right.saturating_sub(line), top, line, bottom - top.min(bottom)),
        ] {
            fill(&mut canvas, [x, y, width, height], color);
        }
    }
    // Labels last: no line goes through a word.
    for detection in detections.iter().rev() {
        let [left, top, ..] = detection.bbox.corners().map(|side| side.round() as u32);
        let text = format!("{} {:.2}", detection.label, detection.score);
        let (wide, high) = (get_raster_width(FontWeight::Bold, letters) as u32, letters.val() as u32);
        let width = wide.saturating_mul(text.chars().count() as u32).saturating_add(2 * line);
        // Above the box, or inside where there is no room; never beyond the right edge.
        let y = if top >= high { top - high } else { top };
        let x = left.min(picture.width().saturating_sub(width));
        fill(&mut canvas, [x, y, width, high], color(detection));
        write(&mut canvas, x + line, y, &text, letters);
    }
    canvas
}

fn blend(canvas: &mut RgbImage, x: u32, y: u32, color: [u8; 3], share: f32) {
    let Some(pixel) = canvas.get_pixel_mut_checked(x, y) else { return };
    for (have, new) in pixel.0.iter_mut().zip(color) {
        *have = (f32::from(*have) * (1.0 - share) + f32::from(new) * share).round() as u8;
    }
}

fn fill(canvas: &mut RgbImage, [x, y, width, height]: [u32; 4], color: [u8; 3]) {
    for row in y..y.saturating_add(height).min(canvas.height()) {
        for column in x..x.saturating_add(width).min(canvas.width()) {
            canvas.put_pixel(column, row, Rgb(color));
        }
    }
}

/// Writes white text up to the edge; characters that the font lacks become question marks.
fn write(canvas: &mut RgbImage, x: u32, y: u32, text: &str, size: RasterHeight) {
    let mut x = x;
    for letter in text.chars() {
        let raster = get_raster(letter, FontWeight::Bold, size).or_else(|| get_raster('?', FontWeight::Bold, size));
        let Some(raster) = raster.filter(|_| x < canvas.width() && y < canvas.height()) else { continue };
        for (row, line) in raster.rows().enumerate() {
            for (column, ink) in line.iter().enumerate() {
                blend(canvas, x + column as u32, y + row as u32, [255; 3], f32::from(*ink) / 255.0);
            }
        }
        x += raster.width() as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_a_label_and_nothing_beyond_the_edge() {
        let picture = RgbImage::from_pixel(64, 48, Rgb([10, 10, 10]));
        let detection = |corners: [f32; 4]| {
            let bbox = corners.into();
            Detection { label: "wąż".to_owned(), class: 0, score: 0.5, bbox, mask: None }
        };
        let drawn = annotate(&picture, &[detection([8.0, 20.0, 40.0, 40.0]), detection([50.0, 0.0, 64.0, 48.0])]);
        assert_eq!(drawn.get_pixel(20, 39).0, PALETTE[0], "lower edge");
        assert_eq!(drawn.get_pixel(20, 30).0, [10; 3], "inside");
        assert!(drawn.enumerate_pixels().any(|(_, y, pixel)| y < 20 && pixel.0 == [255; 3]), "letters above the box");
    }
}
