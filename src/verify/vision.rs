//! Compares the engine's results on images with the reference's: the same classes, the same objects in the same places.
//!
//! Outputs may differ without a different result, and results may differ on tiny differences of outputs; so both are
//! compared.

use super::{Agreement, Report, Status};
use crate::log::printable;
use crate::manifest::Manifest;
use crate::spec::Precision;
use crate::tensor::Tensor;
use crate::vision::{Answer, ClassifierSpec, Detection, Yolo};

/// Largest allowed differences of results.
#[derive(Debug, Clone, Copy)]
struct Gate {
    score: f32,
    overlap: f32,
}

impl Gate {
    /// The limits by precision: float32 agrees to the last pixel; half precision and TF32 have three digits.
    fn of(manifest: &Manifest) -> Self {
        if manifest.precision == Precision::Fp32 && !manifest.tf32 {
            Self { score: 2e-3, overlap: 0.99 }
        } else {
            Self { score: 5e-2, overlap: 0.9 }
        }
    }
}

/// Compares the results that the outputs of engine (`have`) and reference (`want`) give for an image of `size` (height,
/// width).
pub(super) fn agreement(
    manifest: &Manifest,
    case: &str,
    size: [u32; 2],
    have: &[Tensor],
    want: &[Tensor],
) -> Option<Agreement> {
    let gate = Gate::of(manifest);
    let compared = match (manifest.contents.classifier(), manifest.contents.yolo()) {
        (Some(classifier), _) => classes(classifier, gate, have, want),
        (None, Some(yolo)) => objects(yolo, gate, size, have, want),
        (None, None) => return None,
    };
    let failed = |message: String| Agreement {
        case: String::new(),
        reference: String::new(),
        differences: vec![message],
        score_difference: 1.0,
        overlap: 0.0,
    };
    Some(Agreement { case: case.to_owned(), ..compared.unwrap_or_else(failed) })
}

fn classes(classifier: &ClassifierSpec, gate: Gate, have: &[Tensor], want: &[Tensor]) -> Result<Agreement, String> {
    let answer = |outputs: &[Tensor]| -> Result<Answer, String> {
        let output = outputs.first().ok_or("no output")?;
        classifier.answer(output).map_err(|error| error.to_string())
    };
    let (have, want) = (answer(have)?, answer(want)?);
    let Some(sure) = want.probability else { return Ok(values(gate, &have, &want)) };
    let probability = |answer: &Answer, label: &str| {
        answer.top.iter().find(|(name, _)| name == label).map(|(_, probability)| *probability)
    };
    let pairs = want.top.iter().filter_map(|(label, p)| Some((p - probability(&have, label)?).abs()));
    let score_difference = pairs.fold((have.probability.unwrap_or_default() - sure).abs(), f32::max);
    let mut differences = Vec::new();
    // Two classes that are as good as equally probable may change places.
    if have.class != want.class && probability(&want, &have.label).is_none_or(|p| sure - p > gate.score) {
        differences.push(format!("{} instead of {}", printable(&have.label), printable(&want.label)));
    }
    if score_difference > gate.score {
        differences.push(format!("a probability differs by {score_difference:.3}"));
    }
    let reference = format!("{} ({:.1} %)", printable(&want.label), sure * 100.0);
    Ok(Agreement { case: String::new(), reference, differences, score_difference, overlap: 1.0 })
}

/// Compares the values of a regression: they may differ by the limit's share of the largest value, or of 1 if that is
/// smaller.
fn values(gate: Gate, have: &Answer, want: &Answer) -> Agreement {
    let scale = want.top.iter().fold(1.0f32, |scale, (_, value)| scale.max(value.abs()));
    let pairs = have.top.iter().zip(&want.top);
    let score_difference = pairs.map(|((_, have), (_, want))| (have - want).abs() / scale).fold(0.0, f32::max);
    let mut differences = Vec::new();
    if have.top.len() != want.top.len() {
        differences.push(format!("{} values instead of {}", have.top.len(), want.top.len()));
    }
    if score_difference > gate.score {
        differences.push(format!("a value differs by {score_difference:.3} of the largest"));
    }
    let reference = format!("{} {:.4}", printable(&want.label), want.value.unwrap_or_default());
    Agreement { case: String::new(), reference, differences, score_difference, overlap: 1.0 }
}

fn objects(yolo: &Yolo, gate: Gate, size: [u32; 2], have: &[Tensor], want: &[Tensor]) -> Result<Agreement, String> {
    let detect = |outputs: &[Tensor]| yolo.detections(outputs, size).map_err(|error| error.to_string());
    let (have, want) = (detect(have)?, detect(want)?);
    let mut agreement = Agreement {
        case: String::new(),
        reference: format!("{} objects", want.len()),
        differences: Vec::new(),
        score_difference: 0.0,
        overlap: 1.0,
    };
    // Who is hardly above the threshold may be missing on one side.
    let sure = yolo.confidence + gate.score;
    let mut free: Vec<&Detection> = have.iter().collect();
    for object in &want {
        let label = printable(&object.label);
        let candidates = free.iter().enumerate().filter(|(_, other)| other.class == object.class);
        let best = candidates.map(|(index, other)| (index, overlap(object, other))).max_by(|a, b| a.1.total_cmp(&b.1));
        match best {
            Some((index, overlap)) if overlap >= gate.overlap => {
                let twin = free.swap_remove(index);
                let difference = (twin.score - object.score).abs();
                agreement.score_difference = agreement.score_difference.max(difference);
                agreement.overlap = agreement.overlap.min(overlap);
                if difference > gate.score {
                    let scores = format!("{:.3} instead of {:.3}", twin.score, object.score);
                    agreement.differences.push(format!("{label} has {scores}"));
                }
            }
            _ if object.score < sure => {}
            best => {
                let nearest = best.map_or(0.0, |(_, overlap)| overlap);
                agreement.overlap = agreement.overlap.min(nearest);
                let text = format!("{label} ({:.2}) is missing, the nearest overlaps {nearest:.2}", object.score);
                agreement.differences.push(text);
            }
        }
    }
    let invented = free.iter().filter(|object| object.score >= sure);
    let invented = invented.map(|object| format!("{} ({:.2}) is not there", printable(&object.label), object.score));
    agreement.differences.extend(invented);
    Ok(agreement)
}

