//! Entries for the fuzz targets `head` and `chat`: the functions that serve, without sockets.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use axum::body::Body;
use axum::http::{Request, header};
use serde_json::Value;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::{Builder, Runtime};

use super::body::Intake;
use super::completion::CompletionRequest;
use super::error::ApiError;
use super::head::Strict;
use super::openai::{ChatRequest, FromBody};
use super::state::About;
use super::{prepare, routes};
use crate::generation::RequestLimits;
use crate::generation::compiler::GrammarCompiler;
use crate::text::Text;

/// The bytes that hyper receives from a connection's `bytes`, read in pieces of at most these sizes.
pub fn strict(bytes: &[u8], sizes: impl IntoIterator<Item = usize>) -> Vec<u8> {
    let mut stream = Strict::new(bytes);
    let mut context = Context::from_waker(Waker::noop());
    let mut passed = Vec::new();
    for size in sizes {
        let mut space = vec![0; size.max(1)];
        let mut buffer = ReadBuf::new(&mut space);
        let polled = Pin::new(&mut stream).poll_read(&mut context, &mut buffer);
        if !polled.is_ready() || buffer.filled().is_empty() {
            break;
        }
        passed.extend_from_slice(buffer.filled());
    }
    passed
}

/// Status and body of an error response.
pub type Refusal = (u16, Value);

fn refusal(error: ApiError) -> Refusal {
    (error.status.as_u16(), error.body())
}

/// Prepares requests for a model that is not loaded.
pub struct Desk {
    runtime: Runtime,
    intake: Intake,
    about: About,
}

impl Desk {
    /// Uses the tokenizer and chat template in `folder`.
    pub fn open(folder: &Path) -> Result<Self, String> {
        let runtime = Builder::new_current_thread().enable_time().build().map_err(|error| error.to_string())?;
        let text = Arc::new(Text::open(folder).map_err(|error| error.to_string())?);
        let limits = RequestLimits { max_input: 2048, vocabulary: 1 << 16 };
        let (engine, device) = ("none".to_owned(), "none".to_owned());
        let compiler = Arc::new(GrammarCompiler::new(Arc::clone(&text)));
        let about = About {
            engine,
            device,
            warnings: Vec::new(),
            slots: 1,
            limits,
            max_len: 4096,
            text,
            compiler,
            special: false,
        };
        Ok(Self { runtime, intake: Intake::new(), about })
    }

    /// Prepares `POST /v1/chat/completions`, and returns the grammar of its answer, if it has one.
    pub fn chat(&self, body: &[u8]) -> Result<Option<String>, Refusal> {
        let asked: ChatRequest = self.take_in(body)?;
        let prepared = prepare::chat(&asked, &self.about, 64).map_err(refusal)?;
        Ok(prepared.rules.map(|rules| rules.lark))
    }

    /// Prepares `POST /v1/completions`, and returns the number of tokens of its prompt.
    pub fn completion(&self, body: &[u8]) -> Result<usize, Refusal> {
        let asked: CompletionRequest = self.take_in(body)?;
        let request = prepare::completion(&asked, &self.about, 64).map_err(refusal)?;
        Ok(request.prompt.len())
    }

    fn take_in<T: FromBody>(&self, body: &[u8]) -> Result<T, Refusal> {
        let request = Request::builder().header(header::CONTENT_TYPE, "application/json").body(());
        let (parts, ()) = request.map_err(|error| refusal(ApiError::internal(error.to_string())))?.into_parts();
        let received = self.runtime.block_on(self.intake.json(&parts, Body::from(body.to_vec())));
        routes::parse(&received.map_err(refusal)?.bytes).map_err(refusal)
    }
}
