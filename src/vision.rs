//! Pictures to input tensors, classifier outputs to answers.
//!
//! The types here are what a recipe says of a classifier and what its manifest keeps, so `run` and `verify` need no
//! recipe.

use std::path::{Path, PathBuf};

use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageDecoder, ImageReader, Rgb, RgbImage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tensor::Tensor;

/// How an image becomes an input tensor `[batch, 3, height, width]`, float32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// Height and width in pixels. Default: the input's own, where the model fixes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<[u32; 2]>,
    /// How the picture meets that size. Default: `stretch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<Fit>,
    /// Channel order. Default: `rgb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<Color>,
    /// Subtracted from the byte (0 to 255), per channel in the order of `color`.
    pub mean: [f32; 3],
    /// Divides what is left, per channel.
    pub std: [f32; 3],
}

/// How a picture is brought to the model's size, bilinear with antialiasing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// Scale both sides, ignoring the aspect ratio.
    Stretch,
    /// Scale the shorter side, cut the middle out.
    Crop,
    /// Scale the longer side, fill with grey (114).
    Letterbox,
}

/// Channel order of the input tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Color {
    Rgb,
    Bgr,
}

/// What a classifier's output holds, `[batch, classes]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClassifierOutput {
    /// Unnormalised scores; softmax is applied.
    Logits,
    /// Probabilities already.
    Probabilities,
    /// Probabilities whose weighted mean of `class_values` is the answer, e.g. an age.
    Expectation,
}

/// A classifier's way in and out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Classifier {
    /// Image to tensor.
    pub preprocess: Preprocess,
    /// Class names, if there are any.
    pub labels: Option<Vec<String>>,
    /// What the output holds.
    pub output: ClassifierOutput,
    /// Class values for an expectation.
    pub class_values: Option<Vec<f32>>,
}

/// Why a picture or an output is not usable.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum VisionError {
    #[error("cannot read picture {}: {message}\n  hint: PNG and JPEG are read", path.display())]
    Picture { path: PathBuf, message: String },
    #[error("the model's input is {found}; a classifier wants one float32 input [batch, 3, height, width]")]
    Input { found: String },
    #[error("the classifier's output is {found}; {wanted}")]
    Output { found: String, wanted: String },
}

/// What a classifier says of one picture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// Most probable class: its label, or its number.
    pub label: String,
    /// Its index.
    pub class: usize,
    /// Its probability.
    pub probability: f32,
    /// For an expectation: the mean of the class values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f32>,
    /// The five most probable classes.
    pub top: Vec<(String, f32)>,
}

/// Reads a picture, turned upright as its EXIF data says.
pub fn read_picture(path: &Path) -> Result<RgbImage, VisionError> {
    let fail = |message: String| VisionError::Picture { path: path.to_owned(), message };
    // The reader's default limits bound memory: a small file may claim a huge picture.
    let reader = ImageReader::open(path).map_err(|error| fail(error.to_string()))?;
    let reader = reader.with_guessed_format().map_err(|error| fail(error.to_string()))?;
    let mut decoder = reader.into_decoder().map_err(|error| fail(error.to_string()))?;
    let orientation = decoder.orientation().map_err(|error| fail(error.to_string()))?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|error| fail(error.to_string()))?;
    picture.apply_orientation(orientation);
    let picture = picture.into_rgb8();
    if picture.width() == 0 || picture.height() == 0 {
        return Err(fail("it is empty".to_owned()));
    }
    Ok(picture)
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
pub fn to_tensor(picture: &RgbImage, preprocess: &Preprocess, [height, width]: [u32; 2]) -> Tensor {
    let fitted = fit(picture, preprocess.fit.unwrap_or(Fit::Stretch), height, width);
    let bgr = preprocess.color == Some(Color::Bgr);
    let plane = (height as usize) * (width as usize);
    let mut values = vec![0.0; 3 * plane]; // (3, height, width)
    for (index, pixel) in fitted.pixels().enumerate() {
        for channel in 0..3 {
            let byte = f32::from(pixel.0[if bgr { 2 - channel } else { channel }]);
            values[channel * plane + index] = (byte - preprocess.mean[channel]) / preprocess.std[channel];
        }
    }
    Tensor::from_f32(vec![1, 3, height as usize, width as usize], values).expect("one value per pixel and channel")
}

