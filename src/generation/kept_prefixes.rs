//! The store of prefixes of a generator, and the one that is on its way to it; `keeping.rs` moves it.

use std::sync::Arc;

use super::prompt_history::PromptHistory;
use super::request::Piece;
use crate::prefix_store::{PendingPrefix, PrefixStore};

/// See the module.
pub(super) struct KeptPrefixes {
    pub(super) store: PrefixStore,
    pub(super) history: PromptHistory,
    pub(super) saved: Option<SavedPrefix>,
}

/// A prefix that is copied to disk from the slot that holds it.
pub(super) struct SavedPrefix {
    pub(super) pending: Arc<PendingPrefix>,
    pub(super) tokens: Vec<u32>,
    pub(super) slot: usize,
    /// The request that brought it.
    pub(super) request: u64,
    /// Whether that request's first token was sampled, and so all keys and values are numbers.
    pub(super) is_sound: bool,
    /// The next layer, and its bytes if the disk was busy.
    pub(super) layer: usize,
    pub(super) waiting: Option<Vec<u8>>,
}

impl KeptPrefixes {
    /// Whether a step has something to do even without requests.
    pub(super) fn has_work(&self) -> bool {
        self.saved.as_ref().is_some_and(|saved| saved.is_sound && saved.waiting.is_none())
    }

    /// Notes whether the request that brought the saved prefix was answered, or failed.
    pub(super) fn hear(&mut self, pieces: &[Piece]) {
        if let Some(saved) = &mut self.saved {
            for piece in pieces.iter().filter(|piece| piece.request == saved.request) {
                saved.is_sound |= piece.failure.is_none();
            }
        }
    }

    /// Gives up the prefix that is being saved.
    pub(super) fn abandon(&mut self) {
        if let Some(saved) = self.saved.take() {
            self.store.abandon(&saved.pending);
        }
    }
}
