//! TensorRT: opened at run time, builds plans from ONNX and runs them on the GPU.
//!
//! `library.rs` finds the libraries, `shim.rs` the code compiled against the headers of one of them (`cpp/`),
//! `device.rs` is the GPU, `allocation.rs` its memory, `session.rs` a loaded engine, `engine.rs` one whose memory
//! belongs to the caller, `source.rs` prepares models for TensorRT. If no shim fits an installed library, the error of
//! [`TensorRt::open`] lists the shims.

pub mod allocation;
pub mod device;
mod engine;
mod flags;
pub mod graph;
pub mod library;
mod observer;
pub mod plan;
mod session;
pub mod shim;
pub mod source;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

pub use crate::spec::{Family, Version};
pub use engine::{Engine, KernelCache};
pub use flags::BuilderFlags;

use super::{Backend, BackendError, BackendInfo, Session};
use crate::onnx::{Model, Parser};
use crate::progress::Progress;
use crate::spec::ShapeRange;
use observer::BuildObserver;
use shim::Shim;

use super::onnxruntime::library::fault;

impl Version {
    /// Properties of this TensorRT's ONNX parser: the newest opset it documents (onnx-tensorrt, docs/operators.md of
    /// each release), and whether it is RTX's.
    pub fn parser(self) -> Parser {
        let newest = match (self.family, self.major, self.minor) {
            (Family::Enterprise, ..=8, _) => 17,
            (Family::Enterprise, 9, _) | (Family::Enterprise, 10, ..=14) => 20,
            _ => 24,
        };
        Parser { newest, rtx: (self.family == Family::Rtx).then_some((self.major, self.minor)) }
    }
}

/// Settings of the builder. Engines are cached by their JSON, which therefore must not change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildOptions {
    /// Largest scratch memory of a tactic in bytes; `None` is TensorRT's default.
    pub workspace_bytes: Option<u64>,
    /// Builder optimization level, 0 to 5; `None` is TensorRT's default.
    pub optimization_level: Option<u8>,
    /// Arithmetic that is allowed.
    #[serde(flatten)]
    pub flags: BuilderFlags,
    /// RTX: compute capabilities to build for; empty is RTX's default.
    pub compute_capabilities: Vec<String>,
    /// Whether types in the graph are binding (TensorRT 9 and later; always in 11 and RTX).
    pub strongly_typed: bool,
    /// Names of ONNX nodes whose layers stay in float32, for weakly typed networks with a half-precision flag.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub full_layers: Vec<String>,
    /// Whether to keep layer names and tactics for `inspect`.
    pub detailed_profiling: bool,
    /// Shape ranges of dynamic inputs; empty if all shapes are static.
    pub profile: Vec<ShapeRange>,
}

impl From<ShapeRange> for watus_shim::ShapeRange {
    fn from(ShapeRange { name, min, opt, max }: ShapeRange) -> Self {
        Self { name, min, opt, max }
    }
}

/// A built engine.
pub struct Built {
    plan: shim::SerializedEngine,
}

/// An opened TensorRT library.
pub struct TensorRt {
    /// Version of the library.
    pub version: Version,
    /// Paths of the libraries.
    pub files: library::Files,
    /// The shim that opened them.
    pub shim: Shim,
    library: shim::OpenedLibraries,
}

fn unavailable(what: String) -> BackendError {
    BackendError::Unavailable {
        what,
        help: "`watus-build doctor` shows what is installed; build watus-build on the machine it runs on".to_owned(),
    }
}

impl TensorRt {
    /// Finds and opens TensorRT, once per process: the newest that there is a shim for.
    pub fn open() -> Result<Arc<Self>, BackendError> {
        static OPENED: OnceLock<Arc<TensorRt>> = OnceLock::new();
        if let Some(opened) = OPENED.get() {
            return Ok(Arc::clone(opened));
        }
        let shims = shim::shims();
        let (mut misfits, mut missing, mut folders) = (Vec::new(), Vec::new(), Vec::new());
        for shim in &shims.found {
            let opened = match library::find(shim.headers) {
                Ok(files) => Self::open_with(shim, files),
                Err((names, searched)) => {
                    missing.push(names);
                    folders.extend(searched.into_iter().filter(|folder| !folders.contains(folder)).collect::<Vec<_>>());
                    continue;
                }
            };
            match opened {
                Ok(opened) => return Ok(Arc::clone(OPENED.get_or_init(|| Arc::new(opened)))),
                Err(misfit) => misfits.push(misfit),
            }
        }
        Err(none_fits(shims, misfits, &missing, &folders))
    }

    fn open_with(shim: &Shim, files: library::Files) -> Result<Self, String> {
        for path in [&files.core, &files.parser] {
            if let Some(fault) = fault(path, std::env::consts::ARCH) {
                return Err(format!("{}: {fault}", path.display()));
            }
        }
        let library = shim.open(&files)?;
        Ok(Self { version: shim.library_version(&files.core)?, files, shim: shim.clone(), library })
    }

    /// Sends TensorRT's log lines to `sink`, with their severity (0 internal error … 4 verbose).
    pub fn set_log_sink(sink: impl Fn(i32, String) + Send + 'static) {
        shim::set_log_sink(sink);
    }

