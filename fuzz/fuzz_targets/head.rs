//! The bytes of a connection are passed on or spoilt alike however they are cut into reads; and no request that hyper's
//! parser takes from what is passed on can be read in two ways: one `Host`, one length, and the next request where the
//! body ends.
#![no_main]

use httparse::{EMPTY_HEADER, Request, Status};
use libfuzzer_sys::fuzz_target;
use watus_build::fuzzing::strict;

/// Headers that hyper takes.
const HEADERS: usize = 100;

/// Where a chunked body ends; none if it is cut off or hyper would refuse it.
fn chunked(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut last) = (0, false);
    loop {
        let line = bytes[at..].iter().position(|byte| *byte == b'\n')?;
        let text = bytes[at..at + line].strip_suffix(b"\r")?;
        at += line + 1;
        if last {
            if text.is_empty() {
                return Some(at);
            }
            continue;
        }
        let digits = std::str::from_utf8(text.split(|byte| *byte == b';').next()?).ok()?;
        let size = usize::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?;
        last = size == 0;
        if !last {
            at = at.checked_add(size)?;
            bytes.get(at..at.checked_add(2)?).filter(|end| *end == b"\r\n")?;
            at += 2;
        }
    }
}

/// Values of the headers of this name.
fn values<'b>(request: &Request<'_, 'b>, name: &str) -> Vec<&'b [u8]> {
    let named = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
    named.map(|header| header.value).collect()
}

/// Looks at the first request; returns what follows it, none if that cannot be told or hyper ends the connection here.
fn next(bytes: &[u8]) -> Option<&[u8]> {
    let mut headers = [EMPTY_HEADER; HEADERS];
    let mut request = Request::new(&mut headers);
    let Ok(Status::Complete(length)) = request.parse(bytes) else { return None };
    let hosts = values(&request, "host");
    let (lengths, encodings) = (values(&request, "content-length"), values(&request, "transfer-encoding"));
    assert_eq!(hosts.len(), 1, "{request:?}");
    assert!(lengths.len() + encodings.len() <= 1, "{request:?}");
    let body = &bytes[length..];
    if let [encoding] = encodings[..] {
        assert!(encoding.eq_ignore_ascii_case(b"chunked"), "{request:?}");
        return body.get(chunked(body)?..);
    }
    let Some(size) = lengths.first() else { return Some(body) };
    assert!(!size.is_empty() && size.iter().all(u8::is_ascii_digit), "{request:?}");
    body.get(std::str::from_utf8(size).ok()?.parse::<usize>().ok()?..)
}

fuzz_target!(|data: &[u8]| {
    let whole = strict(data, std::iter::repeat(data.len()));
    assert_eq!(whole.len(), data.len());
    for size in [1, 2, 3, 7] {
        assert!(strict(data, std::iter::repeat(size)) == whole, "in reads of {size}");
    }
    let sizes = data.iter().map(|byte| usize::from(byte % 16) + 1).cycle();
    assert!(strict(data, sizes) == whole, "in reads of any size");
    let mut rest = whole.as_slice();
    while let Some(after) = next(rest).filter(|after| after.len() < rest.len()) {
        rest = after;
    }
});
