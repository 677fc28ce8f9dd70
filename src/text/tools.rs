//! Function calling: the form of each family's template, the grammar of an answer with calls, and plain text for
//! templates without functions.

use serde_json::{Value, json};

use super::jinja;
use super::lark::{json_rule, literal};
use super::message::Message;

/// Form of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Hermes and Qwen: `<tool_call>\n{"name": …, "arguments": …}\n</tool_call>`, any number.
    Hermes,
    /// Llama 3: a single `{"name": …, "parameters": …}`.
    Llama3,
    /// Mistral: `[TOOL_CALLS] [{"name": …, "arguments": …}, …]`.
    Mistral,
    /// Like Hermes, explained in the system message because the template does not support functions.
    Prompted,
}

/// Whether functions may or must be called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// Text or calls.
    #[default]
    Auto,
    /// Text only.
    None,
    /// At least one call.
    Required,
    /// A call of this function.
    Named(String),
}

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";
pub(super) const MISTRAL: &str = "[TOOL_CALLS]";
pub(super) const PYTHON: &str = "<|python_tag|>";
pub(super) const THINK: (&str, &str) = ("<think>", "</think>");

impl Style {
    /// Recognises the form by the template's source.
    pub(super) fn of(template: &str) -> Self {
        // Newer models of the same makers spell calls otherwise: name and arguments apart, or every argument in tags.
        let json = !["[ARGS]", "<function=", "<arg_key>"].iter().any(|mark| template.contains(mark));
        if !template.contains("tools") || !json {
            Self::Prompted
        } else if template.contains(MISTRAL) {
            Self::Mistral
        } else if template.contains(OPEN) && template.contains("arguments") {
            Self::Hermes
        } else if template.contains("<|start_header_id|>") && template.contains("\"parameters\": ") {
            Self::Llama3
        } else {
            Self::Prompted
        }
    }

    /// The key of a call's arguments.
    pub(super) fn arguments(self) -> &'static str {
        if self == Self::Llama3 { "parameters" } else { "arguments" }
    }
}

/// Requirements of an answer.
#[derive(Clone)]
pub struct Rules<'a> {
    /// Form of calls.
    pub style: Style,
    /// The offered functions.
    pub tools: &'a [Value],
    /// Which functions may or must be called.
    pub choice: &'a ToolChoice,
    /// Whether several calls are allowed.
    pub parallel: bool,
    /// Schema of the text, which is JSON then.
    pub schema: Option<&'a Value>,
    /// Whether the answer may begin with reasoning; `Some(true)` if the prompt ends inside of it.
    pub thinking: Option<bool>,
    /// Returns the number of the special token with this text.
    pub special: &'a dyn Fn(&str) -> Option<u32>,
}

/// The grammar of an answer; `None` if any text is allowed.
pub fn grammar(rules: &Rules<'_>) -> Option<String> {
    let called = match rules.choice {
        ToolChoice::None => &[],
        _ => rules.tools,
    };
    if called.is_empty() && rules.schema.is_none() {
        return None;
    }
    let mut lark = String::from("TEXT: /(.|\\n)*/\n");
    let words = match rules.schema {
        Some(schema) => {
            lark.push_str(&json_rule("words", schema));
            "words"
        }
        None => "TEXT",
    };
    // A marker that is a special token is that token; else it is spelled.
    let marker = |text: &str| match (rules.special)(text) {
        Some(token) => format!("<[{token}]>"),
        None => literal(text),
    };
    let alternatives = functions(rules, called, &mut lark);
    let free = *rules.choice == ToolChoice::Auto;
    let body = if alternatives.is_empty() {
        words.to_owned()
    } else {
        lark.push_str(&format!("call: {}\n", alternatives.join(" | ")));
        let (first, calls) = calls(rules, &marker, &mut lark);
        match (free, rules.schema) {
            // JSON and a call of Llama 3 both begin with a brace; the grammar tells them apart.
            (true, Some(_)) => format!("words | {calls}"),
            (true, None) if rules.style == Style::Llama3 => {
                lark.push_str("plain: /[^{](.|\\n)*/\n");
                format!("plain | {calls}")
            }
            (true, None) => format!("TEXT | {}", first.unwrap_or(calls)),
            (false, _) => calls,
        }
    };
    let forced = !free || rules.schema.is_some();
    let start = match rules.thinking.filter(|_| forced) {
        None => body,
        Some(opened) => {
            let (open, close) = (marker(THINK.0), marker(THINK.1));
            if (rules.special)(THINK.1).is_some() {
                lark.push_str(&format!("thoughts: TEXT {close}\n"));
            } else {
                lark.push_str("thoughts[lazy]: /(.|\\n)*<\\/think>/\n");
            }
            lark.push_str("GAP: /\\n{0,2}/\n");
            if opened { format!("thoughts GAP ({body})") } else { format!("({open} thoughts GAP)? ({body})") }
        }
    };
    lark.push_str(&format!("start: {start}\n"));
    Some(lark)
}

