//! TensorRT: found and opened at run time, building plans from ONNX and running them on the GPU.
//!
//! `library.rs` finds the libraries, `ffi.rs` is the bridge to `cpp/`, `device.rs` the GPU, `allocation.rs` its memory,
//! `session.rs` a loaded engine, `engine.rs` one whose memory is its user's. Without TensorRT's headers at compile time what needs the bridge is left out
//! or fails, and [`TensorRt::open`] says so.

pub mod allocation;
pub mod device;
mod engine;
#[cfg(watus_tensorrt)]
mod ffi;
pub mod graph;
pub mod library;
#[cfg(watus_tensorrt)]
mod observer;
pub mod plan;
#[cfg(watus_tensorrt)]
mod session;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

pub use engine::{Engine, KernelCache};

use super::{Backend, BackendError, BackendInfo, Session};
use crate::progress::Progress;

/// TensorRT for datacentres and Jetson, or TensorRT-RTX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Family {
    Enterprise,
    Rtx,
}

/// A TensorRT version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Version {
    pub family: Family,
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl Version {
    /// Newest ONNX opset the parser is documented for (onnx-tensorrt, docs/operators.md of each release).
    pub fn newest_opset(self) -> i64 {
        match (self.family, self.major, self.minor) {
            (Family::Enterprise, ..=8, _) => 17,
            (Family::Enterprise, 9, _) | (Family::Enterprise, 10, ..=14) => 20,
            _ => 24,
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = if self.family == Family::Rtx { "TensorRT-RTX" } else { "TensorRT" };
        write!(f, "{family} {}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Range of one dynamic input's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ShapeRange {
    pub name: String,
    pub min: Vec<i64>,
    pub opt: Vec<i64>,
    pub max: Vec<i64>,
}

/// What the builder is asked for. Flags go by TensorRT's name, in lower case: "fp16", "tf32".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildOptions {
    /// Scratch memory for tactics, in bytes; `None` is TensorRT's default.
    pub workspace_bytes: Option<u64>,
    /// 0 to 5; `None` is TensorRT's default.
    pub optimization_level: Option<u8>,
    /// Builder flags to set.
    pub set_flags: Vec<String>,
    /// Builder flags to clear.
    pub clear_flags: Vec<String>,
    /// RTX: GPUs to build for; empty is its default.
    pub compute_capabilities: Vec<String>,
    /// Types in the graph are binding (TensorRT 9 and later; always so in 11 and RTX).
    pub strongly_typed: bool,
    /// Weakly typed networks with a half-precision flag: layers that stay in float32, by the names of their ONNX nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub full_layers: Vec<String>,
    /// Keep layer names and tactics for `inspect`.
    pub detailed_profiling: bool,
    /// Ranges of dynamic inputs; empty when all shapes are static.
    pub profile: Vec<ShapeRange>,
}

/// A built engine.
pub struct Built {
    #[cfg(watus_tensorrt)]
    plan: cxx::UniquePtr<ffi::bridge::Plan>,
}

/// An opened TensorRT.
#[derive(Debug)]
pub struct TensorRt {
    /// The library's version.
    pub version: Version,
    /// Where the libraries are.
    pub files: library::Files,
    #[cfg(watus_tensorrt)]
    handle: LibraryHandle,
}

#[cfg(watus_tensorrt)]
pub use present::*;

#[cfg(watus_tensorrt)]
mod present {
    use std::sync::OnceLock;

    use super::ffi::{self, bridge};
    use super::observer::BuildObserver;
    use super::*;

    /// The opened libraries, for the life of the process.
    pub struct LibraryHandle(pub(super) &'static bridge::Library);

    impl std::fmt::Debug for LibraryHandle {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("LibraryHandle")
        }
    }

    impl From<bridge::VersionInfo> for Version {
        fn from(info: bridge::VersionInfo) -> Self {
            let bridge::VersionInfo { is_rtx, major, minor, patch } = info;
            Self { family: if is_rtx { Family::Rtx } else { Family::Enterprise }, major, minor, patch }
        }
    }

    /// The headers this binary was compiled against.
    pub fn header_version() -> Option<Version> {
        Some(bridge::header_version().into())
    }

    /// The version a library file reports.
    pub fn probe(path: &Path) -> Result<Version, BackendError> {
        let version = bridge::library_version(&path.to_string_lossy());
        version.map(Version::from).map_err(|error| unavailable(&error.to_string()))
    }

    fn unavailable(what: &str) -> BackendError {
        BackendError::Unavailable {
            what: what.to_owned(),
            help: "`watus-build doctor` shows what is installed; build watus-build on the machine it runs on"
                .to_owned(),
        }
    }

    impl TensorRt {
        /// Finds and opens TensorRT, once per process.
        pub fn open() -> Result<Arc<Self>, BackendError> {
            static OPENED: OnceLock<Arc<TensorRt>> = OnceLock::new();
            if let Some(opened) = OPENED.get() {
                return Ok(Arc::clone(opened));
            }
            let headers = header_version().expect("compiled with headers");
            let files = library::find(headers).map_err(|searched| BackendError::Unavailable {
                what: format!("{headers} is not installed: looked for {searched}"),
                help: "on a Jetson run `sudo apt install tensorrt`; on x86-64 run scripts/setup-tensorrt.sh; \
                       or set WATUS_TENSORRT_LIB to the folder that has it"
                    .to_owned(),
            })?;
            let plugin = files.plugin.as_ref().map(|plugin| plugin.to_string_lossy()).unwrap_or_default();
            let library = bridge::open_library(&files.core.to_string_lossy(), &files.parser.to_string_lossy(), &plugin)
                .map_err(|error| unavailable(&error.to_string()))?;
            let version = probe(&files.core)?;
            let handle = LibraryHandle(Box::leak(Box::new(library)));
            Ok(Arc::clone(OPENED.get_or_init(|| Arc::new(Self { version, files, handle }))))
        }

        /// Sends TensorRT's log lines, severity first (0 internal error … 4 verbose), to `sink`.
        pub fn set_log_sink(sink: impl Fn(i32, String) + Send + 'static) {
            ffi::set_log_sink(sink);
        }

        /// Builds an engine. `timing_cache` is an earlier build's; see [`Built::timing_cache`].
        pub fn build(
            &self,
            onnx: &Path,
            options: &BuildOptions,
            timing_cache: Vec<u8>,
            progress: Arc<dyn Progress>,
            cancel: Arc<AtomicBool>,
        ) -> Result<Built, BackendError> {
            let options = bridge::BuildOptions {
                onnx_path: onnx.to_string_lossy().into_owned(),
                workspace_bytes: options
                    .workspace_bytes
                    .map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
                optimization_level: options.optimization_level.map_or(-1, i32::from),
                set_flags: options.set_flags.clone(),
                clear_flags: options.clear_flags.clone(),
                compute_capabilities: options.compute_capabilities.clone(),
                strongly_typed: options.strongly_typed,
                full_layers: options.full_layers.clone(),
                detailed_profiling: options.detailed_profiling,
                profile: options.profile.iter().map(range).collect(),
                timing_cache,
            };
            let observer = BuildObserver::new(progress, Arc::clone(&cancel));
            match bridge::build_plan(self.handle.0, &options, &observer) {
                Ok(plan) => Ok(Built { plan }),
                Err(_) if cancel.load(std::sync::atomic::Ordering::Relaxed) => Err(BackendError::Cancelled),
                Err(error) => Err(BackendError::Build(error.to_string())),
            }
        }

        /// Loads a plan onto the GPU; `tf32` as it was built.
        pub fn load(&self, plan: &[u8], tf32: bool) -> Result<Box<dyn Session>, BackendError> {
            let device = device::Device::open()?;
            let session =
                bridge::load_plan(self.handle.0, plan, tf32).map_err(|error| BackendError::Load(error.to_string()))?;
            Ok(Box::new(session::TrtSession::new(self.version, device, session)?))
        }

        /// The engine inspector's JSON: layers, formats, tactics.
        pub fn inspect(&self, plan: &[u8]) -> Result<String, BackendError> {
            let _device = device::Device::open()?;
            let load = |error: cxx::Exception| BackendError::Load(error.to_string());
            bridge::load_plan(self.handle.0, plan, false).map_err(load)?.inspect().map_err(load)
        }
    }

    fn range(range: &ShapeRange) -> bridge::ShapeRange {
        let ShapeRange { name, min, opt, max } = range.clone();
        bridge::ShapeRange { name, min, opt, max }
    }

    impl Built {
        /// The serialized engine.
        pub fn bytes(&self) -> &[u8] {
            self.plan.bytes()
        }

        /// Tactic timings worth keeping for the next build; empty for RTX.
        pub fn timing_cache(&self) -> &[u8] {
            self.plan.timing_cache()
        }
    }
}

#[cfg(not(watus_tensorrt))]
mod absent {
    use super::*;

    pub(super) fn missing() -> BackendError {
        BackendError::Unavailable {
            what: "this watus-build was compiled without TensorRT's headers".to_owned(),
            help: "on a Jetson run `sudo apt install libnvinfer-dev libnvonnxparsers-dev`; on x86-64 run \
                   scripts/setup-tensorrt.sh; then compile again"
                .to_owned(),
        }
    }

    /// There are none.
    pub fn header_version() -> Option<Version> {
        None
    }

    /// Not without the shim.
    pub fn probe(_path: &Path) -> Result<Version, BackendError> {
        Err(missing())
    }

    #[allow(missing_docs)]
    impl TensorRt {
        pub fn open() -> Result<Arc<Self>, BackendError> {
            Err(missing())
        }

        pub fn set_log_sink(_sink: impl Fn(i32, String) + Send + 'static) {}

        pub fn build(
            &self,
            _onnx: &Path,
            _options: &BuildOptions,
            _timing_cache: Vec<u8>,
            _progress: Arc<dyn Progress>,
            _cancel: Arc<AtomicBool>,
        ) -> Result<Built, BackendError> {
            Err(missing())
        }

        pub fn load(&self, _plan: &[u8], _tf32: bool) -> Result<Box<dyn Session>, BackendError> {
            Err(missing())
        }

        pub fn inspect(&self, _plan: &[u8]) -> Result<String, BackendError> {
            Err(missing())
        }
    }

    #[allow(missing_docs)]
    impl Built {
        pub fn bytes(&self) -> &[u8] {
            &[]
        }

        pub fn timing_cache(&self) -> &[u8] {
            &[]
        }
    }
}
#[cfg(not(watus_tensorrt))]
pub use absent::*;

impl Backend for TensorRt {
    fn info(&self) -> BackendInfo {
        let device = device::Device::open().map_or_else(|_| "no GPU".to_owned(), |device| device.description());
        BackendInfo { name: self.version.to_string(), device }
    }

    fn open(&self, onnx: &Path) -> Result<Box<dyn Session>, BackendError> {
        let options = BuildOptions { clear_flags: vec!["tf32".to_owned()], ..BuildOptions::default() };
        let progress = Arc::new(crate::progress::Silent);
        let built = self.build(onnx, &options, Vec::new(), progress, Arc::default())?;
        self.load(built.bytes(), false)
    }
}
