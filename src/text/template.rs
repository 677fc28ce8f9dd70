//! Chat templates: Jinja sources that models are published with, searched in `transformers`' order and rendered with
//! its variables.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use minijinja::{Environment, Error, Value};

use super::child::{Renderer, TemplateParts, unanswered};
use super::error::TextError;
use super::jinja;
use super::message::{Chat, Message};
use super::tools::Style;
use crate::checkpoint::read_json;
use crate::diagnostic::Diagnostic;
use crate::log::printable;
use crate::regular_file;

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// The child process that renders it; `None` to render in this process.
    renderer: Option<Renderer>,
    parts: TemplateParts,
    source: PathBuf,
}

const NAME: &str = "chat";
const TOOL_USE: &str = "tool_use";
/// Folder of additional templates, named by their files.
const FOLDER: &str = "additional_chat_templates";
/// Largest template in bytes.
const TEMPLATE_LIMIT: u64 = 16 << 20;

impl ChatTemplate {
    /// Finds the template in `folder`, in the first place that has one.
    pub(super) fn find(
        folder: &Path,
        settings: &serde_json::Value,
        tokens: BTreeMap<String, String>,
    ) -> Result<Option<(Self, Traits)>, TextError> {
        let Some((source, text, tool_use)) = places(folder, settings)? else { return Ok(None) };
        let mut template = Self::compile(TemplateParts { text, tool_use, tokens }, &source)?;
        template.renderer = Renderer::of(template.parts());
        let traits = Traits::of(&template);
        Ok(Some((template, traits)))
    }

    fn compile(parts: TemplateParts, source: &Path) -> Result<Self, TextError> {
        let mut environment = jinja::environment();
        for (name, text) in [(NAME, Some(&parts.text)), (TOOL_USE, parts.tool_use.as_ref())] {
            let compiled = text.map_or(Ok(()), |text| jinja::add(&mut environment, name, text));
            compiled.map_err(|error| TextError::File { path: source.to_owned(), message: describe(&error).into() })?;
        }
        Ok(Self { environment, renderer: None, parts, source: source.to_owned() })
    }

    /// The sources, for rendering in another process.
    pub(super) fn parts(&self) -> &TemplateParts {
        &self.parts
    }

    /// Compiles the sources of [`ChatTemplate::parts`].
    pub(super) fn of_parts(parts: TemplateParts) -> Result<Self, TextError> {
        Self::compile(parts, Path::new("the template"))
    }

    /// Renders a conversation, up to where the assistant's answer begins.
    pub fn render(&self, chat: &Chat) -> Result<String, TextError> {
        self.render_until(chat, true)
    }

    /// Renders a conversation, with or without the beginning of an answer.
    pub(super) fn render_until(&self, chat: &Chat, answer: bool) -> Result<String, TextError> {
        let failed = |message: String| TextError::File { path: self.source.clone(), message: message.into() };
        match &self.renderer {
            None => self.render_here(chat, answer).map_err(failed),
            Some(renderer) => match renderer.render(chat, answer) {
                Ok(rendered) => rendered.map_err(failed),
                Err(error) => Err(unanswered("the chat template cannot be rendered", &error, failed)),
            },
        }
    }

    /// Renders in this process, where a template's steps are limited, but not its memory.
    pub(super) fn render_here(&self, chat: &Chat, answer: bool) -> Result<String, String> {
        let tools = (!chat.tools.is_empty()).then_some(&chat.tools);
        let name = if tools.is_some() && self.parts.tool_use.is_some() { TOOL_USE } else { NAME };
        let template = self.environment.get_template(name).map_err(|error| describe(&error))?;
        // As `apply_chat_template` has them: who asks has the last word on tokens, and what is not given is None.
        let mut variables: BTreeMap<&str, Value> = [("documents", Value::from(()))].into();
        variables.extend(self.parts.tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str()))));
        variables.extend(chat.options.iter().map(|(name, value)| (name.as_str(), Value::from_serialize(value))));
        variables.insert("messages", Value::from_serialize(&chat.messages));
        variables.insert("tools", Value::from_serialize(tools));
        variables.insert("add_generation_prompt", Value::from(answer));
        let rendered = template.render(variables.into_iter().collect::<Value>());
        rendered.map_err(|error| describe(&error))
    }
}

/// Properties of a template, found by rendering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// How functions are offered and called.
    pub style: Style,
    /// Whether it supports a system message.
    pub system: bool,
    /// Whether answers may begin with reasoning.
    pub thoughts: bool,
    /// Whether reasoning can be turned off.
    pub switch: bool,
}

impl Traits {
    pub(super) fn of(template: &ChatTemplate) -> Self {
        const MARK: &str = "~system~";
        let parts = template.parts();
        let with_tools = parts.tool_use.as_ref().unwrap_or(&parts.text);
        let says = |words: &str| parts.text.contains(words) || with_tools.contains(words);
        let probe = [Message::new("system", MARK), Message::new("user", "?")];
        let shown = template.render(&Chat { messages: probe.to_vec(), ..Chat::default() });
        Self {
            style: Style::of(with_tools),
            system: shown.is_ok_and(|text| text.contains(MARK)),
            thoughts: says("</think>"),
            switch: says("enable_thinking"),
        }
    }
}

