//! Metrics for Prometheus: the server's own, and the machine's sensors (`machine.rs`).

mod machine;

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::executor::MemoryUse;
use crate::generation::{Speculation, Usage};
use crate::memory::of_process;
use crate::prefix_store::PrefixCounts;
use machine::MachineGauges;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MetricKind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: String,
    version: &'static str,
}

/// The server's metrics.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Route, Counter>,
    cancelled: Counter,
    queue: Gauge,
    running: Gauge,
    slots: Gauge,
    first: Histogram,
    between: Histogram,
    whole: Histogram,
    tokens: Family<MetricKind, Counter>,
    speculation: Family<MetricKind, Counter>,
    memory: Family<MetricKind, Gauge>,
    kept: KeptPrefixMetrics,
    lost: Counter,
    machine: MachineGauges,
}

/// Prefixes that are kept over restarts.
#[derive(Default)]
struct KeptPrefixMetrics {
    stored: Gauge,
    bytes: Gauge,
    written: Counter,
    loaded: Counter,
}

impl KeptPrefixMetrics {
    fn new(registry: &mut Registry) -> Self {
        let kept = Self::default();
        registry.register("stored_prefixes", "Prefixes in the folder of --state", kept.stored.clone());
        let help = "Files of the prefixes in the folder of --state";
        registry.register_with_unit("stored_prefixes", help, Unit::Bytes, kept.bytes.clone());
        registry.register(
            "prefixes_written",
            "Prefixes that were written to the folder of --state",
            kept.written.clone(),
        );
        registry.register("prefixes_loaded", "Prefixes that were read from the folder of --state", kept.loaded.clone());
        kept
    }
}

impl Metrics {
    /// Registers the metrics of the model called `model`.
    pub(super) fn new(model: &str) -> Self {
        // 1 ms to 131 s, and 0.5 ms to 8 s.
        let (slow, fast) = (|| exponential_buckets(0.001, 2.0, 18), || exponential_buckets(0.0005, 2.0, 15));
        let mut registry = Registry::with_prefix("watus");
        let machine = MachineGauges::new(&mut registry);
        let kept = KeptPrefixMetrics::new(&mut registry);
        let mut metrics = Self {
            registry,
            requests: Family::default(),
            cancelled: Counter::default(),
            queue: Gauge::default(),
            running: Gauge::default(),
            slots: Gauge::default(),
            first: Histogram::new(slow()),
            between: Histogram::new(fast()),
            whole: Histogram::new(slow()),
            tokens: Family::default(),
            speculation: Family::default(),
            memory: Family::default(),
            kept,
            lost: Counter::default(),
            machine,
        };
        let info: Family<ModelLabels, Gauge> = Family::default();
        info.get_or_create(&ModelLabels { model: model.to_owned(), version: env!("CARGO_PKG_VERSION") }).set(1);
        let registry = &mut metrics.registry;
        registry.register("info", "The model and the server's version", info);
        registry.register("requests", "Requests by path and status", metrics.requests.clone());
        registry.register("cancelled", "Answers nobody waited for any more", metrics.cancelled.clone());
        registry.register("requests_waiting", "Requests in the queue", metrics.queue.clone());
        registry.register("requests_running", "Requests in a slot", metrics.running.clone());
        registry.register("slots", "Requests that can run at once", metrics.slots.clone());
        registry.register("tokens", "Tokens: of prompts, of these reused, of answers", metrics.tokens.clone());
        let speculation = metrics.speculation.clone();
        let help = "Tokens without a step of their own: drafted, of these accepted, and forced by a grammar";
        registry.register("speculative_tokens", help, speculation);
        let mut seconds = |name: &str, help: &str, histogram: &Histogram| {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        };
        seconds("time_to_first_token", "From arrival to the first token", &metrics.first);
        seconds("inter_token_latency", "Between tokens of an answer", &metrics.between);
        seconds("request", "From arrival to the last token", &metrics.whole);
        registry.register("log_lines_dropped", "Lines of the log that nobody read in time", metrics.lost.clone());
        let memory = metrics.memory.clone();
        registry.register_with_unit("memory", "The model's memory and the process's", Unit::Bytes, memory);
        metrics
    }

    pub(super) fn request(&self, route: &'static str, status: u16) {
        self.requests.get_or_create(&Route { route, status }).inc();
    }

    pub(super) fn cancelled(&self) {
        self.cancelled.inc();
    }

    pub(super) fn set_slots(&self, slots: usize) {
        self.slots.set(whole(slots as u64));
    }

    pub(super) fn load(&self, (waiting, running): (usize, usize), memory: MemoryUse) {
        self.queue.set(whole(waiting as u64));
        self.running.set(whole(running as u64));
        for (kind, bytes) in [("weights", memory.weights), ("cache", memory.cache), ("scratch", memory.scratch)] {
            self.memory.get_or_create(&MetricKind { kind }).set(whole(bytes));
        }
    }

    /// Sets the tokens of all answers so far that took no step of their own.
    pub(super) fn speculated(&self, all: Speculation) {
        for (kind, tokens) in [("drafted", all.drafted), ("accepted", all.accepted), ("forced", all.forced)] {
            let counter = self.speculation.get_or_create(&MetricKind { kind });
            counter.inc_by((tokens as u64).saturating_sub(counter.get()));
        }
    }

