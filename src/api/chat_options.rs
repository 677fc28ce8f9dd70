//! Options of an answer, named as OpenAI's parameters.

use serde_json::{Map, Value, json};

use crate::text::Wishes;

/// Sampling and limits of an answer. Options that are not set follow the model's generation_config.json, or greedy decoding if it
/// has none.
///
/// ```
/// use watus_build::ChatOptions;
///
/// let brief = ChatOptions::new().max_tokens(64).temperature(0.7).seed(1);
/// let schema = serde_json::json!({
///     "type": "object", "required": ["door"], "properties": { "door": { "enum": ["open", "closed"] } },
/// });
/// let json = brief.clone().json_schema(schema);
/// # let _ = json;
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatOptions {
    pub(super) wishes: Wishes,
    pub(super) max_tokens: Option<usize>,
    pub(super) stop: Vec<String>,
    pub(super) schema: Option<Value>,
    pub(super) template: Map<String, Value>,
    pub(super) special_tokens: bool,
    pub(super) prediction: String,
}

impl ChatOptions {
    /// The model's own defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// With these settings of the sampling.
    #[cfg(feature = "cli")]
    pub(crate) fn sampling(wishes: Wishes) -> Self {
        Self { wishes, ..Self::default() }
    }

    /// Largest number of tokens of the answer. Default: the recipe's `max_output_len`.
    #[must_use]
    pub fn max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = Some(tokens);
        self
    }

    /// 0 takes the likeliest token always; 1 draws as the model says; more is more varied. Up to 100.
    #[must_use]
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.wishes.temperature = Some(temperature);
        self
    }

    /// Draws from the likeliest tokens that have this probability together, above 0 and up to 1.
    #[must_use]
    pub fn top_p(mut self, probability: f32) -> Self {
        self.wishes.top_p = Some(probability);
        self
    }

    /// Draws from this many of the likeliest tokens.
    #[must_use]
    pub fn top_k(mut self, count: usize) -> Self {
        self.wishes.top_k = Some(count);
        self
    }

    /// Draws from tokens that are at least this fraction as likely as the likeliest, 0 to 1.
    #[must_use]
    pub fn min_p(mut self, fraction: f32) -> Self {
        self.wishes.min_p = Some(fraction);
        self
    }

    /// Above 1, makes tokens of prompt and answer less likely.
    #[must_use]
    pub fn repetition_penalty(mut self, factor: f32) -> Self {
        self.wishes.repetition_penalty = Some(factor);
        self
    }

    /// Subtracted from the logit of a token that is in the answer.
    #[must_use]
    pub fn presence_penalty(mut self, penalty: f32) -> Self {
        self.wishes.presence_penalty = Some(penalty);
        self
    }

    /// Subtracted from the logit of a token for each time it is in the answer.
    #[must_use]
    pub fn frequency_penalty(mut self, penalty: f32) -> Self {
        self.wishes.frequency_penalty = Some(penalty);
        self
    }

    /// Added to the logit of a token, by its number; once for each token.
    #[must_use]
    pub fn logit_bias(mut self, token: u32, bias: f32) -> Self {
        self.wishes.logit_bias.push((token, bias));
        self
    }

    /// Makes draws repeatable. Default: by the clock.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.wishes.seed = Some(seed);
        self
    }

    /// Reports each token's log-probability, and this many alternatives, in [`crate::AnswerPiece::choice`].
    #[must_use]
    pub fn top_logprobs(mut self, count: usize) -> Self {
        self.wishes.top_logprobs = Some(count);
        self
    }

    /// Ends the answer before this text; once for each text.
    #[must_use]
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(text.into());
        self
    }

    /// What the answer is expected to be, mostly, such as a file that is to be changed in one place. A right expectation saves
    /// time, a wrong one changes nothing.
    #[must_use]
    pub fn prediction(mut self, text: impl Into<String>) -> Self {
        self.prediction = text.into();
        self
    }

    /// The answer is a JSON object: no token is chosen that would make anything else of it. An answer that ends for
    /// [`crate::Finish::Length`] was cut off, and is no whole JSON.
    #[must_use]
    pub fn json_object(self) -> Self {
        self.json_schema(json!({ "type": "object" }))
    }

    /// The answer is JSON of this schema, which is an object as JSON Schema describes it: no token is chosen that would make
    /// anything else of it. A property that the schema does not call `required` may be left out. An answer that ends for
    /// [`crate::Finish::Length`] was cut off, and is no whole JSON.
    #[must_use]
    pub fn json_schema(mut self, schema: Value) -> Self {
        self.schema = Some(schema);
        self
    }

    /// Something that the model's chat template looks at, such as `enable_thinking`; OpenAI-compatible servers call it
    /// `chat_template_kwargs`.
    #[must_use]
    pub fn template_option(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.template.insert(name.into(), value.into());
        self
    }

    /// Takes special tokens that messages spell for what they are. Whoever writes the messages can then end a turn and begin
    /// one of the system's. Default: false, they are words.
    #[must_use]
    pub fn allow_special_tokens(mut self, allow: bool) -> Self {
        self.special_tokens = allow;
        self
    }
}
