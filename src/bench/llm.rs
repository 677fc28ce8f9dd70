//! Measures a language model: time to first token, decoding speed, and the share of memory bandwidth that it reaches.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::drafted::{DraftedLaunch, drafted_table, measure_drafted};
use super::llm_samples::{latency, tokens};
use super::{Conditions, Latency, Loading};
use crate::backend::BackendInfo;
use crate::executor::{Executor, LlmError, MemoryUse, Rows, Step, WantedLogits};

/// Settings of a measurement.
#[derive(Debug, Clone)]
pub struct LlmBenchPlan {
    /// Prompt lengths in tokens.
    pub lengths: Vec<usize>,
    /// Tokens in the KV cache at which decoding is timed.
    pub contexts: Vec<usize>,
    /// Drafted tokens of the launches that are timed at each of the contexts.
    pub drafted: Vec<usize>,
    /// Timed prompts per length.
    pub prompts: usize,
    /// Timed decode steps per combination of batch and context.
    pub steps: usize,
}

/// Shortest time over which energy is measured: power is sampled five times a second, drivers count a little oftener.
const ENERGY_SPAN: Duration = Duration::from_millis(1000);

/// Who hears of a measurement's progress, and knows the energy.
pub trait BenchObserver {
    /// Called with the name of each measurement before it begins.
    fn begins(&mut self, what: &str);

    /// Joules used so far; `None` if nobody counts them.
    fn joules(&self) -> Option<f64> {
        None
    }
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
    /// Energy for each token of all sequences, of the whole module or GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joules_per_token: Option<f64>,
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
    /// Time of launches that verify drafts, by drafted tokens and context; absent from reports of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drafted: Vec<DraftedLaunch>,
    /// Circumstances that make the figures unrepresentative, e.g. a low power mode.
    pub notes: Vec<String>,
    /// The machine's clocks, temperatures and power meanwhile; absent from reports of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Conditions>,
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
            joules_per_token: None,
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
            drafted: Vec::new(),
            notes: Vec::new(),
            conditions: None,
        }
    }
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

/// What decode steps are measured at.
#[derive(Clone, Copy)]
struct StepPlan {
    batch: usize,
    context: usize,
    steps: usize,
}

/// Decodes one more token of each sequence after `done` ones.
fn step(executor: &mut dyn Executor, plan: StepPlan, done: usize) -> Result<(), LlmError> {
    let wanted = WantedLogits::Top { temperature: 0.0 };
    let token = tokens(1, executor.vocab_size())[0];
    let position = plan.context + done;
    let steps: Vec<Step> = (0..plan.batch).map(|slot| Step { slot, token, position, wanted }).collect();
    executor.launch(&steps)?;
    executor.collect()?;
    Ok(())
}

/// Times decode steps, after two untimed ones; with the joules for each token, if there are any.
fn measure_steps(
    executor: &mut dyn Executor,
    plan: StepPlan,
    observer: &dyn BenchObserver,
) -> Result<(Latency, Option<f64>), LlmError> {
    let prompt = tokens(plan.context, executor.vocab_size());
    (0..executor.slots()).for_each(|slot| executor.release(slot));
    for slot in 0..plan.batch {
        executor.prefill(slot, 0, &prompt, Rows::Last)?;
    }
    // The first captures a graph, the second warms it.
    let mut done = 0;
    while done < 2 {
        step(executor, plan, done)?;
        done += 1;
    }
    let (joules, begun) = (observer.joules(), Instant::now());
    let mut samples = Vec::new();
    for _ in 0..plan.steps.max(1) {
        let start = Instant::now();
        step(executor, plan, done)?;
        samples.push(start.elapsed().as_secs_f64() * 1e3);
        done += 1;
    }
    let joules_per_token = match joules {
        // Untimed ones follow until energy can be told.
        Some(before) => {
            while begun.elapsed() < ENERGY_SPAN && plan.context + done < executor.max_len() {
                step(executor, plan, done)?;
                done += 1;
            }
            let long_enough = begun.elapsed() >= ENERGY_SPAN;
            let used = observer.joules().filter(|_| long_enough).map(|now| now - before);
            used.filter(|used| *used > 0.0).map(|used| used / ((done - 2) * plan.batch) as f64)
        }
        None => None,
    };
    Ok((latency(&samples)?, joules_per_token))
}

