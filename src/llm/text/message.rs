//! A conversation: its turns, the functions a model may call, and what they answered.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// One turn of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// "system", "user", "assistant" or "tool".
    pub role: String,
    /// What was said.
    pub content: String,
    /// What the assistant called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Which call a "tool" turn answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The function that was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// A turn of words.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into(), ..Self::default() }
    }

    /// Instructions, which come first.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What a person says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model has answered.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }
}

/// A call of a function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Names the call.
    pub id: String,
    /// "function".
    #[serde(rename = "type")]
    pub kind: String,
    /// What is called.
    pub function: Function,
}

/// Name and arguments of a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Function {
    /// Of the function.
    pub name: String,
    /// An object: templates want it so, and write it as JSON themselves.
    pub arguments: Value,
}

/// What is to be answered.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Chat {
    /// The turns so far.
    pub messages: Vec<Message>,
    /// `{"type": "function", "function": {"name", "description", "parameters"}}` each.
    pub tools: Vec<Value>,
    /// More of what the template may look at, such as `enable_thinking`.
    pub options: Map<String, Value>,
    /// Special tokens spelled in contents are special, instead of words.
    pub special: bool,
    /// Tokens the prompt may have; longer ones are refused without being made into tokens in full.
    pub limit: Option<usize>,
}

/// A function to offer.
pub fn tool(name: &str, description: Option<&str>, parameters: &Value) -> Value {
    json!({"type": "function", "function": {"name": name, "description": description.unwrap_or(""), "parameters": parameters}})
}
