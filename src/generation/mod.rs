//! Answers of language models: from requests to text, piece by piece.
//!
//! [`Generator`] generates answers with an executor: `queue.rs` decides whose request is next, `sampler.rs` samples tokens, of
//! those that `grammar.rs` allows if an answer must have a form; [`RunningAnswer`] is one answer in progress. `schema.rs` limits
//! the cost of clients' schemas, and `compiler.rs` compiles a grammar in a child process first.

pub mod compiler;
mod generator;
mod grammar;
mod queue;
mod request;
mod running_answer;
mod sampler;
pub mod schema;

pub use generator::Generator;
pub use grammar::{Grammar, Grammars};
pub use request::{Finish, Piece, Request, RequestLimits, Usage};
pub use running_answer::RunningAnswer;
pub use sampler::{Choice, Sampler, argmax, log_sum_exp};
