//! How an answer's tokens are to be chosen: what a request and a model's makers say together. Nothing here chooses.

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// Temperature; 0 is greedy decoding.
    pub temperature: f32,
    /// Number of most likely tokens to sample from; 0 is all.
    pub top_k: usize,
    /// Probability mass of the most likely tokens to sample from (nucleus sampling); 1 is all.
    pub top_p: f32,
    /// Smallest probability relative to the most likely token's; 0 is all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt and answer (Keskar et al. 2019); 1 has no
    /// effect.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the answer.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each time it is in the answer.
    pub frequency_penalty: f32,
    /// Added to the logits of tokens, as (token, bias).
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random generator.
    pub seed: u64,
    /// Number of alternatives to report with each token; `None` without log-probabilities.
    pub top_logprobs: Option<usize>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            top_logprobs: None,
        }
    }
}

impl Sampling {
    /// The first invalid parameter, in words; `None` if all are valid.
    pub fn complaint(&self) -> Option<String> {
        let within = |name: &str, value: f32, low: f32, high: f32| {
            (!(low..=high).contains(&value)).then(|| format!("{name} is {value}; it goes from {low} to {high}"))
        };
        // A probability of 0 would leave no token to draw.
        let top_p = || {
            let allowed = self.top_p > 0.0 && self.top_p <= 1.0;
            (!allowed).then(|| format!("top_p is {}; it must be above 0, and at most 1", self.top_p))
        };
        within("temperature", self.temperature, 0.0, 100.0)
            .or_else(top_p)
            .or_else(|| within("min_p", self.min_p, 0.0, 1.0))
            .or_else(|| within("repetition_penalty", self.repetition_penalty, 0.01, 100.0))
            .or_else(|| within("presence_penalty", self.presence_penalty, -100.0, 100.0))
            .or_else(|| within("frequency_penalty", self.frequency_penalty, -100.0, 100.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_its_range_is_told_with_the_range() {
        let with = |change: fn(&mut Sampling)| {
            let mut sampling = Sampling::default();
            change(&mut sampling);
            sampling.complaint()
        };
        type Case = (fn(&mut Sampling), Option<&'static str>);
        let cases: [Case; 8] = [
            (|s| s.top_p = 0.0, Some("top_p is 0; it must be above 0, and at most 1")),
            (|s| s.top_p = 7.0, Some("top_p is 7; it must be above 0, and at most 1")),
            (|s| s.top_p = f32::NAN, Some("top_p is NaN; it must be above 0, and at most 1")),
            (|s| s.top_p = 1e-30, None),
            (|s| s.top_p = 1.0, None),
            (|s| s.temperature = -1.0, Some("temperature is -1; it goes from 0 to 100")),
            (|s| s.min_p = 1.5, Some("min_p is 1.5; it goes from 0 to 1")),
            (|s| s.repetition_penalty = 0.0, Some("repetition_penalty is 0; it goes from 0.01 to 100")),
        ];
        for (change, told) in cases {
            assert_eq!(with(change).as_deref(), told);
        }
    }
}
