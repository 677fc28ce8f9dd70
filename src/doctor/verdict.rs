//! Decides which jobs the machine is fit for: those that no finding prevents.

use serde::Serialize;

use super::{Finding, Purpose};

/// Whether the machine is fit for a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The job: "build", "vision" or "llm".
    pub job: &'static str,
    /// Whether the machine is fit for it.
    pub able: bool,
    /// The reason; if it is not, the findings that prevent it.
    pub reason: String,
}

/// How much a machine can do of what nothing prevents.
pub(super) struct Capacity {
    /// TensorRT with its version.
    pub tensorrt: Option<String>,
    /// Memory in bytes for models; `None` if an image does not tell.
    pub memory: Option<u64>,
}

/// Memory in bytes that a 7B model with 4-bit weights needs: weights, KV cache for 4 x 2560 tokens (1.3 GB), workspace
/// and the system.
const LLM_4_BIT: u64 = 8_000_000_000;
/// Memory in bytes that a 7B model with float16 weights needs: weights, KV cache, workspace and the system.
const LLM_FP16: u64 = 18_000_000_000;

impl Capacity {
    /// What the machine is fit for, of a job that nothing prevents.
    fn reason(&self, purpose: Purpose) -> String {
        let name = self.tensorrt.as_deref().unwrap_or("TensorRT");
        match (purpose, self.memory) {
            (Purpose::Build, _) => format!("engines with {name}"),
            (Purpose::Vision, _) => format!("YOLO and classifiers with {name}"),
            (Purpose::Llm, Some(LLM_FP16..)) => format!("7B in FP16 and everything smaller with {name}"),
            (Purpose::Llm, Some(LLM_4_BIT..)) => format!("7B in 4 bits, 3B in FP16 with {name}"),
            (Purpose::Llm, Some(_)) => format!("models of about 1B in FP16, 3B in 4 bits with {name}"),
            (Purpose::Llm, None) => format!("what its memory holds, with {name}"),
        }
    }
}

pub(super) fn of(findings: &[Finding], capacity: &Capacity) -> Vec<Verdict> {
    let verdict = |purpose: Purpose| {
        let mut blocking: Vec<&Finding> = findings.iter().filter(|finding| finding.blocks.contains(&purpose)).collect();
        // The worst first; among equals what was found first, which the others may follow from.
        blocking.sort_by_key(|finding| std::cmp::Reverse(finding.level));
        let ids: Vec<&str> = blocking.iter().map(|finding| finding.id).collect();
        let reason = match blocking.first() {
            Some(worst) => format!("{}: {}", ids.join(", "), worst.seen),
            None => capacity.reason(purpose),
        };
        Verdict { job: purpose.name(), able: blocking.is_empty(), reason }
    };
    Purpose::ALL.into_iter().map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_possible_if_nothing_prevents_it() {
        let capacity = |memory| Capacity { tensorrt: Some("TensorRT 10.3.0".to_owned()), memory };
        let findings = [
            Finding::ok("gpu", "Orin"),
            Finding::warn("nvrtc", "no NVRTC", &[]).blocking(&[Purpose::Llm]),
            Finding::fail("onnx-parser", "no parser", &[], &[Purpose::Build]),
            Finding::fail("driver", "no driver", &[], &[Purpose::Build, Purpose::Llm]),
        ];
        let told = |findings: &[Finding], memory| {
            let verdicts = of(findings, &capacity(memory));
            verdicts.into_iter().map(|verdict| (verdict.job, verdict.able, verdict.reason)).collect::<Vec<_>>()
        };
        let no = |job, reason: &str| (job, false, reason.to_owned());
        let yes = |job, reason: &str| (job, true, reason.to_owned());
        assert_eq!(
            told(&findings, Some(64_000_000_000)),
            [
                no("build", "onnx-parser, driver: no parser"),
                yes("vision", "YOLO and classifiers with TensorRT 10.3.0"),
                no("llm", "driver, nvrtc: no driver"),
            ]
        );
        for (memory, size) in [
            (Some(31_000_000_000), "7B in FP16 and everything smaller"),
            (Some(8_000_000_000), "7B in 4 bits, 3B in FP16"),
            (Some(7_900_000_000), "models of about 1B in FP16, 3B in 4 bits"),
            (None, "what its memory holds,"),
        ] {
            let reason = format!("{size} with TensorRT 10.3.0");
            assert_eq!(told(&findings[..1], memory)[2], yes("llm", &reason), "{memory:?}");
        }
    }
}
