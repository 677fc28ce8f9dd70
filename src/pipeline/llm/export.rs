//! Exports a language model as a single ONNX graph.

use std::fs;
use std::time::Instant;

use anyhow::Context as _;

use super::{judge, open};
use crate::artifact::{StagedDirectory, about, is_same_file, sweep, write_file};
use crate::convert;
use crate::fetch::Lock;
use crate::manifest::layout::MODEL;
use crate::pipeline::Context;
use crate::pipeline::place::{self, Move};
use crate::pipeline::target::Emitted;
use crate::recipe::{Plan, SourcePlan};

/// Writes the full graph as ONNX; the reported seconds are those of the conversion.
///
/// External data must lie beside the model. If the output folder is the checkpoint's own, NAME.onnx is written there;
/// otherwise NAME-onnx/ gets model.onnx and the checkpoint's files, as links if they lie in a store. (onnxruntime
/// follows hard links; onnx.checker, given a path, rejects them as an attack.)
pub(in crate::pipeline) fn emit_onnx(plan: &Plan, context: &Context, lock: &mut Lock) -> anyhow::Result<Emitted> {
    let folder = context.output.join(format!("{}-onnx", plan.name));
    let path = context.output.join(format!("{}.onnx", plan.name));
    let own = match &plan.source {
        SourcePlan::Path { path, .. } if path.is_dir() => Some(path.as_path()),
        SourcePlan::Path { path, .. } => path.parent(),
        _ => None,
    };
    match own.is_some_and(|own| is_same_file(own, &context.output)) {
        true => place::check_onnx_file(&path, context.force)?,
        false => place::check_onnx_folder(&folder)?,
    }
    sweep(&folder).map_err(about(&folder))?;
    let source = open(plan, &context.fetcher, lock)?;
    let words = judge::check_text_files(plan, &source)?;
    context.warn(&plan.name, source.checkpoint.notes.iter().chain(&source.model.notes).chain(&words));
    let start = Instant::now();
    let files = source.checkpoint.files();
    let name = |index: usize| files[index].path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let whole = convert::export_full_graph(&source.model, &source.checkpoint, name)?;
    let output = fs::canonicalize(&context.output).ok();
    let beside = |file: &crate::checkpoint::Mapped| {
        fs::canonicalize(file.path()).is_ok_and(|real| real.parent() == output.as_deref())
    };
    if files.iter().all(beside) {
        place::check_onnx_file(&path, context.force)?;
        write_file(&path, &whole.model.to_bytes()?).map_err(about(&path))?;
        return Ok(Emitted { path, seconds: Some(start.elapsed().as_secs_f64()) });
    }
    let staged = StagedDirectory::create(&folder).map_err(about(&folder))?;
    let model = staged.path().join(MODEL);
    fs::write(&model, whole.model.to_bytes()?).map_err(about(&model))?;
    let seconds = start.elapsed().as_secs_f64();
    let data = whole.files.iter();
    let moves: Vec<Move> =
        data.map(|(name, index)| (files[*index].path().to_owned(), staged.path().join(name))).collect();
    place::place(&moves, &plan.source, true, context)?;
    place::check_onnx_folder(&folder)?;
    staged.publish().with_context(|| format!("cannot publish {}", folder.display()))?;
    Ok(Emitted { path: folder.join(MODEL), seconds: Some(seconds) })
}
