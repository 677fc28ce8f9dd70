//! A client of a server with OpenAI's API.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use serde_json::{Value, json};

/// A server, and the key and model for requests to it.
pub struct Endpoint {
    agent: ureq::Agent,
    base: String,
    key: Option<String>,
    pub(super) model: String,
}

/// An HTTP response.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) retry_after: Option<String>,
    pub(super) body: Value,
}

impl Endpoint {
    /// Connects to the server at `url`, with or without /v1; `model` defaults to the first that it lists.
    pub fn new(url: &str, key: Option<String>, model: Option<String>) -> Result<Self, String> {
        let root = url.trim_end_matches('/').trim_end_matches("/v1");
        let config = ureq::Agent::config_builder();
        let config = config.http_status_as_error(false).timeout_global(Some(Duration::from_secs(600)));
        let base = format!("{root}/v1");
        let mut endpoint = Self { agent: config.build().into(), base, key, model: String::new() };
        endpoint.model = match model {
            Some(model) => model,
            None => {
                let models = endpoint.get("/models")?;
                let first = models.body["data"][0]["id"].as_str();
                first.ok_or_else(|| format!("{root} lists no models: {}", models.body))?.to_owned()
            }
        };
        Ok(endpoint)
    }

    /// The model that is requested.
    pub fn model(&self) -> &str {
        &self.model
    }

    fn finish(&self, response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Reply, String> {
        let mut response = response.map_err(|error| format!("{}: {error}", self.base))?;
        let retry_after =
            response.headers().get("retry-after").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let text = response.body_mut().read_to_string().map_err(|error| error.to_string())?;
        let body =
            serde_json::from_str(&text).map_err(|error| format!("the body is not JSON ({error}): {text:.200}"))?;
        Ok(Reply { status: response.status().as_u16(), retry_after, body })
    }

    pub(super) fn get(&self, path: &str) -> Result<Reply, String> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        self.finish(request.call())
    }

    pub(super) fn send(&self, body: &Value) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        // Servers that ask for no key are sent one all the same: clients always do.
        let key = self.key.as_deref().unwrap_or("not-needed");
        let request = self.agent.post(format!("{}/chat/completions", self.base));
        request.header("authorization", format!("Bearer {key}")).send_json(body)
    }

    pub(super) fn request(&self, words: &str, more: &Value) -> Value {
        let mut body = json!({"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": words}]});
        if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
            body.extend(more.clone());
        }
        body
    }

    pub(super) fn reply(&self, words: &str, more: &Value) -> Result<Reply, String> {
        self.finish(self.send(&self.request(words, more)))
    }

    /// Requests a whole answer to `words` with the fields `more`; returns its only choice and its usage. The response's
    /// common fields are checked.
    pub(super) fn choice(&self, words: &str, more: &Value) -> Result<(Value, Value), String> {
        let Reply { status, body, .. } = self.reply(words, more)?;
        ensure(status == 200, || format!("status {status}: {body}"))?;
        ensure(body["object"] == "chat.completion" && body["id"].is_string() && body["created"].is_u64(), || {
            format!("id, object or created is missing: {body}")
        })?;
        let usage = &body["usage"];
        let count = |name: &str| usage[name].as_u64().ok_or_else(|| format!("usage.{name} is missing: {usage}"));
        let total = count("prompt_tokens")? + count("completion_tokens")?;
        ensure(count("total_tokens")? == total, || format!("usage does not add up: {usage}"))?;
        let choice = body["choices"][0].clone();
        ensure(choice["message"]["role"] == "assistant", || format!("no message of the assistant: {body}"))?;
        let reasons = ["stop", "length", "tool_calls", "content_filter", "function_call"];
        let reason = choice["finish_reason"].as_str().unwrap_or_default();
        ensure(reasons.contains(&reason), || format!("finish_reason is {reason:?}, which clients refuse"))?;
        Ok((choice, body["usage"].clone()))
    }

    /// Requests a stream and returns its chunks up to the end.
    pub(super) fn chunks(&self, words: &str, more: &Value) -> Result<Vec<Value>, String> {
        let mut body = self.request(words, more);
        body["stream"] = true.into();
        let response = self.send(&body).map_err(|error| error.to_string())?;
        ensure(response.status().as_u16() == 200, || format!("status {}", response.status()))?;
        let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        ensure(kind.starts_with("text/event-stream"), || format!("content-type is {kind:?}"))?;
        let mut chunks = Vec::new();
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line.map_err(|error| error.to_string())?;
            match line.strip_prefix("data: ") {
                Some("[DONE]") => return Ok(chunks),
                Some(data) => chunks.push(serde_json::from_str(data).map_err(|error| format!("{error} in {data}"))?),
                None => {}
            }
        }
        Err("the stream ended without [DONE]".to_owned())
    }
}

pub(super) fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}
