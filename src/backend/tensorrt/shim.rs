//! Safe wrappers of shims, the code of this tool that is compiled against TensorRT's headers. One may be linked into
//! the program; others are shared objects beside it (`libwatus_shim-NAME.so`), each for other libraries.
//!
//! Every `unsafe` says why it is sound. In all of them, a table belongs to a shim that is never closed and has the same
//! text as ours ([`watus_shim::ABI`]), and a pointer comes from that table and is freed once, when its owner is
//! dropped.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Mutex, OnceLock};

use watus_shim::{Bytes, DIMENSIONS, IoTensor, SYMBOL, Table, Taker};

use super::observer::BuildObserver;
use super::{Family, Version};
use crate::backend::onnxruntime::library::fault;
use crate::confined;

/// A usable shim.
#[derive(Debug, Clone)]
pub struct Shim {
    table: &'static Table,
    /// Path of the shared object; `None` for the one linked into the program.
    pub path: Option<PathBuf>,
    /// Version of the headers it was compiled with.
    pub headers: Version,
}

impl From<watus_shim::Version> for Version {
    fn from(version: watus_shim::Version) -> Self {
        let watus_shim::Version { is_rtx, major, minor, patch } = version;
        Self { family: if is_rtx { Family::Rtx } else { Family::Enterprise }, major, minor, patch }
    }
}

/// The shims that were found, and those that could not be opened.
#[derive(Debug, Default)]
pub struct Shims {
    /// In order of preference: newer TensorRT first, RTX last.
    pub found: Vec<Shim>,
    /// For each refused file a sentence that says why.
    pub refused: Vec<String>,
}

/// Folders to search for shims: the one that the user names, or those beside the program and of packages.
fn folders() -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os("WATUS_SHIMS").filter(|named| !named.is_empty()) {
        return vec![named.into()];
    }
    let program = confined::file();
    let Some(folder) = program.as_deref().and_then(Path::parent) else { return Vec::new() };
    vec![folder.to_owned(), folder.join("../lib/watus-build")]
}

/// The shims of this program, searched once.
pub fn shims() -> &'static Shims {
    static SHIMS: OnceLock<Shims> = OnceLock::new();
    SHIMS.get_or_init(|| {
        let mut shims = Shims::default();
        shims.found.extend(watus_shim::table().map(|table| Shim::new(table, None)));
        for folder in folders() {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let is_shim = |name: &str| name.starts_with("libwatus_shim-") && name.ends_with(".so");
            let named = entries.filter(|entry| is_shim(&entry.file_name().to_string_lossy()));
            let mut paths: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths {
                match open(&path) {
                    Ok(shim) => shims.found.push(shim),
                    Err(why) => shims.refused.push(format!("{}: {why}", path.display())),
                }
            }
        }
        shims.found.sort_by_key(|shim| std::cmp::Reverse(preference(shim.headers)));
        shims
    })
}

/// Sort key; larger versions are tried first.
fn preference(Version { family, major, minor, patch }: Version) -> (bool, u32, u32, u32) {
    (family == Family::Enterprise, major, minor, patch)
}

fn open(path: &Path) -> Result<Shim, String> {
    type Entry = unsafe extern "C" fn() -> *const Table;
    // A file that is cut off would end this process when it is mapped.
    if let Some(fault) = fault(path, std::env::consts::ARCH) {
        return Err(fault);
    }
    // SAFETY: the user's own file, beside the program or where the user says; its initialisers are the standard library's.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| error.to_string())?;
    // Never closed: what it makes may live as long as the program.
    let library = Box::leak(Box::new(library));
    // SAFETY: the symbol is this function in every shim there ever was.
    let table = unsafe {
        let entry = library.get::<Entry>(SYMBOL).map_err(|_| "not a shim of watus-build".to_owned())?;
        entry().as_ref().ok_or("it was compiled without TensorRT's headers")?
    };
    // The number comes first in every version of the table.
    if table.abi != watus_shim::ABI {
        return Err("it belongs to another version of watus-build: install all of one package".to_owned());
    }
    Ok(Shim::new(table, Some(path.to_owned())))
}

