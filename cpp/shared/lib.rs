//! The shim as a shared object of one name: rustc's version script for a cdylib keeps every other inside, C++'s too.
//! (`--exclude-libs`, which would say the same, zig's linker does not take.)

/// The table of the headers it was compiled with; null without any.
// SAFETY: no other symbol of this object has this name, and who opens it asks this object for it.
#[unsafe(no_mangle)]
pub extern "C" fn watus_shim() -> *const watus_shim::Table {
    watus_shim::table().map_or(std::ptr::null(), std::ptr::from_ref)
}
