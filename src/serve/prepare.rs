//! Prepares requests for the scheduler before any response begins: whatever can be refused is refused here.

use serde_json::Value;

use super::completion::{CompletionRequest, InPrompt};
use super::error::ApiError;
use super::openai::{ChatRequest, Common, ResponseFormat};
use super::state::About;
use crate::executor::LlmError;
use crate::generation::{Request, schema};
use crate::text::{AnswerForm, AnswerReader, Chat, Message, TextError};

/// A prepared request, and what the response encoder needs.
pub(super) struct PreparedRequest {
    pub(super) request: Request,
    pub(super) reader: AnswerReader,
    /// The grammar that the answer must match, not yet compiled.
    pub(super) rules: Option<Demand>,
}

/// A grammar that the answer must match.
pub(super) struct Demand {
    pub(super) lark: String,
    /// The request's field and value to blame if it cannot be compiled.
    pub(super) param: &'static str,
    pub(super) names: String,
}

/// Size in bytes from which a grammar is large; a smaller one takes a few MB at most when compiled.
const LARGE: usize = 16 << 10;

impl Demand {
    pub(super) fn is_large(&self) -> bool {
        self.lark.len() > LARGE
    }

    pub(super) fn refused(&self, why: LlmError) -> ApiError {
        let Self { param, names, .. } = self;
        match why {
            LlmError::Text(TextError::Busy(_) | TextError::Internal(_)) => why.into(),
            why => ApiError::unsupported(param, format!("the JSON schema of {names} cannot be enforced: {why}")),
        }
    }
}

/// Most bytes of a conversation's contents that are processed, even if the template leaves out part of them.
const CONTENTS: usize = 1 << 20;

fn limit(common: &Common, about: &About, prompt: usize, default: usize) -> Result<usize, ApiError> {
    let room = about.max_len.saturating_sub(prompt);
    Ok(common.limit()?.unwrap_or(default).min(room))
}

/// Prepares a conversation. `max_output` is the longest answer in tokens for requests without a limit.
pub(super) fn chat(request: &ChatRequest, about: &About, max_output: usize) -> Result<PreparedRequest, ApiError> {
    request.refuse()?;
    let text = &about.text;
    let offered = request.tools()?;
    let tool_choice = request.tool_choice(&offered)?;
    let format = request.format()?;
    check_schemas(request, &offered, &format)?;
    let options = request.options()?;
    let limits = about.limits;
    let (special, messages) = (about.special, request.messages()?);
    check_contents(&messages, &offered, about)?;
    let schema = match format {
        ResponseFormat::Json(schema) => Some(schema),
        ResponseFormat::Text => None,
    };
    let form = AnswerForm { tool_choice, parallel_tool_calls: request.parallel(), schema };
    let mut chat = Chat { messages, tools: offered, options, special, limit: Some(limits.max_input) };
    let prepared = text.prepare(&mut chat, &form)?;
    let prediction = prediction(&request.prediction()?, about)?;
    // The offered functions are in the prompt.
    let quoted = form.schema.as_ref().map(|schema| text.encode_part(&schema.to_string(), None)).transpose()?;
    let rules = prepared.grammar.map(|lark| demand(lark, &chat, &form));
    let max_tokens = limit(&request.common, about, prepared.tokens.len(), max_output)?;
    let sampling = text.defaults.sampling(request.common.wishes(request.top_logprobs()?)?);
    let stop = text.defaults.stops(request.common.stops()?);
    let (prompt, special) = (prepared.tokens, prepared.calls);
    let mut quotable = quoted.unwrap_or_default();
    quotable.truncate(about.max_len);
    let request = Request { prompt, sampling, max_tokens, stop, special, prediction, quotable, ..Request::default() };
    request.check(&limits)?;
    Ok(PreparedRequest { request, reader: prepared.reader, rules })
}

