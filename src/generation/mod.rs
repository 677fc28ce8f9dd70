//! Answers of language models: from requests to text, piece by piece.
//!
//! [`Generator`] generates answers with an executor: `queue.rs` decides whose request is next, `active.rs` is an answer in its
//! slot, `sampler.rs` samples tokens, of those that `grammar.rs` allows if an answer must have a form; [`RunningAnswer`] is one
//! answer in progress. `drafter.rs` drafts tokens that the model then only verifies, from texts that `ngram_index.rs` finds its
//! way in. `prompt_history.rs` finds beginnings of prompts that return, `keeping.rs` keeps them on disk (`kept_prefixes.rs`).
//! `schema.rs` limits the cost of clients' schemas, and `compiler.rs` compiles a grammar in a child process first.

mod active;
pub mod compiler;
mod drafter;
mod generator;
mod grammar;
mod keeping;
mod kept_prefixes;
mod launch;
mod ngram_index;
mod prompt_history;
mod queue;
mod request;
mod running_answer;
mod sampler;
pub mod schema;

pub use generator::Generator;
pub use grammar::{Grammar, Grammars, Tokenize};
pub use request::{Finish, Piece, Request, RequestLimits, Speculation, Usage};
pub use running_answer::RunningAnswer;
pub use sampler::{Choice, Sampler, argmax, log_sum_exp};
