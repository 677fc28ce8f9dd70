//! Language models at run time: tokens, weights, caches, sampling, text.
//!
//! [`Executor`] runs the layers: `cpu.rs` in float32 on any machine, `gpu/` with TensorRT's engines.

mod cpu;
mod executor;
mod gpu;
mod host;
mod shapes;

pub use cpu::CpuExecutor;
pub use executor::{Executor, LlmError, MemoryUse, Rows, Step};
pub use gpu::{GpuExecutor, GpuOptions};
pub use shapes::{Shapes, head_name, layer_name};
