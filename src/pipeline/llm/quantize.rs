//! The stages of quantising: schemes are chosen, scales are searched, weights are written, and the quality loss is measured.

use std::path::Path;
use std::sync::Arc;

use anyhow::bail;

use super::{LlmTarget, OpenedSource};
use crate::diagnostic::Diagnostic;
use crate::executor::CpuExecutor;
use crate::manifest::Quality;
use crate::manifest::layout::WEIGHTS;
use crate::progress::Progress;
use crate::quantize::{self, CalibrationText, OriginalModel, QuantisedBits, Scales, Schemes};
use crate::recipe::Plan;
use crate::spec::{HeadRecord, LlmRecord, Precision};
use crate::text::Text;
use crate::verify;

fn original<'a>(plan: &'a Plan, source: &'a OpenedSource) -> OriginalModel<'a> {
    OriginalModel { name: &plan.name, checkpoint: &source.checkpoint, model: &source.model }
}

/// Name of the file of an output matrix that is packed beside a checkpoint.
const HEAD_FILE: &str = "lm_head.safetensors";

/// The schemes that a plan asks for.
pub(super) fn schemes(plan: &Plan, source: &OpenedSource) -> anyhow::Result<Schemes> {
    let head = plan.build.head.and_then(Precision::bits);
    let bits = QuantisedBits { layers: plan.build.precision.bits(), head };
    Schemes::choose(original(plan, source), bits, plan.build.group_size)
}

/// Writes a checkpoint with quantised layers into `staged`, where the text files are; returns the files' names below `weights/`.
pub(super) fn write(target: &LlmTarget, staged: &Path, progress: &dyn Progress) -> anyhow::Result<Vec<String>> {
    let LlmTarget { plan, source, shapes, types, schemes, .. } = target;
    let original = original(plan, source);
    let scales = match plan.build.calibration.as_ref().zip(schemes.layers) {
        Some((path, scheme)) => {
            let (longest, kv_cache) = (shapes.max_len, types.kv_cache);
            quantize::search(original, scheme, &CalibrationText { path, tokenizer: staged, longest, kv_cache })?
        }
        None => Scales::default(),
    };
    let file = quantize::write(original, *schemes, &scales, &staged.join(WEIGHTS), progress)?;
    quantize::describe(*schemes, staged)?;
    Ok(vec![file])
}

/// Writes the output matrix packed into `staged`, beside a checkpoint that stays as it is, and adds the file's name to
/// `weights`; `None` if it is not wanted, or written with the layers.
pub(super) fn write_head(
    target: &LlmTarget,
    weights: &mut Vec<String>,
    staged: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<Option<HeadRecord>> {
    let Schemes { layers: None, head: Some(scheme) } = target.schemes else { return Ok(None) };
    let mut file = HEAD_FILE.to_owned();
    // A checkpoint's own file may have this name.
    while weights.contains(&file) {
        file.insert_str(0, "packed-");
    }
    let path = staged.join(WEIGHTS).join(&file);
    quantize::write_head(original(&target.plan, &target.source), scheme, &path, progress)?;
    weights.push(file.clone());
    Ok(Some(HeadRecord { file, bits: scheme.bits, group_size: scheme.group, symmetric: scheme.symmetric }))
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
