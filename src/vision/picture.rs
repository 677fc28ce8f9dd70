//! Pictures in and out of files, and to input tensors.

use std::io::ErrorKind;
use std::path::Path;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Rgb, RgbImage, imageops};

use super::{Fit, Letterbox, PictureInput, Preprocess, Resample, Resize, VisionError, gif_frame, tiff_samples};
use crate::artifact::write_file;
use crate::diagnostic::Diagnostic;
use crate::tensor::Tensor;

/// What is read, for messages.
pub const FORMATS: &str = "PNG, JPEG, WebP, BMP, TIFF and GIF";

/// Whether a file is named like a picture that can be read. macOS puts a `._NAME` with attributes beside files on disks
/// that cannot keep them.
pub fn is_picture(path: &Path) -> bool {
    let attributes = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("._"));
    let known = ["png", "jpg", "jpeg", "jpe", "jfif", "mpo", "webp", "bmp", "tif", "tiff", "gif"];
    !attributes && known.contains(&extension(path).as_str())
}

/// Whether a file is named like a picture of a format that is not read.
pub fn is_foreign_picture(path: &Path) -> bool {
    ["avif", "heic", "heif", "jp2", "j2k", "jxl", "dng", "svg", "pfm"].contains(&extension(path).as_str())
}

fn extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

/// Reads a picture, turned upright as its EXIF data says; of several in one file, the first.
pub fn read_picture(path: &Path) -> Result<RgbImage, VisionError> {
    let fail = |message: Diagnostic| VisionError::Picture { path: path.to_owned(), message };
    let file = crate::regular_file::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => fail("there is no such file".into()),
        _ => fail(error.to_string().into()),
    })?;
    let reader = ImageReader::new(std::io::BufReader::new(file));
    let reader = reader.with_guessed_format().map_err(|error| fail(error.to_string().into()))?;
    let whole = || crate::regular_file::read(path, WHOLE_LIMIT).map_err(|error| fail(error.to_string().into()));
    let cut_off = || fail(CUT_OFF.into());
    match reader.format() {
        Some(ImageFormat::Jpeg) if is_cut_jpeg(&whole()?) => return Err(cut_off()),
        Some(ImageFormat::WebP) if is_cut_webp(&whole()?) => return Err(cut_off()),
        Some(ImageFormat::Gif) => return gif_frame::read(&whole()?).map_err(|message| fail(message.into())),
        Some(ImageFormat::Tiff) => {
            if let Some(picture) = tiff_samples::read(whole()?).map_err(fail)? {
                return Ok(picture);
            }
        }
        _ => {}
    }
    decode(reader).map_err(fail)
}

/// Reads a picture of a format whose decoder's answers are PIL's.
fn decode(reader: ImageReader<std::io::BufReader<std::fs::File>>) -> Result<RgbImage, Diagnostic> {
    let is_tiff = reader.format() == Some(ImageFormat::Tiff);
    let decoding = |error: ImageError| match error {
        ImageError::Unsupported(error) if is_tiff => tiff_samples::unsupported(&error.to_string()),
        ImageError::Unsupported(error) => Diagnostic::new(error.to_string()).with_help(format!("{FORMATS} are read")),
        ImageError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => CUT_OFF.into(),
        error => error.to_string().into(),
    };
    // The reader's default limits bound memory: a small file may claim a huge picture.
    let mut decoder = reader.into_decoder().map_err(decoding)?;
    let (width, height) = decoder.dimensions();
    check_size([width, height])?;
    let orientation = decoder.orientation().map_err(decoding)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(decoding)?;
    picture.apply_orientation(orientation);
    Ok(picture.into_rgb8())
}

/// Refuses a picture of no pixels, and of too many.
pub(super) fn check_size([width, height]: [u32; 2]) -> Result<(), String> {
    match u64::from(width) * u64::from(height) {
        0 => Err("it is empty".to_owned()),
        pixels if pixels > PIXEL_LIMIT => {
            Err(format!("it says it has {width} x {height} pixels, {PIXEL_LIMIT} are read at most"))
        }
        _ => Ok(()),
    }
}

/// What is said of a file that ends too early.
pub(super) const CUT_OFF: &str = "its end is missing: the file is cut off";
/// Pixels of a picture: not all decoders keep to the reader's limit of memory.
const PIXEL_LIMIT: u64 = 400 << 20;
/// Bytes of a file that is read as a whole.
const WHOLE_LIMIT: u64 = 1 << 30;

/// Whether a JPEG has no end: every picture ends with the marker EOI (ITU-T T.81, B.2.1). Its decoder would fill what is
/// missing with grey, where PIL raises.
fn is_cut_jpeg(bytes: &[u8]) -> bool {
    let mut at = 2; // after the first marker, SOI
    // Between markers is a scan's data, where 0xFF is followed by 0 or by a restart's number.
    let is_marker = |pair: &[u8]| pair[0] == 0xFF && !matches!(pair[1], 0x00 | 0x01 | 0xD0..=0xD8 | 0xFF);
    while let Some(found) = bytes.get(at..).and_then(|rest| rest.windows(2).position(is_marker)) {
        at += found + 2;
        if bytes[at - 1] == 0xD9 {
            return false;
        }
        // Segments say their length. What is in them (a thumbnail, say) has markers of its own.
        let Some(&[high, low]) = bytes.get(at..at + 2) else { return true };
        at += usize::from(u16::from_be_bytes([high, low]));
    }
    true
}

/// Whether a WebP is shorter than its RIFF header says (RFC 9649, 2.3).
fn is_cut_webp(bytes: &[u8]) -> bool {
    let size = bytes.get(4..8).and_then(|size| size.try_into().ok()).map(u32::from_le_bytes);
    size.is_none_or(|size| u64::from(size) + 8 > bytes.len() as u64)
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

/// One picture as float32 `[1, 3, height, width]`, whatever the model wants.
pub fn to_tensor(picture: &RgbImage, preprocess: &Preprocess, size: [u32; 2]) -> Tensor {
    PictureInput::planar(size).tensor(picture, preprocess)
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

/// Longer side over shorter one, where pictures are scaled until the shorter side fits: a line of pixels would fill all
/// memory.
const RATIO_LIMIT: u32 = 100;

/// The middle of a picture that is a line, as long as can be scaled; what is cut off would be cut off afterwards.
fn middle_of_a_line(picture: &RgbImage) -> Option<RgbImage> {
    let (width, height) = picture.dimensions();
    let longest = width.min(height).max(1).saturating_mul(RATIO_LIMIT);
    (width.max(height) > longest).then(|| crop(picture, width.min(longest), height.min(longest)))
}

/// A picture at a model's size.
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
    fn what_says_it_is_huge_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bomb.gif");
        picture().save(&path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        assert!(read_picture(&path).is_ok());
        bytes[6..10].fill(0xff); // width and height of the whole (GIF89a, 18)
        std::fs::write(&path, bytes).unwrap();
        assert!(read_picture(&path).unwrap_err().to_string().contains("65535 x 65535 pixels"));
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

    #[test]
    fn names_of_pictures() {
        for (name, read, foreign) in [
            ("a.jpg", true, false),
            ("A.WEBP", true, false),
            ("żółw.tiff", true, false),
            ("._a.jpg", false, false),
            ("a.HEIC", false, true),
            ("a.txt", false, false),
            ("jpg", false, false),
        ] {
            assert_eq!((is_picture(Path::new(name)), is_foreign_picture(Path::new(name))), (read, foreign), "{name}");
        }
    }
}
