//! The bridge to C++: coarse functions over opaque objects, names instead of numbers.
//!
//! Every `unsafe` here and elsewhere says why it is sound.
#![allow(missing_docs)]

use super::log::on_log;
use super::table::{Bytes, Observer};

#[cxx::bridge(namespace = "watus")]
pub mod cpp {
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
        tf32: bool,
        fp16: bool,
        obey_precision_constraints: bool,
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
        fn phase_start(&self, phase: String, steps: i32);
        fn step_complete(&self, phase: String, step: i32) -> bool;
        fn phase_finish(&self, phase: String);

        fn on_log(severity: i32, message: String);
    }

    unsafe extern "C++" {
        include!("watus-shim/include/shim.h");

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

/// Passes a build's phases on to whoever asked for it.
pub struct BuildObserver(pub Observer);

impl BuildObserver {
    fn phase_start(&self, phase: String, steps: i32) {
        // SAFETY: who gave the observer keeps it until the build is over.
        unsafe { (self.0.phase_start)(self.0.context, Bytes::of(phase.as_bytes()), steps) }
    }

    fn step_complete(&self, phase: String, step: i32) -> bool {
        // SAFETY: as above.
        unsafe { (self.0.step_complete)(self.0.context, Bytes::of(phase.as_bytes()), step) }
    }

    fn phase_finish(&self, phase: String) {
        // SAFETY: as above.
        unsafe { (self.0.phase_finish)(self.0.context, Bytes::of(phase.as_bytes())) }
    }
}