impl Shim {
    fn new(table: &'static Table, path: Option<PathBuf>) -> Self {
        // SAFETY: takes nothing.
        let headers = unsafe { (table.headers)() }.into();
        Self { table, path, headers }
    }

    /// The version that a library file reports.
    pub fn library_version(&self, core: &Path) -> Result<Version, String> {
        let path = core.to_string_lossy();
        let found = try_call(|fail| {
            // SAFETY: a path and a taker for the time of the call.
            let version = unsafe { (self.table.library_version)(Bytes::of(path.as_bytes()), fail) };
            (version != watus_shim::Version::NONE).then_some(version)
        });
        found.map(Version::from)
    }

    /// Opens TensorRT for the lifetime of the process.
    pub(super) fn open(&self, files: &super::library::Files) -> Result<OpenedLibraries, String> {
        let (core, parser) = (files.core.to_string_lossy(), files.parser.to_string_lossy());
        let plugin = files.plugin.as_ref().map(|plugin| plugin.to_string_lossy()).unwrap_or_default();
        let path = |text: &str| Bytes::of(text.as_bytes());
        let opened = try_call(|fail| {
            // SAFETY: paths and a taker for the time of the call, and a function that stays.
            let library = unsafe { (self.table.open_library)(path(&core), path(&parser), path(&plugin), on_log, fail) };
            NonNull::new(library)
        })?;
        Ok(OpenedLibraries { table: self.table, raw: opened })
    }
}

unsafe extern "C" fn append(context: *mut c_void, bytes: Bytes) {
    // SAFETY: `taking` made the context of a Vec that lives as long as the call.
    let (taken, bytes) = unsafe { (&mut *context.cast::<Vec<u8>>(), bytes.as_slice()) };
    taken.extend_from_slice(bytes);
}

/// Appends the bytes that a call passes back to `bytes`.
fn taking(bytes: &mut Vec<u8>) -> Taker {
    Taker { context: std::ptr::from_mut(bytes).cast(), take: append }
}

/// The value of a call, or the error that the shim reports.
fn try_call<T>(call: impl FnOnce(Taker) -> Option<T>) -> Result<T, String> {
    let mut words = Vec::new();
    let value = call(taking(&mut words));
    value.ok_or_else(|| String::from_utf8_lossy(&words).into_owned())
}

type Sink = Box<dyn Fn(i32, String) + Send>;
static SINK: Mutex<Option<Sink>> = Mutex::new(None);

/// Sends TensorRT's log lines to `sink` from now on, with their severity (0 internal error … 4 verbose).
pub(super) fn set_log_sink(sink: impl Fn(i32, String) + Send + 'static) {
    if let Ok(mut slot) = SINK.lock() {
        *slot = Some(Box::new(sink));
    }
}

unsafe extern "C" fn on_log(severity: i32, message: Bytes) {
    // SAFETY: the shim's for the time of the call.
    let message = String::from_utf8_lossy(unsafe { message.as_slice() }).into_owned();
    if let Ok(slot) = SINK.lock()
        && let Some(sink) = slot.as_ref()
    {
        sink(severity, message);
    }
}

/// The opened libraries, which are never closed.
pub(super) struct OpenedLibraries {
    table: &'static Table,
    raw: NonNull<watus_shim::Library>,
}

// SAFETY: three function pointers of libraries that are never closed.
unsafe impl Send for OpenedLibraries {}
// SAFETY: as above; the factory functions may be called from several threads (NvInferRuntime.h, ILogger is locked).
unsafe impl Sync for OpenedLibraries {}

impl OpenedLibraries {
    pub(super) fn build(
        &self,
        options: &watus_shim::BuildOptions,
        timing_cache: &[u8],
        observer: &BuildObserver,
    ) -> Result<SerializedEngine, String> {
        let options = serde_json::to_vec(options).map_err(|error| error.to_string())?;
        let observer = observer.as_c();
        let plan = try_call(|fail| {
            let (options, timings) = (Bytes::of(&options), Bytes::of(timing_cache));
            // SAFETY: bytes, an observer and a taker for the time of the call.
            NonNull::new(unsafe { (self.table.build)(self.raw.as_ptr(), options, timings, &observer, fail) })
        })?;
        Ok(SerializedEngine { table: self.table, raw: plan })
    }

