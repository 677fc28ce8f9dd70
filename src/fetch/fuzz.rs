//! Entries for the fuzz target `address`.

use std::time::Duration;

use super::request;
use super::retry::{self, Failure};
use crate::address;

/// The address that the server at `from` redirects to with `location`, or why it is not followed; `None` if `from` is
/// no address, or the location is empty.
pub fn follow(from: &str, location: &[u8]) -> Option<Result<String, String>> {
    let from = request::parse("name", &address::typed(from)).ok()?;
    let next = request::join(&from, &address::typed(&String::from_utf8_lossy(location)))?;
    Some(match request::parse("name", &next) {
        Ok(uri) => Ok(uri.to_string()),
        Err(Failure::Final(error) | Failure::Passing { error, .. }) => Err(error.to_string()),
    })
}

/// The wait that a `Retry-After` header asks for.
pub fn retry_after(text: &str) -> Option<Duration> {
    retry::seconds(text)
}
