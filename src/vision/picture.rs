//! Pictures in and out of files, and to input tensors.

use std::path::Path;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageDecoder, ImageReader, Rgb, RgbImage, imageops};

use super::{Color, Fit, Letterbox, Preprocess, Resample, Resize, VisionError};
use crate::artifact::write_file;
use crate::tensor::Tensor;

/// Whether a file is named like a picture that can be read.
pub fn is_picture(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg"))
}

/// Longer side over shorter one. A line of pixels scaled up to a model's size would fill all memory.
const RATIO_LIMIT: u32 = 100;

/// Reads a picture, turned upright as its EXIF data says.
pub fn read_picture(path: &Path) -> Result<RgbImage, VisionError> {
    let fail = |message: String| VisionError::Picture { path: path.to_owned(), message };
    // The reader's default limits bound memory: a small file may claim a huge picture.
    let file = crate::regular_file::open(path).map_err(|error| fail(error.to_string()))?;
    let reader = ImageReader::new(std::io::BufReader::new(file));
    let reader = reader.with_guessed_format().map_err(|error| fail(error.to_string()))?;
    let mut decoder = reader.into_decoder().map_err(|error| fail(error.to_string()))?;
    let orientation = decoder.orientation().map_err(|error| fail(error.to_string()))?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|error| fail(error.to_string()))?;
    picture.apply_orientation(orientation);
    let picture = picture.into_rgb8();
    if picture.width() == 0 || picture.height() == 0 {
        return Err(fail("it is empty".to_owned()));
    }
    let (long, short) = (picture.width().max(picture.height()), picture.width().min(picture.height()));
    if long / short > RATIO_LIMIT {
        return Err(fail(format!("{} x {} pixels are a line, no picture", picture.width(), picture.height())));
    }
    Ok(picture)
}

/// Writes a picture, whole or not at all: PNG by that extension, else JPEG.
pub fn save_picture(path: &Path, picture: &RgbImage) -> Result<(), VisionError> {
    let fail = |message: String| VisionError::Write { path: path.to_owned(), message };
    let mut bytes = Vec::new();
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
        let mut cursor = std::io::Cursor::new(&mut bytes);
        picture.write_to(&mut cursor, image::ImageFormat::Png).map_err(|error| fail(error.to_string()))?;
    } else {
        JpegEncoder::new_with_quality(&mut bytes, 90).encode_image(picture).map_err(|error| fail(error.to_string()))?;
    }
    write_file(path, &bytes).map(drop).map_err(|error| fail(error.to_string()))
}

/// Height and width the model wants: the recipe's, else the input's own.
pub fn input_size(preprocess: &Preprocess, shape: &[Option<usize>]) -> Result<[u32; 2], VisionError> {
    let found = || VisionError::Input { found: format!("{shape:?}") };
    let [_, Some(3), height, width] = shape else { return Err(found()) };
    if let Some(size) = preprocess.size {
        let agrees = |own: &Option<usize>, wanted: u32| own.is_none_or(|own| u32::try_from(own) == Ok(wanted));
        return if agrees(height, size[0]) && agrees(width, size[1]) { Ok(size) } else { Err(found()) };
    }
    match (height, width) {
        (Some(height), Some(width)) => {
            Ok([u32::try_from(*height).map_err(|_| found())?, u32::try_from(*width).map_err(|_| found())?])
        }
        _ => Err(found()),
    }
}

/// One picture as `[1, 3, height, width]`.
pub fn to_tensor(picture: &RgbImage, preprocess: &Preprocess, size: [u32; 2]) -> Tensor {
    let fitted = fit(picture, preprocess, size);
    let bgr = preprocess.color == Some(Color::Bgr);
    let (width, height) = (fitted.width() as usize, fitted.height() as usize);
    let mut values = vec![0.0; 3 * width * height]; // (3, height, width)
    for (channel, plane) in values.chunks_mut(width * height).enumerate() {
        let (mean, std) = (preprocess.mean[channel], preprocess.std[channel]);
        let table: Vec<f32> = (0..=255u8).map(|byte| (f32::from(byte) - mean) / std).collect();
        let bytes = fitted.as_raw().iter().skip(if bgr { 2 - channel } else { channel }).step_by(3);
        plane.iter_mut().zip(bytes).for_each(|(value, byte)| *value = table[usize::from(*byte)]);
    }
    Tensor::from_f32(vec![1, 3, height, width], values).expect("one value per pixel and channel")
}

/// Resizes a picture; both sizes are at least 1.
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

fn fit(picture: &RgbImage, preprocess: &Preprocess, [height, width]: [u32; 2]) -> RgbImage {
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

/// The middle of a picture; black around it where it is smaller.
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

    /// Left half red, right half blue, 8 wide and 4 high.
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
        settings.color = Some(Color::Bgr);
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
}
