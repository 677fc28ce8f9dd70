//! Reads request bodies: JSON of limited size, in limited time; and limits how many are prepared at once.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header;
use axum::http::request::Parts;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Largest body in bytes.
const LARGEST: usize = 8 << 20;
/// Longest time for a body to arrive.
const ARRIVAL: Duration = Duration::from_secs(30);
/// Bodies up to this many bytes do not wait for room.
const SMALL: usize = 64 << 10;
/// Bytes of larger bodies in memory at once, while they arrive or are prepared.
const ROOM: usize = 48 << 20;
/// Granularity of [`ROOM`] in bytes.
const PIECE: usize = 4 << 10;
/// Bytes of a too large body that are read and discarded, so that the client reads the refusal.
const PASSED_OVER: usize = 64 << 20;
/// Pause in a too large body after which the connection is given up.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest time for which a too large body is read and discarded.
const PASSING: Duration = Duration::from_secs(10);
/// Most JSON values in a body: in memory they take many times their size as text.
const VALUES: usize = 1 << 18;

/// Limits shared by all requests.
pub(super) struct Intake {
    room: Arc<Semaphore>,
    /// Permits to prepare small requests; large ones are prepared one at a time, beside them.
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// A body, and its share of [`ROOM`].
#[derive(Debug)]
pub(super) struct Received {
    pub(super) bytes: Bytes,
    _room: Vec<OwnedSemaphorePermit>,
}

impl Intake {
    pub(super) fn new() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            room: Arc::new(Semaphore::new(ROOM / PIECE)),
            small: Arc::new(Semaphore::new(threads.clamp(2, 8))),
            large: Arc::new(Semaphore::new(1)),
        }
    }

    /// Waits for permission to prepare a request of `size` bytes.
    pub(super) async fn turn(&self, size: usize) -> Option<OwnedSemaphorePermit> {
        let lane = if size <= SMALL { &self.small } else { &self.large };
        Arc::clone(lane).acquire_owned().await.ok()
    }

    /// Reads a whole body, whose content type must be JSON: browsers ask for permission before they send that to
    /// another origin.
    pub(super) async fn json(&self, parts: &Parts, body: Body) -> Result<Received, ApiError> {
        let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
            return Err(ApiError::media_type());
        }
        if body.size_hint().lower() > LARGEST as u64 {
            // Who waits for leave to send it need not.
            return Err(match parts.headers.contains_key(header::EXPECT) {
                true => ApiError::too_large(LARGEST),
                false => pass_over(body.into_data_stream(), 0).await,
            });
        }
        let received = tokio::time::timeout(ARRIVAL, self.read(body)).await.map_err(|_| ApiError::slow())??;
        if values(&received.bytes) > VALUES {
            return Err(ApiError::invalid("", format!("the body holds more than {VALUES} JSON values")));
        }
        Ok(received)
    }

    async fn read(&self, body: Body) -> Result<Received, ApiError> {
        let mut stream = body.into_data_stream();
        let (mut bytes, mut room) = (Vec::new(), Vec::new());
        while let Some(part) = stream.next().await {
            let part = part.map_err(|_| ApiError::invalid("", "the body was cut off"))?;
            let size = bytes.len() + part.len();
            if size > LARGEST {
                drop((bytes, room));
                return Err(pass_over(stream, size).await);
            }
            let held = room.iter().map(OwnedSemaphorePermit::num_permits).sum::<usize>();
            let wanted = if size > SMALL { size.div_ceil(PIECE) - held } else { 0 };
            if wanted > 0 {
                let pieces = u32::try_from(wanted).unwrap_or(u32::MAX);
                let more = Arc::clone(&self.room).try_acquire_many_owned(pieces);
                room.push(more.map_err(|_| ApiError::flooded())?);
            }
            bytes.extend_from_slice(&part);
        }
        Ok(Received { bytes: bytes.into(), _room: room })
    }
}

/// Reads on for a while and discards: a client that is still sending would see a broken pipe instead of the response.
async fn pass_over(mut stream: axum::body::BodyDataStream, mut size: usize) -> ApiError {
    let read = async {
        while let Ok(Some(Ok(part))) = tokio::time::timeout(PAUSE, stream.next()).await {
            size += part.len();
            if size > PASSED_OVER {
                break;
            }
        }
    };
    // One that drips is not listened to for ever.
    let _ = tokio::time::timeout(PASSING, read).await;
    ApiError::too_large(LARGEST)
}

/// Approximate number of JSON values in a text, by its commas, colons and brackets.
fn values(text: &[u8]) -> usize {
    let (mut count, mut quoted, mut escaped) = (1, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' | b'[' | b'{' if !quoted => count += 1,
            _ => {}
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_texts() {
        assert_eq!(values(br#"{"a": "[,,\",{", "b": [1, 2]}"#), 5);
        assert!(values("[[],".repeat(100_000).as_bytes()) > VALUES / 2);
    }

    #[tokio::test]
    async fn what_is_held_at_once_is_bounded() {
        let intake = Intake::new();
        let body = |size: usize| Body::from(vec![b' '; size]);
        let held: Vec<Received> = {
            let mut held = Vec::new();
            while let Ok(received) = intake.read(body(8 << 20)).await {
                held.push(received);
            }
            held
        };
        assert_eq!(held.len(), ROOM / LARGEST);
        assert!(intake.read(body(SMALL)).await.is_ok(), "small ones pass");
        drop(held);
        assert!(intake.read(body(8 << 20)).await.is_ok());
        assert_eq!(intake.read(body(LARGEST + 1)).await.unwrap_err().status.as_u16(), 413);
    }
}
