//! Proves a language model: greedy answers of its engines, token by token, against the CPU reference in float32.
//!
//! The engine answers by prefill and decode, as it will in use; the reference reads prompt and answer in one pass. For
//! every token of the answer the two distributions are compared (Kullback-Leibler divergence of the engine's from the
//! reference's), and whether the engine chose what the reference would have. A short text's perplexity is computed by both.
//! Whether the model itself makes sense: `sense.rs`.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Report, Status, machine_agrees, plan_agrees, sense};
use crate::llm::model::{ENGINES, Runner, open_executor};
use crate::llm::text::{Message, Text};
use crate::llm::{Executor, LlmError, Logits, Record, Rows, Step, argmax, head_name, layer_name, log_sum_exp};
use crate::log::printable;
use crate::manifest::Manifest;
use crate::progress::{Event, Progress};

/// Asked of every model, besides the recipe's prompts.
const PROMPTS: [&str; 3] =
    ["Cześć, jestem Watus. Kim jestem?", "What is the capital of France?", "List three prime numbers and add them."];
/// Tokens of each answer.
const ANSWER: usize = 32;
/// The text of which both compute the perplexity.
pub(super) const TEXT: &str = "The robot rolled slowly through the corridor. Its camera saw an open door on the left, and behind the \
                    door a table with two cups of tea. It stopped, turned its head and said good morning to the people \
                    in the room, who were surprised to hear it speak.";
/// Where the reference itself hesitates by less (in logits), another choice is no error.
const HESITATION: f32 = 1e-2;

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

/// Checks the engines' headers, then, where there is a GPU, their numbers.
pub(super) fn verify(
    folder: &Path,
    manifest: &Manifest,
    record: &Record,
    progress: &Arc<dyn Progress>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let layers = record.shapes.layers().into_iter().map(layer_name);
    for name in record.shapes.heads().into_iter().map(head_name).chain(layers) {
        let path = folder.join(ENGINES).join(format!("{name}.engine"));
        let read = std::fs::read(&path).map_err(|error| error.to_string());
        if let Err(mistake) = read.and_then(|plan| plan_agrees(manifest, &plan)) {
            report.push("header", Status::Failed, format!("{name}: {mistake}"));
            return Ok(());
        }
    }
    let text = match Text::open(folder) {
        Ok(text) => text,
        Err(error) => {
            report.push("text", Status::Failed, error.to_string());
            return Ok(());
        }
    };
    let prompts = prompts(&text, manifest, record)?;
    let what = if text.traits().is_some() { "chat template" } else { "no chat template" };
    report.push("text", Status::Passed, format!("tokenizer, {what}, {} prompts", prompts.len()));
    if let Some(quality) = &manifest.quality {
        let ratio = quality.perplexity / quality.reference_perplexity;
        // Written so that a NaN fails.
        let passed = quality.divergence <= quality.divergence_limit && ratio <= quality.ratio_limit;
        let detail = format!(
            "on {} tokens it diverges from the checkpoint by {:.4} nats of {} allowed, perplexity {:.3} to {:.3}, \
             {:.3} of {} allowed",
            quality.tokens,
            quality.divergence,
            quality.divergence_limit,
            quality.perplexity,
            quality.reference_perplexity,
            ratio,
            quality.ratio_limit
        );
        report.push("quantisation", if passed { Status::Passed } else { Status::Failed }, detail);
    }
    if machine_agrees(manifest, report).is_none() {
        if !report.failed() && sense::is_quick(record) {
            read_by_reference(folder, (manifest, record), &text, progress, report);
        }
        return Ok(());
    }
    if let Err(error) = execute(folder, manifest, record, (&text, &prompts), progress, report) {
        report.push("execution", Status::Failed, format!("{error:#}"));
    }
    Ok(())
}

/// Each prompt and its tokens.
fn prompts(text: &Text, manifest: &Manifest, record: &Record) -> anyhow::Result<Vec<(String, Vec<u32>)>> {
    let given = PROMPTS.iter().map(|prompt| (*prompt).to_owned()).chain(manifest.verify.prompts.iter().cloned());
    let mut prompts = Vec::new();
    for prompt in given {
        let mut tokens = match text.traits().is_some() {
            true => text.encode_chat(&[Message::new("user", &*prompt)])?,
            false => text.encode_text(&prompt)?,
        };
        // Cut short it is still a sequence both must agree on.
        tokens.truncate(record.max_input_len);
        prompts.push((prompt, tokens));
    }
    Ok(prompts)
}

