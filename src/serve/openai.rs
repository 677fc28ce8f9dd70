//! Request bodies of OpenAI's API, and which of their fields this server supports.
//!
//! A field that changes the answer is honoured or refused; one that does not (`metadata`, `store`, …) is ignored.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::turn::{Content, InMessage};
use crate::text::tools::ToolChoice;
use crate::text::{self, Message, Wishes};

/// Fields shared by chat and text completions.
#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "an object")]
pub(super) struct Common {
    pub(super) model: Option<String>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    /// Not in OpenAI's API, but accepted by local servers.
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    n: Option<i64>,
    /// The end user; requests of different users are scheduled in turn.
    pub(super) user: Option<Value>,
    pub(super) stream: Option<bool>,
    stream_options: Option<StreamOptions>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default, expecting = "an object")]
pub(super) struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

/// Which chunks of a stream report token counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UsageChunks {
    Never,
    AtTheEnd,
    Always,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a text or a list of texts")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// Most stop strings of a request.
const MOST_STOPS: usize = 16;
/// Most bytes of `chat_template_kwargs` as JSON.
const MOST_OPTIONS: usize = 64 << 10;
/// Most alternatives per token.
const MOST_LOGPROBS: i64 = 20;

impl Common {
    /// Longest answer in tokens, if the request limits it.
    pub(super) fn limit(&self) -> Result<Option<usize>, ApiError> {
        let (name, limit) = match self.max_completion_tokens {
            Some(limit) => ("max_completion_tokens", Some(limit)),
            None => ("max_tokens", self.max_tokens),
        };
        let checked = |limit: i64| match usize::try_from(limit) {
            Ok(limit) if limit > 0 => Ok(limit),
            _ => Err(ApiError::invalid(name, format!("{name} is {limit}; it must be at least 1"))),
        };
        limit.map(checked).transpose()
    }

    pub(super) fn stops(&self) -> Result<Vec<String>, ApiError> {
        let stops = match &self.stop {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop.clone()],
            Some(OneOrMany::Many(stops)) => stops.clone(),
        };
        if stops.len() > MOST_STOPS {
            return Err(ApiError::invalid("stop", format!("at most {MOST_STOPS} stop strings")));
        }
        Ok(stops)
    }

    pub(super) fn wishes(&self, top_logprobs: Option<usize>) -> Result<Wishes, ApiError> {
        if self.n.is_some_and(|n| n != 1) {
            return Err(ApiError::unsupported("n", "this server gives one answer to a request: n must be 1"));
        }
        let ranges = [
            ("temperature", self.temperature, 0.0, 2.0),
            ("top_p", self.top_p, 0.0, 1.0),
            ("presence_penalty", self.presence_penalty, -2.0, 2.0),
            ("frequency_penalty", self.frequency_penalty, -2.0, 2.0),
        ];
        for (name, value, low, high) in ranges {
            if let Some(value) = value.filter(|value| !(low..=high).contains(value)) {
                return Err(ApiError::invalid(name, format!("{name} is {value}; it goes from {low} to {high}")));
            }
        }
        let biases = self.logit_bias.iter().flatten().map(|(token, bias)| match token.parse() {
            Ok(token) if (-100.0..=100.0).contains(bias) => Ok((token, *bias)),
            _ => Err(ApiError::invalid(
                "logit_bias",
                format!("`{token}: {bias}`: token numbers, biases from -100 to 100"),
            )),
        });
        Ok(Wishes {
            temperature: self.temperature,
            top_k: self.top_k,
            // Zero leaves the likeliest token alone, as OpenAI has it.
            top_p: self.top_p.map(|p| p.max(f32::MIN_POSITIVE)),
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: biases.collect::<Result<_, _>>()?,
            seed: self.seed.map(i64::cast_unsigned),
            top_logprobs,
        })
    }

    pub(super) fn usage_chunks(&self) -> UsageChunks {
        let options = self.stream_options.unwrap_or_default();
        match (options.continuous_usage_stats, options.include_usage) {
            (Some(true), _) => UsageChunks::Always,
            (_, Some(true)) => UsageChunks::AtTheEnd,
            _ => UsageChunks::Never,
        }
    }
}

/// Body of `POST /v1/chat/completions`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "an object")]
pub(super) struct ChatRequest {
    /// Parsed separately: serde's `flatten` would buffer all ignored fields.
    #[serde(skip)]
    pub(super) common: Common,
    messages: Option<Vec<InMessage>>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    response_format: Option<Value>,
    prediction: Option<Prediction>,
    reasoning_effort: Option<String>,
    chat_template_kwargs: Option<Map<String, Value>>,
    /// An extension of vLLM: whether the tokenizer adds special tokens to those of the template.
    add_special_tokens: Option<bool>,
    functions: Option<Value>,
    function_call: Option<Value>,
    modalities: Option<Vec<String>>,
    audio: Option<Value>,
    web_search_options: Option<Value>,
}

