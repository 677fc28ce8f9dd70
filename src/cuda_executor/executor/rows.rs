//! Several rows of one slot in a launch. The device computes one row of a slot at a time: the others go before it, each in a
//! launch of its own.

use super::GpuExecutor;
use super::step_logits::LaunchedStep;
use crate::executor::{LlmError, Step, WantedLogits};

impl GpuExecutor {
    /// Launches steps, of which the last of each slot are left to be collected.
    pub(super) fn launch_rows(&mut self, steps: &[Step]) -> Result<(), LlmError> {
        let is_last = |index: usize| steps.get(index + 1).is_none_or(|next| next.slot != steps[index].slot);
        let last: Vec<Step> = (0..steps.len()).filter(|index| is_last(*index)).map(|index| steps[index]).collect();
        if last.len() == steps.len() {
            return self.launch_together(steps);
        }
        let mut earlier = Vec::new();
        for (index, step) in steps.iter().enumerate().filter(|(index, _)| !is_last(*index)) {
            self.launch_together(std::slice::from_ref(step))?;
            // The next row's logits take the place of these.
            let wanted = step.wanted != WantedLogits::None;
            let row = self.launched.pop().filter(|_| wanted).map(|launched| launched.row);
            let logits = row.map(|row| self.state.fetch_rows(row, 1)).transpose()?;
            earlier.push((index, logits.unwrap_or_default()));
        }
        self.launch_together(&last)?;
        for (index, logits) in earlier {
            self.launched.insert(index, LaunchedStep { row: 0, wants_top: false, fetched: Some(logits) });
        }
        Ok(())
    }
}
