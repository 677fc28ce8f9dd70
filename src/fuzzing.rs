//! What the fuzz targets need of the insides. cargo-fuzz alone compiles it.

pub use crate::fetch::fuzz::{follow, retry_after};
pub use crate::serve::fuzz::{Desk, Refusal, strict};
