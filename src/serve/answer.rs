//! Encodes generated tokens as responses of the API: whole responses and chunks of streams, for chat and text
//! completions.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::error::ApiError;
use super::log::AccessRecord;
use super::openai::UsageChunks;
use super::scheduler::{AnswerEvents, JobEvent};
use crate::generation::{Choice, Finish, Piece, Usage};
use crate::text::{AnswerReader, Delta, Text};

/// The fields that all chunks of a response share, and what a stream reports at its end.
pub(super) struct Envelope {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) created: u64,
    pub(super) usage: UsageChunks,
}

impl Envelope {
    pub(super) fn new(prefix: &str, model: String, usage: UsageChunks) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { id: format!("{prefix}-{}", super::random_name(24)), model, created, usage }
    }

    fn response(&self, object: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }

    /// The chunk with token counts before the end of a stream, if the client asked for it.
    fn usage_chunk(&self, object: &str, usage: &Usage, reasoning: usize) -> Option<Value> {
        let mut chunk = self.response(object, json!([]));
        chunk["usage"] = usage_of(usage, reasoning);
        // A client adds usage up over chunks: where every chunk tells, there is no last one.
        (self.usage == UsageChunks::AtTheEnd).then_some(chunk)
    }
}

fn usage_of(usage: &Usage, reasoning: usize) -> Value {
    let (predicted, accepted) = usage.speculation.predicted;
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.answer,
        "total_tokens": usage.prompt + usage.answer,
        "prompt_tokens_details": {"cached_tokens": usage.reused},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": predicted - accepted,
        },
    })
}

/// Encodes the token events of one answer as JSON of the API; one implementation for chats, one for text completions.
pub(super) trait ResponseEncoder: Send {
    /// Encodes a token event as chunks of a stream, and collects it for [`ResponseEncoder::whole`].
    fn chunks(&mut self, piece: &Piece) -> Vec<Value>;
    /// The whole response, after all events have been passed to [`ResponseEncoder::chunks`].
    fn whole(&mut self) -> Value;
    /// OpenAI's `finish_reason`.
    fn reason(&self, finish: Finish) -> &'static str;
}

/// Encoder of `/v1/chat/completions`.
pub(super) struct ChatEncoder {
    frame: Envelope,
    text: Arc<Text>,
    reader: AnswerReader,
    begun: bool,
    content: String,
    reasoning: String,
    reasoning_tokens: usize,
    calls: Vec<Call>,
    logprobs: Vec<Value>,
    last: Option<(Usage, Finish)>,
}

#[derive(Default)]
struct Call {
    id: String,
    name: String,
    arguments: String,
    complete: bool,
}

const CHAT_CHUNK: &str = "chat.completion.chunk";

impl ChatEncoder {
    pub(super) fn new(frame: Envelope, text: Arc<Text>, reader: AnswerReader) -> Self {
        let (content, reasoning) = (String::new(), String::new());
        let (calls, logprobs) = (Vec::new(), Vec::new());
        Self { frame, text, reader, begun: false, content, reasoning, reasoning_tokens: 0, calls, logprobs, last: None }
    }

    /// Adds a part of the answer to the collected message, and returns it as the `delta` of a chunk.
    fn take(&mut self, delta: Delta) -> Value {
        match delta {
            Delta::Content(text) => {
                self.content.push_str(&text);
                json!({"content": text})
            }
            Delta::Reasoning(text) => {
                self.reasoning.push_str(&text);
                json!({"reasoning_content": text})
            }
            Delta::Call { index, name } => {
                // Mistral's template insists on nine letters and digits.
                let id = super::random_name(9);
                let function = json!({"name": name, "arguments": ""});
                let call = json!({"index": index, "id": id, "type": "function", "function": function});
                self.calls.push(Call { id, name, ..Call::default() });
                json!({"tool_calls": [call]})
            }
            Delta::Arguments { index, text, complete } => {
                if let Some(call) = self.calls.get_mut(index) {
                    call.arguments.push_str(&text);
                    call.complete |= complete;
                }
                json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            }
        }
    }
}

