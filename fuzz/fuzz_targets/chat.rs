//! A body that is anything at all, on the very way that the server takes with it: a request, or an error that is the
//! client's fault and short, whatever the body says.
//!
//! The tokenizer and the template are those of `fuzz/model`. Grammars are `schema`'s to compile.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use watus_build::fuzzing::{Desk, Refusal};

static DESK: OnceLock<Desk> = OnceLock::new();

/// Bytes of an error: message, field and what is around them, each byte perhaps escaped.
const LONGEST: usize = 8192;

fn check<T>(outcome: Result<T, Refusal>) {
    if let Err((status, body)) = outcome {
        assert!((400..500).contains(&status), "{status} {body}");
        assert!(body["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
        assert!(body.to_string().len() < LONGEST, "{body}");
    }
}

fuzz_target!(|data: &[u8]| {
    let folder = || Path::new(env!("CARGO_MANIFEST_DIR")).join("model");
    let desk = DESK.get_or_init(|| Desk::open(&folder()).expect("the model's files"));
    check(desk.chat(data));
    check(desk.completion(data));
});
