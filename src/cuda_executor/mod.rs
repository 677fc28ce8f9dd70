//! The executor on the GPU, with TensorRT: one engine per shape runs every layer with that layer's weights bound; decode steps are
//! replayed as CUDA graphs.
//!
//! `executor.rs` runs prompts and decode steps. `state.rs` is the memory (`kv_cache.rs`, `buffers.rs`), `engines.rs` TensorRT,
//! `decode_kernel.rs` our own kernel for decode steps and the head, `weights.rs` and `staging.rs` the way in, `aux_kernels.rs` what
//! neither does, `code.rs` where kernels come from. Which of the two takes decode steps, and what prompts are cut into, is
//! measured when a model is loaded (`executor/tune.rs`).

mod aux_kernels;
mod buffers;
mod code;
mod decode_kernel;
mod driver;
mod engines;
mod executor;
mod kv_cache;
mod matrix;
mod nvrtc;
mod packed_tiles;
mod staging;
mod state;
mod unpack;
mod weights;

pub use self::aux_kernels::{packaged_kernel, packaged_kernels};
pub use self::code::{PACKAGED_KERNELS, compiler_files, try_compiler};
pub use self::executor::{GpuExecutor, GpuOptions};
pub use self::packed_tiles::{IntegerFormat, MatrixSize, packed_bytes, quantised_bytes};
