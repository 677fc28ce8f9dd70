//! Generates answers: takes requests and returns text as it is generated. Sequences are decoded together, each in a
//! slot of the executor; prompts are read a pass at a time between decode steps, or as rows of these (`launch.rs`). The
//! prefix of a new prompt that any slot has cached, or a store on disk (`keeping.rs`), is not computed again.

use std::sync::Arc;

use super::active::{Active, Bounds, LaunchedRows, VerifiedRows};
use super::drafter::DraftTexts;
use super::kept_prefixes::KeptPrefixes;
use super::ngram_index::NgramIndex;
use super::prompt_history::common;
use super::queue::Queue;
use super::request::{Piece, Request, RequestLimits, Speculation};
use crate::executor::{Executor, LlmError, Rows};
use crate::text::Text;

#[derive(Default)]
pub(super) struct Slot {
    /// The tokens in the executor's cache.
    pub(super) tokens: Vec<u32>,
    /// Scope of the tokens, see [`Request::scope`].
    pub(super) scope: u64,
    pub(super) active: Option<Active>,
}

/// Fewest positions that are worth copying from another slot.
const WORTH_COPYING: usize = 16;
/// Most prompt tokens of a pass while other answers wait for their next token.
const BESIDE: usize = 512;
/// Cost of overwriting a cached position, relative to the benefit of reusing one.
const LOSS: usize = 4;

/// Generates the answers of a language model.
pub struct Generator {
    pub(super) executor: Box<dyn Executor>,
    pub(super) text: Arc<Text>,
    max_input: usize,
    pub(super) slots: Vec<Slot>,
    queue: Queue,
    requests: u64,
    /// The last request that [`Generator::begin`] was given.
    pub(super) begun: Option<u64>,
    /// What was launched, in the order of its rows.
    pub(super) launched: Vec<LaunchedRows>,
    /// Tokens of a prefix that all scopes may share.
    pub(super) shared: Vec<u32>,
    /// What new answers are drafted from besides their own texts; `None` if nothing is drafted.
    drafts: Option<DraftTexts>,
    pub(super) speculation: Speculation,
    /// Where prefixes are kept over restarts.
    pub(super) kept: Option<KeptPrefixes>,
}

impl Generator {
    /// Generates with `executor`; prompts have at most `max_input` tokens.
    pub fn new(executor: Box<dyn Executor>, text: Arc<Text>, max_input: usize) -> Self {
        let slots = (0..executor.slots()).map(|_| Slot::default()).collect();
        let (queue, requests, launched, shared) = (Queue::default(), 0, Vec::new(), Vec::new());
        let (begun, kept) = (None, None);
        let (drafts, speculation) = (Some(DraftTexts::default()), Speculation::default());
        Self { executor, text, max_input, slots, queue, requests, begun, launched, shared, drafts, speculation, kept }
    }

    /// Drafts new answers from this text too, which they often quote.
    pub fn draft_from(&mut self, tokens: &[u32]) {
        let shared = (!tokens.is_empty()).then(|| Arc::new(NgramIndex::new(tokens)));
        self.drafts = Some(DraftTexts { shared, ..DraftTexts::default() });
    }

    /// Takes a step for every token of new answers, which are the same: nothing is drafted, and the model is asked even where
    /// a grammar leaves no choice.
    pub fn without_speculation(&mut self) {
        self.drafts = None;
    }

    /// Tokens of all answers so far that took no step of their own.
    pub fn speculation(&self) -> Speculation {
        self.speculation
    }

    /// Tokenizer, chat template and sampling defaults of the model.
    pub fn text(&self) -> &Arc<Text> {
        &self.text
    }

    /// The executor.
    pub fn executor(&mut self) -> &mut dyn Executor {
        &mut *self.executor
    }

    /// Longest prompt in tokens.
    pub fn max_input(&self) -> usize {
        self.max_input.min(self.executor.max_len() - 1)
    }

