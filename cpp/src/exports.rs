//! The table's functions over the bridge to C++. Each is sound as long as its caller keeps what [`Table`] says.

use std::fmt::Display;

use cxx::UniquePtr;

use super::bridge::{BuildObserver, cpp};
use super::log::LOG;
use super::table::{
    ABI, BuildOptions, Bytes, DIMENSIONS, IoTensor, KernelCache, Library, Observer, Plan, Session, ShapeRange, Table,
    Taker, Version,
};

fn give(taker: Taker, bytes: &[u8]) {
    // SAFETY: the taker is good for the time of the call that brought it.
    unsafe { (taker.take)(taker.context, Bytes::of(bytes)) }
}

/// The value, or `None` after saying why there is none.
fn tell<T>(result: Result<T, impl Display>, fail: Taker) -> Option<T> {
    result.map_err(|error| give(fail, error.to_string().as_bytes())).ok()
}

/// Text of the caller's; paths and names that are no UTF-8 are no names of TensorRT's.
unsafe fn text<'a>(bytes: Bytes) -> Result<&'a str, String> {
    // SAFETY: the caller's for the time of the call.
    let bytes = unsafe { bytes.as_slice() };
    std::str::from_utf8(bytes).map_err(|_| format!("`{}` is not UTF-8", String::from_utf8_lossy(bytes)))
}

fn text_error(error: impl Display) -> String {
    error.to_string()
}

fn boxed<T, C: cxx::memory::UniquePtrTarget>(made: Option<UniquePtr<C>>) -> *mut T {
    made.map_or(std::ptr::null_mut(), |made| made.into_raw().cast())
}

fn version(info: cpp::VersionInfo) -> Version {
    let cpp::VersionInfo { is_rtx, major, minor, patch } = info;
    Version { is_rtx, major, minor, patch }
}

unsafe extern "C" fn headers() -> Version {
    version(cpp::header_version())
}

unsafe extern "C" fn library_version(core_path: Bytes, fail: Taker) -> Version {
    // SAFETY: the caller's path.
    let found = unsafe { text(core_path) }.and_then(|path| cpp::library_version(path).map_err(text_error));
    tell(found, fail).map_or(Version::NONE, version)
}

unsafe extern "C" fn open_library(
    core_path: Bytes,
    parser_path: Bytes,
    plugin_path: Bytes,
    log: unsafe extern "C" fn(i32, Bytes),
    fail: Taker,
) -> *mut Library {
    if let Ok(mut slot) = LOG.lock() {
        *slot = Some(log);
    }
    let open = || {
        // SAFETY: the caller's paths.
        let (core, parser, plugin) = unsafe { (text(core_path)?, text(parser_path)?, text(plugin_path)?) };
        cpp::open_library(core, parser, plugin).map_err(text_error)
    };
    boxed(tell(open(), fail))
}

fn range(range: ShapeRange) -> cpp::ShapeRange {
    let ShapeRange { name, min, opt, max } = range;
    cpp::ShapeRange { name, min, opt, max }
}

fn build_options(options: BuildOptions, timing_cache: Vec<u8>) -> cpp::BuildOptions {
    let BuildOptions {
        onnx_path,
        workspace_bytes,
        optimization_level,
        tf32,
        fp16,
        obey_precision_constraints,
        compute_capabilities,
        strongly_typed,
        full_layers,
        detailed_profiling,
        profile,
    } = options;
    cpp::BuildOptions {
        onnx_path,
        workspace_bytes,
        optimization_level,
        tf32,
        fp16,
        obey_precision_constraints,
        compute_capabilities,
        strongly_typed,
        full_layers,
        detailed_profiling,
        profile: profile.into_iter().map(range).collect(),
        timing_cache,
    }
}

unsafe extern "C" fn build(
    library: *const Library,
    options: Bytes,
    timing_cache: Bytes,
    observer: *const Observer,
    fail: Taker,
) -> *mut Plan {
    // SAFETY: a library that `open_library` gave, and what the caller keeps for the time of the call.
    let (library, options, timings, observer) = unsafe {
        (&*library.cast::<cpp::Library>(), options.as_slice(), timing_cache.as_slice(), BuildObserver(*observer))
    };
    let built = serde_json::from_slice(options).map_err(text_error).and_then(|options| {
        cpp::build_plan(library, &build_options(options, timings.to_vec()), &observer).map_err(text_error)
    });
    boxed(tell(built, fail))
}

