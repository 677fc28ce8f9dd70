//! Resizes images to a model's input size like PIL and torchvision.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::{Rgb, RgbImage, imageops};

use super::{Fit, Letterbox, Preprocess, Resample, Resize};

/// Resizes an image; both sizes are at least 1.
fn resize(picture: &RgbImage, width: u32, height: u32, resample: Resample) -> RgbImage {
    let algorithm = match resample {
        Resample::Nearest => ResizeAlg::Nearest,
        Resample::Bilinear => ResizeAlg::Convolution(FilterType::Bilinear),
        Resample::Bicubic => ResizeAlg::Convolution(FilterType::CatmullRom),
        Resample::Lanczos => ResizeAlg::Convolution(FilterType::Lanczos3),
        Resample::Linear => return resize_with(picture, width, height, ResizeAlg::Interpolation(FilterType::Bilinear)),
    };
    // Columns before rows, as PIL and torchvision do: in between, overshoot is cut off at black and white.
    let narrow = resize_with(picture, width, picture.height(), algorithm);
    resize_with(&narrow, width, height, algorithm)
}

fn resize_with(picture: &RgbImage, width: u32, height: u32, algorithm: ResizeAlg) -> RgbImage {
    if picture.dimensions() == (width, height) {
        return picture.clone();
    }
    let source = ImageRef::new(picture.width(), picture.height(), picture.as_raw(), PixelType::U8x3);
    let mut target = Image::new(width, height, PixelType::U8x3);
    let source = source.expect("three bytes a pixel");
    let options = ResizeOptions::new().resize_alg(algorithm);
    Resizer::new()
        .resize(&source, &mut target, &options)
        .expect("both pictures have the same pixel type and are not empty");
    RgbImage::from_raw(width, height, target.into_vec()).expect("three bytes a pixel")
}

/// Longest aspect ratio of images that are scaled to fit their shorter side: a line of pixels would fill all memory.
const RATIO_LIMIT: u32 = 100;

/// The centre of an image with a larger aspect ratio than [`RATIO_LIMIT`]; the rest would be cropped anyway.
fn middle_of_a_line(picture: &RgbImage) -> Option<RgbImage> {
    let (width, height) = picture.dimensions();
    let longest = width.min(height).max(1).saturating_mul(RATIO_LIMIT);
    (width.max(height) > longest).then(|| crop(picture, width.min(longest), height.min(longest)))
}

/// Brings an image to a model's size.
pub(super) fn fit(picture: &RgbImage, preprocess: &Preprocess, [height, width]: [u32; 2]) -> RgbImage {
    let cuts = match preprocess.resize {
        Some(resize) => matches!(resize, Resize::ShortestEdge(_)),
        None => preprocess.fit == Some(Fit::Crop),
    };
    let middle = if cuts { middle_of_a_line(picture) } else { None };
    let picture = middle.as_ref().unwrap_or(picture);
    let resample = preprocess.resample.unwrap_or(Resample::Bilinear);
    let resize = |width: u32, height: u32| resize(picture, width.max(1), height.max(1), resample);
    let (own_width, own_height) = picture.dimensions();
    if own_width == 0 || own_height == 0 {
        return RgbImage::new(width, height); // nothing to scale: black
    }
    match (preprocess.resize, preprocess.fit.unwrap_or(Fit::Stretch)) {
        (Some(Resize::Both([rows, columns])), _) => crop(&resize(columns, rows), width, height),
        (Some(Resize::ShortestEdge(edge)), _) => {
            // The longer side is cut to whole pixels, as torchvision and PIL users do.
            let other = |long: u32, short: u32| (u64::from(edge) * u64::from(long) / u64::from(short)) as u32;
            let (w, h) = if own_width <= own_height {
                (edge, other(own_height, own_width))
            } else {
                (other(own_width, own_height), edge)
            };
            crop(&resize(w, h), width, height)
        }
        (None, Fit::Stretch) => resize(width, height),
        (None, Fit::Crop) => {
            let scale = (f64::from(width) / f64::from(own_width)).max(f64::from(height) / f64::from(own_height));
            let side = |length: u32, least: u32| ((f64::from(length) * scale).round() as u32).max(least);
            crop(&resize(side(own_width, width), side(own_height, height)), width, height)
        }
        (None, Fit::Letterbox) => {
            let letterbox = Letterbox::new([own_height, own_width], [height, width]);
            let [h, w] = letterbox.scaled();
            let mut canvas = RgbImage::from_pixel(width, height, Rgb([114; 3]));
            let [top, left] = letterbox.offset;
            imageops::replace(&mut canvas, &resize(w, h), i64::from(left), i64::from(top));
            canvas
        }
    }
}

