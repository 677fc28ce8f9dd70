//! Interprets a detector's output as boxes on the image.
//!
//! Decoding and non-maximum suppression are those of Ultralytics' `predict`, so that thresholds mean the same.

use serde::Serialize;

use super::bounding_box::{BoundingBox, overlap};
use super::mask::{self, Mask};
use super::{Boxes, Letterbox, Task, VisionError, Yolo};
use crate::tensor::Tensor;

/// Most candidates for non-maximum suppression; the ones with the lowest scores are dropped.
const CANDIDATE_LIMIT: usize = 30_000;

const NOT_FINITE: &str = "it holds values that are not finite";

/// An object on an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Detection {
    /// Name of its class.
    pub label: String,
    /// Index of its class.
    pub class: usize,
    /// Score of the model, 0 to 1.
    pub score: f32,
    /// Its box in pixels of the image.
    pub bbox: BoundingBox,
    /// The object's pixels, from a segmentation model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<Mask>,
}

/// A box in pixels of the model's input.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    class: usize,
    score: f32,
    anchor: usize,
    /// Left, top, right, bottom.
    corners: [f32; 4],
}

impl Yolo {
    /// The objects on the first image of the batch, whose size is `picture` (height, width), by descending score. Boxes
    /// are clipped to the image; a box of negative width or height, which no trained head produces, has no area and is
    /// dropped.
    pub fn detections(&self, outputs: &[Tensor], picture: [u32; 2]) -> Result<Vec<Detection>, VisionError> {
        let (output, proto) = self.checked(outputs)?;
        let letterbox = Letterbox::new(picture, self.size);
        let kept = match self.boxes {
            Boxes::Anchors => self.suppress(self.candidates(&output)),
            Boxes::Final | Boxes::Queries => self.chosen(&output)?,
        };
        let detections = kept.into_iter().map(|candidate| {
            let corners = self.place(candidate.corners, &letterbox);
            let mask = proto.as_ref().map(|proto| {
                mask::cut(proto, &self.coefficients(&output, candidate.anchor), corners, &letterbox, self.size)
            });
            Detection {
                label: self.names[candidate.class].clone(),
                class: candidate.class,
                score: candidate.score,
                bbox: corners.into(),
                mask,
            }
        });
        Ok(detections.collect())
    }

    /// Converts a box from the model's input to the image.
    fn place(&self, corners: [f32; 4], letterbox: &Letterbox) -> [f32; 4] {
        let place = |value: f32, axis: usize| match self.boxes {
            Boxes::Queries => {
                let size = letterbox.picture[axis] as f32;
                let place = value * size;
                if place.is_nan() { 0.0 } else { place.clamp(0.0, size) }
            }
            Boxes::Anchors | Boxes::Final => letterbox.place(value, axis),
        };
        let [left, top, right, bottom] = corners;
        [place(left, 1), place(top, 0), place(right, 1), place(bottom, 0)]
    }

    /// The mask coefficients of an anchor.
    fn coefficients(&self, output: &Raw<'_>, anchor: usize) -> Vec<f32> {
        match self.boxes {
            Boxes::Anchors => {
                let first = 4 + self.names.len();
                (first..output.rows).map(|row| output.values[row * output.anchors + anchor]).collect()
            }
            Boxes::Final => output.values[anchor * output.anchors..][6..output.anchors].to_vec(),
            Boxes::Queries => Vec::new(), // RT-DETR has no masks
        }
    }