/// What the client expects the answer to be (OpenAI's predicted outputs).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Prediction {
    #[serde(rename = "type")]
    kind: String,
    content: Option<Content>,
}

/// Required form of the answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ResponseFormat {
    Text,
    /// JSON that matches this schema.
    Json(Value),
}

impl ChatRequest {
    /// The parsed messages.
    pub(super) fn messages(&self) -> Result<Vec<Message>, ApiError> {
        let messages = self.messages.as_deref().unwrap_or_default();
        if messages.is_empty() {
            return Err(ApiError::invalid("messages", "messages is empty: at least one turn is needed"));
        }
        messages.iter().enumerate().map(|(index, message)| message.read(index)).collect()
    }

    /// The offered functions, each checked.
    pub(super) fn tools(&self) -> Result<Vec<Value>, ApiError> {
        if self.functions.as_ref().or(self.function_call.as_ref()).is_some_and(|value| !value.is_null()) {
            return Err(ApiError::unsupported("functions", "use `tools` and `tool_choice`, which replaced functions"));
        }
        let check = |(index, tool): (usize, &Value)| {
            let param = format!("tools[{index}]");
            if tool["type"] != "function" {
                return Err(ApiError::unsupported(&param, format!("{param}.type must be \"function\"")));
            }
            let function = &tool["function"];
            let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            match function["name"].as_str() {
                Some(name) if (1..=64).contains(&name.len()) && name.chars().all(legal) => {}
                _ => {
                    let rule = "1 to 64 letters, digits, _ and -";
                    return Err(ApiError::invalid(&param, format!("{param}.function.name must be {rule}")));
                }
            }
            let parameters = &function["parameters"];
            let object =
                parameters.as_object().is_some_and(|schema| schema.get("type").is_none_or(|kind| kind == "object"));
            if !parameters.is_null() && !object {
                let rule = "a JSON schema of type \"object\"";
                return Err(ApiError::invalid(&param, format!("{param}.function.parameters must be {rule}")));
            }
            Ok(text::tool(function["name"].as_str().unwrap_or_default(), function["description"].as_str(), parameters))
        };
        let tools: Vec<Value> = self.tools.iter().flatten().enumerate().map(check).collect::<Result<_, _>>()?;
        let mut names = BTreeSet::new();
        match tools.iter().position(|tool| !names.insert(tool["function"]["name"].as_str().unwrap_or_default())) {
            None => Ok(tools),
            Some(second) => {
                let (param, name) = (format!("tools[{second}]"), &tools[second]["function"]["name"]);
                Err(ApiError::invalid(&param, format!("{param}: an earlier function is called {name}, too")))
            }
        }
    }

    /// Whether calls of an offered function must keep to its schema to the letter.
    pub(super) fn is_strict(&self, tool: usize) -> bool {
        let tool = self.tools.as_ref().and_then(|tools| tools.get(tool));
        tool.is_some_and(|tool| tool["function"]["strict"] == Value::Bool(true))
    }

    /// Which of `tools` the answer may or must call.
    pub(super) fn tool_choice(&self, tools: &[Value]) -> Result<ToolChoice, ApiError> {
        let invalid = |message: String| Err(ApiError::invalid("tool_choice", message));
        let choice = match &self.tool_choice {
            None | Some(Value::Null) => return Ok(ToolChoice::Auto),
            Some(Value::String(choice)) => match choice.as_str() {
                "auto" => ToolChoice::Auto,
                "none" => ToolChoice::None,
                "required" => ToolChoice::Required,
                other => {
                    return invalid(format!(
                        "tool_choice is \"{other}\"; it may be auto, none, required or a function"
                    ));
                }
            },
            Some(value) => match value["function"]["name"].as_str() {
                Some(name) if value["type"] == "function" => ToolChoice::Named(name.to_owned()),
                _ => {
                    return invalid(
                        "a tool_choice is {\"type\": \"function\", \"function\": {\"name\": …}}".to_owned(),
                    );
                }
            },
        };
        match &choice {
            ToolChoice::Required if tools.is_empty() => {
                invalid("tool_choice is required, and there are no tools".to_owned())
            }
            ToolChoice::Named(name) if !tools.iter().any(|tool| tool["function"]["name"] == **name) => {
                invalid(format!("tool_choice names `{name}`, which is not among the tools"))
            }
            _ => Ok(choice),
        }
    }

    pub(super) fn parallel(&self) -> bool {
        self.parallel_tool_calls.unwrap_or(true)
    }

