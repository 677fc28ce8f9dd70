//! Beginnings of prompts that return, kept over restarts: found when a request gets its slot, copied to the host a layer between
//! two launches, and put into slots when the server starts, or when a prompt comes that no slot has.

use super::generator::{Generator, Slot};
use super::kept_prefixes::{KeptPrefixes, SavedPrefix};
use super::prompt_history::{PromptHistory, common};
use super::request::Request;
use crate::executor::LlmError;
use crate::prefix_store::{Offered, PrefixCounts, PrefixStore, StoredPrefix};

/// Fewest positions that are worth reading from disk.
const WORTH_READING: usize = 48;
/// Tokens of the rehearsal's turn.
const TURN: usize = 48;

impl Generator {
    /// Keeps beginnings of prompts that return in `store`. Those that were used last are put into slots, as if they had just
    /// been read, and the last one's next turn is rehearsed: the first request is then answered as the later ones are.
    pub fn keep_prefixes(&mut self, mut store: PrefixStore) -> Result<(), LlmError> {
        let max_input = self.max_input();
        let mut stored = store.recent(usize::MAX).into_iter().filter(|prefix| prefix.tokens.len() <= max_input);
        for slot in 0..self.slots.len() {
            for prefix in stored.by_ref() {
                if self.import(&mut store, &prefix, slot)? {
                    let tokens = prefix.tokens.to_vec();
                    self.slots[slot] = Slot { tokens, scope: prefix.scope, active: None };
                    break;
                }
            }
        }
        let first = self.slots.first().map(|slot| (slot.tokens.clone(), slot.scope));
        if let Some((tokens, scope)) = first.filter(|(tokens, _)| !tokens.is_empty()) {
            self.rehearse(&tokens, scope)?;
        }
        self.kept = Some(KeptPrefixes { store, history: PromptHistory::default(), saved: None });
        Ok(())
    }

    /// Numbers for metrics; all 0 without a store.
    pub fn kept_prefixes(&self) -> PrefixCounts {
        self.kept.as_ref().map(|kept| kept.store.counts()).unwrap_or_default()
    }

    /// Answers a short turn after the beginning that slot 0 holds: what a device prepares when a shape is first used is then
    /// prepared.
    fn rehearse(&mut self, beginning: &[u32], scope: u64) -> Result<(), LlmError> {
        let held = beginning.len();
        let turn = TURN.min(held).min(self.max_input().saturating_sub(held));
        let prompt = [beginning, &beginning[..turn]].concat();
        self.submit(Request { prompt: prompt.clone(), scope, max_tokens: 2, ignore_end: true, ..Request::default() })?;
        let before = self.speculation;
        while !self.is_idle() {
            self.step()?;
        }
        self.speculation = before;
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.tokens.starts_with(&prompt)) {
            slot.tokens.truncate(held);
        }
        Ok(())
    }

    /// Reads a stored prefix into a slot, whose own tokens are gone. False if that was not possible; then it is empty.
    fn import(&mut self, store: &mut PrefixStore, prefix: &StoredPrefix, slot: usize) -> Result<bool, LlmError> {
        let (executor, positions) = (&mut self.executor, prefix.tokens.len());
        self.slots[slot].tokens.clear();
        let loaded = store.load(prefix, |layer, bytes| executor.import(slot, layer, positions, bytes));
        match loaded {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(error) if error.is_fatal() => return Err(error),
            Err(error) => tracing::warn!("a stored beginning cannot be used: {error}"),
        }
        self.executor.release(slot);
        Ok(false)
    }

    /// Reads the stored prefix that has the most of a prompt into a slot, if that is more than the `held` positions which
    /// slots have. Returns the number of positions of the prompt that the slot then has; `None` if it was left as it is.
    pub(super) fn restore(
        &mut self,
        slot: usize,
        (prompt, scope): (&[u32], u64),
        held: usize,
    ) -> Result<Option<usize>, LlmError> {
        let Some(mut kept) = self.kept.take() else { return Ok(None) };
        let (open, max_input) = (common(&self.shared, prompt), self.max_input());
        let usable = |stored: &StoredPrefix| {
            let visible = if stored.scope == scope { usize::MAX } else { open };
            // The last token's logits are wanted.
            let count = common(&stored.tokens, prompt).min(visible).min(prompt.len() - 1);
            if stored.tokens.len() <= max_input && count >= held + WORTH_READING { count } else { 0 }
        };
        let restored = match kept.store.longest(usable) {
            Some((prefix, count)) => {
                let restored = self.import(&mut kept.store, &prefix, slot);
                restored.map(|restored| Some(if restored { count } else { 0 }))
            }
            None => Ok(None),
        };
        self.kept = Some(kept);
        let restored = restored?;
        if let Some(count) = restored {
            self.slots[slot].tokens = prompt[..count].to_vec();
        }
        Ok(restored)
    }

    /// Notes the prompt of a request that gets a slot. A beginning that returns with it, and that is not stored, is saved.
    pub(super) fn note_prompt(&mut self, slot: usize, request: u64, (prompt, scope): (&[u32], u64)) {
        let Some(kept) = &mut self.kept else { return };
        let open = common(&self.shared, prompt);
        let visible = |other: u64| if other == scope { usize::MAX } else { open };
        let Some(count) = kept.history.add(scope, prompt, visible) else { return };
        let has = |stored: &StoredPrefix| common(&stored.tokens, &prompt[..count]).min(visible(stored.scope));
        // One at a time; it will return.
        if kept.saved.is_some() || kept.store.longest(has).is_some_and(|(_, have)| have == count) {
            return;
        }
        let tokens = prompt[..count].to_vec();
        kept.saved = kept.store.prepare(scope, tokens.clone()).map(|pending| SavedPrefix {
            pending,
            tokens,
            slot,
            request,
            is_sound: false,
            layer: 0,
            waiting: None,
        });
    }

    /// Copies a layer of the prefix that is being saved to the writer, between two launches.
    pub(super) fn save_some(&mut self) -> Result<(), LlmError> {
        let Self { kept: Some(kept), executor, slots, .. } = self else { return Ok(()) };
        let Some(saved) = &mut kept.saved else { return Ok(()) };
        let Slot { tokens, active, .. } = &slots[saved.slot];
        if !saved.is_sound && active.as_ref().is_some_and(|active| active.request == saved.request) {
            return Ok(()); // its prompt is being read
        }
        if !saved.is_sound || !tokens.starts_with(&saved.tokens) {
            kept.abandon();
            return Ok(());
        }
        let block = match saved.waiting.take() {
            Some(block) => Ok(block),
            None => executor.export(saved.slot, saved.layer, saved.tokens.len()),
        };
        match block.map(|block| kept.store.offer(&saved.pending, saved.layer, block)) {
            Ok(Offered::Taken) => {
                saved.layer += 1;
                if saved.layer == kept.store.layout().layers {
                    kept.saved = None;
                }
            }
            Ok(Offered::Later(block)) => saved.waiting = Some(block),
            Ok(Offered::Refused) => kept.saved = None,
            Err(error) if error.is_fatal() => return Err(error),
            Err(error) => {
                tracing::warn!("a beginning that returns is not kept: {error}");
                kept.abandon();
            }
        }
        Ok(())
    }
}
