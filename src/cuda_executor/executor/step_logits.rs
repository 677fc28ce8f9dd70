//! The logits of decode steps that our kernels computed: the largest were found there, all are read when somebody asks.

use super::super::state::DeviceState;
use crate::executor::{LlmError, StepLogits, TopLogits, not_launched};

/// A step that was launched: its row of logits on the device, if it has one, and whether the largest are wanted.
#[derive(Debug, Clone)]
pub(super) struct LaunchedStep {
    pub(super) row: Option<usize>,
    pub(super) wants_top: bool,
    /// Its logits, if they are on the host already.
    pub(super) fetched: Option<Vec<f32>>,
}

/// See the module.
pub(super) struct DeviceLogits<'a> {
    pub(super) state: &'a mut DeviceState,
    pub(super) steps: &'a [LaunchedStep],
    /// Of each row.
    pub(super) found: Vec<TopLogits>,
    /// The row that was read last.
    pub(super) row: Vec<f32>,
}

impl StepLogits for DeviceLogits<'_> {
    fn top(&self, step: usize) -> Option<&TopLogits> {
        let step = self.steps.get(step).filter(|step| step.wants_top)?;
        self.found.get(step.row?)
    }

    fn all(&mut self, step: usize) -> Result<&mut [f32], LlmError> {
        let LaunchedStep { row, fetched, .. } = self.steps.get(step).ok_or_else(|| not_launched(step))?;
        self.row = match (fetched, row) {
            (Some(fetched), _) => fetched.clone(),
            (None, Some(row)) => self.state.fetch_rows(*row, 1)?,
            (None, None) => return Err(not_launched(step)),
        };
        Ok(&mut self.row)
    }
}