    /// Sets the numbers of prefixes that are kept over restarts.
    pub(super) fn kept(&self, counts: PrefixCounts) {
        let PrefixCounts { stored, bytes, written, loaded } = counts;
        self.kept.stored.set(whole(stored as u64));
        self.kept.bytes.set(whole(bytes));
        for (counter, count) in [(&self.kept.written, written), (&self.kept.loaded, loaded)] {
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }

    pub(super) fn first_token(&self, waited: Duration, usage: &Usage) {
        self.first.observe(waited.as_secs_f64());
        self.count("prompt", usage.prompt);
        self.count("reused", usage.reused);
        self.count("answer", 1);
    }

    pub(super) fn next_token(&self, waited: Duration) {
        self.between.observe(waited.as_secs_f64());
        self.count("answer", 1);
    }

    pub(super) fn answered(&self, took: Duration) {
        self.whole.observe(took.as_secs_f64());
    }

    fn count(&self, kind: &'static str, tokens: usize) {
        self.tokens.get_or_create(&MetricKind { kind }).inc_by(tokens as u64);
    }

    /// The metrics in Prometheus' text format.
    pub(super) fn text(&self) -> String {
        if let Some(bytes) = of_process("self", "VmRSS") {
            self.memory.get_or_create(&MetricKind { kind: "resident" }).set(whole(bytes));
        }
        self.lost.inc_by(crate::log::dropped().saturating_sub(self.lost.get()));
        self.machine.read();
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_can_read_it() {
        let metrics = Metrics::new("local-trt-llm");
        metrics.request("/v1/models", 200);
        metrics.first_token(Duration::from_millis(3), &Usage { prompt: 10, reused: 4, ..Usage::default() });
        metrics.next_token(Duration::from_millis(30));
        let some = Speculation { drafted: 9, accepted: 5, ..Speculation::default() };
        metrics.speculated(some);
        metrics.speculated(Speculation { drafted: 12, ..some });
        metrics.kept(PrefixCounts { stored: 3, bytes: 5000, written: 4, loaded: 1 });
        metrics.kept(PrefixCounts { stored: 2, bytes: 4000, written: 4, loaded: 2 });
        let text = metrics.text();
        for line in [
            "watus_stored_prefixes 2",
            "watus_stored_prefixes_bytes 4000",
            "watus_prefixes_written_total 4",
            "watus_prefixes_loaded_total 2",
            "watus_requests_total{route=\"/v1/models\",status=\"200\"} 1",
            "watus_tokens_total{kind=\"prompt\"} 10",
            "watus_tokens_total{kind=\"reused\"} 4",
            "watus_tokens_total{kind=\"answer\"} 2",
            "watus_speculative_tokens_total{kind=\"drafted\"} 12",
            "watus_speculative_tokens_total{kind=\"accepted\"} 5",
            "watus_speculative_tokens_total{kind=\"forced\"} 0",
            "watus_time_to_first_token_seconds_bucket{le=\"0.004\"} 1",
            "# TYPE watus_inter_token_latency_seconds histogram",
            "# EOF",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
        assert!(text.contains("watus_memory_bytes{kind=\"resident\"}"), "{text}");
    }

    #[test]
    fn sensors_are_told_and_what_is_off_is_not() {
        use crate::sensors::tegrastats::parse;
        let metrics = Metrics::new("m");
        let mut readings = parse(
            "RAM 1/2MB (lfb 5x1MB) SWAP 3/4MB (cached 0MB) CPU [97%@1984,off] EMC_FREQ 18%@3199 GR3D_FREQ 84%@[713] \
                   gpu@88.5C tj@52C VDD_IN 17946mW/15710mW",
        )
        .unwrap_or_default();
        readings.throttling =
            Some(crate::sensors::Throttling { causes: vec!["oc3".into()], over_current_events: Some(41) });
        let faster = Some(crate::sensors::NamedMode { id: 2, name: "MAXN".to_owned() });
        readings.power_mode = Some(crate::sensors::ModeInUse { id: 0, name: Some("15W".to_owned()), faster });
        readings.fan = Some(crate::sensors::FanReading { percent: Some(26.0), rpm: None });
        metrics.machine.set(&readings);
        let told = |metrics: &Metrics| {
            let mut text = String::new();
            encode(&mut text, &metrics.registry).map(|()| text).unwrap_or_default()
        };
        let text = told(&metrics);
        for line in [
            "watus_gpu_load 0.84",
            "watus_gpu_clock_hertz 713000000",
            "watus_temperature_celsius{sensor=\"gpu\"} 88.5",
            "watus_power_watts{rail=\"VDD_IN\"} 17.946",
            "watus_machine_power_watts 17.946",
            "watus_emc_load 0.18",
            "watus_emc_clock_hertz 3199000000",
            "watus_cpu_load{core=\"0\"} 0.97",
            "watus_ram_bytes{kind=\"total\"} 2097152",
            "watus_ram_bytes{kind=\"used\"} 1048576",
            "watus_ram_bytes{kind=\"largest_free_block\"} 1048576",
            "watus_swap_bytes{kind=\"used\"} 3145728",
            "watus_power_mode{mode=\"15W\",fastest=\"MAXN\"} 1",
            "watus_fan 0.26",
            "watus_throttled 1",
            "watus_over_current_events_total 41",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
        metrics.machine.set(&parse("RAM 1/2MB gpu@-256C tj@52C").unwrap_or_default());
        let text = told(&metrics);
        assert!(!text.contains("watus_cpu_load{core=\"0\"}") && text.contains("watus_emc_load NaN"), "{text}");
        assert!(text.contains("watus_gpu_load NaN") && text.contains("watus_throttled 0"), "{text}");
        assert!(!text.contains("sensor=\"gpu\"") && text.contains("sensor=\"tj\""), "{text}");
    }
}
