//! Sends a request and follows redirects, so that a token is sent to the origin (scheme, host and port) it is meant for
//! and to no other. ureq's own rule compares hosts only.

use std::time::{Duration, Instant};

use ureq::http::{Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

use super::FetchError;
use super::retry::Failure;
use crate::address;

/// Most redirects of a request.
const REDIRECTS: usize = 10;
/// Time limit for name resolution, and for the connection after it.
const CONNECT: Duration = Duration::from_secs(15);

/// A request.
pub(super) struct HttpRequest<'a> {
    /// Name for messages.
    pub(super) name: &'a str,
    pub(super) address: &'a str,
    /// Token sent as `Authorization: Bearer …`, to the address's own origin only.
    pub(super) token: Option<&'a str>,
    /// First byte to request (`Range`).
    pub(super) from: Option<u64>,
    /// Longest time until the response's head.
    pub(super) patience: Duration,
    /// Whether the body must arrive in that time too.
    pub(super) whole: bool,
}

/// Sends a request and follows redirects; returns the last response.
pub(super) fn send(agent: &Agent, request: &HttpRequest) -> Result<Response<Body>, Failure> {
    let deadline = Instant::now() + request.patience;
    let mut uri = parse(request.name, &address::typed(request.address))?;
    let home = origin(&uri);
    for _ in 0..=REDIRECTS {
        let token = request.token.filter(|_| origin(&uri) == home);
        let response = ask(agent, request, &uri, token, deadline)?;
        let Some(next) = redirect(&uri, &response) else { return Ok(response) };
        let next = parse(request.name, &next)?;
        if uri.scheme_str() == Some("https") && next.scheme_str() == Some("http") {
            let message = "the server sends us from https to http, where anybody on the way can read along".to_owned();
            return Err(bad(request.name, &next.to_string(), message));
        }
        uri = next;
    }
    Err(Failure::passing(request.name, format!("the server redirects more than {REDIRECTS} times")))
}

fn ask(
    agent: &Agent,
    request: &HttpRequest,
    uri: &Uri,
    token: Option<&str>,
    deadline: Instant,
) -> Result<Response<Body>, Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    // Compressed, a length and a range would mean other bytes.
    let mut builder = agent.get(uri).header(header::ACCEPT_ENCODING, "identity");
    if let Some(from) = request.from {
        builder = builder.header(header::RANGE, format!("bytes={from}-"));
    }
    if let Some(token) = token {
        builder = builder.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let builder = builder
        .config()
        .timeout_resolve(Some(CONNECT.min(left)))
        .timeout_connect(Some(CONNECT.min(left)))
        .timeout_recv_response(Some(left))
        .timeout_global(request.whole.then_some(left))
        .build();
    builder.call().map_err(|error| Failure::of_ureq(request.name, error))
}

/// Scheme, host and port.
fn origin(uri: &Uri) -> Option<(String, String, u16)> {
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

pub(super) fn parse(name: &str, text: &str) -> Result<Uri, Failure> {
    let uri = text.parse::<Uri>().map_err(|error| bad(name, text, error.to_string()))?;
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    if !has_host || !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(bad(name, text, "only http and https addresses with a host are fetched".to_owned()));
    }
    Ok(uri)
}

fn bad(name: &str, text: &str, message: String) -> Failure {
    Failure::Final(FetchError::BadAddress { name: name.to_owned(), address: address::shown(text), message })
}

/// The address that a response redirects to, if it does.
fn redirect(from: &Uri, response: &Response<Body>) -> Option<String> {
    let sends = [
        StatusCode::MOVED_PERMANENTLY,
        StatusCode::FOUND,
        StatusCode::SEE_OTHER,
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ];
    let location = response.headers().get(header::LOCATION).filter(|_| sends.contains(&response.status()))?;
    join(from, &address::typed(&String::from_utf8_lossy(location.as_bytes())))
}

/// Resolves `location` relative to `base` (RFC 3986, section 5.2).
pub(super) fn join(base: &Uri, location: &str) -> Option<String> {
    let scheme = base.scheme_str()?;
    let authority = base.authority()?;
    let before_path = location.split(['/', '?']).next().unwrap_or_default();
    if before_path.contains(':') {
        return Some(location.to_owned());
    }
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    if location.is_empty() || location.starts_with('?') {
        let query = if location.is_empty() { base.query().map(|query| format!("?{query}")) } else { None };
        return Some(format!("{scheme}://{authority}{}{location}{}", base.path(), query.unwrap_or_default()));
    }
    let (path, query) = match location.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (location, String::new()),
    };
    let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{folder}/{path}") };
    Some(format!("{scheme}://{authority}{}{query}", without_dots(&whole)))
}

/// Resolves `.` and `..` in a path, and makes it begin with a slash.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        match part {
            "." => {}
            ".." => drop(kept.pop()),
            part => kept.push(part),
        }
        if is_last && matches!(part, "." | "..") {
            kept.push("");
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_seen_from_where_they_were_said() {
        let base: Uri = "https://host:8443/a/b/c?q=1".parse().unwrap();
        let cases = [
            ("https://other/x?y", "https://other/x?y"),
            ("http:x", "http:x"),
            ("//other/x", "https://other/x"),
            ("/x/y?z=/../", "https://host:8443/x/y?z=/../"),
            ("x", "https://host:8443/a/b/x"),
            ("../x/./y", "https://host:8443/a/x/y"),
            ("../../../..", "https://host:8443/"),
            (".", "https://host:8443/a/b/"),
            ("?z", "https://host:8443/a/b/c?z"),
            ("", "https://host:8443/a/b/c?q=1"),
        ];
        for (location, expected) in cases {
            assert_eq!(join(&base, location).as_deref(), Some(expected), "{location}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let of = |text: &str| origin(&text.parse().unwrap());
        assert_eq!(of("https://Host/a"), of("https://host:443/b?c"));
        assert_eq!(of("http://user:pass@host/"), of("http://host:80/"));
        for other in ["http://host/", "https://host:444/", "https://host.example/", "https://host@other/"] {
            assert_ne!(of("https://host/"), of(other), "{other}");
        }
    }

    #[test]
    fn addresses_nobody_can_fetch_are_refused_without_their_password() {
        for text in
            ["ftp://me:secret@host/x", "https://", "host/x", "/x", "https://me:secret@/x", "https://me:secret@ho st/x"]
        {
            let Err(Failure::Final(error)) = parse("name", text) else { panic!("{text}") };
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
