//! Generates answers: takes requests and returns text as it is generated. Sequences are decoded together, each in a
//! slot of the executor; prompts are read a pass at a time between decode steps. The prefix of a new prompt that any
//! slot has cached is not computed again.

use std::sync::Arc;
use std::time::Instant;

use super::grammar::Grammar;
use super::queue::Queue;
use super::request::{Finish, Piece, Request, RequestLimits, Usage};
use super::sampler::{Choice, Sampler};
use crate::executor::{Executor, LlmError, Rows, Step, WantedLogits};
use crate::text::{StopFinder, Text, TextStream};

struct Active {
    request: u64,
    client: u64,
    /// Prompt tokens that are not read yet; empty while decoding.
    prompt: Vec<u32>,
    sampler: Sampler,
    grammar: Option<Grammar>,
    stream: TextStream,
    finder: StopFinder,
    max_tokens: usize,
    ignore_end: bool,
    /// The last token.
    next: u32,
    /// The sampled token that has not yet been detokenised, or the error that ends this answer.
    chosen: Option<Result<Choice, LlmError>>,
    /// Whether the sampled token is the last, by the model, the grammar or the token limit.
    complete: bool,
    full: bool,
    usage: Usage,
    /// When the request left the queue; from the first token on, when that was sampled.
    since: Instant,
}

#[derive(Default)]
struct Slot {
    /// The tokens in the executor's cache.
    tokens: Vec<u32>,
    /// Scope of the tokens, see [`Request::scope`].
    scope: u64,
    active: Option<Active>,
}

/// Fewest positions that are worth copying from another slot.
const WORTH_COPYING: usize = 16;
/// Most prompt tokens of a pass while other answers wait for their next token.
const BESIDE: usize = 512;
/// Cost of overwriting a cached position, relative to the benefit of reusing one.
const LOSS: usize = 4;

/// Generates the answers of a language model.
pub struct Generator {
    executor: Box<dyn Executor>,
    text: Arc<Text>,
    max_input: usize,
    slots: Vec<Slot>,
    queue: Queue,
    requests: u64,
    /// The last request that [`Generator::begin`] was given.
    pub(super) begun: Option<u64>,
    /// (slot, request) of the launched decode steps.
    launched: Vec<(usize, u64)>,
    /// Tokens of a prefix that all scopes may share.
    shared: Vec<u32>,
}

