//! Samples the next token from a row of logits.
//!
//! In `transformers`' order: biases and penalties, the grammar's mask, temperature, top-k, top-p (Holtzman et al.
//! 2020), min-p (Nguyen et al. 2024), one draw. Log-probabilities are the model's, before all of these.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::grammar::Grammar;
use crate::executor::{LlmError, TOP_LOGITS, TopLogits};
use crate::tensor::SplitMix64;
use crate::text::Sampling;

/// A sampled token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability; `None` unless log-probabilities were requested.
    pub logprob: Option<f32>,
    /// The most likely tokens and their log-probabilities, in descending order.
    pub top: Vec<(u32, f32)>,
}

/// Samples the tokens of one answer.
#[derive(Debug, Clone)]
pub struct Sampler {
    settings: Sampling,
    random: SplitMix64,
    /// For each token, how often it is in the prompt, and in the answer.
    seen: HashMap<u32, (u32, u32)>,
}

/// Index of the largest value, the first of equals. NaN is never the largest.
pub fn argmax(logits: &[f32]) -> u32 {
    // Eight maxima side by side, which a compiler makes vectors of; then the place.
    let mut best = [f32::NEG_INFINITY; 8];
    let chunks = logits.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (best, value) in best.iter_mut().zip(chunk) {
            *best = if *value > *best { *value } else { *best };
        }
    }
    let best = best.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|value| *value == best).and_then(|at| u32::try_from(at).ok()).unwrap_or(0)
}

/// log(sum(exp(x))), in float64.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|value| f64::from(value - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}

/// The candidates for sampling, by weight in descending order; the largest weight is 1.
struct Nucleus {
    weights: Vec<f64>,
    /// Sum of the weights of all candidates, listed or not.
    total: f64,
    /// Whether there may be candidates beyond those listed.
    open: bool,
}

impl Nucleus {
    /// All candidates, or with `total` the most likely of candidates whose weights add up to it.
    fn new(weights: Vec<f64>, total: Option<f64>) -> Self {
        let sum: f64 = weights.iter().sum();
        Self { total: total.map_or(sum, |total| total.max(sum)), open: total.is_some(), weights }
    }

    /// Excludes candidates that are not listed.
    fn close(&mut self) -> Option<()> {
        self.open = false;
        self.total = self.weights.iter().sum();
        Some(())
    }

    /// Top-k. Returns `None`, like the other filters, if candidates that are not listed might pass it.
    fn keep_count(&mut self, top_k: usize) -> Option<()> {
        if top_k == 0 {
            return Some(());
        }
        if self.open && top_k > self.weights.len() {
            return None;
        }
        self.weights.truncate(top_k);
        self.close()
    }

    /// Top-p (nucleus).
    fn keep_share(&mut self, top_p: f64) -> Option<()> {
        if top_p < 1.0 {
            let (mut reached, mut kept) = (0.0, 0);
            // The token that crosses the border stays.
            while kept < self.weights.len() && reached < top_p * self.total {
                reached += self.weights[kept];
                kept += 1;
            }
            if self.open && reached < top_p * self.total {
                return None;
            }
            self.weights.truncate(kept.max(1));
            return self.close();
        }
        Some(())
    }

    /// Min-p.
    fn keep_likely(&mut self, min_p: f64) -> Option<()> {
        if min_p > 0.0 {
            // They fall, so the first too light one ends them.
            let light = self.weights.iter().position(|weight| *weight < min_p);
            if self.open && light.is_none() {
                return None;
            }
            self.weights.iter_mut().filter(|weight| **weight < min_p).for_each(|weight| *weight = 0.0);
            return self.close();
        }
        Some(())
    }
}

impl Sampler {
    /// A sampler for an answer to `prompt`.
    pub fn new(settings: Sampling, prompt: &[u32]) -> Self {
        let mut seen: HashMap<u32, (u32, u32)> = HashMap::new();
        for token in prompt {
            seen.entry(*token).or_default().0 += 1;
        }
        Self { random: SplitMix64(settings.seed), settings, seen }
    }

