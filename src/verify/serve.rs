//! Verifies any server with OpenAI's API against a list of what OpenAI's clients need.
//!
//! Requests are greedy and short. The words of the answers do not matter, only their form.

use std::io::{BufRead, BufReader};
use std::time::Instant;

use serde_json::{Value, json};

use super::endpoint::{Endpoint, Reply, ensure};
use super::{Check, Status};
use crate::diagnostic::Diagnostic;

type PromiseResult = Result<(Status, String), String>;

/// A check: its name, and the function that runs it.
type Promise = (&'static str, fn(&Endpoint) -> PromiseResult);

impl Endpoint {
    /// Runs all checks, and calls `tell` with each result.
    pub fn verify(&self, mut tell: impl FnMut(&Check)) -> Vec<Check> {
        let list: [Promise; 14] = [
            ("models", Self::models),
            ("plain answer", Self::plain),
            ("stream with usage", Self::stream),
            ("one required function", Self::required),
            ("two functions, free", Self::auto),
            ("function round trip", Self::round_trip),
            ("JSON schema", Self::schema),
            ("stop", Self::stop),
            ("seed", Self::seed),
            ("one token", Self::one_token),
            ("too long", Self::too_long),
            ("wrong model", Self::wrong_model),
            ("disconnect frees the slot", Self::disconnect),
            ("full queue", Self::flood),
        ];
        let run = |(name, check): Promise| {
            let (status, detail) = check(self).unwrap_or_else(|why| (Status::Failed, why));
            // One line each, whatever a model says.
            let detail = detail.split_whitespace().collect::<Vec<_>>().join(" ");
            let check = Check::new(name, status, Diagnostic::new(detail));
            tell(&check);
            check
        };
        list.into_iter().map(run).collect()
    }

    fn models(&self) -> PromiseResult {
        let models = self.get("/models")?.body;
        let whole = |model: &Value| {
            model["id"].is_string()
                && model["object"] == "model"
                && model["created"].is_u64()
                && model["owned_by"].is_string()
        };
        let list = models["data"].as_array().ok_or_else(|| format!("no list: {models}"))?;
        ensure(list.iter().all(whole), || format!("id, object, created or owned_by is missing: {models}"))?;
        let one = self.get(&format!("/models/{}", self.model))?;
        ensure(one.status == 200 && one.body["id"] == self.model, || {
            format!("GET /models/{}: {}", self.model, one.body)
        })?;
        passed(format!("{} listed", list.len()))
    }

    fn plain(&self) -> PromiseResult {
        let (choice, usage) = self.choice(QUESTION, &json!({"max_tokens": 30}))?;
        let text = choice["message"]["content"].as_str().unwrap_or_default().trim();
        ensure(!text.is_empty(), || format!("no words: {choice}"))?;
        passed(format!("{} tokens: \"{text:.60}\"", usage["completion_tokens"]))
    }

    fn stream(&self) -> PromiseResult {
        let chunks = self.chunks(QUESTION, &json!({"max_tokens": 30, "stream_options": {"include_usage": true}}))?;
        let (last, rest) = chunks.split_last().ok_or("no chunks")?;
        ensure(last["choices"] == json!([]) && last["usage"]["total_tokens"].is_u64(), || {
            format!("the last chunk should have usage and no choices: {last}")
        })?;
        ensure(rest.iter().all(|chunk| chunk["usage"].is_null()), || {
            "usage in other chunks is added up by clients".to_owned()
        })?;
        ensure(rest.first().is_some_and(|chunk| chunk["choices"][0]["delta"]["role"] == "assistant"), || {
            "the first delta has no role".to_owned()
        })?;
        let ended = rest.last().is_some_and(|chunk| chunk["choices"][0]["finish_reason"].is_string());
        ensure(ended, || "the last choice has no finish_reason".to_owned())?;
        let ids = rest.iter().all(|chunk| chunk["id"] == last["id"] && chunk["object"] == "chat.completion.chunk");
        ensure(ids, || "chunks differ in id, or are no chat.completion.chunk".to_owned())?;
        let said = rest.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect::<String>();
        let (whole, _) = self.choice(QUESTION, &json!({"max_tokens": 30}))?;
        if whole["message"]["content"] != said {
            return passed(format!("{} chunks; greedy, yet other words than in one piece", rest.len()));
        }
        passed(format!("{} chunks, the words of the plain answer", rest.len()))
    }

    fn required(&self) -> PromiseResult {
        let more =
            json!({"tools": [weather()], "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 200});
        let (choice, _) = self.choice("What is the weather in Paris?", &more)?;
        let calls = calls(&choice, &["get_weather"])?;
        ensure(calls.len() == 1, || format!("{} calls, and parallel_tool_calls was false", calls.len()))?;
        ensure(calls[0]["city"].is_string(), || format!("the schema wants a city: {}", calls[0]))?;
        ensure(choice["finish_reason"] == "tool_calls", || format!("finish_reason is {}", choice["finish_reason"]))?;
        let deltas = self.chunks("What is the weather in Paris?", &more)?;
        let deltas: Vec<&Value> = deltas.iter().map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"][0]).collect();
        let mut parts = deltas.into_iter().filter(|delta| !delta.is_null());
        let first = parts.next().ok_or("streamed, there is no call")?;
        ensure(first["index"] == 0 && first["id"].is_string() && first["function"]["name"] == "get_weather", || {
            format!("the first part of a streamed call needs index, id and name: {first}")
        })?;
        let arguments: String =
            std::iter::once(first).chain(parts).filter_map(|part| part["function"]["arguments"].as_str()).collect();
        serde_json::from_str::<Value>(&arguments)
            .map_err(|error| format!("streamed arguments: {error} in {arguments}"))?;
        passed(format!("get_weather({})", calls[0]))
    }

    fn auto(&self) -> PromiseResult {
        let more = json!({"tools": [weather(), time()], "tool_choice": "auto", "max_tokens": 100});
        let (choice, _) = self.choice("What time is it in Rome?", &more)?;
        if choice["message"]["tool_calls"].is_null() {
            let words = choice["message"]["content"].as_str().unwrap_or_default();
            ensure(!words.is_empty(), || format!("neither words nor a call: {choice}"))?;
            return passed(format!("words: \"{:.60}\"", words.trim()));
        }
        let calls = calls(&choice, &["get_weather", "get_time"])?;
        passed(format!("{} calls, {}", calls.len(), calls[0]))
    }

    fn round_trip(&self) -> PromiseResult {
        let call = json!({"id": "call12345", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Paris\"}"}});
        let messages = json!([
            {"role": "system", "content": "You are a robot."}, {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is the weather in Paris?"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call12345", "content": "Sunny, 21 degrees"},
        ]);
        let (choice, _) = self.choice("", &json!({"messages": messages, "tools": [weather()], "max_tokens": 60}))?;
        if choice["message"]["tool_calls"].is_array() {
            calls(&choice, &["get_weather"])?;
            return passed("it called again".to_owned());
        }
        passed(format!("\"{:.60}\"", choice["message"]["content"].as_str().unwrap_or_default().trim()))
    }

    fn schema(&self) -> PromiseResult {
        let place = json!({"type": "object", "additionalProperties": false, "required": ["room", "floor"], "properties": {
            "room": {"type": "string", "maxLength": 12}, "floor": {"type": "integer", "minimum": 0, "maximum": 9}}});
        let schema = json!({"type": "object", "additionalProperties": false, "required": ["mood", "home", "past"],
            "$defs": {"Place": place}, "properties": {"mood": {"enum": ["calm", "curious"]}, "home": {"$ref": "#/$defs/Place"},
            "past": {"type": "array", "items": {"$ref": "#/$defs/Place"}, "minItems": 1, "maxItems": 2}}});
        let format = json!({"type": "json_schema", "json_schema": {"name": "robot", "schema": schema, "strict": true}});
        let (choice, _) = self.choice("Describe a robot.", &json!({"response_format": format, "max_tokens": 250}))?;
        let text = choice["message"]["content"].as_str().unwrap_or_default();
        let robot: Value = serde_json::from_str(text).map_err(|error| format!("{error} in {text}"))?;
        let place = |place: &Value| {
            place["room"].is_string() && place["floor"].as_i64().is_some_and(|floor| (0..=9).contains(&floor))
        };
        let past = robot["past"].as_array().map_or(&[][..], Vec::as_slice);
        let fits = (robot["mood"] == "calm" || robot["mood"] == "curious")
            && std::iter::once(&robot["home"]).chain(past).all(place)
            && (1..=2).contains(&past.len());
        ensure(fits, || format!("not of the schema: {text}"))?;
        passed(text.to_owned())
    }

    fn stop(&self) -> PromiseResult {
        let (whole, _) = self.choice(QUESTION, &json!({"max_tokens": 30}))?;
        let whole = whole["message"]["content"].as_str().unwrap_or_default().to_owned();
        let word = whole.split_whitespace().nth(1).ok_or("the answer is too short to cut")?.to_owned();
        let (cut, _) = self.choice(QUESTION, &json!({"max_tokens": 30, "stop": [&word]}))?;
        let text = cut["message"]["content"].as_str().unwrap_or_default();
        ensure(cut["finish_reason"] == "stop" && !text.contains(&word), || format!("stop {word:?} gave {text:?}"))?;
        passed(format!("before {word:?}"))
    }

    fn seed(&self) -> PromiseResult {
        let draw = |seed: u32| -> Result<Value, String> {
            let more = json!({"temperature": 1.5, "seed": seed, "max_tokens": 12});
            Ok(self.choice("Say anything.", &more)?.0["message"]["content"].clone())
        };
        let (first, again) = (draw(7)?, draw(7)?);
        ensure(first == again, || format!("the same seed drew {first} and {again}"))?;
        passed("twice the same".to_owned())
    }

    fn one_token(&self) -> PromiseResult {
        for name in ["max_tokens", "max_completion_tokens"] {
            let (choice, usage) = self.choice(QUESTION, &json!({name: 1}))?;
            let one = choice["finish_reason"] == "length" && usage["completion_tokens"] == 1;
            ensure(one, || {
                format!("{name} 1 gave {} tokens, {}", usage["completion_tokens"], choice["finish_reason"])
            })?;
        }
        passed("length".to_owned())
    }

    fn too_long(&self) -> PromiseResult {
        let words = "word ".repeat(1 << 18);
        for stream in [false, true] {
            let reply = self.reply(&words, &json!({"stream": stream, "max_tokens": 1}))?;
            let code = &reply.body["error"]["code"];
            ensure(reply.status == 400 && code == "context_length_exceeded", || {
                format!("status {}, code {code}; clients look for 400 and context_length_exceeded", reply.status)
            })?;
        }
        passed("400 context_length_exceeded, before a stream begins".to_owned())
    }

    fn wrong_model(&self) -> PromiseResult {
        let reply = self.reply(QUESTION, &json!({"model": "no-such-model"}))?;
        let error = &reply.body["error"];
        ensure(reply.status == 404 && error["code"] == "model_not_found" && error["message"].is_string(), || {
            format!("status {}: {}; clients look for 404 and model_not_found", reply.status, reply.body)
        })?;
        passed("404 model_not_found".to_owned())
    }

    fn disconnect(&self) -> PromiseResult {
        let short = || -> Result<f64, String> {
            let begun = Instant::now();
            self.choice(QUESTION, &json!({"max_tokens": 1}))?;
            Ok(begun.elapsed().as_secs_f64())
        };
        let alone = short()?;
        for _ in 0..8 {
            let body = self.request("Tell a very long story.", &json!({"stream": true, "max_tokens": 400}));
            let response = self.send(&body).map_err(|error| error.to_string())?;
            let mut line = String::new();
            BufReader::new(response.into_body().into_reader())
                .read_line(&mut line)
                .map_err(|error| error.to_string())?;
        }
        let after = short()?;
        ensure(after < 10.0 * alone + 2.0, || {
            format!("one token took {alone:.2} s, and {after:.2} s after eight answers nobody waits for")
        })?;
        passed(format!("one token after {alone:.2} s, and after eight abandoned answers {after:.2} s"))
    }

    fn flood(&self) -> PromiseResult {
        const AT_ONCE: usize = 128;
        let replies: Vec<Result<Reply, String>> = std::thread::scope(|scope| {
            let one = || scope.spawn(|| self.reply(QUESTION, &json!({"max_tokens": 4})));
            let all: Vec<_> = (0..AT_ONCE).map(|_| one()).collect();
            all.into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())))
                .collect()
        });
        let (mut answered, mut refused) = (0, 0);
        for reply in replies {
            let reply = reply?;
            match reply.status {
                200 => answered += 1,
                429 | 503 if reply.retry_after.is_some() => refused += 1,
                status => return Err(format!("status {status}, Retry-After {:?}: {}", reply.retry_after, reply.body)),
            }
        }
        if refused == 0 {
            return Ok((Status::Skipped, format!("{AT_ONCE} requests at once were all answered: the queue is longer")));
        }
        passed(format!("{answered} answered, {refused} told to come back"))
    }
}

