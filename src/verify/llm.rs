//! Verifies a language model: greedy answers of its engines, token by token, against the CPU reference in float32.
//!
//! The engine answers by prefill and decode, as in use; the reference reads prompt and answer in one pass. For every
//! token of the answer the two distributions are compared (Kullback-Leibler divergence of the engine's from the
//! reference's), and whether the engine chose the token that the reference would have chosen. Both also compute the
//! perplexity of a short text. `sense.rs` checks whether the model itself makes sense.

use std::path::Path;
use std::sync::Arc;

use super::likelihood::{divergence, read};
use super::{Perplexity, PromptReport, Report, Status, machine_agrees, plan_agrees, sense};
use crate::backend::BackendError;
use crate::diagnostic::{Ask, Diagnostic, ask, of_chain};
use crate::engine_dir::EngineDir;
use crate::engine_dir::model::{Runner, open_executor};
use crate::executor::{Executor, LlmError, Rows, Step, WantedLogits, head_name, layer_name};
use crate::generation::argmax;
use crate::log::printable;
use crate::manifest::{Manifest, Quality};
use crate::progress::{Event, Progress};
use crate::spec::{LlmRecord, Precision};
use crate::text::{Message, Text, TextError};

/// Prompts for every model, besides the recipe's.
const PROMPTS: [&str; 3] =
    ["Cześć, jestem Watus. Kim jestem?", "What is the capital of France?", "List three prime numbers and add them."];
/// Length of each answer in tokens.
const ANSWER: usize = 32;
/// The text whose perplexity both compute.
pub(super) const TEXT: &str = "The robot rolled slowly through the corridor. Its camera saw an open door on the left, and behind the \
                    door a table with two cups of tea. It stopped, turned its head and said good morning to the people \
                    in the room, who were surprised to hear it speak.";
/// Difference of logits below which the reference itself is undecided, so that another choice is no error.
const HESITATION: f32 = 1e-2;

/// Errors that a failure is asked for its next step as.
const CAUSES: &[Ask] = &[ask::<LlmError>, ask::<TextError>, ask::<BackendError>];

/// The model to verify, and its tokenizer.
struct LlmSubject<'a> {
    folder: &'a Path,
    manifest: &'a Manifest,
    record: &'a LlmRecord,
    text: &'a Text,
    progress: &'a Arc<dyn Progress>,
}

impl LlmSubject<'_> {
    fn stage(&self, what: &str) {
        self.progress.event(Event::Stage(&format!("{}: {what}", self.manifest.name)));
    }
}

