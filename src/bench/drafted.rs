//! Measures launches that verify drafts: several rows of one sequence, which cost little more than one where weights are read
//! once for all.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Latency;
use super::llm_samples::{latency, tokens};
use crate::executor::{Executor, LlmError, Rows, Step, WantedLogits};

/// Launches before the timed ones: the first captures a graph, the second warms it.
const UNTIMED: usize = 2;

/// Time of a launch that verifies a draft.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DraftedLaunch {
    /// Drafted tokens, which are rows beside that of the token before them.
    pub drafted: usize,
    /// Tokens in the KV cache before it.
    pub context: usize,
    /// Time of a launch, until the logits of all rows are on the host.
    pub latency: Latency,
}

/// Times `runs` launches of `drafted` rows and one before them. All are at the same positions, as if every draft were wrong.
pub(super) fn measure_drafted(
    executor: &mut dyn Executor,
    (drafted, context): (usize, usize),
    runs: usize,
) -> Result<DraftedLaunch, LlmError> {
    let vocabulary = executor.vocab_size();
    (0..executor.slots()).for_each(|slot| executor.release(slot));
    executor.prefill(0, 0, &tokens(context, vocabulary), Rows::Last)?;
    let wanted = WantedLogits::Top { temperature: 0.0 };
    let rows = tokens(drafted + 1, vocabulary).into_iter().zip(context..);
    let steps: Vec<Step> = rows.map(|(token, position)| Step { slot: 0, token, position, wanted }).collect();
    let mut samples = Vec::new();
    for run in 0..UNTIMED + runs.max(1) {
        let start = Instant::now();
        executor.launch(&steps)?;
        executor.collect()?;
        if run >= UNTIMED {
            samples.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(DraftedLaunch { drafted, context, latency: latency(&samples)? })
}

/// Adds the table of drafted launches, if any were measured.
pub(super) fn drafted_table(text: &mut String, launches: &[DraftedLaunch]) {
    if !launches.is_empty() {
        text.push_str(
            "\n| drafted tokens in a launch | context | p50 ms | ms a token if all are right |\n|---|---|---|---|\n",
        );
    }
    for DraftedLaunch { drafted, context, latency } in launches {
        let (p50, each) = (latency.p50_ms, latency.p50_ms / (drafted + 1) as f64);
        text.push_str(&format!("| {drafted} | {context} | {p50:.2} | {each:.2} |\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_draft_divides_the_time() {
        let mut text = String::new();
        drafted_table(&mut text, &[]);
        assert_eq!(text, "");
        let latency = Latency::of(&[6.0]).unwrap();
        drafted_table(&mut text, &[DraftedLaunch { drafted: 3, context: 128, latency }]);
        assert!(text.ends_with("|---|---|---|---|\n| 3 | 128 | 6.00 | 1.50 |\n"), "{text}");
    }
}
