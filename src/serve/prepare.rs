//! A request made ready for the scheduler, before anything is answered: everything that can be refused is refused here.

use serde_json::Value;

use super::error::ApiError;
use super::openai::{ChatRequest, Common, CompletionRequest, Format, InPrompt};
use super::state::About;
use crate::llm::Request;
use crate::llm::text::tools::{self, Rules, ToolChoice};
use crate::llm::text::{AnswerReader, Chat};

/// What the scheduler and the answer's reader need.
pub(super) struct Prepared {
    pub(super) request: Request,
    pub(super) reader: AnswerReader,
}

fn limit(common: &Common, about: &About, prompt: usize, default: usize) -> Result<usize, ApiError> {
    if prompt > about.max_input {
        return Err(ApiError::too_long(prompt, about.max_input));
    }
    let room = about.max_len - prompt;
    Ok(common.limit()?.unwrap_or(default).min(room))
}

/// A conversation. `max_output` is how long an answer may be that says nothing of it.
pub(super) fn chat(request: &ChatRequest, about: &About, max_output: usize) -> Result<Prepared, ApiError> {
    request.refuse()?;
    let text = &about.text;
    let offered = request.tools()?;
    let choice = request.tool_choice(&offered)?;
    let format = request.format()?;
    let traits = text.traits();
    let mut options = request.options()?;
    let called = !offered.is_empty() && choice != ToolChoice::None;
    let forced = format != Format::Text || (called && choice != ToolChoice::Auto);
    // What is to be enforced is better answered at once, unless thoughts were asked for.
    if forced && traits.is_some_and(|traits| traits.switch) {
        options.entry("enable_thinking").or_insert(Value::Bool(false));
    }
    let chat = Chat { messages: request.messages()?, tools: offered, options };
    let prompt = text.encode(&chat)?;
    let thinks = traits.is_some_and(|traits| traits.thoughts) || prompt.thinking;
    let wanted = chat.options.get("enable_thinking").is_none_or(|wanted| *wanted != Value::Bool(false));
    let thoughts = (thinks && (wanted || prompt.thinking)).then_some(prompt.thinking);
    let schema = match &format {
        Format::Json(schema) => Some(schema),
        Format::Text => None,
    };
    let style = traits.map(|traits| traits.style);
    let special = |spelling: &str| text.special(spelling);
    let rules = style.and_then(|style| {
        tools::grammar(&Rules {
            style,
            tools: &chat.tools,
            choice: &choice,
            parallel: request.parallel(),
            schema,
            thinking: thoughts,
            special: &special,
        })
    });
    let grammar = rules.map(|lark| text.grammar(&lark)).transpose().map_err(|error| {
        let param = if schema.is_some() { "response_format" } else { "tools" };
        ApiError::unsupported(param, format!("the JSON schema cannot be enforced: {error}"))
    })?;
    let max_tokens = limit(&request.common, about, prompt.tokens.len(), max_output)?;
    let sampling = text.defaults.sampling(request.common.wishes(request.top_logprobs()?)?);
    Ok(Prepared {
        request: Request {
            prompt: prompt.tokens,
            sampling,
            max_tokens,
            stop: request.common.stops()?,
            grammar,
            special: called,
            ..Request::default()
        },
        reader: AnswerReader::new(style.filter(|_| called), thoughts),
    })
}

/// A text to continue.
pub(super) fn completion(request: &CompletionRequest, about: &About, max_output: usize) -> Result<Request, ApiError> {
    request.refuse()?;
    let one = || ApiError::unsupported("prompt", "this server continues one text at a time: prompt must be one");
    let prompt = match request.prompt.as_ref() {
        None => return Err(ApiError::invalid("prompt", "prompt is missing")),
        Some(InPrompt::Text(text)) => about.text.encode_text(text)?,
        Some(InPrompt::Texts(texts)) => match &texts[..] {
            [text] => about.text.encode_text(text)?,
            _ => return Err(one()),
        },
        Some(InPrompt::Tokens(tokens)) => tokens.clone(),
        Some(InPrompt::TokenLists(lists)) => match &lists[..] {
            [tokens] => tokens.clone(),
            _ => return Err(one()),
        },
    };
    if prompt.is_empty() {
        return Err(ApiError::invalid("prompt", "prompt is empty"));
    }
    if let Some(token) = prompt.iter().find(|token| **token as usize >= about.vocabulary) {
        return Err(ApiError::invalid("prompt", format!("token {token} is not in the vocabulary")));
    }
    let max_tokens = limit(&request.common, about, prompt.len(), max_output)?;
    let sampling = about.text.defaults.sampling(request.common.wishes(request.top_logprobs()?)?);
    let stop = request.common.stops()?;
    Ok(Request { prompt, sampling, max_tokens, stop, ..Request::default() })
}
