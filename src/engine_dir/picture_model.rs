//! What an engine directory says of pictures: how they become its engine's input, and what its outputs mean.

use super::EngineDir;
use crate::backend::Session;
use crate::manifest::EngineContents;
use crate::spec::{ClassifierSpec, Preprocess, Yolo};
use crate::tensor::{Tensor, TensorSpec};
use crate::vision::{Answer, Detection, PictureInput, RgbImage, TOP, VisionError};

/// A model of pictures, without what computes it.
#[derive(Debug, Clone, PartialEq)]
pub struct PictureModel {
    /// What the outputs mean.
    pub meaning: PictureMeaning,
    /// Pictures that its engine takes at once.
    pub batches: BatchSizes,
    /// Classes that an answer of a classifier names.
    pub top: usize,
    preprocess: Preprocess,
    input: PictureInput,
}

/// What the outputs of a model of pictures mean.
#[derive(Debug, Clone, PartialEq)]
pub enum PictureMeaning {
    /// Objects.
    Objects(Yolo),
    /// Classes, or values.
    Classes(ClassifierSpec),
}

/// What a model says of one picture.
#[derive(Debug, Clone, PartialEq)]
pub enum PictureAnswer {
    /// Of a detector.
    Objects(Vec<Detection>),
    /// Of a classifier.
    Classes(Answer),
}

/// How many pictures an engine takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSizes {
    /// At least; a smaller batch is filled up.
    pub min: usize,
    /// What it is made fastest for.
    pub tuned: usize,
    /// At most.
    pub max: usize,
}

impl PictureMeaning {
    /// None of a model that takes no pictures.
    fn of(contents: &EngineContents) -> Option<Self> {
        match (contents.classifier(), contents.yolo()) {
            (Some(classifier), _) => Some(PictureMeaning::Classes(classifier.clone())),
            (None, Some(yolo)) => Some(PictureMeaning::Objects(yolo.clone())),
            (None, None) => None,
        }
    }
}

impl EngineDir {
    /// How its one engine takes pictures; `None` where it takes none, or has other inputs beside.
    pub fn picture_model(&self) -> Result<Option<PictureModel>, VisionError> {
        let contents = &self.manifest.contents;
        let (Some(meaning), Some(preprocess)) = (PictureMeaning::of(contents), contents.preprocess()) else {
            return Ok(None);
        };
        let Some(graph) = contents.graph() else { return Ok(None) };
        let [spec] = &graph.inputs[..] else { return Ok(None) };
        let input = PictureInput::new(&preprocess, spec)?;
        let range = graph.profile.iter().find(|range| range.name == spec.name);
        let bound = |bounds: Option<&Vec<i64>>| {
            let own = spec.shape.first().copied().flatten();
            let of_profile = bounds.and_then(|bounds| bounds.first()).and_then(|bound| usize::try_from(*bound).ok());
            own.or(of_profile).unwrap_or(1).max(1)
        };
        let batches = BatchSizes {
            min: bound(range.map(|range| &range.min)),
            tuned: bound(range.map(|range| &range.opt)),
            max: bound(range.map(|range| &range.max)),
        };
        Ok(Some(PictureModel { meaning, batches, top: TOP, preprocess, input }))
    }
}

impl PictureModel {
    /// A picture as a batch of one.
    pub fn tensor(&self, picture: &RgbImage) -> Tensor {
        self.input.tensor(picture, &self.preprocess)
    }

    /// What the outputs say of the first picture of the batch, which was `picture`.
    pub fn answer(&self, outputs: &[Tensor], picture: &RgbImage) -> Result<PictureAnswer, VisionError> {
        Ok(match &self.meaning {
            PictureMeaning::Objects(yolo) => {
                PictureAnswer::Objects(yolo.detections(outputs, [picture.height(), picture.width()])?)
            }
            PictureMeaning::Classes(classifier) => {
                let missing =
                    || VisionError::Output { found: "missing".to_owned(), wanted: "[batch, classes] is wanted".into() };
                PictureAnswer::Classes(classifier.answer_top(outputs.first().ok_or_else(missing)?, self.top)?)
            }
        })
    }

    /// What a session of its engine says of each of the pictures, as many at once as the engine takes.
    pub fn answers(&self, session: &mut dyn Session, pictures: &[&RgbImage]) -> anyhow::Result<Vec<PictureAnswer>> {
        let mut answers = Vec::with_capacity(pictures.len());
        for pictures in pictures.chunks(self.batches.max) {
            let outputs = session.run(&[self.batch(pictures)?])?;
            for (index, picture) in pictures.iter().enumerate() {
                // The first is found where outputs begin, and need not be copied.
                answers.push(match index {
                    0 => self.answer(&outputs, picture)?,
                    _ => self.answer(&items(&outputs, session.outputs(), index)?, picture)?,
                });
            }
        }
        Ok(answers)
    }

    /// The input for these pictures, of which there is at least one. What an engine wants more is the last one again.
    fn batch(&self, pictures: &[&RgbImage]) -> anyhow::Result<Tensor> {
        let mut tensors: Vec<Tensor> = pictures.iter().map(|picture| self.tensor(picture)).collect();
        if let Some(last) = tensors.last().cloned() {
            tensors.resize(tensors.len().max(self.batches.min), last);
        }
        Tensor::concatenated(&tensors).ok_or_else(|| anyhow::anyhow!("there is no picture"))
    }
}

/// What the outputs hold for one picture of a batch.
fn items(outputs: &[Tensor], specs: &[TensorSpec], index: usize) -> Result<Vec<Tensor>, VisionError> {
    let item = |(output, spec): (&Tensor, &TensorSpec)| {
        output.batch_item(index).ok_or_else(|| VisionError::Output {
            found: format!("{} {}{:?}", spec.name, output.dtype(), output.shape()),
            wanted: format!("of a batch with a picture {index} the first dimension is wanted larger").into(),
        })
    };
    outputs.iter().zip(specs).map(item).collect()
}
