//! Answers of language models: requests in, text out as it comes.
//!
//! [`Generator`] makes answers with an executor: `queue.rs` says whose request is next, `sampler.rs` chooses tokens, of those
//! that `grammar.rs` allows where an answer must be something. What strangers' schemas may cost is bounded before
//! (`schema.rs`), and a grammar is compiled in a process of its own first (`compiler.rs`).

pub mod compiler;
mod generator;
mod grammar;
mod queue;
mod request;
mod sampler;
pub mod schema;

pub use generator::Generator;
pub use grammar::{Grammar, Grammars};
pub use request::{Finish, Piece, Request, RequestLimits, Usage};
pub use sampler::{Choice, Sampler, argmax, log_sum_exp};
