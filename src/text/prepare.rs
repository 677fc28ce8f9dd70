//! A conversation made ready for its answer: the prompt, the grammar that the answer is held to, and who reads it.

use serde_json::Value;

use super::Text;
use super::answer::AnswerReader;
use super::error::TextError;
use super::message::Chat;
use super::tools::{self, Rules, ToolChoice};

/// What an answer must be, besides what the conversation says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AnswerForm {
    /// Which of the conversation's functions may or must be called.
    pub tool_choice: ToolChoice,
    /// More than one of them.
    pub parallel_tool_calls: bool,
    /// Words are JSON of this schema.
    pub schema: Option<Value>,
}

/// A conversation that is ready to be answered.
pub struct PreparedChat {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// What the answer is held to, in Lark and still to be compiled; `None` if anything may be said.
    pub grammar: Option<String>,
    /// Parts the answer into thoughts, words and calls.
    pub reader: AnswerReader,
    /// Functions may be called, so special tokens of the answer are to be spelled.
    pub calls: bool,
}

impl Text {
    /// Prepares a conversation. What is to be enforced is answered without thoughts, unless the conversation's options ask for
    /// them: that becomes one of its options.
    pub fn prepare(&self, chat: &mut Chat, form: &AnswerForm) -> Result<PreparedChat, TextError> {
        let AnswerForm { tool_choice: choice, parallel_tool_calls: parallel, schema } = form;
        let traits = self.traits();
        let calls = !chat.tools.is_empty() && *choice != ToolChoice::None;
        let forced = schema.is_some() || (calls && *choice != ToolChoice::Auto);
        if forced && traits.is_some_and(|traits| traits.switch) {
            chat.options.entry("enable_thinking").or_insert(Value::Bool(false));
        }
        let prompt = self.encode(chat)?;
        let thinks = traits.is_some_and(|traits| traits.thoughts) || prompt.thinking;
        let wanted = chat.options.get("enable_thinking").is_none_or(|wanted| *wanted != Value::Bool(false));
        let thinking = (thinks && (wanted || prompt.thinking)).then_some(prompt.thinking);
        let style = traits.map(|traits| traits.style);
        let special = |spelling: &str| self.special(spelling);
        let grammar = style.and_then(|style| {
            let (tools, schema, parallel) = (&chat.tools, schema.as_ref(), *parallel);
            tools::grammar(&Rules { style, tools, choice, parallel, schema, thinking, special: &special })
        });
        let reader = AnswerReader::new(style.filter(|_| calls), thinking);
        Ok(PreparedChat { tokens: prompt.tokens, grammar, reader, calls })
    }
}