impl ResponseEncoder for ChatEncoder {
    fn chunks(&mut self, piece: &Piece) -> Vec<Value> {
        let mut deltas = self.reader.push(&piece.text);
        if piece.finish.is_some() {
            deltas.extend(self.reader.finish());
        }
        if matches!(deltas.last(), Some(Delta::Reasoning(_))) {
            self.reasoning_tokens += 1;
        }
        // The token that ends an answer is no part of it.
        let is_text = !self.text.stop_tokens.contains(&piece.choice.token);
        let logprob = piece.choice.logprob.filter(|_| is_text);
        let entry = logprob.map(|logprob| logprob_entry(&self.text, &piece.choice, logprob));
        self.logprobs.extend(entry.clone());
        let mut values: Vec<Value> = deltas.into_iter().map(|delta| self.take(delta)).collect();
        if entry.is_some() && values.is_empty() {
            // The token's text is held back; its probability need not be.
            values.push(json!({"content": ""}));
        }
        if !self.begun && (!values.is_empty() || piece.finish.is_some()) {
            self.begun = true;
            values.insert(0, json!({"role": "assistant", "content": ""}));
        }
        let count = values.len();
        let mut chunks = Vec::new();
        for (at, delta) in values.into_iter().enumerate() {
            let own = entry.clone().filter(|_| at + 1 == count);
            let logprobs = own.map_or(Value::Null, |entry| json!({"content": [entry], "refusal": null}));
            let choice = json!({"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": null});
            chunks.push(self.frame.response(CHAT_CHUNK, json!([choice])));
        }
        if let Some(finish) = piece.finish {
            self.last = Some((piece.usage, finish));
            let choice = json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": self.reason(finish)});
            chunks.push(self.frame.response(CHAT_CHUNK, json!([choice])));
            chunks.extend(self.frame.usage_chunk(CHAT_CHUNK, &piece.usage, self.reasoning_tokens));
        }
        if self.frame.usage == UsageChunks::Always {
            chunks.iter_mut().for_each(|chunk| chunk["usage"] = usage_of(&piece.usage, self.reasoning_tokens));
        }
        chunks
    }

    fn whole(&mut self) -> Value {
        let (usage, finish) = self.last.unwrap_or((Usage::default(), Finish::Stop));
        let calls: Vec<Value> = self
            .calls
            .iter()
            .filter(|call| call.complete)
            .map(|call| {
                json!({"id": call.id, "type": "function",
                       "function": {"name": call.name, "arguments": call.arguments}})
            })
            .collect();
        let silent = self.content.is_empty() && !calls.is_empty();
        let content = if silent { Value::Null } else { self.content.as_str().into() };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !self.reasoning.is_empty() {
            message["reasoning_content"] = self.reasoning.as_str().into();
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        let logprobs = match self.logprobs.is_empty() {
            true => Value::Null,
            false => json!({"content": self.logprobs, "refusal": null}),
        };
        let reason = self.reason(finish);
        let choice = json!({"index": 0, "message": message, "logprobs": logprobs, "finish_reason": reason});
        let mut response = self.frame.response("chat.completion", json!([choice]));
        response["usage"] = usage_of(&usage, self.reasoning_tokens);
        response
    }

    fn reason(&self, finish: Finish) -> &'static str {
        match finish {
            Finish::Length => "length",
            Finish::Stop if self.calls.iter().any(|call| call.complete) => "tool_calls",
            Finish::Stop => "stop",
        }
    }
}

