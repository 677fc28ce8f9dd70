//! Chooses the backend for an engine directory, and opens it.

use anyhow::{Context as _, bail};

use super::model::{self, Runner};
use super::{Damage, EngineDir};
use crate::backend::tensorrt::{TensorRt, device::Device, plan};
use crate::backend::{Backend, BackendError, BackendInfo, Session};
use crate::diagnostic::Diagnostic;
use crate::executor::LlmError;
use crate::generation::Generator;
use crate::l4t;
use crate::progress::{Event, Progress};
use crate::regular_file;
use crate::spec::ShapeRange;
use crate::tensor::{Tensor, TensorSpec};
use crate::text::TextError;

/// Preferred backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendChoice {
    /// TensorRT if there is a GPU, else the CPU reference; on a Jetson never the CPU reference.
    Auto,
    /// The engine, on the GPU.
    TensorRt,
    /// The CPU reference, on the engine directory's ONNX model.
    Cpu,
}

impl EngineDir {
    /// Decides on the backend. `tell` is called with a message if `Auto` finds no GPU.
    pub fn choose(&self, preference: BackendChoice, tell: &dyn Fn(&str)) -> Result<Runner, BackendError> {
        match preference {
            BackendChoice::TensorRt => {}
            BackendChoice::Cpu => return Ok(Runner::Cpu),
            BackendChoice::Auto => match Device::open() {
                Ok(_) => {}
                Err(error) if l4t::release().is_some() => {
                    // A Jetson has a GPU: a slow answer from the CPU would hide what is broken.
                    return Err(BackendError::Unavailable {
                        what: error.to_string(),
                        help: "`watus-build doctor` tells why; `--backend cpu` computes on the CPU all the same"
                            .to_owned(),
                    });
                }
                Err(_) => {
                    tell(&format!("no GPU here: {} is computed by the CPU reference", self.manifest.name));
                    return Ok(Runner::Cpu);
                }
            },
        }
        let tensorrt = TensorRt::open()?;
        let device = Device::open().and_then(|device| device.info()).ok();
        if let Some(why) = self.other_tensorrt(tensorrt.version).or_else(|| self.other_gpu(device.as_ref())) {
            return Err(self.foreign(&why));
        }
        Ok(Runner::TensorRt { tf32: self.manifest.tf32 })
    }

    /// Opens the engine of a vision or ONNX model; if `runner` is the CPU, its ONNX model with `reference`.
    pub fn session(&self, runner: Runner, reference: &dyn Backend) -> anyhow::Result<Box<dyn Session>> {
        let graph = self.graph()?;
        let Runner::TensorRt { tf32 } = runner else {
            let session = reference.open(&self.path(&graph.model))?;
            return Ok(Box::new(Bounded { session, profile: graph.profile.clone() }));
        };
        let path = self.path(&graph.engine);
        let file = regular_file::read(&path, u64::MAX).with_context(|| format!("cannot read {}", path.display()))?;
        let (_, plan) = plan::split(&file);
        Ok(TensorRt::open()?.load(plan, tf32).map_err(|error| match error {
            BackendError::Load(message) => {
                let on = self.manifest.device.as_ref().map(|device| format!(" (it was built on {})", device.name));
                self.foreign(&format!("cannot be loaded{}: {message}", on.unwrap_or_default()))
            }
            other => other,
        })?)
    }

    /// Loads the language model.
    pub fn generator(&self, runner: Runner, progress: &dyn Progress) -> anyhow::Result<Generator> {
        const PHASE: &str = "Loading the weights";
        let Some(record) = self.manifest.contents.llm() else { bail!("{} is no language model", self.manifest.name) };
        let mut begun = false;
        let generator = model::open(&self.folder, record, runner, &mut |done, total| {
            if !begun {
                progress.event(Event::Phase { name: PHASE, steps: total });
                begun = true;
            }
            progress.event(Event::Step { phase: PHASE, done });
        });
        progress.event(Event::PhaseDone { name: PHASE });
        generator.map_err(|error| match error {
            // What was published had a checkpoint and a tokenizer that could be read.
            error @ (LlmError::Checkpoint(_) | LlmError::Text(TextError::File { .. })) => {
                anyhow::Error::from(Damage { folder: self.folder.clone(), what: error.to_string() })
            }
            other => other.into(),
        })
    }
}

/// A session of the CPU reference that accepts only the shapes that the engine would accept.
struct Bounded {
    session: Box<dyn Session>,
    profile: Vec<ShapeRange>,
}

impl Bounded {
    fn check(&self, name: &str, input: &Tensor) -> Result<(), BackendError> {
        let Some(range) = self.profile.iter().find(|range| range.name == name) else { return Ok(()) };
        for (axis, size) in input.shape().iter().enumerate() {
            let bound = |bounds: &[i64]| bounds.get(axis).and_then(|bound| usize::try_from(*bound).ok());
            if let (Some(min), Some(max)) = (bound(&range.min), bound(&range.max))
                && !(min..=max).contains(size)
            {
                let what = format!("dimension {axis} is {size}, the engine takes {min} to {max}");
                let message = Diagnostic::new(what)
                    .with_help("give it in parts, or build it with a larger `max_batch` or range of `shapes`");
                return Err(BackendError::Input { name: name.to_owned(), message });
            }
        }
        Ok(())
    }
}

impl Session for Bounded {
    fn info(&self) -> BackendInfo {
        self.session.info()
    }

    fn inputs(&self) -> &[TensorSpec] {
        self.session.inputs()
    }

    fn outputs(&self) -> &[TensorSpec] {
        self.session.outputs()
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError> {
        for (spec, input) in self.session.inputs().iter().zip(inputs) {
            self.check(&spec.name, input)?;
        }
        self.session.run(inputs)
    }
}