    /// Builds an engine. `timing_cache` is the one of an earlier build; see [`Built::timing_cache`].
    pub fn build(
        &self,
        onnx: &Path,
        options: &BuildOptions,
        timing_cache: &[u8],
        progress: Arc<dyn Progress>,
        cancel: Arc<AtomicBool>,
    ) -> Result<Built, BackendError> {
        let options = watus_shim::BuildOptions {
            onnx_path: onnx.to_string_lossy().into_owned(),
            workspace_bytes: options.workspace_bytes.map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
            optimization_level: options.optimization_level.map_or(-1, i32::from),
            tf32: options.flags.tf32,
            fp16: options.flags.fp16,
            obey_precision_constraints: options.flags.obey_precision_constraints,
            compute_capabilities: options.compute_capabilities.clone(),
            strongly_typed: options.strongly_typed,
            full_layers: options.full_layers.clone(),
            detailed_profiling: options.detailed_profiling,
            profile: options.profile.iter().cloned().map(watus_shim::ShapeRange::from).collect(),
        };
        let observer = BuildObserver::new(progress, Arc::clone(&cancel));
        match self.library.build(&options, timing_cache, &observer) {
            Ok(plan) => Ok(Built { plan }),
            Err(_) if cancel.load(Ordering::Relaxed) => Err(BackendError::Cancelled),
            Err(error) => Err(BackendError::Build(error.into())),
        }
    }

    /// Loads a plan on the GPU; `tf32` must be as it was built.
    pub fn load(&self, plan: &[u8], tf32: bool) -> Result<Box<dyn Session>, BackendError> {
        let device = device::Device::open()?;
        let session = self.library.load(plan, tf32).map_err(|error| BackendError::Load(error.into()))?;
        Ok(Box::new(session::TrtSession::new(self.version, device, session)?))
    }

    /// The engine inspector's JSON: layers, formats, tactics.
    pub fn inspect(&self, plan: &[u8]) -> Result<String, BackendError> {
        let _device = device::Device::open()?;
        let inspected = self.library.load(plan, false).and_then(|session| session.inspect());
        inspected.map_err(|error| BackendError::Load(error.into()))
    }
}

/// Beginning of the error if no TensorRT is installed.
pub const NONE_INSTALLED: &str = "no whole TensorRT is installed";

/// The error if no TensorRT could be opened: no shim fits a library, or there is none.
fn none_fits(shims: &shim::Shims, mut misfits: Vec<String>, missing: &[String], folders: &[PathBuf]) -> BackendError {
    let misnamed = library::misnamed();
    misfits.extend(misnamed.clone());
    misfits.extend(shims.refused.iter().cloned());
    let have: Vec<String> = shims.found.iter().map(|shim| shim.headers.to_string()).collect();
    let unserved = library::installed_majors().into_iter().filter(|(major, _)| {
        let serves = |shim: &Shim| shim.headers.family == Family::Enterprise && shim.headers.major == *major;
        !shims.found.iter().any(serves)
    });
    for (_, path) in unserved {
        let have = if have.is_empty() { "none".to_owned() } else { have.join(", ") };
        misfits.push(format!("{} is installed, but there is no shim for it (there are: {have})", path.display()));
    }
    match &misfits[..] {
        [] if shims.found.is_empty() => BackendError::Unavailable {
            what: "this watus-build was compiled without TensorRT's headers".to_owned(),
            help: "on a Jetson run `sudo apt install libnvinfer-dev libnvonnxparsers-dev`; on x86-64 run \
                   scripts/setup-tensorrt.sh; then compile again"
                .to_owned(),
        },
        [] => BackendError::Unavailable {
            what: format!("{NONE_INSTALLED}: {} {}", missing.join(" or "), places(folders)),
            help: format!(
                "on a Jetson run `{}`; on x86-64 run `{}`; or set WATUS_TENSORRT_LIB to the folder that has it",
                library::remedy(true),
                library::remedy(false)
            ),
        },
        misfits if misnamed.is_some() => BackendError::Unavailable {
            what: misfits.join("; "),
            help: "set WATUS_TENSORRT_LIB to the folder that has TensorRT, or unset it".to_owned(),
        },
        misfits => unavailable(misfits.join("; ")),
    }
}

/// The folders searched, for messages: one or two by name, more by number.
fn places(folders: &[PathBuf]) -> String {
    match folders {
        [only] => format!("is not in {}", only.display()),
        [first, .., last] => {
            format!("is in none of {} folders, {} to {}", folders.len(), first.display(), last.display())
        }
        [] => "is nowhere".to_owned(),
    }
}

impl Built {
    /// The serialized engine.
    pub fn bytes(&self) -> &[u8] {
        self.plan.bytes()
    }

    /// Tactic timings for the next build; empty for RTX.
    pub fn timing_cache(&self) -> &[u8] {
        self.plan.timing_cache()
    }
}

impl Backend for TensorRt {
    fn info(&self) -> BackendInfo {
        let device = device::Device::open().map_or_else(|_| "no GPU".to_owned(), |device| device.description());
        BackendInfo { name: self.version.to_string(), device }
    }

    fn open(&self, onnx: &Path) -> Result<Box<dyn Session>, BackendError> {
        let mut model = Model::load(onnx).map_err(|error| BackendError::Build(error.into()))?;
        let wish = source::Wish { half: false, force: None };
        let ((), lean) = source::ready(&mut model, self.version, wish, |_| Ok::<(), BackendError>(()))?;
        let options = BuildOptions::default();
        let ready = lean.as_ref().unwrap_or(&model);
        let built = source::with_file(ready, |file| {
            self.build(file, &options, &[], Arc::new(crate::progress::Silent), Arc::default())
        });
        let built = built.map_err(|error| match error {
            BackendError::Build(said) => BackendError::Build(source::explained(ready, onnx, self.version, said)),
            other => other,
        })?;
        self.load(built.bytes(), false)
    }
}
