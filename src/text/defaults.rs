//! A model's defaults for what a request leaves open: sampling, stop strings, system prompt.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::sampling::Sampling;
use crate::checkpoint::Gguf;

/// Most bytes of a stop string.
const STOP_LIMIT: usize = 256;
/// Most stop strings: each is searched after every token.
const STOPS_LIMIT: usize = 64;

/// Defaults of a model.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Defaults {
    /// Whether to sample; otherwise decoding is greedy.
    pub sample: bool,
    /// The sampling parameters that generation_config.json sets; none of them concerns single tokens.
    pub wishes: Wishes,
    /// Stop strings, in addition to a request's.
    pub stops: Vec<String>,
    /// System prompt for conversations without a system message.
    pub system: Option<String>,
}

/// Sampling parameters of a request or of a model's defaults; `None` leaves a parameter open.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Wishes {
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed; taken from the clock if open.
    pub seed: Option<u64>,
    pub top_logprobs: Option<usize>,
}

impl Defaults {
    /// Reads generation_config.json. `seed`, the penalties after `repetition_penalty`, and `system_prompt` are not
    /// fields of `transformers`: a build writes an Ollama model's parameters there.
    pub(super) fn of(generation: &Value) -> Self {
        let number = |field: &str| generation.get(field).and_then(Value::as_f64).map(|number| number as f32);
        let stops = match generation.get("stop_strings") {
            Some(Value::String(stop)) => vec![stop.clone()],
            Some(Value::Array(stops)) => stops.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        Self {
            sample: generation.get("do_sample").and_then(Value::as_bool).unwrap_or(false),
            wishes: Wishes {
                temperature: number("temperature"),
                top_k: generation.get("top_k").and_then(Value::as_u64).and_then(|k| usize::try_from(k).ok()),
                top_p: number("top_p"),
                min_p: number("min_p"),
                repetition_penalty: number("repetition_penalty"),
                presence_penalty: number("presence_penalty"),
                frequency_penalty: number("frequency_penalty"),
                seed: generation.get("seed").and_then(Value::as_u64),
                ..Wishes::default()
            },
            stops: stops.into_iter().filter(|stop| (1..=STOP_LIMIT).contains(&stop.len())).take(STOPS_LIMIT).collect(),
            system: generation.get("system_prompt").and_then(Value::as_str).map(str::to_owned),
        }
    }

    /// The stop strings of the model and of a request.
    pub fn stops(&self, asked: Vec<String>) -> Vec<String> {
        self.stops.iter().cloned().chain(asked).collect()
    }

    /// The sampling parameters of a request, with the model's defaults. Greedy if neither asks for sampling.
    pub fn sampling(&self, wishes: Wishes) -> Sampling {
        let draws = wishes.temperature.is_none() && (self.sample || wishes.top_k.is_some() || wishes.top_p.is_some());
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let (makers, plain) = (&self.wishes, Sampling::default());
        Sampling {
            temperature: wishes.temperature.unwrap_or(if draws { makers.temperature.unwrap_or(1.0) } else { 0.0 }),
            top_k: wishes.top_k.or(makers.top_k).unwrap_or(plain.top_k),
            top_p: wishes.top_p.or(makers.top_p).unwrap_or(plain.top_p),
            min_p: wishes.min_p.or(makers.min_p).unwrap_or(plain.min_p),
            repetition_penalty: wishes.repetition_penalty.or(makers.repetition_penalty).unwrap_or(1.0),
            presence_penalty: wishes.presence_penalty.or(makers.presence_penalty).unwrap_or(0.0),
            frequency_penalty: wishes.frequency_penalty.or(makers.frequency_penalty).unwrap_or(0.0),
            logit_bias: wishes.logit_bias,
            seed: wishes.seed.or(makers.seed).unwrap_or_else(clock),
            top_logprobs: wishes.top_logprobs,
        }
    }
}

/// The sampling that a GGUF recommends (`general.sampling.*` of gguf-py's `constants.py`), as fields of
/// generation_config.json.
pub(super) fn recommended(gguf: &Gguf) -> Map<String, Value> {
    let number = |key: &str| gguf.float(&format!("general.sampling.{key}")).filter(|number| number.is_finite());
    let mut fields = Map::new();
    let known =
        [("temp", "temperature"), ("top_p", "top_p"), ("min_p", "min_p"), ("penalty_repeat", "repetition_penalty")];
    for (theirs, ours) in known {
        if let Some(number) = number(theirs) {
            fields.insert(ours.to_owned(), json!(number));
        }
    }
    if let Some(k) = gguf.integer("general.sampling.top_k") {
        fields.insert("top_k".to_owned(), json!(k.max(0)));
    }
    if let Some(temperature) = number("temp") {
        fields.insert("do_sample".to_owned(), json!(temperature > 0.0));
    }
    let other = gguf.integer("general.sampling.mirostat").is_some_and(|kind| kind != 0);
    if other || number("xtc_probability").is_some_and(|chance| chance != 0.0) {
        tracing::warn!("the GGUF recommends sampling by Mirostat or XTC (`general.sampling`), which is not supported");
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_goes_before_the_makers() {
        let defaults = Defaults::of(&json!({
            "do_sample": true, "temperature": 0.5, "presence_penalty": 0.25, "seed": 7, "stop_strings": ["END", ""],
            "system_prompt": "Jesteś robotem.",
        }));
        let plain = defaults.sampling(Wishes::default());
        assert_eq!((plain.temperature, plain.presence_penalty, plain.seed), (0.5, 0.25, 7));
        let wishes = Wishes { presence_penalty: Some(0.0), seed: Some(8), ..Wishes::default() };
        let asked = defaults.sampling(wishes);
        assert_eq!((asked.presence_penalty, asked.seed), (0.0, 8));
        assert_eq!(defaults.stops(vec!["STOP".to_owned()]), ["END", "STOP"]);
        assert_eq!(defaults.system.as_deref(), Some("Jesteś robotem."));
    }
}