    pub(super) fn format(&self) -> Result<ResponseFormat, ApiError> {
        let Some(format) = self.response_format.as_ref().filter(|format| !format.is_null()) else {
            return Ok(ResponseFormat::Text);
        };
        match format["type"].as_str() {
            Some("text") => Ok(ResponseFormat::Text),
            Some("json_object") => Ok(ResponseFormat::Json(serde_json::json!({"type": "object"}))),
            Some("json_schema") => match &format["json_schema"]["schema"] {
                schema @ (Value::Object(_) | Value::Bool(true)) => Ok(ResponseFormat::Json(schema.clone())),
                _ => Err(ApiError::invalid(
                    "response_format",
                    "response_format.json_schema.schema must be a JSON schema",
                )),
            },
            _ => Err(ApiError::invalid(
                "response_format",
                "response_format.type may be text, json_object or json_schema",
            )),
        }
    }

    /// The text that the answer is expected to be; empty without a prediction.
    pub(super) fn prediction(&self) -> Result<String, ApiError> {
        let Some(prediction) = &self.prediction else { return Ok(String::new()) };
        match (prediction.kind.as_str(), &prediction.content) {
            ("content", Some(content)) => content.text("prediction.content"),
            ("content", None) => Err(ApiError::invalid("prediction.content", "prediction.content is missing")),
            _ => Err(ApiError::invalid("prediction.type", "prediction.type must be \"content\"")),
        }
    }

    /// Number of alternatives to report with each token; `None` without log-probabilities.
    pub(super) fn top_logprobs(&self) -> Result<Option<usize>, ApiError> {
        match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (false, Some(_)) => Err(ApiError::invalid("top_logprobs", "top_logprobs needs logprobs to be true")),
            (false, None) => Ok(None),
            (true, count) => logprob_count("top_logprobs", count.unwrap_or(0)).map(Some),
        }
    }

    /// Variables for the chat template, such as whether to think.
    pub(super) fn options(&self) -> Result<Map<String, Value>, ApiError> {
        let mut options = Map::new();
        match self.reasoning_effort.as_deref() {
            None => {}
            Some("none") => drop(options.insert("enable_thinking".to_owned(), false.into())),
            Some("minimal" | "low" | "medium" | "high" | "xhigh" | "max") => {
                options.insert("enable_thinking".to_owned(), true.into());
            }
            Some(other) => {
                let message = format!("reasoning_effort is \"{other}\"; it may be none, minimal, low, medium or high");
                return Err(ApiError::invalid("reasoning_effort", message));
            }
        }
        let given = self.chat_template_kwargs.as_ref();
        if given.is_some_and(|given| Value::from(given.clone()).to_string().len() > MOST_OPTIONS) {
            let message = format!("chat_template_kwargs has more than {} KiB", MOST_OPTIONS >> 10);
            return Err(ApiError::invalid("chat_template_kwargs", message));
        }
        options.extend(given.cloned().unwrap_or_default());
        for taken in ["messages", "tools", "bos_token", "eos_token", "add_generation_prompt"] {
            options.remove(taken);
        }
        Ok(options)
    }

    /// Refuses fields that would change the answer and are not supported.
    pub(super) fn refuse(&self) -> Result<(), ApiError> {
        let speaks = self.modalities.iter().flatten().any(|modality| modality != "text");
        if speaks || self.audio.as_ref().is_some_and(|audio| !audio.is_null()) {
            return Err(ApiError::unsupported("modalities", "this model answers in text"));
        }
        if self.add_special_tokens == Some(true) {
            let message =
                "the chat template says which special tokens a conversation has: add_special_tokens must be false";
            return Err(ApiError::unsupported("add_special_tokens", message));
        }
        if self.web_search_options.as_ref().is_some_and(|options| !options.is_null()) {
            return Err(ApiError::unsupported("web_search_options", "this server does not search the web"));
        }
        Ok(())
    }
}

pub(super) fn logprob_count(name: &str, count: i64) -> Result<usize, ApiError> {
    let range = format!("{name} is {count}; it goes from 0 to {MOST_LOGPROBS}");
    usize::try_from(count).ok().filter(|_| count <= MOST_LOGPROBS).ok_or_else(|| ApiError::invalid(name, range))
}

/// A body whose shared fields and own fields are each parsed from the whole JSON text.
pub(super) trait FromBody: serde::de::DeserializeOwned {
    fn with(self, common: Common) -> Self;
    fn common(&self) -> &Common;
}

impl FromBody for ChatRequest {
    fn with(self, common: Common) -> Self {
        Self { common, ..self }
    }

