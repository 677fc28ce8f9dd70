//! How an answer's tokens are to be chosen: what a request and a model's makers say together. Nothing here chooses.

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// 0 always takes the likeliest.
    pub temperature: f32,
    /// Only the k likeliest; 0 is all.
    pub top_k: usize,
    /// Only the likeliest that together have this probability; 1 is all.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the likeliest; 0 is all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt and answer (Keskar et al. 2019); 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from logits of tokens in the answer.
    pub presence_penalty: f32,
    /// Subtracted for every time a token is in the answer.
    pub frequency_penalty: f32,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Makes draws repeatable.
    pub seed: u64,
    /// Alternatives to report with each token.
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
    /// What makes no sense, if anything.
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