/// The tokens of what the answer is expected to be.
fn prediction(text: &str, about: &About) -> Result<Vec<u32>, ApiError> {
    let encoded = about.text.encode_part(text, Some(about.max_len));
    encoded.map_err(|error| match error {
        TextError::TooLong { have, limit, .. } => {
            let message =
                format!("prediction.content has {have} tokens or more; a whole conversation has at most {limit}");
            ApiError::invalid("prediction.content", message)
        }
        error => error.into(),
    })
}

/// The grammar of an answer, and what of the request it is made of.
fn demand(lark: String, chat: &Chat, form: &AnswerForm) -> Demand {
    let named: Vec<&str> = chat.tools.iter().filter_map(|tool| tool["function"]["name"].as_str()).take(8).collect();
    let (param, names) = match (&form.schema, &named[..]) {
        (Some(_), []) => ("response_format", "response_format".to_owned()),
        (Some(_), _) => ("response_format", format!("response_format or of {}", named.join(", "))),
        (None, _) => ("tools", named.join(", ")),
    };
    Demand { lark, param, names }
}

/// Checks all JSON schemas of a request before they are used.
fn check_schemas(request: &ChatRequest, tools: &[Value], format: &ResponseFormat) -> Result<(), ApiError> {
    if let ResponseFormat::Json(schema) = format {
        schema::check(schema)
            .map_err(|error| ApiError::unsupported("response_format", format!("response_format: {error}")))?;
    }
    for (index, tool) in tools.iter().enumerate() {
        let name = tool["function"]["name"].as_str().unwrap_or_default();
        let check = if request.is_strict(index) { schema::check } else { schema::check_lenient };
        check(&tool["function"]["parameters"]).map_err(|error| {
            ApiError::unsupported(&format!("tools[{index}]"), format!("tools[{index}] (`{name}`): {error}"))
        })?;
    }
    Ok(())
}

/// Refuses contents that cannot fit the context, before the template renders them.
fn check_contents(messages: &[Message], tools: &[Value], about: &About) -> Result<(), ApiError> {
    let arguments = |message: &Message| -> usize {
        message.tool_calls.iter().map(|call| call.function.arguments.to_string().len()).sum()
    };
    let said: usize = messages.iter().map(|message| message.content.len() + arguments(message)).sum();
    let offered: usize = tools.iter().map(|tool| tool.to_string().len()).sum();
    let max_input = about.limits.max_input;
    let bytes = said + offered;
    if bytes > about.text.most_bytes(max_input).max(CONTENTS) {
        return Err(ApiError::too_long(bytes / about.text.most_bytes(1).max(1), max_input));
    }
    Ok(())
}

/// Prepares a text to continue.
pub(super) fn completion(request: &CompletionRequest, about: &About, max_output: usize) -> Result<Request, ApiError> {
    request.refuse()?;
    let one = || ApiError::unsupported("prompt", "this server continues one text at a time: prompt must be one");
    let words = |text: &str| about.text.encode_text_within(text, about.limits.max_input);
    let prompt = match request.prompt.as_ref() {
        None => return Err(ApiError::invalid("prompt", "prompt is missing")),
        Some(InPrompt::Text(text)) => words(text)?,
        Some(InPrompt::Texts(texts)) => match &texts[..] {
            [text] => words(text)?,
            _ => return Err(one()),
        },
        Some(InPrompt::Tokens(tokens)) => tokens.clone(),
        Some(InPrompt::TokenLists(lists)) => match &lists[..] {
            [tokens] => tokens.clone(),
            _ => return Err(one()),
        },
    };
    let max_tokens = limit(&request.common, about, prompt.len(), max_output)?;
    let sampling = about.text.defaults.sampling(request.common.wishes(request.top_logprobs()?)?);
    let stop = about.text.defaults.stops(request.common.stops()?);
    let request = Request { prompt, sampling, max_tokens, stop, ..Request::default() };
    request.check(&about.limits).map_err(|error| match error {
        LlmError::Text(TextError::Request(message)) => ApiError::invalid("prompt", message),
        error => error.into(),
    })?;
    Ok(request)
}
