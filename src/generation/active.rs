//! An answer in its slot: which of its tokens the model has not read, what is sampled and drafted, and what it says.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::drafter::{DraftTexts, DraftToken, DraftWalk, Drafter};
use super::grammar::Grammar;
use super::request::{Finish, Piece, Request, Speculation, Usage};
use super::sampler::{Choice, Sampler};
use crate::executor::{LlmError, StepLogits, WantedLogits};
use crate::text::{StopFinder, Text, TextStream};

/// A token of the answer that is not detokenised yet, or the error that ends the answer.
struct Taken {
    choice: Result<Choice, LlmError>,
    /// The number of the answer's tokens with this one, and their time.
    answer: usize,
    rest: Duration,
    /// Whether it is the last, by the model or the grammar, or by a limit.
    complete: bool,
    full: bool,
}

/// What an answer's tokens are checked against.
#[derive(Clone, Copy)]
pub(super) struct Bounds<'a> {
    pub(super) text: &'a Text,
    /// Longest sequence in positions.
    pub(super) max_len: usize,
}

/// Rows of a launched answer: its unread tokens, then a draft.
pub(super) struct LaunchedRows {
    pub(super) slot: usize,
    pub(super) request: u64,
    /// Number of unread tokens.
    pub(super) read: usize,
    pub(super) drafted: Vec<DraftToken>,
}

/// Rows of an answer in a launch, of which the last known token's is the first that is read.
pub(super) struct VerifiedRows<'a> {
    pub(super) first: usize,
    pub(super) drafted: &'a [DraftToken],
}

/// See the module.
pub(super) struct Active {
    pub(super) request: u64,
    pub(super) client: u64,
    /// Tokens that are not in the executor's cache yet: the rest of the prompt, or the answer's last ones.
    pub(super) unread: Vec<u32>,
    sampler: Sampler,
    grammar: Option<Grammar>,
    /// `None` if every token takes a step.
    drafter: Option<Drafter>,
    stream: TextStream,
    finder: StopFinder,
    max_tokens: usize,
    ignore_end: bool,
    taken: VecDeque<Taken>,
    /// Whether the last token that was taken ends the answer, and why.
    complete: bool,
    full: bool,
    failed: bool,
    usage: Usage,
    /// When the request left the queue; from the first token on, when that was sampled.
    since: Instant,
}

impl Active {
    /// An answer to a request, of whose prompt the first `reused` tokens are in the cache. With `drafts`, tokens are drafted
    /// from these texts as well.
    pub(super) fn new(number: u64, request: Request, reused: usize, drafts: Option<(DraftTexts, usize)>) -> Self {
        let Request { prompt, prediction, quotable: mut before, .. } = request;
        let drafter = drafts.map(|(texts, vocabulary)| {
            before.extend_from_slice(&prompt);
            Drafter::new(DraftTexts { before, prediction, ..texts }, vocabulary)
        });
        Self {
            request: number,
            client: request.client,
            unread: prompt[reused..].to_vec(),
            sampler: Sampler::new(request.sampling, &prompt),
            grammar: request.grammar,
            drafter,
            stream: TextStream::new(request.special),
            finder: StopFinder::new(request.stop),
            max_tokens: request.max_tokens,
            ignore_end: request.ignore_end,
            taken: VecDeque::new(),
            complete: false,
            full: false,
            failed: false,
            usage: Usage { prompt: prompt.len(), reused, ..Usage::default() },
            since: Instant::now(),
        }
    }

    /// Whether the model is to read more for it.
    pub(super) fn waits(&self) -> bool {
        !self.complete && !self.full && !self.failed
    }

    /// Whether a token has been sampled and another will follow.
    pub(super) fn goes_on(&self) -> bool {
        self.usage.answer > 0 && self.waits()
    }

    /// Whether it takes a step with one more token, as most do most of the time.
    pub(super) fn steps(&self) -> bool {
        self.goes_on() && self.unread.len() == 1
    }

    /// What its next token is chosen from first: a grammar looks at all tokens.
    pub(super) fn wanted(&self) -> WantedLogits {
        match self.grammar {
            Some(_) => WantedLogits::All,
            None => WantedLogits::Top { temperature: self.sampler.temperature() },
        }
    }