unsafe extern "C" fn plan_bytes(plan: *const Plan) -> Bytes {
    // SAFETY: a plan that `build` gave, which keeps its bytes.
    Bytes::of(unsafe { &*plan.cast::<cpp::Plan>() }.bytes())
}

unsafe extern "C" fn plan_timing_cache(plan: *const Plan) -> Bytes {
    // SAFETY: as above.
    Bytes::of(unsafe { &*plan.cast::<cpp::Plan>() }.timing_cache())
}

unsafe extern "C" fn plan_free(plan: *mut Plan) {
    // SAFETY: what `build` gave, freed once.
    drop(unsafe { UniquePtr::<cpp::Plan>::from_raw(plan.cast()) });
}

unsafe extern "C" fn kernel_cache(before: Bytes, fail: Taker) -> *mut KernelCache {
    // SAFETY: the caller's bytes.
    boxed(tell(cpp::new_kernel_cache(unsafe { before.as_slice() }), fail))
}

unsafe extern "C" fn kernel_cache_bytes(cache: *const KernelCache, taker: Taker, fail: Taker) -> bool {
    // SAFETY: a cache that `kernel_cache` gave.
    let bytes = tell(unsafe { &*cache.cast::<cpp::KernelCache>() }.cached(), fail);
    bytes.is_some_and(|bytes| {
        give(taker, &bytes);
        true
    })
}

unsafe extern "C" fn kernel_cache_free(cache: *mut KernelCache) {
    // SAFETY: what `kernel_cache` gave, freed once.
    drop(unsafe { UniquePtr::<cpp::KernelCache>::from_raw(cache.cast()) });
}

unsafe extern "C" fn load(
    library: *const Library,
    plan: Bytes,
    tf32: bool,
    kernels: *mut KernelCache,
    fail: Taker,
) -> *mut Session {
    // SAFETY: a library that `open_library` gave, and the caller's bytes.
    let (library, plan) = unsafe { (&*library.cast::<cpp::Library>(), plan.as_slice()) };
    let loaded = if kernels.is_null() {
        cpp::load_plan(library, plan, tf32)
    } else {
        // SAFETY: a cache that `kernel_cache` gave, nobody else's during the call, and that outlives the session.
        unsafe {
            let kernels = std::pin::Pin::new_unchecked(&mut *kernels.cast::<cpp::KernelCache>());
            cpp::load_plan_with(library, plan, tf32, kernels)
        }
    };
    boxed(tell(loaded, fail))
}

unsafe extern "C" fn session_free(session: *mut Session) {
    // SAFETY: what `load` gave, freed once.
    drop(unsafe { UniquePtr::<cpp::Session>::from_raw(session.cast()) });
}

/// # Safety
/// A session that `load` gave.
unsafe fn session<'a>(session: *const Session) -> &'a cpp::Session {
    // SAFETY: the caller's word.
    unsafe { &*session.cast() }
}

/// # Safety
/// A session that `load` gave, used by nobody else meanwhile.
unsafe fn session_mut<'a>(session: *mut Session) -> std::pin::Pin<&'a mut cpp::Session> {
    // SAFETY: the caller's word; C++ objects are never moved.
    unsafe { std::pin::Pin::new_unchecked(&mut *session.cast()) }
}

unsafe extern "C" fn session_io(of: *const Session, taker: Taker, fail: Taker) -> bool {
    let tensor = |tensor: cpp::IoTensor| {
        let cpp::IoTensor { name, is_input, dtype, shape } = tensor;
        IoTensor { name, is_input, dtype, shape }
    };
    // SAFETY: the caller's session.
    let tensors = unsafe { session(of) }.io().map_err(text_error).and_then(|tensors| {
        let tensors: Vec<IoTensor> = tensors.into_iter().map(tensor).collect();
        serde_json::to_vec(&tensors).map_err(text_error)
    });
    tell(tensors, fail).is_some_and(|tensors| {
        give(taker, &tensors);
        true
    })
}