fn fit(picture: &RgbImage, fit: Fit, height: u32, width: u32) -> RgbImage {
    // Triangle widens with the scale, i.e. bilinear with antialiasing, as PIL's BILINEAR is.
    let resize = |picture: &RgbImage, width: u32, height: u32| {
        if picture.dimensions() == (width, height) {
            picture.clone()
        } else {
            imageops::resize(picture, width.max(1), height.max(1), FilterType::Triangle)
        }
    };
    let (x, y) = (f64::from(width) / f64::from(picture.width()), f64::from(height) / f64::from(picture.height()));
    let scaled = |scale: f64| {
        let side = |length: u32, limit: u32| ((f64::from(length) * scale).round() as u32).clamp(1, limit.max(1));
        (side(picture.width(), u32::MAX), side(picture.height(), u32::MAX))
    };
    match fit {
        Fit::Stretch => resize(picture, width, height),
        Fit::Crop => {
            let (w, h) = scaled(x.max(y));
            let (w, h) = (w.max(width), h.max(height));
            imageops::crop_imm(&resize(picture, w, h), (w - width) / 2, (h - height) / 2, width, height).to_image()
        }
        Fit::Letterbox => {
            let (w, h) = scaled(x.min(y));
            let (w, h) = (w.min(width), h.min(height));
            let mut canvas = RgbImage::from_pixel(width, height, Rgb([114; 3]));
            imageops::replace(
                &mut canvas,
                &resize(picture, w, h),
                i64::from((width - w) / 2),
                i64::from((height - h) / 2),
            );
            canvas
        }
    }
}

impl Classifier {
    /// The picture in a file as the model's input, `[batch, 3, height, width]`, every item the same.
    pub fn input(&self, picture: &Path, [height, width]: [u32; 2], batch: usize) -> Result<Tensor, VisionError> {
        let single = to_tensor(&read_picture(picture)?, &self.preprocess, [height, width]);
        let mut shape = single.shape().to_vec();
        shape[0] = batch;
        let values = single.as_f32().expect("pictures are float32").repeat(batch);
        Ok(Tensor::from_f32(shape, values).expect("as many values as pictures"))
    }

    /// Interprets the output for the first picture of the batch.
    pub fn answer(&self, output: &Tensor) -> Result<Answer, VisionError> {
        let wrong = |wanted: &str| VisionError::Output {
            found: format!("{}{:?}", output.dtype(), output.shape()),
            wanted: wanted.to_owned(),
        };
        let [batch, classes] = *output.shape() else { return Err(wrong("[batch, classes] is wanted")) };
        if batch == 0 || classes == 0 {
            return Err(wrong("it is empty"));
        }
        for (what, count) in
            [("labels", self.labels.as_ref().map(Vec::len)), ("class_values", self.class_values.as_ref().map(Vec::len))]
        {
            if count.is_some_and(|count| count != classes) {
                return Err(wrong(&format!("the recipe has {} {what}", count.unwrap_or(0))));
            }
        }
        let values: Vec<f32> = output.to_f64()[..classes].iter().map(|value| *value as f32).collect();
        if values.iter().any(|value| !value.is_finite()) {
            return Err(wrong("it holds values that are not finite"));
        }
        let probabilities = if self.output == ClassifierOutput::Logits { softmax(&values) } else { values };
        let mut order: Vec<usize> = (0..classes).collect();
        order.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]));
        let label = |class: usize| match &self.labels {
            Some(labels) => labels[class].clone(),
            None => class.to_string(),
        };
        let value = self
            .class_values
            .as_ref()
            .map(|values| values.iter().zip(&probabilities).map(|(value, probability)| value * probability).sum());
        Ok(Answer {
            label: label(order[0]),
            class: order[0],
            probability: probabilities[order[0]],
            value,
            top: order.iter().take(5).map(|class| (label(*class), probabilities[*class])).collect(),
        })
    }
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponents: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f32 = exponents.iter().sum();
    exponents.iter().map(|exponent| exponent / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preprocess(fit: Fit) -> Preprocess {
        Preprocess { size: None, fit: Some(fit), color: None, mean: [0.0; 3], std: [1.0; 3] }
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

    #[test]
    fn answers() {
        let mut classifier = Classifier {
            preprocess: preprocess(Fit::Stretch),
            labels: Some(vec!["a".into(), "b".into()]),
            output: ClassifierOutput::Logits,
            class_values: None,
        };
        let output = Tensor::from_f32(vec![1, 2], vec![0.0, 3.0f32.ln()]).unwrap();
        let answer = classifier.answer(&output).unwrap();
        assert_eq!((answer.label.as_str(), answer.class), ("b", 1));
        assert!((answer.probability - 0.75).abs() < 1e-6);
        classifier.output = ClassifierOutput::Expectation;
        classifier.class_values = Some(vec![10.0, 20.0]);
        let output = Tensor::from_f32(vec![1, 2], vec![0.25, 0.75]).unwrap();
        assert_eq!(classifier.answer(&output).unwrap().value, Some(17.5));
        classifier.labels = Some(vec!["a".into()]);
        assert!(classifier.answer(&output).unwrap_err().to_string().contains("1 labels"));
        classifier.labels = None;
        let output = Tensor::from_f32(vec![1, 2], vec![f32::NAN, 0.5]).unwrap();
        assert!(classifier.answer(&output).unwrap_err().to_string().contains("not finite"));
    }
}
