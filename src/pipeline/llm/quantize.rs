//! The stages of quantising: a scheme is chosen, scales are searched, weights are written, and the quality loss is measured.

use std::path::Path;
use std::sync::Arc;

use anyhow::bail;

use super::{LlmTarget, OpenedSource};
use crate::diagnostic::Diagnostic;
use crate::executor::CpuExecutor;
use crate::manifest::Quality;
use crate::manifest::layout::WEIGHTS;
use crate::progress::Progress;
use crate::quantize::{self, CalibrationText, OriginalModel, Scales, Scheme};
use crate::recipe::Plan;
use crate::spec::LlmRecord;
use crate::text::Text;
use crate::verify;

fn original<'a>(plan: &'a Plan, source: &'a OpenedSource) -> OriginalModel<'a> {
    OriginalModel { name: &plan.name, checkpoint: &source.checkpoint, model: &source.model }
}

/// The scheme that a plan asks for.
pub(super) fn scheme(plan: &Plan, source: &OpenedSource) -> anyhow::Result<Option<Scheme>> {
    let Some(bits) = plan.build.precision.bits() else { return Ok(None) };
    Ok(Some(Scheme::choose(original(plan, source), bits, plan.build.group_size)?))
}

/// Writes the quantised weights into `staged`, where the text files are; returns the files' names below `weights/`.
pub(super) fn write(
    target: &LlmTarget,
    scheme: Scheme,
    staged: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<Vec<String>> {
    let LlmTarget { plan, source, shapes, types, .. } = target;
    let original = original(plan, source);
    let scales = match &plan.build.calibration {
        Some(path) => {
            let (longest, kv_cache) = (shapes.max_len, types.kv_cache);
            quantize::search(original, scheme, &CalibrationText { path, tokenizer: staged, longest, kv_cache })?
        }
        None => Scales::default(),
    };
    let file = quantize::write(original, scheme, &scales, &staged.join(WEIGHTS), progress)?;
    quantize::describe(scheme, staged)?;
    Ok(vec![file])
}

/// Measures the quality loss of weights that were quantised here or by others, against the float checkpoint.
pub(super) fn measure_quality(target: &LlmTarget, record: &LlmRecord, staged: &Path) -> anyhow::Result<Quality> {
    let OpenedSource { model, checkpoint, .. } = target.reference.as_ref().unwrap_or(&target.source);
    if model.vocab_size != target.source.model.vocab_size {
        let what = format!(
            "{}: the reference of `verify` has {} tokens, the model {}",
            target.plan.name, model.vocab_size, target.source.model.vocab_size
        );
        bail!(Diagnostic::new(what).with_help("it must be the checkpoint the model was made of"));
    }
    let text = Text::open(staged)?;
    let longest = record.shapes.max_len;
    let mut reference = CpuExecutor::new(model.clone(), Arc::clone(checkpoint), 1, longest)?;
    let (model, checkpoint) = crate::engine_dir::model::checkpoint(staged, record)?;
    let mut quantised = CpuExecutor::new(model, checkpoint, 1, longest)?.with_kv_cache(record.kv_cache);
    let (divergence_limit, ratio_limit) = target.plan.verify.quality;
    let found = verify::quality(&text, &mut reference, &mut quantised, longest)?;
    Ok(Quality { divergence_limit, ratio_limit, ..found })
}