    /// Samples from a row of logits, which is changed, within what `grammar` allows.
    pub fn choose(&mut self, logits: &mut [f32], grammar: Option<&mut Grammar>) -> Result<Choice, LlmError> {
        let reported = self.settings.top_logprobs.map(|count| {
            let total = log_sum_exp(logits);
            let of = |index: u32| (f64::from(logits[index as usize]) - total) as f32;
            let best = largest(logits, count).into_iter().map(|index| (index, of(index))).collect::<Vec<_>>();
            (logits.to_vec(), total, best)
        });
        self.penalise(logits);
        if let Some(grammar) = grammar {
            grammar.mask(logits)?;
        }
        let token = if self.settings.temperature == 0.0 { argmax(logits) } else { self.draw(logits) };
        if !logits.get(token as usize).is_some_and(|logit| logit.is_finite()) {
            return Err(LlmError::NotFinite);
        }
        self.seen.entry(token).or_default().1 += 1;
        let (logprob, top) = match reported {
            Some((raw, total, best)) => (Some((f64::from(raw[token as usize]) - total) as f32), best),
            None => (None, Vec::new()),
        };
        Ok(Choice { token, logprob, top })
    }

    /// Samples from the largest logits, with the same result as [`Sampler::choose`] on all; `None` if that needs the
    /// others.
    pub fn choose_from_top(&mut self, top: &TopLogits) -> Option<Choice> {
        let Sampling { temperature, top_logprobs, .. } = self.settings;
        if self.penalises() || top_logprobs.is_some_and(|count| count > top.tokens.len()) {
            return None;
        }
        let (first, best) = *top.tokens.first().filter(|(_, logit)| logit.is_finite())?;
        let token = match temperature == 0.0 {
            true => first,
            false => self.draw_from(&top.tokens, Some(top.sum_exp_at_temperature), None)?,
        };
        self.seen.entry(token).or_default().1 += 1;
        let of = |logit: f32| (f64::from(logit - best) - top.sum_exp.ln()) as f32;
        let logprob = top.tokens.iter().find(|(other, _)| *other == token).map(|(_, logit)| of(*logit));
        let reported = top.tokens.iter().take(top_logprobs.unwrap_or(0));
        Some(Choice {
            token,
            logprob: logprob.filter(|_| top_logprobs.is_some()),
            top: reported.map(|(token, logit)| (*token, of(*logit))).collect(),
        })
    }

    /// Takes the only token that a grammar allows, without logits; leaves the sampler as [`Sampler::choose`] would.
    pub fn take_forced(&mut self, token: u32) -> Choice {
        if self.settings.temperature != 0.0 {
            self.random.next_u64();
        }
        self.seen.entry(token).or_default().1 += 1;
        Choice { token, logprob: None, top: Vec::new() }
    }

    /// Whether log-probabilities are reported, which take the logits of every token.
    pub fn reports(&self) -> bool {
        self.settings.top_logprobs.is_some()
    }

    /// Whether biases or penalties change the logits.
    fn penalises(&self) -> bool {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.settings;
        let penalties = repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0;
        penalties || !self.settings.logit_bias.is_empty()
    }

    /// Temperature of the next draw.
    pub fn temperature(&self) -> f32 {
        self.settings.temperature
    }

    fn penalise(&self, logits: &mut [f32]) {
        for (token, bias) in &self.settings.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        if !self.penalises() {
            return;
        }
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.settings;
        for (token, (_, answered)) in &self.seen {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
            if *answered > 0 {
                *logit -= presence_penalty + frequency_penalty * *answered as f32;
            }
        }
    }