fn execute(
    folder: &Path,
    manifest: &Manifest,
    record: &Record,
    (text, prompts): (&Text, &[(String, Vec<u32>)]),
    progress: &Arc<dyn Progress>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let stage = |what: &str| progress.event(Event::Stage(&format!("{}: {what}", manifest.name)));
    stage("loading the engines");
    let mut engine = open_executor(folder, record, Runner::TensorRt { tf32: manifest.tf32 }, &mut |_, _| {})?;
    let info = engine.info();
    report.executed_on = Some(format!("{}, {}", info.name, info.device));
    let mut answers = Vec::new();
    for (prompt, tokens) in prompts {
        stage(&format!("answering \"{prompt}\""));
        answers.push(answer(&mut *engine, tokens, text, record.shapes.max_len)?);
    }
    let scored = text.encode_text(TEXT)?;
    let scored = &scored[..scored.len().min(record.max_input_len)];
    let engine_loss = read(&mut *engine, scored)?;
    let sensed = sense::sense(&mut *engine, text, record.parameters, record.max_input_len)?;
    drop(engine); // its memory may be the reference's, on a Jetson
    stage("loading the reference");
    let mut reference = open_executor(folder, record, Runner::Cpu, &mut |_, _| {})?;
    report.judged_by = Some(reference.info().name);
    for ((prompt, tokens), answer) in prompts.iter().zip(&answers) {
        stage(&format!("comparing \"{prompt}\""));
        report.prompts.push(compare(&mut *reference, text, (prompt, tokens), answer)?);
    }
    let perplexity = Perplexity {
        tokens: scored.len().saturating_sub(1),
        engine: engine_loss.exp(),
        reference: read(&mut *reference, scored)?.exp(),
    };
    report.perplexity = Some(perplexity);
    conclude(manifest.precision == "fp32" && !manifest.tf32, report);
    sense::conclude(sensed, record.parameters, report);
    Ok(())
}

/// Whether a model makes sense that cannot be executed here. What keeps the reference from telling is no fault of the engines.
fn read_by_reference(
    folder: &Path,
    (manifest, record): (&Manifest, &Record),
    text: &Text,
    progress: &Arc<dyn Progress>,
    report: &mut Report,
) {
    progress.event(Event::Stage(&format!("{}: reading three texts on the CPU", manifest.name)));
    let sensed = open_executor(folder, record, Runner::Cpu, &mut |_, _| {})
        .map_err(anyhow::Error::from)
        .and_then(|mut reference| sense::sense(&mut *reference, text, record.parameters, record.max_input_len));
    match sensed {
        Ok(found) => sense::conclude(found, record.parameters, report),
        // Weights that cannot be read are the engine's, which would compute with them or refuse to start.
        Err(error) if matches!(error.downcast_ref(), Some(LlmError::Checkpoint(_))) => {
            report.push("weights", Status::Failed, format!("{error:#}"));
        }
        Err(error) => report.push("sense", Status::Skipped, format!("not told: {error:#}")),
    }
}

