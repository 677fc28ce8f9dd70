//! Decides which jobs the machine is fit for.

use serde::Serialize;

use super::Examination;
use super::hardware::Gpu;
use super::software::Software;
use crate::memory::format_bytes;

/// Whether the machine is fit for a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The job: "build", "vision" or "llm".
    pub job: &'static str,
    /// Whether the machine is fit for it.
    pub able: bool,
    /// The reason.
    pub reason: String,
}

/// Memory in bytes that a 7B model with 4-bit weights needs: weights, KV cache for 4 x 2560 tokens (1.3 GB), workspace
/// and the system.
const LLM_4_BIT: u64 = 8_000_000_000;
/// Memory in bytes that a 7B model with float16 weights needs: weights, KV cache, workspace and the system.
const LLM_FP16: u64 = 18_000_000_000;
/// Memory in bytes that building a vision engine needs.
const BUILD: u64 = 2_000_000_000;

pub(super) fn of(examination: &Examination, software: &Software, gpu: &Gpu) -> Vec<Verdict> {
    let verdict = |job, result: Result<String, String>| {
        let able = result.is_ok();
        Verdict { job, able, reason: result.unwrap_or_else(|reason| reason) }
    };
    vec![
        verdict("build", build(examination, software, gpu)),
        verdict("vision", runs(software, gpu).map(|name| format!("YOLO and classifiers with {name}"))),
        verdict("llm", llm(examination, software, gpu)),
    ]
}

fn build(examination: &Examination, software: &Software, gpu: &Gpu) -> Result<String, String> {
    let name = software.tensorrt.as_ref().ok_or("there is no TensorRT")?;
    if !software.can_build {
        return Err(format!("{name} is incomplete: see the failures above"));
    }
    if !name.contains("RTX") && !gpu.usable {
        return Err(format!("{name} builds only on the GPU the engine is for"));
    }
    let available = examination.memory.map_or(0, |memory| memory.available + memory.disk_swap);
    if available < BUILD {
        return Err(format!("{} of memory are too little", format_bytes(available)));
    }
    Ok(format!("engines with {name}"))
}

fn runs(software: &Software, gpu: &Gpu) -> Result<String, String> {
    match (&software.tensorrt, gpu.usable) {
        (None, _) => Err("there is no TensorRT".to_owned()),
        (_, false) => Err("there is no usable GPU; the CPU reference answers, slowly".to_owned()),
        (Some(name), true) => Ok(name.clone()),
    }
}

fn llm(examination: &Examination, software: &Software, gpu: &Gpu) -> Result<String, String> {
    let name = runs(software, gpu)?;
    if !software.kernels {
        return Err("there are no kernels for language models: see nvrtc above".to_owned());
    }
    let memory = gpu.memory.filter(|_| !examination.platform.is_jetson());
    let total = memory.or(examination.memory.map(|memory| memory.total)).unwrap_or(0);
    match total {
        total if total >= LLM_FP16 => Ok(format!("7B in FP16 and everything smaller with {name}")),
        total if total >= LLM_4_BIT => Ok(format!("7B in 4 bits, 3B in FP16 with {name}")),
        total => Err(format!("{} of memory hold no 7B model; models up to about 1B may do", format_bytes(total))),
    }
}
