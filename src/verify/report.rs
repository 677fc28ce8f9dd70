//! The report of a verification, as written into the engine directory.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::artifact::write_file;
use crate::diagnostic::Diagnostic;
use crate::manifest::layout::REPORT_FILE;

/// Outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Status {
    Passed,
    Failed,
    Skipped,
    /// Passed, but whoever builds the engine should look at it.
    Warned,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Name, e.g. "hashes".
    pub name: String,
    /// Outcome.
    pub status: Status,
    /// What the check found.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl Check {
    /// An outcome, with what was seen and what to do about it.
    pub fn new(name: &str, status: Status, seen: impl Into<Diagnostic>) -> Self {
        let Diagnostic { message, help, words } = seen.into();
        let detail = words.map_or_else(|| message.clone(), |words| format!("{message}\n  {words}"));
        Self { name: name.to_owned(), status, detail, help }
    }

    /// Both, for people.
    pub fn seen(&self) -> Diagnostic {
        Diagnostic { help: self.help.clone(), ..Diagnostic::new(&self.detail) }
    }
}

/// Comparison of one output on one input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// "seed 1", or the name of an image.
    pub case: String,
    /// Name of the output tensor.
    pub output: String,
    /// max|engine - reference| / max|reference|; infinite if a value is not finite.
    #[serde(deserialize_with = "not_finite")]
    pub relative_error: f64,
    /// Index of the element with the largest difference.
    pub worst: Vec<usize>,
    /// The engine's value of that element.
    #[serde(deserialize_with = "not_finite")]
    pub engine: f64,
    /// The reference's value of that element.
    #[serde(deserialize_with = "not_finite")]
    pub reference: f64,
}

/// Comparison of the results on one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Name of the image.
    pub case: String,
    /// The reference's result.
    pub reference: String,
    /// Differences beyond the limits; empty if there are none.
    pub differences: Vec<String>,
    /// Largest difference of a score or probability.
    pub score_difference: f32,
    /// Smallest intersection over union of two boxes or masks of the same object; 1 for a classifier.
    pub overlap: f32,
}

/// Comparison on one prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptReport {
    /// The prompt.
    pub prompt: String,
    /// The engine's answer.
    pub answer: String,
    /// Number of tokens compared.
    pub tokens: usize,
    /// Index of the first token for which the reference would have chosen another, from 0.
    pub first_difference: Option<usize>,
    /// Difference of the reference's logits there: of its own choice to the engine's choice.
    pub hesitation: Option<f32>,
    /// Mean Kullback-Leibler divergence in nats per token.
    pub mean_divergence: f64,
    /// Largest Kullback-Leibler divergence of a token in nats.
    pub largest_divergence: f64,
}

/// Perplexities of a text: exp of the mean negative log-likelihood.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// Number of tokens scored.
    pub tokens: usize,
    /// The engines' perplexity.
    pub engine: f64,
    /// The reference's perplexity.
    pub reference: f64,
}

/// Likelihood of one text under the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sense {
    /// Language of the text: "English", "code" or "Polish".
    pub language: String,
    /// Number of tokens scored.
    pub tokens: usize,
    /// Length of these tokens in bytes of text.
    pub bytes: usize,
    /// Perplexity per token: exp of the mean negative log-likelihood.
    #[serde(deserialize_with = "not_finite")]
    pub perplexity: f64,
    /// Negative log-likelihood in bits per byte, which can be compared between vocabularies.
    #[serde(deserialize_with = "not_finite")]
    pub bits: f64,
    /// Bits per byte expected of a working model of that size that knows the language.
    pub expected: f64,
    /// Bits per byte of guessing among all tokens.
    pub guessing: f64,
}

/// Deserialises infinity and NaN, which JSON lacks and serde_json writes as null.
fn not_finite<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Result of a verification.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the engine.
    pub name: String,
    /// Time of the verification, in seconds since 1970.
    pub time: u64,
    /// Device that executed the engine; `None` if it was not executed.
    pub executed_on: Option<String>,
    /// Reference that its numbers were compared with; `None` if they were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged_by: Option<String>,
    /// Largest allowed difference; see [`crate::manifest::VerifyRecord::tolerance`].
    pub tolerance: f64,
    /// All checks, in order.
    pub checks: Vec<Check>,
    /// Comparisons of outputs.
    pub comparisons: Vec<Comparison>,
    /// Comparisons of results on images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<Agreement>,
    /// Comparisons of a language model's answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<PromptReport>,
    /// A language model's perplexity on a short text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Perplexity>,
    /// A language model's likelihoods of texts in several languages; computed by the engines if they can be executed,
    /// else by the reference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sense: Vec<Sense>,
}

impl Report {
    /// Whether any check failed.
    pub fn failed(&self) -> bool {
        self.checks.iter().any(|check| check.status == Status::Failed)
    }

    /// Whether the engine was executed here with wrong results, so that a higher precision may help.
    pub fn wrong_answers(&self) -> bool {
        let numbers = |check: &Check| matches!(check.name.as_str(), "execution" | "answers");
        self.executed_on.is_some() && self.checks.iter().any(|check| check.status == Status::Failed && numbers(check))
    }

    /// Reads the report of an earlier verification, if there is a readable one.
    pub fn load(folder: &Path) -> Option<Self> {
        serde_json::from_str(&fs::read_to_string(folder.join(REPORT_FILE)).ok()?).ok()
    }

    /// Writes the report into `folder` and replaces an earlier one.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        text.push('\n');
        write_file(&folder.join(REPORT_FILE), text.as_bytes()).map(drop)
    }

    pub(super) fn push(&mut self, name: &str, status: Status, seen: impl Into<Diagnostic>) {
        self.checks.push(Check::new(name, status, seen));
    }
}
