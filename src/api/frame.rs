//! An image as a robot has it: pixels of a camera in memory, an image of the `image` crate, or a file.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::error::{Error, ErrorKind};
use crate::diagnostic::Diagnostic;
use crate::vision::{RgbImage, read_picture};

/// An image that a model looks at. It borrows its pixels, so making one costs nothing.
///
/// Whatever takes a frame takes a `&RgbImage` or the path of a file as well.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a>(FrameSource<'a>);

#[derive(Debug, Clone, Copy)]
enum FrameSource<'a> {
    Picture(&'a RgbImage),
    File(&'a Path),
    Pixels { bytes: &'a [u8], width: u32, height: u32, format: PixelFormat },
}

/// How the bytes of a frame make its pixels. The names are those of ROS (`sensor_msgs/image_encodings`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PixelFormat {
    /// Red, green, blue: 3 bytes a pixel.
    Rgb8,
    /// Blue, green, red, as OpenCV has them: 3 bytes a pixel.
    Bgr8,
    /// Red, green, blue and an opacity that is not looked at: 4 bytes a pixel.
    Rgba8,
    /// Blue, green, red and an opacity that is not looked at: 4 bytes a pixel.
    Bgra8,
    /// Grey: a byte a pixel.
    Mono8,
}

impl PixelFormat {
    fn bytes(self) -> usize {
        match self {
            PixelFormat::Mono8 => 1,
            PixelFormat::Rgb8 | PixelFormat::Bgr8 => 3,
            PixelFormat::Rgba8 | PixelFormat::Bgra8 => 4,
        }
    }

    /// Where in a pixel red, green and blue are.
    fn places(self) -> [usize; 3] {
        match self {
            PixelFormat::Rgb8 | PixelFormat::Rgba8 => [0, 1, 2],
            PixelFormat::Bgr8 | PixelFormat::Bgra8 => [2, 1, 0],
            PixelFormat::Mono8 => [0, 0, 0],
        }
    }
}

impl<'a> Frame<'a> {
    /// Pixels row by row from the upper left, without padding: `width * height` of them.
    pub fn new(bytes: &'a [u8], width: u32, height: u32, format: PixelFormat) -> Result<Self, Error> {
        let pixels = (width as usize).checked_mul(height as usize).filter(|pixels| *pixels > 0);
        match pixels.and_then(|pixels| pixels.checked_mul(format.bytes())) {
            Some(wanted) if wanted == bytes.len() => Ok(Self(FrameSource::Pixels { bytes, width, height, format })),
            Some(wanted) => Err(unusable(
                format!(
                    "a frame of {width} x {height} pixels in {format:?} has {wanted} bytes, {} were given",
                    bytes.len()
                ),
                "give rows without padding at their ends, and the format that the camera writes",
            )),
            None => Err(unusable(
                format!("a frame of {width} x {height} pixels cannot be looked at"),
                "give its width and height in pixels, both at least 1",
            )),
        }
    }

    /// Bytes of red, green and blue; see [`Frame::new`].
    pub fn rgb(bytes: &'a [u8], width: u32, height: u32) -> Result<Self, Error> {
        Self::new(bytes, width, height, PixelFormat::Rgb8)
    }

    /// Bytes of blue, green and red; see [`Frame::new`].
    pub fn bgr(bytes: &'a [u8], width: u32, height: u32) -> Result<Self, Error> {
        Self::new(bytes, width, height, PixelFormat::Bgr8)
    }

    /// Its pixels, read from the file if it is one.
    pub(super) fn picture(&self) -> Result<Cow<'a, RgbImage>, Error> {
        match self.0 {
            FrameSource::Picture(picture) if picture.width() == 0 || picture.height() == 0 => {
                Err(unusable("an image without pixels cannot be looked at".to_owned(), "give one of at least 1 x 1"))
            }
            FrameSource::Picture(picture) => Ok(Cow::Borrowed(picture)),
            FrameSource::File(path) => read_picture(path).map(Cow::Owned).map_err(Error::of),
            FrameSource::Pixels { bytes, width, height, format } => {
                let mut picture = RgbImage::new(width, height);
                let [red, green, blue] = format.places();
                let pixels = bytes.chunks_exact(format.bytes());
                for (place, pixel) in picture.chunks_exact_mut(3).zip(pixels) {
                    place.copy_from_slice(&[pixel[red], pixel[green], pixel[blue]]);
                }
                Ok(Cow::Owned(picture))
            }
        }
    }
}

fn unusable(message: String, help: &str) -> Error {
    Error::new(ErrorKind::Image, Diagnostic::new(message).with_help(help))
}

impl<'a> From<&'a RgbImage> for Frame<'a> {
    fn from(picture: &'a RgbImage) -> Self {
        Self(FrameSource::Picture(picture))
    }
}

/// The image in a file: PNG, JPEG, WebP, BMP, TIFF or GIF.
impl<'a> From<&'a Path> for Frame<'a> {
    fn from(path: &'a Path) -> Self {
        Self(FrameSource::File(path))
    }
}

impl<'a> From<&'a PathBuf> for Frame<'a> {
    fn from(path: &'a PathBuf) -> Self {
        Self(FrameSource::File(path))
    }
}

impl<'a> From<&'a str> for Frame<'a> {
    fn from(path: &'a str) -> Self {
        Self(FrameSource::File(Path::new(path)))
    }
}

impl<'a> From<&'a String> for Frame<'a> {
    fn from(path: &'a String) -> Self {
        Self(FrameSource::File(Path::new(path)))
    }
}

impl<'a> From<&Frame<'a>> for Frame<'a> {
    fn from(frame: &Frame<'a>) -> Self {
        *frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_of_every_format() {
        // Two pixels side by side: orange, then the darkest but one.
        for (format, bytes) in [
            (PixelFormat::Rgb8, &[250, 120, 10, 1, 1, 1][..]),
            (PixelFormat::Bgr8, &[10, 120, 250, 1, 1, 1]),
            (PixelFormat::Rgba8, &[250, 120, 10, 99, 1, 1, 1, 99]),
            (PixelFormat::Bgra8, &[10, 120, 250, 99, 1, 1, 1, 99]),
        ] {
            let picture = Frame::new(bytes, 2, 1, format).unwrap().picture().unwrap().into_owned();
            assert_eq!((picture.dimensions(), picture.into_raw()), ((2, 1), vec![250, 120, 10, 1, 1, 1]), "{format:?}");
        }
        let grey = Frame::new(&[7, 9], 1, 2, PixelFormat::Mono8).unwrap().picture().unwrap().into_owned();
        assert_eq!(grey.into_raw(), [7, 7, 7, 9, 9, 9]);
    }

    #[test]
    fn frames_of_another_size_are_refused() {
        for (count, width, height, said) in
            [(11, 2, 2, "has 12 bytes, 11 were given"), (0, 0, 5, "0 x 5 pixels"), (3, u32::MAX, u32::MAX, "")]
        {
            let bytes = vec![0; count];
            let error = Frame::rgb(&bytes, width, height).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Image);
            assert!(error.message().contains(said) && error.help().is_some(), "{error}");
        }
        let empty = RgbImage::new(0, 3);
        assert_eq!(Frame::from(&empty).picture().unwrap_err().kind(), ErrorKind::Image);
        let missing = Frame::from("there/is/none.png").picture().unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::Image);
        assert!(missing.message().contains("none.png"), "{missing}");
    }
}