    /// Limits of requests.
    pub fn limits(&self) -> RequestLimits {
        RequestLimits { max_input: self.max_input(), vocabulary: self.executor.vocab_size() }
    }

    /// Lets all scopes share cached prefixes of these tokens, such as a public system prompt.
    pub fn share(&mut self, beginning: Vec<u32>) {
        self.shared = beginning;
    }

    /// Number of requests that wait for a slot, and that have one.
    pub fn load(&self) -> (usize, usize) {
        (self.queue.len(), self.slots.iter().filter(|slot| slot.active.is_some()).count())
    }

    /// Checks and queues a request; returns its number.
    pub fn submit(&mut self, request: Request) -> Result<u64, LlmError> {
        request.check(&self.limits())?;
        self.requests += 1;
        self.queue.push(self.requests, request);
        Ok(self.requests)
    }

    /// Removes a request, wherever it is. Its slot's cache stays for later requests.
    pub fn cancel(&mut self, request: u64) {
        self.queue.remove(request);
        for slot in &mut self.slots {
            slot.active.take_if(|active| active.request == request);
        }
    }

    /// Whether there is nothing to do: no request, and nothing to save.
    pub fn is_idle(&self) -> bool {
        let saves = self.kept.as_ref().is_some_and(KeptPrefixes::has_work);
        self.load() == (0, 0) && self.launched.is_empty() && !saves
    }

    /// Samples tokens for every running answer, gives free slots to waiting requests, reads what has to be read in a pass of
    /// its own, and launches the next rows. The sampled tokens are detokenised while these are computed.
    pub fn step(&mut self) -> Result<Vec<Piece>, LlmError> {
        self.collect()?;
        self.save_some()?;
        while self.slots.iter().any(|slot| slot.active.is_none())
            && let Some((number, request)) = self.queue.pop(&self.clients())
        {
            self.admit(number, request)?;
        }
        for slot in self.readers() {
            if let Err(error) = self.read(slot) {
                self.fail(slot, error)?;
            }
        }
        if let Err(error) = self.launch() {
            if error.is_fatal() {
                return Err(error);
            }
            for LaunchedRows { slot, .. } in std::mem::take(&mut self.launched) {
                self.fail(slot, error.clone())?;
            }
        }
        self.forget_spoilt()?;
        let mut pieces = Vec::new();
        for slot in &mut self.slots {
            let said = slot.active.as_mut().map(|active| active.speak(&self.text)).unwrap_or_default();
            if said.last().is_some_and(|piece| piece.finish.is_some() || piece.failure.is_some()) {
                slot.active = None;
            }
            pieces.extend(said);
        }
        if let Some(kept) = &mut self.kept {
            kept.hear(&pieces);
        }
        for LaunchedRows { slot, request, drafted, .. } in &self.launched {
            let active = self.slots[*slot].active.as_mut();
            if let Some(active) = active.filter(|active| active.request == *request) {
                active.prepare(drafted);
            }
        }
        if self.load() == (0, 0) {
            self.collect()?; // a stop string was met after the next token had been begun
        }
        Ok(pieces)
    }

    /// Empties slots whose cache contains NaN, which would affect later requests.
    fn forget_spoilt(&mut self) -> Result<(), LlmError> {
        for at in 0..self.slots.len() {
            if self.slots[at].active.as_ref().is_some_and(Active::is_spoilt) {
                self.slots[at].tokens.clear();
                self.executor.forget(at)?;
            }
        }
        Ok(())
    }

    /// Ends one answer with its own error; an executor's fatal error is returned.
    fn fail(&mut self, slot: usize, error: LlmError) -> Result<(), LlmError> {
        if error.is_fatal() {
            return Err(error);
        }
        if let Some(active) = &mut self.slots[slot].active {
            active.fail(error);
        }
        Ok(())
    }

    /// Clients of the requests in slots.
    fn clients(&self) -> Vec<u64> {
        self.slots.iter().filter_map(|slot| Some(slot.active.as_ref()?.client)).collect()
    }

