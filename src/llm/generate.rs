//! Answers: requests in, text out as it comes. Several sequences are decoded together, each in a slot of the executor;
//! a new request takes the free slot whose last sequence begins most like it, and computes only the rest.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::executor::{Executor, LlmError, Rows, Step};
use super::sampler::{Choice, Sampler, Sampling};
use super::text::{StopFinder, Text, TextStream};

/// What to answer.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The tokens to continue.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// At most so many.
    pub max_tokens: usize,
    /// The answer ends before the first of these.
    pub stop: Vec<String>,
    /// Go on after the tokens that end an answer: for measurements.
    pub ignore_end: bool,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop string was met.
    Stop,
    /// `max_tokens`, or no more room.
    Length,
}

/// Something of an answer.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Which request's.
    pub request: u64,
    /// Text that is now certain; may be empty.
    pub text: String,
    /// The token behind it; none for the last text that was held back.
    pub choice: Option<Choice>,
    /// Set on the last piece.
    pub finish: Option<Finish>,
}

/// What an answer took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Of these, how many were in the cache already.
    pub reused: usize,
    /// Tokens of the answer, an end token included.
    pub answer: usize,
    /// Until the first token was chosen.
    pub first: Duration,
    /// From the first token to the last.
    pub rest: Duration,
}

struct Active {
    request: u64,
    sampler: Sampler,
    stream: TextStream,
    finder: StopFinder,
    max_tokens: usize,
    ignore_end: bool,
    next: u32,
    usage: Usage,
    first_at: Instant,
}

#[derive(Default)]
struct Slot {
    /// What the executor holds for it.
    tokens: Vec<u32>,
    active: Option<Active>,
}

/// See the module.
pub struct Generator {
    executor: Box<dyn Executor>,
    text: Arc<Text>,
    max_input: usize,
    slots: Vec<Slot>,
    queue: VecDeque<(u64, Request)>,
    requests: u64,
    finished: Vec<(u64, Usage)>,
}

impl Generator {
    /// Answers with `executor`; prompts of at most `max_input` tokens.
    pub fn new(executor: Box<dyn Executor>, text: Arc<Text>, max_input: usize) -> Self {
        let slots = (0..executor.slots()).map(|_| Slot::default()).collect();
        Self { executor, text, max_input, slots, queue: VecDeque::new(), requests: 0, finished: Vec::new() }
    }

    /// The model's text side.
    pub fn text(&self) -> &Arc<Text> {
        &self.text
    }

    /// What computes.
    pub fn executor(&mut self) -> &mut dyn Executor {
        &mut *self.executor
    }

    /// Takes a request, or says why not; returns its number.
    pub fn submit(&mut self, request: Request) -> Result<u64, LlmError> {
        if request.prompt.is_empty() {
            return Err(LlmError::Request("the prompt is empty".to_owned()));
        }
        let have = request.prompt.len();
        let limit = self.max_input.min(self.executor.max_len() - 1);
        if have > limit {
            let help = "shorten it, or raise max_input_len in the recipe and build again".to_owned();
            return Err(LlmError::TooLong { what: "a prompt", have, limit, help });
        }
        if let Some(complaint) = request.sampling.complaint() {
            return Err(LlmError::Request(complaint));
        }
        if request.max_tokens == 0 {
            return Err(LlmError::Request("max_tokens is 0".to_owned()));
        }
        self.requests += 1;
        self.queue.push_back((self.requests, request));
        Ok(self.requests)
    }

    /// Forgets a request, wherever it is.
    pub fn cancel(&mut self, request: u64) {
        self.queue.retain(|(number, _)| *number != request);
        for slot in &mut self.slots {
            slot.active.take_if(|active| active.request == request);
        }
    }

