//! Messages of a conversation in OpenAI's JSON.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::ApiError;
use crate::text::{Function, Message, ToolCall};

#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "an object")]
pub(super) struct InMessage {
    role: String,
    content: Option<Content>,
    tool_calls: Option<Vec<InCall>>,
    tool_call_id: Option<String>,
    name: Option<String>,
    /// An extension of other servers: the answer continues this message.
    prefix: Option<bool>,
    partial: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a text or a list of parts")]
pub(super) enum Content {
    Text(String),
    Parts(Vec<Map<String, Value>>),
}

impl Content {
    /// The text of all parts; `place` names the content in errors.
    pub(super) fn text(&self, place: &str) -> Result<String, ApiError> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::Parts(parts) => joined(parts, place),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
struct InCall {
    id: String,
    function: InFunction,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
struct InFunction {
    name: String,
    #[serde(default)]
    arguments: String,
}

/// Joins the text parts of a content; `place` names it in errors.
fn joined(parts: &[Map<String, Value>], place: &str) -> Result<String, ApiError> {
    let mut texts = Vec::new();
    for (part, value) in parts.iter().enumerate() {
        match (value.get("type").and_then(Value::as_str), value.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(text)) => texts.push(text),
            (Some("refusal"), _) => {}
            (kind, _) => {
                let kind = kind.unwrap_or("nothing");
                let message = format!("{place}[{part}] is {kind}; this model reads text alone");
                return Err(ApiError::unsupported(place, message));
            }
        }
    }
    Ok(texts.join("\n"))
}

impl InMessage {
    /// Converts message number `index`.
    pub(super) fn read(&self, index: usize) -> Result<Message, ApiError> {
        let at = |field: &str| format!("messages[{index}].{field}");
        let role = match self.role.as_str() {
            role @ ("system" | "developer" | "user" | "assistant" | "tool") => role,
            "" => return Err(ApiError::invalid(&at("role"), format!("{} is missing", at("role")))),
            other => {
                let message =
                    format!("{} is \"{other}\"; it may be system, developer, user, assistant or tool", at("role"));
                return Err(ApiError::invalid(&at("role"), message));
            }
        };
        for (field, wanted) in [("prefix", self.prefix), ("partial", self.partial)] {
            if wanted == Some(true) {
                let message = format!("{}: this server answers with turns of its own", at(field));
                return Err(ApiError::unsupported(&at(field), message));
            }
        }
        let content = match &self.content {
            None => String::new(),
            Some(content) => content.text(&at("content"))?,
        };
        let calls = self.tool_calls.as_deref().unwrap_or_default();
        if self.content.is_none() && calls.is_empty() && role != "assistant" {
            return Err(ApiError::invalid(&at("content"), format!("{} is missing", at("content"))));
        }
        if role == "tool" && self.tool_call_id.is_none() {
            return Err(ApiError::invalid(&at("tool_call_id"), format!("{} is missing", at("tool_call_id"))));
        }
        let calls = calls.iter().map(|call| {
            let arguments = if call.function.arguments.trim().is_empty() { "{}" } else { &call.function.arguments };
            let arguments = serde_json::from_str(arguments).map_err(|error| {
                let message = format!("arguments of call `{}` are not JSON: {error}", call.id);
                ApiError::invalid(&at("tool_calls"), message)
            })?;
            let function = Function { name: call.function.name.clone(), arguments };
            Ok(ToolCall { id: call.id.clone(), kind: "function".to_owned(), function })
        });
        Ok(Message {
            role: role.to_owned(),
            content,
            tool_calls: calls.collect::<Result<_, ApiError>>()?,
            tool_call_id: self.tool_call_id.clone(),
            name: self.name.clone(),
        })
    }
}