/// An engine's greedy answer: the tokens, and the logits each was chosen from.
struct Answer {
    tokens: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

fn answer(engine: &mut dyn Executor, prompt: &[u32], text: &Text, max_len: usize) -> anyhow::Result<Answer> {
    engine.release(0);
    let mut logits = vec![engine.prefill(0, 0, prompt, Rows::Last)?];
    let mut tokens = vec![argmax(&logits[0])];
    while tokens.len() < ANSWER && prompt.len() + tokens.len() < max_len {
        let token = tokens[tokens.len() - 1];
        if text.stop_tokens.contains(&token) {
            break;
        }
        let step = Step { slot: 0, token, position: prompt.len() + tokens.len() - 1, temperature: 0.0 };
        engine.launch(&[step])?;
        let row = match engine.collect()?.pop() {
            Some(Logits::All(row)) => row,
            // Answers are chosen by what the device ranks.
            Some(Logits::Top(top)) => {
                let row = engine.logits(0)?;
                let (ranked, best) = (top.tokens.first().map(|(token, _)| *token), argmax(&row));
                anyhow::ensure!(
                    ranked == Some(best),
                    "the device ranks token {ranked:?} first, but {best} is the likeliest\n  hint: our kernels or the \
                     driver miscompute here: update the driver (`watus-build doctor`), or report it"
                );
                row
            }
            None => anyhow::bail!("the engine computed nothing"),
        };
        tokens.push(argmax(&row));
        logits.push(row);
    }
    Ok(Answer { tokens, logits })
}

fn compare(
    reference: &mut dyn Executor,
    text: &Text,
    (prompt, tokens): (&str, &[u32]),
    answer: &Answer,
) -> anyhow::Result<PromptReport> {
    reference.release(0);
    let mut sequence = tokens.to_vec();
    sequence.extend_from_slice(&answer.tokens[..answer.tokens.len() - 1]);
    let all = reference.prefill(0, 0, &sequence, Rows::All)?;
    let width = reference.vocab_size();
    let rows = all[(tokens.len() - 1) * width..].chunks_exact(width);
    let (mut total, mut largest) = (0.0, 0.0_f64);
    let (mut first_difference, mut hesitation) = (None, None);
    for (index, (row, (token, logits))) in rows.zip(answer.tokens.iter().zip(&answer.logits)).enumerate() {
        let divergence = divergence(row, logits);
        total += divergence;
        // Not f64::max, which drops a NaN.
        largest = if divergence <= largest { largest } else { divergence };
        let best = argmax(row);
        if best != *token && first_difference.is_none() {
            first_difference = Some(index);
            hesitation = Some(row[best as usize] - row[*token as usize]);
        }
    }
    Ok(PromptReport {
        prompt: prompt.to_owned(),
        answer: text.decode(&answer.tokens, true)?,
        tokens: answer.tokens.len(),
        first_difference,
        hesitation,
        mean_divergence: total / answer.tokens.len() as f64,
        largest_divergence: largest,
    })
}

/// KL(reference || engine) of the distributions two rows of logits stand for, in nats.
pub(super) fn divergence(reference: &[f32], engine: &[f32]) -> f64 {
    let (p_total, q_total) = (log_sum_exp(reference), log_sum_exp(engine));
    let terms = reference.iter().zip(engine).map(|(p, q)| {
        let (p, q) = (f64::from(*p) - p_total, f64::from(*q) - q_total);
        p.exp() * (p - q)
    });
    terms.sum::<f64>()
}

/// Mean negative log-likelihood of all tokens but the first.
pub(super) fn read(executor: &mut dyn Executor, tokens: &[u32]) -> anyhow::Result<f64> {
    executor.release(0);
    let logits = executor.prefill(0, 0, tokens, Rows::All)?;
    loss(&logits, tokens, executor.vocab_size())
}

/// The same of logits `[tokens, vocabulary]`.
pub(super) fn loss(logits: &[f32], tokens: &[u32], width: usize) -> anyhow::Result<f64> {
    anyhow::ensure!(tokens.len() > 1, "the perplexity text has no tokens");
    let likelihood = |row: &[f32], token: u32| f64::from(row[token as usize]) - log_sum_exp(row);
    let sum: f64 = logits.chunks_exact(width).zip(&tokens[1..]).map(|(row, token)| likelihood(row, *token)).sum();
    Ok(-sum / (tokens.len() - 1) as f64)
}

fn conclude(exact: bool, report: &mut Report) {
    let Some(worst) = report.prompts.iter().max_by(|a, b| a.mean_divergence.total_cmp(&b.mean_divergence)).cloned()
    else {
        return report.push("execution", Status::Failed, "there was nothing to compare");
    };
    let tokens: usize = report.prompts.iter().map(|prompt| prompt.tokens).sum();
    // Written so that a NaN fails.
    let passed = worst.mean_divergence <= report.tolerance;
    let detail = format!(
        "{tokens} tokens of {} answers, mean divergence {:.1e} nats at worst of {:.0e} allowed (\"{}\")",
        report.prompts.len(),
        worst.mean_divergence,
        report.tolerance,
        printable(&worst.prompt)
    );
    report.push("distributions", if passed { Status::Passed } else { Status::Failed }, detail);
    let differing: Vec<&super::PromptReport> =
        report.prompts.iter().filter(|prompt| prompt.first_difference.is_some()).collect();
    let wrong = differing.iter().any(|prompt| prompt.hesitation.is_none_or(|by| by.is_nan() || by > HESITATION));
    let detail = match differing.first() {
        None => "the engine chose as the reference would".to_owned(),
        Some(first) => format!(
            "{} of {} answers differ, first \"{}\" at token {} where the reference prefers another by {:.3}",
            differing.len(),
            report.prompts.len(),
            printable(&first.prompt),
            first.first_difference.unwrap_or_default(),
            first.hesitation.unwrap_or_default()
        ),
    };
    // In half precision near ties fall either way; the divergence above is the gate.
    let status = if exact && wrong { Status::Failed } else { Status::Passed };
    report.push("greedy tokens", status, detail);
    if let Some(Perplexity { tokens, engine, reference }) = report.perplexity {
        let detail = format!("{engine:.3} on {tokens} tokens, the reference {reference:.3}");
        let close = (engine.ln() - reference.ln()).abs() <= report.tolerance.sqrt();
        report.push("perplexity", if close { Status::Passed } else { Status::Failed }, detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_the_definition() {
        // p = (0.5, 0.5), q = (0.8, 0.2): 0.5 ln(0.5/0.8) + 0.5 ln(0.5/0.2).
        let found = divergence(&[1.0, 1.0], &[0.8_f32.ln() + 3.0, 0.2_f32.ln() + 3.0]);
        assert!((found - 0.223_143_55).abs() < 1e-6, "{found}");
        assert!(divergence(&[1.0, 2.0], &[4.0, 5.0]).abs() < 1e-9);
        assert!(divergence(&[1.0, 2.0], &[f32::NAN, 5.0]).is_nan());
    }
}
