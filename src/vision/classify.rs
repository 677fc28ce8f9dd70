//! Interprets a classifier's output as labels and probabilities, or as values.

use serde::Serialize;

use super::{ClassifierOutput, ClassifierSpec, VisionError};
use crate::diagnostic::Diagnostic;
use crate::tensor::{Tensor, TensorSpec};

/// A classifier's result for one image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// Label of the most probable class, or its index as text; for values the label of the first.
    pub label: String,
    /// Index of that class.
    pub class: usize,
    /// Probability of that class; `None` if the output holds values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probability: Option<f32>,
    /// For an expectation the mean of the class values; for values the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f32>,
    /// For labels that do not exclude each other, those with a probability above 0.5, the most probable first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub present: Option<Vec<String>>,
    /// The most probable classes with their probabilities, five by default; for values all of them, in output order.
    pub top: Vec<(String, f32)>,
}

impl ClassifierSpec {
    /// Refuses a model whose output cannot fit this description, as far as its shape is known.
    pub fn expect(&self, outputs: &[TensorSpec]) -> Result<(), VisionError> {
        let Some(output) = outputs.first() else {
            return Err(VisionError::Output { found: "missing".to_owned(), wanted: WANTED.into() });
        };
        let wrong = |wanted: Diagnostic| VisionError::Output { found: output.to_string(), wanted };
        match &output.shape[..] {
            // No dimension is told: what there is shows when the model runs.
            [] => Ok(()),
            [_, classes, rest @ ..] if rest.iter().all(|dim| dim.is_none_or(|dim| dim == 1)) => match classes {
                Some(classes) => self.check_count(*classes).map_err(wrong),
                None => Ok(()),
            },
            _ => Err(wrong(WANTED.into())),
        }
    }

    /// Checks that labels and class values are as many as classes.
    fn check_count(&self, classes: usize) -> Result<(), Diagnostic> {
        for (what, count) in
            [("labels", self.labels.as_ref().map(Vec::len)), ("class_values", self.class_values.as_ref().map(Vec::len))]
        {
            if let Some(count) = count.filter(|count| *count != classes) {
                let message = Diagnostic::new(format!("there are {count} {what}"));
                return Err(message.with_help(format!("give one for each of the {classes} classes")));
            }
        }
        Ok(())
    }

    /// Interprets the output for the first image of the batch.
    pub fn answer(&self, output: &Tensor) -> Result<Answer, VisionError> {
        self.answer_top(output, TOP)
    }

    /// The same with this many of the most probable classes in [`Answer::top`].
    pub fn answer_top(&self, output: &Tensor, top: usize) -> Result<Answer, VisionError> {
        let wrong = |wanted: Diagnostic| VisionError::Output {
            found: format!("{}{:?}", output.dtype(), output.shape()),
            wanted,
        };
        // A network that ends in a pooling may leave axes of one pixel.
        let classes = match output.shape() {
            [batch, classes, rest @ ..] if rest.iter().all(|dim| *dim == 1) && *batch > 0 && *classes > 0 => *classes,
            [_, _, rest @ ..] if rest.iter().all(|dim| *dim == 1) => return Err(wrong("it is empty".into())),
            _ => return Err(wrong(WANTED.into())),
        };
        self.check_count(classes).map_err(&wrong)?;
        let values: Vec<f32> = output.to_f64()[..classes].iter().map(|value| *value as f32).collect();
        if values.iter().any(|value| !value.is_finite()) {
            return Err(wrong("it holds values that are not finite".into()));
        }
        let answer = match self.output {
            ClassifierOutput::Values => self.read(&values),
            ClassifierOutput::Logits => {
                check_logits(&values).map_err(&wrong)?;
                self.most_probable(&softmax(&values), top)
            }
            ClassifierOutput::Multilabel => {
                self.present(&values.iter().map(|value| sigmoid(*value)).collect::<Vec<f32>>(), top)
            }
            ClassifierOutput::MultilabelProbabilities => {
                check_probabilities(&values, false).map_err(&wrong)?;
                self.present(&values, top)
            }
            ClassifierOutput::Probabilities | ClassifierOutput::Expectation => {
                check_probabilities(&values, true).map_err(&wrong)?;
                self.most_probable(&values, top)
            }
        };
        if answer.value.is_some_and(|value| !value.is_finite()) {
            return Err(wrong("its expectation is not finite".into()));
        }
        Ok(answer)
    }

