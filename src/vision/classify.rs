//! What a classifier says: its outputs to labels and probabilities.

use serde::{Deserialize, Serialize};

use super::{ClassifierOutput, Preprocess, VisionError};
use crate::tensor::Tensor;

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

impl Classifier {
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
        let value: Option<f32> = self
            .class_values
            .as_ref()
            .map(|values| values.iter().zip(&probabilities).map(|(value, probability)| value * probability).sum());
        if value.is_some_and(|value| !value.is_finite()) {
            return Err(wrong("its expectation is not finite"));
        }
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

    #[test]
    fn answers() {
        let mut classifier = Classifier {
            preprocess: Preprocess {
                size: None,
                fit: None,
                resize: None,
                resample: None,
                color: None,
                mean: [0.0; 3],
                std: [1.0; 3],
            },
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
        let output = Tensor::from_f32(vec![1, 2], vec![f32::MAX, 0.5]).unwrap();
        assert!(classifier.answer(&output).unwrap_err().to_string().contains("expectation is not finite"));
    }
}
