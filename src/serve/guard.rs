//! Middleware in front of every handler: request ids, hosts, keys, origins, and the log.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State as Shared};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq as _};
use tower::{Layer as _, ServiceExt as _};
use tower_http::cors::CorsLayer;
use tower_http::request_id::{MakeRequestId, RequestId};

use super::App;
use super::connection::{ConnectionInfo, PeerAddress};
use super::crowd::Running;
use super::error::ApiError;
use super::log::AccessRecord;
use crate::prefix_store::Secret;

/// A client's identity, as hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Client {
    /// Hash of address, key and, if given, the `user` field: requests of different clients are scheduled in turn.
    pub(super) turn: u64,
    /// Hash of address and key.
    pub(super) source: u64,
    /// Hash of key and user, the same after a restart if the secret is: cached prefixes are shared only within it. The
    /// `user` field can only narrow it, since a client cannot claim a key that it does not know.
    pub(super) scope: u64,
}

/// Number of the scope of a key and a `user`. Without the secret nobody can tell which it is, or find others of the number.
fn scope(secret: &Secret, key: Option<&str>, user: Option<&str>) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(secret);
    for part in [key, user] {
        // All of one length, so that no other two are read as these.
        hasher.update([u8::from(part.is_some())]);
        hasher.update(digest(part.unwrap_or_default()));
    }
    let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = hasher.finalize().into();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

impl Client {
    /// The client of a request; `secret` is that of scopes.
    pub(super) fn of(parts: &Parts, user: Option<&Value>, secret: &Secret) -> Self {
        static SEED: OnceLock<RandomState> = OnceLock::new();
        let seed = SEED.get_or_init(RandomState::new);
        let (key, user) = (key(&parts.headers), user.map(Value::to_string));
        let peer = parts.extensions.get::<PeerAddress>();
        Self {
            turn: seed.hash_one((peer, key, &user)),
            source: seed.hash_one((peer, key)),
            scope: scope(secret, key, user.as_deref()),
        }
    }
}

/// Marks a response whose handler logs it.
#[derive(Clone)]
struct Logged;

pub(super) fn logged(mut response: Response) -> Response {
    response.extensions_mut().insert(Logged);
    response
}

const REQUEST_ID: &str = "x-request-id";

/// Removes a client's request id unless it is short and printable, since it is copied to the log and the response.
pub(super) async fn forget_odd_id(mut request: Request, next: Next) -> Response {
    let decent = |name: &str| (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
    let given = request.headers().get(REQUEST_ID);
    if given.is_some_and(|name| !name.to_str().is_ok_and(decent)) {
        request.headers_mut().remove(REQUEST_ID);
    }
    next.run(request).await
}

/// Makes ids for requests that have none.
#[derive(Clone)]
pub(super) struct RandomId;

impl MakeRequestId for RandomId {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        HeaderValue::try_from(format!("req-{}", super::random_name(16))).ok().map(RequestId::new)
    }
}

/// The id of a request as text.
pub(super) fn request_id(id: &RequestId) -> &str {
    id.header_value().to_str().unwrap_or_default()
}

/// Takes the client's address from `X-Forwarded-For` if the connection comes from a trusted proxy: the last address in
/// it that is not a trusted proxy.
pub(super) async fn forwarded(Shared(app): Shared<Arc<App>>, mut request: Request, next: Next) -> Response {
    let trusted = |peer: &PeerAddress| app.proxies.contains(&peer.0.to_canonical());
    if request.extensions().get::<PeerAddress>().is_some_and(trusted) {
        let lists =
            request.headers().get_all("x-forwarded-for").iter().flat_map(|list| list.as_bytes().split(|b| *b == b','));
        // What stands before an entry that is no address was not written by a proxy of ours.
        let known: Vec<Option<PeerAddress>> = lists.map(|entry| address(entry).map(PeerAddress)).collect();
        let first_strange = known.into_iter().rev().find(|peer| peer.is_none_or(|peer| !trusted(&peer))).flatten();
        if let Some(client) = first_strange {
            request.extensions_mut().insert(client);
        }
    }
    next.run(request).await
}

