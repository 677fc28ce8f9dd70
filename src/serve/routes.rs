//! The handlers, by path.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State as Shared};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream::{self, Stream};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tower_http::request_id::{PropagateRequestIdLayer, RequestId, SetRequestIdLayer};

use super::answer::{ChatEncoder, CompletionEncoder, Envelope, ResponseEncoder, ResponseStream};
use super::completion::CompletionRequest;
use super::error::ApiError;
use super::foreign::Foreign;
use super::guard;
use super::log::AccessRecord;
use super::openai::{ChatRequest, Common, FromBody};
use super::prepare::{self, Demand, PreparedRequest};
use super::scheduler::QueuePlace;
use super::state::{About, Phase};
use super::{App, PAGE};
use crate::generation::Grammar;

/// All routes, with their middleware.
pub(super) fn router(app: &Arc<App>) -> Router {
    let api = Router::new()
        .route("/models", get(models))
        .route("/models/{id}", get(model))
        .route("/chat/completions", post(chat))
        .route("/completions", post(completions))
        .route("/embeddings", post(embeddings))
        .route("/responses", post(responses));
    Router::new()
        // Clients that were given the address without its path find everything, too.
        .nest("/v1", api.clone())
        .merge(api)
        .route("/metrics", get(metrics))
        .layer(from_fn_with_state(Arc::clone(app), guard::authorize))
        .route("/", get(page))
        .route("/health", get(health))
        .route("/health/ready", get(ready))
        .fallback(|| async { ApiError::not_found("there is no such path; the API is below /v1") })
        .method_not_allowed_fallback(|| async { ApiError::method() })
        .layer(from_fn_with_state(Arc::clone(app), guard::origin))
        .layer(from_fn_with_state(Arc::clone(app), guard::host))
        .layer(from_fn_with_state(Arc::clone(app), guard::forwarded))
        .layer(from_fn_with_state(Arc::clone(app), guard::observe))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(SetRequestIdLayer::x_request_id(guard::RandomId))
        .layer(from_fn(guard::forget_odd_id))
        .with_state(Arc::clone(app))
}

type Handled = Result<Response, ApiError>;

async fn page() -> impl IntoResponse {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    ([(header::CONTENT_SECURITY_POLICY, policy), (header::CACHE_CONTROL, "no-cache")], Html(PAGE))
}

fn entry(app: &App, name: &str) -> Value {
    json!({"id": name, "object": "model", "created": app.created, "owned_by": "watus-build"})
}

async fn models(Shared(app): Shared<Arc<App>>) -> Json<Value> {
    let list: Vec<Value> = app.names.iter().map(|name| entry(&app, name)).collect();
    Json(json!({"object": "list", "data": list}))
}

async fn model(
    Shared(app): Shared<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Path(id) = id.map_err(|error| ApiError::not_found(error.body_text()))?;
    Ok(Json(entry(&app, named(&app, Some(&id))?)))
}

async fn embeddings(Shared(app): Shared<Arc<App>>) -> ApiError {
    ApiError::not_found(format!(
        "{} answers in text and makes no embeddings; this server has no model that does",
        app.names[0]
    ))
}

async fn responses() -> ApiError {
    ApiError::not_found(
        "this server has no /v1/responses; use /v1/chat/completions (in pydantic-ai: OpenAIChatModel, or the prefix \
         `openai-chat:`)",
    )
}

async fn health(Shared(app): Shared<Arc<App>>) -> Json<Value> {
    let about = app.state.about();
    Json(json!({
        "status": if app.state.phase() == Phase::Failed { "failed" } else { "ok" },
        "state": app.state.phase().name(),
        "model": app.names[0],
        "version": env!("CARGO_PKG_VERSION"),
        "backend": about.map(|about| about.engine.as_str()),
        "device": about.map(|about| about.device.as_str()),
        "warnings": about.map(|about| about.warnings.as_slice()),
        "engine": app.engine,
        "max_input_tokens": about.map(|about| about.limits.max_input),
        "slots": about.map(|about| about.slots),
        "requests": app.scheduler.open(),
        "tokens_per_second": app.state.rate(),
        "uptime_seconds": app.state.uptime().as_secs(),
    }))
}

