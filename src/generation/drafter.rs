//! Drafts: what an answer probably says next, because the conversation, a prediction or a given text says it. Costs the
//! model nothing; whoever takes a draft has the model verify it (speculative decoding, Leviathan et al. 2023, with the text
//! itself in place of a draft model, as in prompt lookup decoding, Saxena 2023).

use std::sync::Arc;

use super::ngram_index::{LONGEST, NgramIndex};

/// A token of a draft.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct DraftToken {
    pub(super) token: u32,
    /// Probability that it is what the answer says, if all before it are.
    pub(super) chance: f64,
    /// Whether it is of the request's prediction.
    pub(super) predicted: bool,
}

/// Texts that an answer may repeat.
#[derive(Debug, Clone, Default)]
pub(super) struct DraftTexts {
    /// What comes before the answer, most of all its prompt.
    pub(super) before: Vec<u32>,
    /// What the answer is expected to be.
    pub(super) prediction: Vec<u32>,
    /// A text that is the same for all answers.
    pub(super) shared: Option<Arc<NgramIndex>>,
}

/// A text by its place in [`Drafter::text`].
#[derive(Debug, Clone, Copy, PartialEq)]
enum DraftSource {
    Prediction,
    Own,
    Shared,
}

const SOURCES: [DraftSource; 3] = [DraftSource::Prediction, DraftSource::Own, DraftSource::Shared];

/// Where a text goes on as the answer is expected to.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Lead {
    source: DraftSource,
    at: usize,
    /// Number of tokens before `at` that are those of the answer, as far as they were counted.
    length: usize,
}

/// Lengths of agreement from which a lead is of the next class; the last class is that of predictions.
const CLASSES: [usize; 3] = [4, 8, 16];
/// Chances of the classes before anything was measured.
const PRIOR: [f64; CLASSES.len() + 2] = [0.3, 0.5, 0.7, 0.85, 0.8];
/// Weight of a token in the measured chance of its class.
const FRESH: f64 = 1.0 / 16.0;
/// Most tokens that are indexed at a time: a millisecond's work.
const PORTION: usize = 8192;

/// Drafts the tokens of one answer.
#[derive(Debug)]
pub(super) struct Drafter {
    /// Size of the vocabulary; no draft has other tokens.
    vocabulary: usize,
    /// Tokens before the answer that are not indexed yet, in reverse order, and the prediction until it is.
    waiting: Vec<u32>,
    expected: Vec<u32>,
    /// The answer's tokens while others wait.
    early: Vec<(u32, bool)>,
    /// The prompt and the answer so far.
    own: NgramIndex,
    prediction: NgramIndex,
    shared: Option<Arc<NgramIndex>>,
    lead: Option<Lead>,
    /// Where the answer is in its prediction, or left it.
    reached: usize,
    /// Share of right leads by class.
    chances: [f64; PRIOR.len()],
}

impl Drafter {
    pub(super) fn new(texts: DraftTexts, vocabulary: usize) -> Self {
        let DraftTexts { mut before, prediction, shared } = texts;
        before.reverse();
        Self {
            vocabulary,
            waiting: before,
            expected: prediction,
            early: Vec::new(),
            own: NgramIndex::default(),
            prediction: NgramIndex::default(),
            shared,
            lead: None,
            reached: 0,
            chances: PRIOR,
        }
    }

    /// Size of the vocabulary.
    pub(super) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Indexes what was read. Takes a moment, so it is called while a device computes.
    pub(super) fn learn(&mut self) {
        if !self.expected.is_empty() {
            self.prediction = NgramIndex::new(&std::mem::take(&mut self.expected));
            // What was said to be the answer is followed until it is wrong.
            self.lead = Some(Lead { source: DraftSource::Prediction, at: 0, length: LONGEST });
        }
        let rest = self.waiting.len().saturating_sub(PORTION);
        self.waiting.drain(rest..).rev().for_each(|token| self.own.push(token));
        if self.waiting.is_empty() {
            for (token, forced) in std::mem::take(&mut self.early) {
                self.take(token, forced);
            }
        }
    }