/// Parses an address as proxies write it, with or without a port.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry).ok()?.trim();
    let with_port = || entry.parse::<SocketAddr>().ok().map(|address| address.ip());
    entry.parse().ok().or_else(with_port)
}

/// Counts responses, and logs errors that no handler logs.
pub(super) async fn observe(Shared(app): Shared<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let path = request.uri().path().to_owned();
    let id = request.extensions().get::<RequestId>().map(|id| request_id(id).to_owned()).unwrap_or_default();
    let begun = Instant::now();
    let response = next.run(request).await;
    let status = response.status();
    app.metrics.request(super::known(route.as_deref().unwrap_or_default()), status.as_u16());
    // Whoever waits for the server to be ready asks often.
    let noted = response.extensions().get::<Logged>().is_some() || path.starts_with("/health");
    if !noted && (status.is_client_error() || status.is_server_error()) {
        let why = response.extensions().get::<super::error::Why>().map(|why| why.0.clone());
        AccessRecord::new(&app.log, &id, &path, None)
            .since(begun)
            .failed(status.as_u16(), why.as_deref().unwrap_or(""));
    }
    response
}

/// Requires one of the server's keys, if it has any. SHA-256 digests are compared in constant time; an address with
/// many wrong keys must wait.
pub(super) async fn authorize(Shared(app): Shared<Arc<App>>, request: Request, next: Next) -> Response {
    if app.keys.is_empty() {
        return next.run(request).await;
    }
    let peer = request.extensions().get::<PeerAddress>().copied();
    let Some(given) = key(request.headers()) else { return unauthorized() };
    if !app.brake.may_try(peer) {
        return ApiError::braked().into_response();
    }
    if !allowed(&app.keys, given) {
        app.brake.failed(peer, digest(given));
        return unauthorized();
    }
    next.run(request).await
}

fn unauthorized() -> Response {
    let mut response = ApiError::unauthorized().into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// The key in a request's headers, as OpenAI's, Azure's or Anthropic's clients send it.
fn key(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let bearer = text("authorization").and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| text("api-key")).or_else(|| text("x-api-key"))
}

fn allowed(keys: &[[u8; 32]], given: &str) -> bool {
    let given = digest(given);
    // Every byte of every key is looked at, whatever is found.
    keys.iter().fold(Choice::from(0), |found, key| found | key.as_slice().ct_eq(given.as_slice())).into()
}

/// Limits wrong keys per address: some at once, then one per second. Repeating the same wrong key does not count, so
/// that a client with an old key does not lock out others of its address.
#[derive(Debug, Default)]
pub(super) struct Brake(Mutex<HashMap<Option<PeerAddress>, Tried>>);

#[derive(Debug)]
struct Tried {
    /// Tries that were left at that time.
    left: f64,
    then: Instant,
    /// Digests of the latest wrong keys.
    wrong: VecDeque<[u8; 32]>,
}

/// Wrong keys that an address may try in a row.
const TRIES: f64 = 10.0;
/// Tries that are granted again per second.
const TRIES_PER_SECOND: f64 = 1.0;
/// Most addresses remembered.
const ADDRESSES: usize = 4096;
/// Most wrong keys remembered of each address.
const WRONG: usize = 16;

impl Tried {
    fn left(&self, now: Instant) -> f64 {
        (self.left + TRIES_PER_SECOND * now.duration_since(self.then).as_secs_f64()).min(TRIES)
    }
}

impl Brake {
    fn tried(&self) -> MutexGuard<'_, HashMap<Option<PeerAddress>, Tried>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_try(&self, peer: Option<PeerAddress>) -> bool {
        self.tried().get(&peer).is_none_or(|tried| tried.left(Instant::now()) >= 1.0)
    }

    fn failed(&self, peer: Option<PeerAddress>, key: [u8; 32]) {
        let (mut all, now) = (self.tried(), Instant::now());
        if all.len() >= ADDRESSES && !all.contains_key(&peer) {
            all.retain(|_, tried| tried.left(now) < TRIES);
            if all.len() >= ADDRESSES {
                return;
            }
        }
        let fresh = || Tried { left: TRIES, then: now, wrong: VecDeque::new() };
        let tried = all.entry(peer).or_insert_with(fresh);
        if tried.wrong.contains(&key) {
            return;
        }
        (tried.left, tried.then) = ((tried.left(now) - 1.0).max(0.0), now);
        tried.wrong.truncate(WRONG - 1);
        tried.wrong.push_front(key);
    }
}