/// A template's file, its source, and the source of the template for functions.
type TemplateFiles = (PathBuf, String, Option<String>);

/// Finds the sources. Separate files take precedence over the tokenizer's settings (`from_pretrained` in transformers'
/// tokenization_utils_base.py), with an older processor's file between them.
fn places(folder: &Path, settings: &serde_json::Value) -> Result<Option<TemplateFiles>, TextError> {
    let read = |path: &Path| -> Result<Option<String>, TextError> {
        if !path.exists() {
            return Ok(None);
        }
        let text = regular_file::read_text(path, TEMPLATE_LIMIT);
        text.map(Some).map_err(|error| fail(path, error))
    };
    let jinja = folder.join("chat_template.jinja");
    let default = read(&jinja)?;
    let tool_use = read(&folder.join(FOLDER).join(format!("{TOOL_USE}.jinja")))?;
    if let Some(text) = default {
        return Ok(Some((jinja, text, tool_use)));
    }
    let json = folder.join("chat_template.json");
    let (source, value) = match json.exists() {
        true => (json.clone(), read_json(&json)?.get("chat_template").cloned()),
        false => (folder.join("tokenizer_config.json"), settings.get("chat_template").cloned()),
    };
    let named = value.as_ref().map_or(Ok(None), named).map_err(|message| fail(&source, message))?;
    match (named, tool_use) {
        (Some((text, own)), tool_use) => Ok(Some((source, text, tool_use.or(own)))),
        (None, Some(_)) => Err(fail(&folder.join(FOLDER), no_default(TOOL_USE))),
        (None, None) => Ok(None),
    }
}

fn fail(path: &Path, message: impl Into<Diagnostic>) -> TextError {
    TextError::File { path: path.to_owned(), message: message.into() }
}

fn no_default(names: &str) -> Diagnostic {
    Diagnostic::new(format!(
        "of the chat templates ({names}) none is called \"default\", which conversations without functions need"
    ))
    .with_help("give the recipe a `chat_template: FILE.jinja`")
}

/// A template, or the templates "default" and "tool_use" of a list.
fn named(value: &serde_json::Value) -> Result<Option<(String, Option<String>)>, Diagnostic> {
    if let Some(text) = value.as_str() {
        return Ok(Some((text.to_owned(), None)));
    }
    let Some(list) = value.as_array() else { return Ok(None) };
    let field = |entry: &serde_json::Value, name: &str| entry.get(name).and_then(|n| n.as_str()).map(str::to_owned);
    let named = |name: &str| {
        let entry = list.iter().rev().find(|entry| field(entry, "name").as_deref() == Some(name))?;
        field(entry, "template")
    };
    match named("default") {
        Some(text) => Ok(Some((text, named(TOOL_USE)))),
        None => {
            let names: Vec<String> = list.iter().filter_map(|entry| field(entry, "name")).collect();
            Err(no_default(&printable(&names.join(", "))))
        }
    }
}

