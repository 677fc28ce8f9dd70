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

impl FromBody for CompletionRequest {
    fn with(self, common: Common) -> Self {
        Self { common, ..self }
    }

    fn common(&self) -> &Common {
        &self.common
    }
}