async fn ready(Shared(app): Shared<Arc<App>>) -> Response {
    let phase = app.state.phase();
    let status = if phase == Phase::Ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"status": phase.name()}))).into_response()
}

async fn metrics(Shared(app): Shared<Arc<App>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = tokio::task::spawn_blocking(move || app.metrics.text()).await.unwrap_or_default();
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// The model's own name, if the request's name is one of the model's.
fn named<'a>(app: &'a App, name: Option<&str>) -> Result<&'a str, ApiError> {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Err(ApiError::invalid("model", format!("model is missing; this server has {}", app.names.join(", "))));
    };
    let known = app.names.iter().find(|known| *known == name);
    known.map(String::as_str).ok_or_else(|| ApiError::no_model(name, &app.names))
}

/// Parses a JSON body; the error says where it is invalid.
pub(super) fn parse<T: FromBody>(body: &[u8]) -> Result<T, ApiError> {
    part::<Foreign>(body)?.refuse()?;
    let common: Common = part(body)?;
    Ok(part::<T>(body)?.with(common))
}

fn part<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        ApiError::invalid(
            &path,
            format!("{}{}", if path.is_empty() { String::new() } else { format!("{path}: ") }, error.inner()),
        )
    })?;
    reader.end().map_err(|error| ApiError::invalid("", error.to_string()))?;
    Ok(parsed)
}

fn loaded(app: &App) -> Result<&About, ApiError> {
    match app.state.about().filter(|_| app.state.phase() == Phase::Ready) {
        Some(about) => Ok(about),
        None => Err(ApiError::not_ready(app.state.phase().name())),
    }
}

/// Runs work that takes a moment (templates, tokenisation) on the blocking threads.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T, ApiError> + Send + 'static) -> Result<T, ApiError> {
    let failed = |error: tokio::task::JoinError| ApiError::internal(format!("preparing the request failed: {error}"));
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

/// A request on its way in: reads the body, reserves a place in the queue, waits for permission, and prepares it.
async fn take_in<T: FromBody + Send + 'static, P: Send + 'static>(
    app: &Arc<App>,
    (parts, body): (&Parts, Body),
    prepare: impl FnOnce(&T, &About, usize) -> Result<P, ApiError> + Send + 'static,
) -> Result<(T, P, QueuePlace), ApiError> {
    loaded(app)?;
    let body = app.intake.json(parts, body).await?;
    let place = app.scheduler.reserve()?;
    let turn = app.intake.turn(body.bytes.len()).await;
    let owner = Arc::clone(app);
    aside(move || {
        let _turn = turn;
        let asked: T = parse(&body.bytes)?;
        drop(body);
        named(&owner, asked.common().model.as_deref())?;
        let prepared = prepare(&asked, loaded(&owner)?, owner.max_output)?;
        Ok((asked, prepared, place))
    })
    .await
}

