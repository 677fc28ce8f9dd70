//! The CUDA executor: one TensorRT engine per shape runs every layer, with that layer's weights bound; decode steps are
//! replayed as CUDA graphs.
//!
//! `executor.rs` runs prompts and decode steps. `state.rs` has the device memory (`kv_cache.rs`, `buffers.rs`),
//! `engines.rs` TensorRT's engines, `sweep.rs` which passes go through their layers together, `decode_kernel.rs` our
//! kernel for decode steps and the head, `weights.rs` and `staging.rs` upload weights, `unpack.rs` widens packed ones for
//! the engines, `aux_kernels.rs` has small kernels around the engines, `code.rs` finds or compiles kernels.
//! `executor/tune.rs` measures, when a model is loaded, which implementation of decode steps is faster, and how to cut
//! prompts into passes, `executor/prompt.rs` cuts them.

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
mod sweep;
mod unpack;
mod weights;

pub use self::aux_kernels::{packaged_kernel, packaged_kernels};
pub use self::code::{PACKAGED_KERNELS, compiler_files, try_compiler};
pub use self::executor::{GpuExecutor, GpuOptions};
pub use self::packed_tiles::{IntegerFormat, MatrixSize, packed_bytes, quantised_bytes};