/// Writes a shape where the caller has room for one.
///
/// # Safety
/// `dims` has room for [`DIMENSIONS`].
unsafe fn write_shape(shape: Result<Vec<i64>, String>, dims: *mut i64, fail: Taker) -> i32 {
    let Some(shape) = tell(shape, fail) else { return -1 };
    let count = shape.len().min(DIMENSIONS);
    // SAFETY: the caller's room.
    unsafe { std::ptr::copy_nonoverlapping(shape.as_ptr(), dims, count) };
    i32::try_from(count).unwrap_or(-1)
}

unsafe extern "C" fn session_shape(of: *const Session, name: Bytes, dims: *mut i64, fail: Taker) -> i32 {
    // SAFETY: the caller's session, name and room.
    unsafe {
        let shape = text(name).and_then(|name| session(of).tensor_shape(name).map_err(text_error));
        write_shape(shape, dims, fail)
    }
}

unsafe extern "C" fn session_bind(
    of: *mut Session,
    name: Bytes,
    dims: *const i64,
    rank: usize,
    address: usize,
    fail: Taker,
) -> bool {
    // SAFETY: the caller's session, name and dimensions.
    let bound = unsafe {
        let dims = if rank == 0 { &[] } else { std::slice::from_raw_parts(dims, rank) };
        text(name).and_then(|name| session_mut(of).bind(name, dims, address).map_err(text_error))
    };
    tell(bound, fail).is_some()
}

unsafe extern "C" fn session_set_address(of: *mut Session, name: Bytes, address: usize, fail: Taker) -> bool {
    // SAFETY: the caller's session and name.
    let set = unsafe { text(name).and_then(|name| session_mut(of).set_address(name, address).map_err(text_error)) };
    tell(set, fail).is_some()
}

unsafe extern "C" fn session_most_bytes(of: *const Session, name: Bytes) -> i64 {
    // SAFETY: the caller's session and name.
    unsafe { text(name).map_or(-1, |name| session(of).most_bytes(name)) }
}

unsafe extern "C" fn session_give_room(of: *mut Session, name: Bytes, address: usize, bytes: u64, fail: Taker) -> bool {
    // SAFETY: the caller's session and name.
    let given =
        unsafe { text(name).and_then(|name| session_mut(of).give_room(name, address, bytes).map_err(text_error)) };
    tell(given, fail).is_some()
}

unsafe extern "C" fn session_written_shape(of: *const Session, name: Bytes, dims: *mut i64, fail: Taker) -> i32 {
    // SAFETY: the caller's session, name and room.
    unsafe {
        let shape = text(name).and_then(|name| session(of).written_shape(name).map_err(text_error));
        write_shape(shape, dims, fail)
    }
}

unsafe extern "C" fn session_scratch_bytes(of: *const Session) -> i64 {
    // SAFETY: the caller's session.
    unsafe { session(of) }.scratch_bytes()
}

unsafe extern "C" fn session_set_scratch(of: *mut Session, address: usize, bytes: i64) {
    // SAFETY: the caller's session.
    unsafe { session_mut(of) }.set_scratch(address, bytes);
}

unsafe extern "C" fn session_enqueue(of: *mut Session, stream: usize, fail: Taker) -> bool {
    // SAFETY: the caller's session.
    tell(unsafe { session_mut(of) }.enqueue(stream), fail).is_some()
}

unsafe extern "C" fn session_inspect(of: *const Session, taker: Taker, fail: Taker) -> bool {
    // SAFETY: the caller's session.
    tell(unsafe { session(of) }.inspect(), fail).is_some_and(|text| {
        give(taker, text.as_bytes());
        true
    })
}

pub(super) static TABLE: Table = Table {
    abi: ABI,
    headers,
    library_version,
    open_library,
    build,
    plan_bytes,
    plan_timing_cache,
    plan_free,
    kernel_cache,
    kernel_cache_bytes,
    kernel_cache_free,
    load,
    session_free,
    session_io,
    session_shape,
    session_bind,
    session_set_address,
    session_most_bytes,
    session_give_room,
    session_written_shape,
    session_scratch_bytes,
    session_set_scratch,
    session_enqueue,
    session_inspect,
};
