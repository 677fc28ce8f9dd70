//! What a launch of decode steps is made of: a row for each slot, or, where several steps are of one slot, a table of
//! rows.

use std::ops::Range;

use super::super::decode_kernel::DecodeProgram;
use super::super::decode_kernel::abi::BLOCK_ROWS;
use super::super::decode_kernel::row_class::RowClass;
use super::super::decode_kernel::rows::TableRow;
use super::super::state::BatchRow;
use super::GpuExecutor;
use super::path::{DecodePath, StepKey, StepPath};
use super::step_logits::LaunchedStep;
use crate::convert::LayerShape;
use crate::executor::{LlmError, Step, WantedLogits, spans};

/// The steps of a part of a prompt at `position`, of which some want all logits.
pub(super) fn steps_of(slot: usize, position: usize, tokens: &[u32], wanted: &Range<usize>) -> Vec<Step> {
    let step = |(at, token): (usize, &u32)| {
        let wanted = if wanted.contains(&at) { WantedLogits::All } else { WantedLogits::None };
        Step { slot, token: *token, position: position + at, wanted }
    };
    tokens.iter().enumerate().map(step).collect()
}

/// 1 / temperature for the sums of a step's largest logits.
fn inverse_temperature(wanted: WantedLogits) -> f32 {
    match wanted {
        WantedLogits::Top { temperature } if temperature > 0.0 => 1.0 / temperature,
        WantedLogits::Top { .. } | WantedLogits::All | WantedLogits::None => 1.0,
    }
}

/// Number of rows of logits to compute for the `wanted` ones: few different numbers, since each is a graph of its own.
pub(super) fn padded_wanted(wanted: usize, class: RowClass) -> usize {
    if wanted <= 1 { wanted } else { wanted.next_multiple_of(BLOCK_ROWS).min(class.most()) }
}

impl GpuExecutor {
    /// The class of the launch of `steps`: without a table if each is of a slot of its own and they are few. `None` if
    /// several are of one slot and our kernel, which may not support the model, has no table for so many.
    pub(super) fn class_of(&self, steps: &[Step]) -> Option<RowClass> {
        let is_apart = spans(steps).iter().all(|span| span.count == 1);
        if is_apart && steps.len() <= BLOCK_ROWS {
            return Some(RowClass::Apart);
        }
        let classes = self.program.as_ref().map(DecodeProgram::shared_classes).unwrap_or_default();
        let fitting = classes.into_iter().find(|class| steps.len() <= class.most());
        fitting.or_else(|| is_apart.then_some(RowClass::Apart))
    }

    /// Launches steps of different slots.
    pub(super) fn launch_apart(&mut self, steps: &[Step]) -> Result<Vec<LaunchedStep>, LlmError> {
        let (batch, first) = if let [step] = steps { (1, step.slot) } else { (self.options.shapes.slots, 0) };
        let engines = StepPath { path: DecodePath::Engines, chunk: 1 };
        let StepPath { path, chunk } = self.paths.get(&batch).copied().unwrap_or(engines);
        let row = |step: &Step| if batch == 1 { 0 } else { step.slot };
        let mut batch_rows = vec![BatchRow::default(); batch];
        for step in steps {
            let inverse_temperature = inverse_temperature(step.wanted);
            batch_rows[row(step)] = BatchRow { cached: step.position, count: 1, inverse_temperature };
        }
        let tokens: Vec<u32> = steps.iter().map(|step| step.token).collect();
        let rows: Vec<usize> = steps.iter().map(|step| row(step) * chunk).collect();
        // Rows of the kernel's do not meet each other.
        self.state.embed(&tokens, &rows, 0..if path == DecodePath::Engines { batch * chunk } else { 0 })?;
        self.state.place(&batch_rows)?;
        let shape = LayerShape { batch, chunk, cache: self.state.cache.capacity };
        self.replay(StepKey { shape, path, slot: first })?;
        let launched = |step: &Step| {
            let wants_top = matches!(step.wanted, WantedLogits::Top { .. });
            let row = (step.wanted != WantedLogits::None).then(|| row(step));
            LaunchedStep { row, wants_top, fetched: None }
        };
        Ok(steps.iter().map(launched).collect())
    }

