//! Language models at run time: tokens, weights, caches, sampling, text.
//!
//! [`Executor`] runs the layers: `cpu.rs` in float32 on any machine.

mod cpu;
mod executor;
mod host;

pub use cpu::CpuExecutor;
pub use executor::{Executor, LlmError, MemoryUse, Rows, Step};