    /// Loads a plan with scratch memory of its own.
    pub(super) fn load(&self, plan: &[u8], tf32: bool) -> Result<TrtContext, String> {
        self.load_with(plan, tf32, std::ptr::null_mut())
    }

    /// Loads a plan with scratch memory of the caller, and with the compiled kernels in `kernels`, which must outlive
    /// the session.
    pub(super) fn load_shared(&self, plan: &[u8], tf32: bool, kernels: &mut RtxCache) -> Result<TrtContext, String> {
        self.load_with(plan, tf32, kernels.raw.as_ptr())
    }

    fn load_with(&self, plan: &[u8], tf32: bool, kernels: *mut watus_shim::KernelCache) -> Result<TrtContext, String> {
        let session = try_call(|fail| {
            // SAFETY: bytes and a taker for the time of the call; a cache of this table's or none.
            NonNull::new(unsafe { (self.table.load)(self.raw.as_ptr(), Bytes::of(plan), tf32, kernels, fail) })
        })?;
        Ok(TrtContext { table: self.table, raw: session })
    }

    /// A kernel cache with the bytes of an earlier one.
    pub(super) fn kernel_cache(&self, before: &[u8]) -> Result<RtxCache, String> {
        // SAFETY: bytes and a taker for the time of the call.
        let raw = try_call(|fail| NonNull::new(unsafe { (self.table.kernel_cache)(Bytes::of(before), fail) }))?;
        Ok(RtxCache { table: self.table, raw })
    }
}

/// A serialized engine, and the timing cache after its build.
pub(super) struct SerializedEngine {
    table: &'static Table,
    raw: NonNull<watus_shim::Plan>,
}

impl SerializedEngine {
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the plan's own bytes, which live as long as it.
        unsafe { (self.table.plan_bytes)(self.raw.as_ptr()).as_slice() }
    }

    pub(super) fn timing_cache(&self) -> &[u8] {
        // SAFETY: as above.
        unsafe { (self.table.plan_timing_cache)(self.raw.as_ptr()).as_slice() }
    }
}

impl Drop for SerializedEngine {
    fn drop(&mut self) {
        // SAFETY: dropped once.
        unsafe { (self.table.plan_free)(self.raw.as_ptr()) }
    }
}

/// Kernels that RTX compiles when the engines of a model are loaded and first run; empty for other TensorRTs.
pub(super) struct RtxCache {
    table: &'static Table,
    raw: NonNull<watus_shim::KernelCache>,
}

// SAFETY: used by one thread at a time, which &mut and the lack of Sync enforce.
unsafe impl Send for RtxCache {}

impl RtxCache {
    pub(super) fn bytes(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let given = try_call(|fail| {
            // SAFETY: takers for the time of the call.
            unsafe { (self.table.kernel_cache_bytes)(self.raw.as_ptr(), taking(&mut bytes), fail) }.then_some(())
        });
        given.ok().map(|()| bytes)
    }
}

impl Drop for RtxCache {
    fn drop(&mut self) {
        // SAFETY: dropped once, after the sessions that refer to it.
        unsafe { (self.table.kernel_cache_free)(self.raw.as_ptr()) }
    }
}

/// A deserialized engine with one execution context.
pub(super) struct TrtContext {
    table: &'static Table,
    raw: NonNull<watus_shim::Session>,
}

// SAFETY: NvInferRuntime.h: an execution context may be used from any thread, by one at a time; &mut TrtContext and the lack
// of Sync enforce the latter.
unsafe impl Send for TrtContext {}

impl TrtContext {
    pub(super) fn io(&self) -> Result<Vec<IoTensor>, String> {
        let mut bytes = Vec::new();
        try_call(|fail| {
            // SAFETY: takers for the time of the call.
            unsafe { (self.table.session_io)(self.raw.as_ptr(), taking(&mut bytes), fail) }.then_some(())
        })?;
        serde_json::from_slice(&bytes).map_err(|error| error.to_string())
    }

