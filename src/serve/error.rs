//! Errors in the form that OpenAI's clients parse: `{"error": {"message", "type", "param", "code"}}` with a matching
//! status.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::executor::LlmError;
use crate::text::TextError;

/// Most bytes of a message: a refused request must not come back whole, or fill the log.
const MESSAGE: usize = 600;
/// Most bytes of a parameter's or a host's name that a message quotes from a request.
const PARAM: usize = 120;

/// A text cut to at most `most` bytes.
pub(super) fn brief(text: String, most: usize) -> String {
    if text.len() <= most {
        return text;
    }
    format!("{}…", &text[..text.floor_char_boundary(most)])
}

/// An error response. OpenAI's clients retry 408, 409, 429 and 5xx by themselves, unless `x-should-retry` forbids it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    kind: &'static str,
    pub(super) message: String,
    param: Option<String>,
    code: Option<&'static str>,
    retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: brief(message.into(), MESSAGE), param: None, code: None, retry_after: None }
    }

    /// The request's field `param` is invalid.
    pub(super) fn invalid(param: &str, message: impl Into<String>) -> Self {
        let param = (!param.is_empty()).then(|| brief(param.to_owned(), PARAM));
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message) }
    }

    /// The request's field `param` is valid, but this server does not support it.
    pub(super) fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_value"), ..Self::invalid(param, message) }
    }

    pub(super) fn no_model(name: &str, names: &[String]) -> Self {
        let name = brief(name.to_owned(), PARAM);
        let message = format!("The model `{name}` does not exist here; this server has {}", names.join(", "));
        Self {
            code: Some("model_not_found"),
            param: Some("model".to_owned()),
            ..Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
        }
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self { code: Some("not_found"), ..Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message) }
    }

    pub(super) fn method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", "this path has another method")
    }

    pub(super) fn too_long(have: usize, limit: usize) -> Self {
        let message = format!(
            "This model's longest prompt is {limit} tokens, and the messages (with functions, if any) are {have} or more; \
             shorten them, or build the engine with a larger max_input_len"
        );
        Self { code: Some("context_length_exceeded"), ..Self::invalid("messages", message) }
    }

    pub(super) fn unauthorized() -> Self {
        let message = "a key is needed: `Authorization: Bearer KEY`, one of those in the server's --api-key-file";
        Self { code: Some("invalid_api_key"), ..Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message) }
    }

    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    pub(super) fn media_type() -> Self {
        let message = "the body must be JSON, with `Content-Type: application/json`";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message)
    }

    pub(super) fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {} MiB", limit >> 20);
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }

    pub(super) fn slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", "the body did not arrive in time")
    }

    /// Why an answer that had begun has no end: our own fault, or that of what was asked.
    pub(super) fn of_answer(failure: LlmError) -> Self {
        match failure {
            LlmError::Text(TextError::Internal(_)) => failure.into(),
            failure => Self::unanswerable(failure.to_string()),
        }
    }

    /// This answer cannot be generated. Retrying would not help, and other answers are unaffected.
    fn unanswerable(message: impl Into<String>) -> Self {
        Self { code: Some("unanswerable"), ..Self::invalid("", message) }
    }

    pub(super) fn headers() -> Self {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        Self::new(status, "invalid_request_error", "the headers are larger than 32 KiB")
    }

    /// The Host header names another server: a web page may have made a visitor's browser send it (DNS rebinding).
    pub(super) fn host(name: &str) -> Self {
        let name = brief(name.to_owned(), PARAM);
        let message = format!("this server does not go by the name `{name}`; `serve --allowed-host {name}` lets it");
        Self { code: Some("host_not_allowed"), ..Self::forbidden(message) }
    }

    /// Too many connections.
    pub(super) fn crowded() -> Self {
        Self {
            code: Some("too_many_connections"),
            retry_after: Some(1),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "too many connections; try again in 1 s")
        }
    }

    fn limited(message: &str, code: &'static str) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        Self { code: Some(code), retry_after: Some(1), ..error }
    }

    /// Too many wrong keys from this address.
    pub(super) fn braked() -> Self {
        Self::limited("too many wrong keys from this address; try again in 1 s", "too_many_wrong_keys")
    }

    /// No room for another large body at the moment.
    pub(super) fn flooded() -> Self {
        Self::limited("too many large requests at once; try again in 1 s", "rate_limit_exceeded")
    }

    /// The server shuts down before the answer is complete.
    pub(super) fn cut_off() -> Self {
        let message = "the server is shutting down, and the time it gives running answers is over (--drain)";
        Self {
            code: Some("shutting_down"),
            retry_after: Some(5),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
        }
    }

    /// An unexpected error of the server.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self { code: Some("internal_error"), ..Self::engine(message) }
    }

    /// The queue is full.
    pub(super) fn busy(waiting: usize, seconds: u64) -> Self {
        let message = format!("{waiting} requests are running or waiting, and no more may; try again in {seconds} s");
        Self {
            code: Some("rate_limit_exceeded"),
            retry_after: Some(seconds),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
        }
    }

    /// The machine is too busy for this request at the moment.
    fn overloaded(message: impl Into<String>) -> Self {
        Self {
            code: Some("overloaded"),
            retry_after: Some(5),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
        }
    }

    /// The model is still loading, or the server is shutting down.
    pub(super) fn not_ready(state: &str) -> Self {
        Self {
            code: Some("not_ready"),
            retry_after: Some(2),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", format!("the server is {state}"))
        }
    }

    pub(super) fn deadline(seconds: u64) -> Self {
        let message = format!("the answer took longer than the {seconds} s the server gives one (--timeout)");
        Self { code: Some("deadline_exceeded"), ..Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", message) }
    }

    /// The engine failed. Retrying would not help.
    pub(super) fn engine(message: impl Into<String>) -> Self {
        Self {
            code: Some("engine_error"),
            ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message.into())
        }
    }

    /// The JSON body; also the last event of a stream that has begun.
    pub(super) fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl From<LlmError> for ApiError {
    fn from(error: LlmError) -> Self {
        match error {
            LlmError::Text(error) => error.into(),
            error @ LlmError::NotFinite => Self::unanswerable(error.to_string()),
            error => Self::engine(error.to_string()),
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        match error {
            TextError::TooLong { have, limit, .. } => Self::too_long(have, limit),
            TextError::Request(message) => Self::invalid("", message),
            TextError::Internal(message) => Self::internal(message.to_string()),
            TextError::Busy(message) => Self::overloaded(message),
            // Where it lies on this machine is no client's business.
            TextError::File { message, .. } => Self::invalid("messages", message.to_string()),
            error @ TextError::Checkpoint(_) => Self::engine(error.to_string()),
        }
    }
}

/// The error message, attached to the response for the log.
#[derive(Clone)]
pub(super) struct Why(pub(super) String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        response.extensions_mut().insert(Why(self.message.clone()));
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status.is_server_error() && self.retry_after.is_none() {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::BackendError;
    use crate::diagnostic::Diagnostic;

    #[test]
    fn a_status_says_whose_fault_it_is() {
        let internal = || LlmError::internal(Diagnostic::new("no such step").with_help("report it"));
        let cases = [
            (LlmError::request("no prompt"), 400, None),
            (
                TextError::TooLong { what: "a prompt", have: 2, limit: 1, help: String::new() }.into(),
                400,
                Some("context_length_exceeded"),
            ),
            (LlmError::NotFinite, 400, Some("unanswerable")),
            (TextError::Busy("no memory".to_owned()).into(), 503, Some("overloaded")),
            (internal(), 500, Some("internal_error")),
            (LlmError::Backend(BackendError::Run("illegal address".into())), 500, Some("engine_error")),
        ];
        for (error, status, code) in cases {
            let told = ApiError::from(error.clone());
            assert_eq!((told.status.as_u16(), told.code), (status, code), "{error}");
        }
        // Once an answer has begun, what is wrong with a request is wrong with its answer.
        let told = ApiError::of_answer(internal());
        assert_eq!((told.status.as_u16(), told.message.as_str()), (500, "no such step\n  hint: report it"));
        let told = ApiError::of_answer(LlmError::request("it left its grammar"));
        assert_eq!((told.status.as_u16(), told.code), (400, Some("unanswerable")));
    }
}
