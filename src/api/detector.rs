//! [`Detector`]: objects in images.

use std::borrow::Cow;
use std::path::Path;

use super::error::{Error, ErrorKind};
use super::frame::Frame;
use super::opening::{OpenedPictureModel, Opening, opening_methods};
use crate::backend::{BackendInfo, Session};
use crate::diagnostic::Diagnostic;
use crate::engine_dir::{BackendChoice, PictureAnswer, PictureMeaning, PictureModel};
use crate::vision::{Detection, RgbImage, annotate};

/// A YOLO engine that detects objects in images.
///
/// ```
/// # fn main() -> Result<(), watus_build::Error> {
/// # let (engine, image) = ("tests/data/front_door/detector", "tests/data/front_door/blobs.png");
/// use watus_build::{BackendChoice, Detector, draw};
///
/// // `Detector::open(engine)` takes the GPU where there is one.
/// let mut detector = Detector::builder(engine).backend(BackendChoice::Cpu).confidence(0.4).open()?;
/// let objects = detector.detect(image)?;
/// for object in &objects {
///     println!("{} {:.2} at x {}, y {}", object.label, object.score, object.bbox.center_x(), object.bbox.center_y());
/// }
/// let drawn = draw(image, &objects)?;
/// # assert_eq!(objects.iter().map(|object| object.label.as_str()).collect::<Vec<_>>(), ["red", "blue"]);
/// # assert_eq!(drawn.dimensions(), (64, 32));
/// # Ok(())
/// # }
/// ```
pub struct Detector {
    name: String,
    model: PictureModel,
    session: Box<dyn Session>,
}

/// Options for opening a [`Detector`].
pub struct DetectorBuilder {
    opening: Opening,
    confidence: Option<f32>,
    iou: Option<f32>,
    max_detections: Option<usize>,
}

impl DetectorBuilder {
    opening_methods!();

    /// Score threshold, 0 to 1: objects below it are not reported. Default: the recipe's.
    #[must_use]
    pub fn confidence(mut self, confidence: f32) -> Self {
        self.confidence = Some(confidence);
        self
    }

    /// IoU threshold of non-maximum suppression, 0 to 1: of two boxes of one class that overlap more, the better one is kept.
    /// Default: the recipe's. End-to-end models (YOLOv10, YOLO26, RT-DETR) have no suppression and ignore it.
    #[must_use]
    pub fn iou(mut self, iou: f32) -> Self {
        self.iou = Some(iou);
        self
    }

    /// Largest number of objects reported; those with the highest scores are kept. Default: the recipe's.
    #[must_use]
    pub fn max_detections(mut self, count: usize) -> Self {
        self.max_detections = Some(count);
        self
    }

    /// Checks the files of the directory and loads the engine.
    pub fn open(self) -> Result<Detector, Error> {
        for (name, value) in [("confidence", self.confidence), ("iou", self.iou)] {
            if let Some(value) = value.filter(|value| !(0.0..=1.0).contains(value)) {
                let message = Diagnostic::new(format!("{name} is {value}")).with_help("give a number from 0 to 1");
                return Err(Error::new(ErrorKind::Request, message));
            }
        }
        let opened = self.opening.picture_model(|meaning| matches!(meaning, PictureMeaning::Objects(_)))?;
        let OpenedPictureModel { name, mut model, session } = opened;
        if let PictureMeaning::Objects(yolo) = &mut model.meaning {
            yolo.confidence = self.confidence.unwrap_or(yolo.confidence);
            yolo.iou = self.iou.unwrap_or(yolo.iou);
            yolo.max_detections = self.max_detections.unwrap_or(yolo.max_detections);
        }
        Ok(Detector { name, model, session })
    }
}

impl Detector {
    /// Opens an engine directory as it was built: on the GPU where there is one, else on the CPU. On a Jetson
    /// without a usable GPU that is an error, unless [`BackendChoice::Cpu`] is asked for.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, Error> {
        Self::builder(folder).open()
    }

    /// Opens an engine directory with other settings.
    pub fn builder(folder: impl AsRef<Path>) -> DetectorBuilder {
        let opening = Opening::new(folder.as_ref());
        DetectorBuilder { opening, confidence: None, iou: None, max_detections: None }
    }

    /// Detects the objects in an image; the highest score comes first.
    pub fn detect<'a>(&mut self, frame: impl Into<Frame<'a>>) -> Result<Vec<Detection>, Error> {
        let frame: Frame<'a> = frame.into();
        let objects = self.detect_batch([frame])?;
        Ok(objects.into_iter().next().unwrap_or_default())
    }

    /// Detects the objects in each of several images, which may differ in size, in batches as large as the engine takes. Frames
    /// are taken a batch at a time. One that cannot be read ends the call with its error, and what was found before is lost.
    pub fn detect_batch<'a, F: Into<Frame<'a>>>(
        &mut self,
        frames: impl IntoIterator<Item = F>,
    ) -> Result<Vec<Vec<Detection>>, Error> {
        let answers = answers(&self.model, &mut *self.session, frames)?;
        let objects = answers.into_iter().map(|answer| match answer {
            PictureAnswer::Objects(objects) => objects,
            PictureAnswer::Classes(_) => Vec::new(), // not of what `open` takes
        });
        Ok(objects.collect())
    }

    /// Names of the classes, by [`Detection::class`].
    pub fn labels(&self) -> &[String] {
        match &self.model.meaning {
            PictureMeaning::Objects(yolo) => &yolo.names,
            PictureMeaning::Classes(_) => &[],
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

/// What a model says of each frame. No more of them are in memory than the engine takes at once.
pub(super) fn answers<'a, F: Into<Frame<'a>>>(
    model: &PictureModel,
    session: &mut dyn Session,
    frames: impl IntoIterator<Item = F>,
) -> Result<Vec<PictureAnswer>, Error> {
    let picture = |frame: F| {
        let frame: Frame<'a> = frame.into();
        frame.picture()
    };
    let (mut frames, mut answers) = (frames.into_iter().map(picture).fuse(), Vec::new());
    loop {
        let batch = frames.by_ref().take(model.batches.max.max(1));
        let pictures: Vec<Cow<'a, RgbImage>> = batch.collect::<Result<_, Error>>()?;
        if pictures.is_empty() {
            return Ok(answers);
        }
        let pictures: Vec<&RgbImage> = pictures.iter().map(|picture| &**picture).collect();
        answers.extend(model.answers(session, &pictures).map_err(Error::of)?);
    }
}

/// A copy of the image with a box, a label and a score for each object, and its mask where it has one.
pub fn draw<'a>(frame: impl Into<Frame<'a>>, objects: &[Detection]) -> Result<RgbImage, Error> {
    let frame: Frame<'a> = frame.into();
    let picture = frame.picture()?;
    Ok(annotate(&picture, objects))
}
