//! Checks the bytes of a connection before hyper reads them: request heads that two programs could read differently
//! (request smuggling; RFC 9112, sections 2.2, 3.2, 6.1 and 11.2) are corrupted, so that hyper answers 400 and closes.
//!
//! hyper accepts a bare line feed as the end of a header, any number of `Host`s, and `Content-Length` beside
//! `Transfer-Encoding`. A proxy in front of it may see different requests in such bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes of a head that are kept; hyper refuses longer ones by its own limit.
const LONGEST: usize = 64 << 10;
/// Most bytes of a chunk's size line.
const SIZE_LINE: usize = 256;

/// Position in the stream of requests.
#[derive(Debug)]
enum HeadState {
    /// In a head, of which these bytes have been read.
    Head(Vec<u8>),
    /// In a body, with this many bytes left.
    Body(u64),
    /// In a chunk's size line, of which these bytes have been read.
    Size(Vec<u8>),
    /// In a chunk, with this many bytes left including its line end.
    Chunk(u64),
    /// In a line after the last chunk, of which these bytes have been read.
    Trailer(Vec<u8>),
    /// After an ambiguous head.
    Bad,
}

/// A stream whose reads are checked.
#[derive(Debug)]
pub(super) struct Strict<S> {
    stream: Pin<Box<S>>,
    state: HeadState,
}

impl<S> Strict<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream: Box::pin(stream), state: HeadState::Head(Vec::new()) }
    }
}

/// Checks bytes in order, and corrupts the first one that must not be there.
fn look(state: &mut HeadState, bytes: &mut [u8]) {
    let mut at = 0;
    while at < bytes.len() {
        if let HeadState::Body(left) | HeadState::Chunk(left) = state {
            let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
            *left -= taken as u64;
            at += taken;
            match state {
                HeadState::Body(0) => *state = HeadState::Head(Vec::new()),
                HeadState::Chunk(0) => *state = HeadState::Size(Vec::new()),
                _ => {}
            }
            continue;
        }
        match step(state, bytes[at]) {
            Some(HeadState::Bad) => {
                // No head, size or trailer may hold it, so hyper refuses what it is in.
                bytes[at] = 0;
                *state = HeadState::Bad;
            }
            Some(next) => *state = next,
            None => {}
        }
        at += 1;
    }
}

/// Consumes one byte of a head, a size line or a trailer, and returns the next state if the byte ended it.
fn step(state: &mut HeadState, byte: u8) -> Option<HeadState> {
    match state {
        HeadState::Head(head) => {
            head.push(byte);
            // An empty line before a request is passed over (section 2.2).
            if head.as_slice() == b"\r\n" {
                head.clear();
            }
            match () {
                () if head.len() > LONGEST => Some(HeadState::Bad),
                () if byte != b'\n' || head.is_empty() => None,
                () if !head.ends_with(b"\r\n") => Some(HeadState::Bad),
                () if head.ends_with(b"\r\n\r\n") => Some(after(head)),
                () => None,
            }
        }
        HeadState::Size(line) => {
            line.push(byte);
            match () {
                () if line.len() > SIZE_LINE => Some(HeadState::Bad),
                () if byte != b'\n' => None,
                () => Some(chunk(line)),
            }
        }
        HeadState::Trailer(line) => {
            line.push(byte);
            match () {
                () if line.len() > LONGEST => Some(HeadState::Bad),
                () if byte != b'\n' => None,
                () if !line.ends_with(b"\r\n") => Some(HeadState::Bad),
                () if line.len() == 2 => Some(HeadState::Head(Vec::new())),
                () => {
                    line.clear();
                    None
                }
            }
        }
        HeadState::Body(_) | HeadState::Chunk(_) | HeadState::Bad => None,
    }
}

/// The state after a chunk's size line.
fn chunk(line: &[u8]) -> HeadState {
    let size = line.strip_suffix(b"\r\n").map(|line| line.split(|byte| *byte == b';').next().unwrap_or_default());
    let size = size.and_then(|size| std::str::from_utf8(size).ok()).and_then(|size| {
        let digits = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u64::from_str_radix(size, 16).ok())?
    });
    match size {
        Some(0) => HeadState::Trailer(Vec::new()),
        Some(size) => size.checked_add(2).map_or(HeadState::Bad, HeadState::Chunk),
        None => HeadState::Bad,
    }
}

/// The state after a complete head.
fn after(head: &[u8]) -> HeadState {
    let (mut hosts, mut lengths, mut encodings) = (0, Vec::new(), Vec::new());
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            lengths.push(value);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            encodings.push(value);
        }
    }
    if hosts != 1 {
        return HeadState::Bad;
    }
    let number = |value: &[u8]| -> Option<u64> {
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
    };
    match (&lengths[..], &encodings[..]) {
        ([], []) => HeadState::Head(Vec::new()),
        ([length], []) => match number(length) {
            Some(0) => HeadState::Head(Vec::new()),
            Some(length) => HeadState::Body(length),
            None => HeadState::Bad,
        },
        ([], [encoding]) if encoding.eq_ignore_ascii_case(b"chunked") => HeadState::Size(Vec::new()),
        _ => HeadState::Bad,
    }
}

impl<S: AsyncRead> AsyncRead for Strict<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = self.stream.as_mut().poll_read(context, buffer);
        if matches!(polled, Poll::Ready(Ok(()))) {
            look(&mut self.state, &mut buffer.filled_mut()[before..]);
        }
        polled
    }
}

impl<S: AsyncWrite> AsyncWrite for Strict<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a stream of requests passes unchanged, in whatever pieces it is read.
    fn passes(text: &str) -> bool {
        let whole = |size: usize| {
            let (mut state, mut bytes) = (HeadState::Head(Vec::new()), text.as_bytes().to_vec());
            bytes.chunks_mut(size).for_each(|part| look(&mut state, part));
            bytes == text.as_bytes()
        };
        let verdict = whole(text.len());
        (1..8).for_each(|size| assert_eq!(whole(size), verdict, "{text:?} in parts of {size}"));
        verdict
    }

    #[test]
    fn heads_that_can_be_read_in_two_ways_are_spoilt() {
        let get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        let post = |headers: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{headers}\r\n{body}{get}");
        for good in [
            get.to_owned(),
            format!("\r\n{get}{get}"),
            post("Content-Length: 5\r\n", "a\nb\nc"),
            post("content-length:0\r\n", ""),
            post("Transfer-Encoding: Chunked\r\n", "5;x=y\r\na\nb\nc\r\n0\r\nTrailer: x\r\n\r\n"),
        ] {
            assert!(passes(&good), "{good:?}");
        }
        for bad in [
            "GET / HTTP/1.1\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\nHost: x\r\nhost: y\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\nHost: x\n\n".to_owned(),
            post("X: y\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"),
            post("Content-Length: +3\r\n", "abc"),
            post("Transfer-Encoding: identity, chunked\r\n", "0\r\n\r\n"),
            post("Transfer-Encoding: chunked\r\n", "3\nabc\r\n0\r\n\r\n"),
            post("Transfer-Encoding: chunked\r\n", "ffffffffffffffff\r\nabc"),
            // The second request of a connection is looked at like the first.
            format!("{}{}", post("Content-Length: 3\r\n", "abc"), "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
        ] {
            assert!(!passes(&bad), "{bad:?}");
        }
    }
}
