//! `POST /v1/completions`: a text to continue.

use serde::Deserialize;

use super::error::ApiError;
use super::openai::{Common, FromBody, logprob_count};

/// What the request says.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CompletionRequest {
    #[serde(skip)]
    pub(super) common: Common,
    pub(super) prompt: Option<InPrompt>,
    logprobs: Option<i64>,
    echo: Option<bool>,
    suffix: Option<String>,
    best_of: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a text or a list of tokens")]
pub(super) enum InPrompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

impl CompletionRequest {
    pub(super) fn top_logprobs(&self) -> Result<Option<usize>, ApiError> {
        self.logprobs.map(|count| logprob_count("logprobs", count)).transpose()
    }

    pub(super) fn refuse(&self) -> Result<(), ApiError> {
        self.common.refuse()?;
        if self.echo == Some(true) {
            return Err(ApiError::unsupported("echo", "this server does not repeat the prompt: echo must be false"));
        }
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::unsupported("suffix", "this server continues texts, it does not fill gaps"));
        }
        if self.best_of.is_some_and(|best| best != 1) {
            return Err(ApiError::unsupported(
                "best_of",
                "this server gives one answer to a request: best_of must be 1",
            ));
        }
        Ok(())
    }
}

impl FromBody for CompletionRequest {
    fn with(self, common: Common) -> Self {
        Self { common, ..self }
    }

    fn common(&self) -> &Common {
        &self.common
    }
}
