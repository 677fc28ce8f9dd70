//! Conversations: messages, offered functions, calls and their results.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A message of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// "system", "user", "assistant" or "tool".
    pub role: String,
    /// Text of the message.
    pub content: String,
    /// Calls by the assistant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Id of the call that a "tool" message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Name of the function that a "tool" message comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// A message with text only.
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
    /// Id of the call.
    pub id: String,
    /// Always "function".
    #[serde(rename = "type")]
    pub kind: String,
    /// The function and its arguments.
    pub function: Function,
}

/// Name and arguments of a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Function {
    /// Name of the function.
    pub name: String,
    /// Arguments as an object; templates write it as JSON themselves.
    pub arguments: Value,
}

/// A conversation to be continued by the assistant.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Chat {
    /// The messages so far.
    pub messages: Vec<Message>,
    /// Offered functions, each as `{"type": "function", "function": {"name", "description", "parameters"}}`.
    pub tools: Vec<Value>,
    /// Further variables of the template, such as `enable_thinking`.
    pub options: Map<String, Value>,
    /// Whether special tokens written in contents are encoded as special tokens instead of text.
    pub special: bool,
    /// Most tokens of the prompt; longer ones are refused without being tokenised in full.
    pub limit: Option<usize>,
}

/// A function to offer.
pub fn tool(name: &str, description: Option<&str>, parameters: &Value) -> Value {
    json!({"type": "function", "function": {"name": name, "description": description.unwrap_or(""), "parameters": parameters}})
}