    /// The shape of an input or output, with -1 for unknown dimensions.
    pub(super) fn shape(&self, name: &str) -> Result<Vec<i64>, String> {
        self.read_shape(self.table.session_shape, name)
    }

    /// The shape that an output had in the last run.
    pub(super) fn written_shape(&self, name: &str) -> Result<Vec<i64>, String> {
        self.read_shape(self.table.session_written_shape, name)
    }

    fn read_shape(
        &self,
        read: unsafe extern "C" fn(*const watus_shim::Session, Bytes, *mut i64, Taker) -> i32,
        name: &str,
    ) -> Result<Vec<i64>, String> {
        let mut dims = [0i64; DIMENSIONS];
        let rank = try_call(|fail| {
            // SAFETY: a name and a taker for the time of the call, and room for all dimensions there can be.
            let rank = unsafe { read(self.raw.as_ptr(), Bytes::of(name.as_bytes()), dims.as_mut_ptr(), fail) };
            usize::try_from(rank).ok()
        })?;
        Ok(dims.iter().copied().take(rank).collect())
    }

    /// Sets the shape of an input (ignored for outputs, which follow from it) and the address of either.
    pub(super) fn bind(&mut self, name: &str, dims: &[i64], address: usize) -> Result<(), String> {
        let name = Bytes::of(name.as_bytes());
        try_call(|fail| {
            // SAFETY: a name, dimensions and a taker for the time of the call.
            unsafe { (self.table.session_bind)(self.raw.as_ptr(), name, dims.as_ptr(), dims.len(), address, fail) }
                .then_some(())
        })
    }

    /// Sets the address of an input or output.
    pub(super) fn set_address(&mut self, name: &str, address: usize) -> Result<(), String> {
        let name = Bytes::of(name.as_bytes());
        // SAFETY: a name and a taker for the time of the call.
        try_call(|fail| {
            unsafe { (self.table.session_set_address)(self.raw.as_ptr(), name, address, fail) }.then_some(())
        })
    }

    /// Most bytes that an output can need whose size depends on values; `None` if TensorRT knows no bound.
    pub(super) fn most_bytes(&self, name: &str) -> Option<usize> {
        // SAFETY: a name for the time of the call.
        let bytes = unsafe { (self.table.session_most_bytes)(self.raw.as_ptr(), Bytes::of(name.as_bytes())) };
        usize::try_from(bytes).ok()
    }

    /// Sets the memory of an output whose size depends on values.
    pub(super) fn give_room(&mut self, name: &str, address: usize, bytes: usize) -> Result<(), String> {
        let name = Bytes::of(name.as_bytes());
        try_call(|fail| {
            // SAFETY: a name and a taker for the time of the call.
            unsafe { (self.table.session_give_room)(self.raw.as_ptr(), name, address, bytes as u64, fail) }
                .then_some(())
        })
    }

    pub(super) fn scratch_bytes(&self) -> i64 {
        // SAFETY: this session.
        unsafe { (self.table.session_scratch_bytes)(self.raw.as_ptr()) }
    }

    pub(super) fn set_scratch(&mut self, address: usize, bytes: i64) {
        // SAFETY: this session.
        unsafe { (self.table.session_set_scratch)(self.raw.as_ptr(), address, bytes) }
    }

    pub(super) fn enqueue(&mut self, stream: usize) -> Result<(), String> {
        // SAFETY: a taker for the time of the call.
        try_call(|fail| unsafe { (self.table.session_enqueue)(self.raw.as_ptr(), stream, fail) }.then_some(()))
    }

    pub(super) fn inspect(&self) -> Result<String, String> {
        let mut bytes = Vec::new();
        try_call(|fail| {
            // SAFETY: takers for the time of the call.
            unsafe { (self.table.session_inspect)(self.raw.as_ptr(), taking(&mut bytes), fail) }.then_some(())
        })?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for TrtContext {
    fn drop(&mut self) {
        // SAFETY: dropped once.
        unsafe { (self.table.session_free)(self.raw.as_ptr()) }
    }
}
