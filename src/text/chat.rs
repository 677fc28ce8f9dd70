//! Encodes conversations as tokens: arranges their messages as the model's template supports them, and renders the
//! template.

use super::Text;
use super::error::TextError;
use super::message::{Chat, Message};
use super::plain::Plain;
use super::template::Traits;
use super::tools::{self, Style};
use crate::diagnostic::Diagnostic;

/// An encoded conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Tokens up to where the assistant's answer begins.
    pub tokens: Vec<u32>,
    /// Whether the prompt ends inside of reasoning, which the answer continues.
    pub thinking: bool,
}

impl Text {
    /// Encodes messages, up to where the assistant's answer begins.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, TextError> {
        Ok(self.encode(&Chat { messages: messages.to_vec(), ..Chat::default() })?.tokens)
    }

    /// The tokens that every conversation with this system prompt begins with; empty if there is no such prefix.
    pub fn beginning(&self, system: &str) -> Vec<u32> {
        let ask = |words: &str| {
            let messages = vec![Message::new("system", system), Message::new("user", words)];
            self.encode_chat(&messages).unwrap_or_default()
        };
        let (one, other) = (ask("A"), ask("7"));
        one.iter().zip(&other).take_while(|(one, other)| one == other).map(|(token, _)| *token).collect()
    }

    /// Encodes a conversation with functions and options.
    pub fn encode(&self, chat: &Chat) -> Result<Prompt, TextError> {
        let (template, traits) = self.template.as_ref().zip(self.traits).ok_or_else(|| TextError::File {
            path: self.folder.clone(),
            message: Diagnostic::new("the model has no chat template: it completes texts, and may not converse")
                .with_help("use `--raw` or /v1/completions, or give the recipe a `chat_template: FILE.jinja`"),
        })?;
        let mut chat = chat.clone();
        let tells = chat.messages.first().is_some_and(|first| matches!(first.role.as_str(), "system" | "developer"));
        if let Some(system) = self.defaults.system.as_ref().filter(|_| !tells) {
            chat.messages.insert(0, Message::new("system", system));
        }
        let mark = if chat.special { None } else { self.plain.protect(&mut chat) };
        let chat = arrange(chat, traits);
        let rendered = match template.render(&chat) {
            // Some insist on turns that alternate.
            Err(first) => {
                let joined = Chat { messages: join(chat.messages.clone()), ..chat.clone() };
                let again = (joined.messages.len() < chat.messages.len()).then(|| template.render(&joined));
                again.unwrap_or(Err(first))?
            }
            Ok(rendered) => rendered,
        };
        let thinking = rendered.trim_end().ends_with("<think>");
        // The template writes the special tokens itself.
        let tokens = match mark.filter(|mark| *mark != char::REPLACEMENT_CHARACTER) {
            None => self.tokens_within(&rendered, false, chat.limit)?,
            Some(mark) => self.joined(&Plain::parts(&rendered, mark), chat.limit)?,
        };
        Ok(Prompt { tokens, thinking })
    }
}

/// Merges system messages into one at the beginning, and rewrites as text what the template does not support.
fn arrange(mut chat: Chat, traits: Traits) -> Chat {
    let is_system = |message: &Message| matches!(message.role.as_str(), "system" | "developer");
    let leading = chat.messages.iter().take_while(|message| is_system(message)).count();
    let mut system: Vec<String> = chat.messages.drain(..leading).map(|message| message.content).collect();
    chat.messages
        .iter_mut()
        .filter(|message| is_system(message))
        .for_each(|message| message.role = "system".to_owned());
    if traits.style == Style::Prompted {
        if !chat.tools.is_empty() {
            system.push(tools::offer(&chat.tools));
        }
        chat.tools.clear();
        chat.messages = join(chat.messages.into_iter().map(tools::in_words).collect());
    }
    if traits.style == Style::Mistral {
        for message in &mut chat.messages {
            message.tool_calls.iter_mut().for_each(|call| call.id = nine(&call.id));
            message.tool_call_id = message.tool_call_id.take().map(|id| nine(&id));
        }
    }
    let system = system.join("\n\n");
    if system.is_empty() {
        return chat;
    }
    match chat.messages.first_mut().filter(|first| !traits.system && first.role == "user") {
        Some(first) => first.content = format!("{system}\n\n{}", first.content),
        None => chat.messages.insert(0, Message::new(if traits.system { "system" } else { "user" }, system)),
    }
    chat
}

/// A call's id for Mistral's templates, which only accept nine letters and digits; others are replaced by a hash.
fn nine(id: &str) -> String {
    if id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return id.to_owned();
    }
    // FNV-1a, 64 bits.
    let hash =
        id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")[..9].to_owned()
}

/// Merges adjacent messages of the same role, if they contain only text.
fn join(messages: Vec<Message>) -> Vec<Message> {
    let mut joined: Vec<Message> = Vec::new();
    let words = |message: &Message| message.tool_calls.is_empty() && message.tool_call_id.is_none();
    for message in messages {
        match joined.last_mut() {
            Some(last) if last.role == message.role && words(last) && words(&message) => {
                last.content = format!("{}\n\n{}", last.content, message.content);
            }
            _ => joined.push(message),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::text::message::{Function, ToolCall, tool};

    const PROMPTED: Traits = Traits { style: Style::Prompted, system: true, thoughts: false, switch: false };

    fn roles(chat: &Chat) -> Vec<(&str, &str)> {
        chat.messages.iter().map(|message| (message.role.as_str(), message.content.as_str())).collect()
    }

    #[test]
    fn system_turns_become_one() {
        let messages =
            [("system", "A"), ("developer", "B"), ("user", "C")].map(|(role, text)| Message::new(role, text));
        let chat = Chat { messages: messages.to_vec(), ..Chat::default() };
        assert_eq!(roles(&arrange(chat.clone(), PROMPTED)), [("system", "A\n\nB"), ("user", "C")]);
        let none = Traits { system: false, ..PROMPTED };
        assert_eq!(roles(&arrange(chat, none)), [("user", "A\n\nB\n\nC")]);
    }

    #[test]
    fn mistral_gets_names_of_nine() {
        assert_eq!(nine("abcDEF123"), "abcDEF123");
        let long = nine("call_0123456789abcdef");
        assert!(long.len() == 9 && long != nine("call_0123456789abcdee") && long == nine("call_0123456789abcdef"));
    }

    #[test]
    fn calls_and_results_become_words_where_the_template_has_none() {
        let call = |id: &str| ToolCall {
            id: id.to_owned(),
            kind: "function".to_owned(),
            function: Function { name: "look".to_owned(), arguments: json!({"at": "door"}) },
        };
        let result = |id: &str, text: &str| Message { tool_call_id: Some(id.to_owned()), ..Message::new("tool", text) };
        let asked = Message { tool_calls: vec![call("1"), call("2")], ..Message::new("assistant", "") };
        let messages = vec![Message::new("user", "Look!"), asked, result("1", "open"), result("2", "shut")];
        let tools = vec![tool("look", Some("Looks."), &json!({"type": "object"}))];
        let chat = arrange(Chat { messages, tools, ..Chat::default() }, PROMPTED);
        let turns = roles(&chat);
        assert_eq!(turns.iter().map(|turn| turn.0).collect::<Vec<_>>(), ["system", "user", "assistant", "user"]);
        assert!(turns[0].1.contains("\"name\": \"look\"") && chat.tools.is_empty());
        let called = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"door\"}}\n</tool_call>";
        assert_eq!(turns[2].1, format!("{called}\n{called}"));
        assert!(turns[3].1.contains("open") && turns[3].1.contains("shut"));
    }
}