    fn common(&self) -> &Common {
        &self.common
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(text: &str) -> ChatRequest {
        ChatRequest { common: serde_json::from_str(text).unwrap(), ..serde_json::from_str(text).unwrap() }
    }

    #[test]
    fn what_is_ignored_and_what_is_refused() {
        let fine = chat(
            r#"{"model": "m", "messages": [{"role": "user", "content": "x"}], "user": "me", "store": true, "metadata": {},
                "service_tier": "auto", "prompt_cache_key": "k", "temperature": null, "stop": null, "n": 1, "tools": null,
                "stream_options": null, "response_format": {"type": "text"}, "tool_choice": null, "verbosity": "low"}"#,
        );
        assert_eq!(fine.messages().unwrap(), [Message::new("user", "x")]);
        assert!(fine.common.wishes(None).is_ok() && fine.refuse().is_ok());
        assert_eq!((fine.format().unwrap(), fine.tool_choice(&[]).unwrap()), (ResponseFormat::Text, ToolChoice::Auto));
        let predicted = |content: &str| {
            chat(&format!(r#"{{"prediction": {{"type": "content", "content": {content}}}}}"#)).prediction().unwrap()
        };
        assert_eq!((fine.prediction().unwrap(), predicted("\"a b\"")), (String::new(), "a b".to_owned()));
        assert_eq!(predicted(r#"[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]"#), "a\nb");
        for (text, param) in [
            (r#"{"n": 2}"#, "n"),
            (r#"{"temperature": 3}"#, "temperature"),
            (r#"{"frequency_penalty": -3}"#, "frequency_penalty"),
            (r#"{"logit_bias": {"x": 1}}"#, "logit_bias"),
            (r#"{"logit_bias": {"5": 101}}"#, "logit_bias"),
            (r#"{"max_tokens": 0}"#, "max_tokens"),
            (r#"{"max_completion_tokens": -1}"#, "max_completion_tokens"),
            (r#"{"top_logprobs": 3}"#, "top_logprobs"),
            (r#"{"logprobs": true, "top_logprobs": 21}"#, "top_logprobs"),
            (r#"{"modalities": ["audio"]}"#, "modalities"),
            (r#"{"functions": []}"#, "functions"),
            (r#"{"add_special_tokens": true}"#, "add_special_tokens"),
            (r#"{"tools": [{"type": "web_search"}]}"#, "tools[0]"),
            (r#"{"tools": [{"type": "function", "function": {"name": "a b"}}]}"#, "tools[0]"),
            (
                r#"{"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]}"#,
                "tools[0]",
            ),
            (
                r#"{"tools": [{"type": "function", "function": {"name": "a"}}, {"type": "function", "function": {"name": "a"}}]}"#,
                "tools[1]",
            ),
            (r#"{"tool_choice": "required"}"#, "tool_choice"),
            (r#"{"tool_choice": {"type": "function", "function": {"name": "a"}}}"#, "tool_choice"),
            (r#"{"response_format": {"type": "xml"}}"#, "response_format"),
            (r#"{"response_format": {"type": "json_schema"}}"#, "response_format"),
            (r#"{"reasoning_effort": "huge"}"#, "reasoning_effort"),
            (r#"{"prediction": {"type": "tokens", "content": "x"}}"#, "prediction.type"),
            (r#"{"prediction": {"content": "x"}}"#, "prediction.type"),
            (r#"{"prediction": {"type": "content"}}"#, "prediction.content"),
            (r#"{"prediction": {"type": "content", "content": [{"type": "image_url"}]}}"#, "prediction.content"),
            (r#"{"messages": []}"#, "messages"),
            (r#"{"messages": [{"role": "robot", "content": ""}]}"#, "messages[0].role"),
            (r#"{"messages": [{"content": "x"}]}"#, "messages[0].role"),
            (r#"{"messages": [{"role": "user"}]}"#, "messages[0].content"),
            (r#"{"messages": [{"role": "assistant", "content": "x", "prefix": true}]}"#, "messages[0].prefix"),
            (r#"{"messages": [{"role": "tool", "content": "x"}]}"#, "messages[0].tool_call_id"),
            (r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#, "messages[0].content"),
            (
                r#"{"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "a", "arguments": "{"}}]}]}"#,
                "messages[0].tool_calls",
            ),
        ] {
            let request = chat(text);
            let outcome = (|| {
                request.refuse()?;
                request.common.limit()?;
                request.common.wishes(request.top_logprobs()?)?;
                let tools = request.tools()?;
                request.tool_choice(&tools)?;
                request.format()?;
                request.prediction()?;
                request.options()?;
                if text.contains("messages") { request.messages().map(drop) } else { Ok(()) }
            })();
            let error = outcome.expect_err(text);
            assert_eq!(error.body()["error"]["param"], param, "{text}: {}", error.message);
        }
    }
}