/// Intersection over union of the boxes, or of the masks if that is smaller.
fn overlap(a: &Detection, b: &Detection) -> f32 {
    let boxes = a.bbox.overlap(&b.bbox);
    match (&a.mask, &b.mask) {
        (Some(a), Some(b)) => boxes.min(a.overlap(b) as f32),
        _ => boxes,
    }
}

/// Adds the check over all images to the report.
pub(super) fn conclude(manifest: &Manifest, report: &mut Report) {
    if report.answers.is_empty() {
        return;
    }
    let gate = Gate::of(manifest);
    let wrong: Vec<String> = report
        .answers
        .iter()
        .filter(|answer| !answer.differences.is_empty())
        .map(|answer| format!("{}: {}", answer.case, answer.differences.join(", ")))
        .collect();
    if !wrong.is_empty() {
        return report.push("answers", Status::Failed, wrong.join("; "));
    }
    let score = report.answers.iter().map(|answer| answer.score_difference).fold(0.0, f32::max);
    let overlap = report.answers.iter().map(|answer| answer.overlap).fold(1.0, f32::min);
    let mut text = format!("{} pictures, scores within {score:.4} of {} allowed", report.answers.len(), gate.score);
    if manifest.contents.classifier().is_none() {
        text += &format!(", boxes overlap by {overlap:.4} or more of {} wanted", gate.overlap);
    }
    report.push("answers", Status::Passed, text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::{ClassifierOutput, Task};

    fn yolo() -> Yolo {
        Yolo {
            task: Task::Detect,
            names: vec!["owl".to_owned()],
            stride: 32,
            size: [64, 64],
            boxes: Default::default(),
            confidence: 0.25,
            iou: 0.7,
            max_detections: 300,
            metadata: false,
            about: Default::default(),
        }
    }

    /// A detector's output with boxes (centre x, y, width, height, score) as columns.
    fn output(boxes: &[[f32; 5]]) -> Vec<Tensor> {
        let values = (0..5).flat_map(|row| boxes.iter().map(move |b| b[row])).collect();
        vec![Tensor::from_f32(vec![1, 5, boxes.len()], values).unwrap()]
    }

    #[test]
    fn objects_must_be_the_same() {
        let gate = Gate { score: 0.05, overlap: 0.9 };
        let want = output(&[[32.0, 32.0, 20.0, 20.0, 0.9], [10.0, 10.0, 8.0, 8.0, 0.27]]);
        let agree = |have: &[[f32; 5]]| objects(&yolo(), gate, [64, 64], &output(have), &want).unwrap();
        let same = agree(&[[32.2, 32.0, 20.0, 20.0, 0.88], [50.0, 50.0, 8.0, 8.0, 0.28]]);
        assert!(same.differences.is_empty(), "{same:?}: what is hardly above the threshold may come and go");
        assert!(same.overlap > 0.97 && (same.score_difference - 0.02).abs() < 1e-5);
        for (have, part) in [
            (&[][..], "missing"),
            (&[[36.0, 32.0, 20.0, 20.0, 0.9]], "missing, the nearest overlaps 0.67"),
            (&[[32.0, 32.0, 20.0, 20.0, 0.8]], "0.800 instead of 0.900"),
            (&[[32.0, 32.0, 20.0, 20.0, 0.9], [50.0, 50.0, 8.0, 8.0, 0.5]], "is not there"),
        ] {
            let found = agree(have).differences.join(", ");
            assert!(found.contains(part), "{found}");
        }
        let forged = Yolo { names: vec!["owl\nok   a: answers".to_owned()], ..yolo() };
        let found = objects(&forged, gate, [64, 64], &output(&[]), &want).unwrap().differences.join(", ");
        assert!(found.contains("owl\\nok   a: answers (0.90) is missing"), "{found}");
        let spoilt = output(&[[f32::NAN, 32.0, 20.0, 20.0, 0.9]]);
        assert!(objects(&yolo(), gate, [64, 64], &spoilt, &want).is_err());
    }

    #[test]
    fn values_and_labels_must_be_the_same() {
        let gate = Gate { score: 0.05, overlap: 0.9 };
        let tensor = |values: &[f32]| vec![Tensor::from_f32(vec![1, values.len()], values.to_vec()).unwrap()];
        let agree = |output: ClassifierOutput, have: &[f32], want: &[f32]| {
            let preprocess = yolo().preprocess();
            let classifier = ClassifierSpec { preprocess, labels: None, output, class_values: None };
            classes(&classifier, gate, &tensor(have), &tensor(want)).unwrap().differences.join(", ")
        };
        assert_eq!(agree(ClassifierOutput::Values, &[40.5, 0.1], &[41.0, 0.0]), "");
        assert!(agree(ClassifierOutput::Values, &[38.0, 0.1], &[41.0, 0.0]).contains("0.073 of the largest"));
        assert!(agree(ClassifierOutput::Values, &[0.06], &[0.0]).contains("0.060 of the largest"));
        assert_eq!(agree(ClassifierOutput::Multilabel, &[2.0, 1.0], &[2.05, 1.1]), "");
        assert!(agree(ClassifierOutput::Multilabel, &[2.0, 0.0], &[2.0, 1.0]).contains("differs by 0.231"));
    }
}
