//! Options of an answer, named as OpenAI's parameters.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::diagnostic::Diagnostic;
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
/// // The same, of a text, which may come from a file: no crate for JSON is needed.
/// let text = r#"{"type": "object", "required": ["door"], "properties": {"door": {"enum": ["open", "closed"]}}}"#;
/// assert_eq!(json, brief.json_schema(text));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatOptions {
    pub(super) wishes: Wishes,
    pub(super) max_tokens: Option<usize>,
    pub(super) stop: Vec<String>,
    pub(super) schema: Option<Result<Value, Diagnostic>>,
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
    ///
    /// A schema is its text (`&str` or `String`), or a value that serialises to it: a `serde_json::Value`, or what
    /// `schemars::schema_for!` makes of a type. One that is no JSON, no object, or asks for what cannot be enforced is an error of
    /// [`crate::ChatModel::chat_with`].
    #[must_use]
    pub fn json_schema(mut self, schema: impl Serialize) -> Self {
        self.schema = Some(schema_of(serde_json::to_value(schema)));
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

/// A schema of what was given: no schema is a string, so a string is the text of one.
fn schema_of(given: serde_json::Result<Value>) -> Result<Value, Diagnostic> {
    let schema = match given {
        Ok(Value::String(text)) => serde_json::from_str(&text),
        given => given,
    };
    match schema {
        Ok(schema @ Value::Object(_)) => Ok(schema),
        Ok(_) => Err(Diagnostic::new("the JSON schema of the answer is no object")
            .with_help(r#"write e.g. {"type": "object", "properties": {"door": {"enum": ["open", "closed"]}}}"#)),
        Err(error) => Err(Diagnostic::new(format!("the JSON schema of the answer is no JSON: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_schema_is_a_value_or_its_text() {
        let schema = json!({"enum": ["tak", "nie", "może"]});
        let same = [
            ChatOptions::new().json_schema(schema.clone()),
            ChatOptions::new().json_schema(&schema),
            ChatOptions::new().json_schema(schema.to_string()),
            ChatOptions::new().json_schema(r#" {"enum": ["tak", "nie", "może"]} "#),
            ChatOptions::new().json_schema(BTreeMap::from([("enum", ["tak", "nie", "może"])])),
        ];
        for options in same {
            assert_eq!(options.schema, Some(Ok(schema.clone())));
        }
        let wrong = [
            (ChatOptions::new().json_schema("{\"enum\": ["), "is no JSON: EOF while parsing"),
            (ChatOptions::new().json_schema("object"), "is no JSON: expected value at line 1 column 1"),
            (ChatOptions::new().json_schema("\"object\""), "is no object"),
            (ChatOptions::new().json_schema(json!([])), "is no object"),
            (ChatOptions::new().json_schema(true), "is no object"),
            (ChatOptions::new().json_schema(BTreeMap::from([((1, 2), 3)])), "is no JSON: key must be a string"),
        ];
        for (options, told) in wrong {
            let error = options.schema.unwrap().unwrap_err();
            assert!(error.message.contains(told), "{error}");
        }
    }
}
