//! Compares a language model with other programs and with the bound of memory bandwidth. Reads the result files of
//! llama.cpp's `llama-bench -o json` and `llama-batched-bench --output-format jsonl`, and of `bench --json` or scripts
//! that write the same.

use serde::Deserialize;
use serde_json::Value;

use super::llm::LlmReport;

/// Measured speeds of another program.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Peer {
    /// Name of the program.
    pub name: String,
    /// Prefill speeds: (prompt tokens, tokens per second).
    pub prefill: Vec<(usize, f64)>,
    /// Decoding speeds: (sequences, tokens in the cache, tokens per second of all sequences).
    pub decode: Vec<(usize, usize, f64)>,
}

/// The fields of `bench --json` that are compared; a script may write only these.
#[derive(Deserialize)]
struct Own {
    name: String,
    #[serde(default)]
    prefill: Vec<OwnPrefill>,
    #[serde(default)]
    decode: Vec<OwnDecode>,
}

#[derive(Deserialize)]
struct OwnPrefill {
    tokens: usize,
    tokens_per_second: f64,
}

#[derive(Deserialize)]
struct OwnDecode {
    batch: usize,
    context: usize,
    tokens_per_second: f64,
}

/// A test of llama-bench: a prompt (`n_prompt`) or an answer (`n_gen`) after `n_depth` tokens.
#[derive(Deserialize)]
struct LlamaBench {
    build_number: u64,
    model_type: String,
    n_prompt: usize,
    n_gen: usize,
    #[serde(default)]
    n_depth: usize,
    avg_ts: f64,
}

/// A test of llama-batched-bench: `pl` sequences, each of `pp` prompt and `tg` answer tokens.
#[derive(Deserialize)]
struct LlamaBatched {
    pp: usize,
    pl: usize,
    speed_tg: f64,
}

/// Largest difference of context lengths, in tokens, at which decoding speeds are compared.
const NEAR: usize = 160;

impl Peer {
    /// Parses a result file; the error says why it is none.
    pub fn read(text: &str) -> Result<Vec<Self>, String> {
        let values: Vec<Value> = match serde_json::from_str(text) {
            Ok(Value::Array(values)) => values,
            Ok(value) => vec![value],
            // A JSON document on each line.
            Err(_) => text
                .lines()
                .filter(|line| !line.trim().is_empty())
                .map(|line| serde_json::from_str(line).map_err(|error| format!("not JSON: {error}")))
                .collect::<Result<_, _>>()?,
        };
        let mut peers: Vec<Self> = Vec::new();
        let mut of = |name: String| -> usize {
            let at = peers.iter().position(|peer| peer.name == name);
            at.unwrap_or_else(|| {
                peers.push(Self { name, ..Self::default() });
                peers.len() - 1
            })
        };
        let mut found = Vec::new();
        for value in values {
            if let Ok(own) = Own::deserialize(&value) {
                let at = of(own.name);
                found.extend(own.prefill.iter().map(|p| (at, None, p.tokens, p.tokens_per_second)));
                found.extend(own.decode.iter().map(|d| (at, Some(d.batch), d.context, d.tokens_per_second)));
            } else if let Ok(test) = LlamaBench::deserialize(&value) {
                // Builds outside a repository have no number.
                let number = match test.build_number {
                    0 => String::new(),
                    number => format!(" {number}"),
                };
                let at = of(format!("llama.cpp{number} {}", test.model_type));
                match (test.n_prompt, test.n_gen) {
                    (0, _) => found.push((at, Some(1), test.n_depth, test.avg_ts)),
                    (tokens, 0) if test.n_depth == 0 => found.push((at, None, tokens, test.avg_ts)),
                    _ => {}
                }
            } else if let Ok(test) = LlamaBatched::deserialize(&value) {
                found.push((of("llama.cpp, batched".to_owned()), Some(test.pl), test.pp, test.speed_tg));
            } else {
                return Err("neither llama-bench's nor llama-batched-bench's nor `bench --json`'s".to_owned());
            }
        }
        for (at, batch, tokens, rate) in found {
            match batch {
                Some(batch) => peers[at].decode.push((batch, tokens, rate)),
                None => peers[at].prefill.push((tokens, rate)),
            }
        }
        Ok(peers)
    }

    fn prompt(&self, tokens: usize) -> Option<f64> {
        self.prefill.iter().find(|(have, _)| *have == tokens).map(|(_, rate)| *rate)
    }

    fn answer(&self, batch: usize, context: usize) -> Option<f64> {
        let same = self.decode.iter().filter(|(have, _, _)| *have == batch);
        let near = same.min_by_key(|(_, have, _)| have.abs_diff(context));
        near.filter(|(_, have, _)| have.abs_diff(context) <= NEAR).map(|(_, _, rate)| *rate)
    }
}