impl Generator {
    /// Generates with `executor`; prompts have at most `max_input` tokens.
    pub fn new(executor: Box<dyn Executor>, text: Arc<Text>, max_input: usize) -> Self {
        let slots = (0..executor.slots()).map(|_| Slot::default()).collect();
        let (queue, requests, launched, shared) = (Queue::default(), 0, Vec::new(), Vec::new());
        Self { executor, text, max_input, slots, queue, requests, begun: None, launched, shared }
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

    /// Whether there is no request.
    pub fn is_idle(&self) -> bool {
        self.load() == (0, 0) && self.launched.is_empty()
    }

    /// Samples a token for every running answer, gives free slots to waiting requests, reads one pass of the oldest
    /// prompt, and launches the next decode step. The sampled tokens are detokenised while it runs.
    pub fn step(&mut self) -> Result<Vec<Piece>, LlmError> {
        self.collect()?;
        while self.slots.iter().any(|slot| slot.active.is_none())
            && let Some((number, request)) = self.queue.pop(&self.clients())
        {
            self.admit(number, request)?;
        }
        let reading = |slot: &usize| {
            let active = self.slots[*slot].active.as_ref()?;
            (!active.prompt.is_empty()).then_some(active.request)
        };
        let oldest = (0..self.slots.len()).filter(|slot| reading(slot).is_some()).min_by_key(|slot| reading(slot));
        if let Some(slot) = oldest
            && let Err(error) = self.read(slot)
        {
            self.fail(slot, error)?;
        }
        let mut steps = Vec::new();
        for (slot, Slot { tokens, active, .. }) in self.slots.iter().enumerate() {
            if let Some(active) = active.as_ref().filter(|active| active.goes_on()) {
                steps.push(Step { slot, token: active.next, position: tokens.len(), wanted: active.wanted() });
                self.launched.push((slot, active.request));
            }
        }
        if !steps.is_empty()
            && let Err(error) = self.executor.launch(&steps)
        {
            if error.is_fatal() {
                return Err(error);
            }
            for (slot, _) in std::mem::take(&mut self.launched) {
                self.fail(slot, error.clone())?;
            }
        }
        self.forget_spoilt()?;
        let mut pieces = Vec::new();
        for slot in &mut self.slots {
            let Some(piece) = slot.active.as_mut().and_then(|active| active.speak(&self.text)) else { continue };
            if piece.finish.is_some() || piece.failure.is_some() {
                slot.active = None;
            }
            pieces.push(piece);
        }
        if self.load() == (0, 0) {
            self.collect()?; // a stop string was met after the next token had been begun
        }
        Ok(pieces)
    }

    /// Empties slots whose cache contains NaN, which would affect later requests.
    fn forget_spoilt(&mut self) -> Result<(), LlmError> {
        let spoilt = |slot: &Slot| {
            let chosen = slot.active.as_ref().and_then(|active| active.chosen.as_ref());
            matches!(chosen, Some(Err(LlmError::NotFinite)))
        };
        for at in 0..self.slots.len() {
            if spoilt(&self.slots[at]) {
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
            active.prompt.clear();
            active.chosen = Some(Err(error));
        }
        Ok(())
    }

    /// Clients of the requests in slots.
    fn clients(&self) -> Vec<u64> {
        self.slots.iter().filter_map(|slot| Some(slot.active.as_ref()?.client)).collect()
    }

    /// Waits for the launched steps and samples from their logits. Steps of cancelled answers are ignored.
    pub(super) fn collect(&mut self) -> Result<(), LlmError> {
        if self.launched.is_empty() {
            return Ok(());
        }
        let max_len = self.executor.max_len();
        let mut logits = self.executor.collect()?;
        for (step, (slot, request)) in self.launched.drain(..).enumerate() {
            let Slot { tokens, active, .. } = &mut self.slots[slot];
            if let Some(active) = active.as_mut().filter(|active| active.request == request) {
                tokens.push(active.next);
                let last = tokens.len() + 1 >= max_len;
                let choice = match logits.top(step).and_then(|top| active.sampler.choose_from_top(top)) {
                    Some(choice) => Ok(choice),
                    None => active.choose(logits.all(step)?),
                };
                active.take(&self.text, choice, last);
            }
        }
        Ok(())
    }

    /// Gives a request the free slot that has most of its prompt cached and loses the least by it.
    fn admit(&mut self, number: u64, request: Request) -> Result<(), LlmError> {
        let prompt = request.prompt;
        let same = |tokens: &[u32]| tokens.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
        let open = same(&self.shared);
        let visible = |slot: &Slot| if slot.scope == request.scope { usize::MAX } else { open };
        // The last token's logits are wanted.
        let usable = |slot: &Slot| same(&slot.tokens).min(visible(slot)).min(prompt.len() - 1);
        let held: Vec<usize> = self.slots.iter().map(usable).collect();
        let gain = |slot: &usize| (LOSS * held[*slot]) as i64 - (self.slots[*slot].tokens.len() - held[*slot]) as i64;
        let free = (0..self.slots.len()).filter(|slot| self.slots[*slot].active.is_none());
        let place = free.max_by_key(gain).unwrap_or_default();
        let richest = (0..self.slots.len()).max_by_key(|slot| held[*slot]).unwrap_or_default();
        let (mut reused, elsewhere) = (held[place], held[richest]);
        if elsewhere >= reused + WORTH_COPYING {
            self.executor.copy(richest, place, elsewhere)?;
            self.slots[place].tokens = prompt[..elsewhere].to_vec();
            reused = elsewhere;
        } else if reused == 0 {
            self.executor.release(place);
        }
        let slot = &mut self.slots[place];
        slot.tokens.truncate(reused);
        slot.scope = request.scope;
        slot.active = Some(Active {
            request: number,
            client: request.client,
            sampler: Sampler::new(request.sampling, &prompt),
            grammar: request.grammar,
            stream: TextStream::new(request.special),
            finder: StopFinder::new(request.stop),
            max_tokens: request.max_tokens,
            ignore_end: request.ignore_end,
            next: 0,
            chosen: None,
            complete: false,
            full: false,
            usage: Usage { prompt: prompt.len(), reused, ..Usage::default() },
            prompt,
            since: Instant::now(),
        });
        Ok(())
    }

    /// Reads one pass of a slot's prompt; after the last pass samples the first token.
    fn read(&mut self, slot: usize) -> Result<(), LlmError> {
        let beside = self.slots.iter().flat_map(|slot| &slot.active).any(Active::goes_on);
        let Slot { tokens, active: Some(active), .. } = &mut self.slots[slot] else { return Ok(()) };
        let done = tokens.len();
        let remaining = active.prompt.len() - done;
        let most = if beside { remaining.min(BESIDE) } else { remaining };
        let count = self.executor.pass(done, most).clamp(1, most);
        let rows = if count == remaining { Rows::Last } else { Rows::None };
        let new = &active.prompt[done..done + count];
        let mut logits = self.executor.prefill(slot, done, new, rows)?;
        tokens.extend_from_slice(new);
        if count == remaining {
            active.prompt = Vec::new();
            let choice = active.choose(&mut logits);
            active.take(&self.text, choice, tokens.len() + 1 >= self.executor.max_len());
        }
        Ok(())
    }
}

impl Active {
    /// Whether a token has been sampled and another will follow.
    fn goes_on(&self) -> bool {
        self.prompt.is_empty() && !self.complete && !self.full && !matches!(self.chosen, Some(Err(_)))
    }

    /// What its next token is chosen from first: a grammar looks at all tokens.
    fn wanted(&self) -> WantedLogits {
        match self.grammar {
            Some(_) => WantedLogits::All,
            None => WantedLogits::Top { temperature: self.sampler.temperature() },
        }
    }

    fn choose(&mut self, logits: &mut [f32]) -> Result<Choice, LlmError> {
        self.sampler.choose(logits, self.grammar.as_mut())
    }

    /// Takes the sampled token; `last` if there is no room for another.
    fn take(&mut self, text: &Text, choice: Result<Choice, LlmError>, last: bool) {
        let now = Instant::now();
        if self.usage.answer == 0 {
            self.usage.first = now - self.since;
            self.since = now;
        }
        self.usage.answer += 1;
        self.usage.rest = now - self.since;
        self.full = last || self.usage.answer == self.max_tokens;
        let ended = |token: u32| !self.ignore_end && text.stop_tokens.contains(&token);
        self.chosen = Some(choice.and_then(|choice| {
            self.next = choice.token;
            self.complete = ended(choice.token)
                || match &mut self.grammar {
                    Some(grammar) => grammar.accept(choice.token)?,
                    None => false,
                };
            Ok(choice)
        }));
    }

    /// Detokenises the sampled token. An error ends this answer only.
    fn speak(&mut self, text: &Text) -> Option<Piece> {
        let said = self.chosen.take()?.and_then(|choice| Ok((self.words(text, choice.token)?, choice)));
        let (request, usage) = (self.request, self.usage);
        Some(match said {
            Ok(((text, stopped), choice)) => {
                let finish = match (stopped || self.complete, self.full) {
                    (true, _) => Some(Finish::Stop),
                    (false, true) => Some(Finish::Length),
                    (false, false) => None,
                };
                Piece { request, text, choice, usage, finish, failure: None }
            }
            Err(error) => {
                let choice = Choice { token: self.next, logprob: None, top: Vec::new() };
                Piece { request, text: String::new(), choice, usage, finish: None, failure: Some(error) }
            }
        })
    }

    /// The text that becomes certain with a token, and whether a stop string was found.
    fn words(&mut self, text: &Text, token: u32) -> Result<(String, bool), LlmError> {
        let (mut shown, mut stopped) = (String::new(), false);
        if self.ignore_end || !text.stop_tokens.contains(&token) {
            (shown, stopped) = self.finder.push(&self.stream.push(text, token)?);
        }
        if !stopped && (self.complete || self.full) {
            let (rest, found) = self.finder.push(&self.stream.finish(text)?);
            shown.push_str(&rest);
            stopped = found;
            if !stopped {
                shown.push_str(&self.finder.finish());
            }
        } else if let Some(grammar) = self.grammar.as_mut().filter(|_| !stopped) {
            grammar.prepare()?;
        }
        Ok((shown, stopped))
    }
}
