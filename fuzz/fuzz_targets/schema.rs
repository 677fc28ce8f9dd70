//! A JSON schema that passes the check compiles or is refused, as words and as a function's parameters, within `-timeout`
//! and `-rss_limit_mb`; and its grammar can be walked.
//!
//! (A server tries grammars in a child with a deadline first. That the check leaves little for the deadline is what is
//! looked for here.)
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use watus_build::generation::{Grammars, schema};
use watus_build::text::tool;
use watus_build::text::tools::{Rules, Style, ToolChoice, grammar};

static GRAMMARS: OnceLock<Grammars> = OnceLock::new();
/// As the child's, which compiles first; code is larger here.
const STACK: usize = 64 << 20;
/// Tokens of an answer that are tried.
const WALKED: usize = 24;

/// The grammar of an answer; its style and place depend on the length of the input, which leaves seeds readable.
fn lark(schema: &Value, length: usize) -> Option<String> {
    let style = [Style::Hermes, Style::Llama3, Style::Mistral, Style::Prompted][length % 4];
    let tools = [tool("f", None, schema)];
    let special = |_: &str| -> Option<u32> { None };
    let called = schema.is_object() && length / 4 % 2 == 0;
    let choice = if called { ToolChoice::Required } else { ToolChoice::None };
    grammar(&Rules {
        style,
        tools: &tools[..usize::from(called)],
        choice: &choice,
        parallel: true,
        schema: (!called).then_some(schema),
        thinking: None,
        special: &special,
    })
}

fn walk(lark: &str) {
    let grammars = GRAMMARS.get_or_init(|| Grammars::of_bytes().expect("a vocabulary of bytes"));
    let Ok(mut answer) = grammars.compile(lark) else { return };
    for step in 0..WALKED {
        let mut logits = vec![0.0; 257];
        if answer.mask(&mut logits).is_err() {
            return;
        }
        let allowed = (0u32..).zip(&logits).filter(|(_, logit)| **logit == 0.0);
        let allowed: Vec<u32> = allowed.map(|(token, _)| token).collect();
        let Some(token) = allowed.get(step * 7 % allowed.len().max(1)) else { return };
        if !matches!(answer.accept(*token), Ok(false)) {
            return;
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(schema @ (Value::Object(_) | Value::Bool(true))) = serde_json::from_slice(data) else { return };
    if schema::check(&schema).is_err() {
        return;
    }
    let Some(lark) = lark(&schema, data.len()) else { return };
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || walk(&lark)).expect("a thread");
    thread.join().expect("no panic");
});