    /// Launches steps of which several are of one slot, where a launch takes one of each: the last of each slot are left
    /// to be collected, the others go before them.
    pub(super) fn launch_by_turns(&mut self, steps: &[Step]) -> Result<Vec<LaunchedStep>, LlmError> {
        let is_last = |index: usize| steps.get(index + 1).is_none_or(|next| next.slot != steps[index].slot);
        let mut earlier = Vec::new();
        for (index, step) in steps.iter().enumerate().filter(|(index, _)| !is_last(*index)) {
            // The next row's logits take the place of these.
            let row = self.launch_apart(std::slice::from_ref(step))?.first().and_then(|launched| launched.row);
            let fetched = row.map(|row| self.state.fetch_rows(row, 1)).transpose()?;
            earlier.push((index, LaunchedStep { row: None, wants_top: false, fetched }));
        }
        let last: Vec<Step> = (0..steps.len()).filter(|index| is_last(*index)).map(|index| steps[index]).collect();
        let mut launched = self.launch_apart(&last)?;
        for (index, step) in earlier {
            launched.insert(index, step);
        }
        Ok(launched)
    }

    /// Launches steps of any slots, those of a slot at consecutive positions.
    pub(super) fn launch_rows(&mut self, steps: &[Step], class: RowClass) -> Result<Vec<LaunchedStep>, LlmError> {
        // Rows of a slot follow each other.
        let mut order: Vec<usize> = (0..steps.len()).collect();
        order.sort_by_key(|index| steps[*index].slot);
        let mut launched = vec![LaunchedStep { row: None, wants_top: false, fetched: None }; steps.len()];
        let (mut rows, mut tokens, mut with_logits) = (Vec::new(), Vec::new(), Vec::new());
        for index in order {
            let Step { slot, token, position, wanted } = steps[index];
            let is_wanted = wanted != WantedLogits::None;
            rows.push(TableRow { slot, position, is_wanted });
            tokens.push(token);
            if is_wanted {
                let wants_top = matches!(wanted, WantedLogits::Top { .. });
                launched[index] = LaunchedStep { row: Some(with_logits.len()), wants_top, fetched: None };
                with_logits.push(BatchRow { inverse_temperature: inverse_temperature(wanted), ..BatchRow::default() });
            }
        }
        let places: Vec<usize> = (0..rows.len()).collect();
        self.state.embed(&tokens, &places, 0..0)?;
        with_logits.resize(padded_wanted(with_logits.len(), class), BatchRow::default());
        self.state.place(&with_logits)?;
        self.replay_rows(class, &rows, with_logits.len())?;
        Ok(launched)
    }

    /// Runs a launch of embedded rows, with so many rows of logits.
    pub(super) fn replay_rows(&mut self, class: RowClass, rows: &[TableRow], logits: usize) -> Result<(), LlmError> {
        if let Some(program) = &mut self.program {
            program.place_rows(&self.state, class, rows)?;
        }
        let shape = LayerShape { batch: logits, chunk: 1, cache: self.state.cache.capacity };
        Ok(self.replay(StepKey { shape, path: DecodePath::Rows(class), slot: 0 })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_prompt_is_steps_at_consecutive_positions() {
        let steps = steps_of(2, 40, &[7, 8, 9], &(2..3));
        let want = |at: usize, token, wanted| Step { slot: 2, token, position: 40 + at, wanted };
        let [none, all] = [WantedLogits::None, WantedLogits::All];
        assert_eq!(steps, [want(0, 7, none), want(1, 8, none), want(2, 9, all)]);
    }

    #[test]
    fn rows_of_logits_come_in_few_numbers() {
        let padded = |class| [0, 1, 2, 8, 9, 31, 32].map(|wanted| padded_wanted(wanted, class));
        assert_eq!(padded(RowClass::Thirty2), [0, 1, 8, 8, 16, 32, 32]);
        assert_eq!(padded_wanted(3, RowClass::Eight), 8);
    }
}
