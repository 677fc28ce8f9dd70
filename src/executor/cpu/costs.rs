//! Sizes of the CPU executor's passes, and their costs in tokens.

use crate::executor::passes::{Size, Sizes};

/// Numbers of tokens per pass, into which `passes` cuts prompts. Passes of two to seven tokens take as long as one of
/// eight.
const CHUNKS: [usize; 6] = [1, 8, 16, 32, 64, 128];
/// Most rows of a pass.
pub(super) const LARGEST: usize = CHUNKS[CHUNKS.len() - 1];
/// Cost of a pass in tokens, for its weights: SmolLM2 on two cores takes 95 ms for a pass and 5.3 ms per token. A
/// constant, so that comparisons with this executor see the same sums in the same order every time.
const TOKENS_OF_A_PASS: f64 = 16.0;

/// Rows of the smallest pass for so many.
pub(super) fn chunk_for(rows: usize) -> usize {
    CHUNKS.into_iter().find(|chunk| *chunk >= rows).unwrap_or(LARGEST)
}

/// The sizes of passes, and their costs in tokens.
pub(super) fn sizes() -> Sizes {
    let size = |tokens: usize| Size { tokens, seconds: vec![(0, TOKENS_OF_A_PASS + tokens as f64)], shared: 0.0 };
    Sizes::new(CHUNKS.map(size).into())
}

/// Cost of a launch in tokens; one pass, unless it has more rows than passes have.
pub(super) fn launch_cost(rows: usize) -> f64 {
    let pass = |rows: usize| TOKENS_OF_A_PASS + chunk_for(rows) as f64;
    (0..rows).step_by(LARGEST).map(|first| pass((rows - first).min(LARGEST))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_cost_what_their_pass_costs() {
        assert_eq!([1, 2, 8, 9, 64, 128].map(launch_cost), [17.0, 24.0, 24.0, 32.0, 80.0, 144.0]);
        assert_eq!(launch_cost(129), launch_cost(128) + launch_cost(1));
        // The same as of the same pass of a prompt.
        assert_eq!(launch_cost(8), sizes().time(0, 8, |_| 64));
    }
}