/// Adds the rules of the functions that may be called, with their arguments' schemas; returns the rules' names.
fn functions(rules: &Rules<'_>, called: &[Value], lark: &mut String) -> Vec<String> {
    let mut alternatives = Vec::new();
    for (index, tool) in called.iter().enumerate() {
        let name = tool["function"]["name"].as_str().unwrap_or_default();
        if matches!(rules.choice, ToolChoice::Named(chosen) if chosen != name) {
            continue;
        }
        let begin = format!("{{\"name\": {}, \"{}\": ", Value::from(name), rules.style.arguments());
        lark.push_str(&format!("call_{index}: {} arguments_{index} \"}}\"\n", literal(&begin)));
        let parameters = match &tool["function"]["parameters"] {
            Value::Object(object) if !object.is_empty() => Value::Object(object.clone()),
            _ => json!({"type": "object", "properties": {}}),
        };
        lark.push_str(&json_rule(&format!("arguments_{index}"), &parameters));
        alternatives.push(format!("call_{index}"));
    }
    alternatives
}

/// Adds the rules of one or more calls: returns the rule for calls after text, if the form has one, and the rule for
/// calls from the start.
fn calls(rules: &Rules<'_>, marker: &dyn Fn(&str) -> String, lark: &mut String) -> (Option<String>, String) {
    match rules.style {
        Style::Llama3 => {
            let tag = (rules.special)(PYTHON).map(|token| format!("<[{token}]>? ")).unwrap_or_default();
            (None, format!("{tag}call"))
        }
        Style::Mistral => {
            let more = if rules.parallel { " (\", \" call)*" } else { "" };
            let list = format!("\"[\" call{more} \"]\"");
            let whole = format!("{} \" \"? {list}", marker(MISTRAL));
            match (rules.special)(MISTRAL) {
                Some(_) => (Some(format!("TEXT? {whole}")), whole),
                None => {
                    lark.push_str("head[lazy]: /(.|\\n)*\\[TOOL_CALLS\\] ?/\n");
                    (Some(format!("head {list}")), whole)
                }
            }
        }
        Style::Hermes | Style::Prompted => {
            let (open, close) = (marker(OPEN), marker(CLOSE));
            lark.push_str(&format!("block: {open} \"\\n\" call \"\\n\" {close}\n"));
            let more = if rules.parallel { " (\"\\n\" block)*" } else { "" };
            let first = if (rules.special)(OPEN).is_some() {
                format!("TEXT? block{more}")
            } else {
                lark.push_str("head[lazy]: /(.|\\n)*<tool_call>\\n/\n");
                format!("head call \"\\n\" {close}{more}")
            };
            (Some(first), format!("block{more}"))
        }
    }
}

/// The text that offers functions to a model whose template does not support them.
pub(super) fn offer(tools: &[Value]) -> String {
    let listed: Vec<String> = tools.iter().map(|tool| jinja::json(&tool["function"])).collect();
    format!(
        "These functions may be called, each given with the JSON schema of its parameters:\n{}\n\nA call is written as \
         below, with nothing after it; its result comes back between <tool_response> and </tool_response>.\n{OPEN}\n\
         {{\"name\": \"the function\", \"arguments\": {{\"a parameter\": \"its value\"}}}}\n{CLOSE}",
        listed.join("\n")
    )
}