    /// Samples from all logits: from the most likely ones if they suffice, as [`Sampler::choose_from_top`] would.
    fn draw(&mut self, logits: &[f32]) -> u32 {
        let Sampling { temperature, top_k, .. } = self.settings;
        let with_logit = |token: u32| (token, logits[token as usize]);
        let mut tokens: Vec<(u32, f32)> = largest(logits, TOP_LOGITS).into_iter().map(with_logit).collect();
        let best = tokens.first().map_or(0.0, |(_, best)| *best);
        let weigh = |logit: &f32| (f64::from(logit - best) / f64::from(temperature)).exp();
        let total = if (1..=TOP_LOGITS).contains(&top_k) { 0.0 } else { logits.iter().map(weigh).sum() };
        self.draw_from(&tokens, Some(total), Some(logits)).unwrap_or_else(|| {
            tokens = largest(logits, logits.len()).into_iter().map(with_logit).collect();
            self.draw_from(&tokens, None, None).unwrap_or_else(|| argmax(logits))
        })
    }

    /// Samples from `tokens` in descending order. `total` is the sum of the weights of the whole row if `tokens` are
    /// only its most likely ones. Returns `None` if the sample could fall outside of `tokens` and `row` (all logits)
    /// was not given.
    fn draw_from(&mut self, tokens: &[(u32, f32)], total: Option<f64>, row: Option<&[f32]>) -> Option<u32> {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.settings;
        // The likeliest weighs 1.
        let (likeliest, best) = *tokens.first()?;
        let weigh = |logit: f32| (f64::from(logit - best) / f64::from(temperature)).exp();
        let mut nucleus = Nucleus::new(tokens.iter().map(|(_, logit)| weigh(*logit)).collect(), total);
        nucleus.keep_count(top_k)?;
        nucleus.keep_share(f64::from(top_p))?;
        nucleus.keep_likely(f64::from(min_p))?;
        let before = self.random.clone();
        let mut at = (self.random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64 * nucleus.total;
        for ((token, _), weight) in tokens.iter().zip(&nucleus.weights) {
            if *weight > 0.0 && at < *weight {
                return Some(*token);
            }
            at -= weight;
        }
        if nucleus.open {
            let Some(row) = row else {
                self.random = before; // whoever draws from all draws the same
                return None;
            };
            // Beyond the likeliest the order does not matter, and sorting a vocabulary would take longer than the rest.
            let (last, least) = *tokens.last()?;
            let beyond = |(token, logit): &(u32, &f32)| least.total_cmp(logit).then(token.cmp(&last)).is_gt();
            for (token, logit) in (0..).zip(row).filter(beyond) {
                let weight = weigh(*logit);
                if at < weight {
                    return Some(token);
                }
                at -= weight;
            }
        }
        Some(likeliest)
    }
}

/// The `count` largest logits in descending order; equals in order of their token number.
fn largest(logits: &[f32], count: usize) -> Vec<u32> {
    let count = count.min(logits.len());
    if count == 0 {
        return Vec::new();
    }
    let compare = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut order: Vec<u32> = Vec::new();
    // Where few are wanted most are passed over: they are below the worst of those so far.
    let mut least = f32::NEG_INFINITY;
    for (token, logit) in (0..).zip(logits) {
        if order.len() < count || logit.total_cmp(&least).is_gt() {
            order.push(token);
            if order.len() == 2 * count {
                order.select_nth_unstable_by(count - 1, compare);
                order.truncate(count);
                least = logits[order[count - 1] as usize];
            }
        }
    }
    order.sort_unstable_by(compare);
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 0.0];

    /// Frequency of each token in many samples.
    fn shares(settings: Sampling) -> Vec<f64> {
        let draws = 20_000;
        let mut counts = vec![0.0; LOGITS.len()];
        let mut sampler = Sampler::new(Sampling { seed: 7, ..settings }, &[]);
        for _ in 0..draws {
            // One answer's penalties must not build up here.
            sampler.seen.clear();
            counts[sampler.choose(&mut LOGITS.clone(), None).unwrap().token as usize] += 1.0 / f64::from(draws);
        }
        counts
    }

