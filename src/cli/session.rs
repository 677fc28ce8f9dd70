//! Engines opened: their files checked, and which backend runs them.

use std::path::Path;

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use super::say;
use crate::backend::cpu::{self, Reference};
use crate::backend::isolated::Isolated;
use crate::backend::tensorrt::{ShapeRange, TensorRt, device::Device, plan};
use crate::backend::{Backend, BackendError, BackendInfo, Session};
use crate::diagnostic::Diagnostic;
use crate::llm::{self, Generator, LlmError, Record, model::Runner};
use crate::manifest::{Damage, Manifest, ManifestError};
use crate::progress::{Event, Progress, Silent};
use crate::tensor::{Tensor, TensorSpec};

/// Who computes
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Choice {
    /// TensorRT where there is a GPU; else the CPU reference, but never on a Jetson
    Auto,
    /// The engine on the GPU
    Tensorrt,
    /// The CPU reference on the engine's ONNX model
    Cpu,
}

/// The manifest of an engine directory whose files are what it says; all of them are hashed if `full`.
pub(super) fn load(folder: &Path, full: bool, progress: &dyn Progress) -> anyhow::Result<Manifest> {
    let manifest = Manifest::load(folder)?;
    manifest.check(folder, full, progress)?;
    Ok(manifest)
}

/// The bytes of an engine file; what it is instead is an error of the kind that an engine directory's are. `what` it is not
/// is the caller's to say.
pub(super) fn read_engine(path: &Path, what: &str) -> anyhow::Result<Vec<u8>> {
    let fail = |message: String| ManifestError { path: path.to_owned(), message };
    if path.is_dir() {
        let manifest = load(path, false, &Silent)?;
        let engine = if manifest.llm.is_some() { "engines/head-r1.engine" } else { manifest.engine.as_str() };
        let engine = path.join(engine);
        bail!(
            Diagnostic::new(format!("{} is an engine directory", path.display()))
                .with_help(format!("name a file in it, e.g. {}", engine.display()))
        );
    }
    let file = crate::regular_file::read(path, u64::MAX).map_err(|error| fail(format!("cannot be read: {error}")))?;
    let (_, plan) = plan::split(&file);
    let header = plan::Header::parse(plan);
    let header = header.ok_or_else(|| fail(format!("{what}\n  hint: an engine directory keeps it as NAME.engine")))?;
    if let Some(length) = header.length.filter(|length| *length != plan.len() as u64) {
        let have = plan.len();
        let again = "hint: build it again: `watus-build build --rebuild RECIPE`";
        return Err(fail(format!("the plan has {have} bytes, its header says {length}\n  {again}")).into());
    }
    Ok(file)
}

/// An engine that was built elsewhere, and what to do about it.
fn foreign(manifest: &Manifest, why: &str) -> BackendError {
    BackendError::Foreign(format!("{} {why}\n  hint: build it again here: `watus-build build RECIPE`", manifest.name))
}

/// Who computes an engine directory, with nothing left open.
fn decide(manifest: &Manifest, choice: Choice) -> anyhow::Result<Choice> {
    let choice = match choice {
        Choice::Auto => match Device::open() {
            Ok(_) => Choice::Tensorrt,
            Err(error) if crate::doctor::l4t_release().is_some() => {
                // A Jetson has a GPU: a slow answer from the CPU would hide what is broken.
                return Err(BackendError::Unavailable {
                    what: error.to_string(),
                    help: "`watus-build doctor` tells why; `--backend cpu` computes on the CPU all the same".to_owned(),
                }
                .into());
            }
            Err(_) => {
                say(format!("no GPU here: {} is computed by the CPU reference", manifest.name));
                Choice::Cpu
            }
        },
        choice => choice,
    };
    if choice == Choice::Cpu {
        return Ok(choice);
    }
    let tensorrt = TensorRt::open()?;
    if tensorrt.version != manifest.tensorrt {
        let why = format!("was built by {}, this machine has {}", manifest.tensorrt, tensorrt.version);
        return Err(foreign(manifest, &why).into());
    }
    Ok(Choice::Tensorrt)
}

/// The CPU reference in a child of this tool: a graph that is too much for it is an error, not a crash.
pub(super) fn reference() -> anyhow::Result<Isolated> {
    Ok(Isolated::new(std::env::current_exe()?))
}

/// The session to measure instead of `probe`: the CPU reference in this process, where nothing is sent about, once the
/// graph has shown in its child that it can be computed. `None` where `probe` is on the GPU.
pub(super) fn measured(
    probe: &mut dyn Session,
    model: &Path,
    inputs: &[Tensor],
) -> Result<Option<Box<dyn Session>>, BackendError> {
    if !cpu::is_reference(&probe.info()) {
        return Ok(None);
    }
    probe.run(inputs)?;
    Reference.open(model).map(Some)
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

/// Opens an engine directory.
pub(super) fn open(folder: &Path, manifest: &Manifest, choice: Choice) -> anyhow::Result<Box<dyn Session>> {
    if decide(manifest, choice)? == Choice::Cpu {
        let session = reference()?.open(&folder.join(&manifest.model))?;
        return Ok(Box::new(Bounded { session, profile: manifest.profile.clone() }));
    }
    let path = folder.join(&manifest.engine);
    let file = crate::regular_file::read(&path, u64::MAX).with_context(|| format!("cannot read {}", path.display()))?;
    let (_, plan) = plan::split(&file);
    Ok(TensorRt::open()?.load(plan, manifest.tf32).map_err(|error| match error {
        BackendError::Load(message) => {
            let on = manifest.device.as_ref().map(|device| format!(" (it was built on {})", device.name));
            foreign(manifest, &format!("cannot be loaded{}: {message}", on.unwrap_or_default()))
        }
        other => other,
    })?)
}

/// Loads a language model.
pub(super) fn open_llm(
    folder: &Path,
    manifest: &Manifest,
    record: &Record,
    choice: Choice,
    progress: &dyn Progress,
) -> anyhow::Result<Generator> {
    let runner = match decide(manifest, choice)? {
        Choice::Cpu => Runner::Cpu,
        _ => Runner::TensorRt { tf32: manifest.tf32 },
    };
    const PHASE: &str = "Loading the weights";
    let mut begun = false;
    let generator = llm::model::open(folder, record, runner, &mut |done, total| {
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
            anyhow::Error::from(Damage { folder: folder.to_owned(), what: error.to_string() })
        }
        other => other.into(),
    })
}

/// Opens a bare ONNX file on the CPU reference, or builds and loads it.
pub(super) fn open_onnx(path: &Path, choice: Choice) -> anyhow::Result<Box<dyn Session>> {
    match choice {
        Choice::Tensorrt => Ok(Backend::open(&*TensorRt::open()?, path)?),
        Choice::Auto | Choice::Cpu => Ok(reference()?.open(path)?),
    }
}
