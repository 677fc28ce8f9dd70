//! `POST /v1/completions`: continues a text.

use serde::Deserialize;

use super::error::ApiError;
use super::openai::{Common, FromBody, logprob_count};

/// The request body.
#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "an object")]
pub(super) struct CompletionRequest {
    #[serde(skip)]
    pub(super) common: Common,
    pub(super) prompt: Option<InPrompt>,
    logprobs: Option<i64>,
    suffix: Option<String>,
    /// An extension of vLLM.
    add_special_tokens: Option<bool>,
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
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::unsupported("suffix", "this server continues texts, it does not fill gaps"));
        }
        if self.add_special_tokens == Some(false) {
            let message = "texts get the model's own first token, lists of tokens are taken as they are: \
                           add_special_tokens must be true";
            return Err(ApiError::unsupported("add_special_tokens", message));
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