    fn close(have: &[f64], want: &[f64]) {
        assert!(have.iter().zip(want).all(|(a, b)| (a - b).abs() < 0.015), "{have:?} instead of {want:?}");
    }

    #[test]
    fn draws_follow_the_distribution() {
        let softmax = |temperature: f64| {
            let weights: Vec<f64> = LOGITS.iter().map(|l| (f64::from(*l) / temperature).exp()).collect();
            let total: f64 = weights.iter().sum();
            weights.iter().map(|weight| weight / total).collect::<Vec<f64>>()
        };
        let warm = |temperature: f32| Sampling { temperature, ..Sampling::default() };
        close(&shares(warm(1.0)), &softmax(1.0));
        close(&shares(warm(2.0)), &softmax(2.0));
        close(&shares(Sampling { top_k: 2, ..warm(1.0) }), &[0.0, 0.731, 0.269, 0.0, 0.0]);
        // Probabilities are 0.636, 0.234, 0.086, ...: two tokens reach 0.7.
        close(&shares(Sampling { top_p: 0.7, ..warm(1.0) }), &[0.0, 0.731, 0.269, 0.0, 0.0]);
        close(&shares(Sampling { min_p: 0.3, ..warm(1.0) }), &[0.0, 0.731, 0.269, 0.0, 0.0]);
        close(&shares(Sampling { top_k: 1, ..warm(5.0) }), &[0.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn penalties_change_the_greedy_choice() {
        let greedy = |settings: Sampling, prompt: &[u32], answered: &[u32]| {
            let mut sampler = Sampler::new(settings, prompt);
            for token in answered {
                sampler.seen.entry(*token).or_default().1 += 1;
            }
            sampler.choose(&mut LOGITS.clone(), None).unwrap().token
        };
        let plain = Sampling::default();
        assert_eq!(greedy(plain.clone(), &[1], &[1]), 1);
        // 3 / 2 is below 2.
        assert_eq!(greedy(Sampling { repetition_penalty: 2.0, ..plain.clone() }, &[1], &[]), 2);
        // Presence and frequency look at the answer alone.
        assert_eq!(greedy(Sampling { presence_penalty: 1.5, ..plain.clone() }, &[1], &[]), 1);
        assert_eq!(greedy(Sampling { presence_penalty: 1.5, ..plain.clone() }, &[], &[1]), 2);
        assert_eq!(greedy(Sampling { frequency_penalty: 0.6, ..plain.clone() }, &[], &[1]), 1);
        assert_eq!(greedy(Sampling { frequency_penalty: 0.6, ..plain }, &[], &[1, 1]), 2);
    }

    #[test]
    fn logprobs_are_the_models_own() {
        let settings = Sampling { top_logprobs: Some(2), repetition_penalty: 2.0, ..Sampling::default() };
        let choice = Sampler::new(settings, &[1]).choose(&mut LOGITS.clone(), None).unwrap();
        assert_eq!(choice.token, 2);
        let total: f32 = LOGITS.iter().map(|logit| logit.exp()).sum::<f32>().ln();
        assert!((choice.logprob.unwrap() - (2.0 - total)).abs() < 1e-5);
        assert_eq!(choice.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 2]);
    }

    /// The largest logits of a row, as a device reports them.
    fn likeliest(logits: &[f32], count: usize, temperature: f32) -> TopLogits {
        let order = largest(logits, count);
        let best = logits[order[0] as usize];
        let sum = |inverse: f64| logits.iter().map(|l| (f64::from(l - best) * inverse).exp()).sum();
        let tokens = order.into_iter().map(|token| (token, logits[token as usize])).collect();
        let warm = if temperature > 0.0 { sum(1.0 / f64::from(temperature)) } else { 0.0 };
        TopLogits { tokens, sum_exp: sum(1.0), sum_exp_at_temperature: warm }
    }

    #[test]
    fn the_likeliest_decide_as_all_would() {
        let mut random = SplitMix64(3);
        let (mut decided, mut open) = (0, 0);
        for case in 0..4000 {
            // Steep and flat distributions.
            let steep = [0.5, 3.0, 9.0][case % 3];
            let mut logits: Vec<f32> = (0..300).map(|_| (random.next_u64() % 1000) as f32 / 1000.0 * steep).collect();
            let pick = |random: &mut SplitMix64, of: &[f32]| of[random.next_u64() as usize % of.len()];
            let settings = Sampling {
                temperature: pick(&mut random, &[0.0, 0.3, 1.0, 2.0]),
                top_k: pick(&mut random, &[0.0, 0.0, 1.0, 20.0, 64.0, 100.0]) as usize,
                top_p: pick(&mut random, &[1.0, 0.9, 0.5]),
                min_p: pick(&mut random, &[0.0, 0.0, 0.1, 0.9]),
                top_logprobs: [None, None, Some(5)][case % 3],
                logit_bias: if case % 50 == 0 { vec![(3, 5.0)] } else { Vec::new() },
                seed: case as u64,
                ..Sampling::default()
            };
            let found = likeliest(&logits, TOP_LOGITS, settings.temperature);
            let (mut by_all, mut by_few) = (Sampler::new(settings.clone(), &[]), Sampler::new(settings.clone(), &[]));
            for _ in 0..3 {
                let want = by_all.choose(&mut logits.clone(), None).unwrap();
                let Some(have) = by_few.choose_from_top(&found) else {
                    open += 1;
                    assert_eq!(by_few.choose(&mut logits, None).unwrap(), want, "{settings:?}");
                    break;
                };
                decided += 1;
                assert_eq!((have.token, have.top.len()), (want.token, want.top.len()), "{settings:?}");
                let pairs = have.top.iter().zip(&want.top).map(|(a, b)| (a.1, b.1));
                let logprobs = pairs.chain(have.logprob.zip(want.logprob));
                logprobs.for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{settings:?}: {a}, not {b}"));
                assert_eq!(have.logprob.is_some(), settings.top_logprobs.is_some());
            }
        }
        assert!(decided > 5000 && open > 300, "{decided} decided, {open} open");
    }

    /// A token that needs no logits takes the same random numbers as one that is sampled, whatever the filters.
    #[test]
    fn a_forced_token_leaves_the_sampler_as_a_sampled_one_does() {
        for (temperature, top_k, top_p, min_p) in
            [(0.0, 0, 1.0, 0.0), (0.7, 0, 1.0, 0.0), (1.0, 3, 0.9, 0.0), (1.3, 100, 0.5, 0.2), (1.0, 0, 1.0, 0.1)]
        {
            let penalty = Sampling { presence_penalty: 0.5, ..Sampling::default() };
            let settings = Sampling { temperature, top_k, top_p, min_p, seed: 9, ..penalty };
            let (mut sampled, mut forced) = (Sampler::new(settings.clone(), &[1]), Sampler::new(settings, &[1]));
            for round in 0..20 {
                let mut only = vec![f32::NEG_INFINITY; 80];
                only[3] = 0.5;
                assert_eq!(sampled.choose(&mut only, None).unwrap(), forced.take_forced(3));
                let logits: Vec<f32> = (0..80).map(|at| ((at * 7 + round) % 11) as f32 * 0.3).collect();
                let (want, have) =
                    (sampled.choose(&mut logits.clone(), None), forced.choose(&mut logits.clone(), None));
                assert_eq!(want.unwrap(), have.unwrap());
            }
        }
    }

    #[test]
    fn the_same_seed_draws_the_same() {
        let draw = |seed| {
            let mut sampler = Sampler::new(Sampling { temperature: 1.0, seed, ..Sampling::default() }, &[]);
            (0..20).map(|_| sampler.choose(&mut LOGITS.clone(), None).unwrap().token).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_eq!(argmax(&[f32::NAN, 1.0, 2.0, 2.0]), 2);
    }
}
