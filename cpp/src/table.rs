//! The interface of a shim: a table of C functions, and what they take and give.
//!
//! Both sides compile this file; its text is part of [`ABI`], so a shim of other text is refused and never called. Values that
//! are read once cross as JSON of the types below; what has to be freed is freed by the shim that made it.
//!
//! A function that can fail returns null, false or [`Version::NONE`], and gives the reason as UTF-8 text to `fail`.

use std::ffi::c_void;

use serde::{Deserialize, Serialize};

/// Tells shims of this text from others (FNV-1a).
pub const ABI: u64 = {
    let text = include_str!("table.rs").as_bytes();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut at = 0;
    while at < text.len() {
        hash = (hash ^ text[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
};

/// A TensorRT version: of the headers a shim was compiled with, or of a library.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Version {
    pub is_rtx: bool,
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl Version {
    /// Of nothing.
    pub const NONE: Self = Self { is_rtx: false, major: 0, minor: 0, patch: 0 };
}

/// Shapes of one dynamic input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ShapeRange {
    pub name: String,
    pub min: Vec<i64>,
    pub opt: Vec<i64>,
    pub max: Vec<i64>,
}

/// Everything a build needs but the timing cache.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct BuildOptions {
    /// The model's path.
    pub onnx_path: String,
    /// Scratch memory for tactics; 0 is TensorRT's default.
    pub workspace_bytes: usize,
    /// 0 to 5; -1 is TensorRT's default.
    pub optimization_level: i32,
    /// TF32 tensor cores for float32 layers.
    pub tf32: bool,
    /// Weakly typed networks: layers may compute in float16 (TensorRT up to 10).
    pub fp16: bool,
    /// Weakly typed networks: layers keep the precision they are given (TensorRT up to 10).
    pub obey_precision_constraints: bool,
    /// RTX: GPUs to build for.
    pub compute_capabilities: Vec<String>,
    /// Types in the graph are binding.
    pub strongly_typed: bool,
    /// Layers that stay in float32, by the names of their ONNX nodes.
    pub full_layers: Vec<String>,
    /// Keep layer names and tactics for the inspector.
    pub detailed_profiling: bool,
    /// Ranges of dynamic inputs.
    pub profile: Vec<ShapeRange>,
}

/// One input or output of an engine; -1 is a dynamic dimension.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IoTensor {
    /// Its name.
    pub name: String,
    /// Input or output.
    pub is_input: bool,
    /// TensorRT's `DataType` by number.
    pub dtype: i32,
    /// Its dimensions.
    pub shape: Vec<i64>,
}

/// Bytes that somebody else owns, for the time of a call or as long as what they are of.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Bytes {
    pub data: *const u8,
    pub length: usize,
}

impl Bytes {
    /// Of a slice.
    pub fn of(bytes: &[u8]) -> Self {
        Self { data: bytes.as_ptr(), length: bytes.len() }
    }

    /// As a slice.
    ///
    /// # Safety
    /// They must outlive the slice.
    pub unsafe fn as_slice<'a>(self) -> &'a [u8] {
        if self.data.is_null() {
            return &[];
        }
        // SAFETY: what a slice was, or C++'s own bytes; the caller says for how long.
        unsafe { std::slice::from_raw_parts(self.data, self.length) }
    }
}

/// Who takes bytes that a call gives.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Taker {
    pub context: *mut c_void,
    pub take: unsafe extern "C" fn(context: *mut c_void, bytes: Bytes),
}

/// Who hears of a build; called from TensorRT's threads.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Observer {
    pub context: *const c_void,
    pub phase_start: unsafe extern "C" fn(context: *const c_void, phase: Bytes, steps: i32),
    /// False cancels the build.
    pub step_complete: unsafe extern "C" fn(context: *const c_void, phase: Bytes, step: i32) -> bool,
    pub phase_finish: unsafe extern "C" fn(context: *const c_void, phase: Bytes),
}

/// TensorRT's libraries, opened. One per process: TensorRT keeps the first logger it is given for good.
#[repr(C)]
#[derive(Debug)]
pub struct Library([u8; 0]);
/// A serialized engine, and the timing cache as its build left it.
#[repr(C)]
#[derive(Debug)]
pub struct Plan([u8; 0]);
/// A deserialized engine with one execution context, for one thread at a time.
#[repr(C)]
#[derive(Debug)]
pub struct Session([u8; 0]);
/// What RTX compiles when engines are loaded and first run.
#[repr(C)]
#[derive(Debug)]
pub struct KernelCache([u8; 0]);

