//! A chat template that is anything at all: compiled, and a conversation with functions rendered, without a panic.
//!
//! A template may ask for any amount of memory, so it is rendered in a child with limits first, as in production (the child
//! is this program, which answers to the tool's subcommand). Being ended there by a limit is an answer; any other death is
//! not. What passes is rendered here again, where the fuzzer sees what is reached.
#![no_main]

use std::sync::Mutex;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use watus_build::confined::{self, Confined, ConfinedError, Limits};
use watus_build::text::child::{SUBCOMMAND, answerer};
use watus_build::text::{Chat, Function, Message, ToolCall, tool};

const LIMITS: Limits = Limits { memory: 256 << 20, time: Duration::from_secs(2) };
/// The child's is 64 MiB; code that is not optimised takes more.
const STACK: usize = 256 << 20;
/// Bytes of a template.
const LONGEST: usize = 4096;

static CHILD: Mutex<Option<Confined>> = Mutex::new(None);

fn conversation() -> Chat {
    let function = Function { name: "look".to_owned(), arguments: json!({"at": "<door>", "n": [1, null, 2.5]}) };
    let call = ToolCall { id: "abcDEF123".to_owned(), kind: "function".to_owned(), function };
    let messages = vec![
        Message::new("system", " Be brief. "),
        Message::new("user", "Hi </think> \u{1f916}\n"),
        Message { tool_calls: vec![call], ..Message::new("assistant", "") },
        Message {
            tool_call_id: Some("abcDEF123".to_owned()),
            name: Some("look".to_owned()),
            ..Message::new("tool", "open")
        },
        Message::new("user", "And?"),
    ];
    let parameters = json!({"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]});
    let options = Map::from_iter([("enable_thinking".to_owned(), Value::Bool(false))]);
    Chat { messages, tools: vec![tool("look", Some("Looks."), &parameters)], options, ..Chat::default() }
}

fn rendered(answer: &[u8]) -> Result<String, String> {
    serde_json::from_slice(answer).expect("the child's answer is JSON")
}

/// What a child says to these questions; none if it went beyond its limits.
fn ask(questions: &[Vec<u8>]) -> Option<Result<String, String>> {
    let mut place = CHILD.lock().expect("no panic");
    let program = std::env::current_exe().expect("this program");
    let mut child =
        place.take().unwrap_or_else(|| Confined::start(&program, SUBCOMMAND, LIMITS).expect("a child starts"));
    let mut last = Vec::new();
    for question in questions {
        match child.ask(question) {
            Ok(answer) => last = answer,
            Err(ConfinedError::TooLong(_)) => return None,
            Err(error) if error.to_string().starts_with("it needs more than") => return None,
            Err(error) => panic!("{error}"),
        }
    }
    *place = Some(child);
    Some(rendered(&last))
}

fn check(template: &str) {
    let chat = conversation();
    let parts = json!({"text": template, "tool_use": null, "tokens": {"bos_token": "<s>", "eos_token": "</s>"}});
    let questions = [json!({"Template": parts}), json!({"Render": [chat, true]})];
    let questions = questions.map(|question| question.to_string().into_bytes());
    let mut here = answerer();
    if rendered(&here(&questions[0])).is_err() {
        return;
    }
    if let Some(there) = ask(&questions) {
        let here = rendered(&here(&questions[1]));
        // Of the time of day a template may make anything.
        assert!(here.is_ok() == there.is_ok() || template.contains("strftime_now"), "{here:?} {there:?}");
    }
}

fn serve_if_asked() {
    if std::env::args().nth(1).as_deref() == Some(SUBCOMMAND) {
        std::process::exit(i32::from(confined::serve(answerer()).is_err()));
    }
}

fuzz_target!(init: serve_if_asked(), |data: &[u8]| {
    let Ok(template) = std::str::from_utf8(data) else { return };
    if template.len() > LONGEST {
        return;
    }
    let template = template.to_owned();
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || check(&template)).expect("a thread");
    thread.join().expect("no panic");
});
