//! Language models at run time: tokenizer, executors, KV cache, sampling.
//!
//! [`Executor`] runs the layers: `cpu.rs` in float32 on any machine, `gpu/` with TensorRT's engines; `passes.rs` cuts
//! prompts for both. [`Generator`] generates answers with an executor, `text/` converts between text and tokens,
//! `model.rs` opens an engine directory.

mod cpu;
mod executor;
mod generate;
mod gpu;
mod grammar;
mod host;
pub mod model;
mod passes;
mod queue;
mod request;
mod running_answer;
mod sampler;
pub mod schema;
mod shapes;
pub mod text;

pub use cpu::{CpuExecutor, Squares};
pub use executor::{Executor, LlmError, Logits, MemoryUse, Rows, Step, TopLogits};
pub use generate::Generator;
pub use gpu::{GpuExecutor, GpuOptions, IntegerFormat, MatrixSize, packed_bytes, quantised_bytes};
pub use gpu::{PACKAGED_KERNELS, compiler_files, packaged_kernel, packaged_kernels, try_compiler};
pub use grammar::{Grammar, Grammars};
pub use request::{Finish, Piece, Request, RequestLimits, Usage};
pub use running_answer::RunningAnswer;
pub use sampler::{Choice, Sampler, Sampling, argmax, log_sum_exp};
pub use shapes::{Shapes, head_name, layer_name};
