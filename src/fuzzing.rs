//! Entries into private code for the fuzz targets. Compiled by cargo-fuzz alone.

pub use crate::fetch::fuzz::{follow, retry_after};
pub use crate::serve::fuzz::{Desk, Refusal, strict};