/// One compared measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Name of the measurement: "prompt of 512", "4 at 1024" (sequences at a context).
    pub what: String,
    /// Our speed in tokens per second.
    pub own: f64,
    /// For decoding: the bound in tokens per second, memory bandwidth over the bytes of weights, times the sequences.
    pub limit: Option<f64>,
    /// The peers' speeds in tokens per second, in their order; `None` if not measured.
    pub peers: Vec<Option<f64>>,
}

/// Compares all measurements of a report with the peers'.
pub fn lines(report: &LlmReport, peers: &[Peer]) -> Vec<Line> {
    let prompts = report.prefill.iter().map(|own| Line {
        what: format!("prompt of {}", own.tokens),
        own: own.tokens_per_second,
        limit: None,
        peers: peers.iter().map(|peer| peer.prompt(own.tokens)).collect(),
    });
    let answers = report.decode.iter().map(|own| Line {
        what: format!("{} at {}", own.batch, own.context),
        own: own.tokens_per_second,
        // The share is of the weights' bytes in what memory moves in that time.
        limit: Some(own.tokens_per_second / own.bandwidth_share),
        peers: peers.iter().map(|peer| peer.answer(own.batch, own.context)).collect(),
    });
    prompts.chain(answers).collect()
}

/// One table in GitHub's Markdown: tokens per second, and our speed relative to each peer's.
pub fn markdown(report: &LlmReport, peers: &[Peer]) -> String {
    let names = peers.iter().map(|peer| format!(" {} |", peer.name)).collect::<String>();
    let mut text = format!("| {}, tok/s | ours | memory's limit |{names}\n|---|---|---|", report.name);
    text.push_str(&"---|".repeat(peers.len()));
    text.push('\n');
    for Line { what, own, limit, peers } in lines(report, peers) {
        let limit = limit.map_or_else(|| "–".to_owned(), |limit| format!("{limit:.1} ({:.0} %)", 100.0 * own / limit));
        text.push_str(&format!("| {what} | {own:.1} | {limit} |"));
        for rate in peers {
            let cell = rate.map_or_else(|| " – |".to_owned(), |rate| format!(" {rate:.1} ({:.2}x) |", own / rate));
            text.push_str(&cell);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = r#"[
        {"build_number": 9993, "model_type": "llama 7B F16", "n_prompt": 512, "n_gen": 0, "n_depth": 0, "avg_ts": 20000.0},
        {"build_number": 9993, "model_type": "llama 7B F16", "n_prompt": 0, "n_gen": 64, "n_depth": 128, "avg_ts": 170.0},
        {"build_number": 9993, "model_type": "llama 7B Q4_0", "n_prompt": 0, "n_gen": 64, "n_depth": 1024, "avg_ts": 300.0}]"#;

    #[test]
    fn peers_are_read_and_set_beside() {
        let mut peers = Peer::read(LLAMA).unwrap();
        assert_eq!(
            peers.iter().map(|p| &*p.name).collect::<Vec<_>>(),
            ["llama.cpp 9993 llama 7B F16", "llama.cpp 9993 llama 7B Q4_0"]
        );
        peers.extend(Peer::read("{\"pp\": 128, \"tg\": 64, \"pl\": 4, \"speed_tg\": 400.0}\n").unwrap());
        peers.extend(
            Peer::read(
                r#"{"name": "transformers", "decode": [{"batch": 1, "context": 128, "tokens_per_second": 10}]}"#,
            )
            .unwrap(),
        );
        assert!(Peer::read("[{\"speed\": 1}]").unwrap_err().contains("neither"));
        assert!(Peer::read("speed 1").unwrap_err().contains("not JSON"));
        let report = LlmReport::of_rates(&[(512, 30000.0)], &[(1, 128, 187.0), (4, 128, 600.0)], 0.85);
        let table = markdown(&report, &peers);
        for part in [
            "| prompt of 512 | 30000.0 | – | 20000.0 (1.50x) | – | – | – |",
            "| 1 at 128 | 187.0 | 220.0 (85 %) | 170.0 (1.10x) | – | – | 10.0 (18.70x) |",
            "400.0 (1.50x)",
        ] {
            assert!(table.contains(part), "{part} is not in\n{table}");
        }
        let svg = super::super::compare_svg(&report, &peers).unwrap();
        for part in ["m7b on GPU", "transformers", "memory", "1 at 128"] {
            assert!(svg.contains(part), "{part}");
        }
    }
}
