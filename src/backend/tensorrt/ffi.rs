//! The bridge to `cpp/`: coarse functions over opaque objects, names instead of numbers.
//!
//! Every `unsafe` here and elsewhere says why it is sound.
#![allow(unsafe_code)]
#![allow(missing_docs)]

use std::sync::Mutex;

use super::observer::BuildObserver;

#[cxx::bridge(namespace = "watus")]
pub mod bridge {
    /// A TensorRT version: of the headers the shim was compiled against, or of a library.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct VersionInfo {
        is_rtx: bool,
        major: u32,
        minor: u32,
        patch: u32,
    }

    /// Shape range of one dynamic input.
    #[derive(Debug, Clone)]
    struct ShapeRange {
        name: String,
        min: Vec<i64>,
        opt: Vec<i64>,
        max: Vec<i64>,
    }

    /// Everything a build needs, in one struct.
    #[derive(Debug, Clone)]
    struct BuildOptions {
        onnx_path: String,
        /// 0 = TensorRT's default.
        workspace_bytes: usize,
        /// -1 = TensorRT's default.
        optimization_level: i32,
        set_flags: Vec<String>,
        clear_flags: Vec<String>,
        compute_capabilities: Vec<String>,
        strongly_typed: bool,
        /// Layers that stay in float32, by the names of their ONNX nodes.
        full_layers: Vec<String>,
        detailed_profiling: bool,
        profile: Vec<ShapeRange>,
        timing_cache: Vec<u8>,
    }

    /// One input or output of an engine; -1 marks a dynamic dimension.
    #[derive(Debug, Clone)]
    struct IoTensor {
        name: String,
        is_input: bool,
        dtype: i32,
        shape: Vec<i64>,
    }

    extern "Rust" {
        type BuildObserver;
        fn phase_start(&self, phase: String, parent: String, steps: i32);
        fn step_complete(&self, phase: String, step: i32) -> bool;
        fn phase_finish(&self, phase: String);

        fn on_log(severity: i32, message: String);
    }

    unsafe extern "C++" {
        include!("watus-build/cpp/include/shim.h");

        type Library;
        type Plan;
        type Session;
        type KernelCache;

        fn header_version() -> VersionInfo;
        fn library_version(core_path: &str) -> Result<VersionInfo>;
        fn open_library(core_path: &str, parser_path: &str, plugin_path: &str) -> Result<UniquePtr<Library>>;
        fn build_plan(library: &Library, options: &BuildOptions, observer: &BuildObserver) -> Result<UniquePtr<Plan>>;
        fn load_plan(library: &Library, plan: &[u8], tf32: bool) -> Result<UniquePtr<Session>>;
        /// With scratch memory of the caller's, and a cache that must outlive the session.
        unsafe fn load_plan_with(
            library: &Library,
            plan: &[u8],
            tf32: bool,
            kernels: Pin<&mut KernelCache>,
        ) -> Result<UniquePtr<Session>>;

        fn new_kernel_cache(before: &[u8]) -> Result<UniquePtr<KernelCache>>;
        #[cxx_name = "bytes"]
        fn cached(self: &KernelCache) -> Result<Vec<u8>>;

        fn bytes(self: &Plan) -> &[u8];
        fn timing_cache(self: &Plan) -> &[u8];

        fn io(self: &Session) -> Result<Vec<IoTensor>>;
        fn tensor_shape(self: &Session, name: &str) -> Result<Vec<i64>>;
        /// The shape of an input (an output's follows) and the address of either.
        fn bind(self: Pin<&mut Session>, name: &str, dims: &[i64], device_pointer: usize) -> Result<()>;
        fn set_address(self: Pin<&mut Session>, name: &str, device_pointer: usize) -> Result<()>;
        /// Of an output whose size depends on values: the bytes it can need, where it may write, and the shape it had.
        fn most_bytes(self: &Session, name: &str) -> i64;
        fn give_room(self: Pin<&mut Session>, name: &str, device_pointer: usize, bytes: u64) -> Result<()>;
        fn written_shape(self: &Session, name: &str) -> Result<Vec<i64>>;
        fn scratch_bytes(self: &Session) -> i64;
        fn set_scratch(self: Pin<&mut Session>, device_pointer: usize, bytes: i64);
        fn enqueue(self: Pin<&mut Session>, stream: usize) -> Result<()>;
        fn inspect(self: &Session) -> Result<String>;
    }
}

// SAFETY: a Library is three function pointers of libraries that are never closed.
unsafe impl Send for bridge::Library {}
// SAFETY: as above; the factory functions may be called from several threads (NvInferRuntime.h, ILogger is locked).
unsafe impl Sync for bridge::Library {}
// SAFETY: NvInferRuntime.h: an execution context may be used from any thread, by one at a time; &mut Session and the
// lack of Sync enforce the latter.
unsafe impl Send for bridge::Session {}

// SAFETY: as a Session: used by one thread at a time, which &mut and the lack of Sync enforce.
unsafe impl Send for bridge::KernelCache {}

type Sink = Box<dyn Fn(i32, String) + Send>;
static SINK: Mutex<Option<Sink>> = Mutex::new(None);

/// Sends TensorRT's log lines (severity 0 = internal error … 4 = verbose) to `sink` from now on.
pub fn set_log_sink(sink: impl Fn(i32, String) + Send + 'static) {
    if let Ok(mut slot) = SINK.lock() {
        *slot = Some(Box::new(sink));
    }
}

fn on_log(severity: i32, message: String) {
    if let Ok(slot) = SINK.lock()
        && let Some(sink) = slot.as_ref()
    {
        sink(severity, message);
    }
}
