//! The shim as an archive, which `scripts/build-shims.sh` links to a shared object that shows this one name: rustc's own version
//! script for a `cdylib` shows whatever C++ calls in the `cxx` crate too.

/// The table of the headers it was compiled with; null without any.
// SAFETY: no other symbol of this object has this name, and who opens it asks this object for it.
#[unsafe(no_mangle)]
pub extern "C" fn watus_shim() -> *const watus_shim::Table {
    watus_shim::table().map_or(std::ptr::null(), std::ptr::from_ref)
}
