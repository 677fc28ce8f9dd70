//! What a verification found, as it is kept in the engine directory.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::artifact::write_file;
use crate::diagnostic::Diagnostic;
use crate::manifest::layout::REPORT_FILE;

/// One check's outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Status {
    Passed,
    Failed,
    Skipped,
    /// As it should be, and yet to be looked at by whoever builds it.
    Warned,
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// E.g. "hashes".
    pub name: String,
    /// Outcome.
    pub status: Status,
    /// What was seen.
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

/// Comparison of one output for one input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// "seed 1" or a picture's name.
    pub case: String,
    /// Output tensor.
    pub output: String,
    /// max|engine - reference| / max|reference|; infinite when something is not finite.
    #[serde(deserialize_with = "not_finite")]
    pub relative_error: f64,
    /// Index of the worst element.
    pub worst: Vec<usize>,
    /// The engine's value there.
    #[serde(deserialize_with = "not_finite")]
    pub engine: f64,
    /// The reference's value there.
    #[serde(deserialize_with = "not_finite")]
    pub reference: f64,
}

/// How two answers on one picture agree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// The picture.
    pub case: String,
    /// What the reference says.
    pub reference: String,
    /// What differs beyond the gate; empty if nothing does.
    pub differences: Vec<String>,
    /// Largest difference of a score or probability.
    pub score_difference: f32,
    /// Smallest overlap (intersection over union) of two boxes or masks of one object; 1 for a classifier.
    pub overlap: f32,
}

/// One prompt's comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptReport {
    /// What was asked.
    pub prompt: String,
    /// What the engine answered.
    pub answer: String,
    /// Tokens compared.
    pub tokens: usize,
    /// The first token the reference would have chosen otherwise, from 0.
    pub first_difference: Option<usize>,
    /// By how much the reference's logit of its own choice there is above the engine's choice.
    pub hesitation: Option<f32>,
    /// Mean divergence in nats a token.
    pub mean_divergence: f64,
    /// The largest.
    pub largest_divergence: f64,
}

/// exp of the mean negative log-likelihood.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// Tokens scored.
    pub tokens: usize,
    /// By the engines.
    pub engine: f64,
    /// By the reference.
    pub reference: f64,
}

/// What a model made of one text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sense {
    /// "English", "code" or "Polish".
    pub language: String,
    /// Tokens scored.
    pub tokens: usize,
    /// Bytes they spell.
    pub bytes: usize,
    /// exp of the mean negative log-likelihood of a token.
    #[serde(deserialize_with = "not_finite")]
    pub perplexity: f64,
    /// The same in bits a byte, which compares between vocabularies.
    #[serde(deserialize_with = "not_finite")]
    pub bits: f64,
    /// About what a working model of that size has that knows the language.
    pub expected: f64,
    /// What guessing among all tokens takes.
    pub guessing: f64,
}

/// JSON has no infinity and no NaN; serde_json writes null.
fn not_finite<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// What `verify` found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Engine name.
    pub name: String,
    /// When, in seconds since 1970.
    pub time: u64,
    /// Who executed the engine; `None` when nobody could.
    pub executed_on: Option<String>,
    /// Which reference judged its numbers; `None` when none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged_by: Option<String>,
    /// Allowed relative error.
    pub tolerance: f64,
    /// The checks, in order.
    pub checks: Vec<Check>,
    /// Every comparison made.
    pub comparisons: Vec<Comparison>,
    /// What the engine and the reference said of each picture.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<Agreement>,
    /// A language model's answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<PromptReport>,
    /// A language model's perplexity on a short text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Perplexity>,
    /// What a language model made of a text of each language; by the engines where they could be executed, else by the reference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sense: Vec<Sense>,
}

impl Report {
    /// Whether any check failed.
    pub fn failed(&self) -> bool {
        self.checks.iter().any(|check| check.status == Status::Failed)
    }

    /// Whether the engine ran here and computed something wrong, as another precision may not.
    pub fn wrong_answers(&self) -> bool {
        let numbers = |check: &Check| matches!(check.name.as_str(), "execution" | "answers");
        self.executed_on.is_some() && self.checks.iter().any(|check| check.status == Status::Failed && numbers(check))
    }

    /// The report of an earlier verification, if there is a readable one.
    pub fn load(folder: &Path) -> Option<Self> {
        serde_json::from_str(&fs::read_to_string(folder.join(REPORT_FILE)).ok()?).ok()
    }

    /// Writes the report into `folder`, in the place of an earlier one.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        text.push('\n');
        write_file(&folder.join(REPORT_FILE), text.as_bytes()).map(drop)
    }

    pub(super) fn push(&mut self, name: &str, status: Status, seen: impl Into<Diagnostic>) {
        self.checks.push(Check::new(name, status, seen));
    }
}
