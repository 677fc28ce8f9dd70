//! The image input of a model: its layout, channels and element type, and the conversion of images to it.

use half::f16;
use image::{Rgb, RgbImage};

use super::resize::fit;
use super::{Color, Preprocess, VisionError};
use crate::diagnostic::Diagnostic;
use crate::tensor::{DType, Tensor, TensorData, TensorSpec};

/// A model's image input: `[batch, channels, height, width]`, or channels last as in TensorFlow. A single channel is
/// grey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PictureInput {
    /// Height and width in pixels.
    pub size: [u32; 2],
    grey: bool,
    channels_last: bool,
    dtype: DType,
}

const WANTED: &str = "pictures want [batch, channels, height, width] or [batch, height, width, channels] of 3 channels, or \
                      1 for grey, in float32, float16 or uint8";

/// Axes of height and width of an image input, found by its number of channels.
pub fn pixel_axes(shape: &[Option<usize>]) -> Option<[usize; 2]> {
    match shape {
        [_, Some(1 | 3), _, _] => Some([2, 3]),
        [_, _, _, Some(1 | 3)] => Some([1, 2]),
        _ => None,
    }
}

impl PictureInput {
    /// The input of a model with this preprocessing, whose size takes precedence over the model's own.
    pub fn new(preprocess: &Preprocess, spec: &TensorSpec) -> Result<Self, VisionError> {
        let wrong = |wanted: &str| VisionError::Input { found: spec.to_string(), wanted: Diagnostic::new(wanted) };
        let helped = |wanted: &str, help: &str| VisionError::Input {
            found: spec.to_string(),
            wanted: Diagnostic::new(wanted).with_help(help),
        };
        let axes = pixel_axes(&spec.shape).ok_or_else(|| wrong(WANTED))?;
        let channels_last = axes == [1, 2];
        let grey = spec.shape[if channels_last { 3 } else { 1 }] == Some(1);
        let own = axes.map(|axis| spec.shape[axis]);
        let side = |index: usize| match (preprocess.size.map(|size| size[index]), own[index].map(u32::try_from)) {
            (Some(wanted), None) => Ok(wanted),
            (Some(wanted), Some(Ok(own))) if own == wanted => Ok(wanted),
            (None, Some(Ok(own))) => Ok(own),
            (Some(wanted), Some(_)) => Err(wrong(&format!("`size` says {wanted} pixels for axis {}", axes[index]))),
            (None, _) => Err(helped("its size is open", "say `preprocess: { size: [HEIGHT, WIDTH] }`")),
        };
        let input = Self { size: [side(0)?, side(1)?], grey, channels_last, dtype: spec.dtype };
        let Preprocess { mean, std, color, .. } = preprocess;
        let differ = |values: &[f32; 3]| values.iter().any(|value| *value != values[0]);
        match spec.dtype {
            DType::Float32 | DType::Float16 => {}
            DType::UInt8 if *mean == [0.0; 3] && *std == [1.0; 3] => {}
            DType::UInt8 => {
                return Err(helped(
                    "uint8 takes a picture's bytes as they are",
                    "say `mean: [0, 0, 0]` and `std: [1, 1, 1]`",
                ));
            }
            _ => return Err(wrong(WANTED)),
        }
        if grey && (differ(mean) || differ(std)) {
            return Err(helped("grey has one mean and one std", "give the same number three times"));
        }
        if grey && *color == Some(Color::Bgr) {
            return Err(helped("grey has no order of channels", "leave `color` out"));
        }
        Ok(input)
    }

    /// Three channels first, in float32.
    pub(super) fn planar(size: [u32; 2]) -> Self {
        Self { size, grey: false, channels_last: false, dtype: DType::Float32 }
    }

    /// Converts an image to a tensor with a batch of one.
    pub fn tensor(&self, picture: &RgbImage, preprocess: &Preprocess) -> Tensor {
        let fitted =
            if self.grey { fit(&greyed(picture), preprocess, self.size) } else { fit(picture, preprocess, self.size) };
        let bgr = preprocess.color == Some(Color::Bgr);
        let channels: &[usize] = match (self.grey, bgr) {
            (true, _) => &[0],
            (false, true) => &[2, 1, 0],
            (false, false) => &[0, 1, 2],
        };
        let (width, height) = (fitted.width() as usize, fitted.height() as usize);
        let shape = match self.channels_last {
            true => vec![1, height, width, channels.len()],
            false => vec![1, channels.len(), height, width],
        };
        let float = |channel: usize, byte: u8| (f32::from(byte) - preprocess.mean[channel]) / preprocess.std[channel];
        let bytes = fitted.as_raw();
        let data = match self.dtype {
            DType::UInt8 => TensorData::U8(arrange(bytes, channels, self.channels_last, |_, byte| byte)),
            DType::Float16 => TensorData::F16(arrange(bytes, channels, self.channels_last, |channel, byte| {
                f16::from_f32(float(channel, byte))
            })),
            _ => TensorData::F32(arrange(bytes, channels, self.channels_last, float)),
        };
        Tensor::new(shape, data).expect("one value per pixel and channel")
    }
}

/// Converts an image to float32 `[1, 3, height, width]`, whatever the model's input is.
pub fn to_tensor(picture: &RgbImage, preprocess: &Preprocess, size: [u32; 2]) -> Tensor {
    PictureInput::planar(size).tensor(picture, preprocess)
}