fn token_entry(text: &Text, token: u32, logprob: f32) -> Value {
    let bytes = text.bytes(token);
    json!({"token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes})
}

fn logprob_entry(text: &Text, choice: &Choice, logprob: f32) -> Value {
    let mut entry = token_entry(text, choice.token, logprob);
    entry["top_logprobs"] = choice.top.iter().map(|(token, logprob)| token_entry(text, *token, *logprob)).collect();
    entry
}

/// Encoder of `/v1/completions`.
pub(super) struct CompletionEncoder {
    frame: Envelope,
    text: Arc<Text>,
    generated: String,
    tokens: Vec<Choice>,
    last: Option<(Usage, Finish)>,
}

const TEXT: &str = "text_completion";

impl CompletionEncoder {
    pub(super) fn new(frame: Envelope, text: Arc<Text>) -> Self {
        Self { frame, text, generated: String::new(), tokens: Vec::new(), last: None }
    }

    /// Log-probabilities in the form of text completions: four parallel lists. Offsets are characters into the answer.
    fn logprobs(&self, choices: &[Choice], from: usize) -> Value {
        let spell = |token: u32| String::from_utf8_lossy(self.text.bytes(token)).into_owned();
        let mut offset = from;
        let mut offsets = Vec::new();
        for choice in choices {
            offsets.push(offset);
            offset += spell(choice.token).chars().count();
        }
        let top = |choice: &Choice| -> Value {
            choice
                .top
                .iter()
                .map(|(token, logprob)| (spell(*token), Value::from(*logprob)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        json!({
            "tokens": choices.iter().map(|choice| spell(choice.token)).collect::<Vec<_>>(),
            "token_logprobs": choices.iter().map(|choice| choice.logprob).collect::<Vec<_>>(),
            "top_logprobs": choices.iter().map(top).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }
}

impl ResponseEncoder for CompletionEncoder {
    fn chunks(&mut self, piece: &Piece) -> Vec<Value> {
        let logprobs = match piece.choice.logprob {
            Some(_) => self.logprobs(std::slice::from_ref(&piece.choice), self.generated.chars().count()),
            None => Value::Null,
        };
        if piece.choice.logprob.is_some() {
            self.tokens.push(piece.choice.clone());
        }
        self.generated.push_str(&piece.text);
        let mut chunks = Vec::new();
        if !piece.text.is_empty() || !logprobs.is_null() || piece.finish.is_some() {
            let reason = piece.finish.map(|finish| self.reason(finish));
            let choice = json!({"index": 0, "text": piece.text, "logprobs": logprobs, "finish_reason": reason});
            chunks.push(self.frame.response(TEXT, json!([choice])));
        }
        if let Some(finish) = piece.finish {
            self.last = Some((piece.usage, finish));
            chunks.extend(self.frame.usage_chunk(TEXT, &piece.usage, 0));
        }
        if self.frame.usage == UsageChunks::Always {
            chunks.iter_mut().for_each(|chunk| chunk["usage"] = usage_of(&piece.usage, 0));
        }
        chunks
    }

    fn whole(&mut self) -> Value {
        let (usage, finish) = self.last.unwrap_or((Usage::default(), Finish::Stop));
        let logprobs = if self.tokens.is_empty() { Value::Null } else { self.logprobs(&self.tokens, 0) };
        let reason = self.reason(finish);
        let choice = json!({"index": 0, "text": self.generated, "logprobs": logprobs, "finish_reason": reason});
        let mut response = self.frame.response(TEXT, json!([choice]));
        response["usage"] = usage_of(&usage, 0);
        response
    }

    fn reason(&self, finish: Finish) -> &'static str {
        match finish {
            Finish::Length => "length",
            Finish::Stop => "stop",
        }
    }
}

/// The response to one request while it is generated.
pub(super) struct ResponseStream {
    answer: AnswerEvents,
    encoder: Box<dyn ResponseEncoder>,
    record: AccessRecord,
    over: bool,
}

impl ResponseStream {
    pub(super) fn new(answer: AnswerEvents, encoder: Box<dyn ResponseEncoder>, record: AccessRecord) -> Self {
        Self { answer, encoder, record, over: false }
    }

    /// The next chunks of a stream; `None` after its end. An error is the last item.
    pub(super) async fn next(&mut self, stream: bool) -> Option<Result<Vec<Value>, ApiError>> {
        if self.over {
            return None;
        }
        Some(match self.answer.next().await {
            Some(JobEvent::Piece(piece)) => {
                self.record.append_text(&piece.text);
                self.record.progress(&piece.usage, stream);
                let chunks = self.encoder.chunks(&piece);
                if let Some(finish) = piece.finish {
                    self.over = true;
                    self.record.finished(self.encoder.reason(finish));
                }
                Ok(chunks)
            }
            event => {
                let lost = ApiError::cut_off;
                let error = if let Some(JobEvent::Failed(error)) = event { error } else { lost() };
                self.over = true;
                self.record.failed(error.status.as_u16(), &error.message);
                Err(error)
            }
        })
    }

    /// Waits for the end and returns the whole response.
    pub(super) async fn whole(mut self) -> Result<Value, ApiError> {
        while let Some(chunks) = self.next(false).await {
            chunks?;
        }
        Ok(self.encoder.whole())
    }
}
