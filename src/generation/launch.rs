//! Which rows go together into a launch: each answer's next token and drafts of those that follow, and what is left of
//! prompts, as far as that costs less than a pass of its own.

use super::active::{Active, Bounds, LaunchedRows};
use super::drafter::worth;
use super::generator::{Generator, Slot};
use crate::executor::{LlmError, Step, WantedLogits};

impl Generator {
    /// Slots whose unread tokens are rows of the next launch: the next token of every answer, and longer tails that fit,
    /// those of the oldest requests first, where rows beside the others cost less than a pass.
    fn riders(&self) -> Vec<usize> {
        let active = |slot: usize| Some((slot, self.slots[slot].active.as_ref()?));
        let mut waiting: Vec<(usize, &Active)> = (0..self.slots.len()).filter_map(active).collect();
        waiting.retain(|(_, active)| active.waits());
        waiting.sort_by_key(|(_, active)| (!active.steps(), active.request));
        let (mut riders, mut rows) = (Vec::new(), 0);
        for (slot, active) in waiting {
            let count = active.unread.len();
            let position = self.slots[slot].tokens.len();
            if active.steps() || self.is_cheaper_beside(rows, position, count) {
                riders.push(slot);
                rows += count;
            }
        }
        riders.sort_unstable();
        riders
    }

    /// Whether `count` tokens after `position` cost less as rows beside `rows` others than as passes.
    fn is_cheaper_beside(&self, rows: usize, position: usize, count: usize) -> bool {
        if rows + count > self.executor.rows() {
            return false;
        }
        let others = if rows == 0 { 0.0 } else { self.executor.launch_cost(rows) };
        self.executor.launch_cost(rows + count) - others < self.executor.prefill_cost(position, count)
    }

    /// Slots whose unread tokens take a pass: answers, whose next token waits for it, and the oldest prompt.
    pub(super) fn readers(&self) -> Vec<usize> {
        let riders = self.riders();
        let waiting = (0..self.slots.len()).filter(|slot| !riders.contains(slot));
        let waiting = waiting.filter_map(|slot| Some((slot, self.slots[slot].active.as_ref()?)));
        let (answers, prompts): (Vec<_>, Vec<_>) =
            waiting.filter(|(_, active)| active.waits()).partition(|(_, active)| active.goes_on());
        let oldest = prompts.into_iter().min_by_key(|(_, active)| active.request);
        answers.into_iter().chain(oldest).map(|(slot, _)| slot).collect()
    }

    /// Launches the next rows, if there are any.
    pub(super) fn launch(&mut self) -> Result<(), LlmError> {
        let riders = self.riders();
        let bounds = Bounds { text: &self.text, max_len: self.executor.max_len() };
        let unread = |slot: &usize| self.slots[*slot].active.as_ref().map_or(0, |active| active.unread.len());
        let mut rows: usize = riders.iter().map(unread).sum();
        let (mut tokens, most) = (riders.len() as f64, self.executor.rows());
        let mut steps = Vec::with_capacity(rows);
        for slot in riders {
            let Slot { tokens: cached, active: Some(active), .. } = &self.slots[slot] else { continue };
            let mut drafted = active.draft(most.saturating_sub(rows), cached.len(), bounds);
            let (count, gain) = worth(&drafted, (rows, tokens), |rows| self.executor.launch_cost(rows));
            drafted.truncate(count);
            (rows, tokens) = (rows + count, tokens + gain);
            let read = active.unread.len();
            let all = active.unread.iter().copied().chain(drafted.iter().map(|draft| draft.token));
            for (row, (token, position)) in all.zip(cached.len()..).enumerate() {
                let wanted = if row + 1 < read { WantedLogits::None } else { active.wanted() };
                steps.push(Step { slot, token, position, wanted });
            }
            self.launched.push(LaunchedRows { slot, request: active.request, read, drafted });
        }
        if steps.is_empty() { Ok(()) } else { self.executor.launch(&steps) }
    }
}