pub(super) fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Most bytes of a request's headers in all.
const HEADERS: usize = 32 << 10;

/// Requires that the Host header names this server: a web page whose name suddenly resolves to this machine (DNS
/// rebinding) would otherwise be of the server's own origin. A spare connection is restricted to health checks here as
/// well.
pub(super) async fn host(Shared(app): Shared<Arc<App>>, request: Request, next: Next) -> Response {
    let size: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if size > HEADERS {
        return ApiError::headers().into_response();
    }
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let absolute = request.uri().authority().map(Authority::as_str);
    if let Some(strange) = absolute.into_iter().chain([named]).find(|host| !app.hosts.has(host)) {
        return ApiError::host(strange).into_response();
    }
    let line = request.extensions().get::<ConnectionInfo>().cloned();
    let Some(line) = line else { return next.run(request).await };
    if line.spare && !request.uri().path().starts_with("/health") {
        let mut response = ApiError::crowded().into_response();
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    let running = Running::begin(&line.activity);
    running.until_the_end(next.run(request).await)
}

/// Host names of this server.
#[derive(Debug)]
pub(super) struct Hosts {
    /// Host names in lower case without ports; empty if any name is accepted.
    names: Vec<String>,
}

impl Hosts {
    /// The names of a server at `address`, and `allowed` ones. A server on other than loopback addresses accepts any
    /// name, unless some are given.
    pub(super) fn new(address: IpAddr, allowed: &[String]) -> Self {
        // 127.0.0.1 may be written as ::ffff:127.0.0.1.
        let address = address.to_canonical();
        if !address.is_loopback() && allowed.is_empty() {
            return Self { names: Vec::new() };
        }
        let own = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned);
        let address = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let mut names: Vec<String> = own.into_iter().chain([address]).collect();
        names.extend(allowed.iter().map(|name| bare(name).to_ascii_lowercase()));
        Self { names }
    }

    fn has(&self, host: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| name.eq_ignore_ascii_case(bare(host)))
    }
}