/// Checks the engines' headers, and with a GPU their numbers.
pub(super) fn verify(
    dir: &EngineDir,
    (record, quality): (&LlmRecord, Option<&Quality>),
    progress: &Arc<dyn Progress>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (folder, manifest) = (dir.folder(), &dir.manifest);
    let layers = record.shapes.layers().into_iter().map(layer_name);
    for name in record.shapes.heads().into_iter().map(head_name).chain(layers) {
        let read = std::fs::read(dir.llm_engine(&name)).map_err(|error| error.to_string());
        if let Err(mistake) = read.and_then(|plan| plan_agrees(manifest, &plan)) {
            report.push("header", Status::Failed, format!("{name}: {mistake}"));
            return Ok(());
        }
    }
    let text = match Text::open(folder) {
        Ok(text) => text,
        Err(error) => {
            report.push("text", Status::Failed, error);
            return Ok(());
        }
    };
    let prompts = prompts(&text, manifest, record)?;
    let what = if text.traits().is_some() { "chat template" } else { "no chat template" };
    report.push("text", Status::Passed, format!("tokenizer, {what}, {} prompts", prompts.len()));
    if let Some(quality) = quality {
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
    let subject = LlmSubject { folder, manifest, record, text: &text, progress };
    if machine_agrees(manifest, report).is_none() {
        if !report.failed() && sense::is_quick(record) {
            read_by_reference(&subject, report);
        }
        return Ok(());
    }
    if let Err(error) = execute(&subject, &prompts, report) {
        report.push("execution", Status::Failed, of_chain(&error, CAUSES));
    }
    Ok(())
}

/// The prompts and their tokens.
fn prompts(text: &Text, manifest: &Manifest, record: &LlmRecord) -> anyhow::Result<Vec<(String, Vec<u32>)>> {
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

fn execute(subject: &LlmSubject<'_>, prompts: &[(String, Vec<u32>)], report: &mut Report) -> anyhow::Result<()> {
    let LlmSubject { folder, manifest, record, text, .. } = *subject;
    subject.stage("loading the engines");
    let mut engine = open_executor(folder, record, Runner::TensorRt { tf32: manifest.tf32 }, &mut |_, _| {})?;
    let info = engine.info();
    report.executed_on = Some(format!("{}, {}", info.name, info.device));
    let mut answers = Vec::new();
    for (prompt, tokens) in prompts {
        subject.stage(&format!("answering \"{prompt}\""));
        answers.push(answer(&mut *engine, tokens, text, record.shapes.max_len)?);
    }
    let scored = text.encode_text(TEXT)?;
    let scored = &scored[..scored.len().min(record.max_input_len)];
    let engine_loss = read(&mut *engine, scored)?;
    let sensed = sense::sense(&mut *engine, text, record.parameters, record.max_input_len)?;
    drop(engine); // its memory may be the reference's, on a Jetson
    subject.stage("loading the reference");
    let mut reference = open_executor(folder, record, Runner::Cpu, &mut |_, _| {})?;
    report.judged_by = Some(reference.info().name);
    for ((prompt, tokens), answer) in prompts.iter().zip(&answers) {
        subject.stage(&format!("comparing \"{prompt}\""));
        report.prompts.push(compare(&mut *reference, text, (prompt, tokens), answer)?);
    }
    let perplexity = Perplexity {
        tokens: scored.len().saturating_sub(1),
        engine: engine_loss.exp(),
        reference: read(&mut *reference, scored)?.exp(),
    };
    report.perplexity = Some(perplexity);
    conclude(manifest.precision == Precision::Fp32 && !manifest.tf32, report);
    sense::conclude(sensed, record.parameters, report);
    Ok(())
}

/// Checks with the reference whether a model makes sense that cannot be executed here. If the reference fails, that is
/// no fault of the engines.
fn read_by_reference(subject: &LlmSubject<'_>, report: &mut Report) {
    let LlmSubject { folder, record, text, .. } = *subject;
    subject.stage("scoring three texts on the CPU");
    let sensed = open_executor(folder, record, Runner::Cpu, &mut |_, _| {})
        .map_err(anyhow::Error::from)
        .and_then(|mut reference| sense::sense(&mut *reference, text, record.parameters, record.max_input_len));
    match sensed {
        Ok(found) => sense::conclude(found, record.parameters, report),
        // Weights that cannot be read are the engine's, which would compute with them or refuse to start.
        Err(error) if matches!(error.downcast_ref(), Some(LlmError::Checkpoint(_))) => {
            report.push("weights", Status::Failed, of_chain(&error, CAUSES));
        }
        Err(error) => report.push("sense", Status::Skipped, of_chain(&error, CAUSES).at("not told")),
    }
}

/// An engine's greedy answer: the tokens, and the logits that each was chosen from.
struct GreedyAnswer {
    tokens: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

fn answer(engine: &mut dyn Executor, prompt: &[u32], text: &Text, max_len: usize) -> anyhow::Result<GreedyAnswer> {
    engine.release(0);
    let mut logits = vec![engine.prefill(0, 0, prompt, Rows::Last)?];
    let mut tokens = vec![argmax(&logits[0])];
    while tokens.len() < ANSWER && prompt.len() + tokens.len() < max_len {
        let token = tokens[tokens.len() - 1];
        if text.stop_tokens.contains(&token) {
            break;
        }
        // Answers are chosen by what the device ranks.
        let wanted = WantedLogits::Top { temperature: 0.0 };
        engine.launch(&[Step { slot: 0, token, position: prompt.len() + tokens.len() - 1, wanted }])?;
        let mut found = engine.collect()?;
        let row = found.all(0)?.to_vec();
        let best = argmax(&row);
        if let Some(top) = found.top(0) {
            let ranked = top.tokens.first().map(|(token, _)| *token);
            anyhow::ensure!(
                ranked == Some(best),
                Diagnostic::new(format!("the device ranks token {ranked:?} first, but {best} is the likeliest")).with_help(
                    "our kernels or the driver miscompute here: update the driver (`watus-build doctor`), or report it"
                )
            );
        }
        tokens.push(best);
        logits.push(row);
    }
    Ok(GreedyAnswer { tokens, logits })
}

fn compare(
    reference: &mut dyn Executor,
    text: &Text,
    (prompt, tokens): (&str, &[u32]),
    answer: &GreedyAnswer,
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
    let differing: Vec<&PromptReport> =
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
