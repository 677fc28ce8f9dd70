//! Reads and writes image files.

use std::io::ErrorKind;
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, RgbImage};

use super::limits::{CUT_OFF, check_size};
use super::{VisionError, gif_frame, tiff_samples};
use crate::artifact::write_file;
use crate::diagnostic::Diagnostic;

/// Names of the supported formats, for messages.
pub const FORMATS: &str = "PNG, JPEG, WebP, BMP, TIFF and GIF";

/// Whether a file's name is that of a supported image. `._NAME` is not: macOS keeps attributes there on file systems
/// that cannot store them.
pub fn is_picture(path: &Path) -> bool {
    let attributes = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("._"));
    let known = ["png", "jpg", "jpeg", "jpe", "jfif", "mpo", "webp", "bmp", "tif", "tiff", "gif"];
    !attributes && known.contains(&extension(path).as_str())
}

/// Whether a file's name is that of an image in an unsupported format.
pub fn is_foreign_picture(path: &Path) -> bool {
    ["avif", "heic", "heif", "jp2", "j2k", "jxl", "dng", "svg", "pfm"].contains(&extension(path).as_str())
}

fn extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

/// Reads an image and applies its EXIF orientation; of several images in a file, the first.
pub fn read_picture(path: &Path) -> Result<RgbImage, VisionError> {
    let fail = |message: Diagnostic| VisionError::Picture { path: path.to_owned(), message };
    let file = crate::regular_file::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => fail("there is no such file".into()),
        _ => fail(error.into()),
    })?;
    let reader = ImageReader::new(std::io::BufReader::new(file));
    let reader = reader.with_guessed_format().map_err(|error| fail(error.into()))?;
    let whole = || crate::regular_file::read(path, WHOLE_LIMIT).map_err(|error| fail(error.into()));
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

/// Decodes an image of a format that the `image` crate reads like PIL.
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

/// Largest file that is read into memory, in bytes.
const WHOLE_LIMIT: u64 = 1 << 30;

/// Whether a JPEG is truncated: every one ends with the marker EOI (ITU-T T.81, B.2.1). The decoder would fill the
/// missing part with grey, where PIL raises.
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

/// Writes an image atomically: PNG by that extension, else JPEG.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_it_is_huge_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bomb.gif");
        RgbImage::new(8, 4).save(&path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        assert!(read_picture(&path).is_ok());
        bytes[6..10].fill(0xff); // width and height of the whole (GIF89a, 18)
        std::fs::write(&path, bytes).unwrap();
        assert!(read_picture(&path).unwrap_err().to_string().contains("65535 x 65535 pixels"));
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
