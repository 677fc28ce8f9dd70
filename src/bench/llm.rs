//! Measures a language model: time to first token, decoding speed, and the share of memory bandwidth that it reaches.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Latency, Loading};
use crate::backend::{BackendError, BackendInfo};
use crate::executor::{Executor, LlmError, MemoryUse, Rows, Step, WantedLogits};

/// Settings of a measurement.
#[derive(Debug, Clone)]
pub struct LlmBenchPlan {
    /// Prompt lengths in tokens.
    pub lengths: Vec<usize>,
    /// Tokens in the KV cache at which decoding is timed.
    pub contexts: Vec<usize>,
    /// Timed prompts per length.
    pub prompts: usize,
    /// Timed decode steps per combination of batch and context.
    pub steps: usize,
}

/// Time to first token at one prompt length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prefill {
    /// Prompt length in tokens.
    pub tokens: usize,
    /// Time from tokens to logits on the host.
    pub latency: Latency,
    /// Tokens per second at the median.
    pub tokens_per_second: f64,
}

/// Time between tokens at one batch and context.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decode {
    /// Sequences decoded together.
    pub batch: usize,
    /// Tokens in the KV cache when timing began.
    pub context: usize,
    /// Time of one step, until the logits are on the host.
    pub latency: Latency,
    /// Tokens per second of all sequences, at the median.
    pub tokens_per_second: f64,
    /// Bytes of weights per second, as a share of the measured copy bandwidth; at 1 memory is the bound.
    pub bandwidth_share: f64,
}

/// Measurements of a language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LlmReport {
    /// Name of the engine.
    pub name: String,
    /// Backend that ran the model.
    pub backend: BackendInfo,
    /// Time to load the model, weights included, in seconds.
    pub load_seconds: f64,
    /// Peak memory while loading; absent from reports of earlier versions.
    #[serde(default)]
    pub loading: Loading,
    /// Memory of the loaded model.
    pub memory: MemoryUse,
    /// Measured memory bandwidth in bytes per second.
    pub bandwidth: f64,
    /// Time to first token, by prompt length.
    pub prefill: Vec<Prefill>,
    /// Time between tokens, by batch and context.
    pub decode: Vec<Decode>,
    /// Circumstances that make the figures unrepresentative, e.g. a low power mode.
    pub notes: Vec<String>,
}

#[cfg(test)]
impl LlmReport {
    /// A report of (prompt tokens, tokens per second) and (sequences, context, tokens per second), for tests.
    pub(super) fn of_rates(prefill: &[(usize, f64)], decode: &[(usize, usize, f64)], bandwidth_share: f64) -> Self {
        let latency = || Latency::of(&[1.0]).unwrap_or_else(|| unreachable!("one sample is enough"));
        let prompt = |(tokens, tokens_per_second): &(usize, f64)| Prefill {
            tokens: *tokens,
            latency: latency(),
            tokens_per_second: *tokens_per_second,
        };
        let answer = |(batch, context, tokens_per_second): &(usize, usize, f64)| Decode {
            batch: *batch,
            context: *context,
            latency: latency(),
            tokens_per_second: *tokens_per_second,
            bandwidth_share,
        };
        Self {
            name: "m7b".to_owned(),
            backend: BackendInfo { name: "TensorRT".to_owned(), device: "GPU".to_owned() },
            load_seconds: 1.0,
            loading: Loading::default(),
            memory: MemoryUse::default(),
            bandwidth: 1e12,
            prefill: prefill.iter().map(prompt).collect(),
            decode: decode.iter().map(answer).collect(),
            notes: Vec::new(),
        }
    }
}

/// `count` different tokens, as a text has.
fn tokens(count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count).map(|at| u32::try_from((at * 7919 + 13) % vocabulary).unwrap_or(0)).collect()
}

fn latency(samples: &[f64]) -> Result<Latency, LlmError> {
    let nothing = || LlmError::Backend(BackendError::Run("the backend took no samples".into()));
    Latency::of(samples).ok_or_else(nothing)
}

