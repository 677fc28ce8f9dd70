//! What of a stranger's graph can be kept from rten, or caught, in one process: panics, and recursion too deep.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use super::BackendError;
use crate::diagnostic::Diagnostic;
use crate::onnx::Model;

/// Longest chain of nodes. rten's planner visits them by recursion (rten 0.27, `PlanBuilder::visit`), less than 1 KB each;
/// the deepest language model as one graph has some thousands.
const DEPTH_LIMIT: usize = 50_000;
/// The same within a subgraph, which is planned on a thread of rten's with 2 MiB of stack.
const SUBGRAPH_DEPTH_LIMIT: usize = 1000;
/// Up to here any thread's stack will do.
const SHALLOW: usize = 1000;
/// For a chain of [`DEPTH_LIMIT`].
const STACK: usize = 64 << 20;

/// The depth of a model, if it is one to be computed.
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

/// Does work on a graph of `depth` with stack enough, and makes an error of a panic.
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

/// What a panic leaves half done is the session's own; at worst the next run panics too, and is caught as well.
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
