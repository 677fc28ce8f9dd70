//! The shim as a shared object of one name.

/// The table of the headers it was compiled with; null without any.
// SAFETY: no other symbol of this object has this name, and who opens it asks this object for it.
#[unsafe(no_mangle)]
pub extern "C" fn watus_shim() -> *const watus_shim::Table {
    watus_shim::table().map_or(std::ptr::null(), std::ptr::from_ref)
}