    /// Takes the answer's next token. Whether the lead was right is measured, drafted or not, unless a grammar forced it.
    pub(super) fn take(&mut self, token: u32, forced: bool) {
        if !self.waiting.is_empty() {
            return self.early.push((token, forced));
        }
        if let Some(lead) = self.lead.filter(|_| !forced) {
            let right = f64::from(u8::from(self.token_at(lead, &[]) == Some(token)));
            let chance = &mut self.chances[class(lead)];
            *chance += FRESH * (right - *chance);
        }
        let followed = self.lead.filter(|lead| self.token_at(*lead, &[]) == Some(token));
        if let Some(Lead { source: DraftSource::Prediction, at, .. }) = self.lead {
            self.reached = at + usize::from(followed.is_some());
        }
        self.own.push(token);
        self.lead = self.next(followed, end(self.own.tokens()), &[]);
    }

    /// Where the answer leads after another token: on from where it `followed` a lead, or to a place that more of its
    /// `recent` tokens agree with.
    fn next(&self, followed: Option<Lead>, recent: &[u32], drafted: &[DraftToken]) -> Option<Lead> {
        let on = followed.map(|lead| Lead { at: lead.at + 1, length: lead.length + 1, ..lead });
        let on = on.filter(|lead| self.token_at(*lead, drafted).is_some());
        let length = on.map_or(0, |lead| lead.length);
        if length >= LONGEST {
            return on;
        }
        let found = SOURCES.into_iter().filter_map(|source| {
            let text = self.text(source)?;
            let (at, length) = match source {
                DraftSource::Prediction => text.find_near(recent, length, self.reached)?,
                DraftSource::Own | DraftSource::Shared => text.find(recent, length)?,
            };
            Some(Lead { source, at, length })
        });
        // Of equals the first.
        found.reduce(|best, other| if other.length > best.length { other } else { best }).or(on)
    }

    fn text(&self, source: DraftSource) -> Option<&NgramIndex> {
        match source {
            DraftSource::Prediction => Some(&self.prediction),
            DraftSource::Own => Some(&self.own),
            DraftSource::Shared => self.shared.as_deref(),
        }
    }

    /// The token that a lead points at; of the answer itself also one that was only `drafted`.
    fn token_at(&self, lead: Lead, drafted: &[DraftToken]) -> Option<u32> {
        let tokens = self.text(lead.source)?.tokens();
        let beyond = || drafted.get(lead.at - tokens.len()).filter(|_| lead.source == DraftSource::Own);
        match tokens.get(lead.at) {
            Some(token) => Some(*token),
            None => beyond().map(|draft| draft.token),
        }
    }
}

/// The last tokens, as many as matter.
fn end(tokens: &[u32]) -> &[u32] {
    &tokens[tokens.len().saturating_sub(LONGEST)..]
}

fn class(lead: Lead) -> usize {
    match lead.source {
        DraftSource::Prediction => CLASSES.len() + 1,
        _ => CLASSES.iter().filter(|length| lead.length >= **length).count(),
    }
}

/// Probability of a draft below which it is not continued.
const LEAST: f64 = 0.01;

/// A draft in the making.
pub(super) struct DraftWalk<'a> {
    drafter: &'a Drafter,
    lead: Option<Lead>,
    recent: Vec<u32>,
    tokens: Vec<DraftToken>,
    /// Probability that all of them are right.
    chance: f64,
}

impl<'a> DraftWalk<'a> {
    /// From where the answer is.
    pub(super) fn new(drafter: &'a Drafter) -> Self {
        let ready = drafter.waiting.is_empty();
        let (lead, recent) = (drafter.lead.filter(|_| ready), end(drafter.own.tokens()).to_vec());
        Self { drafter, lead, recent, tokens: Vec::new(), chance: 1.0 }
    }

    /// The next token by the texts.
    pub(super) fn guess(&self) -> Option<u32> {
        let token = self.drafter.token_at(self.lead?, &self.tokens)?;
        usize::try_from(token).is_ok_and(|token| token < self.drafter.vocabulary).then_some(token)
    }