/// Compiles the answer's grammar, unless the client goes away.
async fn compile(app: &Arc<App>, demand: Demand) -> Result<Grammar, ApiError> {
    struct Leave(Arc<AtomicBool>);
    impl Drop for Leave {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let compiler = Arc::clone(&loaded(app)?.compiler);
    let left = Arc::new(AtomicBool::new(false));
    let _leave = Leave(Arc::clone(&left));
    aside(move || compiler.compile(&demand.lark, &left).map_err(|error| demand.refused(error))).await
}

/// Prepares a request and logs it if the client goes away meanwhile, which drops the future.
async fn noting_who_leaves<T>(
    app: &App,
    (id, path): (&str, &str),
    prepared: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let record = AccessRecord::new(&app.log, id, path, None);
    let prepared = prepared.await;
    record.unneeded();
    prepared
}

async fn chat(Shared(app): Shared<Arc<App>>, id: axum::Extension<RequestId>, request: Request) -> Handled {
    let (parts, body) = request.into_parts();
    let path = "/v1/chat/completions";
    let prepared = async {
        let taken: (ChatRequest, PreparedRequest, QueuePlace) = take_in(&app, (&parts, body), prepare::chat).await?;
        let (chat, PreparedRequest { mut request, reader, rules }, mut place) = taken;
        let client = guard::Client::of(&parts, chat.common.user.as_ref(), &app.secret);
        (request.client, request.scope) = (client.turn, client.scope);
        if let Some(rules) = rules {
            if rules.is_large() {
                place.wait_for(app.grammars.acquire([client.source, client.turn])).await?;
            }
            request.grammar = Some(compile(&app, rules).await?);
        }
        Ok((chat, request, reader, place))
    };
    let (chat, request, reader, place) = noting_who_leaves(&app, (guard::request_id(&id), path), prepared).await?;
    let text = Arc::clone(&loaded(&app)?.text);
    let encoder = ChatEncoder::new(frame("chatcmpl", &chat.common), text, reader);
    answer(&app, (guard::request_id(&id), path), (place, request), Box::new(encoder), &chat.common).await
}

async fn completions(Shared(app): Shared<Arc<App>>, id: axum::Extension<RequestId>, request: Request) -> Handled {
    let (parts, body) = request.into_parts();
    let path = "/v1/completions";
    let prepared = take_in(&app, (&parts, body), prepare::completion);
    let taken: (CompletionRequest, _, QueuePlace) =
        noting_who_leaves(&app, (guard::request_id(&id), path), prepared).await?;
    let (asked, mut request, place) = taken;
    let client = guard::Client::of(&parts, asked.common.user.as_ref(), &app.secret);
    (request.client, request.scope) = (client.turn, client.scope);
    let encoder = CompletionEncoder::new(frame("cmpl", &asked.common), Arc::clone(&loaded(&app)?.text));
    answer(&app, (guard::request_id(&id), path), (place, request), Box::new(encoder), &asked.common).await
}

fn frame(prefix: &str, common: &Common) -> Envelope {
    Envelope::new(prefix, common.model.clone().unwrap_or_default(), common.usage_chunks())
}

/// Interval of comments that keep a stream open while the request waits or its prompt is processed.
const PING: Duration = Duration::from_secs(10);

/// Queues a request and responds, whole or as a stream of events.
async fn answer(
    app: &App,
    (id, path): (&str, &str),
    (place, request): (QueuePlace, crate::generation::Request),
    encoder: Box<dyn ResponseEncoder>,
    common: &Common,
) -> Handled {
    let text = &loaded(app)?.text;
    let asked = app.log_prompts.then(|| text.decode(&request.prompt, false).unwrap_or_default());
    let answer = app.scheduler.submit(place, request)?;
    let response = ResponseStream::new(answer, encoder, AccessRecord::new(&app.log, id, path, asked));
    if common.stream != Some(true) {
        // Its record is written either way.
        let whole = response.whole().await.map(Json);
        return Ok(guard::logged(whole.into_response()));
    }
    let events = Sse::new(chunks(response)).keep_alive(KeepAlive::new().interval(PING).text("working"));
    let mut response = events.into_response();
    // nginx would hold chunks back.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(guard::logged(response))
}

fn chunks(response: ResponseStream) -> impl Stream<Item = Result<SseEvent, Infallible>> {
    let events = stream::unfold(Some(response), |response| async {
        let mut response = response?;
        let event = |value: &Value| Ok(SseEvent::default().data(value.to_string()));
        Some(match response.next(true).await {
            Some(Ok(chunks)) => (chunks.iter().map(event).collect::<Vec<_>>(), Some(response)),
            Some(Err(error)) => (vec![event(&error.body())], None),
            None => (vec![Ok(SseEvent::default().data("[DONE]"))], None),
        })
    });
    futures_util::StreamExt::flat_map(events, stream::iter)
}