    /// Whether its keys and values may hold what is no number.
    pub(super) fn is_spoilt(&self) -> bool {
        self.taken.iter().any(|taken| matches!(taken.choice, Err(LlmError::NotFinite)))
    }

    /// Ends the answer with its own error.
    pub(super) fn fail(&mut self, error: LlmError) {
        self.unread.clear();
        self.failed = true;
        let Usage { answer, rest, .. } = self.usage;
        self.taken.push_back(Taken { choice: Err(error), answer, rest, complete: false, full: false });
    }

    /// Drafts up to `most` of the tokens that follow those that are unread, as many as there is room for after the
    /// `cached` ones.
    pub(super) fn draft(&self, most: usize, cached: usize, bounds: Bounds<'_>) -> Vec<DraftToken> {
        let Some(drafter) = self.drafter.as_ref().filter(|_| self.goes_on()) else { return Vec::new() };
        // A sampled token follows each, and the last one of a full sequence is not read.
        let room = bounds.max_len.saturating_sub(cached + self.unread.len() + 1);
        let most = most.min(room).min(self.max_tokens.saturating_sub(self.usage.answer + 1));
        let mut walk = DraftWalk::new(drafter);
        match &self.grammar {
            // Without a lead or something forced it would end at once, and the grammar's state would be copied for that.
            Some(grammar) if most > 0 && (walk.guess().is_some() || self.sampler.reports()) => {
                grammar.draft(&mut walk, most);
            }
            Some(_) => {}
            None => {
                while walk.len() < most
                    && walk.is_likely()
                    && let Some(token) = walk.guess().filter(|token| !self.ends(bounds.text, *token))
                {
                    walk.take(token, false);
                }
            }
        }
        walk.finish()
    }

    fn ends(&self, text: &Text, token: u32) -> bool {
        !self.ignore_end && text.stop_tokens.contains(&token)
    }

    /// Samples the token after those that were read in a pass, which are `cached`. Returns what took no step.
    pub(super) fn begin(&mut self, logits: &mut [f32], cached: usize, bounds: Bounds<'_>) -> Speculation {
        let choice = self.sampler.choose(logits, self.grammar.as_mut());
        self.take(choice, cached, (bounds, false));
        let forced = self.take_forced(cached, bounds);
        self.count(Speculation { forced, ..Speculation::default() })
    }

    fn count(&mut self, more: Speculation) -> Speculation {
        self.usage.speculation += more;
        more
    }

    /// Samples a token from each of its rows in turn, as long as the draft has the same; those join the `cached` tokens.
    /// Each takes what it would take without a draft: the same logits up to rounding, and the next random number. Returns
    /// what took no step.
    pub(super) fn verify(
        &mut self,
        cached: &mut Vec<u32>,
        rows: VerifiedRows<'_>,
        logits: &mut dyn StepLogits,
        bounds: Bounds<'_>,
    ) -> Result<Speculation, LlmError> {
        let VerifiedRows { first, drafted } = rows;
        let mut accepted = 0;
        loop {
            let row = first + accepted;
            let choice = match logits.top(row).and_then(|top| self.sampler.choose_from_top(top)) {
                Some(choice) => Ok(choice),
                None => self.sampler.choose(logits.all(row)?, self.grammar.as_mut()),
            };
            self.take(choice, cached.len(), (bounds, false));
            let sampled = self.unread.last().copied();
            let same = drafted.get(accepted).is_some_and(|draft| Some(draft.token) == sampled);
            if !same || !self.goes_on() {
                break;
            }
            cached.append(&mut self.unread);
            accepted += 1;
        }
        let predicted = |drafts: &[DraftToken]| drafts.iter().filter(|draft| draft.predicted).count();
        let predicted = (predicted(drafted), predicted(&drafted[..accepted]));
        let forced = self.take_forced(cached.len(), bounds);
        Ok(self.count(Speculation { drafted: drafted.len(), accepted, forced, predicted }))
    }