/// Arranges values of RGB bytes in the tensor's order; `channels` is the byte of a pixel for each channel.
fn arrange<T: Copy + Default>(
    bytes: &[u8],
    channels: &[usize],
    channels_last: bool,
    value: impl Fn(usize, u8) -> T,
) -> Vec<T> {
    let count = bytes.len() / 3;
    let mut values = vec![T::default(); count * channels.len()];
    for (channel, from) in channels.iter().enumerate() {
        let table: Vec<T> = (0..=255u8).map(|byte| value(channel, byte)).collect();
        let bytes = bytes.iter().skip(*from).step_by(3).map(|byte| table[usize::from(*byte)]);
        if channels_last {
            let places = values.iter_mut().skip(channel).step_by(channels.len());
            places.zip(bytes).for_each(|(place, value)| *place = value);
        } else {
            let plane = values[channel * count..][..count].iter_mut();
            plane.zip(bytes).for_each(|(place, value)| *place = value);
        }
    }
    values
}

/// Luma in all three channels, rounded like PIL's `convert("L")` (libImaging/Convert.c: ITU-R BT.601 in 65536ths).
fn greyed(picture: &RgbImage) -> RgbImage {
    let mut grey = picture.clone();
    for pixel in grey.pixels_mut() {
        let [red, green, blue] = pixel.0.map(u32::from);
        let luma = (red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16;
        *pixel = Rgb([u8::try_from(luma).unwrap_or(u8::MAX); 3]);
    }
    grey
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::Fit;

    fn preprocess() -> Preprocess {
        Preprocess {
            size: None,
            fit: Some(Fit::Stretch),
            resize: None,
            resample: None,
            color: None,
            mean: [0.0; 3],
            std: [1.0; 3],
        }
    }

    fn spec(dtype: DType, shape: [Option<usize>; 4]) -> TensorSpec {
        TensorSpec { name: "x".to_owned(), dtype, shape: shape.to_vec() }
    }

    /// Two pixels, one above the other.
    fn picture() -> RgbImage {
        RgbImage::from_fn(1, 2, |_, y| if y == 0 { Rgb([200, 100, 50]) } else { Rgb([3, 7, 250]) })
    }

    #[test]
    fn layouts_channels_and_types() {
        // Grey is what PIL 13 says: Image.fromarray(numpy.uint8([[[200, 100, 50]], [[3, 7, 250]]])).convert("L").
        type Case<'a> = (DType, [Option<usize>; 4], Color, &'a [f64]);
        let cases: [Case<'_>; 6] = [
            (DType::Float32, [None, Some(3), Some(2), Some(1)], Color::Rgb, &[200.0, 3.0, 100.0, 7.0, 50.0, 250.0]),
            (DType::Float32, [None, Some(2), Some(1), Some(3)], Color::Bgr, &[50.0, 100.0, 200.0, 250.0, 7.0, 3.0]),
            (DType::UInt8, [Some(1), Some(2), Some(1), Some(3)], Color::Rgb, &[200.0, 100.0, 50.0, 3.0, 7.0, 250.0]),
            (DType::Float16, [None, Some(3), Some(2), Some(1)], Color::Bgr, &[50.0, 250.0, 100.0, 7.0, 200.0, 3.0]),
            (DType::Float32, [Some(4), Some(1), Some(2), Some(1)], Color::Rgb, &[124.0, 34.0]),
            (DType::UInt8, [None, Some(2), None, Some(1)], Color::Rgb, &[124.0, 34.0]),
        ];
        for (dtype, shape, color, want) in cases {
            let mut settings = Preprocess { color: Some(color), ..preprocess() };
            if shape.contains(&None) {
                settings.size = Some([2, 1]);
            }
            let tensor = PictureInput::new(&settings, &spec(dtype, shape)).unwrap().tensor(&picture(), &settings);
            assert_eq!((tensor.dtype(), tensor.to_f64().as_slice()), (dtype, want), "{shape:?}");
            assert_eq!((tensor.shape()[0], tensor.shape().len()), (1, 4));
        }
    }

    #[test]
    fn inputs_that_are_no_pictures_are_told() {
        let fixed = [Some(1), Some(3), Some(8), Some(8)];
        let grey = [Some(1), Some(1), Some(8), Some(8)];
        let plain = preprocess();
        let scaled = Preprocess { std: [255.0; 3], ..preprocess() };
        let colored = Preprocess { mean: [1.0, 2.0, 3.0], ..preprocess() };
        let reversed = Preprocess { color: Some(Color::Bgr), ..preprocess() };
        let sized = Preprocess { size: Some([8, 9]), ..preprocess() };
        for (settings, dtype, shape, said) in [
            (&plain, DType::Float32, [Some(1), Some(4), Some(8), Some(8)], "of 3 channels, or 1 for grey"),
            (&plain, DType::Int64, fixed, "in float32, float16 or uint8"),
            (&scaled, DType::UInt8, fixed, "uint8 takes a picture's bytes as they are"),
            (&colored, DType::Float32, grey, "the same number three times"),
            (&reversed, DType::Float32, grey, "leave `color` out"),
            (&sized, DType::Float32, fixed, "`size` says 9 pixels for axis 3"),
            (&plain, DType::Float32, [Some(1), Some(3), None, Some(8)], "its size is open"),
        ] {
            let error = PictureInput::new(settings, &spec(dtype, shape)).unwrap_err().to_string();
            assert!(error.starts_with("the model's input is x ") && error.contains(said), "{error}");
        }
    }
}
