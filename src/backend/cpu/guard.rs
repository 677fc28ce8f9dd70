//! Guards rten in this process against graphs of strangers: catches panics, and refuses recursion that is too deep.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use super::BackendError;
use crate::diagnostic::Diagnostic;
use crate::onnx::Model;

/// Longest chain of nodes. rten's planner visits them recursively (rten 0.27, `PlanBuilder::visit`) with less than 1 KB
/// of stack each; the deepest language model as one graph has a few thousand.
const DEPTH_LIMIT: usize = 50_000;
/// Longest chain of nodes in a subgraph, which rten plans on a thread of its own with 2 MiB of stack.
const SUBGRAPH_DEPTH_LIMIT: usize = 1000;
/// Longest chain of nodes for which any thread's stack suffices.
const SHALLOW: usize = 1000;
/// Stack in bytes for a chain of [`DEPTH_LIMIT`] nodes.
const STACK: usize = 64 << 20;

/// The longest chain of nodes in a model; an error if it is too long.
pub(super) fn depth(model: &Model) -> Result<usize, BackendError> {
    let depth = model.depth();
    for (what, length, limit) in
        [("nodes", depth.graph, DEPTH_LIMIT), ("nodes in a subgraph", depth.subgraph, SUBGRAPH_DEPTH_LIMIT)]
    {
        if length > limit {
            let chain = format!("a chain of {length} {what}, {limit} are computed at most");
            let chain = Diagnostic::new(chain).with_help("no network is as deep: is the file what it should be?");
            return Err(BackendError::Load(chain.at(model.path().display()).at("CPU reference")));
        }
    }
    Ok(depth.graph)
}

/// Runs `work` on a graph of `depth` with a sufficient stack, and turns a panic into an error.
pub(super) fn guarded<T: Send>(
    depth: usize,
    kind: fn(Diagnostic) -> BackendError,
    work: impl FnOnce() -> Result<T, BackendError> + Send,
) -> Result<T, BackendError> {
    if depth <= SHALLOW {
        return caught(kind, work);
    }
    thread::scope(|scope| {
        let started = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, move || caught(kind, work));
        let started = started.map_err(|error| kind(format!("CPU reference: cannot start a thread: {error}").into()))?;
        started.join().unwrap_or_else(|_| Err(kind("CPU reference: its thread panicked".into())))
    })
}

/// Catches a panic. What it leaves unfinished belongs to the session; at worst the next run panics as well, and is
/// caught too.
fn caught<T>(
    kind: fn(Diagnostic) -> BackendError,
    work: impl FnOnce() -> Result<T, BackendError>,
) -> Result<T, BackendError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        Err(kind(
            Diagnostic::new(format!("the CPU reference panicked: {line}"))
                .with_help("the graph asks for what no operator can do, or for what rten does not know"),
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_errors_and_deep_graphs_have_stack() {
        for depth in [1, SHALLOW + 1] {
            let failed = guarded(depth, BackendError::Run, || -> Result<(), _> { panic!("no {}", "way") });
            assert!(failed.unwrap_err().to_string().starts_with("the CPU reference panicked: no way"));
        }
        fn recurse(depth: usize) -> usize {
            let frame = std::hint::black_box([depth; 16]);
            if depth == 0 { 0 } else { frame[1] - depth + 1 + recurse(depth - 1) }
        }
        let found = guarded(DEPTH_LIMIT, BackendError::Run, || Ok(recurse(DEPTH_LIMIT)));
        assert_eq!(found.unwrap(), DEPTH_LIMIT);
    }
}
