//! [`Classifier`]: what an image shows.

use std::path::Path;

use super::detector::answers;
use super::error::Error;
use super::frame::Frame;
use super::opening::{OpenedPictureModel, Opening, opening_methods};
use crate::backend::{BackendInfo, Session};
use crate::engine_dir::{BackendChoice, PictureAnswer, PictureMeaning, PictureModel};
use crate::vision::{Answer, TOP};

/// An image classifier's engine, or a classifying YOLO's.
///
/// ```
/// # fn main() -> Result<(), watus_build::Error> {
/// # let (engine, image) = ("tests/data/front_door/classifier", "tests/data/front_door/blobs.png");
/// use watus_build::{BackendChoice, Classifier};
///
/// // `Classifier::open(engine)` takes the GPU where there is one.
/// let mut classifier = Classifier::builder(engine).backend(BackendChoice::Cpu).open()?;
/// let answer = classifier.classify(image)?;
/// println!("{} ({:?})", answer.label, answer.score);
/// for other in &answer.ranked {
///     println!("  {} {:.3}", other.label, other.score);
/// }
/// # assert_eq!(answer.label, "red");
/// # assert_eq!(answer.ranked.len(), 3);
/// # Ok(())
/// # }
/// ```
pub struct Classifier {
    name: String,
    model: PictureModel,
    session: Box<dyn Session>,
}

/// Options for opening a [`Classifier`].
pub struct ClassifierBuilder {
    opening: Opening,
    top: usize,
}

/// What a classifier says of one image.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Classification {
    /// The most probable class: its label, or its number where classes have no labels. Of a regression, the first value's.
    pub label: String,
    /// Its number, from 0.
    pub class: usize,
    /// Its probability, 0 to 1; `None` of a regression.
    pub score: Option<f32>,
    /// Of a model whose classes have values (an age, say), their mean, weighted by the probabilities; of a regression, the first
    /// value. Else `None`.
    pub value: Option<f32>,
    /// Where labels do not exclude each other: those that are more probable than not, the most probable first.
    pub present: Option<Vec<String>>,
    /// The most probable classes, the best first. Of a regression all values, in the model's order.
    pub ranked: Vec<LabelScore>,
}

/// A class and how sure the model is of it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LabelScore {
    /// Its label, or its number where classes have no labels.
    pub label: String,
    /// Its probability, 0 to 1; of a regression the value.
    pub score: f32,
}

impl From<Answer> for Classification {
    fn from(answer: Answer) -> Self {
        let Answer { label, class, probability, value, present, top } = answer;
        let ranked = top.into_iter().map(|(label, score)| LabelScore { label, score }).collect();
        Self { label, class, score: probability, value, present, ranked }
    }
}

impl ClassifierBuilder {
    opening_methods!();

    /// How many of the most probable classes [`Classification::ranked`] has. Default: 5.
    #[must_use]
    pub fn top(mut self, count: usize) -> Self {
        self.top = count;
        self
    }

    /// Checks the files of the directory and loads the engine.
    pub fn open(self) -> Result<Classifier, Error> {
        let opened = self.opening.picture_model(|meaning| matches!(meaning, PictureMeaning::Classes(_)))?;
        let OpenedPictureModel { name, mut model, session } = opened;
        model.top = self.top;
        Ok(Classifier { name, model, session })
    }
}

impl Classifier {
    /// Opens an engine directory as it was built: on the GPU where there is one, else on the CPU. On a Jetson
    /// without a usable GPU that is an error, unless [`BackendChoice::Cpu`] is asked for.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, Error> {
        Self::builder(folder).open()
    }

    /// Opens an engine directory with other settings.
    pub fn builder(folder: impl AsRef<Path>) -> ClassifierBuilder {
        ClassifierBuilder { opening: Opening::new(folder.as_ref()), top: TOP }
    }

    /// Classifies an image.
    pub fn classify<'a>(&mut self, frame: impl Into<Frame<'a>>) -> Result<Classification, Error> {
        let frame: Frame<'a> = frame.into();
        let answers = self.classify_batch([frame])?;
        let none = || Error::of(anyhow::anyhow!("{}: the engine gave no answer", self.name));
        answers.into_iter().next().ok_or_else(none)
    }

    /// Classifies several images, which may differ in size, in batches as large as the engine takes. Frames are taken a batch
    /// at a time. One that cannot be read ends the call with its error, and what was found before is lost.
    pub fn classify_batch<'a, F: Into<Frame<'a>>>(
        &mut self,
        frames: impl IntoIterator<Item = F>,
    ) -> Result<Vec<Classification>, Error> {
        let answers = answers(&self.model, &mut *self.session, frames)?;
        let classes = answers.into_iter().filter_map(|answer| match answer {
            PictureAnswer::Classes(answer) => Some(answer.into()),
            PictureAnswer::Objects(_) => None, // not of what `open` takes
        });
        Ok(classes.collect())
    }

    /// Labels of the classes in their order, if there are any.
    pub fn labels(&self) -> Option<&[String]> {
        match &self.model.meaning {
            PictureMeaning::Classes(classifier) => classifier.labels.as_deref(),
            PictureMeaning::Objects(_) => None,
        }
    }

    /// The engine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The backend and the device.
    pub fn info(&self) -> BackendInfo {
        self.session.info()
    }
}