/// Times prompts of `length` tokens, after an untimed one.
fn measure_prefill(executor: &mut dyn Executor, length: usize, prompts: usize) -> Result<Prefill, LlmError> {
    let prompt = tokens(length, executor.vocab_size());
    let mut samples = Vec::new();
    for run in 0..=prompts.max(1) {
        executor.release(0);
        let start = Instant::now();
        executor.prefill(0, 0, &prompt, Rows::Last)?;
        if run > 0 {
            samples.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    let latency = latency(&samples)?;
    Ok(Prefill { tokens: length, tokens_per_second: 1e3 * length as f64 / latency.p50_ms, latency })
}

/// Times decode steps of `batch` sequences with `context` tokens in the cache at first.
fn measure_steps(executor: &mut dyn Executor, batch: usize, context: usize, steps: usize) -> Result<Latency, LlmError> {
    let prompt = tokens(context, executor.vocab_size());
    (0..executor.slots()).for_each(|slot| executor.release(slot));
    for slot in 0..batch {
        executor.prefill(slot, 0, &prompt, Rows::Last)?;
    }
    let wanted = WantedLogits::Top { temperature: 0.0 };
    let mut samples = Vec::new();
    for step in 0..steps.max(1) + 2 {
        let steps: Vec<Step> =
            (0..batch).map(|slot| Step { slot, token: prompt[0], position: context + step, wanted }).collect();
        let start = Instant::now();
        executor.launch(&steps)?;
        executor.collect()?;
        // The first captures a graph, the second warms it.
        if step >= 2 {
            samples.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    latency(&samples)
}

/// Measures `executor`; `hear` is called with the name of each measurement before it begins.
pub fn measure_llm(
    name: &str,
    executor: &mut dyn Executor,
    plan: &LlmBenchPlan,
    (load_seconds, loading): (f64, Loading),
    mut hear: impl FnMut(&str),
) -> Result<LlmReport, LlmError> {
    let max_len = executor.max_len();
    let longest = max_len.saturating_sub(plan.steps + 2);
    let bandwidth = executor.bandwidth()?;
    let mut prefill = Vec::new();
    for length in plan.lengths.iter().copied().filter(|length| *length <= max_len) {
        hear(&format!("prompts of {length} tokens"));
        prefill.push(measure_prefill(executor, length, plan.prompts)?);
    }
    let mut decode = Vec::new();
    let batches: &[usize] = if executor.slots() > 1 { &[1, executor.slots()] } else { &[1] };
    for batch in batches.iter().copied() {
        for context in plan.contexts.iter().copied().filter(|context| *context <= longest) {
            hear(&format!("decoding {batch} after {context} tokens"));
            let latency = measure_steps(executor, batch, context, plan.steps)?;
            let rate = 1e3 / latency.p50_ms;
            decode.push(Decode {
                batch,
                context,
                tokens_per_second: rate * batch as f64,
                bandwidth_share: executor.bytes_per_step() as f64 * rate / bandwidth,
                latency,
            });
        }
    }
    Ok(LlmReport {
        name: name.to_owned(),
        backend: executor.info(),
        load_seconds,
        loading,
        memory: executor.memory(),
        bandwidth,
        prefill,
        decode,
        notes: Vec::new(),
    })
}

/// The reports as tables in GitHub's Markdown.
pub fn llm_markdown(reports: &[LlmReport]) -> String {
    let mut text = String::new();
    for report in reports {
        let total = report.memory.weights + report.memory.cache + report.memory.scratch;
        text.push_str(&format!(
            "{}: {}, {}; loaded in {:.1} s, {} of memory, of which {} weights; memory moves {:.0} GB/s\n\n",
            report.name,
            report.backend.name,
            report.backend.device,
            report.load_seconds,
            crate::memory::format_bytes(total),
            crate::memory::format_bytes(report.memory.weights),
            report.bandwidth / 1e9
        ));
        if let Some(loading) = report.loading.text() {
            text.push_str(&format!("while loading at most {loading}\n\n"));
        }
        text.push_str("| first token after a prompt of | p50 ms | p90 ms | tok/s |\n|---|---|---|---|\n");
        for Prefill { tokens, latency, tokens_per_second } in &report.prefill {
            let Latency { p50_ms, p90_ms, .. } = latency;
            text.push_str(&format!("| {tokens} | {p50_ms:.2} | {p90_ms:.2} | {tokens_per_second:.0} |\n"));
        }
        text.push_str(
            "\n| decode, batch | context | p50 ms a step | tok/s | of the bandwidth |\n|---|---|---|---|---|\n",
        );
        for Decode { batch, context, latency, tokens_per_second, bandwidth_share } in &report.decode {
            let share = bandwidth_share * 100.0;
            let p50 = latency.p50_ms;
            text.push_str(&format!("| {batch} | {context} | {p50:.2} | {tokens_per_second:.1} | {share:.0} % |\n"));
        }
        for note in &report.notes {
            text.push_str(&format!("\n{}: {note}\n", report.name));
        }
        text.push('\n');
    }
    text
}