    /// Waits for the launched rows and samples from their logits. Those of cancelled answers are ignored.
    pub(super) fn collect(&mut self) -> Result<(), LlmError> {
        if self.launched.is_empty() {
            return Ok(());
        }
        let bounds = Bounds { text: &self.text, max_len: self.executor.max_len() };
        let mut logits = self.executor.collect()?;
        let mut row = 0;
        for LaunchedRows { slot, request, read, drafted } in self.launched.drain(..) {
            let rows = VerifiedRows { first: row + read - 1, drafted: &drafted };
            row += read + drafted.len();
            let Slot { tokens, active, .. } = &mut self.slots[slot];
            if let Some(active) = active.as_mut().filter(|active| active.request == request && active.waits()) {
                tokens.extend(active.unread.drain(..read));
                self.speculation += active.verify(tokens, rows, &mut *logits, bounds)?;
            }
        }
        Ok(())
    }

    /// Gives a request the free slot that has most of its prompt cached and loses the least by it.
    fn admit(&mut self, number: u64, request: Request) -> Result<(), LlmError> {
        let prompt = request.prompt;
        let same = |tokens: &[u32]| common(tokens, &prompt);
        let open = same(&self.shared);
        let visible = |slot: &Slot| if slot.scope == request.scope { usize::MAX } else { open };
        // The last token's logits are wanted.
        let usable = |slot: &Slot| same(&slot.tokens).min(visible(slot)).min(prompt.len() - 1);
        let held: Vec<usize> = self.slots.iter().map(usable).collect();
        let gain = |slot: &usize| (LOSS * held[*slot]) as i64 - (self.slots[*slot].tokens.len() - held[*slot]) as i64;
        let free = (0..self.slots.len()).filter(|slot| self.slots[*slot].active.is_none());
        let place = free.max_by_key(gain).unwrap_or_default();
        let richest = (0..self.slots.len()).max_by_key(|slot| held[*slot]).unwrap_or_default();
        let (mut reused, mut elsewhere) = (held[place], held[richest]);
        if let Some(count) = self.restore(place, (&prompt, request.scope), reused.max(elsewhere))? {
            reused = count;
            // What could not be read has emptied the slot, and no other.
            elsewhere = if count > 0 || richest == place { 0 } else { elsewhere };
        }
        if elsewhere >= reused + WORTH_COPYING {
            self.executor.copy(richest, place, elsewhere)?;
            self.slots[place].tokens = prompt[..elsewhere].to_vec();
            reused = elsewhere;
        } else if reused == 0 {
            self.executor.release(place);
        }
        self.note_prompt(place, number, (&prompt, request.scope));
        let drafts = self.drafts.clone().map(|texts| (texts, self.executor.vocab_size()));
        let slot = &mut self.slots[place];
        slot.tokens.truncate(reused);
        slot.scope = request.scope;
        slot.active = Some(Active::new(number, Request { prompt, ..request }, reused, drafts));
        Ok(())
    }

    /// Reads one pass of what a slot's model has not read; after the last pass samples a token.
    fn read(&mut self, slot: usize) -> Result<(), LlmError> {
        let beside = self.slots.iter().flat_map(|slot| &slot.active).any(Active::goes_on);
        let bounds = Bounds { text: &self.text, max_len: self.executor.max_len() };
        let Slot { tokens, active: Some(active), .. } = &mut self.slots[slot] else { return Ok(()) };
        let (done, remaining) = (tokens.len(), active.unread.len());
        let most = if beside { remaining.min(BESIDE) } else { remaining };
        let count = self.executor.pass(done, most).clamp(1, most);
        let rows = if count == remaining { Rows::Last } else { Rows::None };
        let mut logits = self.executor.prefill(slot, done, &active.unread[..count], rows)?;
        tokens.extend(active.unread.drain(..count));
        if count == remaining {
            self.speculation += active.begin(&mut logits, done + count, bounds);
        }
        Ok(())
    }
}
