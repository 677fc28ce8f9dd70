//! What stands before every handler: request ids, keys, origins, sizes, time, and the log.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::{MatchedPath, Request, State as Shared};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::App;
use super::connection::Peer;
use super::error::ApiError;
use super::log::Record;

/// Who asks, as a number: by address, key and, where it is given, the user the client asks for.
pub(super) fn client(parts: &Parts, user: Option<&Value>) -> u64 {
    static SEED: OnceLock<RandomState> = OnceLock::new();
    let key = parts.headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let user = user.map(Value::to_string);
    SEED.get_or_init(RandomState::new).hash_one((parts.extensions.get::<Peer>(), key, user))
}

/// Names a request in the log and in `x-request-id`.
#[derive(Clone)]
pub(super) struct RequestId(pub(super) String);

/// Marks a response whose handler writes the log itself.
#[derive(Clone)]
struct Logged;

pub(super) fn logged(mut response: Response) -> Response {
    response.extensions_mut().insert(Logged);
    response
}

/// Gives every request a name: the client's, if it has a decent one.
pub(super) async fn identify(mut request: Request, next: Next) -> Response {
    let decent = |name: &&str| (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
    let given = request.headers().get("x-request-id").and_then(|name| name.to_str().ok()).filter(decent);
    let name = given.map_or_else(|| format!("req-{}", super::random_name(16)), str::to_owned);
    request.extensions_mut().insert(RequestId(name.clone()));
    let mut response = next.run(request).await;
    if let Ok(name) = HeaderValue::from_str(&name) {
        response.headers_mut().insert("x-request-id", name);
    }
    response
}

/// Counts responses; logs those that no handler does, errors alone.
pub(super) async fn observe(Shared(app): Shared<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let path = request.uri().path().to_owned();
    let id = request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default();
    let begun = Instant::now();
    let response = next.run(request).await;
    let status = response.status();
    app.metrics.request(super::known(route.as_deref().unwrap_or_default()), status.as_u16());
    // Whoever waits for the server to be ready asks often.
    let noted = response.extensions().get::<Logged>().is_some() || path.starts_with("/health");
    if !noted && (status.is_client_error() || status.is_server_error()) {
        let why = response.extensions().get::<super::error::Why>().map(|why| why.0.clone());
        Record::new(&app.log, &id, &path, None).since(begun).failed(status.as_u16(), why.as_deref().unwrap_or(""));
    }
    response
}

/// A key in `Authorization: Bearer`, where the server has keys. Digests are compared, in constant time.
pub(super) async fn authorize(Shared(app): Shared<Arc<App>>, request: Request, next: Next) -> Response {
    if app.keys.is_empty() || allowed(&app.keys, request.headers()) {
        return next.run(request).await;
    }
    let mut response = ApiError::unauthorized().into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

fn allowed(keys: &[[u8; 32]], headers: &HeaderMap) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(given) = given.and_then(|value| value.strip_prefix("Bearer ")) else { return false };
    let given = digest(given.trim());
    // Every byte of every key is looked at, whatever is found.
    let differs = |key: &[u8; 32]| key.iter().zip(&given).fold(0, |sum, (a, b)| sum | (a ^ b));
    keys.iter().fold(false, |found, key| found | (differs(key) == 0))
}

pub(super) fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Pages of other origins may not use the server through a visitor's browser, unless one is allowed.
pub(super) async fn origin(Shared(app): Shared<Arc<App>>, request: Request, next: Next) -> Response {
    let text = |headers: &HeaderMap, name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (origin, host) = (text(request.headers(), header::ORIGIN), text(request.headers(), header::HOST));
    let Some(origin) = origin else { return next.run(request).await };
    let host = host.unwrap_or_default();
    let own = origin.split_once("://").is_some_and(|(_, rest)| rest == host);
    if own {
        return next.run(request).await;
    }
    if app.cors.as_deref() != Some(&*origin) {
        return ApiError::forbidden(format!("pages of {origin} may not use this server (--cors-origin)"))
            .into_response();
    }
    let preflight = request.method() == Method::OPTIONS;
    let mut response = match preflight {
        true => StatusCode::NO_CONTENT.into_response(),
        false => next.run(request).await,
    };
    let headers = response.headers_mut();
    if let Ok(origin) = HeaderValue::from_str(&origin) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    headers.insert(header::VARY, HeaderValue::from_static("origin"));
    if preflight {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization, content-type"));
    }
    response
}

/// The largest body.
const LARGEST: usize = 8 << 20;
/// How long one may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(30);

/// A JSON body, whole. Nothing else may be sent: a browser asks first before it sends JSON to another origin.
pub(super) async fn json_body(parts: &Parts, body: Body) -> Result<Bytes, ApiError> {
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        return Err(ApiError::media_type());
    }
    if body.size_hint().lower() > LARGEST as u64 {
        return Err(ApiError::too_large(LARGEST));
    }
    match tokio::time::timeout(ARRIVAL, to_bytes(body, LARGEST)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => Err(ApiError::too_large(LARGEST)),
        Err(_) => Err(ApiError::slow()),
    }
}