/// Crops the centre of an image; pads with black where the image is smaller.
fn crop(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (have_width, have_height) = picture.dimensions();
    if have_width >= width && have_height >= height {
        return imageops::crop_imm(picture, (have_width - width) / 2, (have_height - height) / 2, width, height)
            .to_image();
    }
    let mut canvas = RgbImage::new(width, height);
    let middle = |have: u32, want: u32| (i64::from(want) - i64::from(have)).div_euclid(2);
    imageops::replace(&mut canvas, picture, middle(have_width, width), middle(have_height, height));
    canvas
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;
    use crate::vision::to_tensor;

    fn preprocess(fit: Fit) -> Preprocess {
        Preprocess {
            size: None,
            fit: Some(fit),
            resize: None,
            resample: None,
            color: None,
            mean: [0.0; 3],
            std: [1.0; 3],
        }
    }

    /// An image of 8 by 4 pixels, left half red, right half blue.
    fn picture() -> RgbImage {
        RgbImage::from_fn(8, 4, |x, _| if x < 4 { Rgb([200, 0, 0]) } else { Rgb([0, 0, 100]) })
    }

    #[test]
    fn channels_planes_and_normalisation() {
        let mut settings = preprocess(Fit::Stretch);
        settings.mean = [100.0, 0.0, 0.0];
        settings.std = [50.0, 1.0, 2.0];
        let tensor = to_tensor(&picture(), &settings, [4, 8]);
        assert_eq!(tensor.shape(), [1, 3, 4, 8]);
        let values = tensor.as_f32().unwrap();
        assert_eq!((values[0], values[7]), (2.0, -2.0), "red plane");
        assert_eq!((values[64], values[71]), (0.0, 50.0), "blue plane");
        settings.color = Some(crate::vision::Color::Bgr);
        assert_eq!(to_tensor(&picture(), &settings, [4, 8]).as_f32().unwrap()[7], 0.0, "blue comes first");
    }

    #[test]
    fn fits() {
        let red = |tensor: &Tensor, row: usize, column: usize| tensor.as_f32().unwrap()[row * 4 + column];
        let letterbox = to_tensor(&picture(), &preprocess(Fit::Letterbox), [4, 4]);
        assert_eq!((red(&letterbox, 0, 0), red(&letterbox, 3, 3)), (114.0, 114.0));
        assert!(red(&letterbox, 1, 0) > 190.0);
        let crop = to_tensor(&picture(), &preprocess(Fit::Crop), [4, 4]);
        assert_eq!((red(&crop, 0, 0), red(&crop, 0, 3)), (200.0, 0.0));
        let stretch = to_tensor(&picture(), &preprocess(Fit::Stretch), [4, 4]);
        assert!(red(&stretch, 0, 0) > 190.0 && red(&stretch, 3, 3) < 10.0);
    }

    #[test]
    fn lines_are_pictures() {
        // Scaled whole until the shorter side fits, the first would have 4 x 262,144 pixels.
        for (width, height) in [(65_536, 1), (2000, 16), (1, 300)] {
            let line = RgbImage::from_pixel(width, height, Rgb([9, 8, 7]));
            for fit in [Fit::Crop, Fit::Letterbox, Fit::Stretch] {
                let tensor = to_tensor(&line, &preprocess(fit), [4, 4]);
                assert_eq!(tensor.shape(), [1, 3, 4, 4]);
                assert!(fit == Fit::Letterbox || tensor.to_f64()[..16] == [9.0; 16], "{width} x {height}, {fit:?}");
            }
            let settings = Preprocess { fit: None, resize: Some(Resize::ShortestEdge(4)), ..preprocess(Fit::Crop) };
            assert_eq!(to_tensor(&line, &settings, [4, 4]).to_f64()[..16], [9.0; 16], "{width} x {height}");
        }
        assert!(middle_of_a_line(&RgbImage::new(1600, 16)).is_none());
        assert_eq!(middle_of_a_line(&RgbImage::new(2000, 16)).unwrap().dimensions(), (1600, 16));
    }
}