/// Times launches that verify drafts, of each size at each context that fits.
fn measure_drafts(
    executor: &mut dyn Executor,
    plan: &LlmBenchPlan,
    observer: &mut dyn BenchObserver,
) -> Result<Vec<DraftedLaunch>, LlmError> {
    let mut drafted = Vec::new();
    for context in plan.contexts.iter().copied() {
        let max_len = executor.max_len();
        for count in plan.drafted.iter().copied().filter(|count| context + count < max_len) {
            observer.begins(&format!("verifying {count} drafted tokens after {context}"));
            drafted.push(measure_drafted(executor, (count, context), plan.steps)?);
        }
    }
    Ok(drafted)
}

/// Measures `executor`.
pub fn measure_llm(
    name: &str,
    executor: &mut dyn Executor,
    plan: &LlmBenchPlan,
    (load_seconds, loading): (f64, Loading),
    observer: &mut dyn BenchObserver,
) -> Result<LlmReport, LlmError> {
    let max_len = executor.max_len();
    let longest = max_len.saturating_sub(plan.steps + 2);
    let bandwidth = executor.bandwidth()?;
    let mut prefill = Vec::new();
    for length in plan.lengths.iter().copied().filter(|length| *length <= max_len) {
        observer.begins(&format!("prompts of {length} tokens"));
        prefill.push(measure_prefill(executor, length, plan.prompts)?);
    }
    let mut decode = Vec::new();
    let batches: &[usize] = if executor.slots() > 1 { &[1, executor.slots()] } else { &[1] };
    for batch in batches.iter().copied() {
        for context in plan.contexts.iter().copied().filter(|context| *context <= longest) {
            observer.begins(&format!("decoding {batch} after {context} tokens"));
            let steps = StepPlan { batch, context, steps: plan.steps };
            let (latency, joules_per_token) = measure_steps(executor, steps, observer)?;
            let rate = 1e3 / latency.p50_ms;
            decode.push(Decode {
                batch,
                context,
                tokens_per_second: rate * batch as f64,
                bandwidth_share: executor.bytes_per_step() as f64 * rate / bandwidth,
                latency,
                joules_per_token,
            });
        }
    }
    let drafted = measure_drafts(executor, plan, observer)?;
    Ok(LlmReport {
        name: name.to_owned(),
        backend: executor.info(),
        load_seconds,
        loading,
        memory: executor.memory(),
        bandwidth,
        prefill,
        decode,
        drafted,
        notes: Vec::new(),
        conditions: None,
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
        decode_table(&mut text, &report.decode);
        drafted_table(&mut text, &report.drafted);
        super::remarks(&mut text, &report.name, &report.notes, report.conditions.as_ref());
        text.push('\n');
    }
    text
}

/// Adds the table of decoding; energy has a column where it was measured.
fn decode_table(text: &mut String, decode: &[Decode]) {
    let has_energy = decode.iter().any(|one| one.joules_per_token.is_some());
    let (title, line) = if has_energy { (" J a token |", "---|") } else { ("", "") };
    text.push_str(&format!(
        "\n| decode, batch | context | p50 ms a step | tok/s | of the bandwidth |{title}\n|---|---|---|---|---|{line}\n"
    ));
    for Decode { batch, context, latency, tokens_per_second, bandwidth_share, joules_per_token } in decode {
        let (share, p50) = (bandwidth_share * 100.0, latency.p50_ms);
        text.push_str(&format!("| {batch} | {context} | {p50:.2} | {tokens_per_second:.1} | {share:.0} % |"));
        if has_energy {
            let energy = joules_per_token.map_or_else(|| "–".to_owned(), |joules| format!("{joules:.3}"));
            text.push_str(&format!(" {energy} |"));
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energy_and_flags_stand_in_the_text() {
        let mut report = LlmReport::of_rates(&[(64, 1000.0)], &[(1, 128, 40.0), (4, 128, 120.0)], 0.8);
        let plain = llm_markdown(std::slice::from_ref(&report));
        assert!(plain.contains("| 1 | 128 | 1.00 | 40.0 | 80 % |\n") && !plain.contains("J a token"), "{plain}");
        report.decode[1].joules_per_token = Some(0.25);
        let conditions = Conditions { throttled_by: vec!["oc3".to_owned()], ..Conditions::default() };
        report.conditions = Some(conditions);
        let text = llm_markdown(std::slice::from_ref(&report));
        assert!(
            text.contains("| 1 | 128 | 1.00 | 40.0 | 80 % | – |\n| 4 | 128 | 1.00 | 120.0 | 80 % | 0.250 |\n"),
            "{text}"
        );
        assert!(text.contains("\nm7b: measured while clocks were lowered by oc3\n"), "{text}");
        let kept = serde_json::to_string(&report).unwrap();
        assert!(kept.contains("\"throttled_by\":[\"oc3\"]"), "{kept}");
        assert_eq!(serde_json::from_str::<LlmReport>(&kept).unwrap(), report);
    }
}