fn describe(error: &Error) -> String {
    let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    let detail = error.detail().map_or_else(|| error.to_string(), str::to_owned);
    // The template's own words: what they say must not look like other lines.
    format!("chat template{line}: {}", printable(&detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tool;

    fn compile(text: &str) -> Result<ChatTemplate, TextError> {
        let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let tokens = tokens.map(|(name, token)| (name.to_owned(), token.to_owned()));
        ChatTemplate::compile(
            TemplateParts { text: text.to_owned(), tool_use: None, tokens: tokens.into() },
            Path::new("t.json"),
        )
    }

    fn render(template: &str, messages: &[Message]) -> Result<String, TextError> {
        compile(template)?.render(&Chat { messages: messages.to_vec(), ..Chat::default() })
    }

    #[test]
    fn templates_use_pythons_methods() {
        let messages = [Message::new("system", " Be brief. "), Message::new("user", "Hi")];
        let template = "{{ bos_token }}{% for m in messages %}\n  {%- if m['role'] == 'system' %}\n[{{ m.content.strip() \
                        | upper }}]{% elif loop.last and not m.content.startswith('x') %}{{ m['content'] }}{{ eos_token \
                        }}{% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}";
        assert_eq!(render(template, &messages).unwrap(), "<s>[BE BRIEF.]Hi</s>>");
    }

    #[test]
    fn templates_are_given_what_transformers_gives() {
        let template = "{% if tools is iterable and tools | length > 0 %}{{ tools }}{% endif %}{% for m in messages %}{%- \
                        generation -%}{{ m.content | tojson }} {{ [m.content, 1] | tojson(indent=2) }}{% endgeneration \
                        %}{{ m.content | tojson(ensure_ascii=true) }}{% endfor %}";
        let rendered = render(template, &[Message::new("user", "<ż> \u{1f916}")]).unwrap();
        let pretty = "[\n  \"<ż> \u{1f916}\",\n  1\n]";
        assert_eq!(rendered, format!("\"<ż> \u{1f916}\" {pretty}\"<\\u017c> \\ud83e\\udd16\""));
        let variables =
            "{{ tools is none }}{{ documents is none }}{{ pad_token is defined }}{{ add_generation_prompt }}";
        assert_eq!(render(variables, &[]).unwrap(), "TrueTrueFalseTrue");
        let mut chat = Chat::default();
        chat.options.insert("bos_token".to_owned(), "<other>".into());
        assert_eq!(compile("{{ bos_token }}{{ eos_token }}").unwrap().render(&chat).unwrap(), "<other></s>");
    }

    #[test]
    fn a_template_says_why_it_refuses() {
        let error = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err().to_string();
        assert!(error.contains("t.json") && error.contains("roles must alternate"), "{error}");
        let error = render("{{ raise_exception('a\nerror: \u{1b}') }}", &[]).unwrap_err().to_string();
        assert!(error.ends_with("a\\nerror: \\u{1b}"), "{error}");
        let error = render("{% for x in %}", &[]).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
        // What was written again is where it was.
        let error = render("a\n{{ 1\n ~\n 2\n ~ 3\n * 4 }}\n{{ 2 % 'x' }}", &[]).unwrap_err().to_string();
        assert!(error.contains("line 7"), "{error}");
        let error = render("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", &[]);
        assert!(error.is_err());
        for huge in
            ["{{ 'x' * 10 ** 9 }}", "{{ [0] * 10 ** 9 }}", "{{ '%999999999d' % 1 }}", "{{ 'x'.center(10 ** 9) }}"]
        {
            assert!(render(huge, &[]).is_err(), "{huge}");
        }
        let deep = "{% set ns = namespace(x=[]) %}{% for i in range(300) %}{% set ns.x = [ns.x] %}{% endfor %}";
        for shown in ["{{ ns.x }}", "{{ ns.x | tojson }}"] {
            assert!(render(&format!("{deep}{shown}"), &[]).is_err(), "{shown}");
        }
    }

    /// `CASES` of tests/data/templates/make.py, with transformers' results.
    #[test]
    fn templates_say_what_transformers_says() {
        let cases = include_str!("../../tests/data/templates/cases.json");
        let mut cases: Vec<serde_json::Value> = serde_json::from_str(cases).unwrap();
        let common = cases.remove(0);
        let mut wrong = Vec::new();
        for case in &cases {
            let (template, expected) = (case[0].as_str().unwrap(), case[2].as_str());
            let context = if case[1].is_null() { &common } else { &case[1] };
            let mut environment = jinja::environment();
            let said = jinja::add(&mut environment, NAME, template)
                .and_then(|()| environment.get_template(NAME)?.render(Value::from_serialize(context)));
            if said.as_deref().ok() != expected {
                wrong.push(format!("{template}\n  expected {expected:?}\n  said {said:?}"));
            }
        }
        assert!(cases.len() > 150 && wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    }

    /// (files, without functions, with functions), as transformers' `get_chat_template` chooses.
    #[test]
    fn the_template_is_taken_that_transformers_takes() {
        type Files<'a> = &'a [(&'a str, &'a str)];
        let list = "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"R\"}, {\"name\": \"default\", \"template\": \"D\"}, \
                    {\"name\": \"tool_use\", \"template\": \"T\"}]}";
        let plain = "{\"chat_template\": \"P\"}";
        let only = "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"R\"}]}";
        let (config, jinja) = ("tokenizer_config.json", "chat_template.jinja");
        let extra = "additional_chat_templates/tool_use.jinja";
        let cases: [(Files<'_>, Option<(&str, &str)>); 8] = [
            (&[(config, plain)], Some(("P", "P"))),
            (&[(config, list)], Some(("D", "T"))),
            (&[(config, list), (jinja, "J")], Some(("J", "J"))),
            (&[(config, plain), (jinja, "J"), (extra, "X")], Some(("J", "X"))),
            (&[(config, "{}"), ("chat_template.json", plain)], Some(("P", "P"))),
            (&[(config, "{\"chat_template\": null}")], None),
            (&[(config, only)], None),
            (&[(config, "{}"), (extra, "X")], None),
        ];
        for (files, expected) in cases {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join(FOLDER)).unwrap();
            for (name, text) in files {
                std::fs::write(folder.path().join(name), text).unwrap();
            }
            let settings = read_json(&folder.path().join(config)).unwrap();
            let found = ChatTemplate::find(folder.path(), &settings, BTreeMap::new());
            let unnamed = files.iter().any(|(name, text)| text == &only || (*name == extra && files.len() == 2));
            assert_eq!(found.is_err(), unnamed && expected.is_none(), "{files:?}");
            let said = found.ok().flatten().map(|(template, _)| {
                let with = Chat { tools: vec![tool("f", None, &serde_json::json!({}))], ..Chat::default() };
                (template.render(&Chat::default()).unwrap(), template.render(&with).unwrap())
            });
            let said = said.as_ref().map(|(without, with)| (without.as_str(), with.as_str()));
            assert_eq!(said, expected, "{files:?}");
        }
    }
}
