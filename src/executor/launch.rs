//! What is asked of an executor, checked in one place for all of them.

use super::{Executor, LlmError, Step, not_exchanged};
use crate::spec::KvLayout;
use crate::text::TextError;

/// Rows of a launch that are consecutive tokens of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// The slot.
    pub(crate) slot: usize,
    /// Number of tokens before the first row's.
    pub(crate) position: usize,
    /// Number of rows.
    pub(crate) count: usize,
}

/// The spans of a launch, in the order of its steps.
pub(crate) fn spans(steps: &[Step]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for step in steps {
        match spans.last_mut() {
            Some(span) if span.slot == step.slot && span.position + span.count == step.position => span.count += 1,
            _ => spans.push(Span { slot: step.slot, position: step.position, count: 1 }),
        }
    }
    spans
}

/// Checks slot, position and tokens against the executor's limits. Requests were checked before
/// ([`crate::generation::Request::check`]): what fails here is nobody else's fault.
pub(crate) fn check(executor: &dyn Executor, slot: usize, position: usize, tokens: &[u32]) -> Result<(), LlmError> {
    if slot >= executor.slots() {
        return Err(LlmError::internal(format!("slot {slot} of {}", executor.slots())));
    }
    if tokens.is_empty() {
        return Err(LlmError::internal("no tokens"));
    }
    let end = position + tokens.len();
    if end > executor.max_len() {
        let help = "shorten it, or raise max_input_len or max_output_len in the recipe and build again".to_owned();
        let limit = executor.max_len();
        return Err(TextError::TooLong { what: "a sequence", have: end, limit, help }.into());
    }
    match tokens.iter().find(|token| **token as usize >= executor.vocab_size()) {
        Some(token) => Err(LlmError::internal(format!("token {token} is not in the vocabulary"))),
        None => Ok(()),
    }
}

/// A layer's keys and values of a slot's first positions, on their way to or from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exchange {
    pub(crate) slot: usize,
    pub(crate) layer: usize,
    pub(crate) positions: usize,
}

/// Checks what is to be exported or imported against the executor's limits; returns the number of bytes.
pub(crate) fn check_exchange(executor: &dyn Executor, exchange: Exchange) -> Result<usize, LlmError> {
    let Exchange { slot, layer, positions } = exchange;
    let fits = |layout: &KvLayout| {
        slot < executor.slots() && layer < layout.layers && (1..=executor.max_len()).contains(&positions)
    };
    let layout = executor.kv_layout().filter(fits);
    let bytes = layout.and_then(|layout| layout.layer_bytes(positions));
    bytes.ok_or_else(|| not_exchanged(slot, layer, positions))
}

/// Checks the steps of a launch.
pub(crate) fn check_launch(executor: &dyn Executor, steps: &[Step]) -> Result<(), LlmError> {
    let (count, most) = (steps.len(), executor.rows());
    if count == 0 || count > most {
        return Err(LlmError::internal(format!("a launch of {count} rows; it has 1 to {most}")));
    }
    for step in steps {
        check(executor, step.slot, step.position, &[step.token])?;
    }
    let spans = spans(steps);
    for (index, span) in spans.iter().enumerate() {
        if spans[..index].iter().any(|other| other.slot == span.slot) {
            let message = format!("slot {} is in one launch at positions that do not follow each other", span.slot);
            return Err(LlmError::internal(message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::WantedLogits;

    #[test]
    fn steps_of_a_slot_are_one_span() {
        let step = |slot, position| Step { slot, token: 1, position, wanted: WantedLogits::None };
        let span = |slot, position, count| Span { slot, position, count };
        assert_eq!(
            spans(&[step(2, 5), step(2, 6), step(0, 7), step(1, 0), step(1, 1)]),
            [span(2, 5, 2), span(0, 7, 1), span(1, 0, 2)]
        );
        // What a launch may not be is told apart from what it may.
        assert_eq!(spans(&[step(0, 5), step(0, 5)]), [span(0, 5, 1), span(0, 5, 1)]);
        assert_eq!(spans(&[step(0, 5), step(1, 0), step(0, 6)]).len(), 3);
    }
}