/// Converts a message with calls or a result to text.
pub(super) fn in_words(message: Message) -> Message {
    if message.role == "tool" {
        return Message::new("user", format!("<tool_response>\n{}\n</tool_response>", message.content));
    }
    let spelled = message.tool_calls.iter().map(|call| {
        let (name, arguments) = (Value::from(call.function.name.as_str()), jinja::json(&call.function.arguments));
        format!("{OPEN}\n{{\"name\": {name}, \"arguments\": {arguments}}}\n{CLOSE}")
    });
    let words = (!message.content.is_empty()).then(|| message.content.clone());
    let parts: Vec<String> = words.into_iter().chain(spelled).collect();
    Message::new(&message.role, parts.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::{Grammar, Grammars};
    use crate::text::SPECIAL;

    /// Special tokens after the single bytes, the last of which ends an answer.
    const SPECIALS: [&str; 4] = [MISTRAL, PYTHON, "<think>", "</s>"];

    fn special(spelling: &str) -> Option<u32> {
        let at = SPECIALS[..3].iter().position(|special| *special == spelling)?;
        Some(256 + u32::try_from(at).unwrap_or_default())
    }

    /// How much of an answer is accepted, and whether it may end there.
    fn accepted(lark: &str, answer: &str) -> (usize, bool) {
        let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        words.extend(SPECIALS.map(|spelling| [&[SPECIAL], spelling.as_bytes()].concat()));
        let end = 255 + SPECIALS.len() as u32;
        let grammars = Grammars::new(&words, &[end].into()).unwrap();
        let mut grammar = grammars.compile(lark).unwrap_or_else(|error| panic!("{error}\n{lark}"));
        let allowed = |grammar: &mut Grammar, token: u32| {
            let mut logits = vec![0.0; words.len()];
            grammar.mask(&mut logits).unwrap();
            logits[token as usize] == 0.0
        };
        let mut at = 0;
        while at < answer.len() {
            let here = &answer[at..];
            let spelled = SPECIALS.iter().find(|spelling| special(spelling).is_some() && here.starts_with(**spelling));
            let (token, length) = match spelled {
                Some(spelling) => (special(spelling).unwrap(), spelling.len()),
                None => (u32::from(here.as_bytes()[0]), 1),
            };
            if !allowed(&mut grammar, token) {
                return (at, false);
            }
            at += length;
            if grammar.accept(token).unwrap() {
                return (at, true);
            }
        }
        (at, allowed(&mut grammar, end))
    }

    struct Case {
        style: Style,
        choice: ToolChoice,
        parallel: bool,
        schema: Option<Value>,
        thinking: Option<bool>,
    }

    impl Case {
        fn of(style: Style, choice: ToolChoice) -> Self {
            Self { style, choice, parallel: false, schema: None, thinking: None }
        }

        fn lark(&self) -> String {
            let parameters = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
            let tools = [super::super::tool("one", None, &parameters), super::super::tool("two", None, &json!({}))];
            let rules = Rules {
                style: self.style,
                tools: &tools,
                choice: &self.choice,
                parallel: self.parallel,
                schema: self.schema.as_ref(),
                thinking: self.thinking,
                special: &special,
            };
            grammar(&rules).unwrap()
        }

        fn accepts(&self, answer: &str) -> bool {
            accepted(&self.lark(), answer) == (answer.len(), true)
        }
    }

    #[test]
    fn every_family_calls_as_it_was_taught() {
        let block = |call: &str| format!("<tool_call>\n{call}\n</tool_call>");
        let (one, two) = ("{\"name\": \"one\", \"arguments\": {\"a\": 3}}", "{\"name\": \"two\", \"arguments\": {}}");
        let llama = one.replace("arguments", "parameters");
        for style in [Style::Hermes, Style::Prompted] {
            let must = Case::of(style, ToolChoice::Required);
            assert!(must.accepts(&block(one)) && must.accepts(&block(two)));
            assert!(!must.accepts("No.") && !must.accepts(&format!("{}\n{}", block(one), block(two))));
            let many = Case { parallel: true, ..Case::of(style, ToolChoice::Required) };
            assert!(many.accepts(&format!("{}\n{}", block(one), block(two))));
            let named = Case::of(style, ToolChoice::Named("two".to_owned()));
            assert!(named.accepts(&block(two)) && !named.accepts(&block(one)));
            let free = Case::of(style, ToolChoice::Auto);
            assert!(free.accepts("Words { and } <such>.") && free.accepts(&format!("Words. {}", block(one))));
            assert!(!free.accepts(&block("{\"name\": \"three\"")));
        }
        let must = Case::of(Style::Llama3, ToolChoice::Required);
        assert!(must.accepts(&llama) && must.accepts(&format!("{PYTHON}{llama}")) && !must.accepts("No."));
        let free = Case::of(Style::Llama3, ToolChoice::Auto);
        assert!(free.accepts("Words {}.") && free.accepts(&llama) && !free.accepts("{\"x\": 1}"));
        let must = Case::of(Style::Mistral, ToolChoice::Required);
        assert!(must.accepts(&format!("{MISTRAL} [{one}]")) && must.accepts(&format!("{MISTRAL}[{one}]")));
        assert!(!must.accepts(&format!("[{one}]")) && !must.accepts(&format!("{MISTRAL} [{one}, {two}]")));
        let free = Case { parallel: true, ..Case::of(Style::Mistral, ToolChoice::Auto) };
        assert!(free.accepts("Words.") && free.accepts(&format!("{MISTRAL} [{one}, {two}]")));
        assert!(!free.accepts(&format!("{MISTRAL} words")));
    }

    #[test]
    fn thoughts_come_before_what_is_enforced() {
        let schema = Some(json!({"enum": ["yes", "no"]}));
        let none = Case { schema: schema.clone(), ..Case::of(Style::Hermes, ToolChoice::None) };
        assert!(none.accepts("\"yes\"") && !none.accepts("yes") && !none.accepts("<think>x</think>\"yes\""));
        let may = Case { schema: schema.clone(), thinking: Some(false), ..Case::of(Style::Hermes, ToolChoice::None) };
        assert!(may.accepts("\"no\"") && may.accepts("<think>\nHm < so?\n</think>\n\n\"no\""));
        let opened = Case { schema, thinking: Some(true), ..Case::of(Style::Hermes, ToolChoice::None) };
        assert!(opened.accepts("Hm.\n</think>\n\n\"yes\"") && !opened.accepts("Hm.</think>yes"));
        let both = Case {
            schema: Some(json!({"type": "object", "properties": {"x": {"type": "null"}}})),
            ..Case::of(Style::Hermes, ToolChoice::Auto)
        };
        assert!(both.accepts("{\"x\": null}") && !both.accepts("Words"));
        assert!(both.accepts("<tool_call>\n{\"name\": \"two\", \"arguments\": {}}\n</tool_call>"));
    }

    #[test]
    fn families_are_told_apart() {
        assert_eq!(Style::of("{% for m in messages %}{% endfor %}"), Style::Prompted);
        assert_eq!(Style::of("{{ tools }} <tool_call> arguments"), Style::Hermes);
        assert_eq!(Style::of("{{ tools }} <tool_call> <function=f> arguments"), Style::Prompted);
        assert_eq!(Style::of("{{ tools }} [TOOL_CALLS]f[ARGS]"), Style::Prompted);
        assert_eq!(Style::of("{{ tools }} [TOOL_CALLS]"), Style::Mistral);
        assert_eq!(Style::of("{{ tools }} <|start_header_id|> '\"parameters\": '"), Style::Llama3);
        assert_eq!(Style::of("{{ tools }} in a way of its own"), Style::Prompted);
    }
}