/// A host name without port and without a final dot.
fn bare(host: &str) -> &str {
    let end = match host.rsplit_once(':') {
        Some((before, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !before.ends_with(':') => before,
        _ => host,
    };
    // "[::1" of "[::1]" has no port.
    let end = if host.starts_with('[') && !end.ends_with(']') { host } else { end };
    end.strip_suffix('.').unwrap_or(end)
}

/// The allowed origin and the CORS headers for it.
pub(super) struct Cors {
    origin: String,
    layer: CorsLayer,
}

impl Cors {
    /// Allows the pages of `origin`; `None` if no browser can send such an origin.
    pub(super) fn new(origin: String) -> Option<Self> {
        let value = HeaderValue::from_str(&origin).ok()?;
        let own = ["api-key", "x-api-key"].map(HeaderName::from_static);
        let headers = [header::AUTHORIZATION, header::CONTENT_TYPE].into_iter().chain(own).collect::<Vec<_>>();
        let layer = CorsLayer::new().allow_origin(value).allow_methods([Method::GET, Method::POST]);
        Some(Self { origin, layer: layer.allow_headers(headers).vary([header::ORIGIN]) })
    }
}

/// Refuses requests from web pages of other origins, unless the origin is allowed.
pub(super) async fn origin(Shared(app): Shared<Arc<App>>, request: Request, next: Next) -> Response {
    let text = |headers: &HeaderMap, name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (origin, host) = (text(request.headers(), header::ORIGIN), text(request.headers(), header::HOST));
    let Some(origin) = origin else { return next.run(request).await };
    let host = host.unwrap_or_default();
    let own = origin.split_once("://").is_some_and(|(scheme, rest)| matches!(scheme, "http" | "https") && rest == host);
    if own {
        return next.run(request).await;
    }
    let Some(cors) = app.cors.as_ref().filter(|cors| cors.origin == origin) else {
        return ApiError::forbidden(format!("pages of {origin} may not use this server (--cors-origin)"))
            .into_response();
    };
    let preflight = request.method() == Method::OPTIONS;
    let Ok(mut response) = cors.layer.layer(next).oneshot(request).await;
    if preflight {
        *response.status_mut() = StatusCode::NO_CONTENT;
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_server_goes_by_its_own_names() {
        let hosts = Hosts::new(IpAddr::from([127, 0, 0, 1]), &["Robot.local:8080".to_owned()]);
        for own in
            ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "[::1]", "robot.local", "robot.local.:99"]
        {
            assert!(hosts.has(own), "{own}");
        }
        for strange in
            ["", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil", "[::2]:80", "127.0.0.2", "::1"]
        {
            assert!(!hosts.has(strange), "{strange}");
        }
        let mapped = Hosts::new("::ffff:127.0.0.1".parse().unwrap(), &[]);
        assert!(mapped.has("localhost") && !mapped.has("evil.example"));
        let reached = Hosts::new(IpAddr::from([0, 0, 0, 0]), &[]);
        assert!(reached.has("robot") && reached.has("10.0.0.7:8080"));
        let named = Hosts::new(IpAddr::from([10, 0, 0, 7]), &["robot".to_owned()]);
        assert!(named.has("10.0.0.7:8080") && named.has("robot") && !named.has("evil.example"));
    }

    #[test]
    fn addresses_are_read_as_proxies_write_them() {
        for (entry, read) in [
            ("10.0.0.1", Some("10.0.0.1")),
            (" 10.0.0.1:8080 ", Some("10.0.0.1")),
            ("[::1]:80", Some("::1")),
            ("::1", Some("::1")),
            ("unknown", None),
            ("", None),
        ] {
            assert_eq!(address(entry.as_bytes()), read.map(|read| read.parse().unwrap()), "{entry}");
        }
        assert_eq!(address(b"\xff"), None);
    }

    #[test]
    fn keys_come_in_several_headers() {
        let of = |name: &'static str, value: &str| {
            key(&HeaderMap::from_iter([(header::HeaderName::from_static(name), value.parse().unwrap())]))
                .map(str::to_owned)
        };
        for (name, value) in [
            ("authorization", "Bearer k"),
            ("authorization", "bearer  k "),
            ("authorization", "BEARER k"),
            ("api-key", "k"),
            ("x-api-key", " k"),
        ] {
            assert_eq!(of(name, value).as_deref(), Some("k"), "{name}: {value}");
        }
        assert_eq!((of("authorization", "Basic k"), of("authorization", "Bearer")), (None, None));
    }

    #[test]
    fn scopes_are_the_same_again_and_no_two_of_one_number() {
        let all = [
            (None, None),
            (Some(""), None),
            (None, Some("")),
            (Some(""), Some("")),
            (Some("a"), Some("bc")),
            (Some("ab"), Some("c")),
            (Some("abc"), None),
            (None, Some("abc")),
            (Some("c"), Some("ab")),
        ];
        let numbers = |secret: Secret| all.map(|(key, user)| scope(&secret, key, user));
        let (one, other) = (numbers([1; 32]), numbers([2; 32]));
        assert_eq!(one, numbers([1; 32]));
        let mut different: Vec<u64> = one.into_iter().chain(other).collect();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), 2 * all.len());
    }

    #[test]
    fn wrong_keys_are_braked_by_address() {
        let brake = Brake::default();
        let (one, other) = (Some(PeerAddress([10, 0, 0, 1].into())), Some(PeerAddress([10, 0, 0, 2].into())));
        let guess = |peer, number: u32| brake.failed(peer, digest(&number.to_string()));
        // A client with an old key, which tries again and again.
        (0..100).for_each(|_| guess(other, 7));
        let tried = (0..100).take_while(|_| brake.may_try(one)).map(|number| guess(one, number)).count();
        // As many as are free, and what comes back meanwhile.
        assert!((10..20).contains(&tried), "{tried}");
        assert!(brake.may_try(other));
    }
}