    fn label(&self, class: usize) -> String {
        self.labels.as_ref().and_then(|labels| labels.get(class)).cloned().unwrap_or_else(|| class.to_string())
    }

    /// Interprets values, of which there is at least one.
    fn read(&self, values: &[f32]) -> Answer {
        let top = values.iter().enumerate().map(|(index, value)| (self.label(index), *value)).collect();
        Answer { label: self.label(0), class: 0, probability: None, value: values.first().copied(), present: None, top }
    }

    /// Interprets probabilities of labels that do not exclude each other; there is at least one.
    fn present(&self, probabilities: &[f32], top: usize) -> Answer {
        let present = sorted(probabilities).into_iter().filter(|class| probabilities[*class] > EVEN);
        let present = present.map(|class| self.label(class)).collect();
        Answer { present: Some(present), ..self.most_probable(probabilities, top) }
    }

    /// Interprets probabilities of classes; there is at least one.
    fn most_probable(&self, probabilities: &[f32], top: usize) -> Answer {
        let order = sorted(probabilities);
        let mean =
            |values: &Vec<f32>| values.iter().zip(probabilities).map(|(value, share)| value * share).sum::<f32>();
        Answer {
            label: self.label(order[0]),
            class: order[0],
            probability: Some(probabilities[order[0]]),
            value: self.class_values.as_ref().map(mean),
            present: None,
            top: order.iter().take(top).map(|class| (self.label(*class), probabilities[*class])).collect(),
        }
    }
}

/// Classes that an answer names.
pub const TOP: usize = 5;

const WANTED: &str = "[batch, classes] is wanted";

/// Largest rounding error of a probability, and of the sum of all, in half precision and TF32.
const ROUNDING: f32 = 0.02;

/// Refuses logits that are probabilities already: those add up to 1 in all digits.
fn check_logits(values: &[f32]) -> Result<(), Diagnostic> {
    let sum: f64 = values.iter().map(|value| f64::from(*value)).sum();
    let rounding = 2e-6 + 1e-7 * values.len() as f64;
    if values.len() < 2 || values.iter().any(|value| !(0.0..=1.0).contains(value)) || (sum - 1.0).abs() > rounding {
        return Ok(());
    }
    let message = Diagnostic::new("it holds probabilities: values from 0 to 1 that add up to 1");
    Err(message.with_help("build it with `output: probabilities`"))
}

/// Refuses values that are not probabilities; those of classes that exclude each other must add up to 1.
fn check_probabilities(values: &[f32], exclusive: bool) -> Result<(), Diagnostic> {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if low < -ROUNDING || high > 1.0 + ROUNDING {
        let scores = if exclusive { "logits" } else { "multilabel" };
        let message = format!("it holds no probabilities: its values lie between {low:.3} and {high:.3}");
        return Err(Diagnostic::new(message)
            .with_help(format!("if the model ends in scores, build it with `output: {scores}`")));
    }
    let sum: f32 = values.iter().sum();
    if exclusive && (sum - 1.0).abs() > ROUNDING {
        let message = Diagnostic::new(format!("its probabilities add up to {sum:.3} instead of 1"));
        return Err(message
            .with_help("if its labels do not exclude each other, build it with `output: multilabel_probabilities`"));
    }
    Ok(())
}

/// Probability above which a label counts as present.
const EVEN: f32 = 0.5;

/// Indices of the classes, the most probable first.
fn sorted(probabilities: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]));
    order
}

fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
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
    use crate::spec::Preprocess;

    #[test]
    fn answers() {
        let mut classifier = ClassifierSpec {
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
        let through = Tensor::from_f32(vec![1, 2], vec![0.25, 0.75]).unwrap();
        let said = classifier.answer(&through).unwrap_err().to_string();
        assert!(said.contains("add up to 1\n  hint: build it with `output: probabilities`"), "{said}");
        let output = Tensor::from_f32(vec![1, 2], vec![0.0, 3.0f32.ln()]).unwrap();
        let answer = classifier.answer(&output).unwrap();
        assert_eq!((answer.label.as_str(), answer.class), ("b", 1));
        assert!((answer.probability.unwrap() - 0.75).abs() < 1e-6);
        classifier.output = ClassifierOutput::Expectation;
        classifier.class_values = Some(vec![10.0, 20.0]);
        let output = Tensor::from_f32(vec![1, 2], vec![0.25, 0.75]).unwrap();
        assert_eq!(classifier.answer(&output).unwrap().value, Some(17.5));
        classifier.labels = Some(vec!["a".into()]);
        assert!(classifier.answer(&output).unwrap_err().to_string().contains("1 labels"));
        classifier.labels = None;
        let output = Tensor::from_f32(vec![1, 2], vec![f32::NAN, 0.5]).unwrap();
        assert!(classifier.answer(&output).unwrap_err().to_string().contains("not finite"));
        classifier.class_values = Some(vec![f32::MAX; 2]);
        let output = Tensor::from_f32(vec![1, 2], vec![0.505, 0.505]).unwrap();
        assert!(classifier.answer(&output).unwrap_err().to_string().contains("expectation is not finite"));
    }

    #[test]
    fn what_is_no_probability_is_not_told_as_one() {
        let answer = |output: ClassifierOutput, values: &[f32]| {
            let preprocess = Preprocess {
                size: None,
                fit: None,
                resize: None,
                resample: None,
                color: None,
                mean: [0.0; 3],
                std: [1.0; 3],
            };
            let class_values = (output == ClassifierOutput::Expectation).then(|| vec![1.0; values.len()]);
            let classifier = ClassifierSpec { preprocess, labels: None, output, class_values };
            classifier.answer(&Tensor::from_f32(vec![1, values.len()], values.to_vec()).unwrap())
        };
        use ClassifierOutput::{Expectation, MultilabelProbabilities, Probabilities};
        for (output, values, said) in [
            (
                Probabilities,
                &[-3.0f32, 5.0][..],
                "it holds no probabilities: its values lie between -3.000 and 5.000\n  hint: ",
            ),
            (Probabilities, &[-3.0, 5.0], "`output: logits`"),
            (Expectation, &[0.9, 0.8], "add up to 1.700 instead of 1\n  hint: "),
            (Probabilities, &[0.2, 0.1], "`output: multilabel_probabilities`"),
            (MultilabelProbabilities, &[0.9, 1.5], "`output: multilabel`"),
        ] {
            let error = answer(output, values).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        // Float16 rounds to 2^-11, bfloat16 to 2^-9 of a value.
        assert!(answer(Probabilities, &[0.998, 0.0039]).is_ok());
        let several = answer(MultilabelProbabilities, &[0.75, 0.25, 0.9]).unwrap();
        assert_eq!((several.present, several.probability), (Some(vec!["2".to_owned(), "0".to_owned()]), Some(0.9)));
    }

    #[test]
    fn counts_are_known_before_anything_runs() {
        let classifier = |labels: usize| ClassifierSpec {
            preprocess: Preprocess {
                size: None,
                fit: None,
                resize: None,
                resample: None,
                color: None,
                mean: [0.0; 3],
                std: [1.0; 3],
            },
            labels: Some((0..labels).map(|class| class.to_string()).collect()),
            output: ClassifierOutput::Logits,
            class_values: None,
        };
        let output = |shape: &[Option<usize>]| TensorSpec {
            name: "scores".to_owned(),
            dtype: crate::tensor::DType::Float32,
            shape: shape.to_vec(),
        };
        for (shape, said) in [
            (&[Some(1), Some(2)][..], None),
            (&[None, Some(2), Some(1), Some(1)], None),
            (&[None, None], None),
            (&[], None),
            (&[Some(1), Some(3)], Some("scores float32[1, 3]; there are 2 labels\n  hint: give one for each of the 3")),
            (&[Some(1), Some(2), Some(7)], Some("[batch, classes] is wanted")),
            (&[Some(2)], Some("[batch, classes] is wanted")),
        ] {
            let found = classifier(2).expect(&[output(shape)]).err().map(|error| error.to_string());
            assert_eq!(found.is_some(), said.is_some(), "{shape:?}: {found:?}");
            assert!(found.unwrap_or_default().contains(said.unwrap_or_default()), "{shape:?}");
        }
        assert!(classifier(2).expect(&[]).is_err());
    }
}