    /// Nothing to do.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.slots.iter().all(|slot| slot.active.is_none())
    }

    /// Begins at most one waiting request and continues the running ones by a token each.
    pub fn step(&mut self) -> Result<Vec<Piece>, LlmError> {
        let mut pieces = Vec::new();
        let free: Vec<usize> = (0..self.slots.len()).filter(|slot| self.slots[*slot].active.is_none()).collect();
        if !free.is_empty()
            && let Some((number, request)) = self.queue.pop_front()
        {
            self.begin(&free, number, request, &mut pieces)?;
        }
        let steps = self.slots.iter().enumerate().filter_map(|(slot, state)| {
            let active = state.active.as_ref()?;
            Some(Step { slot, token: active.next, position: state.tokens.len() })
        });
        let steps: Vec<Step> = steps.collect();
        if steps.is_empty() {
            return Ok(pieces);
        }
        let mut logits = self.executor.decode(&steps)?;
        let width = self.executor.vocab_size();
        for (step, logits) in steps.iter().zip(logits.chunks_exact_mut(width)) {
            self.slots[step.slot].tokens.push(step.token);
            self.take(step.slot, logits, &mut pieces)?;
        }
        Ok(pieces)
    }

    fn begin(
        &mut self,
        free: &[usize],
        number: u64,
        request: Request,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), LlmError> {
        let start = Instant::now();
        let prompt = &request.prompt;
        let common = |slot: usize| {
            let same = self.slots[slot].tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
            same.min(prompt.len() - 1) // the last token's logits are wanted
        };
        // Without anything in common, the slot that has least to lose.
        let slot = free.iter().copied().max_by_key(|slot| (common(*slot), usize::MAX - self.slots[*slot].tokens.len()));
        let slot = slot.unwrap_or_default();
        let reused = common(slot);
        if reused == 0 {
            self.executor.release(slot);
        }
        self.slots[slot].tokens.truncate(reused);
        let mut logits = self.executor.prefill(slot, reused, &prompt[reused..], Rows::Last)?;
        self.slots[slot].tokens.extend_from_slice(&prompt[reused..]);
        let usage = Usage { prompt: prompt.len(), reused, ..Usage::default() };
        self.slots[slot].active = Some(Active {
            request: number,
            sampler: Sampler::new(request.sampling, prompt),
            stream: TextStream::default(),
            finder: StopFinder::new(request.stop),
            max_tokens: request.max_tokens,
            ignore_end: request.ignore_end,
            next: 0,
            usage,
            first_at: start,
        });
        self.take(slot, &mut logits, pieces)
    }

    /// Chooses a slot's next token and says what it means.
    fn take(&mut self, slot: usize, logits: &mut [f32], pieces: &mut Vec<Piece>) -> Result<(), LlmError> {
        let Slot { tokens, active: place } = &mut self.slots[slot];
        let Some(active) = place else { return Ok(()) };
        let choice = active.sampler.choose(logits);
        let now = Instant::now();
        if active.usage.answer == 0 {
            active.usage.first = now - active.first_at;
            active.first_at = now;
        }
        active.usage.answer += 1;
        active.usage.rest = now - active.first_at;
        active.next = choice.token;
        let ended = !active.ignore_end && self.text.stop_tokens.contains(&choice.token);
        let (mut text, mut finish) = (String::new(), None);
        if ended {
            finish = Some(Finish::Stop);
        } else {
            let certain = active.stream.push(&self.text, choice.token)?;
            let (shown, stopped) = active.finder.push(&certain);
            text.push_str(&shown);
            let full = active.usage.answer == active.max_tokens || tokens.len() + 1 >= self.executor.max_len();
            if stopped {
                finish = Some(Finish::Stop);
            } else if full {
                finish = Some(Finish::Length);
            }
            if !stopped && full {
                let (rest, stopped) = active.finder.push(&active.stream.finish(&self.text)?);
                text.push_str(&rest);
                if stopped {
                    finish = Some(Finish::Stop);
                }
            }
        }
        if finish.is_some() {
            if ended {
                let (rest, _) = active.finder.push(&active.stream.finish(&self.text)?);
                text.push_str(&rest);
            }
            if finish != Some(Finish::Stop) || ended {
                text.push_str(&active.finder.finish());
            }
            self.finished.push((active.request, active.usage));
        }
        pieces.push(Piece { request: active.request, text, choice: Some(choice), finish });
        if finish.is_some() {
            *place = None;
        }
        Ok(())
    }

    /// What finished requests took; forgotten once told.
    pub fn usage(&mut self, request: u64) -> Option<Usage> {
        let at = self.finished.iter().position(|(number, _)| *number == request)?;
        Some(self.finished.swap_remove(at).1)
    }

    /// Answers one request, handing every piece to `hear`; `hear` returns false to stop.
    pub fn answer(&mut self, request: Request, mut hear: impl FnMut(&Piece) -> bool) -> Result<Usage, LlmError> {
        let number = self.submit(request)?;
        loop {
            for piece in self.step()?.iter().filter(|piece| piece.request == number) {
                let wanted = hear(piece);
                if piece.finish.is_some() {
                    return Ok(self.usage(number).unwrap_or_default());
                }
                if !wanted {
                    self.cancel(number);
                    return Ok(Usage::default());
                }
            }
        }
    }
}
