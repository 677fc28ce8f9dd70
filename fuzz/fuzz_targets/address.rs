//! Texts that become addresses or parts of them: nothing bare that no address may hold, nothing lost, nothing shown of a
//! password; where a server sends us is an address with a host; and its `Retry-After` is a number or nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use watus_build::address::{path, segment, shown, typed};
use watus_build::fuzzing::{follow, retry_after};

const SECRET: &str = "hunter2";

/// Without percent signs.
fn decoded(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, after @ ..] = rest {
        let hex = (*first == b'%').then(|| std::str::from_utf8(&after[..2]).expect("two digits"));
        bytes.push(hex.map_or(*first, |hex| u8::from_str_radix(hex, 16).expect("two digits")));
        rest = if hex.is_some() { &after[2..] } else { after };
    }
    bytes
}

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let text = text.as_ref();
    let (as_segment, as_path, as_typed) = (segment(text), path(text), typed(text));
    assert_eq!(decoded(&as_segment), text.as_bytes());
    assert_eq!(decoded(&as_path), text.as_bytes());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte);
    assert!(as_segment.bytes().all(plain) && as_path.bytes().all(|byte| plain(byte) || byte == b'/'), "{as_path}");
    assert!(as_typed.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'), "{as_typed}");
    assert_eq!(typed(&as_typed), as_typed);
    assert_eq!(shown(&shown(text)), shown(text));
    let wait = text.trim();
    let is_number = !wait.is_empty() && wait.bytes().all(|byte| byte.is_ascii_digit());
    assert_eq!(retry_after(text).is_some(), is_number);
    if text.contains(SECRET) {
        return;
    }
    for address in [format!("https://me:{SECRET}@{text}"), format!("https://host/{text}?key={SECRET}")] {
        assert!(!shown(&address).contains(SECRET), "{address}");
    }
    match follow(&format!("https://me:{SECRET}@host/a/b?c"), data) {
        Some(Ok(next)) => assert!(next.starts_with("http") && next.contains("://"), "{next}"),
        Some(Err(error)) => assert!(!error.contains(SECRET), "{error}"),
        None => {}
    }
});