    /// Takes tokens that the grammar leaves no choice about, without asking the model; it reads them with the next that
    /// has one. Returns how many.
    fn take_forced(&mut self, cached: usize, bounds: Bounds<'_>) -> usize {
        let Some(vocabulary) = self.drafter.as_ref().map(Drafter::vocabulary) else { return 0 };
        let mut count = 0;
        // The probability of a token is known from its logits alone.
        while self.goes_on()
            && !self.sampler.reports()
            && let Some(token) = self.grammar.as_mut().and_then(Grammar::forced)
            && usize::try_from(token).is_ok_and(|token| token < vocabulary)
        {
            let choice = self.sampler.take_forced(token);
            self.take(Ok(choice), cached, (bounds, true));
            count += 1;
        }
        count
    }

    /// Takes a token that follows those that are `cached` and those that are unread; sampled or `forced`.
    fn take(&mut self, choice: Result<Choice, LlmError>, cached: usize, (bounds, forced): (Bounds<'_>, bool)) {
        let now = Instant::now();
        if self.usage.answer == 0 {
            self.usage.first = now - self.since;
            self.since = now;
        }
        self.usage.answer += 1;
        self.usage.rest = now - self.since;
        let last = cached + self.unread.len() + 1 >= bounds.max_len;
        self.full = last || self.usage.answer == self.max_tokens;
        let choice = choice.and_then(|choice| {
            self.unread.push(choice.token);
            self.complete = self.ends(bounds.text, choice.token)
                || match &mut self.grammar {
                    Some(grammar) => grammar.accept(choice.token)?,
                    None => false,
                };
            if let Some(drafter) = &mut self.drafter {
                drafter.take(choice.token, forced);
            }
            Ok(choice)
        });
        self.failed |= choice.is_err();
        let Usage { answer, rest, .. } = self.usage;
        self.taken.push_back(Taken { choice, answer, rest, complete: self.complete, full: self.full });
    }

    /// Prepares what follows a launch while the device computes: the grammar's masks after each drafted token, and what is
    /// drafted from.
    pub(super) fn prepare(&mut self, drafted: &[DraftToken]) {
        if let Some(drafter) = &mut self.drafter {
            drafter.learn();
        }
        if let Some(grammar) = self.grammar.as_mut().filter(|_| self.usage.answer > 0) {
            let tokens: Vec<u32> = drafted.iter().map(|draft| draft.token).collect();
            if let Err(error) = grammar.prepare(&tokens) {
                self.fail(error);
            }
        }
    }

    /// Detokenises the tokens that were taken. An error ends this answer only, and so does a stop string: what was taken
    /// after it was never said.
    pub(super) fn speak(&mut self, text: &Text) -> Vec<Piece> {
        let mut pieces = Vec::new();
        while let Some(Taken { choice, answer, rest, complete, full }) = self.taken.pop_front() {
            let (request, usage) = (self.request, Usage { answer, rest, ..self.usage });
            let said = choice.and_then(|choice| Ok((self.words(text, choice.token, complete || full)?, choice)));
            let piece = match said {
                Ok(((text, stopped), choice)) => {
                    let finish = match (stopped || complete, full) {
                        (true, _) => Some(Finish::Stop),
                        (false, true) => Some(Finish::Length),
                        (false, false) => None,
                    };
                    Piece { request, text, choice, usage, finish, failure: None }
                }
                Err(error) => {
                    let choice = Choice { token: 0, logprob: None, top: Vec::new() };
                    Piece { request, text: String::new(), choice, usage, finish: None, failure: Some(error) }
                }
            };
            let over = piece.finish.is_some() || piece.failure.is_some();
            pieces.push(piece);
            if over {
                break;
            }
        }
        pieces
    }

    /// The text that becomes certain with a token, which may be the `last`, and whether a stop string was found.
    fn words(&mut self, text: &Text, token: u32, last: bool) -> Result<(String, bool), LlmError> {
        let (mut shown, mut stopped) = (String::new(), false);
        if !self.ends(text, token) {
            (shown, stopped) = self.finder.push(&self.stream.push(text, token)?);
        }
        if !stopped && last {
            let (rest, found) = self.finder.push(&self.stream.finish(text)?);
            shown.push_str(&rest);
            stopped = found;
            if !stopped {
                shown.push_str(&self.finder.finish());
            }
        }
        Ok((shown, stopped))
    }
}
