//! Measures a session: latency percentiles with and without host copies, and throughput; as Markdown, JSON and a chart.

mod chart;
mod compare;
mod compare_chart;
mod conditions;
mod drafted;
mod llm;
mod llm_chart;
mod llm_samples;
mod loading;

use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use chart::svg;
pub use compare::{Peer, markdown as compare_markdown};
pub use compare_chart::compare_svg;
pub use conditions::{Conditions, ConditionsSampler, MinMeanMax};
pub use drafted::DraftedLaunch;
pub use llm::{BenchObserver, Decode, LlmBenchPlan, LlmReport, Prefill, llm_markdown, measure_llm};
pub use llm_chart::llm_svg;
pub use loading::{Loading, MemorySampler, Used};

use crate::backend::{BackendError, BackendInfo, Samples, Session};
use crate::tensor::Tensor;

/// Percentiles of latency in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub mean_ms: f64,
    pub min_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

/// Measurements of one engine at one batch size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatencyReport {
    /// Name of the engine or model.
    pub name: String,
    /// Backend that ran the model.
    pub backend: BackendInfo,
    /// Batch size: the first dimension of the first input.
    pub batch: usize,
    /// Number of untimed runs before the timed ones.
    pub warmup: usize,
    /// Number of timed runs.
    pub iterations: usize,
    /// Latency from host tensors to host tensors.
    pub end_to_end: Latency,
    /// Latency on the device alone; `None` for the CPU.
    pub compute: Option<Latency>,
    /// Batch items per second of consecutive runs, host copies included.
    pub throughput: f64,
    /// Latency from a decoded image to its result, by stage; empty if the engine takes no images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
    /// Circumstances that make the figures unrepresentative, e.g. a low power mode.
    pub notes: Vec<String>,
    /// The machine's clocks, temperatures and power meanwhile; absent from reports of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Conditions>,
    /// Every timed run.
    pub samples: Samples,
}

/// One stage from an image to its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Stage {
    pub name: String,
    pub latency: Latency,
    /// Every timed run, in milliseconds.
    pub samples_ms: Vec<f64>,
}

/// Name of the last stage, which is the sum of all.
pub const WHOLE: &str = "picture to answer";

/// Percentile by linear interpolation between closest ranks; `sorted` is ascending and not empty.
fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    let position = fraction * (sorted.len() - 1) as f64;
    let (low, high) = (position.floor() as usize, position.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (position - low as f64)
}

impl Latency {
    /// Summarises samples in milliseconds; `None` if there are none.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            mean_ms: sorted.iter().sum::<f64>() / sorted.len() as f64,
            min_ms: *sorted.first()?,
            p50_ms: percentile(&sorted, 0.5),
            p90_ms: percentile(&sorted, 0.9),
            p99_ms: percentile(&sorted, 0.99),
            max_ms: *sorted.last()?,
        })
    }
}

/// Runs `session` on `inputs` and summarises the latencies.
pub fn measure(
    name: &str,
    session: &mut dyn Session,
    inputs: &[Tensor],
    warmup: usize,
    iterations: usize,
) -> Result<LatencyReport, BackendError> {
    let samples = session.measure(inputs, warmup, iterations.max(1))?;
    let end_to_end =
        Latency::of(&samples.end_to_end_ms).ok_or_else(|| BackendError::Run("the backend took no samples".into()))?;
    let batch = inputs.first().and_then(|input| input.shape().first().copied()).unwrap_or(1);
    Ok(LatencyReport {
        name: name.to_owned(),
        backend: session.info(),
        batch,
        warmup,
        iterations: samples.end_to_end_ms.len(),
        throughput: 1e3 * batch as f64 / end_to_end.mean_ms,
        compute: Latency::of(&samples.compute_ms),
        end_to_end,
        stages: Vec::new(),
        notes: Vec::new(),
        conditions: None,
        samples,
    })
}

/// Runs everything from a decoded image to its result, and times the stages.
pub fn measure_stages(
    session: &mut dyn Session,
    preprocess: &dyn Fn() -> Tensor,
    answer: &dyn Fn(&[Tensor]) -> Result<(), BackendError>,
    (warmup, iterations): (usize, usize),
) -> Result<Vec<Stage>, BackendError> {
    let names = ["preprocess", "engine", "postprocess", WHOLE];
    let mut samples: [Vec<f64>; 4] = Default::default();
    for iteration in 0..warmup + iterations.max(1) {
        let start = Instant::now();
        let input = preprocess();
        let prepared = start.elapsed();
        let outputs = session.run(&[input])?;
        let computed = start.elapsed();
        answer(&outputs)?;
        let answered = start.elapsed();
        if iteration >= warmup {
            let spans = [prepared, computed - prepared, answered - computed, answered];
            samples.iter_mut().zip(spans).for_each(|(samples, span)| samples.push(span.as_secs_f64() * 1e3));
        }
    }
    let stage = |(name, samples_ms): (&str, Vec<f64>)| {
        let latency = Latency::of(&samples_ms)?;
        Some(Stage { name: name.to_owned(), latency, samples_ms })
    };
    Ok(names.into_iter().zip(samples).filter_map(stage).collect())
}

/// The reports as a table in GitHub's Markdown.
pub fn markdown(reports: &[LatencyReport]) -> String {
    let mut text = String::from(
        "| engine | backend | device | batch | measured | p50 ms | p90 ms | p99 ms | mean ms | items/s |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for report in reports {
        let mut row = |what: &str, latency: &Latency| {
            let Latency { p50_ms, p90_ms, p99_ms, mean_ms, .. } = latency;
            let rate = 1e3 * report.batch as f64 / mean_ms;
            text.push_str(&format!(
                "| {} | {} | {} | {} | {what} | {p50_ms:.3} | {p90_ms:.3} | {p99_ms:.3} | {mean_ms:.3} | {rate:.0} |\n",
                report.name, report.backend.name, report.backend.device, report.batch
            ));
        };
        if let Some(compute) = &report.compute {
            row("GPU only", compute);
        }
        row("with host copies", &report.end_to_end);
        report.stages.iter().for_each(|stage| row(&stage.name, &stage.latency));
    }
    for report in reports {
        remarks(&mut text, &report.name, &report.notes, report.conditions.as_ref());
    }
    text
}

/// Adds a report's notes, and what the machine was like.
fn remarks(text: &mut String, name: &str, notes: &[String], conditions: Option<&Conditions>) {
    let flags = conditions.map(Conditions::flags).unwrap_or_default();
    let state = conditions.and_then(Conditions::text).map(|state| format!("meanwhile {state}"));
    for remark in notes.iter().chain(&flags).chain(&state) {
        text.push_str(&format!("\n{name}: {remark}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let samples: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        let latency = Latency::of(&samples).unwrap();
        let Latency { mean_ms, min_ms, p50_ms, p90_ms, p99_ms, max_ms } = latency;
        assert_eq!((mean_ms, min_ms, p50_ms, p90_ms, p99_ms, max_ms), (50.0, 0.0, 50.0, 90.0, 99.0, 100.0));
        assert_eq!(Latency::of(&[1.0, 2.0]).unwrap().p50_ms, 1.5);
        assert!(Latency::of(&[]).is_none());
    }
}
