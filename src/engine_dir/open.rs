//! Who runs what is in an engine directory, and opening it.

use anyhow::{Context as _, bail};

use super::{Damage, EngineDir};
use crate::backend::tensorrt::{TensorRt, device::Device, plan};
use crate::backend::{Backend, BackendError, BackendInfo, Session};
use crate::doctor::l4t_release;
use crate::llm::{Generator, LlmError, model, model::Runner};
use crate::progress::{Event, Progress};
use crate::regular_file;
use crate::spec::ShapeRange;
use crate::tensor::{Tensor, TensorSpec};

/// Who is to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendChoice {
    /// TensorRT where there is a GPU; else the CPU reference, but never on a Jetson.
    Auto,
    /// The engine on the GPU.
    TensorRt,
    /// The CPU reference on the engine's ONNX model.
    Cpu,
}

impl EngineDir {
    /// An engine that was built elsewhere, and what to do about it.
    fn foreign(&self, why: &str) -> BackendError {
        let name = &self.manifest.name;
        BackendError::Foreign(format!("{name} {why}\n  hint: build it again here: `watus-build build RECIPE`"))
    }

    /// Who computes, with nothing left open. `tell` hears of a GPU that is missing.
    pub fn choose(&self, preference: BackendChoice, tell: &dyn Fn(&str)) -> Result<Runner, BackendError> {
        match preference {
            BackendChoice::TensorRt => {}
            BackendChoice::Cpu => return Ok(Runner::Cpu),
            BackendChoice::Auto => match Device::open() {
                Ok(_) => {}
                Err(error) if l4t_release().is_some() => {
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
        let built_by = self.manifest.tensorrt;
        if tensorrt.version != built_by {
            return Err(self.foreign(&format!("was built by {built_by}, this machine has {}", tensorrt.version)));
        }
        Ok(Runner::TensorRt { tf32: self.manifest.tf32 })
    }

    /// Opens its one engine, or where `runner` is the CPU its model with `reference`.
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

    /// Loads its language model for answering.
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
            error @ (LlmError::Checkpoint(_) | LlmError::Text { .. }) => {
                anyhow::Error::from(Damage { folder: self.folder.clone(), what: error.to_string() })
            }
            other => other.into(),
        })
    }
}

/// The CPU reference in an engine's place: it takes the shapes that the engine takes, and no others.
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
                let message = format!(
                    "dimension {axis} is {size}, the engine takes {min} to {max}\n  hint: give it in parts, or build it with \
                     a larger `max_batch` or range of `shapes`"
                );
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
