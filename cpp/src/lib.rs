//! The shim between watus-build and TensorRT: C++ compiled against one set of NVIDIA's headers, behind a table of C functions.
//!
//! A program may link this crate, or open the shared objects that it makes of several header sets and use the one that fits the
//! TensorRT it finds: header sets declare the same names for different things, so no program can link two. [`table()`] is
//! the whole interface; behind it `bridge.rs` is the typed bridge to C++. Without headers there is no table.

mod table;

#[cfg(watus_tensorrt)]
mod bridge;
#[cfg(watus_tensorrt)]
mod exports;
#[cfg(watus_tensorrt)]
mod log;

pub use table::*;

/// The table of the headers that this crate was compiled with, if it was.
pub fn table() -> Option<&'static Table> {
    #[cfg(watus_tensorrt)]
    return Some(&exports::TABLE);
    #[cfg(not(watus_tensorrt))]
    None
}

/// The name under which a shared object (`shared/`) exports its table.
pub const SYMBOL: &str = "watus_shim";