const QUESTION: &str = "What is the capital of France?";

fn weather() -> Value {
    json!({"type": "function", "function": {"name": "get_weather", "description": "The weather of a city", "parameters": {
        "type": "object", "additionalProperties": false, "required": ["city"],
        "properties": {"city": {"type": "string"}, "unit": {"anyOf": [{"enum": ["celsius", "fahrenheit"]}, {"type": "null"}]}}}}})
}

fn time() -> Value {
    json!({"type": "function", "function": {"name": "get_time", "parameters": {
        "type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}}})
}

/// Parses the arguments of an answer's function calls, each of which is checked.
fn calls(choice: &Value, names: &[&str]) -> Result<Vec<Value>, String> {
    let calls = choice["message"]["tool_calls"].as_array().ok_or_else(|| format!("no call: {choice}"))?;
    let mut ids = std::collections::BTreeSet::new();
    let read = |call: &Value| {
        let id = call["id"].as_str().unwrap_or_default().to_owned();
        ensure(!id.is_empty() && ids.insert(id), || format!("a call's id is missing or not its own: {call}"))?;
        let name = call["function"]["name"].as_str().unwrap_or_default();
        ensure(call["type"] == "function" && names.contains(&name), || {
            format!("no function that was offered: {call}")
        })?;
        let arguments =
            call["function"]["arguments"].as_str().ok_or_else(|| format!("arguments must be a text: {call}"))?;
        serde_json::from_str(arguments).map_err(|error| format!("{error} in {arguments}"))
    };
    calls.iter().map(read).collect()
}

fn passed(detail: String) -> PromiseResult {
    Ok((Status::Passed, detail))
}