    /// Checks that the outputs have the shapes of this model.
    fn checked<'a>(&self, outputs: &'a [Tensor]) -> Result<(Raw<'a>, Option<mask::Prototypes<'a>>), VisionError> {
        let wrong = |tensor: &Tensor, wanted: String| VisionError::Output {
            found: format!("{}{:?}", tensor.dtype(), tensor.shape()),
            wanted: wanted.into(),
        };
        let missing = || VisionError::Output { found: "missing".to_owned(), wanted: "output0 is wanted".into() };
        let first = outputs.first().ok_or_else(missing)?;
        let (&[batch, rows, anchors], Some(values)) = (first.shape(), first.as_f32()) else {
            return Err(wrong(first, format!("float32 {} is wanted", self.boxes.shape())));
        };
        let masks = match (self.task, outputs.get(1)) {
            (Task::Segment, Some(proto)) => {
                let found = mask::Prototypes::of(proto)
                    .ok_or_else(|| wrong(proto, "float32 [batch, masks, height, width] is wanted".to_owned()))?;
                if !found.is_finite() {
                    return Err(wrong(proto, NOT_FINITE.to_owned()));
                }
                Some(found)
            }
            (Task::Segment, None) => return Err(missing()),
            _ => None,
        };
        let (classes, count) = (self.names.len(), masks.as_ref().map_or(0, |masks| masks.count));
        let (fits, wanted) = match self.boxes {
            Boxes::Anchors => (rows == 4 + classes + count, format!("{} rows", 4 + classes + count)),
            Boxes::Final => (anchors == 6 + count, format!("{} columns", 6 + count)),
            Boxes::Queries => ([6, 4 + classes].contains(&anchors), format!("6 or {} columns", 4 + classes)),
        };
        if batch == 0 || !fits {
            return Err(wrong(first, format!("{wanted} for {classes} classes are wanted")));
        }
        let values = &values[..rows * anchors];
        // Where a score is not finite nothing can be said; an engine that overflowed must not look like an empty picture.
        if values.iter().any(|value| !value.is_finite()) {
            return Err(wrong(first, NOT_FINITE.to_owned()));
        }
        Ok((Raw { values, rows, anchors }, masks))
    }

    /// The best class of each anchor whose score reaches the threshold, by descending score.
    fn candidates(&self, output: &Raw<'_>) -> Vec<Candidate> {
        let anchors = output.anchors;
        let mut best = vec![(f32::NEG_INFINITY, 0usize); anchors];
        for class in 0..self.names.len() {
            let row = &output.values[(4 + class) * anchors..][..anchors];
            for (best, score) in best.iter_mut().zip(row) {
                if *score > best.0 {
                    *best = (*score, class);
                }
            }
        }
        let at = |row: usize, anchor: usize| output.values[row * anchors + anchor];
        let sure = best.into_iter().enumerate().filter(|(_, (score, _))| *score > self.confidence);
        let mut candidates: Vec<Candidate> = sure
            .map(|(anchor, (score, class))| {
                let (x, y) = (at(0, anchor), at(1, anchor));
                let (width, height) = (at(2, anchor) / 2.0, at(3, anchor) / 2.0);
                Candidate { class, score, anchor, corners: [x - width, y - height, x + width, y + height] }
            })
            .filter(|Candidate { corners: [left, top, right, bottom], .. }| left <= right && top <= bottom)
            .collect();
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
        candidates.truncate(CANDIDATE_LIMIT);
        candidates
    }

    /// The boxes of a model that needs no suppression, with scores that reach the threshold, by descending score.
    fn chosen(&self, output: &Raw<'_>) -> Result<Vec<Candidate>, VisionError> {
        let mut chosen = Vec::new();
        for (anchor, row) in output.values.chunks_exact(output.anchors.max(1)).enumerate() {
            let (corners, scores) = row.split_at(4);
            // A score and its class, or a score for each class.
            let (score, class) = if self.boxes == Boxes::Final || row.len() == 6 {
                (scores[0], scores[1])
            } else {
                let best = scores.iter().zip(0u16..).fold((f32::NEG_INFINITY, 0), |best, (score, class)| {
                    if *score > best.0 { (*score, class) } else { best }
                });
                (best.0, f32::from(best.1))
            };
            if score <= self.confidence {
                continue;
            }
            // No name has a number below 0 or between two.
            let index = Some(class as usize).filter(|index| *index as f32 == class && *index < self.names.len());
            let class = index.ok_or_else(|| VisionError::Output {
                found: format!("a box of class {class}"),
                wanted: format!("{} classes have names", self.names.len()).into(),
            })?;
            let [a, b, c, d] = [corners[0], corners[1], corners[2], corners[3]];
            let corners = match self.boxes {
                Boxes::Queries => [a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0],
                Boxes::Anchors | Boxes::Final => [a, b, c, d],
            };
            if corners[0] <= corners[2] && corners[1] <= corners[3] {
                chosen.push(Candidate { class, score, anchor, corners });
            }
        }
        chosen.sort_by(|a, b| b.score.total_cmp(&a.score));
        chosen.truncate(self.max_detections);
        Ok(chosen)
    }

    /// Non-maximum suppression within each class.
    fn suppress(&self, candidates: Vec<Candidate>) -> Vec<Candidate> {
        let mut kept: Vec<Candidate> = Vec::new();
        for candidate in candidates {
            if kept.len() == self.max_detections {
                break;
            }
            let twin = |other: &Candidate| {
                other.class == candidate.class && overlap(&other.corners, &candidate.corners) > self.iou
            };
            if !kept.iter().any(twin) {
                kept.push(candidate);
            }
        }
        kept
    }
}

