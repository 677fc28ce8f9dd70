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
        within("temperature", self.temperature, 0.0, 100.0)
            .or_else(|| within("top_p", self.top_p, f32::MIN_POSITIVE, 1.0))
            .or_else(|| within("min_p", self.min_p, 0.0, 1.0))
            .or_else(|| within("repetition_penalty", self.repetition_penalty, 0.01, 100.0))
            .or_else(|| within("presence_penalty", self.presence_penalty, -100.0, 100.0))
            .or_else(|| within("frequency_penalty", self.frequency_penalty, -100.0, 100.0))
    }
}