    /// Goes on by a token: the guess, or one that a grammar forces.
    pub(super) fn take(&mut self, token: u32, forced: bool) {
        let followed = self.lead.filter(|lead| self.drafter.token_at(*lead, &self.tokens) == Some(token));
        let chance = match followed {
            Some(lead) if !forced => self.drafter.chances[class(lead)],
            _ => 1.0,
        };
        let predicted = followed.is_some_and(|lead| lead.source == DraftSource::Prediction);
        self.chance *= chance;
        self.tokens.push(DraftToken { token, chance, predicted });
        self.recent.push(token);
        self.recent.drain(..self.recent.len().saturating_sub(LONGEST));
        self.lead = self.drafter.next(followed, &self.recent, &self.tokens);
    }

    /// Whether more tokens are worth the time to find them.
    pub(super) fn is_likely(&self) -> bool {
        self.chance >= LEAST
    }

    /// Number of tokens so far.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The draft.
    pub(super) fn finish(self) -> Vec<DraftToken> {
        self.tokens
    }
}

/// Factor by which a launch has to make more tokens of its time before drafts are worth their rows: what was measured may
/// be wrong by as much.
const MARGIN: f64 = 1.05;

/// How many tokens of a draft are worth rows in a launch of `rows` rows that make `tokens` tokens, and how many more tokens
/// are to be expected of them. `cost` is the time of a launch of so many rows.
pub(super) fn worth(draft: &[DraftToken], (rows, tokens): (usize, f64), cost: impl Fn(usize) -> f64) -> (usize, f64) {
    let mut best = (0, 0.0, MARGIN * tokens / cost(rows));
    let (mut chance, mut gain) = (1.0, 0.0);
    for (count, token) in (1..).zip(draft) {
        chance *= token.chance;
        gain += chance;
        let rate = (tokens + gain) / cost(rows + count);
        if rate > best.2 {
            best = (count, gain, rate);
        }
    }
    (best.0, best.1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drafter(before: &[u32], prediction: &[u32], shared: &[u32]) -> Drafter {
        let shared = (!shared.is_empty()).then(|| Arc::new(NgramIndex::new(shared)));
        let texts = DraftTexts { before: before.to_vec(), prediction: prediction.to_vec(), shared };
        Drafter::new(texts, 1000)
    }

    fn draft(drafter: &Drafter, most: usize) -> Vec<u32> {
        let mut walk = DraftWalk::new(drafter);
        while walk.len() < most
            && let Some(token) = walk.guess()
        {
            walk.take(token, false);
        }
        walk.finish().iter().map(|draft| draft.token).collect()
    }

    #[test]
    fn an_answer_goes_on_as_its_texts_do() {
        let mut own = drafter(&[1, 2, 3, 4, 5, 6, 9, 9, 2], &[], &[]);
        assert!(draft(&own, 4).is_empty(), "nothing is drafted before it was learnt");
        own.learn();
        own.take(3, false);
        assert_eq!(draft(&own, 4), [4, 5, 6, 9]);
        own.take(4, false);
        own.take(7, false);
        assert!(draft(&own, 4).is_empty(), "a single token is said too often to lead anywhere");
        // What goes round goes on.
        for token in [50, 51, 50, 51] {
            own.take(token, false);
        }
        assert_eq!(draft(&own, 7), [50, 51, 50, 51, 50, 51, 50]);
        // A prediction is what the answer begins with, and is found again after other words.
        let mut predicted = drafter(&[1, 2], &[20, 21, 22, 23, 24], &[]);
        predicted.learn();
        assert_eq!(draft(&predicted, 9), [20, 21, 22, 23, 24]);
        for token in [20, 30, 21, 22] {
            predicted.take(token, false);
        }
        assert_eq!(draft(&predicted, 9), [23, 24]);
        let mut shared = drafter(&[1], &[], &[40, 41, 42, 43]);
        shared.learn();
        shared.take(40, false);
        shared.take(41, false);
        assert_eq!(draft(&shared, 9), [42, 43]);
    }

    #[test]
    fn what_was_taken_early_is_learnt_in_its_order() {
        let prompt: Vec<u32> = (0..PORTION as u32 + 5).map(|at| at % 900).collect();
        let (mut early, mut late) = (drafter(&prompt, &[7], &[]), drafter(&prompt, &[7], &[]));
        early.take(7, false);
        early.learn();
        assert!(draft(&early, 3).is_empty());
        early.take(8, true);
        early.learn();
        late.learn();
        late.learn();
        late.take(7, false);
        late.take(8, true);
        assert_eq!((early.own.tokens(), early.lead, early.chances), (late.own.tokens(), late.lead, late.chances));
        assert_eq!(draft(&early, 3), [9, 10, 11]);
    }

    /// A text without repetition drives the chances down until no rows are spent, and a repeated one up again.
    #[test]
    fn it_pays_or_is_left() {
        let mut drafter = drafter(&[1, 2, 3, 1, 2, 4], &[], &[]);
        drafter.learn();
        // Cheap rows, as on a device whose time goes by the weights.
        let cost = |rows: usize| 1.0 + 0.3 * (rows as f64 - 1.0);
        let rows = |drafter: &Drafter| {
            let mut walk = DraftWalk::new(drafter);
            while walk.len() < 8
                && let Some(token) = walk.guess()
            {
                walk.take(token, false);
            }
            worth(&walk.finish(), (1, 1.0), cost).0
        };
        let mut next = 100;
        for _ in 0..60 {
            next += 1;
            for token in [1, 2, next] {
                drafter.take(token, false);
            }
        }
        drafter.take(1, false);
        drafter.take(2, false);
        assert_eq!(rows(&drafter), 0, "{:?}", drafter.chances);
        let verse: Vec<u32> = (300..340).collect();
        for _ in 0..3 {
            verse.iter().for_each(|token| drafter.take(*token, false));
        }
        assert_eq!(rows(&drafter), 8, "{:?}", drafter.chances);
    }

    #[test]
    fn rows_are_spent_where_they_make_tokens() {
        let draft = |chance: f64, count: usize| vec![DraftToken { token: 1, chance, predicted: false }; count];
        // One after another nothing is won.
        assert_eq!(worth(&draft(1.0, 8), (1, 1.0), |rows| rows as f64).0, 0);
        assert_eq!(worth(&draft(1.0, 8), (1, 1.0), |_| 1.0), (8, 8.0));
        assert_eq!(worth(&draft(0.04, 8), (1, 1.0), |_| 1.0).0, 0, "below the margin");
        // Passes of the CPU: up to eight rows cost the same.
        let steps = |rows: usize| if rows == 1 { 17.0 } else { 16.0 + rows.next_multiple_of(8) as f64 };
        assert_eq!((worth(&draft(0.5, 20), (1, 1.0), steps).0, worth(&draft(0.9, 20), (1, 1.0), steps).0), (7, 15));
        assert_eq!(worth(&draft(0.3, 20), (1, 1.0), steps).0, 0);
        assert_eq!(worth(&draft(0.3, 20), (3, 3.0), steps).0, 5, "rows that are there anyway");
        assert_eq!(worth(&[], (1, 1.0), steps), (0, 0.0));
    }

    proptest! {
        /// Whatever is taken: drafts are tokens of the texts, leads agree with what was said, chances stay chances.
        #[test]
        fn drafts_are_of_the_texts(
            before in proptest::collection::vec(0_u32..5, 0..40),
            prediction in proptest::collection::vec(0_u32..5, 0..20),
            answer in proptest::collection::vec((0_u32..5, any::<bool>()), 0..40),
            learnt in 0_usize..5,
        ) {
            let mut drafter = drafter(&before, &prediction, &[4, 3, 2, 1]);
            for (at, (token, forced)) in answer.iter().enumerate() {
                if at >= learnt {
                    drafter.learn();
                }
                drafter.take(*token, *forced);
                if at >= learnt {
                    let said: Vec<u32> = before.iter().copied().chain(answer[..=at].iter().map(|(token, _)| *token)).collect();
                    prop_assert_eq!(drafter.own.tokens(), &said[..]);
                    prop_assert!(draft(&drafter, 6).len() <= 6);
                    if let Some(lead) = drafter.lead {
                        let tokens = drafter.text(lead.source).unwrap().tokens();
                        let agreed = lead.length.min(lead.at);
                        prop_assert!(said.ends_with(&tokens[lead.at - agreed..lead.at]));
                        prop_assert!(lead.length > 0);
                    }
                }
                prop_assert!(drafter.chances.iter().all(|chance| (0.0..=1.0).contains(chance)));
            }
        }
    }
}