/// The first image's output as `[rows, anchors]`; without suppression `[boxes, values]`.
struct Raw<'a> {
    values: &'a [f32],
    rows: usize,
    anchors: usize,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::spec::Fit;

    fn yolo() -> Yolo {
        Yolo {
            task: Task::Detect,
            names: vec!["owl".to_owned(), "tram".to_owned()],
            stride: 32,
            size: [64, 64],
            boxes: Boxes::Anchors,
            confidence: 0.25,
            iou: 0.7,
            max_detections: 300,
            metadata: true,
            about: BTreeMap::new(),
        }
    }

    /// An output with boxes (centre x, y, width, height, score of owl, score of tram) as columns.
    fn output(boxes: &[[f32; 6]]) -> Tensor {
        let values = (0..6).flat_map(|row| boxes.iter().map(move |b| b[row])).collect();
        Tensor::from_f32(vec![1, 6, boxes.len()], values).unwrap()
    }

    #[test]
    fn boxes_are_chosen_and_put_on_the_picture() {
        let raw = output(&[
            [32.0, 32.0, 20.0, 10.0, 0.9, 0.1],
            [33.0, 32.0, 20.0, 10.0, 0.8, 0.1], // the same owl again
            [33.0, 32.0, 20.0, 10.0, 0.1, 0.7], // a tram in the same place
            [10.0, 32.0, 4.0, 4.0, 0.25, 0.2],  // not above the threshold
        ]);
        // 128 wide and 64 high: half the size, 16 rows of grey above.
        let found = yolo().detections(&[raw], [64, 128]).unwrap();
        let said: Vec<(&str, f32)> = found.iter().map(|found| (found.label.as_str(), found.score)).collect();
        assert_eq!(said, [("owl", 0.9), ("tram", 0.7)]);
        assert_eq!(found[0].bbox.corners(), [44.0, 22.0, 84.0, 42.0]);
    }

    #[test]
    fn outputs_of_another_model_are_refused() {
        let short = Tensor::from_f32(vec![1, 5, 2], vec![0.0; 10]).unwrap();
        assert!(yolo().detections(&[short], [64, 64]).unwrap_err().to_string().contains("6 rows for 2 classes"));
        let spoilt = output(&[[f32::NAN, 0.0, 0.0, 0.0, 0.9, 0.1]]);
        assert!(yolo().detections(&[spoilt], [64, 64]).unwrap_err().to_string().contains("not finite"));
        assert!(yolo().detections(&[], [64, 64]).is_err());
        let segmenting = Yolo { task: Task::Segment, ..yolo() };
        let raw = Tensor::from_f32(vec![1, 7, 1], vec![32.0, 32.0, 8.0, 8.0, 0.9, 0.1, 1.0]).unwrap();
        for spoilt in [f32::NAN, f32::INFINITY] {
            let proto = Tensor::from_f32(vec![1, 1, 1, 2], vec![1.0, spoilt]).unwrap();
            let error = segmenting.detections(&[raw.clone(), proto], [64, 64]).unwrap_err();
            assert!(error.to_string().contains("not finite"));
        }
    }

    #[test]
    fn boxes_that_are_none_are_left_out_and_huge_ones_clipped() {
        let raw = output(&[
            [32.0, 32.0, -20.0, 10.0, 0.9, 0.1],
            [32.0, 32.0, 20.0, -10.0, 0.8, 0.1],
            [0.0, 0.0, f32::MAX, f32::MAX, 0.7, 0.1],
            [f32::MAX, f32::MAX, f32::MAX, f32::MAX, 0.1, 0.6],
            [16.0, 16.0, 0.0, 0.0, 0.1, 0.5],
        ]);
        let found = yolo().detections(&[raw], [64, 64]).unwrap();
        let boxes: Vec<[f32; 4]> = found.iter().map(|found| found.bbox.corners()).collect();
        assert_eq!(boxes, [[0.0, 0.0, 64.0, 64.0], [64.0; 4], [16.0; 4]]);
    }

    #[test]
    fn boxes_that_a_model_has_chosen() {
        let rows = |rows: &[&[f32]]| {
            let values = rows.iter().flat_map(|row| row.iter().copied()).collect();
            Tensor::from_f32(vec![1, rows.len(), rows[0].len()], values).unwrap()
        };
        let said = |boxes: Boxes, output: Tensor| {
            let found = Yolo { boxes, max_detections: 2, ..yolo() }.detections(&[output], [64, 128]).unwrap();
            found.into_iter().map(|found| (found.class, found.score, found.bbox.corners())).collect::<Vec<_>>()
        };
        // 128 x 64 in 64 x 64: 16 rows of grey above. Twins stay: who chose them wanted both.
        let chosen = rows(&[
            &[20.0, 26.0, 30.0, 36.0, 0.9, 1.0],
            &[21.0, 26.0, 30.0, 36.0, 0.8, 1.0],
            &[20.0, 26.0, 30.0, 36.0, 0.7, 0.0],
            &[30.0, 26.0, 20.0, 36.0, 0.95, 0.0], // right of left
            &[0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ]);
        let want = [(1, 0.9, [40.0, 20.0, 60.0, 40.0]), (1, 0.8, [42.0, 20.0, 60.0, 40.0])];
        assert_eq!(said(Boxes::Final, chosen), want);
        // Shares of the picture.
        let queries = rows(&[&[0.5, 0.5, 0.25, 0.5, 0.1, 0.0], &[0.5, 0.5, 0.25, 0.5, 0.6, 1.0]]);
        assert_eq!(said(Boxes::Queries, queries), [(1, 0.6, [48.0, 16.0, 80.0, 48.0])]);
        let three = Yolo { boxes: Boxes::Queries, names: vec![String::new(); 3], ..yolo() };
        let found = three.detections(&[rows(&[&[0.5, 0.5, 0.25, 0.5, 0.1, 0.2, 0.7]])], [64, 128]).unwrap();
        assert_eq!((found[0].class, found[0].score), (2, 0.7));
        assert_eq!(three.preprocess().fit, Some(Fit::Stretch));
        for class in [2.0, -1.0, 0.5] {
            let output = rows(&[&[0.0, 0.0, 1.0, 1.0, 0.9, class]]);
            let error = Yolo { boxes: Boxes::Final, ..yolo() }.detections(&[output], [64, 64]).unwrap_err();
            assert!(error.to_string().contains("2 classes have names"), "{class}: {error}");
        }
    }
}