/// Most dimensions that TensorRT knows.
pub const DIMENSIONS: usize = 8;

/// A shim's functions. Pointers are what this same table gave, and not yet freed; `name`s are of inputs or outputs.
#[repr(C)]
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Table {
    /// [`ABI`] as the shim was compiled.
    pub abi: u64,
    /// Of the headers it was compiled with.
    pub headers: unsafe extern "C" fn() -> Version,

    pub library_version: unsafe extern "C" fn(core_path: Bytes, fail: Taker) -> Version,
    /// `log` hears TensorRT's words from now on: severity 0 (internal error) to 4 (verbose). The plugin's path may be empty.
    pub open_library: unsafe extern "C" fn(
        core_path: Bytes,
        parser_path: Bytes,
        plugin_path: Bytes,
        log: unsafe extern "C" fn(severity: i32, message: Bytes),
        fail: Taker,
    ) -> *mut Library,

    /// `options` is JSON of [`BuildOptions`].
    pub build: unsafe extern "C" fn(
        library: *const Library,
        options: Bytes,
        timing_cache: Bytes,
        observer: *const Observer,
        fail: Taker,
    ) -> *mut Plan,
    pub plan_bytes: unsafe extern "C" fn(plan: *const Plan) -> Bytes,
    pub plan_timing_cache: unsafe extern "C" fn(plan: *const Plan) -> Bytes,
    pub plan_free: unsafe extern "C" fn(plan: *mut Plan),

    pub kernel_cache: unsafe extern "C" fn(before: Bytes, fail: Taker) -> *mut KernelCache,
    pub kernel_cache_bytes: unsafe extern "C" fn(cache: *const KernelCache, give: Taker, fail: Taker) -> bool,
    pub kernel_cache_free: unsafe extern "C" fn(cache: *mut KernelCache),

    /// With a cache the session's scratch memory is its user's, and the cache must outlive the session; null is without.
    pub load: unsafe extern "C" fn(
        library: *const Library,
        plan: Bytes,
        tf32: bool,
        kernels: *mut KernelCache,
        fail: Taker,
    ) -> *mut Session,
    pub session_free: unsafe extern "C" fn(session: *mut Session),
    /// Gives JSON of a list of [`IoTensor`].
    pub session_io: unsafe extern "C" fn(session: *const Session, give: Taker, fail: Taker) -> bool,
    /// Writes up to [`DIMENSIONS`] and returns how many; -1 is none.
    pub session_shape: unsafe extern "C" fn(session: *const Session, name: Bytes, dims: *mut i64, fail: Taker) -> i32,
    /// The shape of an input (an output's follows) and the address of either.
    pub session_bind: unsafe extern "C" fn(
        session: *mut Session,
        name: Bytes,
        dims: *const i64,
        rank: usize,
        address: usize,
        fail: Taker,
    ) -> bool,
    pub session_set_address:
        unsafe extern "C" fn(session: *mut Session, name: Bytes, address: usize, fail: Taker) -> bool,
    /// Of an output whose size depends on values: the bytes it can need, or -1; where it may write; the shape it had.
    pub session_most_bytes: unsafe extern "C" fn(session: *const Session, name: Bytes) -> i64,
    pub session_give_room:
        unsafe extern "C" fn(session: *mut Session, name: Bytes, address: usize, bytes: u64, fail: Taker) -> bool,
    pub session_written_shape:
        unsafe extern "C" fn(session: *const Session, name: Bytes, dims: *mut i64, fail: Taker) -> i32,
    pub session_scratch_bytes: unsafe extern "C" fn(session: *const Session) -> i64,
    pub session_set_scratch: unsafe extern "C" fn(session: *mut Session, address: usize, bytes: i64),
    pub session_enqueue: unsafe extern "C" fn(session: *mut Session, stream: usize, fail: Taker) -> bool,
    /// Gives the inspector's JSON.
    pub session_inspect: unsafe extern "C" fn(session: *const Session, give: Taker, fail: Taker) -> bool,
}

// SAFETY: functions and numbers, which never change.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}
